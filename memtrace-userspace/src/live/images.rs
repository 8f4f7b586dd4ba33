//! What is known of the files that processes map as code.
//!
//! A file is read once, whichever processes map it: its build id, its unwind table, and the probes
//! that its allocator functions get. Several files are read in parallel.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use memtrace_common::addr::{Avma, FileOffset, Svma};
use object::{Object, ObjectSegment, ReadRef, SegmentFlags};
use rayon::prelude::*;

use super::allocators::survey::Runtime;
use super::allocators::{self, Plan};
use super::lazy_file::LazyFile;
use super::process::{self, Mapped, Mapping};
use crate::cfi;
use crate::record::{Image, Pid};

/// The largest vDSO that is read; real ones have two pages.
const MAX_VDSO_BYTES: u64 = 1 << 20;

/// Tells one mapped image from another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// A file, by device and inode.
    File((u32, u32), u64),
    /// The vDSO.
    Vdso,
    /// Memory without a file.
    Anonymous,
}

impl Key {
    /// The key of what `mapping` shows.
    pub fn of(mapping: &Mapping) -> Key {
        match mapping.mapped {
            Mapped::File { .. } => Key::File(mapping.device, mapping.inode),
            Mapped::Vdso => Key::Vdso,
            Mapped::Anonymous | Mapped::Heap | Mapped::Stack | Mapped::Special { .. } => {
                Key::Anonymous
            }
        }
    }
}

/// Whether the bytes behind a mapping could be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Yes, whatever they are; or there is no file.
    Done,
    /// No.
    Failed,
}

/// A file, as far as tracing needs it.
pub struct Analysis {
    /// What reports call it.
    pub image: Image,
    /// Its executable segments: file offset, size in the file, stated address.
    segments: Vec<(FileOffset, u64, Svma)>,
    /// Its unwind table, unless it has none that can be read.
    pub table: Option<cfi::Table>,
    /// The probes of its allocator functions.
    pub plan: Plan,
    /// The language runtime that it brings along; looked for only where there are no probes.
    pub runtime: Runtime,
    /// Whether it could be read at all.
    pub reading: Reading,
    /// The file, kept open so that probes can be placed whatever becomes of its path.
    pub file: Option<File>,
}

impl Analysis {
    /// What to add to an SVMA to get the AVMA, for a mapping of the file at `offset`.
    pub fn load_bias(&self, start: Avma, offset: FileOffset) -> Option<u64> {
        self.segments.iter().find_map(|(segment, size, svma)| {
            // The mapping starts at a page boundary, the segment may start behind it.
            let begin = segment.0 & !0xfff;
            let end = segment.0.checked_add(*size)?;
            (begin <= offset.0 && offset.0 < end).then(|| {
                start.0.wrapping_sub(svma.0.wrapping_add(offset.0).wrapping_sub(segment.0))
            })
        })
    }

    /// What has no segments, table or probes.
    fn nothing(image: Image, reading: Reading) -> Self {
        let (segments, plan) = (Vec::new(), Plan::default());
        let runtime = Runtime::Other;
        Analysis { image, segments, table: None, plan, runtime, reading, file: None }
    }

    fn of_bytes<'data>(image: Image, bytes: impl ReadRef<'data>) -> Self {
        let Ok(elf) = object::File::parse(bytes) else {
            return Analysis::nothing(image, Reading::Done);
        };
        let segments = elf
            .segments()
            .filter(|segment| {
                matches!(segment.flags(), SegmentFlags::Elf { p_flags, .. }
                    if p_flags.0 & object::elf::PF_X.0 != 0)
            })
            .map(|segment| {
                let (offset, size) = segment.file_range();
                (FileOffset(offset), size, Svma(segment.address()))
            })
            .collect();
        // A file without text that can be unwound is walked by frame pointer; one that is not
        // for this machine has no allocator that this process could call.
        let table = cfi::compile(&elf).ok();
        let plan = allocators::plan(bytes).unwrap_or_default();
        let runtime = match plan.probes.is_empty() && allocators::is_go(bytes).unwrap_or(false) {
            true => Runtime::Go,
            false => Runtime::Other,
        };
        Analysis { image, segments, table, plan, runtime, reading: Reading::Done, file: None }
    }
}

/// The files that were read.
#[derive(Default)]
pub struct Images {
    known: HashMap<Key, Arc<Analysis>>,
}

impl Images {
    /// What is known of the image behind `key`, if it was read.
    pub fn get(&self, key: &Key) -> Option<&Arc<Analysis>> {
        self.known.get(key)
    }

    /// Whether any file that was read is Go's.
    pub fn runtime(&self) -> Runtime {
        runtime(self.known.values())
    }

    /// Reads what `mappings` show and is not known yet, and gives the keys of these.
    pub fn read<'a>(&mut self, pid: Pid, mappings: impl Iterator<Item = &'a Mapping>) -> Vec<Key> {
        let mut new: HashMap<Key, &Mapping> = HashMap::new();
        for mapping in mappings {
            let key = Key::of(mapping);
            if !self.known.contains_key(&key) {
                new.entry(key).or_insert(mapping);
            }
        }
        let mut analyses: Vec<(Key, Analysis)> =
            new.into_par_iter().map(|(key, mapping)| (key, analyse(pid, mapping))).collect();
        analyses.sort_by(|(_, a), (_, b)| order(&a.image).cmp(order(&b.image)));
        analyses
            .into_iter()
            .map(|(key, analysis)| {
                self.known.insert(key.clone(), Arc::new(analysis));
                key
            })
            .collect()
    }
}

/// Whether any of these files is Go's.
pub fn runtime<'a>(analyses: impl IntoIterator<Item = &'a Arc<Analysis>>) -> Runtime {
    let is_go = |analysis: &Arc<Analysis>| analysis.runtime == Runtime::Go;
    if analyses.into_iter().any(is_go) { Runtime::Go } else { Runtime::Other }
}

/// A stable order, so that equal sessions give equal traces.
fn order(image: &Image) -> &[u8] {
    match image {
        Image::File { path, .. } => path,
        Image::Vdso | Image::Anonymous => b"",
    }
}

/// Reads the image behind one mapping. What cannot be read has no table and no probes.
fn analyse(pid: Pid, mapping: &Mapping) -> Analysis {
    match &mapping.mapped {
        Mapped::File { path, deleted: _ } => {
            let mut image = Image::File { path: path.clone(), build_id: Vec::new() };
            let Ok(file) = process::open_mapped(pid, mapping) else {
                return Analysis::nothing(image, Reading::Failed);
            };
            let Ok(bytes) = LazyFile::new(&file) else {
                return Analysis::nothing(image, Reading::Failed);
            };
            if let Image::File { build_id, .. } = &mut image {
                *build_id = process::build_id(&bytes).unwrap_or_default();
            }
            let analysis = Analysis::of_bytes(image, &bytes);
            Analysis { file: Some(file), ..analysis }
        }
        Mapped::Vdso => match read_vdso(pid, mapping) {
            Ok(bytes) => Analysis::of_bytes(Image::Vdso, &*bytes),
            Err(_) => Analysis::nothing(Image::Vdso, Reading::Failed),
        },
        Mapped::Anonymous | Mapped::Heap | Mapped::Stack | Mapped::Special { .. } => {
            Analysis::nothing(Image::Anonymous, Reading::Done)
        }
    }
}

fn read_vdso(pid: Pid, mapping: &Mapping) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; mapping.size_bytes().min(MAX_VDSO_BYTES) as usize];
    File::open(format!("/proc/{}/mem", pid.0))?.read_exact_at(&mut bytes, mapping.start.0)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn analysis(segments: &[(u64, u64, u64)]) -> Analysis {
        let segments = segments
            .iter()
            .map(|&(offset, size, svma)| (FileOffset(offset), size, Svma(svma)))
            .collect();
        Analysis { segments, ..Analysis::nothing(Image::Anonymous, Reading::Done) }
    }

    #[test]
    fn load_bias_is_the_distance_between_mapping_and_segment() {
        let elf = analysis(&[(0x1000, 0x2000, 0x401000)]);

        assert_eq!(elf.load_bias(Avma(0x401000), FileOffset(0x1000)), Some(0));
        assert_eq!(
            elf.load_bias(Avma(0x7000_0040_1000), FileOffset(0x1000)),
            Some(0x7000_0000_0000)
        );
    }

    #[test]
    fn load_bias_of_a_segment_that_starts_within_a_page_is_that_of_its_page() {
        // gold and lld: the segment's first byte is at 0x1234, the mapping's at 0x1000.
        let elf = analysis(&[(0x1234, 0x2000, 0x2234)]);

        assert_eq!(
            elf.load_bias(Avma(0x7000_0000_2000), FileOffset(0x1000)),
            Some(0x7000_0000_0000)
        );
    }

    #[test]
    fn load_bias_of_the_rest_of_a_split_mapping_is_the_same() {
        let elf = analysis(&[(0, 0x500, 0), (0x1000, 0x3000, 0x5000)]);

        assert_eq!(
            elf.load_bias(Avma(0x7000_0000_7000), FileOffset(0x3000)),
            Some(0x7000_0000_0000)
        );
    }

    #[test]
    fn mapping_of_no_executable_segment_has_no_load_bias() {
        let elf = analysis(&[(0x1000, 0x2000, 0x1000)]);

        assert_eq!(elf.load_bias(Avma(0x7000_0000_0000), FileOffset(0)), None);
        assert_eq!(elf.load_bias(Avma(0x7000_0000_0000), FileOffset(0x3000)), None);
    }

    #[test]
    fn load_bias_of_hostile_segments_does_not_overflow() {
        let elf = analysis(&[(0x1000, u64::MAX, 0), (0, 0x1000, u64::MAX)]);

        assert_eq!(elf.load_bias(Avma(0), FileOffset(0)), Some(1));
    }
}
