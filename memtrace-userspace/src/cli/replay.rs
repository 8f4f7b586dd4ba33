//! A trace file, replayed into a pipeline.

use std::fs::File;
use std::io::BufReader;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use memtrace_userspace::pipeline::snapshot::Snapshot;
use memtrace_userspace::pipeline::{Limits, Pipeline};
use memtrace_userspace::record::Time;
use memtrace_userspace::trace::Reader;
use memtrace_userspace::views::counters::TRACE_TRUNCATED;
use memtrace_userspace::views::printable::printable_str;

use super::tell;

/// How many records are replayed between two looks at the clock.
const RECORDS_PER_LOOK: u64 = 1 << 14;

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
/// A trace that stops early gives what it has, a warning on stderr and a counter.
pub(crate) fn replay(
    path: &Path,
    pace: Pace,
    mut on_snapshot: impl FnMut(Arc<Snapshot>) -> ControlFlow<()>,
) -> Result<Arc<Snapshot>> {
    let what = || format!("cannot read {}", path.display());
    let file = File::open(path).with_context(what)?;
    let metadata = file.metadata().with_context(what)?;
    if metadata.is_dir() {
        bail!(
            "{} is a directory; name a trace that `memtrace record -o FILE` wrote",
            path.display()
        );
    }
    let progress = match pace {
        Pace::AtEnd => progress_bar(metadata.len()),
        Pace::TraceTime(_) | Pace::WallTime(_) => ProgressBar::hidden(),
    };
    let mut reader = Reader::new(BufReader::with_capacity(1 << 16, file)).with_context(what)?;
    let mut pipeline = Pipeline::new(Limits::default());
    let mut records = 0u64;
    let mut due = Due::new(pace);
    while let Some(record) = reader.next().with_context(what)? {
        pipeline.apply(&record);
        records += 1;
        if records.is_multiple_of(RECORDS_PER_LOOK) {
            progress.set_position(reader.bytes_read());
        }
        if due.after(records, &pipeline) && on_snapshot(pipeline.snapshot()).is_break() {
            return Ok(pipeline.snapshot());
        }
    }
    progress.finish_and_clear();
    let mut snapshot = pipeline.snapshot();
    if let Some(truncation) = reader.truncation() {
        let path = path.display().to_string();
        tell(&format!(
            "warning: {}: {truncation}; what came after is not in the report",
            printable_str(&path)
        ));
        let counters = &mut Arc::make_mut(&mut snapshot).counters;
        counters.push((TRACE_TRUNCATED.to_owned(), 1));
        counters.sort();
    }
    Ok(snapshot)
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

    fn after(&mut self, records: u64, pipeline: &Pipeline) -> bool {
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
                let due = records.is_multiple_of(RECORDS_PER_LOOK) && last.elapsed() >= *step;
                if due {
                    *last = Instant::now();
                }
                due
            }
        }
    }
}
