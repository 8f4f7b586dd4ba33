//! The tracer: one thread that drains the ring and keeps the kernel's view of processes right.
//!
//! ```text
//!   ring ─→ decode ─→ records ─→ out
//!              └────→ fork, exec, exit, new code: attach, new tables, continue
//! ```
//!
//! Both happen in one thread, in the ring's order. So the record of a module stands in front of
//! the first stack that was walked with its table, and no lock is needed.

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd;
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use memtrace_common::addr::Avma;
use memtrace_common::config::MAX_PROCESSES;
use memtrace_common::event::{Free, Kind, Mapping, Task, flag};
use thiserror::Error;

use super::allocators::survey::{Found, Verdict};
use super::attach::Traced;
use super::clock::{Clock, monotonic_ns};
use super::closer::Closer;
use super::decode::{DecodeError, Event, RawStack, decode};
use super::finish::finish;
use super::guardian::{Guardian, continue_process};
use super::images::{Images, Key};
use super::loader::{Capacity, Kernel, LoadError, Program};
use super::probes::LinkKind;
use super::process::{self, ProcessError};
use super::tables::{Placed, Tables};
use crate::record::{EndReason, MapKind, Pid, Record, Session, Tid, Time, WireStackId};

/// Bytes of a page.
const PAGE_BYTES: u64 = 4096;

/// How often resident memory and counters are written.
const SAMPLE_NS: u64 = 1_000_000_000;

/// A free and the header that the ring puts before it.
const SMALLEST_EVENT_BYTES: usize = size_of::<Free>() + 8;

/// How to trace.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Sizes of the maps.
    pub capacity: Capacity,
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
    pub(super) options: Options,
    pub(super) tables: Tables,
    pub(super) placed: HashMap<Key, Placed>,
    pub(super) images: Images,
    pub(super) processes: HashMap<Pid, Traced>,
    pub(super) threads: HashMap<Tid, Pid>,
    /// Forked children that have not come to their first instruction, and their parents.
    children: HashMap<Pid, Pid>,
    /// Processes that memtrace has made and that have not run their program yet.
    expected: HashSet<Pid>,
    pub(super) free_indices: Vec<u32>,
    /// Changes with every change of any process's code.
    pub(super) generation: u32,
    pub(super) clock: Clock,
    guardian: Guardian,
    next_sample_ns: u64,
    pub(super) anomalies: Anomalies,
    /// How many children were forked and not traced when this was last looked at.
    pub(super) forks_not_traced: u64,
    /// Whether any probe was ever placed.
    pub(super) found: Found,
    pub(super) closer: Closer,
    /// Records that are ready.
    pub(super) out: Vec<Record>,
}

/// What went wrong in the daemon without ending the session.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Anomalies {
    /// Children or programs that could not be attached to.
    pub attach_failures: u64,
    /// Mapped files that could not be read: no probes, and no table.
    pub files_unreadable: u64,
    /// Files whose unwind table had no room.
    pub tables_without_room: u64,
    /// Mappings of code that had no room.
    pub modules_without_room: u64,
    /// Probes that the kernel refused.
    pub probes_refused: u64,
}

impl Tracer {
    /// Loads the kernel half. Nothing is traced yet.
    pub fn new(options: Options) -> Result<Self, TracerError> {
        let guardian = Guardian::start().map_err(TracerError::Guardian)?;
        let back_pressure_ns = u64::try_from(options.back_pressure.as_nanos()).unwrap_or(u64::MAX);
        let (kernel, ring) = Kernel::load(options.capacity, back_pressure_ns, options.links)?;
        let mut tracer = Tracer {
            kernel,
            ring,
            options,
            tables: Tables::new(options.capacity),
            placed: HashMap::new(),
            images: Images::default(),
            processes: HashMap::new(),
            threads: HashMap::new(),
            children: HashMap::new(),
            expected: HashSet::new(),
            free_indices: (0..MAX_PROCESSES).rev().collect(),
            generation: 0,
            clock: Clock::start(),
            guardian,
            next_sample_ns: 0,
            anomalies: Anomalies::default(),
            forks_not_traced: 0,
            found: Found::None,
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

    /// Waits until the kernel half asks for attention, or `timeout` is over.
    pub fn wait(&self, timeout: Duration) {
        let mut poll = libc::pollfd {
            fd: std::os::fd::AsRawFd::as_raw_fd(&self.ring.as_fd()),
            events: libc::POLLIN,
            revents: 0,
        };
        let timeout = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one valid pollfd. An interrupted wait is a short one.
        unsafe { libc::poll(&raw mut poll, 1, timeout) };
    }

    /// Handles what is in the ring, up to about `limit` records.
    pub fn drain(&mut self, limit: usize) -> Result<Drained, TracerError> {
        while self.out.len() < limit {
            let Some(item) = self.ring.next() else { return Ok(Drained::All) };
            let event = decode(&item)?;
            drop(item);
            self.handle(event)?;
        }
        Ok(Drained::Some)
    }

    /// Shows the kernel that the daemon lives, and lets time pass.
    pub fn tick(&mut self) -> Result<(), TracerError> {
        let now_ns = monotonic_ns();
        self.kernel.beat(now_ns)?;
        self.kernel.flush_log();
        let time = self.clock.at(now_ns);
        if now_ns >= self.next_sample_ns {
            self.next_sample_ns = now_ns + SAMPLE_NS;
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

    /// Detaches from everything. Gives the last records, and what could be traced at all.
    pub fn finish(mut self, reason: EndReason) -> Result<(Vec<Record>, Verdict), TracerError> {
        let time = self.clock.now();
        // One ring's worth: a busy target would otherwise fill it as fast as it is drained.
        let most = self.options.capacity.ring_bytes as usize / SMALLEST_EVENT_BYTES;
        self.drain(self.out.len().saturating_add(most))?;
        self.sample(time)?;
        // From now on nobody waits for room in the ring, and nobody is stopped.
        self.kernel.beat(0)?;
        let mut links = Vec::new();
        for (pid, traced) in self.processes.drain() {
            self.kernel.remove_process(pid);
            links.extend(traced.probed.links);
        }
        self.closer.close(links);
        self.closer.finish();
        self.drain_stopped()?;
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
            if let Event::Task(Kind::Stopped, task) = decode(&item)? {
                continue_process(Pid(task.pid));
            }
        }
        Ok(())
    }

    /// Writes resident memory and counters.
    fn sample(&mut self, time: Time) -> Result<(), TracerError> {
        let mut pids: Vec<Pid> = self.processes.keys().copied().collect();
        pids.sort();
        for pid in pids {
            if let Some(rss_bytes) = resident_bytes(pid) {
                self.out.push(Record::Resident { time, pid, rss_bytes });
            }
        }
        let Anomalies {
            attach_failures,
            files_unreadable,
            tables_without_room,
            modules_without_room,
            probes_refused,
        } = self.anomalies;
        let kernel = self.kernel.counters()?;
        self.clean_up_forks(&kernel);
        let mut counters: Vec<(String, u64)> =
            kernel.into_iter().map(|(counter, value)| (counter.name().to_owned(), value)).collect();
        counters.extend([
            ("attach_failures".to_owned(), attach_failures),
            ("code_files_unreadable".to_owned(), files_unreadable),
            ("unwind_tables_without_room".to_owned(), tables_without_room),
            ("code_mappings_without_room".to_owned(), modules_without_room),
            ("probes_refused".to_owned(), probes_refused),
        ]);
        self.out.push(Record::Counters(counters));
        Ok(())
    }

    /// A child that is not traced: the end of it, or of what is known of it.
    ///
    /// Its `Fork` record gave it copies of its parent's memory, and no event will take them away.
    fn forget_child(&mut self, pid: Pid, time: Time) {
        self.threads.retain(|_, of| *of != pid);
        self.out.push(Record::Exit { time, pid });
    }

    pub(super) fn watch(&mut self, pid: Pid) {
        if let Err(error) = self.guardian.watch(pid) {
            tracing::warn!("the guardian is gone: {error}");
        }
    }

    fn handle(&mut self, event: Event) -> Result<(), TracerError> {
        match event {
            Event::Alloc(api, alloc) => {
                let time = self.clock.at(alloc.header.time_ns);
                self.out.push(Record::Alloc {
                    time,
                    tid: Tid(alloc.header.tid),
                    api,
                    ptr: Avma(alloc.ptr),
                    size: alloc.size,
                    stack: WireStackId(alloc.stack),
                });
            }
            Event::Free(kind, api, free) => {
                let time = self.clock.at(free.header.time_ns);
                let (tid, ptr) = (Tid(free.header.tid), Avma(free.ptr));
                self.out.push(match kind {
                    Kind::Retire => Record::Retire { time, tid, ptr },
                    Kind::Restore => Record::Restore { time, tid, ptr },
                    _ => Record::Free { time, tid, api, ptr },
                });
            }
            Event::Stack(stack, end, frames) => {
                self.clock.at(stack.header.time_ns);
                self.out.push(Record::Stack {
                    id: WireStackId(stack.id),
                    pid: Pid(stack.pid),
                    end,
                    frames,
                });
            }
            Event::RawStack(mut raw) => {
                self.clock.at(raw.stack.header.time_ns);
                let (id, pid) = (WireStackId(raw.stack.id), Pid(raw.stack.pid));
                let end = finish(&mut raw, |pc| self.row_at(pid, pc));
                let RawStack { frames, .. } = *raw;
                self.out.push(Record::Stack { id, pid, end, frames });
            }
            Event::Mapping(kind, mapping) => self.handle_mapping(kind, mapping)?,
            Event::Task(kind, task) => self.handle_task(kind, task)?,
        }
        Ok(())
    }

    fn handle_mapping(&mut self, kind: Kind, mapping: Mapping) -> Result<(), TracerError> {
        let Mapping { header, address, length, old_address, old_length, stack } = mapping;
        let time = self.clock.at(header.time_ns);
        let (tid, stack) = (Tid(header.tid), WireStackId(stack));
        let (start, length) = (Avma(address), pages(length));
        let pid = self.threads.get(&tid).copied();
        match kind {
            Kind::Map => {
                let map_kind = map_kind(header.flags);
                self.out.push(Record::Map { time, tid, start, length, kind: map_kind, stack });
                if header.flags & flag::EXECUTABLE != 0
                    && let Some(pid) = pid
                {
                    self.code_changed(pid)?;
                }
            }
            Kind::Unmap => {
                if let Some(pid) = pid {
                    self.code_unmapped(pid, tid, start, length)?;
                }
                self.out.push(Record::Unmap { time, tid, start, length });
            }
            Kind::UnmapFailed => {
                self.out.push(Record::UnmapFailed { time, tid });
                if let Some(pid) = pid {
                    self.unmap_failed(pid, tid)?;
                }
            }
            Kind::RemapStart => {
                let (start, length) = (Avma(old_address), pages(old_length));
                if let Some(pid) = pid {
                    self.code_unmapped(pid, tid, start, 0)?;
                }
                self.out.push(Record::RemapStart { time, tid, start, length });
            }
            Kind::Remap => self.out.push(Record::Remap { time, tid, start, length, stack }),
            Kind::Break => {
                let Some(traced) = pid.and_then(|pid| self.processes.get_mut(&pid)) else {
                    return Ok(());
                };
                let old = traced.program_break.replace(start).unwrap_or(start);
                if old != start {
                    self.out.push(Record::Break { time, tid, old, new: start, stack });
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn handle_task(&mut self, kind: Kind, task: Task) -> Result<(), TracerError> {
        let Task { header, pid, parent_pid, comm } = task;
        let time = self.clock.at(header.time_ns);
        let (pid, tid) = (Pid(pid), Tid(header.tid));
        let name = comm.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
        match kind {
            Kind::ThreadStart | Kind::ThreadName => {
                self.threads.insert(tid, pid);
                self.out.push(Record::Thread { time, pid, tid, name });
            }
            Kind::ThreadExit => {
                self.threads.remove(&tid);
                self.out.push(Record::ThreadExit { time, tid });
                if tid.0 == pid.0 {
                    self.leader_exited(pid)?;
                }
            }
            Kind::Fork => {
                let parent = Pid(parent_pid);
                self.out.push(Record::Fork { time, parent, child: pid });
                self.threads.insert(tid, pid);
                self.out.push(Record::Thread { time, pid, tid, name });
                self.watch(pid);
                self.children.insert(pid, parent);
            }
            Kind::Exec => {
                self.expected.remove(&pid);
                self.children.remove(&pid);
                self.executed(pid, time)?;
            }
            Kind::ProcessExit => self.exited(pid, time),
            Kind::CodeChanged => self.code_changed(pid)?,
            Kind::Stopped => {
                if let Some(parent) = self.children.remove(&pid) {
                    self.attach_child(pid, parent)?;
                    if !self.processes.contains_key(&pid) {
                        self.forget_child(pid, time);
                    }
                }
                continue_process(pid);
            }
            _ => {}
        }
        Ok(())
    }
}

fn pages(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(PAGE_BYTES).unwrap_or(bytes)
}

fn map_kind(flags: u16) -> MapKind {
    if flags & flag::RESERVED != 0 {
        MapKind::Reserved
    } else if flags & flag::FILE != 0 {
        MapKind::File
    } else if flags & flag::SHARED != 0 {
        MapKind::Shared
    } else {
        MapKind::Anonymous
    }
}

/// Resident memory, from the second field of `/proc/PID/statm`; `None` if the process is gone.
fn resident_bytes(pid: Pid) -> Option<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{}/statm", pid.0)).ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    pages.checked_mul(PAGE_BYTES)
}
