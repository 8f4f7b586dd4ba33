//! Unwind tables: `.eh_frame` in, 8-byte rows out.
//!
//! In: a parsed x86-64 ELF file. Out: a [`Table`] that covers all its executable text, in the
//! form that the kernel's walk searches. `.eh_frame` comes first; `.debug_frame` fills what it
//! lacks (Go's code, for example, has only that). In a C library without either, the places where
//! threads start get rows of their own (`starts`).
//!
//! ```text
//!   section ─split→ entries ─run→ rules ─encode→ rows of a function ─flatten→ rows, index
//! ```
//!
//! The file may be an attacker's. Time and memory are linear in the size of its sections, no
//! entry can spoil another one, and what is left out is counted in [`Skipped`]. Nothing is read
//! but the file: whether a row helps is found out by the walk, in [`memtrace_common::unwind`].

mod encode;
mod entries;
mod program;
mod spans;
mod starts;
#[cfg(test)]
mod tests;
mod trampolines;

use std::borrow::Cow;

use gimli::{
    BaseAddresses, DebugFrame, EhFrame, EhFrameHdr, LittleEndian, ParsedEhFrameHdr, UnwindSection,
};
use memtrace_common::addr::Svma;
use memtrace_common::config::BUCKET_SHIFT;
use memtrace_common::unwind::{Row, cfa};
use object::{CompressionFormat, Object, ObjectSection, ObjectSegment, ReadRef};
use rayon::prelude::*;

pub use encode::Unsupported;
use encode::{Frame, encode};
use entries::{Bytes, Cies, Format};
use program::Broken;
use spans::{Functions, GAP, Span};
pub use trampolines::{ARENA_BYTES, TRAMPOLINE_BYTES, is_trampoline, trampoline_table};

/// Changes whenever [`compile`] gives another table of the same file: tables are kept on disk.
pub const VERSION: u32 = 2;

/// The unwind table of one ELF file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The address that rows count from: the lowest one of executable text, rounded down.
    pub base: Svma,
    /// Sorted by `pc`, the first one at 0; each holds up to the next. Neighbours differ.
    pub rows: Vec<Row>,
    /// For each 256 bytes of text, the index of the last row at or before its start; one more.
    pub buckets: Vec<u32>,
    /// What the table lacks.
    pub skipped: Skipped,
}

impl Table {
    /// Whether rows and index are in order, as [`lookup`] and the kernel's search need it.
    ///
    /// What the rows say is not asked: a walk survives any of them.
    pub fn is_sound(&self) -> bool {
        let Table { base: _, rows, buckets, skipped: _ } = self;
        let rows_ascend = rows.is_sorted_by(|row, next| row.pc < next.pc);
        let within = buckets.last().is_some_and(|last| (*last as usize) < rows.len());
        rows_ascend && buckets.is_sorted() && within
    }
}

/// What a table lacks, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Sections that could not be read, or that end within an entry.
    pub broken_sections: u64,
    /// CIEs that could not be parsed.
    pub broken_cies: u64,
    /// FDEs that could not be parsed or run, or whose CIE was broken.
    pub broken_fdes: u64,
    /// FDEs of code outside executable text; linkers leave those of discarded functions at 0.
    pub fdes_outside_text: u64,
    /// FDEs that lost some or all of their range to another one.
    pub overlapping_fdes: u64,
    /// Ranges of code whose rules do not fit into a row, by reason, in [`Unsupported::ALL`]'s
    /// order.
    pub unsupported: [u64; Unsupported::ALL.len()],
}

/// Why a file has no table.
#[derive(Debug, thiserror::Error)]
pub enum CfiError {
    /// Another machine's file.
    #[error("not a 64-bit little-endian x86-64 ELF file, but {found}")]
    WrongMachine {
        /// What it is.
        found: String,
    },
    /// Nothing to unwind.
    #[error("no executable segment")]
    NoText,
    /// Beyond what x86-64's code models reach.
    #[error("executable segments span {bytes} bytes, more than {MAX_TEXT_BYTES}")]
    TextTooLarge {
        /// From the lowest to the highest address.
        bytes: u64,
    },
}

/// The widest text: x86-64 code reaches 2 GiB with a relative jump. Bounds the bucket index.
pub const MAX_TEXT_BYTES: u64 = 2 << 30;

/// The largest frame section that is compiled. A table is up to ten times as large.
pub const MAX_SECTION_BYTES: u64 = 256 << 20;

/// The same for a compressed section, which may come from a file a thousand times smaller.
pub const MAX_UNPACKED_BYTES: u64 = 64 << 20;

/// Compiles the unwind table of an ELF file.
///
/// A file without frame sections gets a table that says "no row" everywhere.
pub fn compile<'data, R: ReadRef<'data>>(elf: &object::File<'data, R>) -> Result<Table, CfiError> {
    let text = Text::of(elf)?;
    let mut skipped = Skipped::default();
    let bases = base_addresses(elf);

    let mut functions = Functions::default();
    if let Some(section) = read_section(elf, ".eh_frame", &mut skipped) {
        let mut frames = EhFrame::new(&section, LittleEndian);
        frames.set_address_size(8);
        functions = compile_section(&frames, Format::EhFrame, &bases, text, &mut skipped);
    }
    if let Some(section) = read_section(elf, ".debug_frame", &mut skipped) {
        let mut frames = DebugFrame::new(&section, LittleEndian);
        frames.set_address_size(8);
        let others = compile_section(&frames, Format::DebugFrame, &bases, text, &mut skipped);
        spans::fill_gaps(&mut functions, others);
    }

    let starts = starts::of(elf, text);
    spans::fill_gaps(&mut functions, starts);

    let rows = spans::flatten(&functions, text.bytes);
    let buckets = spans::index(&rows, text.bytes);
    Ok(Table { base: text.base, rows, buckets, skipped })
}

/// The row that covers `pc`: the twin of the kernel's search.
///
/// Outside the text it is a row of kind [`cfa::NONE`].
pub fn lookup(table: &Table, pc: Svma) -> Row {
    let Some(pc) = pc.0.checked_sub(table.base.0) else {
        return GAP;
    };
    let Ok(bucket) = usize::try_from(pc >> BUCKET_SHIFT) else {
        return GAP;
    };
    let Some(&[first, last]) = table.buckets.get(bucket..).and_then(|rest| rest.first_chunk())
    else {
        return GAP;
    };
    let rows = &table.rows[first as usize..=last as usize];
    let above = rows.partition_point(|row| u64::from(row.pc) <= pc);
    above.checked_sub(1).map_or(GAP, |at| rows[at])
}

/// Start and end of the function around `pc`, as its FDE states them.
///
/// Without an index of the FDEs it reads all of them: for a question or two, and not for a whole stack.
pub fn function_around<'data, R: ReadRef<'data>>(
    elf: &object::File<'data, R>,
    pc: Svma,
) -> Option<(Svma, Svma)> {
    let bases = base_addresses(elf);
    let section = read_section(elf, ".eh_frame", &mut Skipped::default())?;
    let mut frames = EhFrame::new(&section, LittleEndian);
    frames.set_address_size(8);
    let index = read_section(elf, ".eh_frame_hdr", &mut Skipped::default()).unwrap_or_default();
    let index = EhFrameHdr::new(&index, LittleEndian).parse(&bases, 8).ok();
    let fde = match index.as_ref().and_then(ParsedEhFrameHdr::table) {
        Some(table) => table.fde_for_address(&frames, &bases, pc.0, EhFrame::cie_from_offset),
        None => frames.fde_for_address(&bases, pc.0, EhFrame::cie_from_offset),
    };
    let fde = fde.ok()?;
    let end = fde.initial_address().checked_add(fde.len())?;
    Some((Svma(fde.initial_address()), Svma(end)))
}

/// The executable text: all segments and what lies between them.
#[derive(Clone, Copy, Debug)]
struct Text {
    /// The first address, rounded down to a bucket.
    base: Svma,
    /// From `base` to the last address.
    bytes: u32,
}

impl Text {
    fn of<'data, R: ReadRef<'data>>(elf: &object::File<'data, R>) -> Result<Text, CfiError> {
        if elf.architecture() != object::Architecture::X86_64
            || !elf.is_little_endian()
            || !elf.is_64()
        {
            let found = format!("{:?} {:?}", elf.format(), elf.architecture());
            return Err(CfiError::WrongMachine { found });
        }
        let executable = elf.segments().filter(|segment| segment.permissions().executable());
        let (mut first, mut end) = (u64::MAX, 0);
        for segment in executable.filter(|segment| segment.size() > 0) {
            first = first.min(segment.address());
            end = end.max(segment.address().saturating_add(segment.size()));
        }
        if first >= end {
            return Err(CfiError::NoText);
        }
        let base = first & !((1 << BUCKET_SHIFT) - 1);
        let bytes = end - base;
        match u32::try_from(bytes) {
            Ok(narrow) if bytes <= MAX_TEXT_BYTES => Ok(Text { base: Svma(base), bytes: narrow }),
            _ => Err(CfiError::TextTooLarge { bytes }),
        }
    }

    /// The part of a range of addresses that lies in the text, counted from its base.
    fn clip(&self, start: u64, end: u64) -> Option<(u32, u32)> {
        let last = u64::from(self.bytes);
        let start = start.saturating_sub(self.base.0).min(last) as u32;
        let end = end.saturating_sub(self.base.0).min(last) as u32;
        (start < end).then_some((start, end))
    }
}

/// How large the frame sections of a file are, unpacked: a measure of how long [`compile`] takes.
pub fn section_bytes<'data, R: ReadRef<'data>>(elf: &object::File<'data, R>) -> u64 {
    [".eh_frame", ".debug_frame"]
        .iter()
        .filter_map(|name| elf.section_by_name(name))
        .fold(0, |bytes, section| section.size().saturating_add(bytes))
}

fn base_addresses<'data, R: ReadRef<'data>>(elf: &object::File<'data, R>) -> BaseAddresses {
    let address = |name| elf.section_by_name(name).map(|section| section.address());
    let mut bases = BaseAddresses::default();
    if let Some(address) = address(".eh_frame") {
        bases = bases.set_eh_frame(address);
    }
    if let Some(address) = address(".eh_frame_hdr") {
        bases = bases.set_eh_frame_hdr(address);
    }
    if let Some(address) = address(".text") {
        bases = bases.set_text(address);
    }
    if let Some(address) = address(".got") {
        bases = bases.set_got(address);
    }
    bases
}

/// The bytes of a section; `None` if there is none, or none that can be read, which is counted.
fn read_section<'data, R: ReadRef<'data>>(
    elf: &object::File<'data, R>,
    name: &str,
    skipped: &mut Skipped,
) -> Option<Cow<'data, [u8]>> {
    let section = elf.section_by_name(name)?;
    let data = section
        .compressed_data()
        .ok()
        .filter(|data| match data.format {
            CompressionFormat::None => data.uncompressed_size <= MAX_SECTION_BYTES,
            _ => data.uncompressed_size <= MAX_UNPACKED_BYTES,
        })
        .and_then(|data| data.decompress().ok());
    if data.is_none() {
        skipped.broken_sections += 1;
    }
    data
}

/// How many FDEs one task compiles: a millisecond's work.
const FDES_PER_TASK: usize = 4096;

/// Compiles the functions of a section; they come out disjoint and sorted.
fn compile_section<'data, S>(
    section: &S,
    format: Format,
    bases: &BaseAddresses,
    text: Text,
    skipped: &mut Skipped,
) -> Functions
where
    S: UnwindSection<Bytes<'data>> + Sync,
{
    let entries = entries::split(section.section().slice(), format);
    let (cies, broken_cies) = entries::parse_cies(section, bases, &entries.cies);
    skipped.broken_cies += broken_cies;
    skipped.broken_sections += u64::from(entries.cut_short);

    let mut functions = Functions::default();
    let tasks = entries.fdes.par_chunks(FDES_PER_TASK);
    let parts: Vec<Part> =
        tasks.map(|fdes| compile_fdes(section, bases, &cies, text, fdes)).collect();
    for part in parts {
        functions.append(part.functions);
        skipped.add(&part.skipped);
    }
    skipped.overlapping_fdes += functions.resolve_overlaps();
    functions
}

/// What one task made.
#[derive(Default)]
struct Part {
    functions: Functions,
    skipped: Skipped,
}

/// Compiles the FDEs that start at `fdes`.
fn compile_fdes<'data, S: UnwindSection<Bytes<'data>>>(
    section: &S,
    bases: &BaseAddresses,
    cies: &Cies<'data>,
    text: Text,
    fdes: &[usize],
) -> Part {
    let mut part = Part::default();
    for &offset in fdes {
        let first_row = part.functions.rows.len();
        if let Err(Broken) = compile_fde(section, bases, cies, text, offset, &mut part) {
            part.functions.rows.truncate(first_row);
            part.skipped.broken_fdes += 1;
        }
    }
    part
}

fn compile_fde<'data, S: UnwindSection<Bytes<'data>>>(
    section: &S,
    bases: &BaseAddresses,
    cies: &Cies<'data>,
    text: Text,
    offset: usize,
    part: &mut Part,
) -> Result<(), Broken> {
    let mut cie = None;
    let fde = section.fde_from_offset(bases, S::Offset::from(offset), |_, _, offset| {
        cie = cies.get(&entries::plain_offset(offset));
        cie.map(|cie| cie.entry.clone()).ok_or(gimli::Error::NotCiePointer(0))
    })?;
    let cie = cie.ok_or(Broken)?;
    let end = fde.initial_address().checked_add(fde.len()).ok_or(Broken)?;
    let Some((start, end)) = text.clip(fde.initial_address(), end) else {
        part.skipped.fdes_outside_text += 1;
        return Ok(());
    };

    let frame = if fde.is_signal_trampoline() { Frame::Signal } else { Frame::Call };
    let Part { functions: Functions { spans, rows }, skipped } = part;
    let first_row = rows.len();
    let mut unsupported = [0; Unsupported::ALL.len()];
    program::run(section, bases, &fde, cie.initial, |first, last, state| {
        let Some((pc, _)) = text.clip(first, last) else {
            return;
        };
        let row = encode(section, frame, state).unwrap_or_else(|reason| {
            unsupported[reason as usize] += 1;
            Row { cfa_kind: cfa::UNSUPPORTED, ..GAP }
        });
        if rows.len() == first_row {
            rows.push(Row { pc, ..row });
        } else {
            spans::push(rows, Row { pc, ..row });
        }
    })?;
    for (total, more) in skipped.unsupported.iter_mut().zip(unsupported) {
        *total += more;
    }
    let count = rows.len() - first_row;
    spans.push(Span { start, end, first_row: first_row as u32, rows: count as u32 });
    Ok(())
}

impl Skipped {
    fn add(&mut self, other: &Skipped) {
        let Skipped {
            broken_sections,
            broken_cies,
            broken_fdes,
            fdes_outside_text,
            overlapping_fdes,
            unsupported,
        } = other;
        self.broken_sections += broken_sections;
        self.broken_cies += broken_cies;
        self.broken_fdes += broken_fdes;
        self.fdes_outside_text += fdes_outside_text;
        self.overlapping_fdes += overlapping_fdes;
        for (total, more) in self.unsupported.iter_mut().zip(unsupported) {
            *total += more;
        }
    }
}
