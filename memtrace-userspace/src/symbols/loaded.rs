//! One object that is loaded: its files, its symbol table and, once asked for, its DWARF.
//!
//! In: the path and build id of an image. Out: frames for file offsets. Up to four files work
//! together, and each is checked before it is believed:
//!
//! ```text
//!   image ───── build id must be the image's         segments, .symtab, .dynsym, maybe DWARF
//!     ├ debug ─ same build id, or the link's CRC     .symtab, DWARF
//!     │   └ alternate ─ the link's build id          the DWARF that several files share
//!     └ .gnu_debugdata, inside the image             .symtab of local functions
//! ```
//!
//! The image must be there: the segments of a separate debug file do not tell file offsets. The
//! others are a bonus, and what is wrong with them is counted.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memtrace_common::addr::FileOffset;
use self_cell::self_cell;

use super::demangle;
use super::dwarf::{DwarfError, RawFrame, Surroundings, Units};
use super::find::{find_alternate, find_debug, find_image, find_mini, parse};
use super::mapped::FileBytes;
use super::meter::Meter;
use super::object::{self as elf, Segments, Store};
use super::table::{Symbol, Table};
use super::{CodePiece, Counters, Frame, Miss, Options, SymbolError};
use crate::hash::Seed;

/// Names that are remembered per object.
const MAX_MEMO_BYTES: usize = 64 << 20;

/// Memory that parsed DWARF takes, per step of the meter: measured 5 on Rust.
const HEAP_BYTES_PER_STEP: usize = 8;

/// The files, which everything else borrows from.
struct Files {
    path: PathBuf,
    image: FileBytes,
    debug: Option<(PathBuf, FileBytes)>,
    alternate: Option<FileBytes>,
    mini: Option<Vec<u8>>,
    store: Store,
    meter: Meter,
}

impl Files {
    fn heap_bytes(&self) -> usize {
        let Files { path: _, image, debug, alternate, mini, store, meter } = self;
        let debug = debug.as_ref().map(|(_, bytes)| bytes);
        let files = [Some(image), debug, alternate.as_ref()];
        let parsed = usize::try_from(meter.steps()).unwrap_or(usize::MAX);
        files.into_iter().flatten().map(FileBytes::heap_bytes).sum::<usize>()
            + mini.as_ref().map_or(0, Vec::capacity)
            + store.heap_bytes()
            + parsed.saturating_mul(HEAP_BYTES_PER_STEP)
    }

    /// The file that DWARF is read from.
    fn dwarf_file(&self) -> &[u8] {
        self.debug.as_ref().map_or(&self.image, |(_, bytes)| bytes)
    }
}

/// What is read from the files.
struct Index<'a> {
    segments: Segments,
    table: Table<'a>,
    dwarf: DwarfState<'a>,
    /// Whether the user knows that the debug information is broken.
    told: bool,
}

enum DwarfState<'a> {
    Absent,
    NotAskedFor,
    Ready(Box<Units<'a>>),
    Unusable,
}

self_cell!(
    struct Cell {
        owner: Files,
        #[not_covariant]
        dependent: Index,
    }
);

/// An object that is ready to answer.
pub(super) struct Loaded {
    cell: Cell,
    memo: Memo,
}

/// Finds and opens the files of an image.
pub(super) fn load(
    options: &Options,
    counters: &mut Counters,
    path: &[u8],
    build_id: &[u8],
) -> Result<Result<Loaded, Miss>, SymbolError> {
    let path = Path::new(OsStr::from_bytes(path));
    let (path, image) = match find_image(options, path, build_id)? {
        Ok(found) => found,
        Err(miss) => return Ok(Err(miss)),
    };
    if build_id.is_empty() {
        counters.unverified_images += 1;
    }
    Ok(open(options, counters, path, image))
}

/// Collects the files that go with `image`, and reads what is needed at once.
fn open(
    options: &Options,
    counters: &mut Counters,
    path: PathBuf,
    image: FileBytes,
) -> Result<Loaded, Miss> {
    let elf = parse(&path, &image)?;
    let is_complete = elf::has_debug_info(&elf) && elf::has_symtab(&elf);
    let debug = if is_complete { None } else { find_debug(options, counters, &path, &elf) };
    let mini = find_mini(counters, &elf);
    let (debug_path, debug_bytes) =
        debug.as_ref().map_or((&path, &*image), |(path, bytes)| (path, bytes));
    let alternate = find_alternate(options, counters, debug_path, debug_bytes);
    let (store, meter) = (Store::default(), Meter::for_file(debug_bytes.len()));
    let files = Files { path, image, debug, alternate, mini, store, meter };
    let cell = Cell::try_new(files, index)?;
    counters.symbols_left_out += cell.with_dependent(|_, index| index.table.left_out());
    Ok(Loaded { cell, memo: Memo::new() })
}

fn index(files: &Files) -> Result<Index<'_>, Miss> {
    let image = parse(&files.path, &files.image)?;
    let debug = files.debug.as_ref().and_then(|(_, bytes)| elf::parse(bytes).ok());
    let mini = files.mini.as_ref().and_then(|bytes| elf::parse(bytes).ok());
    let symbols = [Some(&image), debug.as_ref(), mini.as_ref()];
    let table = Table::build(symbols.into_iter().flatten().flat_map(elf::functions));
    let has_dwarf = elf::has_debug_info(debug.as_ref().unwrap_or(&image));
    let dwarf = if has_dwarf { DwarfState::NotAskedFor } else { DwarfState::Absent };
    Ok(Index { segments: Segments::of(&image), table, dwarf, told: false })
}

impl Loaded {
    /// The frames at `offset` of the image.
    pub(super) fn symbolize(
        &mut self,
        options: &Options,
        counters: &mut Counters,
        offset: FileOffset,
    ) -> Result<Arc<[Frame]>, Miss> {
        if self.memo.bytes > MAX_MEMO_BYTES {
            self.memo = Memo::new();
            counters.memory_resets += 1;
        }
        let memo = &mut self.memo;
        self.cell.with_dependent_mut(|files, index| {
            find_frames(options, counters, memo, files, index, offset)
        })
    }

    /// The code of the functions that `which` knows by their names, as [`super::code_of`] has it.
    pub(super) fn code_of<T: Copy + Ord>(
        &self,
        which: impl Fn(&[u8]) -> Option<T>,
    ) -> Vec<CodePiece<T>> {
        self.cell.with_dependent(|_, Index { segments, table, .. }| {
            let code = table.code_of(which).into_iter();
            code.filter_map(|(start, end, said)| {
                let (start, end) = segments.offsets(start, end)?;
                Some((start, end, said))
            })
            .collect()
        })
    }

    /// Memory used, in bytes; that of parsed DWARF is an estimate.
    pub(super) fn heap_bytes(&self) -> usize {
        let table = self.cell.with_dependent(|_, index| index.table.heap_bytes());
        self.cell.borrow_owner().heap_bytes() + table + self.memo.bytes
    }
}

fn find_frames<'a>(
    options: &Options,
    counters: &mut Counters,
    memo: &mut Memo,
    files: &'a Files,
    index: &mut Index<'a>,
    offset: FileOffset,
) -> Result<Arc<[Frame]>, Miss> {
    let Index { segments, table, dwarf, told } = index;
    let path = || files.path.as_path().into();
    let svma = segments.svma(offset).ok_or_else(|| Miss::NotLoaded { path: path(), offset })?;
    let symbol = table.find(svma);
    let mut frames = std::mem::take(&mut memo.room);
    let mut physical_is_mangled = false;
    if let Some(units) = dwarf.units(options, counters, told, files) {
        let around = surroundings(options, files);
        let result = units.frames(svma, around, |raw| {
            physical_is_mangled = raw.function.is_some_and(demangle::is_mangled);
            frames.push(memo.frame(raw));
        });
        if let Err(error) = result {
            counters.debug_info_failures += 1;
            tell_once(told, files, error);
        }
        counters.parser_panics += u64::from(result == Err(DwarfError::ParserBug));
        let rebuilds = units.take_rebuilds();
        if rebuilds > 0 {
            memo.file_places.clear();
        }
        counters.debug_info_rebuilds += rebuilds;
        counters.split_files_missing += units.take_missing_split();
    }
    complete(memo, &mut frames, physical_is_mangled, symbol);
    let found: Arc<[Frame]> = frames.drain(..).collect();
    memo.room = frames;
    if !found.is_empty() {
        return Ok(found);
    }
    if table.is_empty() && matches!(dwarf, DwarfState::Absent) {
        return Err(Miss::NoSymbols { path: path() });
    }
    Err(Miss::NoSymbolHere { path: path(), offset })
}

/// Completes what DWARF told (perhaps nothing) with what the symbol table knows.
fn complete(
    memo: &mut Memo,
    frames: &mut Vec<Frame>,
    physical_is_mangled: bool,
    symbol: Option<Symbol<'_>>,
) {
    if frames.is_empty() && symbol.is_some() {
        frames.push(Frame::default());
    }
    let Some((physical, inlined)) = frames.split_last_mut() else {
        return;
    };
    for frame in inlined {
        frame.inlined = true;
    }
    let Some(symbol) = symbol else {
        return;
    };
    physical.symbol_start = Some(symbol.start);
    // Compilers leave the linkage name of some functions away (GCC: of local classes and lambdas).
    // DWARF then says `operator()`; the mangled symbol tells whose.
    let symbol_tells_more = !physical_is_mangled && demangle::is_mangled(symbol.name);
    if physical.function.is_none() || symbol_tells_more {
        physical.function = Some(memo.function(symbol.name));
    }
}

fn surroundings<'o, 'a>(options: &'o Options, files: &'a Files) -> Surroundings<'o, 'a>
where
    'a: 'o,
{
    Surroundings { options, image: &files.path, store: &files.store, meter: &files.meter }
}

impl<'a> DwarfState<'a> {
    /// The debug information, loaded when it is first asked for.
    fn units(
        &mut self,
        options: &Options,
        counters: &mut Counters,
        told: &mut bool,
        files: &'a Files,
    ) -> Option<&mut Units<'a>> {
        if matches!(self, DwarfState::NotAskedFor) {
            *self = match load_units(options, files) {
                Ok(units) => DwarfState::Ready(Box::new(units)),
                Err(error) => {
                    tell_once(told, files, error);
                    counters.debug_info_failures += 1;
                    counters.parser_panics += u64::from(error == DwarfError::ParserBug);
                    DwarfState::Unusable
                }
            };
        }
        match self {
            DwarfState::Ready(units) => Some(units),
            DwarfState::Absent | DwarfState::NotAskedFor | DwarfState::Unusable => None,
        }
    }
}

/// Says, the first time, that debug information is broken.
fn tell_once(told: &mut bool, files: &Files, error: DwarfError) {
    if !std::mem::replace(told, true) {
        let path = files.debug.as_ref().map_or(&files.path, |(path, _)| path);
        // Quoted and escaped: the path may be anything.
        tracing::warn!("names from {path:?} are incomplete: {error}");
    }
}

fn load_units<'a>(options: &Options, files: &'a Files) -> Result<Units<'a>, DwarfError> {
    let parsed = |bytes: &'a [u8]| elf::parse(bytes).map_err(|_| DwarfError::NotElf);
    let elf = parsed(files.dwarf_file())?;
    let alternate = files.alternate.as_deref().map(parsed).transpose()?;
    Units::load(&elf, alternate.as_ref(), surroundings(options, files))
}

/// What has been found out, so that it is found out once.
struct Memo {
    /// Demangled names, by where the mangled one lies: the files stay where they are, and linkers
    /// keep each name once. Hashing names of a hundred bytes costs more than what they name.
    functions: HashMap<(usize, usize), Arc<str>, Seed>,
    files: HashSet<Arc<str>, Seed>,
    /// The same, by where parsed debug information has them, as long as it is kept.
    file_places: HashMap<(usize, usize), Arc<str>, Seed>,
    bytes: usize,
    /// Room for the frames of one address.
    room: Vec<Frame>,
}

impl Memo {
    fn new() -> Memo {
        let seed = Seed::random();
        Memo {
            functions: HashMap::with_hasher(seed),
            files: HashSet::with_hasher(seed),
            file_places: HashMap::with_hasher(seed),
            bytes: 0,
            room: Vec::new(),
        }
    }

    fn frame(&mut self, raw: RawFrame<'_>) -> Frame {
        let RawFrame { function, file, line } = raw;
        Frame {
            function: function.map(|name| self.function(name)),
            file: file.map(|file| self.file(file)),
            line,
            inlined: false,
            symbol_start: None,
        }
    }

    /// The demangled form of a name, which lies in the files.
    fn function(&mut self, name: &[u8]) -> Arc<str> {
        let key = (name.as_ptr().addr(), name.len());
        if let Some(known) = self.functions.get(&key) {
            return Arc::clone(known);
        }
        let demangled: Arc<str> = demangle::demangle(name).into();
        self.bytes += demangled.len() + 2 * size_of::<((usize, usize), Arc<str>)>();
        self.functions.insert(key, Arc::clone(&demangled));
        demangled
    }

    /// The path of a source file, which parsed debug information holds.
    fn file(&mut self, name: &str) -> Arc<str> {
        let place = (name.as_ptr().addr(), name.len());
        if let Some(known) = self.file_places.get(&place) {
            return Arc::clone(known);
        }
        let known = match self.files.get(name) {
            Some(known) => Arc::clone(known),
            None => {
                let name: Arc<str> = name.into();
                self.bytes += name.len() + 2 * size_of::<Arc<str>>();
                self.files.insert(Arc::clone(&name));
                name
            }
        };
        self.bytes += 2 * size_of::<((usize, usize), Arc<str>)>();
        self.file_places.insert(place, Arc::clone(&known));
        known
    }
}
