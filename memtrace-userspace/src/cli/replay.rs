//! A trace file, replayed into a pipeline.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use memtrace_userspace::batches::{ReceiverGone, Sender};
use memtrace_userspace::operations::Finder;
use memtrace_userspace::part::{Excerpt, Part, PartError, Place, Watch, read_held, read_part};
use memtrace_userspace::pipeline::snapshot::Snapshot;
use memtrace_userspace::pipeline::{Limits, Pipeline, Posting};
use memtrace_userspace::record::{Pid, Record, Time};
use memtrace_userspace::trace::{Reader, TraceError, Truncation};
use memtrace_userspace::views::counters::TRACE_TRUNCATED;
use memtrace_userspace::views::printable::printable_str;

use super::tell;

/// Records that are decoded together: few enough to stay in a processor's cache until they are
/// applied.
const DECODED_TOGETHER: usize = 4096;

/// Batches that may be decoded ahead. They hide what decoding takes, and few are enough; a file
/// made to do harm can make each of them large.
const WAITING_BATCHES: usize = 2;

/// How many processes an error suggests.
const SUGGESTIONS: usize = 10;

/// When a replay gives a snapshot before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Never.
    AtEnd,
    /// Whenever so much time of the trace has gone by.
    TraceTime(Duration),
    /// Whenever so much time has gone by for the user, who waits.
    WallTime(Duration),
}

/// Replays a trace and returns its last snapshot, or the one at which `on_snapshot` broke off.
///
/// `only` names the processes that count; none for all. `operations` finds those that the trace does
/// not have.
///
/// A trace that stops early gives what it has, a warning on stderr and a counter.
pub(crate) fn replay(
    path: &Path,
    only: &[Pid],
    limits: Limits,
    operations: Option<Finder>,
    pace: Pace,
    mut on_snapshot: impl FnMut(Arc<Snapshot>) -> ControlFlow<()>,
) -> Result<Arc<Snapshot>> {
    let mut due = Due::new(pace);
    run(path, only, limits, operations, pace, |pipeline, batch| {
        for records in batch.chunks(due.records_per_look()) {
            pipeline.apply_all(records);
            if due.now(pipeline) && on_snapshot(pipeline.snapshot()).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    })
}

/// Replays a trace for somebody who sees every record, what it changed, and the state after it.
pub(crate) fn replay_events(
    path: &Path,
    only: &[Pid],
    limits: Limits,
    operations: Option<Finder>,
    mut on_event: impl FnMut(&Record, &[Posting], &Pipeline) -> Result<()>,
) -> Result<Arc<Snapshot>> {
    let mut postings = Vec::new();
    run(path, only, limits, operations, Pace::AtEnd, |pipeline, batch| {
        for record in batch {
            pipeline.apply_with(record, &mut postings);
            on_event(record, &postings, pipeline)?;
        }
        Ok(ControlFlow::Continue(()))
    })
}

/// Decodes a trace in one thread and has `step` apply each batch in this one.
fn run(
    path: &Path,
    only: &[Pid],
    limits: Limits,
    operations: Option<Finder>,
    pace: Pace,
    mut step: impl FnMut(&mut Pipeline, &[Record]) -> Result<ControlFlow<()>>,
) -> Result<Arc<Snapshot>> {
    let what = || format!("cannot read {}", path.display());
    let file = open(path)?;
    let progress = match pace {
        Pace::AtEnd => progress_bar(file.metadata().with_context(what)?.len()),
        Pace::TraceTime(_) | Pace::WallTime(_) => ProgressBar::hidden(),
    };
    let reader = Reader::new(BufReader::with_capacity(1 << 16, file)).with_context(what)?;
    let mut pipeline = Pipeline::of(limits, only);
    let mut sender = Sender::new(WAITING_BATCHES);
    let batches = sender.subscribe();
    let truncation = std::thread::scope(|scope| {
        let progress = &progress;
        let reader = scope.spawn(move || decode(reader, operations, sender, progress));
        for batch in batches {
            if step(&mut pipeline, &batch)?.is_break() {
                return Ok(None);
            }
        }
        let read = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        read.with_context(what)
    })?;
    progress.finish_and_clear();
    let snapshot = pipeline.snapshot();
    require_processes(path, only, &snapshot, &pipeline.pids())?;
    Ok(with_truncation(snapshot, truncation, path))
}

/// Fails if a process that is asked for is not in the trace; `pids` are those that are.
fn require_processes(path: &Path, only: &[Pid], snapshot: &Snapshot, pids: &[Pid]) -> Result<()> {
    match only.iter().find(|pid| !snapshot.processes.iter().any(|p| p.pid == **pid)) {
        Some(missing) => bail!("{}", not_in_trace(path, *missing, pids)),
        None => Ok(()),
    }
}

/// Reads a part of a trace; `watch` sees every record that counts.
pub(crate) fn replay_part(
    path: &Path,
    only: &[Pid],
    limits: Limits,
    mut operations: Option<Finder>,
    part: &Part,
    watch: Option<&mut Watch>,
) -> Result<Arc<Snapshot>> {
    let Excerpt { snapshot, truncation, pids } = read_at_once(path, |file, progress| {
        read_part(file, limits, only, part, operations.as_mut(), watch, progress)
    })?;
    require_processes(path, only, &snapshot, &pids)?;
    Ok(with_truncation(snapshot, truncation, path))
}

/// Reads what was held at a place of a trace: a heap snapshot.
pub(crate) fn snapshot_of(path: &Path, at: &Place) -> Result<Vec<u8>> {
    read_at_once(path, |file, progress| read_held(file, at, progress))
}

/// Lets `read` look for what it wants in a file, with a progress bar.
fn read_at_once<T>(
    path: &Path,
    read: impl FnOnce(BufReader<File>, &mut dyn FnMut(u64)) -> Result<T, PartError>,
) -> Result<T> {
    let what = || format!("cannot read {}", path.display());
    let file = open(path)?;
    let progress = progress_bar(file.metadata().with_context(what)?.len());
    let mut file = BufReader::with_capacity(1 << 16, file);
    if file.seek(SeekFrom::Start(0)).is_err() {
        bail!("{} is a pipe; save the trace to a file to look at a part of it", path.display());
    }
    let found = read(file, &mut |position| progress.set_position(position));
    progress.finish_and_clear();
    match found {
        Err(error @ PartError::Trace(_)) => Err(error).with_context(what),
        other => Ok(other?),
    }
}

/// Opens a trace.
fn open(path: &Path) -> Result<File> {
    let file = File::open(path).with_context(|| {
        format!("cannot read {}; name a trace that `memtrace record -o FILE` wrote", path.display())
    })?;
    if file.metadata().with_context(|| format!("cannot read {}", path.display()))?.is_dir() {
        bail!(
            "{} is a directory; name a trace that `memtrace record -o FILE` wrote",
            path.display()
        );
    }
    Ok(file)
}

/// Tells of a trace that stops early, on stderr and as a counter.
fn with_truncation(
    mut snapshot: Arc<Snapshot>,
    truncation: Option<Truncation>,
    path: &Path,
) -> Arc<Snapshot> {
    if let Some(truncation) = truncation {
        let path = path.display().to_string();
        tell(&format!(
            "warning: {}: {truncation}; what came after is not in the report",
            printable_str(&path)
        ));
        let counters = &mut Arc::make_mut(&mut snapshot).counters;
        counters.push((TRACE_TRUNCATED.to_owned(), 1));
        counters.sort();
    }
    snapshot
}

/// What to write instead of an id that no process of the trace has.
fn not_in_trace(path: &Path, Pid(missing): Pid, pids: &[Pid]) -> String {
    let shown: Vec<String> = pids.iter().take(SUGGESTIONS).map(|pid| pid.0.to_string()).collect();
    let more = match pids.len().saturating_sub(shown.len()) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let has = match shown.is_empty() {
        true => "none at all".to_owned(),
        false => shown.join(", "),
    };
    format!("no process of {} has the id {missing}; it has {has}{more}", path.display())
}

/// Sends the records of the file, until its end or until nobody wants more.
fn decode(
    mut reader: Reader<impl Read>,
    mut operations: Option<Finder>,
    mut batches: Sender,
    progress: &ProgressBar,
) -> Result<Option<Truncation>, TraceError> {
    let mut records = Vec::new();
    while reader.read(&mut records, DECODED_TOGETHER)? > 0 {
        if let Some(operations) = &mut operations {
            operations.insert(&mut records);
        }
        if let Err(ReceiverGone) = batches.send(&mut records) {
            return Ok(None);
        }
        progress.set_position(reader.bytes_read());
    }
    Ok(reader.truncation())
}

/// A progress bar on stderr; nothing where that is no terminal.
fn progress_bar(bytes: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("reading {bar:40} {bytes} of {total_bytes}, {eta}")
        .expect("the template is well-formed");
    ProgressBar::new(bytes).with_style(style)
}

/// When the next snapshot is due.
enum Due {
    Never,
    TraceTime { step: Duration, next: Duration },
    WallTime { step: Duration, last: Instant },
}

impl Due {
    fn new(pace: Pace) -> Due {
        match pace {
            Pace::AtEnd => Due::Never,
            Pace::TraceTime(step) => Due::TraceTime { step, next: step },
            Pace::WallTime(step) => Due::WallTime { step, last: Instant::now() },
        }
    }

    /// After how many records to look whether a snapshot is due.
    fn records_per_look(&self) -> usize {
        match self {
            Due::Never | Due::WallTime { .. } => DECODED_TOGETHER,
            // A snapshot shows what happened up to its time, exactly.
            Due::TraceTime { .. } => 1,
        }
    }

    /// Whether a snapshot is due now.
    fn now(&mut self, pipeline: &Pipeline) -> bool {
        match self {
            Due::Never => false,
            Due::TraceTime { step, next } => {
                let Time(now_ns) = pipeline.now();
                let now = Duration::from_nanos(now_ns);
                let due = now >= *next;
                if due {
                    // Steps in which nothing happened give no snapshot each.
                    *next = now.saturating_add(*step);
                }
                due
            }
            Due::WallTime { step, last } => {
                let due = last.elapsed() >= *step;
                if due {
                    *last = Instant::now();
                }
                due
            }
        }
    }
}
