//! The tracer: one thread that drains the ring and keeps the kernel's view of processes right.
//!
//! ```text
//!   ring ─→ decode ─→ events ─→ records ─→ out
//!                        └────→ fork, exec, exit, new code: attach, new tables, continue
//! ```
//!
//! Both happen in one thread, in the ring's order. So the record of a module stands in front of
//! the first stack that was walked with its table, and no lock is needed.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use memtrace_common::config::MAX_PROCESSES;
use memtrace_common::event::{Free, Kind};
use thiserror::Error;

use super::allocators::Watch;
use super::allocators::spec::ProbeSpec;
use super::allocators::survey::{Found, Verdict};
use super::attach::Traced;
use super::clock::{Clock, monotonic_ns};
use super::closer::Closer;
use super::decode::{DecodeError, Event, decode};
use super::doorbell::Doorbell;
use super::endings::Endings;
use super::follow::Refusals;
use super::guardian::{Guardian, continue_process};
use super::images::{ImageId, Images};
use super::loader::{Capacity, Kernel, KernelTypes, LoadError, Program};
use super::probes::LinkKind;
use super::process::{self, ProcessError};
use super::ring_meter::RingMeter;
use super::samples::{Anomalies, When};
use super::table_cache::TableCache;
use super::tables::{self, Placed, Tables};
use crate::record::{EndReason, Pid, Record, Session, Tid, Time};

/// How often resident memory and counters are written.
const SAMPLE_NS: u64 = 1_000_000_000;

/// A free and the header that the ring puts before it.
const SMALLEST_EVENT_BYTES: usize = size_of::<Free>() + 8;

/// What five processors that do nothing but allocate and release write to the ring.
const FASTEST_BYTES_PER_MS: u64 = 200_000;

/// How to trace.
#[derive(Clone, Debug)]
pub struct Options {
    /// Sizes of the maps, without the tables of the processes that tracing begins with.
    pub capacity: Capacity,
    /// Where the unwind tables of large files are kept; `None` to compile them each time.
    pub table_cache: Option<PathBuf>,
    /// How long an event may wait for room in the ring; 0 to drop it at once.
    pub back_pressure: Duration,
    /// What the probes do.
    pub program: Program,
    /// How they are attached; without it, as suits the kernel.
    pub links: Option<LinkKind>,
    /// Whether to trace children.
    pub children: Children,
    /// What happens when a process that was running maps code.
    pub new_code: NewCode,
    /// The functions that the user has named.
    pub probes: Vec<ProbeSpec>,
    /// How functions that give memory are watched.
    pub watch: Watch,
}

/// Whether to trace the children of a traced process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Children {
    /// They are traced from their first instruction.
    Follow,
    /// They are left alone.
    Ignore,
}

/// What happens when a process that was running when memtrace came maps code.
///
/// Programs that memtrace has seen start are stopped for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewCode {
    /// It runs on, and the daemon catches up. Code that is unmapped within moments has no name.
    CatchUp,
    /// It is stopped until the code is known. Its parent may notice, and its system calls may end
    /// early (`EINTR`, signal(7)).
    Stop,
}

/// Why tracing cannot start or go on.
#[derive(Debug, Error)]
pub enum TracerError {
    /// The process cannot be traced.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The kernel half failed.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The kernel half wrote something else than it should.
    #[error("the kernel programs and the daemon do not belong together: {0}; please report this")]
    Decode(#[from] DecodeError),
    /// The ring's positions cannot be seen.
    #[error(
        "cannot map the event ring's positions: {0}; raise the limit of address space (`ulimit -v`)"
    )]
    Ring(std::io::Error),
    /// Nobody can wait for the ring.
    #[error("cannot wait for the event ring: {0}")]
    Doorbell(std::io::Error),
    /// The guardian could not be started.
    #[error("cannot start the process that guards against stopped targets: {0}")]
    Guardian(std::io::Error),
    /// Nothing to probe.
    #[error(
        "found no allocator in process {pid} ({exe}), which is probably linked statically and \
         stripped; trace a build that keeps its symbol table, or one that uses a shared C library"
    )]
    NoAllocator {
        /// The process.
        pid: u32,
        /// Its executable.
        exe: String,
    },
    /// The kernel half has no place for it.
    #[error("process {pid} is one too many: {MAX_PROCESSES} processes can be traced at once")]
    TooManyProcesses {
        /// The process.
        pid: u32,
    },
    /// The process would crash at the first return probe.
    #[error(
        "process {pid} has a shadow stack (CET), and on kernel {kernel} a return probe would crash \
         it; update the kernel to 6.11 or later"
    )]
    ShadowStack {
        /// The process.
        pid: u32,
        /// `uname -r`.
        kernel: String,
    },
    /// The kernel would kill the process at the first return probe.
    #[error(
        "process {pid} filters its system calls (seccomp), and kernel {kernel} would kill it at \
         the first return probe; update the kernel to 6.12.14, 6.13.3, 6.14 or later"
    )]
    Seccomp {
        /// The process.
        pid: u32,
        /// `uname -r`.
        kernel: String,
    },
}

impl TracerError {
    /// Whether others can be traced all the same.
    pub fn concerns_one_process(&self) -> bool {
        match self {
            TracerError::Process(_)
            | TracerError::NoAllocator { .. }
            | TracerError::TooManyProcesses { .. }
            | TracerError::Seccomp { .. }
            | TracerError::ShadowStack { .. } => true,
            TracerError::Load(_)
            | TracerError::Decode(_)
            | TracerError::Ring(_)
            | TracerError::Doorbell(_)
            | TracerError::Guardian(_) => false,
        }
    }
}

/// What the last look at the ring gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Everything that was there.
    All,
    /// As much as was asked for; there may be more.
    Some,
}

/// The live source.
pub struct Tracer {
    pub(super) kernel: Kernel,
    ring: RingBuf<MapData>,
    doorbell: Doorbell,
    pub(super) meter: RingMeter,
    pub(super) options: Options,
    pub(super) tables: Tables,
    pub(super) placed: HashMap<ImageId, Placed>,
    pub(super) images: Images,
    pub(super) processes: HashMap<Pid, Traced>,
    pub(super) threads: HashMap<Tid, Pid>,
    /// Forked children that have not come to their first instruction, and their parents.
    pub(super) children: HashMap<Pid, Pid>,
    /// Processes that memtrace has made and that have not run their program yet.
    pub(super) expected: HashSet<Pid>,
    /// Processes that match and cannot be traced.
    pub(super) refusals: Refusals,
    pub(super) free_indices: Vec<u32>,
    /// Changes with every change of any process's code.
    pub(super) generation: u32,
    pub(super) clock: Clock,
    guardian: Guardian,
    pub(super) endings: Endings,
    /// Whether the ring was seen empty since the last sample.
    was_drained: bool,
    next_sample_ns: u64,
    pub(super) anomalies: Anomalies,
    /// How many children were forked and not traced when this was last looked at.
    pub(super) forks_not_traced: u64,
    /// Whether any probe was ever placed.
    pub(super) found: Found,
    /// Whether the kernel has refused what lets exceptions leave probed functions.
    pub(super) exceptions_unprotected: bool,
    pub(super) closer: Closer,
    /// Records that are ready.
    pub(super) out: Vec<Record>,
}

impl Tracer {
    /// Loads the kernel half, with room for the tables of `pids`. Nothing is traced yet.
    pub fn new(mut options: Options, pids: &[Pid]) -> Result<Self, TracerError> {
        let guardian = Guardian::start().map_err(TracerError::Guardian)?;
        let cache = options.table_cache.as_deref().and_then(TableCache::open);
        let mut images = Images::new(cache, std::mem::take(&mut options.probes), options.watch);
        tracing::debug!("reading the kernel's types and the target's files");
        let (types, ()) = rayon::join(KernelTypes::read, || read_ahead(&mut images, pids));
        let needed = tables::room_for(images.tables());
        tracing::debug!("loading the kernel half, with {needed:?} rows and buckets");
        let back_pressure_ns = u64::try_from(options.back_pressure.as_nanos()).unwrap_or(u64::MAX);
        let (kernel, ring) =
            Kernel::load(types?, options.capacity, needed, back_pressure_ns, options.links)?;
        let meter = RingMeter::new(&ring).map_err(TracerError::Ring)?;
        let doorbell = Doorbell::of(&ring).map_err(TracerError::Doorbell)?;
        let mut tracer = Tracer {
            kernel,
            ring,
            doorbell,
            meter,
            tables: Tables::new(options.capacity),
            options,
            placed: HashMap::new(),
            images,
            processes: HashMap::new(),
            threads: HashMap::new(),
            children: HashMap::new(),
            expected: HashSet::new(),
            refusals: Refusals::default(),
            free_indices: (0..MAX_PROCESSES).rev().collect(),
            generation: 0,
            clock: Clock::start(),
            guardian,
            endings: Endings::default(),
            was_drained: false,
            next_sample_ns: 0,
            anomalies: Anomalies::default(),
            forks_not_traced: 0,
            found: Found::None,
            exceptions_unprotected: false,
            closer: Closer::start(),
            out: Vec::new(),
        };
        tracer.tick()?;
        Ok(tracer)
    }

    /// Traces `pid` from its next `exec` on.
    pub fn expect(&mut self, pid: Pid) -> Result<(), TracerError> {
        self.watch(pid);
        self.kernel.expect_exec(pid)?;
        self.expected.insert(pid);
        Ok(())
    }

    /// Writes the first record.
    pub fn begin_session(&mut self, session: Session) {
        self.out.insert(0, Record::Session(session));
    }

    /// Whether anything is traced now.
    pub fn has_processes(&self) -> bool {
        !self.processes.is_empty()
    }

    /// Whether nothing is left to trace.
    pub fn is_done(&self) -> bool {
        self.processes.is_empty() && self.children.is_empty() && self.expected.is_empty()
    }

    /// The records that are ready, for the caller to take.
    pub fn records(&mut self) -> &mut Vec<Record> {
        &mut self.out
    }

    /// Sleeps until the kernel half asks for attention, but no longer than `longest`, nor than a very
    /// busy target takes to fill the ring.
    pub fn wait(&self, longest: Duration) {
        let fill_ms = u64::from(self.options.capacity.ring_bytes) / FASTEST_BYTES_PER_MS;
        self.doorbell.wait(longest.min(Duration::from_millis(fill_ms)));
    }

    /// Handles what is in the ring, up to about `limit` records.
    pub fn drain(&mut self, limit: usize) -> Result<Drained, TracerError> {
        self.meter.look();
        while self.out.len() < limit {
            let Some(item) = self.ring.next() else {
                self.was_drained = true;
                return Ok(Drained::All);
            };
            let event = decode(&item)?;
            drop(item);
            self.handle(event)?;
        }
        Ok(Drained::Some)
    }

    /// How far the ring is written; see [`Tracer::has_read`].
    pub fn written(&self) -> u64 {
        self.meter.written()
    }

    /// Whether everything up to this position of the ring was handled.
    ///
    /// A busy target can keep the ring from ever being empty.
    pub fn has_read(&self, written: u64) -> bool {
        self.meter.read() >= written
    }

    /// Shows the kernel that the daemon lives, and lets time pass.
    pub fn tick(&mut self) -> Result<(), TracerError> {
        let now_ns = monotonic_ns();
        self.kernel.beat(now_ns)?;
        self.kernel.flush_log();
        let time = self.clock.at(now_ns);
        if now_ns >= self.next_sample_ns {
            self.next_sample_ns = now_ns + SAMPLE_NS;
            self.name_jit_frames(time);
            let was_drained = std::mem::replace(&mut self.was_drained, false);
            self.end_what_was_lost(was_drained, time);
            self.notice_lost_programs(was_drained, time)?;
            self.sample(time)?;
        }
        self.out.push(Record::Tick { time });
        let gone: Vec<Pid> =
            self.children.keys().copied().filter(|pid| process::inspect(*pid).is_err()).collect();
        for pid in gone {
            self.children.remove(&pid);
            self.forget_child(pid, time);
        }
        Ok(())
    }

    /// Marks this moment.
    pub fn mark(&mut self, text: String) -> Time {
        let time = self.clock.now();
        self.out.push(Record::Mark { time, text });
        time
    }

    /// Detaches from everything. Gives the last records, and what could be traced at all.
    pub fn finish(mut self, reason: EndReason) -> Result<(Vec<Record>, Verdict), TracerError> {
        let time = self.clock.now();
        // One ring's worth: a busy target would otherwise fill it as fast as it is drained.
        let most = self.options.capacity.ring_bytes as usize / SMALLEST_EVENT_BYTES;
        self.drain(self.out.len().saturating_add(most))?;
        self.sample(time)?;
        self.sample_memory(time, When::Now);
        // From now on nobody waits for room in the ring, and nobody is stopped.
        self.kernel.beat(0)?;
        let mut links = Vec::new();
        let mut processes: Vec<_> = self.processes.drain().collect();
        processes.sort_by_key(|(pid, _)| *pid);
        for (pid, mut traced) in processes {
            self.end_jit_names(pid, &mut traced.jit_names, time);
            self.kernel.remove_process(pid);
            links.extend(traced.probed.into_links());
        }
        self.closer.close(links);
        self.closer.finish();
        self.drain_stopped()?;
        self.endings.let_all_go();
        if let Err(error) = self.guardian.dismiss() {
            tracing::warn!("the guardian did not end: {error}");
        }
        let time = self.clock.last();
        self.out.push(Record::End { time, reason });
        Ok((self.out, Verdict::of(self.found, self.images.runtime())))
    }

    /// Continues whoever was stopped while the session ended.
    fn drain_stopped(&mut self) -> Result<(), TracerError> {
        while let Some(item) = self.ring.next() {
            if let Event::Task(Kind::Stopped | Kind::Ending, task) = decode(&item)? {
                continue_process(Pid(task.pid));
            }
        }
        Ok(())
    }

    /// A child that is not traced: the end of it, or of what is known of it.
    ///
    /// Its `Fork` record gave it copies of its parent's memory, and no event will take them away.
    pub(super) fn forget_child(&mut self, pid: Pid, time: Time) {
        self.threads.retain(|_, of| *of != pid);
        self.out.push(Record::Exit { time, pid });
    }

    pub(super) fn watch(&mut self, pid: Pid) {
        if let Err(error) = self.guardian.watch(pid) {
            tracing::warn!("the guardian is gone: {error}");
        }
    }
}

/// Reads the files that these processes map, before the target can be made to wait for it.
///
/// What cannot be read now is said when they are attached to.
fn read_ahead(images: &mut Images, pids: &[Pid]) {
    for pid in pids {
        let mappings = process::mappings(*pid).unwrap_or_default();
        let code: Vec<_> = mappings.iter().filter(|mapping| mapping.is_code()).collect();
        images.read(*pid, &code);
    }
}
