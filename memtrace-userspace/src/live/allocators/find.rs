//! Which functions of a file are an allocator's, by their symbols.
//!
//! Every name for an address counts once, forwarders do not count, and what else has to be probed in
//! a file is found beside: where the stack is unwound, and where the process ends.

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{Decoder, DecoderOptions, FlowControl};
use memtrace_common::addr::Svma;
use memtrace_common::call::Call;
use memtrace_common::event::Api;
use object::ReadRef;

use super::elf::{Elf, Slot, Symbol, SymbolType};
use super::forwards;
use super::names::{self, Family, Name};
use super::{AllocatorsError, MAX_FUNCTIONS, Role, Skip, Skipped, Target};
use crate::live::placement::branch_target;

/// The most functions of one file that unwind the stack (libgcc has three), or that end the process.
const MAX_OTHERS: usize = 8;

/// The functions of a file, before their sites are chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// The functions to probe, by address.
    pub(super) targets: Vec<Target>,
    /// What was passed over, by name.
    pub(super) skipped: Vec<Skipped>,
    /// The functions that unwind the stack, by address.
    pub(super) unwinders: Vec<Target>,
    /// The functions that end the process, by address.
    pub(super) ends: Vec<Target>,
    /// glibc's own `malloc`, `calloc` and `realloc`, whose calls stay inside the library, and where
    /// each may jump to `memset`.
    pub(super) glibc: BTreeMap<Svma, Vec<Svma>>,
}

impl Found {
    fn skip(&mut self, symbol: &str, reason: Skip) {
        self.skipped.push(Skipped { symbol: symbol.to_owned(), reason });
    }
}

/// Finds the allocator functions of the ELF file `file`.
///
/// A file without any, or without symbols, is not an error: it has no targets.
pub(super) fn find<'data>(file: impl ReadRef<'data>) -> Result<Found, AllocatorsError> {
    let elf = Elf::parse(file)?;
    let mut found = Found::default();
    let mut candidates = Vec::new();
    let symbols = Symbols::of(&elf);
    for (name, symbol) in symbols.allocators {
        if candidates.len() + found.skipped.len() >= MAX_FUNCTIONS {
            found.skip(symbol.name, Skip::TooMany);
            break;
        }
        match target(&elf, name, symbol) {
            Ok(target) => candidates.push((name, target)),
            Err(reason) => found.skip(symbol.name, reason),
        }
    }
    if elf.is_dynamic_linker() {
        for (_, target) in candidates.drain(..) {
            found.skip(&target.symbol, Skip::DynamicLinker);
        }
    }
    let candidates = without_aliases(candidates, &mut found);

    let forwarders = forwards::find(&elf, &candidates);
    for (_, target) in candidates {
        if forwarders.contains(&target.svma) {
            found.skip(&target.symbol, Skip::Forwards);
        } else {
            found.targets.push(target);
        }
    }
    found.unwinders = not_of_an_allocator(&elf, Role::Unwind, symbols.unwinders);
    found.ends = not_of_an_allocator(&elf, Role::End, symbols.ends);
    if !found.targets.is_empty() {
        found.glibc = glibc(&elf);
    }
    found.skipped.sort_by(|a, b| a.symbol.cmp(&b.symbol));
    found.skipped.dedup();
    Ok(found)
}

/// glibc's `malloc`, `calloc` and `realloc`, in its shared library or linked into a program.
///
/// tcmalloc calls its own `__libc_malloc`, too.
fn glibc<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>) -> BTreeMap<Svma, Vec<Svma>> {
    let is_glibc =
        |symbol: &Symbol<'_>| symbol.name == "_int_malloc" || symbol.name == "gnu_get_libc_version";
    if elf.defined_symbols().find(is_glibc).is_none() {
        return BTreeMap::new();
    }
    // Its `calloc` has only this name where it is the shared library's.
    let is_one = |name: &str| {
        matches!(name, "__libc_malloc" | "__libc_calloc" | "calloc" | "__libc_realloc" | "realloc")
    };
    // Both symbol tables have them, `calloc` under two names: each is looked at once.
    let functions: BTreeMap<Svma, Symbol<'_>> = elf
        .defined_symbols()
        .filter(|symbol| is_one(symbol.name))
        .map(|symbol| (symbol.svma, symbol))
        .collect();
    functions.into_iter().map(|(svma, function)| (svma, jumps_to_memset(elf, function))).collect()
}

/// Where a function jumps, out of itself, that is `memset` or leads to it through the PLT.
fn jumps_to_memset<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    Symbol { svma, size, .. }: Symbol<'_>,
) -> Vec<Svma> {
    let code = elf.code(svma, size);
    let leaves = |to: u64| to.wrapping_sub(svma.0) >= size;
    let targets: BTreeSet<Svma> = Decoder::with_ip(64, code, svma.0, DecoderOptions::NONE)
        .iter()
        .filter(|instruction| instruction.flow_control() == FlowControl::UnconditionalBranch)
        .filter_map(|instruction| branch_target(&instruction))
        .filter(|to| leaves(*to))
        .map(Svma)
        .collect();
    if targets.is_empty() {
        return Vec::new();
    }
    let slots = elf.slots();
    let memset: Vec<Svma> = elf
        .defined_symbols()
        .filter(|symbol| symbol.name == "memset")
        .map(|symbol| symbol.svma)
        .collect();
    let is_memset = |target: &Svma| match elf.plt_slot(*target) {
        None => memset.contains(target),
        Some(word) => match slots.get(&word) {
            Some(Slot::Defined(entry)) => memset.contains(entry),
            Some(Slot::Imported(name)) => *name == "memset",
            None => false,
        },
    };
    targets.into_iter().filter(is_memset).collect()
}

/// The functions of this role.
fn not_of_an_allocator<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    role: Role,
    symbols: Vec<Symbol<'_>>,
) -> Vec<Target> {
    let mut found: Vec<Target> = symbols
        .into_iter()
        .filter(|symbol| symbol.kind == SymbolType::Function)
        .filter_map(|symbol| located(elf, symbol, Call::Ignore, role))
        .collect();
    found.sort_by_key(|target| target.svma);
    found.dedup_by_key(|target| target.svma);
    found.truncate(MAX_OTHERS);
    found
}

/// The symbols that are defined in a file and may have probes, by their names.
struct Symbols<'data> {
    /// Named like an allocator's function.
    allocators: Vec<(Name, Symbol<'data>)>,
    /// Functions that start to unwind the stack.
    unwinders: Vec<Symbol<'data>>,
    /// Functions that end the process.
    ends: Vec<Symbol<'data>>,
}

impl<'data> Symbols<'data> {
    /// Looks at each once: a large program has half a million.
    ///
    /// The C++ operators are left out if the file does not define `malloc` as well.
    fn of<R: ReadRef<'data>>(elf: &Elf<'data, R>) -> Self {
        let (mut allocators, mut unwinders, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        for symbol in elf.defined_symbols() {
            if let Some(name) = names::classify(symbol.name) {
                allocators.push((name, symbol));
            } else if names::unwinds(symbol.name) {
                unwinders.push(symbol);
            } else if names::ends(symbol.name) {
                ends.push(symbol);
            }
        }
        let has_malloc = allocators.iter().any(|(name, _)| name.call.api() == Some(Api::Malloc));
        allocators.retain(|(name, _)| has_malloc || name.family != Family::CxxOperator);
        Symbols { allocators, unwinders, ends }
    }
}

fn target<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    name: Name,
    symbol: Symbol<'_>,
) -> Result<Target, Skip> {
    match symbol.kind {
        SymbolType::Function => {}
        SymbolType::IndirectFunction => return Err(Skip::IndirectFunction),
        SymbolType::Other => return Err(Skip::NotAFunction),
    }
    if symbol.size == 0 {
        return Err(Skip::NoSize);
    }
    located(elf, symbol, name.call, name.role()).ok_or(Skip::NotInCode)
}

/// The function of `symbol`; `None` if it is not in the file's code.
fn located<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    symbol: Symbol<'_>,
    call: Call,
    role: Role,
) -> Option<Target> {
    let Symbol { name, svma, size, kind: _ } = symbol;
    let offset = elf.code_offset(svma, size)?;
    Some(Target { call, role, symbol: name.to_owned(), offset, svma, size })
}

/// Keeps one name for each address: the best known one.
fn without_aliases(mut all: Vec<(Name, Target)>, found: &mut Found) -> Vec<(Name, Target)> {
    all.sort_by(|(a, at), (b, bt)| {
        at.svma.cmp(&bt.svma).then(a.rank().cmp(&b.rank())).then(at.symbol.cmp(&bt.symbol))
    });
    let mut kept: Vec<(Name, Target)> = Vec::new();
    for (name, target) in all {
        match kept.last() {
            Some((_, of)) if of.svma == target.svma => {
                if of.symbol != target.symbol {
                    found.skip(&target.symbol, Skip::Alias { of: of.symbol.clone() });
                }
            }
            _ => kept.push((name, target)),
        }
    }
    kept
}
