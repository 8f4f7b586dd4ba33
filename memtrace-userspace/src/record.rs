//! The vocabulary between the sources and the pipeline.
//!
//! A [`Record`] is one thing that happened, in the order in which it happened. Live tracing and a
//! trace file produce the same records, and nothing behind them opens `/proc`, a BPF map or a
//! clock: what a view needs to know about the target is a record, or it is not known.
//!
//! Times are nanoseconds since the start of the session ([`Time`]), of which live tracing keeps
//! multiples of 10 µs; the order of records is exact. Text that comes from the
//! target (names, paths, command lines) is kept as it came; views make it printable.

#![expect(missing_docs, reason = "the fields of a variant are explained by the variant")]

use memtrace_common::addr::{Avma, FileOffset};
use memtrace_common::event::Api;
use memtrace_common::unwind::End;

/// Nanoseconds since the session started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(pub u64);

/// A process id in the initial PID namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pid(pub u32);

/// A thread id in the initial PID namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tid(pub u32);

/// The id the kernel gave a stack. Two ids may stand for the same frames; 0 is "no stack".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WireStackId(pub u64);

/// To what a program asks a block to be aligned: a power of two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Alignment(u8);

impl Alignment {
    /// The call has none: the block is aligned as the allocator aligns all. To 1 byte is the same.
    pub const NONE: Alignment = Alignment(0);

    /// The alignment with this binary logarithm; `None` if no address is so large.
    pub const fn from_log2(log2: u8) -> Option<Alignment> {
        if log2 < u64::BITS as u8 { Some(Alignment(log2)) } else { None }
    }

    /// Its binary logarithm.
    pub const fn log2(self) -> u8 {
        self.0
    }

    /// In bytes.
    pub const fn bytes(self) -> u64 {
        1 << self.0
    }
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// The first record of every session.
    Session(Session),
    /// A probe was placed.
    Probe(Probe),
    /// A process comes under observation.
    Process(Process),
    /// What a process held before it was observed.
    BeforeAttach(BeforeAttach),
    /// Where a process lives. Replaces what was known of it.
    Namespaces(Namespaces),
    /// An executable mapping of a process. Replaces what overlapped it.
    Module(Module),
    /// Code of an operation: what goes through it belongs to `class`, a name of the user's choice.
    /// Comes behind the `Module` that it lies in, before any stack through that.
    Operation { pid: Pid, start: Avma, length: u64, class: String },
    /// The executable mapping that starts here is gone.
    ModuleGone { time: Time, pid: Pid, start: Avma },
    /// First sight of a thread, or a new name for it.
    Thread { time: Time, pid: Pid, tid: Tid, name: Vec<u8> },
    /// A thread has ended; its id may be used again.
    ThreadExit { time: Time, tid: Tid },
    /// The frames behind a stack id, as lookup addresses (return address − 1), innermost first.
    Stack { id: WireStackId, pid: Pid, end: End, frames: Vec<Avma> },
    /// A heap block was acquired.
    Alloc {
        time: Time,
        tid: Tid,
        api: Api,
        ptr: Avma,
        size: u64,
        alignment: Alignment,
        stack: WireStackId,
    },
    /// A heap block was released.
    Free { time: Time, tid: Tid, api: Api, ptr: Avma },
    /// `realloc` took a block. `Restore` by the same thread gives it back, anything else does not.
    Retire { time: Time, tid: Tid, ptr: Avma },
    /// The thread's `realloc` failed: the block it retired last lives on.
    Restore { time: Time, tid: Tid, ptr: Avma },
    /// New memory is mapped; what it overlaps is unmapped (`MAP_FIXED`).
    Map { time: Time, tid: Tid, start: Avma, length: u64, kind: MapKind, stack: WireStackId },
    /// A range is unmapped; it may cut mappings anywhere.
    Unmap { time: Time, tid: Tid, start: Avma, length: u64 },
    /// The thread's `munmap` or `mremap` failed: the range it released last lives on.
    UnmapFailed { time: Time, tid: Tid },
    /// `mremap` is about to take this range. Followed by `Remap` or `UnmapFailed` of the thread.
    RemapStart { time: Time, tid: Tid, start: Avma, length: u64 },
    /// `mremap` made this range out of the one its thread released last, and kept its stack;
    /// `stack` is the caller of `mremap`, to which growth is charged.
    Remap { time: Time, tid: Tid, start: Avma, length: u64, stack: WireStackId },
    /// The program break moved from `old` to `new`.
    Break { time: Time, tid: Tid, old: Avma, new: Avma, stack: WireStackId },
    /// What of this range was address space only is memory from now on (`mprotect`); anything else
    /// in it stays what it is.
    Commit { time: Time, tid: Tid, start: Avma, length: u64, stack: WireStackId },
    /// What of this range was memory is address space only from now on (`PROT_NONE`).
    Decommit { time: Time, tid: Tid, start: Avma, length: u64 },
    /// `child` was forked from `parent`: it inherits a copy of its memory.
    Fork { time: Time, parent: Pid, child: Pid },
    /// The process runs a new program; all its memory is gone.
    Exec { time: Time, pid: Pid, exe: Vec<u8>, command: Vec<Vec<u8>> },
    /// The process has ended.
    Exit { time: Time, pid: Pid },
    /// Resident memory of a process, sampled.
    Resident { time: Time, pid: Pid, rss_bytes: u64 },
    /// The memory of a process by kind, sampled more rarely.
    MemoryDetail { time: Time, pid: Pid, memory: Box<MemoryByKind> },
    /// How much memory a process can still have, sampled: the tightest limit that concerns it.
    MemoryLimit { time: Time, pid: Pid, kind: LimitKind, limit_bytes: u64, used_bytes: u64 },
    /// The kernel's and the daemon's counters so far: (name, value), absolute.
    Counters(Vec<(String, u64)>),
    /// The user marked this moment.
    Mark { time: Time, text: String },
    /// `pid` holds this now: a heap block of thread `tid`, or, of an API that maps, a piece of a
    /// mapping; without an API, address space only. Says what went before a heap snapshot, and what
    /// a process had reserved when it was attached to.
    Held {
        born: Time,
        pid: Pid,
        tid: Tid,
        api: Option<Api>,
        start: Avma,
        length: u64,
        alignment: Alignment,
        stack: WireStackId,
    },
    /// A name for code without a file, as the process itself gave it (`/tmp/perf-PID.map`).
    JitSymbol { time: Time, pid: Pid, start: Avma, size: u64, name: Vec<u8> },
    /// Time passes.
    Tick { time: Time },
    /// The last record of a session that was ended in order.
    End { time: Time, reason: EndReason },
}

impl Record {
    /// When it happened; `None` for what has no moment of its own.
    pub fn time(&self) -> Option<Time> {
        match self {
            Record::Process(process) => Some(process.time),
            Record::Module(module) => Some(module.time),
            &Record::ModuleGone { time, .. }
            | &Record::Thread { time, .. }
            | &Record::ThreadExit { time, .. }
            | &Record::Alloc { time, .. }
            | &Record::Free { time, .. }
            | &Record::Retire { time, .. }
            | &Record::Restore { time, .. }
            | &Record::Map { time, .. }
            | &Record::Unmap { time, .. }
            | &Record::UnmapFailed { time, .. }
            | &Record::RemapStart { time, .. }
            | &Record::Remap { time, .. }
            | &Record::Break { time, .. }
            | &Record::Commit { time, .. }
            | &Record::Decommit { time, .. }
            | &Record::Fork { time, .. }
            | &Record::Exec { time, .. }
            | &Record::Exit { time, .. }
            | &Record::Resident { time, .. }
            | &Record::JitSymbol { time, .. }
            | &Record::MemoryDetail { time, .. }
            | &Record::MemoryLimit { time, .. }
            | &Record::Mark { time, .. }
            | &Record::Tick { time }
            | &Record::End { time, .. } => Some(time),
            Record::Session(_)
            | Record::Probe(_)
            | Record::BeforeAttach(_)
            | Record::Namespaces(_)
            | Record::Operation { .. }
            | Record::Stack { .. }
            | Record::Held { .. }
            | Record::Counters(_) => None,
        }
    }

    /// The thread whose call changed memory; `None` of records that tell of anything else.
    pub fn tid(&self) -> Option<Tid> {
        match self {
            &Record::Alloc { tid, .. }
            | &Record::Free { tid, .. }
            | &Record::Retire { tid, .. }
            | &Record::Restore { tid, .. }
            | &Record::Map { tid, .. }
            | &Record::Unmap { tid, .. }
            | &Record::UnmapFailed { tid, .. }
            | &Record::RemapStart { tid, .. }
            | &Record::Remap { tid, .. }
            | &Record::Break { tid, .. }
            | &Record::Commit { tid, .. }
            | &Record::Decommit { tid, .. } => Some(tid),
            Record::Session(_)
            | Record::Probe(_)
            | Record::Process(_)
            | Record::BeforeAttach(_)
            | Record::Namespaces(_)
            | Record::Module(_)
            | Record::Operation { .. }
            | Record::ModuleGone { .. }
            | Record::Thread { .. }
            | Record::ThreadExit { .. }
            | Record::Stack { .. }
            | Record::Fork { .. }
            | Record::Exec { .. }
            | Record::Exit { .. }
            | Record::Resident { .. }
            | Record::MemoryDetail { .. }
            | Record::MemoryLimit { .. }
            | Record::Counters(_)
            | Record::Mark { .. }
            | Record::Held { .. }
            | Record::JitSymbol { .. }
            | Record::Tick { .. }
            | Record::End { .. } => None,
        }
    }
}

/// How much was live after a number of records, and the most since the last such look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// How many records came before.
    pub records: u64,
    /// The time by then.
    pub time: Time,
    /// Live heap bytes of the running processes by then.
    pub live_bytes: u64,
    /// Their mapped bytes.
    pub mapped_bytes: u64,
    /// The most live heap bytes since the last look, or the start.
    pub peak_live_bytes: u64,
    /// After how many records that was first reached.
    pub peak_records: u64,
    /// When.
    pub peak_at: Time,
}

/// Counter for programs of Go that were traced, whose heap no probe sees.
pub const GO_PROGRAMS: &str = "go_programs";

/// Who traced, where and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Session {
    /// memtrace's version.
    pub tool_version: String,
    /// `uname -r` of the host.
    pub kernel: String,
    /// Seconds since the epoch at the start.
    pub started_unix_s: u64,
    /// The process that was named or started.
    pub pid: Pid,
    /// How the trace began.
    pub origin: Origin,
}

/// How the observation of the target began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Attached to a running process: what it allocated before is unknown.
    Attached,
    /// Started by memtrace: everything is known from the first instruction.
    Launched,
}

/// A probe in a function of an allocator.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    /// The function, such as `malloc`.
    pub symbol: String,
    /// Path of the ELF file.
    pub module: Vec<u8>,
    /// Where in the file the probe sits.
    pub offset: FileOffset,
    /// What a hit costs.
    pub cost: ProbeCost,
}

/// What a hit of a probe costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeCost {
    /// The kernel emulates the instruction: about 0.7 µs.
    Emulated,
    /// The kernel steps over the instruction out of line: about 9 µs on a virtual machine.
    Stepped,
}

/// A process under observation.
#[derive(Clone, Debug, PartialEq)]
pub struct Process {
    /// When the observation began.
    pub time: Time,
    /// Its id.
    pub pid: Pid,
    /// Its parent, if that is observed too.
    pub parent: Option<Pid>,
    /// Path of its executable.
    pub exe: Vec<u8>,
    /// Its command line.
    pub command: Vec<Vec<u8>>,
}

/// What a process held before memtrace saw it, from `/proc/PID/smaps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BeforeAttach {
    /// The process.
    pub pid: Pid,
    /// Size of the `[heap]` mapping.
    pub heap_bytes: u64,
    /// Size of private anonymous writable mappings other than heap and stacks.
    pub anonymous_bytes: u64,
    /// Resident set size.
    pub resident_bytes: u64,
}

/// What the kernel says of the memory of a process, by kind (`/proc/PID/smaps`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryByKind {
    /// `[heap]`, which the program break bounds.
    pub heap: MemoryFigures,
    /// Other private memory without a file, as `mmap` gives it; stacks of threads that ran among it.
    pub anonymous: MemoryFigures,
    /// Files, mapped privately or shared.
    pub file: MemoryFigures,
    /// The stacks of threads.
    pub stack: MemoryFigures,
    /// Shared memory without a file.
    pub shared: MemoryFigures,
}

impl MemoryByKind {
    /// Every kind.
    pub fn all(&self) -> [MemoryFigures; 5] {
        let MemoryByKind { heap, anonymous, file, stack, shared } = *self;
        [heap, anonymous, file, stack, shared]
    }

    /// Resident memory of every kind.
    pub fn resident_bytes(&self) -> u64 {
        self.all().iter().fold(0, |sum: u64, kind| sum.saturating_add(kind.resident_bytes))
    }
}

/// What the kernel says of one kind of memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryFigures {
    /// Address space that can be accessed in some way.
    pub size_bytes: u64,
    /// Address space that cannot (`PROT_NONE`).
    pub reserved_bytes: u64,
    /// In memory.
    pub resident_bytes: u64,
    /// In memory, shared pages divided among those that share them.
    pub proportional_bytes: u64,
    /// In memory, this process's alone, and changed: freed only if the process ends or gives it back.
    pub private_dirty_bytes: u64,
    /// Swapped out.
    pub swapped_bytes: u64,
    /// Of the resident ones, in huge pages.
    pub huge_bytes: u64,
}

/// Where a process lives, as the host sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespaces {
    /// The process.
    pub pid: Pid,
    /// Its ids in the PID namespaces inside the host's that it is in, its own last.
    pub inner_pids: Vec<u32>,
    /// Path of its cgroup, if that is known: of version 2 or, if that is the root, of version 1.
    pub cgroup: Option<Vec<u8>>,
    /// The id of the container that it is in, which its runtime chose.
    pub container: Option<Vec<u8>>,
}

/// An executable mapping.
#[derive(Clone, Debug, PartialEq)]
pub struct Module {
    /// When it was seen.
    pub time: Time,
    /// The process.
    pub pid: Pid,
    /// First address.
    pub start: Avma,
    /// One past the last address.
    pub end: Avma,
    /// Offset in the file of the first byte.
    pub offset: FileOffset,
    /// What is mapped.
    pub image: Image,
}

/// What an executable mapping shows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Image {
    /// An ELF file.
    File { path: Vec<u8>, build_id: Vec<u8> },
    /// The kernel's vDSO.
    Vdso,
    /// Memory without a file: code made at run time.
    Anonymous,
}

/// What a new mapping is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MapKind {
    /// Private memory without a file.
    Anonymous,
    /// A file, private or shared.
    File,
    /// Shared memory without a file.
    Shared,
    /// Address space only (`PROT_NONE`).
    Reserved,
}

/// Who sets a memory limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitKind {
    /// The machine has no more.
    Machine,
    /// A control group that the process is in.
    Cgroup,
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// Every observed process has ended.
    TargetExited,
    /// The user asked for it (Ctrl-C, SIGTERM).
    Interrupted,
    /// The duration asked for is over.
    DurationOver,
}
