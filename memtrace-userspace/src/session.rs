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

mod keyframes;
mod output;
mod pipeline;
mod scan;
mod snapshots;
mod start;
mod stop;
mod tracer;

use std::ffi::OsString;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::mpsc;

pub use self::scan::{ScanError, ScanOptions};
pub use self::snapshots::SnapshotFiles;

use self::output::Output;
use self::pipeline::{Aside, count};
use self::scan::{Desk, Scans};
use self::snapshots::Snapshots;
use self::start::start;
use self::stop::{Signals, Stop, attend};
use self::tracer::trace;
use crate::batches::Sender;
use crate::control::{Control, Requests};
use crate::live::allocators::Watch;
use crate::live::allocators::spec::ProbeSpec;
use crate::live::allocators::survey::Verdict;
use crate::live::allocators::wanted::WantedError;
use crate::live::loader::Program;
use crate::live::privilege::{self, NotPrivileged};
use crate::live::probes::LinkKind;
use crate::live::selection::Selection;
use crate::live::table_cache::TableCache;
use crate::live::tracer::{Children, NewCode, TracerError};
use crate::lost::LostBlocks;
use crate::operations::Finder;
use crate::pipeline::snapshot::{Glance, Snapshot};
use crate::pipeline::{Limits, Pipeline};
use crate::record::{Pid, Record};
use crate::trace::WriteError;

/// Batches that may wait for the writer or the pipeline: about 15 MB of records.
const WAITING_BATCHES: usize = 16;

/// What to trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Running processes.
    Attach(Vec<Pid>),
    /// A command, from its first instruction, and its children.
    Launch(Vec<OsString>),
}

/// What happens when a process cannot be attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The session does not begin: somebody has asked for this one.
    End,
    /// It is left out, unless none is left.
    Skip,
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
    /// What is told while the session runs, besides that it has started.
    pub updates: Updates,
    /// Heap snapshots to write meanwhile.
    pub snapshot_files: Option<SnapshotFiles>,
    /// Size of the event ring in bytes; made a power of two.
    pub ring_bytes: u64,
    /// The most memory for unwind tables, in bytes. It is taken as it is needed, by 4 MiB.
    pub unwind_bytes: u64,
    /// Where the unwind tables of large files are kept; `None` to compile them each time.
    pub table_cache: Option<PathBuf>,
    /// How long an event waits for room in the ring before it is dropped; 0 to drop at once.
    pub back_pressure: Duration,
    /// Whether to trace the children of processes that are attached to.
    pub children: Children,
    /// What happens when a process that is attached to maps code.
    pub new_code: NewCode,
    /// What happens when one of the processes cannot be attached to.
    pub refused: Refused,
    /// Attach to processes that match later, too.
    pub follow: Option<Selection>,
    /// Finds operations in the code that is traced.
    pub operations: Option<Finder>,
    /// How much the pipeline keeps, and what its detectors look for.
    pub limits: Limits,
    /// What the probes do.
    pub program: Program,
    /// How they are attached; without it, as suits the kernel.
    pub links: Option<LinkKind>,
    /// Whether to look for lost blocks of each process: before its probes go, or before a process of a
    /// command ends.
    pub scan: Option<ScanOptions>,
    /// Further functions to probe.
    pub probes: Vec<ProbeSpec>,
    /// How functions that give memory are watched.
    pub watch: Watch,
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
            updates: Updates::Glances(Duration::from_millis(500)),
            snapshot_files: None,
            ring_bytes: 8 << 20,
            unwind_bytes: 256 << 20,
            table_cache: TableCache::usual_directory(),
            back_pressure: Duration::from_millis(500),
            children,
            new_code: NewCode::CatchUp,
            refused: Refused::End,
            follow: None,
            operations: None,
            limits: Limits::default(),
            program: Program::Trace,
            links: None,
            scan: None,
            probes: Vec::new(),
            watch: Watch::Inside,
        }
    }
}

/// What a session tells of its state, and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Updates {
    /// A few numbers.
    Glances(Duration),
    /// All there is, which takes the longer the more call paths and blocks there are.
    Snapshots(Duration),
}

/// What a session tells while it runs.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// From now on every call of these processes is seen. Comes once, before anything else.
    Started(&'a [Started]),
    /// The state at a moment, in a few numbers.
    Glance(&'a Glance),
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
    /// A running one that cannot be traced, or not any more.
    Skipped {
        /// Its id.
        pid: Pid,
        /// Why.
        reason: String,
    },
    /// The command. What it will load, and so its probes, are not known yet.
    Launched {
        /// Its id.
        pid: Pid,
        /// Its name as it was given.
        command: OsString,
    },
}

impl Started {
    /// The process, if it is traced.
    fn pid(&self) -> Option<Pid> {
        match self {
            Started::Attached { pid, .. } | Started::Launched { pid, .. } => Some(*pid),
            Started::Skipped { .. } => None,
        }
    }
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
    /// The blocks that nothing points to; `None` if the process that was named or started was not
    /// looked at.
    pub lost: Option<LostBlocks>,
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
    /// A function that the user has named is not there.
    #[error(transparent)]
    NoSuchProbe(#[from] WantedError),
    /// The command cannot be run.
    #[error("cannot run {command}; check its name and that it may be executed")]
    Command {
        /// The command's name.
        command: String,
        /// Why.
        source: std::io::Error,
    },
    /// Lost blocks cannot be looked for.
    #[error(transparent)]
    Scan(#[from] ScanError),
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
    /// A thread cannot be started.
    #[error(
        "cannot start a thread; raise the limit of processes (ulimit -u, the container's pids)"
    )]
    Thread(#[source] std::io::Error),
}

/// Has a pipeline apply a batch of records, and may look at each.
pub type Apply = Box<dyn FnMut(&mut Pipeline, &[Record]) + Send>;

/// Traces until the end, the duration is over, Ctrl-C, or `on_progress` breaks off.
pub fn run(
    options: RecordOptions,
    on_progress: impl FnMut(Progress<'_>) -> ControlFlow<()>,
) -> Result<SessionSummary, SessionError> {
    run_watched(options, Box::new(Pipeline::apply_all), on_progress)
}

/// The same, with somebody who sees what each record changes; it is gone at the end.
///
/// What `apply` takes for a record, the target may have to wait for.
pub fn run_watched(
    options: RecordOptions,
    mut apply: Apply,
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
    let mut sender = Sender::new(WAITING_BATCHES);
    let (mut maker, mut writer) = (None, None);
    if let Some(output) = output {
        let batches = sender.subscribe();
        let (make, take) = keyframes::channel();
        maker = Some(make);
        writer = Some(spawn("writer", move || output.write(&batches, &take))?);
    }
    let (control, requests) = {
        let _context = runtime.enter();
        Control::listen(started.iter().filter_map(Started::pid))
    };
    let Requests { marks, snapshots: snapshot_requests } = requests;
    let (update_sender, mut update_receiver) = mpsc::channel(1);
    let (updates, limits) = (options.updates, options.limits.clone());
    let batches = sender.subscribe();
    let (questions, desk) = Desk::new();
    let watched = options.scan.and(started.iter().find_map(Started::pid));
    let scans = watched.zip(options.scan).map(|(pid, how)| Scans::new(pid, how, questions));
    let mut aside = Aside {
        keyframes: maker,
        requests: snapshot_requests,
        snapshots: options.snapshot_files.clone().map(Snapshots::new),
        desk,
    };
    let pipeline = spawn("pipeline", move || {
        let mut pipeline = Pipeline::new(limits);
        if watched.is_some() {
            pipeline.remember_freed();
        }
        count(&batches, pipeline, &mut apply, updates, &update_sender, &mut aside)
    })?;
    let tracer = {
        let stop = Arc::clone(&stop);
        let (follow, operations) = (options.follow.clone(), options.operations.clone());
        spawn("tracer", move || trace(tracer, follow, operations, &stop, sender, &marks, scans))?
    };

    runtime.block_on(async {
        let attend = attend(&options, &stop, &mut signals, &mut update_receiver, &mut on_progress);
        tokio::select! {
            () = attend => {}
            () = control.serve() => {}
        }
    });
    drop(update_receiver);
    drop(control);

    let traced = join(tracer);
    let snapshot = join(pipeline);
    let trace_bytes = writer.map(join).transpose()?;
    let (verdict, lost) = traced?;
    let exit_status = launched.and_then(|launched| launched.status(snapshot.end));
    let lost = lost.transpose()?;
    Ok(SessionSummary { snapshot, trace_bytes, verdict, exit_status, lost })
}

/// Starts a thread; its name is what `top -H` shows.
fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, SessionError> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work).map_err(SessionError::Thread)
}

/// The thread's result; a panic in it goes on here.
fn join<T>(thread: JoinHandle<T>) -> T {
    match thread.join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
