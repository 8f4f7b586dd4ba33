//! `memtrace top`: the top consumers, live.
//!
//! ```text
//!   source thread ──snapshots──> ranking thread ──ranked──> this thread: screen and keys
//!   source thread ──snapshots──> this thread: lines                      without a terminal
//! ```

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use memtrace_userspace::pipeline::snapshot::Snapshot;
use memtrace_userspace::session::{RecordOptions, Updates};
use memtrace_userspace::symbols::Symbolizer;
use memtrace_userspace::views::frames::Names;
use memtrace_userspace::views::plain::write_block;
use memtrace_userspace::views::ranking::{Ranking, SortKey, rank, rank_processes};
use memtrace_userspace::views::suppressions::Suppressions;
use memtrace_userspace::views::tui::{self, App, AtEnd, Ranked};

use super::detectors::DetectorArguments;
use super::output::cannot_write;
use super::record::summary_line;
use super::replay::Pace;
use super::source::{self, Sort, Source, SymbolArguments, TraceArguments};
use super::target::{TargetArguments, one_target};
use super::{Outcome, log, quantity, tell, terminal};

const EXAMPLES: &str = "\
Examples:
  sudo memtrace top -p 4711                               live; q leaves and detaches
  sudo memtrace top --comm nginx                          all processes of a name
  sudo memtrace top -p 4711 --duration 30s -o api.mtrace  and write a trace at the same time
  sudo memtrace top -p 4711 --interval 5s | tee api.log   lines instead of a screen
  memtrace top api.mtrace                                 browse a trace";

/// Two lines that fit into 80 columns.
const USAGE: &str = "\
memtrace top [OPTIONS] FILE
       memtrace top [OPTIONS] -p PID|--comm NAME|--cgroup PATH|--container ID";

/// Time between two snapshots unless told otherwise.
const INTERVAL: Duration = Duration::from_secs(1);
/// How often a screen shows how far a trace has been read.
const READING_INTERVAL: Duration = Duration::from_millis(250);
/// How many functions a block of lines shows unless told otherwise.
const BLOCK_FUNCTIONS: usize = 10;
/// The most call paths of single processes together that a screen tells apart.
const PROCESS_SITES: usize = 1 << 16;

/// Show the top consumers of a process, or of a trace.
#[derive(Debug, Args)]
#[command(before_help = EXAMPLES)]
#[command(override_usage = USAGE)]
#[command(group = one_target().arg("file"))]
pub(crate) struct Arguments {
    /// A trace, as `memtrace record` wrote it
    #[arg(conflicts_with_all = ["processes", "duration", "ring_size", "back_pressure", "children", "output"])]
    file: Option<PathBuf>,
    #[command(flatten)]
    target: TargetArguments,
    /// Write a trace as well
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    trace: TraceArguments,
    /// Time between two looks [default: 1s; of a trace without a terminal: only its end]
    #[arg(long, value_name = "TIME", value_parser = quantity::positive_duration)]
    interval: Option<Duration>,
    /// What to put first
    #[arg(long, value_enum, default_value_t = Sort::Live)]
    sort: Sort,
    /// The most functions in a block of lines
    #[arg(long, value_name = "N", default_value_t = BLOCK_FUNCTIONS)]
    top: usize,
    /// Lines instead of a screen, even on a terminal
    #[arg(long)]
    plain: bool,
    #[command(flatten)]
    symbols: SymbolArguments,
    #[command(flatten)]
    detectors: DetectorArguments,
}

/// Shows snapshots until the source ends or the user leaves.
pub(crate) fn run(arguments: Arguments) -> Result<Outcome> {
    let Arguments { file, target, output, trace, interval, sort, top, plain, symbols, detectors } =
        arguments;
    let suppressions = detectors.suppressions()?;
    let screen = terminal::has_screen() && !plain;
    let mut limits = detectors.limits();
    if screen {
        limits.process_sites = PROCESS_SITES;
    }
    let at_end = if file.is_some() { AtEnd::Stay } else { AtEnd::LeaveIfAsked };
    let is_live = file.is_none();
    let mut pids = Vec::new();
    let source = match file {
        Some(file) => Source::File(
            file,
            Box::new(limits),
            // A line would spoil the screen.
            detectors.operations(symbols.places_announced(|_| {}))?,
            match (interval, screen) {
                (_, true) => Pace::WallTime(READING_INTERVAL),
                (Some(interval), false) => Pace::TraceTime(interval),
                (None, false) => Pace::AtEnd,
            },
        ),
        None => {
            let target = target.resolve()?;
            pids.clone_from(&target.pids);
            Source::Live(Box::new(RecordOptions {
                updates: Updates::Snapshots(interval.unwrap_or(INTERVAL)),
                limits,
                operations: detectors.operations_of_running(&symbols)?,
                ..trace.attach(target, output.clone())
            }))
        }
    };
    let names = if is_live {
        symbols.names_of_running(&pids)
    } else {
        // A line would spoil the screen.
        Names::new(Symbolizer::new(symbols.places_announced(|_| {})))
    };
    let names = Named { names, suppressions };
    let key = SortKey::from(sort);
    let last = thread::scope(|scope| {
        let (sender, snapshots) = sync_channel(1);
        let source = scope.spawn(move || source::run(source, &sender));
        let shown = if screen {
            let (sender, ranked) = sync_channel(1);
            let _quiet = log::hold();
            scope.spawn(move || rank_newest(&snapshots, names, key, &sender));
            tui::run(&ranked, App::new(key), terminal::palette(), at_end)
                .context("cannot draw on the terminal; try --plain")
        } else {
            show_blocks(&snapshots, names, key, top)
        };
        // Both receivers are gone by now, which ends the source.
        let ended = source.join().expect("the source does not panic");
        shown.and_then(|last| ended.map(|()| last))
    })?;
    if let Some(last) = last {
        if let Some(output) = output {
            tell(&summary_line(&last, &output));
        }
        detectors.require_operations(&last.operations)?;
    }
    Ok(Outcome::Fine)
}

/// Where names come from, and which leaks are known.
struct Named {
    names: Names,
    suppressions: Suppressions,
}

impl Named {
    fn rank(&mut self, snapshot: &Snapshot, key: SortKey) -> Ranking {
        let mut ranking = rank(snapshot, &mut self.names, key);
        ranking.findings.suppress(&self.suppressions);
        ranking
    }
}

/// Finds the names of the newest snapshot; older ones that wait are passed over.
fn rank_newest(
    snapshots: &Receiver<Arc<Snapshot>>,
    mut names: Named,
    key: SortKey,
    ranked: &SyncSender<Ranked>,
) {
    while let Ok(snapshot) = snapshots.recv() {
        let snapshot = snapshots.try_iter().last().unwrap_or(snapshot);
        let ranking = names.rank(&snapshot, key);
        let processes = rank_processes(&snapshot, &mut names.names, key);
        if ranked.send(Ranked { snapshot, ranking, processes }).is_err() {
            return;
        }
    }
}

fn show_blocks(
    snapshots: &Receiver<Arc<Snapshot>>,
    mut names: Named,
    key: SortKey,
    top: usize,
) -> Result<Option<Arc<Snapshot>>> {
    let mut out = io::stdout().lock();
    let mut last: Option<Arc<Snapshot>> = None;
    for snapshot in snapshots {
        // The end of a session may be what was shown already.
        let moment = |snapshot: &Snapshot| (snapshot.now, snapshot.events);
        if last.as_ref().is_some_and(|last| moment(last) == moment(&snapshot)) {
            continue;
        }
        let ranking = names.rank(&snapshot, key);
        let mut block = Vec::new();
        write_block(&mut block, &snapshot, &ranking, key, top, terminal::width())?;
        out.write_all(&block).and_then(|()| out.flush()).with_context(|| cannot_write(None))?;
        last = Some(snapshot);
    }
    Ok(last)
}
