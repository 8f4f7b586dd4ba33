//! What a session used, by names: the form in which sessions can be compared and judged.
//!
//! In: a snapshot with its ranking, or a JSON report. Out: a [`Profile`], whose frames are numbers
//! of a [`Vocabulary`]. Profiles that share one have the same number for the same function, also
//! where they come from two builds of a program:
//!
//! ```text
//!   parse(char const*) [clone .cold]   /build/1/server  ─┐
//!   parse(char const*)                 /build/2/server  ─┴→ parse(char const*) in server
//!   deflate                            /lib/libz.so.1.2 ──→ deflate in libz.so
//! ```
//!
//! Addresses, paths, versions and what a compiler appends to names do not tell functions apart.
//! The program itself may have another file name in each build; all are taken for one.

pub mod label;
mod names;
mod report;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use memtrace_common::unwind::End;
use rustc_hash::FxHashMap;

use self::names::{comparable_module, comparable_name};
pub use self::report::{MAX_REPORT_BYTES, ReportError, read as read_report};
use crate::pipeline::add_usage;
use crate::pipeline::findings::Class;
use crate::pipeline::snapshot::{Scope, Snapshot, Totals, Usage};
use crate::record::{EndReason, Origin};
use crate::views::counters::{self, TRACE_TRUNCATED, Weight};
use crate::views::findings::{NamedVerdict, Suppressed};
use crate::views::frames::{self, SymbolizedStack};
use crate::views::printable::printable;
use crate::views::ranking::{Charge, Memory, Ranking, SymbolizedUsage};
use crate::views::{caveats, quantity, summary};

/// A function, as profiles tell them apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Function {
    /// Its name without what differs between builds; `None` for all nameless code of the module.
    pub name: Option<Arc<str>>,
    /// File name of the module, without the version of a library.
    pub module: Arc<str>,
}

/// Number of a [`Function`] in a [`Vocabulary`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FunctionId(u32);

/// A place in a function.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Frame {
    /// The function.
    pub function: FunctionId,
    /// Its source file.
    pub file: Option<Arc<str>>,
    /// The line in it.
    pub line: Option<u32>,
}

/// Number of a [`Frame`] in a [`Vocabulary`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FrameId(u32);

/// Number of a place in a [`Vocabulary`]: what stands there, inlined functions and all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct PlaceId(u32);

/// A call path; cheap to clone. [`Vocabulary::frames`] says where it goes.
///
/// A place has five frames where much is inlined, and a path thirty places: so paths are kept as
/// places, of which there are few.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path(Arc<[PlaceId]>);

impl Path {
    /// Whether nothing of it is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The functions, frames and places of some profiles, each once.
#[derive(Debug, Default)]
pub struct Vocabulary {
    functions: Vec<Function>,
    function_ids: HashMap<Function, FunctionId>,
    frames: Vec<Frame>,
    frame_ids: HashMap<Frame, FrameId>,
    places: Vec<Arc<[FrameId]>>,
    place_ids: HashMap<Arc<[FrameId]>, PlaceId>,
    /// What the program itself is called, whatever its file was called in each session.
    program: Option<Arc<str>>,
}

/// Where each function of a [`Vocabulary`] stands in their order.
pub struct Ranks(Vec<u32>);

impl Ranks {
    /// Of two functions, the one that is less has the smaller one.
    pub fn of(&self, FunctionId(id): FunctionId) -> u32 {
        self.0[id as usize]
    }
}

/// A frame as its source names it; all text is printable.
struct NamedFrame<'a> {
    function: Option<&'a str>,
    module: &'a str,
    file: Option<&'a str>,
    line: Option<u32>,
}

impl Vocabulary {
    /// The function with this number.
    pub fn function(&self, id: FunctionId) -> &Function {
        &self.functions[id.0 as usize]
    }

    /// The frame with this number.
    pub fn frame(&self, id: FrameId) -> &Frame {
        &self.frames[id.0 as usize]
    }

    /// The frames of a path, from the allocating function outwards.
    pub fn frames<'w>(
        &'w self,
        path: &'w Path,
    ) -> impl DoubleEndedIterator<Item = FrameId> + use<'w> {
        path.0.iter().flat_map(|place| self.places[place.0 as usize].iter().copied())
    }

    /// All functions.
    pub fn functions(&self) -> impl Iterator<Item = (FunctionId, &Function)> {
        (0..).map(FunctionId).zip(&self.functions)
    }

    /// The order of all functions.
    pub fn ranks(&self) -> Ranks {
        let mut order: Vec<usize> = (0..self.functions.len()).collect();
        order.sort_unstable_by_key(|&index| &self.functions[index]);
        let mut ranks = vec![0; order.len()];
        for (rank, index) in (0..).zip(order) {
            ranks[index] = rank;
        }
        Ranks(ranks)
    }

    /// `exe` is the path of the program that the profile is about.
    fn intern(&mut self, exe: Option<&str>, frame: &NamedFrame<'_>) -> FrameId {
        let NamedFrame { function, module, file, line } = *frame;
        let module: Arc<str> = if exe == Some(module) {
            let program = || frames::base_name(module).into();
            Arc::clone(self.program.get_or_insert_with(program))
        } else {
            comparable_module(module).into()
        };
        let function = Function { name: function.map(|name| comparable_name(name).into()), module };
        let function = match self.function_ids.get(&function) {
            Some(&id) => id,
            None => {
                let id = FunctionId(number(self.functions.len()));
                self.functions.push(function.clone());
                self.function_ids.insert(function, id);
                id
            }
        };
        let frame = Frame { function, file: file.map(Into::into), line };
        if let Some(&id) = self.frame_ids.get(&frame) {
            return id;
        }
        let id = FrameId(number(self.frames.len()));
        self.frames.push(frame.clone());
        self.frame_ids.insert(frame, id);
        id
    }

    fn intern_place(&mut self, frames: Vec<FrameId>) -> PlaceId {
        if let Some(&id) = self.place_ids.get(&*frames) {
            return id;
        }
        let id = PlaceId(number(self.places.len()));
        let frames: Arc<[FrameId]> = frames.into();
        self.places.push(Arc::clone(&frames));
        self.place_ids.insert(frames, id);
        id
    }
}

fn number(index: usize) -> u32 {
    u32::try_from(index).expect("four billion frames do not fit into memory")
}

/// Usage of one stack through one API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    /// What it holds.
    pub memory: Memory,
    /// Whether it reaches its thread's root.
    pub is_complete: bool,
    /// From the allocating function outwards; shared with what is made of the profile.
    pub path: Path,
    /// What it did.
    pub usage: Usage,
}

/// What the numbers of a profile cover.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coverage {
    /// From its first to its last record.
    pub duration: Duration,
    /// How the observation began, if that is known.
    pub origin: Option<Origin>,
    /// Whether it begins at the first instruction and ends with the last process.
    pub is_whole_run: bool,
    /// What the processes held before they were observed, at most: their heap and anonymous memory.
    pub before_attach_bytes: Option<u64>,
    /// Whether functions of an allocator were seen at all.
    pub has_allocator: bool,
    /// What is missing from the numbers, a line each; empty if nothing is.
    pub losses: Vec<String>,
}

/// A call path that leaks, or that grows and may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrowingPath {
    /// Whether it is a leak; else that is undetermined.
    pub is_leak: bool,
    /// How fast.
    pub bytes_per_hour: u64,
    /// Half the width of the rate's interval of 95%.
    pub plus_minus: u64,
    /// Whether it reaches its thread's root.
    pub is_complete: bool,
    /// From the allocating function outwards.
    pub path: Path,
}

/// What the detector of leaks found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Growth {
    /// How long the session, or the range of it, is that was judged.
    pub watched: Duration,
    /// How long it must be before anybody is accused.
    pub needed: Duration,
    /// Bytes an hour from which on growth is told.
    pub told_from_bytes_per_hour: u64,
    /// Leaks first, the fastest first; what has levelled off is not among them.
    pub paths: Vec<GrowingPath>,
    /// What the user knows and does not want to hear of.
    pub suppressed: Vec<Suppressed>,
}

/// What a session used.
#[derive(Clone, Debug)]
pub struct Profile {
    /// `server (pid 4242)`.
    pub target: String,
    /// What the numbers cover.
    pub coverage: Coverage,
    /// What the numbers cannot see, as other views show it.
    pub caveats: Vec<String>,
    /// Sums over everything.
    pub totals: Totals,
    /// All stacks.
    pub stacks: Vec<Stack>,
    /// What grows.
    pub growth: Growth,
}

impl Profile {
    /// The profile of a session.
    pub fn of_session(snapshot: &Snapshot, ranking: &Ranking, words: &mut Vocabulary) -> Profile {
        let exe = summary::main_process(snapshot).map(|process| printable(&process.exe));
        let mut known: FxHashMap<*const Arc<frames::Frame>, PlaceId> = FxHashMap::default();
        let mut id_of = |place: &[Arc<frames::Frame>]| {
            *known.entry(place.as_ptr()).or_insert_with(|| {
                let intern = |frame: &Arc<frames::Frame>| {
                    let frames::Function { name, module, file, id: _ } = &*frame.function;
                    let named = NamedFrame {
                        function: name.as_deref(),
                        module,
                        file: file.as_deref(),
                        line: frame.line,
                    };
                    words.intern(exe.as_deref(), &named)
                };
                let frames = place.iter().map(intern).collect();
                words.intern_place(frames)
            })
        };
        let mut path = |stack: &SymbolizedStack| Path(stack.places().map(&mut id_of).collect());
        let stacks = ranking
            .stacks
            .iter()
            .map(|SymbolizedUsage { stack, api, usage }| Stack {
                memory: Memory::of(*api),
                is_complete: stack.end == End::Root,
                path: path(stack),
                usage: *usage,
            })
            .collect();
        let paths =
            ranking.findings.verdicts.iter().filter_map(|NamedVerdict { verdict, stack }| {
                let is_told = verdict.class.is_leak() || verdict.class == Class::Undetermined;
                is_told.then(|| GrowingPath {
                    is_leak: verdict.class.is_leak(),
                    // Rounded up: an interval is never too narrow.
                    bytes_per_hour: verdict.rate.bytes_per_hour.max(0.0).ceil() as u64,
                    plus_minus: verdict.rate.plus_minus.max(0.0).ceil() as u64,
                    is_complete: stack.end == End::Root,
                    path: path(stack),
                })
            });
        let growth = Growth {
            watched: match snapshot.scope {
                Scope::Run => summary::since_start(snapshot.now),
                Scope::Range(range) => {
                    Duration::from_nanos(snapshot.now.0.saturating_sub(range.from.0))
                }
                Scope::Moment => Duration::ZERO,
            },
            needed: Duration::from_nanos(snapshot.leaks.needed_ns),
            told_from_bytes_per_hour: snapshot.leaks.told_from_bytes_per_hour.max(0.0).ceil()
                as u64,
            paths: paths.collect(),
            suppressed: ranking.findings.suppressed.clone(),
        };
        let origin = snapshot.session.as_ref().map(|session| session.origin);
        let before_attach = snapshot.processes.iter().filter_map(|p| p.before_attach.as_ref());
        Profile {
            target: summary::target(snapshot),
            coverage: Coverage {
                duration: summary::since_start(snapshot.now),
                origin,
                is_whole_run: origin == Some(Origin::Launched)
                    && snapshot.end == Some(EndReason::TargetExited),
                before_attach_bytes: before_attach
                    .map(|before| before.heap_bytes.saturating_add(before.anonymous_bytes))
                    .reduce(u64::saturating_add),
                has_allocator: !snapshot.probes.is_empty(),
                losses: losses(
                    &counters::counters(snapshot, &ranking.naming),
                    snapshot.end.is_some(),
                ),
            },
            caveats: caveats::caveats(snapshot),
            totals: snapshot.totals,
            stacks,
            growth,
        }
    }

    /// The bytes and counts of work as of one second, those of a state as they are.
    pub fn per_second(mut self) -> Profile {
        let duration = self.coverage.duration;
        let totals = &mut self.totals;
        totals.temporary_allocations = rate(totals.temporary_allocations, duration);
        let stacks = self.stacks.iter_mut().map(|stack| &mut stack.usage);
        for usage in stacks.chain([&mut totals.heap, &mut totals.mapped]) {
            let Usage {
                allocations,
                allocated_bytes,
                frees,
                freed_bytes,
                live_blocks: _,
                live_bytes: _,
                inherited_blocks: _,
                inherited_bytes: _,
                peak_bytes: _,
                temporary_allocations,
            } = usage;
            for work in [allocations, allocated_bytes, frees, freed_bytes, temporary_allocations] {
                *work = rate(*work, duration);
            }
        }
        self
    }

    /// The usage of each function that is in a stack of this kind of memory.
    pub fn by_function(
        &self,
        words: &Vocabulary,
        memory: Memory,
    ) -> BTreeMap<FunctionId, FunctionUsage> {
        // Tables and not maps: most frames of most stacks are looked at here.
        let mut functions: Vec<Option<FunctionUsage>> = vec![None; words.functions.len()];
        // In which stack, counted from 1, each function was seen last.
        let mut seen_in = vec![0; words.functions.len()];
        let mut bytes_through = vec![0u64; words.frames.len()];
        for (number, stack) in (1..).zip(self.stacks.iter().filter(|s| s.memory == memory)) {
            for (depth, frame) in words.frames(&stack.path).enumerate() {
                let function = words.frame(frame).function.0 as usize;
                if std::mem::replace(&mut seen_in[function], number) == number {
                    continue;
                }
                let usage = functions[function]
                    .get_or_insert(FunctionUsage { charge: Charge::default(), heaviest: frame });
                add_usage(&mut usage.charge.total, &stack.usage);
                if depth == 0 {
                    add_usage(&mut usage.charge.own, &stack.usage);
                }
                let through = &mut bytes_through[frame.0 as usize];
                *through = through.saturating_add(stack.usage.allocated_bytes);
            }
        }
        // Of two that are equally heavy the first line, so that the result does not vary.
        let weight = |FrameId(id): FrameId| {
            let id = id as usize;
            (bytes_through[id], std::cmp::Reverse(words.frames[id].line))
        };
        for frame in (0..words.frames.len()).map(|id| FrameId(number(id))) {
            let usage = &mut functions[words.frame(frame).function.0 as usize];
            if let Some(usage) = usage
                && weight(frame) > weight(usage.heaviest)
            {
                usage.heaviest = frame;
            }
        }
        let ids = (0..functions.len()).map(|id| FunctionId(number(id)));
        let used = ids.zip(functions).filter_map(|(id, usage)| Some((id, usage?)));
        used.collect()
    }
}

/// The usage of one function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FunctionUsage {
    /// By itself, and with its callees.
    pub charge: Charge,
    /// The place in it through which most bytes were allocated.
    pub heaviest: FrameId,
}

/// What of `amount` falls on a second.
fn rate(amount: u64, duration: Duration) -> u64 {
    let per_second = u128::from(amount) * 1_000_000_000;
    let nanoseconds = duration.as_nanos().max(1);
    u64::try_from((per_second + nanoseconds / 2) / nanoseconds).unwrap_or(u64::MAX)
}

/// What counters and the missing end of a session take from its numbers.
fn losses(counters: &BTreeMap<String, u64>, has_ended: bool) -> Vec<String> {
    let mut lines = Vec::new();
    if counters.contains_key(TRACE_TRUNCATED) {
        lines.push("the trace file stops early".to_owned());
    } else if !has_ended {
        lines.push("the session did not end in order".to_owned());
    }
    for (name, &value) in counters {
        let (weight, meaning) = counters::explain(name);
        if weight == Weight::Loss && name != TRACE_TRUNCATED && value > 0 {
            lines.push(format!("{} {name}: {meaning}", quantity::count(value)));
        }
    }
    lines
}

#[cfg(test)]
mod tests;
