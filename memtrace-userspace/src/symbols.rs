//! Names for addresses.
//!
//! In: an [`Image`] (a path and a build id, as recorded) and an offset in its file. Out: frames,
//! the inlined ones innermost first, then the function that they were inlined into.
//!
//! ```text
//!   Image, FileOffset ─ loaded, find: files, checked ─ PT_LOAD ─> Svma ─┬─ dwarf ──┐
//!                                  │                                  └─ table ──┴─> [Frame]
//!                                  └ debug_files, debuginfod (where), mapped (open), object (ELF), xz
//! ```
//!
//! Offsets are lookup offsets: a caller that starts from a return address has subtracted 1.
//! Everything is lazy, and what was parsed is remembered per build id; the number of loaded objects
//! and their memory are bounded, and what had to be given up is counted in
//! [`Symbolizer::counters`]. The frames of an offset are for the caller to remember.
//!
//! *Could not look* is an [`Err`]; *looked, and there is no name, because* is a [`Miss`]. Files
//! and names are foreign, perhaps hostile: they cost bounded memory and never a panic, but text is
//! handed out as it stands in the file, and the views make it printable.
//!
//! Names of code made at run time come with the records; [`jit_frame`] reads them. It does not look
//! inside the vDSO: the code that was traced may be that of another kernel, so the frame is called
//! `[vdso]`. Stubs of the PLT get no name: they jump to the function and are gone from the stack
//! when it runs.

use std::collections::HashMap;
use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memtrace_common::addr::{FileOffset, Svma};
use thiserror::Error;
use wildmatch::WildMatchPattern;

use crate::hash::Seed;
use crate::record::Image;

mod debug_files;
mod debuginfod;
pub(crate) mod demangle;
mod dwarf;
mod find;
mod jit;
mod loaded;
mod mapped;
mod meter;
mod object;
mod table;
mod xz;

pub use debuginfod::Debuginfod;
pub(crate) use demangle::{bare_name, without_clone};
pub use jit::jit_frame;

use loaded::Loaded;

/// A name in which `*` stands for any text, and every other character for itself.
///
/// There is no sign for a single character, because names have question marks.
pub(crate) type Wildcard = WildMatchPattern<'*', '\0'>;

/// A function that an address lies in.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Frame {
    /// Demangled, in full. `None` if only the line is known. Foreign text, not printable as it is.
    pub function: Option<Arc<str>>,
    /// Path of the source file, as the compiler saw it.
    pub file: Option<Arc<str>>,
    /// Line in it: of the address or, for a caller of an inlined function, of that call.
    pub line: Option<u32>,
    /// Whether this function was inlined into the next frame.
    pub inlined: bool,
    /// Start of the symbol that covers the address; only the last frame has one.
    pub symbol_start: Option<Svma>,
}

/// Looked, and there is no name, because.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Error)]
#[expect(missing_docs, reason = "the fields of a variant are explained by the variant")]
pub enum Miss {
    /// The memory has no file: code made at run time.
    #[error("code made at run time, without a file")]
    Anonymous,
    /// Neither the path nor any search directory has the file.
    #[error("{} does not exist; copy it into a search directory", path.display())]
    NoSuchFile { path: Arc<Path> },
    /// The path names a directory, a device or the like.
    #[error("{} is not a regular file", path.display())]
    NotAFile { path: Arc<Path> },
    /// The file was replaced since it was traced.
    #[error("{} has build id {found:?}, not {expected}: it was replaced", path.display())]
    BuildIdDiffers { path: Arc<Path>, expected: String, found: String },
    /// The file is too large to be read safely.
    #[error("{} is larger than {limit_bytes} bytes and writable by others", path.display())]
    TooLarge { path: Arc<Path>, size_bytes: u64, limit_bytes: u64 },
    /// The file is not 64-bit little-endian ELF, or broken.
    #[error("{} is not a usable ELF file: {reason}", path.display())]
    NotElf { path: Arc<Path>, reason: String },
    /// The offset is not part of any segment that is loaded.
    #[error("{} loads nothing from offset {offset:#x}", path.display())]
    NotLoaded { path: Arc<Path>, offset: FileOffset },
    /// The file has neither symbols nor debug information, and none was found elsewhere.
    #[error("{} is stripped; install its debug symbols", path.display())]
    NoSymbols { path: Arc<Path> },
    /// The file has symbols, but none covers the address.
    #[error("no symbol of {} covers offset {offset:#x}", path.display())]
    NoSymbolHere { path: Arc<Path>, offset: FileOffset },
}

/// Could not look.
#[derive(Clone, Debug, Error)]
pub enum SymbolError {
    /// The file is there but cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: Arc<Path>,
        /// Why.
        source: Arc<io::Error>,
    },
}

/// Where to look.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directories with copies of the target's files, for analysis on another machine: as a whole
    /// file tree, flat, or by build id.
    pub search_dirs: Vec<PathBuf>,
    /// Root directories of the target's processes, where their paths hold: looked into first.
    pub roots: Vec<PathBuf>,
    /// Directories where the system keeps debug files, like `/usr/lib/debug`.
    pub debug_dirs: Vec<PathBuf>,
    /// Where else an image may be: replaced or deleted, but still mapped.
    pub elsewhere: Elsewhere,
    /// Servers that are asked for what is not on this machine.
    pub debuginfod: Option<Arc<Debuginfod>>,
}

/// Where an image may be that was mapped from a path, as only somebody knows who sees the processes.
#[derive(Clone, Default)]
pub struct Elsewhere(Option<Arc<FindImages>>);

type FindImages = dyn Fn(&Path) -> Vec<PathBuf> + Send + Sync;

impl Elsewhere {
    /// Places that `find` tells.
    pub fn new(find: impl Fn(&Path) -> Vec<PathBuf> + Send + Sync + 'static) -> Elsewhere {
        Elsewhere(Some(Arc::new(find)))
    }

    fn of(&self, path: &Path) -> Vec<PathBuf> {
        self.0.as_ref().map_or_else(Vec::new, |find| find(path))
    }
}

impl std::fmt::Debug for Elsewhere {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("Elsewhere").field(&self.0.is_some()).finish()
    }
}

impl Default for Options {
    fn default() -> Options {
        Options {
            search_dirs: Vec::new(),
            roots: Vec::new(),
            debug_dirs: vec!["/usr/lib/debug".into()],
            elsewhere: Elsewhere::default(),
            debuginfod: None,
        }
    }
}

/// How much may be kept loaded.
#[derive(Clone, Copy, Debug)]
struct Limits {
    objects: usize,
    heap_bytes: usize,
    misses: usize,
}

const LIMITS: Limits = Limits { objects: 256, heap_bytes: 1 << 30, misses: 4096 };

/// What was given up, and how often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counters {
    objects_evicted: u64,
    memory_resets: u64,
    unverified_images: u64,
    debug_files_rejected: u64,
    debug_files_unreadable: u64,
    alternate_files_missing: u64,
    debug_info_failures: u64,
    debug_info_rebuilds: u64,
    split_files_missing: u64,
    parser_panics: u64,
    symbols_left_out: u64,
}

/// Two images with the same build id are the same file, wherever they lie.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    BuildId(Vec<u8>),
    Path(Vec<u8>),
}

struct Entry {
    loaded: Loaded,
    heap_bytes: usize,
    /// The value of [`Symbolizer::clock`] when it was last asked.
    used: u64,
}

/// Finds names for addresses, and remembers what it found.
pub struct Symbolizer {
    options: Options,
    limits: Limits,
    objects: HashMap<Key, Entry, Seed>,
    /// The image that was asked for last, if it is loaded: a stack goes through few.
    last: Option<(Image, Key)>,
    misses: HashMap<Image, Result<Miss, SymbolError>>,
    vdso: Arc<[Frame]>,
    heap_bytes: usize,
    clock: u64,
    counters: Counters,
}

impl Symbolizer {
    /// Opens nothing yet.
    pub fn new(options: Options) -> Symbolizer {
        Symbolizer::with_limits(options, LIMITS)
    }

    fn with_limits(options: Options, limits: Limits) -> Symbolizer {
        let vdso = Frame { function: Some("[vdso]".into()), ..Frame::default() };
        Symbolizer {
            options,
            limits,
            objects: HashMap::with_hasher(Seed::random()),
            last: None,
            misses: HashMap::new(),
            vdso: [vdso].into(),
            heap_bytes: 0,
            clock: 0,
            counters: Counters::default(),
        }
    }

    /// The frames at a lookup offset of `image`: at least one, the physical function last.
    pub fn symbolize(
        &mut self,
        image: &Image,
        offset: FileOffset,
    ) -> Result<Result<Arc<[Frame]>, Miss>, SymbolError> {
        if let Some((last, key)) = self.last.take_if(|(last, _)| last == image) {
            let found = self.ask(&key, offset);
            self.evict(&key);
            self.last = Some((last, key));
            return Ok(found);
        }
        let (path, build_id) = match image {
            Image::File { path, build_id } => (path, build_id),
            Image::Vdso => return Ok(Ok(Arc::clone(&self.vdso))),
            Image::Anonymous => return Ok(Err(Miss::Anonymous)),
        };
        let key = if build_id.is_empty() {
            Key::Path(path.clone())
        } else {
            Key::BuildId(build_id.clone())
        };
        if !self.objects.contains_key(&key) {
            if let Some(known) = self.misses.get(image) {
                return known.clone().map(Err);
            }
            match loaded::load(&self.options, &mut self.counters, path, build_id) {
                Ok(Ok(loaded)) => self.insert(key.clone(), loaded),
                Ok(Err(miss)) => {
                    self.remember_miss(image, Ok(miss.clone()));
                    return Ok(Err(miss));
                }
                Err(error) => {
                    self.remember_miss(image, Err(error.clone()));
                    return Err(error);
                }
            }
        }
        let found = self.ask(&key, offset);
        self.evict(&key);
        // It is never evicted while it is the last.
        self.last = Some((image.clone(), key));
        Ok(found)
    }

    /// What was given up so far, by name; zero values are absent.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let Counters {
            objects_evicted,
            memory_resets,
            unverified_images,
            debug_files_rejected,
            debug_files_unreadable,
            alternate_files_missing,
            debug_info_failures,
            debug_info_rebuilds,
            split_files_missing,
            parser_panics,
            symbols_left_out,
        } = self.counters;
        let named = [
            ("symbol_alternate_files_missing", alternate_files_missing),
            ("symbol_debug_files_rejected", debug_files_rejected),
            ("symbol_debug_files_unreadable", debug_files_unreadable),
            ("symbol_debug_info_failures", debug_info_failures),
            ("symbol_debug_info_rebuilds", debug_info_rebuilds),
            ("symbol_split_files_missing", split_files_missing),
            ("symbol_memory_resets", memory_resets),
            ("symbol_objects_evicted", objects_evicted),
            ("symbol_parser_panics", parser_panics),
            ("symbol_symbols_left_out", symbols_left_out),
            ("symbol_unverified_images", unverified_images),
        ];
        named.into_iter().filter(|(_, value)| *value != 0).collect()
    }

    fn ask(&mut self, key: &Key, offset: FileOffset) -> Result<Arc<[Frame]>, Miss> {
        let entry = self.objects.get_mut(key).expect("the caller has just loaded it");
        self.clock += 1;
        entry.used = self.clock;
        let found = entry.loaded.symbolize(&self.options, &mut self.counters, offset);
        let heap_bytes = entry.loaded.heap_bytes();
        self.heap_bytes = self.heap_bytes - entry.heap_bytes + heap_bytes;
        entry.heap_bytes = heap_bytes;
        found
    }

    fn insert(&mut self, key: Key, loaded: Loaded) {
        self.objects.insert(key, Entry { loaded, heap_bytes: 0, used: 0 });
    }

    /// Unloads what was not asked for the longest, but never `current`.
    fn evict(&mut self, current: &Key) {
        while self.objects.len() > self.limits.objects || self.heap_bytes > self.limits.heap_bytes {
            let others = self.objects.iter().filter(|(key, _)| *key != current);
            let Some((key, _)) = others.min_by_key(|(_, entry)| entry.used) else {
                return;
            };
            let key = key.clone();
            if let Some(entry) = self.objects.remove(&key) {
                self.heap_bytes -= entry.heap_bytes;
                self.counters.objects_evicted += 1;
            }
        }
    }

    fn remember_miss(&mut self, image: &Image, result: Result<Miss, SymbolError>) {
        if self.misses.len() >= self.limits.misses {
            self.misses.clear();
        }
        self.misses.insert(image.clone(), result);
    }
}

/// A piece of code in a file: its first offset, one past the last, and what is said of it.
pub type CodePiece<T> = (FileOffset, FileOffset, T);

/// The code of the functions of `image` that `which` knows by a name, as it stands in the symbol
/// tables, in ascending order, with the least that `which` says of a function's names.
pub fn code_of<T: Copy + Ord>(
    options: &Options,
    image: &Image,
    which: impl Fn(&[u8]) -> Option<T>,
) -> Result<Result<Vec<CodePiece<T>>, Miss>, SymbolError> {
    let (path, build_id) = match image {
        Image::File { path, build_id } => (path, build_id),
        Image::Vdso => return Ok(Ok(Vec::new())),
        Image::Anonymous => return Ok(Err(Miss::Anonymous)),
    };
    let found = loaded::load(options, &mut Counters::default(), path, build_id)?;
    Ok(found.map(|loaded| loaded.code_of(which)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string cannot fail");
        text
    })
}

#[cfg(test)]
mod tests;
