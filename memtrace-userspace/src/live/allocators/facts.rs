//! What `doctor` tells of a mapped file besides its probes.
//!
//! In: the bytes of an ELF file. Out: [`Facts`]. Pure.

use memtrace_common::unwind::cfa;
use object::{Object, ObjectSection, ReadRef, SectionFlags};

use crate::cfi;

/// What a file says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Whose allocator it holds, if that can be told.
    pub allocator: Option<&'static str>,
    /// Bytes of code.
    pub code_bytes: u64,
    /// Of these, the bytes that have unwind information.
    pub unwindable_bytes: u64,
    /// The names that it has of its own.
    pub names: Names,
    /// Its build id; empty if it has none.
    pub build_id: Vec<u8>,
    /// The file name of its debug information, if it is linked by name.
    pub debug_link: Option<Vec<u8>>,
}

/// How much a file says of its functions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Names {
    /// Functions, inlined ones too, and lines (DWARF).
    DebugInfo,
    /// All functions (`.symtab`, or the packed one in `.gnu_debugdata`).
    Symbols,
    /// Exported functions only.
    #[default]
    Exported,
}

/// Symbols that only one allocator has.
const MARKS: [(&str, &str); 7] = [
    ("mallctl", "jemalloc"),
    ("je_mallctl", "jemalloc (je_)"),
    ("_rjem_mallctl", "jemalloc (_rjem_)"),
    ("tc_version", "tcmalloc (gperftools)"),
    ("mi_version", "mimalloc"),
    ("gnu_get_libc_version", "glibc"),
    ("__libc_start_main", "musl"),
];

impl Facts {
    /// Reads them.
    pub(super) fn of<'data, R: ReadRef<'data> + Send + Sync>(
        elf: &object::File<'data, R>,
        symbols: impl Iterator<Item = &'data str>,
    ) -> Facts {
        let marks: Vec<&str> = symbols.collect();
        let allocator = MARKS.iter().find(|(mark, _)| marks.contains(mark));
        let code_bytes = elf
            .sections()
            .filter(|section| {
                matches!(section.flags(), SectionFlags::Elf { sh_flags, .. }
                    if sh_flags.0 & object::elf::SHF_EXECINSTR.0 != 0)
            })
            .fold(0u64, |bytes, section| bytes.saturating_add(section.size()));
        let has = |name: &str| elf.section_by_name(name).is_some();
        let names = if has(".debug_info") || has(".zdebug_info") {
            Names::DebugInfo
        } else if has(".symtab") || has(".gnu_debugdata") {
            Names::Symbols
        } else {
            Names::Exported
        };
        Facts {
            allocator: allocator.map(|(_, name)| *name),
            code_bytes,
            unwindable_bytes: unwindable_bytes(elf).min(code_bytes),
            names,
            build_id: elf.build_id().ok().flatten().unwrap_or_default().to_vec(),
            debug_link: elf.gnu_debuglink().ok().flatten().map(|(name, _)| name.to_vec()),
        }
    }
}

/// How many bytes of code have a row.
fn unwindable_bytes<'data, R: ReadRef<'data> + Send + Sync>(elf: &object::File<'data, R>) -> u64 {
    let Ok(table) = cfi::compile(elf) else { return 0 };
    let has_row = |kind: u8| kind != cfa::NONE && kind != cfa::UNSUPPORTED;
    table
        .rows
        .windows(2)
        .filter(|rows| has_row(rows[0].cfa_kind))
        .map(|rows| u64::from(rows[1].pc.saturating_sub(rows[0].pc)))
        .sum()
}

/// Whether [`Facts::of`] wants to know of this symbol.
pub(super) fn is_mark(symbol: &str) -> bool {
    MARKS.iter().any(|(mark, _)| *mark == symbol)
}
