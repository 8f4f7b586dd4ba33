//! Finding the functions that the user has named.
//!
//! In: the bytes of a file and a [`ProbeSpec`]. Out: the function, or why it cannot be probed, with
//! the names that come near. Pure.
//!
//! A breakpoint in the middle of an instruction ends the target, and one that is not at the start of
//! a function finds no arguments and no return address. So an address is taken only if something
//! says that a function starts there:
//!
//! ```text
//!   a symbol             its address
//!   unwind information   the start of an FDE
//!   code                 a `call` of exactly this address; for files without the other two
//! ```

use std::collections::BTreeMap;

use iced_x86::{Decoder, DecoderOptions};
use memtrace_common::addr::Svma;
use object::ReadRef;
use thiserror::Error;

use super::elf::{Elf, Symbol, SymbolType};
use super::spec::{FunctionName, ProbeSpec};
use super::{AllocatorsError, Target};
use crate::cfi;
use crate::symbols::demangle;

/// How many names an error lists.
const MAX_NAMES: usize = 6;

/// Below this likeness (Jaro-Winkler) a name is not worth mentioning.
const LIKENESS: f64 = 0.85;

/// The longest instruction of x86-64.
const MAX_INSTRUCTION_BYTES: u64 = 15;

/// Why a function that the user has named cannot be probed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NotFound {
    /// No symbol has that name.
    #[error("the file has no function of that name{}", suggestions("similar ones are", near))]
    NoSymbol {
        /// Names that come near.
        near: Vec<String>,
    },
    /// The file is stripped.
    #[error(
        "the file is stripped of its names: give the function's address instead, such as \
         0x401230, from a build of the same file that has its symbols"
    )]
    NoSymbols,
    /// More than one function has that name.
    #[error("several functions have that name; choose one of {}", candidates.join(", "))]
    Ambiguous {
        /// As they are told apart.
        candidates: Vec<String>,
    },
    /// A resolver that picks the function when the program starts.
    #[error("it is an indirect function (IFUNC), whose code is chosen at run time: name that one")]
    IndirectFunction,
    /// Not in the code that the kernel maps.
    #[error("it is not in the file's executable code")]
    NotInCode,
    /// The address is in a function.
    #[error("it is inside the function that starts at {:#x}; probes go to the start", start.0)]
    InsideFunction {
        /// Where that starts.
        start: Svma,
    },
    /// Nothing says that a function starts there.
    #[error(
        "neither symbols nor unwind information nor a call say that a function starts there; a \
         probe in the middle of an instruction would end the program"
    )]
    NoFunctionStart,
    /// The code there is none.
    #[error("the bytes there are not an instruction")]
    NotAnInstruction,
    /// Go moves its stacks, and a return probe's address would be lost.
    #[error("it is Go's code, whose stacks move: a return probe would end the program")]
    Go,
    /// The file could not be read.
    #[error(transparent)]
    File(AllocatorsError),
}

fn suggestions(introduction: &str, names: &[String]) -> String {
    match names {
        [] => String::new(),
        names => format!("; {introduction} {}", names.join(", ")),
    }
}

/// Finds the function in `file`.
pub(super) fn resolve<'data>(
    file: impl ReadRef<'data>,
    spec: &ProbeSpec,
) -> Result<Target, NotFound> {
    let elf = Elf::parse(file).map_err(NotFound::File)?;
    let (svma, size) = match &spec.function {
        FunctionName::Symbol(name) => by_name(&elf, name)?,
        FunctionName::Address(svma) => (*svma, by_address(&elf, file, *svma)?),
    };
    // Of a function whose end is unknown, only the first instruction is looked at.
    let size = match size {
        0 => first_instruction(&elf, svma)?,
        size => size,
    };
    let offset = elf.code_offset(svma, size).ok_or(NotFound::NotInCode)?;
    let symbol = spec.function.to_string();
    Ok(Target { call: spec.call, role: spec.role(), symbol, offset, svma, size })
}

/// Address and size of the function with this name.
fn by_name<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    name: &str,
) -> Result<(Svma, u64), NotFound> {
    let mut found: BTreeMap<Svma, Symbol<'data>> = BTreeMap::new();
    let mut near: Vec<(f64, String)> = Vec::new();
    let mut has_functions = false;
    for symbol in elf.defined_symbols().filter(|symbol| symbol.kind != SymbolType::Other) {
        has_functions = true;
        let shown = demangle::demangle(symbol.name.as_bytes());
        if symbol.name == name || shown == name || without_parameters(&shown) == name {
            // A symbol that states a size is better than one that does not.
            let known = found.entry(symbol.svma).or_insert(symbol);
            if known.size == 0 {
                *known = symbol;
            }
            continue;
        }
        let likeness = match shown.contains(name) {
            true => 1.0,
            false => strsim::jaro_winkler(without_parameters(&shown), name),
        };
        if likeness >= LIKENESS {
            near.push((likeness, shown));
        }
    }
    let mut found = found.into_values();
    match (found.next(), found.next()) {
        (None, _) if !has_functions => Err(NotFound::NoSymbols),
        (None, _) => {
            near.sort_by(|(a, name), (b, other)| b.total_cmp(a).then_with(|| name.cmp(other)));
            let mut near: Vec<String> = near.into_iter().map(|(_, name)| name).collect();
            near.dedup();
            near.truncate(MAX_NAMES);
            Err(NotFound::NoSymbol { near })
        }
        (Some(symbol), None) if symbol.kind == SymbolType::IndirectFunction => {
            Err(NotFound::IndirectFunction)
        }
        (Some(symbol), None) if symbol.name.contains('.') && elf.is_go() => Err(NotFound::Go),
        (Some(symbol), None) => Ok((symbol.svma, symbol.size)),
        (Some(first), Some(second)) => {
            let all = [first, second].into_iter().chain(found).take(MAX_NAMES);
            Err(NotFound::Ambiguous { candidates: all.map(distinct_name).collect() })
        }
    }
}

/// The whole name where that tells functions apart, and the address in any case.
fn distinct_name(symbol: Symbol<'_>) -> String {
    format!("{:#x} ({})", symbol.svma.0, demangle::demangle(symbol.name.as_bytes()))
}

/// `Pool::alloc` of `Pool::alloc(unsigned long)`.
fn without_parameters(name: &str) -> &str {
    let Some(end) = name.rfind(')').map(|end| end + 1) else { return name };
    let mut depth = 0;
    for (at, byte) in name.bytes().enumerate().take(end).collect::<Vec<_>>().into_iter().rev() {
        match byte {
            b')' => depth += 1,
            b'(' => depth -= 1,
            _ => continue,
        }
        if depth == 0 {
            return &name[..at];
        }
    }
    name
}

/// The size of the function that starts at `svma`; 0 if nothing tells.
fn by_address<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    file: R,
    svma: Svma,
) -> Result<u64, NotFound> {
    elf.code_offset(svma, 1).ok_or(NotFound::NotInCode)?;
    if elf.is_go() {
        return Err(NotFound::Go);
    }
    if let Some(symbol) = elf
        .defined_symbols()
        .filter(|symbol| symbol.svma == svma && symbol.kind == SymbolType::Function)
        .max_by_key(|symbol| symbol.size)
    {
        return Ok(symbol.size);
    }
    let whole = object::File::parse(file).ok();
    match whole.and_then(|file| cfi::function_around(&file, svma)) {
        Some((start, end)) if start == svma => Ok(end.0.saturating_sub(start.0)),
        Some((start, _)) => Err(NotFound::InsideFunction { start }),
        None if elf.has_call_of(svma) => Ok(0),
        None => Err(NotFound::NoFunctionStart),
    }
}

fn first_instruction<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    svma: Svma,
) -> Result<u64, NotFound> {
    let code = elf.code(svma, MAX_INSTRUCTION_BYTES);
    let instruction = Decoder::with_ip(64, code, svma.0, DecoderOptions::NONE).decode();
    match instruction.is_invalid() {
        true => Err(NotFound::NotAnInstruction),
        false => Ok(instruction.len() as u64),
    }
}
