//! A live session: from a target to a trace file and snapshots.
//!
//! ```text
//!   tracer thread ─ batches of records ─┬→ writer thread ─→ trace file
//!    drains the ring                    └→ pipeline thread ─→ snapshots ─→ caller
//!   caller's thread: signals, the duration, `on_progress`
//! ```
//!
//! The channels are short: if writing or counting cannot keep up, the tracer waits, the ring
//! fills, and the kernel half makes the target wait (back-pressure). So memory stays bounded.

mod output;

use std::ffi::OsString;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use thiserror::Error;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::live::allocators::survey::Verdict;
use crate::live::kernel_version::kernel_release;
use crate::live::launch::{self, Prepared};
use crate::live::loader::{Capacity, Program};
use crate::live::privilege::{self, NotPrivileged};
use crate::live::probes::LinkKind;
use crate::live::table_cache::TableCache;
use crate::live::tracer::{Children, Drained, NewCode, Options, Tracer, TracerError};
use crate::pipeline::snapshot::Snapshot;
use crate::pipeline::{Limits, Pipeline};
use crate::record::{EndReason, Origin, Pid, ProbeCost, Record, Session};
use crate::trace::WriteError;
use output::Output;

/// Records that are handed on together.
const BATCH_RECORDS: usize = 16 * 1024;

/// Batches that may wait in a channel.
const BATCHES: usize = 16;

/// How long the tracer sleeps when the ring is empty.
const IDLE: Duration = Duration::from_millis(4);

/// Bytes of a bucket and its two rows.
const UNWIND_ENTRY_BYTES: u64 = 4 + 2 * 8;

/// How often time passes for an idle target, and the daemon shows the kernel that it lives.
const TICK: Duration = Duration::from_millis(100);

/// How long a launched program has after Ctrl-C, which it gets too, to end by itself.
const GRACE: Duration = Duration::from_secs(2);

/// Memory for unwind tables of code that a process loads later: 256 MB of text, 2 million rows.
///
/// It is not larger because the kernel makes such memory in one go, and whoever shares the CPU
/// with it stands still meanwhile.
const UNWIND_BYTES: u64 = 20 << 20;

/// The same where programs may be started that are not known yet: a compiler's have 1 million rows.
const UNWIND_BYTES_WITH_CHILDREN: u64 = 60 << 20;

/// What to trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Running processes.
    Attach(Vec<Pid>),
    /// A command, from its first instruction, and its children.
    Launch(Vec<OsString>),
}

/// How to trace it.
#[derive(Clone, Debug)]
pub struct RecordOptions {
    /// What to trace.
    pub target: Target,
    /// The trace file, if there is to be one.
    pub output: Option<PathBuf>,
    /// When to stop; without it, at the target's end or on Ctrl-C.
    pub duration: Option<Duration>,
    /// Time between two snapshots.
    pub snapshot_interval: Duration,
    /// Size of the event ring in bytes; made a power of two.
    pub ring_bytes: u64,
    /// Memory for the unwind tables of code that is not mapped yet when the session begins; without
    /// it, as much as is usual.
    pub unwind_bytes: Option<u64>,
    /// Where the unwind tables of large files are kept; `None` to compile them each time.
    pub table_cache: Option<PathBuf>,
    /// How long an event waits for room in the ring before it is dropped; 0 to drop at once.
    pub back_pressure: Duration,
    /// Whether to trace the children of processes that are attached to.
    pub children: Children,
    /// What happens when a process that is attached to maps code.
    pub new_code: NewCode,
    /// What the probes do.
    pub program: Program,
    /// How they are attached; without it, as suits the kernel.
    pub links: Option<LinkKind>,
}

impl RecordOptions {
    /// The usual way to trace `target`.
    pub fn new(target: Target) -> Self {
        let children = match target {
            Target::Attach(_) => Children::Ignore,
            Target::Launch(_) => Children::Follow,
        };
        RecordOptions {
            target,
            output: None,
            duration: None,
            snapshot_interval: Duration::from_millis(500),
            ring_bytes: 32 << 20,
            unwind_bytes: None,
            table_cache: TableCache::usual_directory(),
            back_pressure: Duration::from_millis(500),
            children,
            new_code: NewCode::CatchUp,
            program: Program::Trace,
            links: None,
        }
    }
}

/// What a session tells while it runs.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// From now on every call of these processes is seen. Comes once, before anything else.
    Started(&'a [Started]),
    /// The state at a moment.
    Snapshot(&'a Arc<Snapshot>),
}

/// A process that the session begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Started {
    /// A running one.
    Attached {
        /// Its id.
        pid: Pid,
        /// Path of its executable.
        exe: Vec<u8>,
        /// How many probes it has.
        probes: u64,
        /// Of these, the ones that the kernel steps over.
        stepped_probes: u64,
        /// What can be traced in it.
        verdict: Verdict,
    },
    /// The command. What it will load, and so its probes, are not known yet.
    Launched {
        /// Its id.
        pid: Pid,
        /// Its name as it was given.
        command: OsString,
    },
}

/// What a session did.
#[derive(Clone, Debug)]
pub struct SessionSummary {
    /// The state at the end.
    pub snapshot: Arc<Snapshot>,
    /// Size of the trace file in bytes, if one was written.
    pub trace_bytes: Option<u64>,
    /// What could be traced.
    pub verdict: Verdict,
    /// How the launched command ended, if it did.
    pub exit_status: Option<std::process::ExitStatus>,
}

/// Why a session cannot start or go on.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The user may not trace.
    #[error(transparent)]
    NotPrivileged(#[from] NotPrivileged),
    /// The target cannot be traced, or no longer.
    #[error(transparent)]
    Tracer(#[from] TracerError),
    /// The command cannot be run.
    #[error("cannot run {command}; check its name and that it may be executed")]
    Command {
        /// The command's name.
        command: String,
        /// Why.
        source: std::io::Error,
    },
    /// The trace file cannot be made.
    #[error("cannot create {}; name another file with -o", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The trace file cannot be written.
    #[error(
        "cannot write {}; the target runs on, and what was written so far can be read",
        path.display()
    )]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: WriteError,
    },
    /// Signals cannot be received.
    #[error("cannot set up signals and timers")]
    Runtime(#[source] std::io::Error),
}

type Batch = Arc<Vec<Record>>;

/// Traces until the end, the duration is over, Ctrl-C, or `on_progress` breaks off.
pub fn run(
    options: RecordOptions,
    mut on_progress: impl FnMut(Progress<'_>) -> ControlFlow<()>,
) -> Result<SessionSummary, SessionError> {
    privilege::check()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(SessionError::Runtime)?;
    // From here on a signal asks for an orderly end, even while the probes are being placed.
    let mut signals = {
        let _context = runtime.enter();
        Signals::listen().map_err(SessionError::Runtime)?
    };
    let output = options.output.as_deref().map(Output::open).transpose()?;
    let (tracer, launched, started) = match start(&options) {
        Ok(start) => start,
        Err(error) => {
            if let Some(output) = output {
                output.discard();
            }
            return Err(error);
        }
    };

    let stop = Arc::new(Stop::default());
    if on_progress(Progress::Started(&started)).is_break() {
        stop.interrupted.store(true, Ordering::Relaxed);
    }
    let (to_pipeline, pipeline_batches) = sync_channel(BATCHES);
    let (to_writer, writer) = match output {
        Some(output) => {
            let (sender, batches) = sync_channel(BATCHES);
            (Some(sender), Some(std::thread::spawn(move || output.write(&batches))))
        }
        None => (None, None),
    };
    let (snapshot_sender, mut snapshots) = mpsc::channel(1);
    let interval = options.snapshot_interval;
    let pipeline = std::thread::spawn(move || count(&pipeline_batches, interval, &snapshot_sender));
    let tracer = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || trace(tracer, &stop, to_writer, &to_pipeline))
    };

    runtime.block_on(attend(&options, &stop, &mut signals, &mut snapshots, &mut on_progress));
    drop(snapshots);

    let traced = join(tracer);
    let snapshot = join(pipeline);
    let trace_bytes = writer.map(join).transpose()?;
    let verdict = traced?;
    let exit_status = launched.and_then(|launched| launched.status());
    Ok(SessionSummary { snapshot, trace_bytes, verdict, exit_status })
}

/// The signals that end a session.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }
}

/// What asks the tracer to end.
#[derive(Debug, Default)]
struct Stop {
    interrupted: AtomicBool,
    duration_over: AtomicBool,
}

impl Stop {
    fn reason(&self) -> Option<EndReason> {
        if self.interrupted.load(Ordering::Relaxed) {
            Some(EndReason::Interrupted)
        } else if self.duration_over.load(Ordering::Relaxed) {
            Some(EndReason::DurationOver)
        } else {
            None
        }
    }
}

/// The launched command.
struct Launched(JoinHandle<std::io::Result<std::process::Child>>);

impl Launched {
    /// How it ended; `None` if it has not.
    fn status(self) -> Option<std::process::ExitStatus> {
        let mut child = self.0.join().ok()?.ok()?;
        child.try_wait().ok().flatten()
    }
}

/// Loads the kernel half and attaches, or launches.
fn start(
    options: &RecordOptions,
) -> Result<(Tracer, Option<Launched>, Vec<Started>), SessionError> {
    let ring_bytes = u32::try_from(options.ring_bytes.next_power_of_two()).unwrap_or(1 << 30);
    let unwind_bytes = options.unwind_bytes.unwrap_or(match options.children {
        Children::Ignore => UNWIND_BYTES,
        Children::Follow => UNWIND_BYTES_WITH_CHILDREN,
    });
    let capacity = Capacity {
        ring_bytes: ring_bytes.clamp(1 << 20, 1 << 30),
        // Two rows of 8 bytes and a bucket of 4, as in the densest of real programs.
        rows: unwind_entries(unwind_bytes) * 2,
        buckets: unwind_entries(unwind_bytes),
        modules: 1 << 16,
    };
    let pids = match &options.target {
        Target::Attach(pids) => pids.as_slice(),
        Target::Launch(_) => &[],
    };
    let tracer_options = Options {
        capacity,
        table_cache: options.table_cache.clone(),
        back_pressure: options.back_pressure,
        program: options.program,
        links: options.links,
        children: options.children,
        new_code: options.new_code,
    };
    let mut tracer = Tracer::new(tracer_options, pids)?;
    match &options.target {
        Target::Attach(pids) => {
            let first = pids.first().copied().unwrap_or(Pid(0));
            tracer.begin_session(session(first, Origin::Attached));
            let mut started = Vec::with_capacity(pids.len());
            for pid in pids {
                let before = tracer.records().len();
                let verdict = tracer.attach(*pid)?;
                started.push(attached(*pid, verdict, &tracer.records()[before..]));
            }
            Ok((tracer, None, started))
        }
        Target::Launch(command) => {
            let failed = |source| SessionError::Command {
                command: command
                    .first()
                    .map(|name| name.to_string_lossy().into_owned())
                    .unwrap_or_default(),
                source,
            };
            let prepared: Prepared = launch::prepare(command).map_err(failed)?;
            let pid = prepared.pid;
            tracer.begin_session(session(pid, Origin::Launched));
            tracer.expect(pid)?;
            let child = prepared.go().map_err(failed)?;
            // The kernel stops the child at its first instruction; `spawn` has returned by then.
            let name = command.first().cloned().unwrap_or_default();
            let started = Started::Launched { pid, command: name };
            match wait_for_exec(&mut tracer, &child)? {
                true => Ok((tracer, Some(Launched(child)), vec![started])),
                false => match child.join() {
                    Ok(Err(source)) => Err(failed(source)),
                    _ => Ok((tracer, None, Vec::new())),
                },
            }
        }
    }
}

/// How many buckets fit into memory for unwind tables, with two rows each.
fn unwind_entries(bytes: u64) -> u32 {
    u32::try_from(bytes / UNWIND_ENTRY_BYTES).unwrap_or(u32::MAX).min(1 << 24)
}

/// What the records of an attach say about it.
fn attached(pid: Pid, verdict: Verdict, records: &[Record]) -> Started {
    let (mut exe, mut probes, mut stepped_probes) = (Vec::new(), 0, 0);
    for record in records {
        match record {
            Record::Process(process) => exe.clone_from(&process.exe),
            Record::Probe(probe) => {
                probes += 1;
                stepped_probes += u64::from(probe.cost == ProbeCost::Stepped);
            }
            _ => {}
        }
    }
    Started::Attached { pid, exe, probes, stepped_probes, verdict }
}

/// Waits until the child runs its program; false if it could not.
fn wait_for_exec(
    tracer: &mut Tracer,
    child: &JoinHandle<std::io::Result<std::process::Child>>,
) -> Result<bool, TracerError> {
    loop {
        tracer.drain(BATCH_RECORDS)?;
        if tracer.has_processes() {
            return Ok(true);
        }
        if child.is_finished() {
            // It may have run its program just now.
            tracer.drain(BATCH_RECORDS)?;
            return Ok(tracer.has_processes());
        }
        tracer.tick()?;
        tracer.wait(IDLE);
    }
}

fn session(pid: Pid, origin: Origin) -> Session {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Session {
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: kernel_release(),
        started_unix_s: since_epoch.as_secs(),
        pid,
        origin,
    }
}

/// The tracer thread.
fn trace(
    mut tracer: Tracer,
    stop: &Stop,
    to_writer: Option<SyncSender<Batch>>,
    to_pipeline: &SyncSender<Batch>,
) -> Result<Verdict, TracerError> {
    // A receiver that is gone has failed, and says why itself.
    let send = |batch: Vec<Record>| -> bool {
        let batch = Arc::new(batch);
        let written =
            to_writer.as_ref().is_none_or(|writer| writer.send(Arc::clone(&batch)).is_ok());
        written && to_pipeline.send(batch).is_ok()
    };
    let mut next_tick = Instant::now();
    let reason = loop {
        let drained = tracer.drain(BATCH_RECORDS)?;
        if Instant::now() >= next_tick {
            tracer.tick()?;
            next_tick = Instant::now() + TICK;
        }
        let ready = tracer.records();
        let reason = stop.reason();
        if !ready.is_empty() && (drained == Drained::Some || ready.len() > 1) {
            let batch = std::mem::replace(ready, Vec::with_capacity(BATCH_RECORDS));
            if !send(batch) {
                break EndReason::Interrupted;
            }
        }
        if let Some(reason) = reason {
            break reason;
        }
        if tracer.is_done() {
            break EndReason::TargetExited;
        }
        if drained == Drained::All {
            tracer.wait(IDLE);
        }
    };
    let (records, verdict) = tracer.finish(reason)?;
    send(records);
    Ok(verdict)
}

/// The pipeline thread: gives the last snapshot.
fn count(
    batches: &Receiver<Batch>,
    interval: Duration,
    snapshots: &mpsc::Sender<Arc<Snapshot>>,
) -> Arc<Snapshot> {
    let mut pipeline = Pipeline::new(Limits::default());
    let mut next = Instant::now() + interval;
    for batch in batches {
        for record in batch.iter() {
            pipeline.apply(record);
        }
        if Instant::now() >= next {
            // A view that is still busy with the last one does not need this one.
            if snapshots.try_reserve().is_ok_and(|place| {
                place.send(pipeline.snapshot());
                true
            }) {
                next = Instant::now() + interval;
            }
        }
    }
    pipeline.snapshot()
}

/// Waits for the end of the session, for signals and for time, and hands snapshots on.
async fn attend(
    options: &RecordOptions,
    stop: &Stop,
    signals: &mut Signals,
    snapshots: &mut mpsc::Receiver<Arc<Snapshot>>,
    on_progress: &mut impl FnMut(Progress<'_>) -> ControlFlow<()>,
) {
    let Signals { interrupt, terminate, hang_up } = signals;
    let far = Duration::from_secs(u32::MAX.into());
    let duration = tokio::time::sleep(options.duration.unwrap_or(far));
    tokio::pin!(duration);
    let grace = tokio::time::sleep(far);
    tokio::pin!(grace);
    loop {
        tokio::select! {
            snapshot = snapshots.recv() => match snapshot {
                Some(snapshot) => if on_progress(Progress::Snapshot(&snapshot)).is_break() {
                    stop.interrupted.store(true, Ordering::Relaxed);
                },
                None => return,
            },
            _ = interrupt.recv() => match options.target {
                // The command has got the signal too.
                Target::Launch(_) if !grace_is_running(&grace, far) => {
                    grace.as_mut().reset(tokio::time::Instant::now() + GRACE);
                }
                Target::Launch(_) | Target::Attach(_) => {
                    stop.interrupted.store(true, Ordering::Relaxed);
                }
            },
            _ = terminate.recv() => stop.interrupted.store(true, Ordering::Relaxed),
            _ = hang_up.recv() => stop.interrupted.store(true, Ordering::Relaxed),
            () = &mut grace, if !grace.is_elapsed() => {
                stop.interrupted.store(true, Ordering::Relaxed);
            }
            () = &mut duration, if !duration.is_elapsed() => {
                stop.duration_over.store(true, Ordering::Relaxed);
            }
        }
    }
}

fn grace_is_running(grace: &tokio::time::Sleep, far: Duration) -> bool {
    grace.deadline() < tokio::time::Instant::now() + far / 2
}

/// The thread's result; a panic in it goes on here.
fn join<T>(thread: JoinHandle<T>) -> T {
    match thread.join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
