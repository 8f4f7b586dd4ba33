//! Which pages of a process hold anything: `/proc/PID/pagemap`.
//!
//! A page that was never written holds no pointer, so that the time of a scan follows the memory
//! that a process uses, not the address space that it has reserved. Linux 6.7 tells ranges
//! (`PAGEMAP_SCAN`); before, there is a word for each page.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use crate::live::process::{PAGE_BYTES, ProcessError};
use crate::record::Pid;

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::Ioctl = 0xc060_6610u32 as libc::Ioctl;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;

/// Bits of a word of `pagemap`.
const WORD_PRESENT: u64 = 1 << 63;
const WORD_SWAPPED: u64 = 1 << 62;
const WORD_FILE: u64 = 1 << 61;

/// How many ranges are asked for at a time.
const RANGES: usize = 512;
/// How many words are read at a time.
const WORDS: usize = 1 << 14;

/// Which pages of a mapping are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pages {
    /// All that hold something.
    Used,
    /// Those that the process has changed: not the file's own.
    Changed,
}

/// The page map of one process.
pub(super) struct Resident {
    file: File,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vector: u64,
    vector_length: u64,
    most_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_any_of_mask: u64,
    return_mask: u64,
}

const _: () = assert!(size_of::<ScanArgument>() == 96);

impl Resident {
    pub(super) fn open(pid: Pid) -> Result<Resident, ProcessError> {
        let path = PathBuf::from(format!("/proc/{}/pagemap", pid.0));
        match File::open(&path) {
            Ok(file) => Ok(Resident { file }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(ProcessError::NoSuchProcess { pid: pid.0 })
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Err(ProcessError::PermissionDenied { path })
            }
            Err(source) => Err(ProcessError::Unreadable { path, source }),
        }
    }

    /// The ranges of wanted pages in `range`, in order.
    pub(super) fn ranges(&self, range: Range<u64>, wanted: Pages) -> io::Result<Vec<Range<u64>>> {
        match self.scan(range.clone(), wanted) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => {
                self.look_up(range, wanted)
            }
            found => found,
        }
    }

    /// From Linux 6.7 on.
    fn scan(&self, range: Range<u64>, wanted: Pages) -> io::Result<Vec<Range<u64>>> {
        let unwanted = match wanted {
            Pages::Used => PAGE_IS_PFNZERO,
            Pages::Changed => PAGE_IS_PFNZERO | PAGE_IS_FILE,
        };
        let mut regions = [PageRegion::default(); RANGES];
        let mut ranges = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let mut argument = ScanArgument {
                size: size_of::<ScanArgument>() as u64,
                start: at,
                end: range.end,
                vector: (&raw mut regions).expose_provenance() as u64,
                vector_length: RANGES as u64,
                category_inverted: unwanted,
                category_mask: unwanted,
                category_any_of_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
                ..ScanArgument::default()
            };
            // SAFETY: the argument is as the kernel wants it, and names an array of its length.
            let found =
                unsafe { libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument) };
            let Ok(found) = usize::try_from(found) else { return Err(io::Error::last_os_error()) };
            let found = regions.iter().take(found);
            found.for_each(|region| add(&mut ranges, region.start..region.end));
            if argument.walk_end <= at {
                return Err(io::Error::other("the kernel does not go on in the page map"));
            }
            at = argument.walk_end;
        }
        Ok(ranges)
    }

    /// On older kernels.
    fn look_up(&self, range: Range<u64>, wanted: Pages) -> io::Result<Vec<Range<u64>>> {
        let mut buffer = vec![0; WORDS * size_of::<u64>()];
        let mut ranges = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let pages = usize::try_from((range.end - at) / PAGE_BYTES).unwrap_or(WORDS).min(WORDS);
            let buffer = &mut buffer[..pages * size_of::<u64>()];
            let read = self.file.read_at(buffer, at / PAGE_BYTES * size_of::<u64>() as u64)?;
            let (words, _) = buffer[..read].as_chunks();
            if words.is_empty() {
                break;
            }
            for word in words {
                let word = u64::from_le_bytes(*word);
                let is_used = word & (WORD_PRESENT | WORD_SWAPPED) != 0;
                if is_used && (wanted == Pages::Used || word & WORD_FILE == 0) {
                    add(&mut ranges, at..at + PAGE_BYTES);
                }
                at += PAGE_BYTES;
            }
        }
        Ok(ranges)
    }
}

/// Adds a range behind the others, or to the last one.
fn add(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        Some(_) | None => ranges.push(range),
    }
}

#[cfg(test)]
mod tests {
    use memmap2::MmapMut;

    use super::*;

    fn resident() -> Resident {
        Resident::open(Pid(std::process::id())).expect("our own process")
    }

    #[test]
    fn pages_that_were_never_written_are_left_out() {
        let mut memory = MmapMut::map_anon(64 * PAGE_BYTES as usize).expect("memory");
        for page in [3, 4, 9] {
            memory[page * PAGE_BYTES as usize] = 1;
        }
        let start = memory.as_ptr().addr() as u64;
        let page = |number: u64| start + number * PAGE_BYTES;
        let all = start..page(64);

        let scanned = resident().scan(all.clone(), Pages::Used);
        let looked_up = resident().look_up(all.clone(), Pages::Used).expect("it is there");

        // The kernel may give out huge pages; then what is around a written page is used as well.
        for written in [3, 4, 9] {
            assert!(looked_up.iter().any(|range| range.contains(&page(written))), "{looked_up:?}");
        }
        if let Ok(scanned) = scanned {
            assert_eq!(scanned, looked_up);
        }
    }

    #[test]
    fn pages_of_a_file_are_wanted_only_if_they_were_changed() {
        let file = tempfile::tempfile().expect("temp file");
        file.set_len(16 * PAGE_BYTES).expect("space");
        // SAFETY: nobody else has this file.
        let mut memory = unsafe { memmap2::MmapOptions::new().map_copy(&file) }.expect("memory");
        let read: u64 = memory.chunks(4096).map(|page| u64::from(page[0])).sum();
        memory[5 * PAGE_BYTES as usize] = 1;
        let start = memory.as_ptr().addr() as u64;
        let all = start..start + 16 * PAGE_BYTES;
        let changed = start + 5 * PAGE_BYTES..start + 6 * PAGE_BYTES;

        let ranges = resident().ranges(all.clone(), Pages::Changed).expect("it is there");
        let looked_up = resident().look_up(all, Pages::Changed).expect("it is there");

        assert_eq!((read, ranges, looked_up), (0, vec![changed.clone()], vec![changed]));
    }
}
