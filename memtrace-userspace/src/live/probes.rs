//! Placing and removing probes, through whichever kind of link the kernel has.
//!
//! ```text
//!   LinkKind::Multi    one link for all probes of one program in one file of one process
//!   LinkKind::Perf     one link for each probe
//! ```
//!
//! A multi link belongs to a process and is found by its first thread; a perf link belongs to any one
//! thread, and to its process as long as that thread lives. So perf links are what is left when the
//! first thread has ended, and on kernels without the others. The kernel closes them one after the
//! other, about 80 ms each. Unlike multi links, they are hit by a child of `vfork`, which runs in its
//! parent's memory.

use std::collections::HashMap;
use std::ffi::CString;
use std::fmt;
use std::fs::File;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use aya::Ebpf;
use aya::maps::{Map, MapData};
use aya::programs::UProbe;
use aya::programs::uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope};
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_PROG_ARRAY;
use memtrace_common::addr::FileOffset;

use super::allocators::{Probe, Role};
use super::loader::{LoadError, Program};
use super::uprobe_multi::{self, Moment, Programs};
use crate::record::{Pid, Tid};

/// The program that puts return addresses back. It is loaded when it is needed and not before: the
/// kernel notes in its log that such a program can write to a process's memory.
pub(super) const UNWIND: &str = "unwind_enter";

/// The program that stops a process at its end; loaded when it is needed, which is seldom.
const END: &str = "end_enter";

/// The map that programs mention to be spared a private stack.
const NO_PROGRAMS: &str = "NO_PROGRAMS";

/// What a function's probe at one moment runs.
struct Half {
    /// The program for multi links.
    multi: &'static str,
    /// The program for perf links.
    perf: &'static str,
    /// When.
    moment: Moment,
}

impl Half {
    /// At an instruction.
    const fn entry(name: &'static str) -> Half {
        Half { multi: name, perf: name, moment: Moment::Entry }
    }
}

const RETURN: Half = Half { multi: "acquired", perf: "call_return", moment: Moment::Return };
const EMPTY: Half = Half::entry("empty_enter");
const EMPTY_RETURN: Half =
    Half { multi: "empty_enter", perf: "empty_return", moment: Moment::Return };

/// How probes are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// `uprobe_multi` links.
    Multi,
    /// Perf events.
    Perf,
}

impl LinkKind {
    /// The better kind of those that this kernel has.
    pub(super) fn of_this_kernel() -> Self {
        match uprobe_multi::support() {
            Ok(Ok(())) => LinkKind::Multi,
            Ok(Err(lacking)) => {
                tracing::info!("uprobe_multi links: this kernel has {lacking}");
                LinkKind::Perf
            }
            Err(error) => {
                tracing::warn!("cannot find out whether there are uprobe_multi links: {error}");
                LinkKind::Perf
            }
        }
    }
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LinkKind::Multi => "uprobe_multi links",
            LinkKind::Perf => "perf events",
        })
    }
}

/// Probes that are in place. Dropping it removes them, which takes a tenth of a second.
pub enum Link {
    /// Of one program, in one file.
    Multi(OwnedFd),
    /// One.
    Perf(UProbeLink),
}

/// A probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// Where it stands in the file.
    pub offset: FileOffset,
    /// What the program is told of it.
    pub cookie: u64,
}

/// Where probes are to be placed.
pub struct Place<'a> {
    /// The process.
    pub pid: Pid,
    /// The thread that the kernel is to find it by: the first one, if that lives.
    pub task: Tid,
    /// Which of the process's sets they belong to: those of one count at a time.
    pub set: u8,
    /// The file.
    pub file: &'a File,
    /// The probes.
    pub probes: &'a [&'a Probe],
}

/// What came of placing probes.
#[derive(Default)]
pub struct Attached {
    /// Those that are in place.
    pub links: Vec<Link>,
    /// For each that was asked for, whether it is.
    pub outcomes: Vec<Result<(), LoadError>>,
}

impl Attached {
    /// None of so many.
    pub(super) fn none(probes: usize, error: &LoadError) -> Attached {
        let refused = || Err(LoadError::refused(error.to_string()));
        Attached {
            links: Vec::new(),
            outcomes: std::iter::repeat_with(refused).take(probes).collect(),
        }
    }
}

/// The uprobe programs.
pub(super) enum Probes {
    /// For multi links; those for perf links are loaded when they are needed.
    Multi {
        /// Those that are loaded.
        programs: Programs,
        /// The object that has them all.
        object: &'static [u8],
        /// Its maps.
        maps: Maps,
    },
    /// For perf links; aya has them.
    Perf,
}

impl Probes {
    /// Loads the uprobe programs of `object` with these [`maps`], unless aya loads them.
    pub(super) fn load(
        kind: LinkKind,
        object: &'static [u8],
        mut maps: Maps,
    ) -> Result<Self, LoadError> {
        tracing::info!("probes are attached through {kind}");
        match kind {
            LinkKind::Multi => {
                // A program array belongs to programs that attach alike; aya's is for the others.
                let no_programs = MapData::create(
                    aya_obj::Map::new_from_params(BPF_MAP_TYPE_PROG_ARRAY as u32, 4, 4, 1, 0),
                    NO_PROGRAMS,
                    None,
                )
                .map_err(LoadError::refused)?;
                let no_programs = no_programs.fd().as_fd().try_clone_to_owned();
                maps.insert(NO_PROGRAMS.to_owned(), no_programs.map_err(LoadError::refused)?);
                let at_first = |name: &str| name != UNWIND && name != END;
                let programs =
                    Programs::load(object, &maps, at_first).map_err(LoadError::refused)?;
                Ok(Probes::Multi { programs, object, maps })
            }
            LinkKind::Perf => Ok(Probes::Perf),
        }
    }

    /// The kind of link that is used as long as a process's first thread lives.
    pub(super) fn kind(&self) -> LinkKind {
        match self {
            Probes::Multi { .. } => LinkKind::Multi,
            Probes::Perf => LinkKind::Perf,
        }
    }

    /// Places the probes of `place`, whose functions have one role, at `points`. One that is refused
    /// does not cost the others.
    pub(super) fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        program: Program,
        role: Role,
        &Place { pid, task, set: _, file, probes: _ }: &Place<'_>,
        points: &[Point],
    ) -> Attached {
        let halves: &[Half] = match (program, role) {
            // The return probes first: an entry without its return would leave a call open.
            (Program::Trace, Role::Acquire | Role::Enclose) => &[RETURN, Half::entry("call_enter")],
            (Program::Trace, Role::Release) => &[Half::entry("release_enter")],
            (Program::Trace, Role::Midway) => &[Half::entry("acquired")],
            (Program::Empty, Role::Acquire | Role::Enclose) => &[EMPTY_RETURN, EMPTY],
            (Program::Empty, Role::Release | Role::Midway) => &[EMPTY],
            // Empty programs have return probes that an exception must not meet, either.
            (Program::Trace | Program::Empty, Role::Unwind) => &[Half::entry(UNWIND)],
            (Program::Trace | Program::Empty, Role::End) => &[Half::entry(END)],
        };
        if let (
            Probes::Multi { programs, object, maps },
            [Half { multi: wanted @ (UNWIND | END), .. }],
        ) = (&mut *self, halves)
            && !programs.has(wanted)
        {
            match Programs::load(object, maps, |name| name == *wanted) {
                Ok(more) => programs.extend(more),
                Err(error) => {
                    return Attached::none(points.len(), &LoadError::refused(error));
                }
            }
        }
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        match self {
            Probes::Multi { programs, .. } if task.0 == pid.0 => {
                let path = CString::new(path).expect("there is no zero in it");
                let links = |points: &[Point]| -> Result<Vec<Link>, LoadError> {
                    let link =
                        |half: &Half| programs.attach(half.multi, half.moment, pid, &path, points);
                    let links: Result<Vec<_>, _> = halves.iter().map(link).collect();
                    Ok(links.map_err(LoadError::refused)?.into_iter().map(Link::Multi).collect())
                };
                match links(points) {
                    Ok(links) => {
                        Attached { links, outcomes: points.iter().map(|_| Ok(())).collect() }
                    }
                    Err(_) => one_by_one(points, |point| links(&[point])),
                }
            }
            Probes::Multi { .. } | Probes::Perf => one_by_one(points, |point| {
                halves.iter().map(|half| perf_link(ebpf, half.perf, task, &path, point)).collect()
            }),
        }
    }
}

/// Places each point by itself, with all its links or none.
fn one_by_one(
    points: &[Point],
    mut place: impl FnMut(Point) -> Result<Vec<Link>, LoadError>,
) -> Attached {
    let mut attached = Attached::default();
    for point in points {
        let outcome = place(*point).map(|links| attached.links.extend(links));
        attached.outcomes.push(outcome);
    }
    attached
}

fn perf_link(
    ebpf: &mut Ebpf,
    name: &str,
    task: Tid,
    path: &str,
    point: Point,
) -> Result<Link, LoadError> {
    let program: &mut UProbe = ebpf
        .program_mut(name)
        .and_then(|program| program.try_into().ok())
        .expect("the object has this program");
    if program.fd().is_err() {
        program.load().map_err(LoadError::refused)?;
    }
    let location = UProbeAttachLocation::AbsoluteOffset(point.offset.0);
    let cookie = Some(point.cookie);
    let task = NonZeroU32::new(task.0).expect("a traced thread is not the idle task");
    let id = program
        .attach(UProbeAttachPoint { location, cookie }, path, UProbeScope::OneProcess(task))
        .map_err(LoadError::refused)?;
    program.take_link(id).map(Link::Perf).map_err(LoadError::refused)
}

/// Maps, by name.
pub(super) type Maps = HashMap<String, OwnedFd>;

/// The maps that uprobe programs use.
pub(super) fn maps(ebpf: &Ebpf) -> Result<Maps, LoadError> {
    ebpf.maps()
        .filter_map(|(name, map)| Some((name, fd(map)?)))
        .map(|(name, fd)| Ok((name.to_owned(), fd.try_clone_to_owned()?)))
        .collect::<std::io::Result<_>>()
        .map_err(LoadError::refused)
}

/// The file descriptor of a map, if it is of a kind that uprobe programs use.
fn fd(map: &Map) -> Option<BorrowedFd<'_>> {
    match map {
        Map::Array(map)
        | Map::ArrayOfMaps(map)
        | Map::HashMap(map)
        | Map::PerCpuArray(map)
        | Map::RingBuf(map) => Some(map.fd().as_fd()),
        _ => None,
    }
}
