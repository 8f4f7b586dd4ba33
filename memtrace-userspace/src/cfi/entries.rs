//! A frame section, cut into its entries.
//!
//! ```text
//!   | CIE | FDE | FDE | 0 | CIE | FDE | …        each starts with its length
//! ```
//!
//! A CIE holds what several functions share, an FDE covers one function and names its CIE. The
//! cutting trusts nothing but the lengths, so that one broken entry costs no other. CIEs are
//! parsed once, and only where an entry starts: a section of overlapping CIEs, each as long as
//! the rest of the section, would otherwise cost quadratic time.

use gimli::{
    BaseAddresses, CommonInformationEntry, EndianSlice, LittleEndian, UnwindOffset, UnwindSection,
};
use rustc_hash::FxHashMap;

use super::program::{Broken, State, run_initial};

/// How gimli reads a section.
pub(super) type Bytes<'data> = EndianSlice<'data, LittleEndian>;

/// Which of the two formats a section has; they differ in how a CIE is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// `.eh_frame`: a CIE has the id 0, always in 4 bytes.
    EhFrame,
    /// `.debug_frame`: a CIE has the id −1, in 8 bytes if the length has 8.
    DebugFrame,
}

/// Where the entries of a section start, in bytes from its start.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Entries {
    /// The entries that call themselves CIEs.
    pub(super) cies: Vec<usize>,
    /// All others.
    pub(super) fdes: Vec<usize>,
    /// Whether the last entry runs past the end of the section.
    pub(super) cut_short: bool,
}

/// Cuts `section` into entries.
///
/// A length of 0 ends the section for the C++ runtime, but not here: `ld -r` and some linkers
/// leave terminators of their inputs between entries, and `.eh_frame_hdr` reaches behind them.
pub(super) fn split(section: &[u8], format: Format) -> Entries {
    let mut entries = Entries::default();
    let mut start = 0;
    while start < section.len() {
        let Some((content, id_is_cie)) = entry_at(section, start, format) else {
            entries.cut_short = true;
            break;
        };
        match id_is_cie {
            Some(true) => entries.cies.push(start),
            Some(false) => entries.fdes.push(start),
            None => {}
        }
        start = content;
    }
    entries
}

/// The end of the entry at `start`, and whether it is a CIE; `None` inside for a terminator.
fn entry_at(section: &[u8], start: usize, format: Format) -> Option<(usize, Option<bool>)> {
    let short = u32_at(section, start)?;
    let (body, length) = match short {
        0 => return Some((start + 4, None)),
        u32::MAX => (start + 12, usize::try_from(u64_at(section, start + 4)?).ok()?),
        length => (start + 4, usize::try_from(length).ok()?),
    };
    let end = body.checked_add(length).filter(|end| *end <= section.len())?;
    let wide_id = format == Format::DebugFrame && short == u32::MAX;
    let id = if wide_id { u64_at(section, body) } else { u32_at(section, body).map(u64::from) };
    let cie_id = match (format, wide_id) {
        (Format::EhFrame, _) => 0,
        (Format::DebugFrame, false) => u64::from(u32::MAX),
        (Format::DebugFrame, true) => u64::MAX,
    };
    Some((end, id.map(|id| id == cie_id)))
}

fn u32_at(section: &[u8], start: usize) -> Option<u32> {
    section.get(start..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(section: &[u8], start: usize) -> Option<u64> {
    section.get(start..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

/// A CIE, ready to start the functions that name it.
pub(super) struct Cie<'data> {
    /// What it says.
    pub(super) entry: CommonInformationEntry<Bytes<'data>>,
    /// The rules at the first instruction of every function.
    pub(super) initial: State,
}

/// The CIEs of a section by their offset.
pub(super) type Cies<'data> = FxHashMap<usize, Cie<'data>>;

/// Parses the CIEs at `offsets`; gives them and how many were broken.
pub(super) fn parse_cies<'data, S: UnwindSection<Bytes<'data>>>(
    section: &S,
    bases: &BaseAddresses,
    offsets: &[usize],
) -> (Cies<'data>, u64) {
    let mut cies = Cies::default();
    let mut broken = 0;
    for &offset in offsets {
        match parse_cie(section, bases, offset) {
            Ok(cie) => {
                cies.insert(offset, cie);
            }
            Err(Broken) => broken += 1,
        }
    }
    (cies, broken)
}

fn parse_cie<'data, S: UnwindSection<Bytes<'data>>>(
    section: &S,
    bases: &BaseAddresses,
    offset: usize,
) -> Result<Cie<'data>, Broken> {
    let entry = section.cie_from_offset(bases, S::Offset::from(offset))?;
    let initial = run_initial(section, bases, &entry)?;
    Ok(Cie { entry, initial })
}

/// The plain number behind gimli's offset types.
pub(super) fn plain_offset<O: UnwindOffset<usize>>(offset: O) -> usize {
    offset.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminator_between_entries_is_stepped_over() {
        let mut section = Vec::new();
        section.extend([4, 0, 0, 0, 0, 0, 0, 0]); // a CIE: id 0
        section.extend([0, 0, 0, 0]); // a terminator
        section.extend([4, 0, 0, 0, 16, 0, 0, 0]); // an FDE of the entry 16 bytes before its id

        let entries = split(&section, Format::EhFrame);

        assert_eq!(entries, Entries { cies: vec![0], fdes: vec![12], cut_short: false });
    }

    #[test]
    fn entry_with_long_length_is_cut_by_it() {
        let mut section = Vec::new();
        section.extend([0xff; 4]);
        section.extend(8u64.to_le_bytes());
        section.extend([0xff; 8]); // the 8-byte id of a CIE in `.debug_frame`
        section.extend([4, 0, 0, 0, 0, 0, 0, 0]);

        let entries = split(&section, Format::DebugFrame);

        assert_eq!(entries, Entries { cies: vec![0], fdes: vec![20], cut_short: false });
    }

    #[test]
    fn entry_past_the_end_stops_the_cutting() {
        let section = [4, 0, 0, 0, 0, 0, 0, 0, 200, 0, 0, 0, 8, 0, 0, 0];

        let entries = split(&section, Format::EhFrame);

        assert_eq!(entries, Entries { cies: vec![0], fdes: vec![], cut_short: true });
    }

    #[test]
    fn length_near_the_end_of_the_address_space_stops_the_cutting() {
        let section = [0xff; 64];

        let entries = split(&section, Format::EhFrame);

        assert_eq!(entries, Entries { cies: vec![], fdes: vec![], cut_short: true });
    }
}
