//! Functions, inlined functions and lines from DWARF.
//!
//! In: the sections of up to three files (the one with `.debug_info`, the one that `dwz` moved
//! shared parts to, split DWARF found on the way) and addresses. Out: per address the frames,
//! innermost first. addr2line does the work and parses each unit when it is first asked for.
//!
//! What it parsed stays in memory until its [`Meter`] runs out of steps; then the context is
//! thrown away and built anew, which bounds memory for large honest files as for hostile ones. A
//! file whose single lookups need more than that is given up after [`MAX_FAILURES`].

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use addr2line::{Context, FrameIter, LookupContinuation, LookupResult, SplitDwarfLoad};
use gimli::{AbbreviationsCacheStrategy, Dwarf, DwarfPackage, SectionId};
use memtrace_common::addr::Svma;
use thiserror::Error;

use super::meter::{Meter, Metered};
use super::object::{self, Elf, Store};
use super::{Options, debug_files, mapped};

/// Inlining deeper than this is cut off.
const MAX_INLINED: usize = 256;

/// How deep it usually is, at most.
const USUALLY_INLINED: usize = 16;

/// How many lookups may fail on a fresh context before the file is given up.
const MAX_FAILURES: u32 = 8;

/// Units take about 700 bytes each before anything of them is parsed, and 13 in the file.
const MAX_UNITS: usize = 1 << 19;

/// How many files of split DWARF are opened for one object.
const MAX_SPLIT_FILES: usize = 1 << 14;

/// Why DWARF could not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum DwarfError {
    /// It is broken.
    #[error("malformed debug information")]
    Malformed(#[from] gimli::Error),
    /// The file that should hold it is none.
    #[error("not an ELF file")]
    NotElf,
    /// It has more units than any program.
    #[error("more than {MAX_UNITS} units of debug information")]
    TooManyUnits,
    /// One lookup would take more work or memory than it may.
    #[error("debug information needs too much work")]
    TooMuchWork,
    /// The parser found a bug of its own.
    #[error("the parser of debug information panicked")]
    ParserBug,
}

/// One frame, as DWARF tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RawFrame<'a> {
    /// The name as it stands in the file: mangled if the language mangles.
    pub(super) function: Option<&'a [u8]>,
    pub(super) file: Option<&'a str>,
    pub(super) line: Option<u32>,
}

/// Where split DWARF is looked for.
#[derive(Clone, Copy)]
pub(super) struct Surroundings<'o, 'a> {
    pub(super) options: &'o Options,
    pub(super) image: &'o Path,
    pub(super) store: &'a Store,
    pub(super) meter: &'a Meter,
}

type Sections<'a> = Arc<Dwarf<Metered<'a>>>;

/// The parts of units that were split off at compile time, as far as they were asked for.
#[derive(Default)]
struct SplitUnits<'a> {
    known: HashMap<u64, Option<Sections<'a>>>,
    /// How many were not found, since this was last taken.
    missing: u64,
}

/// The debug information of one object.
pub(super) struct Units<'a> {
    sections: Sections<'a>,
    context: Context<Metered<'a>>,
    meter: &'a Meter,
    package: Option<DwarfPackage<Metered<'a>>>,
    split: SplitUnits<'a>,
    /// Lookups that worked since the context was built.
    served: u64,
    failures: u32,
    rebuilds: u64,
}

impl<'a> Units<'a> {
    /// Prepares the debug information in `elf`; `alternate` is what `dwz` split off, if it did.
    pub(super) fn load(
        elf: &Elf<'a>,
        alternate: Option<&Elf<'a>>,
        around: Surroundings<'_, 'a>,
    ) -> Result<Units<'a>, DwarfError> {
        let Surroundings { store, meter, .. } = around;
        let mut sections = load_sections(elf, SectionId::name, store, meter)?;
        if let Some(alternate) = alternate {
            sections.set_sup(load_sections(alternate, SectionId::name, store, meter)?);
        }
        let package = load_package(around);
        guarded(meter, || {
            check_units(&sections)?;
            sections.populate_abbreviations_cache(AbbreviationsCacheStrategy::Duplicates);
            let sections = Arc::new(sections);
            let context = Context::from_arc_dwarf(Arc::clone(&sections))?;
            let split = SplitUnits::default();
            Ok(Units {
                sections,
                context,
                meter,
                package,
                split,
                served: 0,
                failures: 0,
                rebuilds: 0,
            })
        })
    }

    /// Calls `each` with the frames at `svma`, innermost first; the last is the physical function.
    pub(super) fn frames(
        &mut self,
        svma: Svma,
        around: Surroundings<'_, 'a>,
        mut each: impl FnMut(RawFrame<'_>),
    ) -> Result<(), DwarfError> {
        if self.failures > MAX_FAILURES {
            return Err(DwarfError::TooMuchWork);
        }
        // addr2line looks for ranges that begin before the next address.
        if svma.0 == u64::MAX {
            return Ok(());
        }
        let mut result = self.try_frames(svma, around, &mut each);
        if result == Err(DwarfError::TooMuchWork) && self.served > 0 {
            result = self.rebuild().and_then(|()| self.try_frames(svma, around, &mut each));
        }
        match result {
            Ok(()) => self.served += 1,
            Err(DwarfError::TooMuchWork | DwarfError::ParserBug) => {
                self.failures += 1;
                self.rebuild()?;
            }
            Err(DwarfError::Malformed(_) | DwarfError::NotElf | DwarfError::TooManyUnits) => {}
        }
        result
    }

    /// How often the context was thrown away to bound its memory, since this was last asked.
    pub(super) fn take_rebuilds(&mut self) -> u64 {
        std::mem::take(&mut self.rebuilds)
    }

    /// How many units were split off into a file that is not there, since this was last asked.
    pub(super) fn take_missing_split(&mut self) -> u64 {
        std::mem::take(&mut self.split.missing)
    }

    fn rebuild(&mut self) -> Result<(), DwarfError> {
        self.rebuilds += 1;
        self.served = 0;
        self.meter.refill();
        let sections = Arc::clone(&self.sections);
        self.context = guarded(self.meter, || Ok(Context::from_arc_dwarf(sections)?))?;
        Ok(())
    }

    fn try_frames(
        &mut self,
        svma: Svma,
        around: Surroundings<'_, 'a>,
        each: &mut impl FnMut(RawFrame<'_>),
    ) -> Result<(), DwarfError> {
        let Units { context, package, split, meter, .. } = self;
        guarded(meter, || {
            let mut lookup = context.find_frames(svma.0);
            let frames = loop {
                match lookup {
                    LookupResult::Output(frames) => break frames?,
                    LookupResult::Load { load, continuation } => {
                        let loaded = load_split(&load, package.as_ref(), split, around);
                        lookup = continuation.resume(loaded);
                    }
                }
            };
            pass_on(frames, each)
        })
    }
}

/// Passes on all frames or, if one of them is broken, none.
fn pass_on<'a>(
    mut frames: FrameIter<'_, Metered<'a>>,
    each: &mut impl FnMut(RawFrame<'_>),
) -> Result<(), DwarfError> {
    let mut found = Vec::with_capacity(USUALLY_INLINED);
    while found.len() < MAX_INLINED
        && let Some(frame) = frames.next()?
    {
        let (file, line) = frame.location.map_or((None, None), |at| (at.file, at.line));
        let function = frame.function.map(|function| function.name.bytes());
        found.push(RawFrame { function, file, line });
    }
    found.into_iter().for_each(each);
    Ok(())
}

/// Runs a parser on foreign data.
///
/// gimli and addr2line mean not to panic; if one does, it is a bug there, and a wrong file must
/// not take the daemon down for it. Whatever the panic left half done is rebuilt by the caller.
fn guarded<T>(
    meter: &Meter,
    parse: impl FnOnce() -> Result<T, DwarfError>,
) -> Result<T, DwarfError> {
    meter.start_stack_here();
    match catch_unwind(AssertUnwindSafe(parse)) {
        Ok(Err(DwarfError::Malformed(_))) if meter.is_exhausted() => Err(DwarfError::TooMuchWork),
        Ok(result) => result,
        Err(_panic) => Err(DwarfError::ParserBug),
    }
}

fn check_units(sections: &Dwarf<Metered<'_>>) -> Result<(), DwarfError> {
    for sections in [Some(sections), sections.sup()] {
        let Some(sections) = sections else { continue };
        let mut headers = sections.units();
        let mut units = 0;
        while headers.next()?.is_some() {
            units += 1;
            if units > MAX_UNITS {
                return Err(DwarfError::TooManyUnits);
            }
        }
    }
    Ok(())
}

fn load_sections<'a>(
    elf: &Elf<'a>,
    name: impl Fn(SectionId) -> &'static str,
    store: &'a Store,
    meter: &'a Meter,
) -> Result<Dwarf<Metered<'a>>, gimli::Error> {
    Dwarf::load(|id| Ok(Metered::new(object::section(elf, name(id), store), meter)))
}

/// The package of split DWARF beside the image, if there is one.
fn load_package<'a>(around: Surroundings<'_, 'a>) -> Option<DwarfPackage<Metered<'a>>> {
    let Surroundings { options, image, store, meter } = around;
    debug_files::packages(options, image).into_iter().find_map(|path| {
        let elf = open_elf(&path, store)?;
        let empty = Metered::new(&[], meter);
        let section = |id: SectionId| {
            let name = id.dwo_name();
            let bytes = name.map(|name| object::section(&elf, name, store)).unwrap_or_default();
            Ok::<_, gimli::Error>(Metered::new(bytes, meter))
        };
        guarded(meter, || Ok(DwarfPackage::load(section, empty)?)).ok()
    })
}

/// Finds the part of a unit that was split off at compile time.
fn load_split<'a>(
    load: &SplitDwarfLoad<Metered<'a>>,
    package: Option<&DwarfPackage<Metered<'a>>>,
    split: &mut SplitUnits<'a>,
    around: Surroundings<'_, 'a>,
) -> Option<Sections<'a>> {
    if let Some(known) = split.known.get(&load.dwo_id.0) {
        return known.clone();
    }
    let in_package =
        package.and_then(|package| package.find_cu(load.dwo_id, &load.parent).ok().flatten());
    let loaded = match in_package {
        Some(sections) => Some(Arc::new(sections)),
        None if split.known.len() < MAX_SPLIT_FILES => load_split_file(load, around).map(Arc::new),
        None => None,
    };
    split.missing += u64::from(loaded.is_none());
    split.known.insert(load.dwo_id.0, loaded.clone());
    loaded
}

fn load_split_file<'a>(
    load: &SplitDwarfLoad<Metered<'a>>,
    around: Surroundings<'_, 'a>,
) -> Option<Dwarf<Metered<'a>>> {
    let Surroundings { options, image, store, meter } = around;
    let name = load.path?.bytes();
    let compilation_dir = load.comp_dir.map(Metered::bytes);
    debug_files::split_files(options, image, compilation_dir, name).into_iter().find_map(|path| {
        let elf = open_elf(&path, store)?;
        let dwo_name = |id: SectionId| id.dwo_name().unwrap_or_default();
        let mut sections = load_sections(&elf, dwo_name, store, meter).ok()?;
        let header = sections.units().next().ok()??;
        let unit = sections.unit(header).ok()?;
        if unit.dwo_id != Some(load.dwo_id) {
            return None;
        }
        sections.make_dwo(&load.parent);
        Some(sections)
    })
}

/// Opens an ELF file that may well be absent.
fn open_elf<'a>(path: &Path, store: &'a Store) -> Option<Elf<'a>> {
    let bytes = mapped::open(path).ok()?.ok()?;
    object::parse(store.keep(bytes)).ok()
}
