//! What is known of the files that processes map as code.
//!
//! A file is read once, whichever processes map it, unless it has changed since: its build id, its
//! unwind table, and the probes that its allocator functions get. Several files are read in
//! parallel, and of each only what is needed ([`super::lazy_file`]). The tables of large files come
//! from the [`super::table_cache`] if they are there, and go there if they are not.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread::JoinHandle;

use memtrace_common::addr::{Avma, FileOffset, Svma};
use object::{Object, ObjectSegment, ReadRef, SegmentFlags};
use rayon::prelude::*;

use super::allocators::spec::ProbeSpec;
use super::allocators::survey::Runtime;
use super::allocators::wanted::Wanted;
use super::allocators::{self, Plan, Watch};
use super::lazy_file::LazyFile;
use super::process::{self, Mapped, Mapping};
use super::table_cache::{FileStamp, Identity, MIN_SECTION_BYTES, TableCache};
use crate::cfi;
use crate::record::{Image, Pid};

/// The largest vDSO that is read; real ones have two pages.
const MAX_VDSO_BYTES: u64 = 1 << 20;

/// How many images are known before those that nobody maps are forgotten.
const MAX_IMAGES: usize = 1024;

/// Tells what is mapped, by names that may come to mean something else.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// A file, by device and inode.
    File((u32, u32), u64),
    /// The vDSO.
    Vdso,
    /// Memory without a file.
    Anonymous,
    /// Memory without a file that holds copies of one small function.
    Trampolines,
}

impl Key {
    /// The key of what `mapping` shows.
    pub(super) fn of(mapping: &Mapping) -> Key {
        match mapping.mapped {
            Mapped::File { .. } => Key::File(mapping.device, mapping.inode),
            Mapped::Vdso => Key::Vdso,
            Mapped::Anonymous | Mapped::Heap | Mapped::Stack | Mapped::Special { .. } => {
                Key::Anonymous
            }
        }
    }

    /// The key of what `mapping` of `pid` holds now, which tells code without a file apart.
    fn of_content(pid: Pid, mapping: &Mapping) -> Key {
        match Key::of(mapping) {
            Key::Anonymous if holds_trampolines(pid, mapping) => Key::Trampolines,
            other => other,
        }
    }
}

/// One reading of an image. A file that was changed in place is read again, under another id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ImageId(u64);

/// Whether the bytes behind a mapping could be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// Yes, whatever they are; or there is no file.
    Done,
    /// No.
    Failed,
}

/// A file, as far as tracing needs it.
pub(super) struct Analysis {
    /// What reports call it.
    pub image: Image,
    /// Its executable segments: file offset, size in the file, stated address.
    segments: Vec<(FileOffset, u64, Svma)>,
    /// Its unwind table, unless it has none that can be read.
    pub table: Option<Arc<cfi::Table>>,
    /// The probes of its allocator functions.
    pub plan: Plan,
    /// The language runtime that it brings along.
    pub runtime: Runtime,
    /// Whether it could be read at all.
    pub reading: Reading,
    /// The file if it gets probes, kept open so that they can be placed whatever becomes of its
    /// path.
    pub file: Option<File>,
    /// The state in which the file was read.
    stamp: Option<FileStamp>,
    /// What to keep the table as, if it is worth it and is not kept yet.
    unsaved: Option<Identity>,
}

impl Analysis {
    /// What to add to an SVMA to get the AVMA, for a mapping of the file at `offset`.
    pub(super) fn load_bias(&self, start: Avma, offset: FileOffset) -> Option<u64> {
        self.segments.iter().find_map(|(segment, size, svma)| {
            // The mapping starts at a page boundary, the segment may start behind it.
            let begin = segment.0 & !0xfff;
            let end = segment.0.checked_add(*size)?;
            (begin <= offset.0 && offset.0 < end).then(|| {
                start.0.wrapping_sub(svma.0.wrapping_add(offset.0).wrapping_sub(segment.0))
            })
        })
    }

    /// Whether the other reading found the same.
    fn says(&self, other: &Analysis) -> bool {
        let Analysis {
            image,
            segments,
            table,
            plan,
            runtime,
            reading,
            file: _,
            stamp: _,
            unsaved: _,
        } = self;
        *image == other.image
            && *segments == other.segments
            && *table == other.table
            && *plan == other.plan
            && *runtime == other.runtime
            && *reading == other.reading
    }

    /// What has no segments, table or probes.
    fn nothing(image: Image, reading: Reading) -> Self {
        Analysis {
            image,
            segments: Vec::new(),
            table: None,
            plan: Plan::default(),
            runtime: Runtime::Other,
            reading,
            file: None,
            stamp: None,
            unsaved: None,
        }
    }

    /// What the bytes of a file tell. Its table is kept under `identity`, if there is one.
    fn of_bytes<'data, R>(
        image: Image,
        bytes: R,
        kept: Kept<'_>,
        named: &[&ProbeSpec],
        watch: Watch,
    ) -> Self
    where
        R: ReadRef<'data> + Send + Sync,
    {
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
        let ((table, unsaved), plan) = rayon::join(
            || kept.table(&elf),
            || allocators::plan(bytes, named, watch).unwrap_or_default(),
        );
        let runtime = match allocators::is_go(bytes).unwrap_or(false) {
            true => Runtime::Go,
            false => Runtime::Other,
        };
        let nothing = Analysis::nothing(image, Reading::Done);
        Analysis { segments, table, plan, runtime, unsaved, ..nothing }
    }
}

/// Where the table of a file may be kept.
enum Kept<'a> {
    /// There.
    In(&'a TableCache, Identity),
    /// Nowhere.
    Nowhere,
}

impl Kept<'_> {
    /// The table of a file, and what to keep it as if it was compiled and took long.
    fn table<'data, R: ReadRef<'data>>(
        self,
        elf: &object::File<'data, R>,
    ) -> (Option<Arc<cfi::Table>>, Option<Identity>) {
        let kept = match self {
            Kept::In(cache, identity) if cfi::section_bytes(elf) >= MIN_SECTION_BYTES => {
                if let Some(table) = cache.load(&identity) {
                    return (Some(Arc::new(table)), None);
                }
                Some(identity)
            }
            Kept::In(..) | Kept::Nowhere => None,
        };
        match cfi::compile(elf) {
            Ok(table) => (Some(Arc::new(table)), kept),
            Err(_) => (None, None),
        }
    }
}

/// The files that were read.
pub(super) struct Images {
    known: HashMap<ImageId, Arc<Analysis>>,
    /// The last reading of each.
    current: HashMap<Key, ImageId>,
    next: u64,
    /// How many may be known before it is worth to look for some to forget.
    forget_at: usize,
    /// How many files that were ever read are Go's.
    go_programs: u64,
    cache: Option<Arc<TableCache>>,
    /// The functions that the user has named.
    named: Vec<ProbeSpec>,
    watch: Watch,
    savers: Vec<JoinHandle<()>>,
}

impl Images {
    /// Nothing is known yet.
    pub(super) fn new(cache: Option<TableCache>, named: Vec<ProbeSpec>, watch: Watch) -> Self {
        Images {
            known: HashMap::new(),
            current: HashMap::new(),
            next: 0,
            forget_at: MAX_IMAGES,
            go_programs: 0,
            cache: cache.map(Arc::new),
            named,
            watch,
            savers: Vec::new(),
        }
    }

    /// What is known of an image.
    pub(super) fn get(&self, id: ImageId) -> Option<&Arc<Analysis>> {
        self.known.get(&id)
    }

    /// Whether this is the last reading of its file, and is not forgotten.
    pub(super) fn is_latest(&self, id: ImageId) -> bool {
        self.current.values().any(|current| *current == id)
    }

    /// All tables.
    pub(super) fn tables(&self) -> impl Iterator<Item = &cfi::Table> {
        self.known.values().filter_map(|analysis| analysis.table.as_deref())
    }

    /// Whether any file that was read is Go's.
    pub(super) fn runtime(&self) -> Runtime {
        if self.go_programs > 0 { Runtime::Go } else { Runtime::Other }
    }

    /// How many files that were read are Go's; one that was changed in place counts again.
    pub(super) fn go_programs(&self) -> u64 {
        self.go_programs
    }

    /// Reads what `mappings` show, as far as it is not known; gives the image of each mapping.
    pub(super) fn read(&mut self, pid: Pid, mappings: &[&Mapping]) -> Vec<ImageId> {
        let mut seen = HashMap::new();
        let mut new = Vec::new();
        let keys: Vec<Key> = mappings.iter().map(|mapping| Key::of_content(pid, mapping)).collect();
        for (&mapping, key) in mappings.iter().zip(&keys) {
            seen.entry(key.clone()).or_insert_with(|| {
                let known = self.current.get(key).filter(|id| self.is_current(pid, mapping, **id));
                if known.is_none() {
                    new.push((mapping, key.clone()));
                }
            });
        }
        let cache = self.cache.as_deref();
        let wanted = Wanted::of(pid, &self.named);
        let analyses: Vec<Analysis> = new
            .par_iter()
            .map(|(mapping, key)| analyse(pid, mapping, key, cache, &wanted, self.watch))
            .collect();
        for ((_, key), analysis) in new.into_iter().zip(analyses) {
            let before = self.current.get(&key).copied();
            // A file that was only touched keeps its id, and so its probes.
            let same = before.filter(|id| self.known.get(id).is_some_and(|b| b.says(&analysis)));
            let id = same.unwrap_or_else(|| {
                self.next += 1;
                ImageId(self.next - 1)
            });
            self.go_programs += u64::from(same.is_none() && analysis.runtime == Runtime::Go);
            self.current.insert(key, id);
            self.known.insert(id, Arc::new(analysis));
        }
        keys.iter().filter_map(|key| self.current.get(key).copied()).collect()
    }

    /// Whether the file of `mapping` is as it was when it was read.
    ///
    /// One that cannot be looked at now could not be read again either.
    fn is_current(&self, pid: Pid, mapping: &Mapping, id: ImageId) -> bool {
        let Some(stamp) = self.known.get(&id).and_then(|analysis| analysis.stamp) else {
            return true;
        };
        process::open_mapped(pid, mapping)
            .ok()
            .and_then(|file| file.metadata().ok())
            .is_none_or(|metadata| FileStamp::of(&metadata) == stamp)
    }

    /// Whether so many are known that those that nobody maps should be forgotten.
    pub(super) fn are_many(&self) -> bool {
        self.known.len() > self.forget_at
    }

    /// Forgets all images but those in `used`, and gives their ids.
    pub(super) fn forget_unless(&mut self, used: impl Fn(ImageId) -> bool) -> Vec<ImageId> {
        let forgotten: Vec<ImageId> = self.known.keys().copied().filter(|id| !used(*id)).collect();
        self.known.retain(|id, _| used(*id));
        self.current.retain(|_, id| used(*id));
        self.forget_at = MAX_IMAGES.max(self.known.len().saturating_mul(2));
        forgotten
    }

    /// Has the tables of these images kept on disk, in the background, if they should be.
    pub(super) fn save(&mut self, ids: &[ImageId]) {
        let Some(cache) = &self.cache else { return };
        let unsaved: Vec<Arc<Analysis>> = ids
            .iter()
            .filter_map(|id| self.known.get(id))
            .filter(|analysis| analysis.unsaved.is_some())
            .cloned()
            .collect();
        if unsaved.is_empty() {
            return;
        }
        let cache = Arc::clone(cache);
        self.savers.retain(|saver| !saver.is_finished());
        self.savers.push(std::thread::spawn(move || {
            for analysis in unsaved {
                if let Some((identity, table)) =
                    analysis.unsaved.as_ref().zip(analysis.table.as_ref())
                {
                    cache.store(identity, table);
                }
            }
        }));
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        for saver in self.savers.drain(..) {
            // It has nothing to say; a table that is not kept is compiled again.
            let _ = saver.join();
        }
    }
}

/// Whether any of these files is Go's.
pub(super) fn runtime<'a>(analyses: impl IntoIterator<Item = &'a Arc<Analysis>>) -> Runtime {
    let is_go = |analysis: &Arc<Analysis>| analysis.runtime == Runtime::Go;
    if analyses.into_iter().any(is_go) { Runtime::Go } else { Runtime::Other }
}

/// Reads the image behind one mapping. What cannot be read has no table and no probes.
fn analyse(
    pid: Pid,
    mapping: &Mapping,
    key: &Key,
    cache: Option<&TableCache>,
    wanted: &Wanted<'_>,
    watch: Watch,
) -> Analysis {
    if *key == Key::Trampolines {
        return Analysis {
            segments: vec![(FileOffset(0), cfi::ARENA_BYTES, Svma(0))],
            table: Some(Arc::new(cfi::trampoline_table())),
            ..Analysis::nothing(Image::Anonymous, Reading::Done)
        };
    }
    match &mapping.mapped {
        Mapped::File { path, deleted: _ } => analyse_file(pid, mapping, path, cache, wanted, watch)
            .unwrap_or_else(|| {
                let image = Image::File { path: path.clone(), build_id: Vec::new() };
                Analysis::nothing(image, Reading::Failed)
            }),
        Mapped::Vdso => match read_vdso(pid, mapping) {
            Ok(bytes) => Analysis::of_bytes(Image::Vdso, &*bytes, Kept::Nowhere, &[], watch),
            Err(_) => Analysis::nothing(Image::Vdso, Reading::Failed),
        },
        Mapped::Anonymous | Mapped::Heap | Mapped::Stack | Mapped::Special { .. } => {
            Analysis::nothing(Image::Anonymous, Reading::Done)
        }
    }
}

/// Reads the file at `path`, which `mapping` shows; `None` if it cannot be read.
fn analyse_file(
    pid: Pid,
    mapping: &Mapping,
    path: &[u8],
    cache: Option<&TableCache>,
    wanted: &Wanted<'_>,
    watch: Watch,
) -> Option<Analysis> {
    let file = process::open_mapped(pid, mapping).ok()?;
    // The stamp comes first: what is changed afterwards has another.
    let stamp = FileStamp::of(&file.metadata().ok()?);
    let bytes = LazyFile::new(&file).ok()?;
    let build_id = process::build_id(&bytes).unwrap_or_default();
    let kept = match cache {
        Some(cache) => Kept::In(cache, Identity::new(&build_id, stamp)),
        None => Kept::Nowhere,
    };
    let image = Image::File { path: path.to_vec(), build_id };
    let analysis = Analysis::of_bytes(image, &bytes, kept, &wanted.in_file(path), watch);
    drop(bytes);
    let Plan { probes, unwinders, .. } = &analysis.plan;
    let file = (!probes.is_empty() || !unwinders.is_empty()).then_some(file);
    Some(Analysis { file, stamp: Some(stamp), ..analysis })
}

/// Whether code without a file is an arena of trampolines. If it cannot be read, it is not.
fn holds_trampolines(pid: Pid, mapping: &Mapping) -> bool {
    let mut start = [0; cfi::TRAMPOLINE_BYTES];
    File::open(format!("/proc/{}/mem", pid.0))
        .and_then(|memory| memory.read_exact_at(&mut start, mapping.start.0))
        .is_ok_and(|()| cfi::is_trampoline(&start))
}

fn read_vdso(pid: Pid, mapping: &Mapping) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; mapping.size_bytes().min(MAX_VDSO_BYTES) as usize];
    File::open(format!("/proc/{}/mem", pid.0))?.read_exact_at(&mut bytes, mapping.start.0)?;
    Ok(bytes)
}
