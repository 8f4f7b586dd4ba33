//! What the pipeline knows at one moment, for the views.
//!
//! A snapshot is immutable and shared (`Arc<Snapshot>`): views read it without a lock while the
//! pipeline goes on. It speaks of stacks and addresses; names are the symbolizer's business.

#![expect(missing_docs, reason = "the fields of a variant are explained by the variant")]

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use memtrace_common::addr::{Avma, FileOffset};
use memtrace_common::event::Api;
use memtrace_common::unwind::End;

use super::findings::{Leaks, Spike};
use super::statistics::{HeldMemory, Statistics};
use crate::record::{BeforeAttach, EndReason, Image, Namespaces, Pid, Probe, Session, Tid, Time};

/// What fits into a line, and costs the same however many call paths and blocks there are.
#[derive(Clone, Debug)]
pub struct Glance {
    /// Who, where, how; `None` before the first record.
    pub session: Option<Arc<Session>>,
    /// Time of the last record.
    pub now: Time,
    /// How many records were applied that came from the target.
    pub events: u64,
    /// How many were lost on their way.
    pub lost_events: u64,
    /// What the heap holds.
    pub live_bytes: u64,
    /// Every process seen, in order of appearance.
    pub processes: Vec<ProcessUsage>,
}

/// How many events never reached the pipeline, by the counters of the kernel half.
pub(super) fn lost_events<'c>(counters: impl Iterator<Item = (&'c String, &'c u64)>) -> u64 {
    let lost = counters.filter(|(name, _)| name.starts_with("lost_"));
    lost.fold(0, |sum, (_, value)| sum.saturating_add(*value))
}

/// The state of a session at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Who, where, how; `None` before the first record.
    pub session: Option<Arc<Session>>,
    /// Time of the last record.
    pub now: Time,
    /// Why the session ended; `None` while it goes on, or if the file stops early.
    pub end: Option<EndReason>,
    /// How many records were applied that came from the target (allocations, frees, mappings).
    pub events: u64,
    /// Sums over everything.
    pub totals: Totals,
    /// Usage by stack and API; heap and mappings never share an entry. Equal call paths are one
    /// [`Arc`].
    pub stacks: Vec<StackUsage>,
    /// The same by process, if [`Limits::process_sites`](super::Limits::process_sites) has room for
    /// it; process 0 has what found none.
    pub process_stacks: BTreeMap<Pid, Vec<StackUsage>>,
    /// Every process seen, in order of appearance.
    pub processes: Vec<ProcessUsage>,
    /// Processes that were seen and are in no sum, because only others were asked for.
    pub left_out_processes: usize,
    /// What the classes of operations did, ordered by name.
    pub operations: Vec<OperationUsage>,
    /// Every thread seen, ordered by pid and tid.
    pub threads: Vec<ThreadUsage>,
    /// The run in equal steps, the last one cut off at `now`.
    pub timeline: Vec<TimelinePoint>,
    /// What part of the session this shows.
    pub scope: Scope,
    /// The user's marks.
    pub marks: Vec<Mark>,
    /// What happened between the start, the marks and now; empty without marks.
    pub phases: Vec<Phase>,
    /// Sudden growth, in order of time.
    pub spikes: Vec<Spike>,
    /// Steady growth, site by site.
    pub leaks: Leaks,
    /// The probes that were placed.
    pub probes: Vec<Arc<Probe>>,
    /// The files that frames lie in; [`Place::InFile`] points here.
    pub images: Vec<Arc<Image>>,
    /// What processes call their code that lies in no file, by [`Place::Anonymous`].
    pub jit_names: Arc<JitNames>,
    /// What its blocks were like.
    pub statistics: Statistics,
    /// Everything lost or unusual, by name, sorted; zero values are absent.
    pub counters: Vec<(String, u64)>,
}

impl Snapshot {
    /// When what is counted began: 0, or the start of the range.
    pub fn began(&self) -> Time {
        match self.scope {
            Scope::Range(range) => range.from,
            Scope::Run | Scope::Moment => Time(0),
        }
    }

    /// How many events never reached the pipeline.
    pub fn lost_events(&self) -> u64 {
        lost_events(self.counters.iter().map(|(name, value)| (name, value)))
    }

    /// How many spikes an operation has.
    pub fn spikes_of(&self, operation: &str) -> u64 {
        let of = self.spikes.iter().filter(|spike| spike.operation.as_deref() == Some(operation));
        of.count() as u64
    }

    /// So much work in the session, or in the range of it, in one second.
    pub fn per_second(&self, work: u64) -> u64 {
        let length_ns = self.now.0.saturating_sub(self.began().0).max(1);
        let per_second = u128::from(work) * 1_000_000_000 / u128::from(length_ns);
        u64::try_from(per_second).unwrap_or(u64::MAX)
    }
}

/// A part of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of it.
    Run,
    /// From a moment on to [`Snapshot::now`]. Usage is what happened in it; peaks are those of
    /// the whole heap, what was held before among it.
    Range(Range),
    /// What was held at one moment: of allocations, those whose memory was held.
    Moment,
}

/// The beginning of a range, and what was held then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// When it began.
    pub from: Time,
    /// Heap blocks of running processes then.
    pub held_before: Amount,
    /// Of these, the ones held at its end.
    pub still_held: Amount,
}

/// A number of blocks, and their bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Amount {
    /// How many.
    pub blocks: u64,
    /// How large together.
    pub bytes: u64,
}

impl Amount {
    /// What has come on top of `before`.
    pub(crate) fn since(self, before: Amount) -> Amount {
        Amount {
            blocks: self.blocks.saturating_sub(before.blocks),
            bytes: self.bytes.saturating_sub(before.bytes),
        }
    }
}

/// A moment that the user has named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// When.
    pub time: Time,
    /// The user's words; not printable as they are.
    pub text: String,
}

/// What happened on the heap between two marks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phase {
    /// The mark it begins with; `None` for the start.
    pub begins_with: Option<String>,
    /// When it began.
    pub from: Time,
    /// When it ended.
    pub to: Time,
    /// What was allocated.
    pub allocated: Amount,
    /// What was freed.
    pub freed: Amount,
    /// Live bytes of the running processes at its start.
    pub live_bytes_before: u64,
    /// The same at its end.
    pub live_bytes_after: u64,
    /// The most within it.
    pub peak_live_bytes: u64,
    /// When that was first reached.
    pub peak_at: Time,
}

/// Names of code that lies in no file, by process and address; foreign text.
pub type JitNames = BTreeMap<(Pid, Avma), Arc<[u8]>>;

/// Which of the two kinds of memory an API hands out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Memory {
    /// Blocks of an allocator.
    Heap,
    /// Mappings of the kernel.
    Mapped,
}

impl Memory {
    /// The kind that `api` hands out or takes back.
    pub fn of(api: Api) -> Memory {
        if api.acquires_block() { Memory::Heap } else { Memory::Mapped }
    }
}

/// Sums over all processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Totals {
    /// The heap.
    pub heap: Usage,
    /// Highest sum of live heap bytes of the running processes.
    pub peak_live_bytes: u64,
    /// When that was first reached.
    pub peak_at: Time,
    /// Mapped memory: `mmap`, `mremap` and `brk`, without reservations.
    pub mapped: Usage,
    /// As [`Usage::temporary_allocations`] of the heap.
    pub temporary_allocations: u64,
    /// Highest sum of the last samples of resident memory of the running processes; 0 if there is
    /// none.
    pub peak_resident_bytes: u64,
}

/// What a stack, a thread or everything allocated, freed and holds.
///
/// Heap bytes are as asked for, mapped bytes are whole pages. What `fork` copies is held by the
/// child too, but nobody allocated it, and to free a copy takes nothing from the parent:
///
/// ```text
///   live_blocks = allocations - frees + inherited_blocks      the same for bytes
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Usage {
    /// Blocks acquired.
    pub allocations: u64,
    /// Their bytes.
    pub allocated_bytes: u64,
    /// Of these, blocks released.
    pub frees: u64,
    /// Their bytes.
    pub freed_bytes: u64,
    /// Blocks held now, or held by a program when it ended (`exit` or `exec`).
    pub live_blocks: u64,
    /// Their bytes.
    pub live_bytes: u64,
    /// Of the live blocks, the copies that running processes inherited by `fork`.
    pub inherited_blocks: u64,
    /// Their bytes.
    pub inherited_bytes: u64,
    /// Bytes held at the moment of the global peak, so that these add up to the peak. Heap and
    /// mapped memory have a peak each.
    pub peak_bytes: u64,
    /// Of the released blocks, those that the thread that allocated them released with at most
    /// [`Limits::temporary_between`](crate::pipeline::Limits::temporary_between) allocations
    /// between. A block that `realloc` takes is none of them: its content lives on.
    pub temporary_allocations: u64,
}

/// Usage of one stack through one API.
#[derive(Clone, Debug)]
pub struct StackUsage {
    /// The call path.
    pub stack: Arc<Stack>,
    /// The function of the allocator or the system call.
    pub api: Api,
    /// What it did.
    pub usage: Usage,
}

/// A call path. Equal paths of two processes are one stack.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Stack {
    /// Where it ended, and why.
    pub end: End,
    /// Lookup addresses (return address − 1), innermost first.
    pub frames: Vec<Place>,
}

/// An address of code, as far as it can be told without opening a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In a file: an index into [`Snapshot::images`] and an offset in it.
    InFile { image: u32, offset: FileOffset },
    /// In memory without a file, of this process.
    Anonymous { pid: Pid, address: Avma },
    /// In no mapping that was known.
    Unknown { pid: Pid, address: Avma },
}

/// In two words: stacks of a hundred frames are hashed for each that is new.
impl Hash for Place {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let (kind, whose, address) = match *self {
            Place::InFile { image, offset } => (0, image, offset.0),
            Place::Anonymous { pid, address } => (1, pid.0, address.0),
            Place::Unknown { pid, address } => (2, pid.0, address.0),
        };
        state.write_u64(u64::from(whose) << 2 | kind);
        state.write_u64(address);
    }
}

/// One process.
#[derive(Clone, Debug)]
pub struct ProcessUsage {
    /// Its id.
    pub pid: Pid,
    /// Its parent, if that was observed too.
    pub parent: Option<Pid>,
    /// Path of its executable; the last one, if it called `exec`.
    pub exe: Vec<u8>,
    /// Its command line.
    pub command: Vec<Vec<u8>>,
    /// When it was first observed.
    pub started: Time,
    /// When it ended.
    pub ended: Option<Time>,
    /// Its heap.
    pub heap: Usage,
    /// Its mappings.
    pub mapped: Usage,
    /// What it held before memtrace saw it; `None` if it was launched or forked under observation.
    pub before_attach: Option<Arc<BeforeAttach>>,
    /// Where it lives; `None` in traces that do not say so.
    pub namespaces: Option<Arc<Namespaces>>,
    /// Resident memory, when last sampled.
    pub resident_bytes: Option<u64>,
    /// Its memory in detail, when last sampled.
    pub memory: Option<Arc<HeldMemory>>,
}

impl ProcessUsage {
    /// Its id in its own PID namespace, if that is inside the host's.
    ///
    /// Files that a program names after its own id, such as `/tmp/perf-7.map`, have this one.
    pub fn inner_pid(&self) -> Option<u32> {
        self.namespaces.as_ref()?.inner_pids.last().copied()
    }
}

/// One thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadUsage {
    /// Its process.
    pub pid: Pid,
    /// Its id.
    pub tid: Tid,
    /// Its last name; the program's choice, not printable as it is.
    pub name: Vec<u8>,
    /// The heap blocks that it allocated, whoever freed them.
    pub heap: Usage,
}

/// What a class of operations did: the call paths through its functions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperationUsage {
    /// Its name; not printable as it is.
    pub name: Arc<str>,
    /// Heap blocks.
    pub heap: Usage,
    /// Mappings.
    pub mapped: Usage,
}

/// One step of the timeline: the state at its end, the work within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimelinePoint {
    /// End of the step.
    pub time: Time,
    /// Live heap bytes of the running processes at its end.
    pub live_bytes: u64,
    /// Highest live heap bytes within it.
    pub peak_live_bytes: u64,
    /// Mapped bytes at its end.
    pub mapped_bytes: u64,
    /// Heap bytes allocated within it.
    pub allocated_bytes: u64,
    /// Heap blocks allocated within it.
    pub allocations: u64,
    /// Resident bytes, when last sampled; 0 if never.
    pub resident_bytes: u64,
}
