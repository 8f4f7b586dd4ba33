//! What the symbolizer needs from one ELF file: segments, function symbols, sections.
//!
//! In: the file's bytes. Out: borrowed views of them; only compressed sections are copied, within
//! a budget. Every offset, size and index in the file is foreign, so is the number of entries.

use std::cell::Cell;

use memtrace_common::addr::{FileOffset, Svma};
use object::elf::{self, FileHeader64};
use object::read::elf::{ElfFile64, ProgramHeader, SectionHeader, Sym, SymbolTable};
use object::{CompressionFormat, Object, ObjectSection, SymbolIndex};
use typed_arena::Arena;

use super::demangle::MAX_NAME_BYTES;
use super::mapped::FileBytes;
use super::table::{Binding, Candidate};

/// All the decompressed sections of one object together.
const MAX_DECOMPRESSED_BYTES: u64 = 1 << 30;

/// zlib cannot do better than 1032:1, so a header that promises more lies.
const MAX_ZLIB_RATIO: u64 = 1040;

/// An ELF file as memtrace traces them: 64 bit, little endian.
pub(super) type Elf<'a> = ElfFile64<'a, object::LittleEndian, &'a [u8]>;

type Symbols<'a> = SymbolTable<'a, FileHeader64<object::LittleEndian>, &'a [u8]>;

/// Where files and sections are kept that are found while others are already borrowed.
#[derive(Default)]
pub(super) struct Store {
    kept: Arena<FileBytes>,
    heap_bytes: Cell<usize>,
    decompressed_bytes: Cell<u64>,
}

impl Store {
    /// Keeps `bytes` as long as the store lives.
    pub(super) fn keep(&self, bytes: FileBytes) -> &[u8] {
        self.heap_bytes.set(self.heap_bytes.get() + bytes.heap_bytes());
        self.kept.alloc(bytes)
    }

    /// Memory used, in bytes.
    pub(super) fn heap_bytes(&self) -> usize {
        self.heap_bytes.get()
    }
}

/// One `PT_LOAD`: the file's bytes from `offset` on are meant to be at `svma`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    offset: FileOffset,
    size_bytes: u64,
    svma: Svma,
}

/// How file offsets become addresses.
#[derive(Debug)]
pub(super) struct Segments {
    /// The executable ones first: in rare layouts two segments show the same bytes.
    loads: Vec<Segment>,
}

impl Segments {
    pub(super) fn of(elf: &Elf<'_>) -> Segments {
        let endian = object::LittleEndian;
        let headers = elf.elf_program_headers().iter();
        let loads = headers.filter(|header| header.p_type(endian) == elf::PT_LOAD);
        let (mut code, data): (Vec<_>, Vec<_>) = loads
            .map(|header| {
                let segment = Segment {
                    offset: FileOffset(header.p_offset(endian)),
                    size_bytes: header.p_filesz(endian),
                    svma: Svma(header.p_vaddr(endian)),
                };
                (header.p_flags(endian).contains(elf::PF_X), segment)
            })
            .partition(|(is_code, _)| *is_code);
        code.extend(data);
        Segments { loads: code.into_iter().map(|(_, segment)| segment).collect() }
    }

    /// The address of the byte at `offset`.
    pub(super) fn svma(&self, offset: FileOffset) -> Option<Svma> {
        self.loads.iter().find_map(|load| {
            let within = offset.0.checked_sub(load.offset.0)?;
            (within < load.size_bytes).then(|| load.svma.0.checked_add(within).map(Svma))?
        })
    }

    /// Where the bytes from `start` to `end` lie in the file, as far as they are in one segment.
    pub(super) fn offsets(&self, start: Svma, end: Svma) -> Option<(FileOffset, FileOffset)> {
        self.loads.iter().find_map(|load| {
            let within = start.0.checked_sub(load.svma.0)?;
            let bytes = end.0.checked_sub(start.0)?.min(load.size_bytes.checked_sub(within)?);
            let first = load.offset.0.checked_add(within)?;
            (bytes > 0).then_some((FileOffset(first), FileOffset(first.checked_add(bytes)?)))
        })
    }
}

/// Parses an ELF file.
pub(super) fn parse(bytes: &[u8]) -> Result<Elf<'_>, object::Error> {
    Elf::parse(bytes)
}

/// Whether the file has a full symbol table.
pub(super) fn has_symtab(elf: &Elf<'_>) -> bool {
    !elf.elf_symbol_table().is_empty()
}

/// Whether the file has DWARF of its own.
pub(super) fn has_debug_info(elf: &Elf<'_>) -> bool {
    elf.section_by_name(".debug_info").is_some_and(|section| {
        section.size() > 0
            && section.elf_section_header().sh_type(object::LittleEndian) != elf::SHT_NOBITS
    })
}

/// The function symbols of `.symtab` and `.dynsym`.
pub(super) fn functions<'a>(elf: &Elf<'a>) -> Vec<Candidate<'a>> {
    let mut functions = Vec::new();
    for symbols in [elf.elf_symbol_table(), elf.elf_dynamic_symbol_table()] {
        collect_functions(elf, symbols, &mut functions);
    }
    functions
}

fn collect_functions<'a>(elf: &Elf<'a>, symbols: &Symbols<'a>, out: &mut Vec<Candidate<'a>>) {
    let endian = object::LittleEndian;
    let sections = elf.elf_section_table();
    let Ok(strings) = sections
        .section(symbols.string_section())
        .and_then(|section| section.data(endian, elf.data()))
    else {
        return;
    };
    // One past the end of each section that holds code.
    let code_limits: Vec<Option<Svma>> = sections
        .iter()
        .map(|section| {
            let is_code = section.sh_flags(endian).contains(elf::SHF_EXECINSTR);
            let end = section.sh_addr(endian).saturating_add(section.sh_size(endian));
            is_code.then_some(Svma(end))
        })
        .collect();
    // Names may share their tails, but a file in which they share more is made to waste time.
    let mut name_bytes_left = strings.len().saturating_mul(8);
    for (index, symbol) in symbols.enumerate() {
        let is_function = match symbol.st_type() {
            elf::STT_FUNC | elf::STT_GNU_IFUNC => true,
            elf::STT_NOTYPE => false,
            _ => continue,
        };
        let Some(limit) = section_limit(symbols, index, symbol, &code_limits) else {
            continue;
        };
        let Some(name) = name_at(strings, symbol.st_name(endian)) else {
            continue;
        };
        let Some(left) = name_bytes_left.checked_sub(name.len()) else {
            return;
        };
        name_bytes_left = left;
        let binding = match symbol.st_bind() {
            elf::STB_LOCAL => Binding::Local,
            elf::STB_WEAK => Binding::Weak,
            _ => Binding::Global,
        };
        out.push(Candidate {
            start: Svma(symbol.st_value(endian)),
            size_bytes: symbol.st_size(endian),
            limit,
            binding,
            is_function,
            name,
        });
    }
}

/// The end of the code section that the symbol is defined in; `None` if it is not code.
fn section_limit<'a>(
    symbols: &Symbols<'a>,
    index: SymbolIndex,
    symbol: &elf::Sym64<object::LittleEndian>,
    code_limits: &[Option<Svma>],
) -> Option<Svma> {
    let section = symbols.symbol_section(object::LittleEndian, symbol, index).ok()??;
    *code_limits.get(section.0)?
}

/// The name that starts at `offset`; `None` if it is empty, endless or beyond all reason.
fn name_at(strings: &[u8], offset: u32) -> Option<&[u8]> {
    let rest = strings.get(usize::try_from(offset).ok()?..)?;
    let window = rest.get(..MAX_NAME_BYTES).unwrap_or(rest);
    let end = window.iter().position(|byte| *byte == 0)?;
    (end > 0).then(|| &window[..end])
}

/// The contents of a section, decompressed; empty if it is absent or cannot be had.
pub(super) fn section<'a>(elf: &Elf<'a>, name: &str, store: &'a Store) -> &'a [u8] {
    elf.section_by_name(name).and_then(|section| contents(&section, store)).unwrap_or_default()
}

fn contents<'a>(
    section: &object::read::elf::ElfSection64<'a, '_, object::LittleEndian, &'a [u8]>,
    store: &'a Store,
) -> Option<&'a [u8]> {
    let compressed = section.compressed_data().ok()?;
    match compressed.format {
        CompressionFormat::None => return Some(compressed.data),
        CompressionFormat::Zlib => {
            let possible = (compressed.data.len() as u64).saturating_mul(MAX_ZLIB_RATIO);
            if compressed.uncompressed_size > possible {
                return None;
            }
        }
        _ => {}
    }
    let total = store.decompressed_bytes.get().checked_add(compressed.uncompressed_size)?;
    if total > MAX_DECOMPRESSED_BYTES {
        return None;
    }
    store.decompressed_bytes.set(total);
    let bytes = compressed.decompress().ok()?.into_owned();
    Some(store.keep(FileBytes::Read(bytes)))
}
