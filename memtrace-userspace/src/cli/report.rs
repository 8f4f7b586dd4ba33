//! `memtrace report`: a trace, analysed.

mod events;
mod format;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use memtrace_userspace::part::Watch;
use memtrace_userspace::pipeline::snapshot::Snapshot;
use memtrace_userspace::pipeline::{Pipeline, Posting};
use memtrace_userspace::record::{Pid, Record, Tid};
use memtrace_userspace::symbols::{self, Symbolizer};
use memtrace_userspace::views::activity::{Activity, Level};
use memtrace_userspace::views::by_thread::ByThread;
use memtrace_userspace::views::export::weights::Weight;
use memtrace_userspace::views::export::{
    csv, firefox, flamegraph, folded, json, perfetto, pprof, speedscope, text,
};
use memtrace_userspace::views::frames::Names;
use memtrace_userspace::views::ranking::{
    self, ProcessRanking, Ranking, SortKey, SymbolizedUsage, rank, rank_processes,
};
use memtrace_userspace::views::style::Style;
use memtrace_userspace::views::suppressions::Suppressions;
use memtrace_userspace::views::timelines::{self, Timelines};

use self::format::Format;
use super::detectors::DetectorArguments;
use super::output::{Output, cannot_write};
use super::part::PartArguments;
use super::replay::{Pace, replay, replay_events, replay_part};
use super::source::{Sort, SymbolArguments};
use super::target::pid;
use super::{Outcome, terminal};

const EXAMPLES: &str = "\
Examples:
  memtrace report api.mtrace                              to read
  memtrace report api.mtrace --sort peak --top 50         what made the peak, more of it
  memtrace report api.mtrace --from 10s --to 25s          what happened then
  memtrace report api.mtrace --at peak                    what was held then
  memtrace report api.mtrace --timeline                   which functions and threads, when
  memtrace report api.mtrace -p 4711                      one process of several
  memtrace report api.mtrace --histograms                 sizes and lifetimes by call path
  memtrace report api.mtrace --format json -o api.json    for other programs
  memtrace report api.mtrace -o api.html                  to explore in a browser, and to send
  memtrace report api.mtrace -o api.svg --metric peak     a flame graph of what made the peak
  memtrace report api.mtrace -o api.pb.gz                 for go tool pprof; see docs/exports.md
  memtrace report api.mtrace --operation bulk=load_rows --spike bulk=20MB
  memtrace report api.mtrace --leak-threshold 10MB/h --suppressions known.txt
  memtrace report api.mtrace --debug-dir ./symbols        recorded on another machine";

/// Of how many call paths sizes and lifetimes are shown unless told otherwise.
const HISTOGRAMS: usize = 10;

/// Analyse a trace, on any machine, without root.
#[derive(Debug, Args)]
#[command(before_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The trace, as `memtrace record` wrote it
    file: PathBuf,
    #[command(flatten)]
    part: PartArguments,
    /// Count only this process of the trace; may be given again
    #[arg(short, long = "pid", value_name = "PID", value_parser = pid, value_delimiter = ',')]
    pids: Vec<Pid>,
    /// What the report is for [default: what the name of OUT ends in, else text]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Write to this file instead of stdout; it appears when the report is complete
    #[arg(short, long, value_name = "OUT")]
    output: Option<PathBuf>,
    /// Add what functions and threads held and allocated over time; text, json and csv
    #[arg(long)]
    timeline: bool,
    /// The most functions and stacks to list [text: 20 and 10, json: all]
    #[arg(long, value_name = "N")]
    top: Option<usize>,
    /// Show what sizes the busiest call paths allocate, and how long their blocks live
    #[arg(long)]
    histograms: bool,
    /// What to put first [default: live; text: a table each by peak and by live]
    #[arg(long, value_enum)]
    sort: Option<Sort>,
    /// What folded stacks, flame graphs and the like weigh [default: live]
    #[arg(long, value_enum)]
    metric: Option<Sort>,
    /// Which memory they, and pprof, are about: the two are never added up [default: heap]
    #[arg(long, value_enum)]
    memory: Option<Memory>,
    #[command(flatten)]
    symbols: SymbolArguments,
    #[command(flatten)]
    detectors: DetectorArguments,
}

/// The most functions, and the most threads, that have a timeline of their own.
const MOST_TIMELINES: usize = 1_000;

/// A kind of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Memory {
    /// Blocks of the allocator
    Heap,
    /// Mappings of the kernel, the allocator's own among them
    Mapped,
}

impl From<Memory> for ranking::Memory {
    fn from(memory: Memory) -> ranking::Memory {
        match memory {
            Memory::Heap => ranking::Memory::Heap,
            Memory::Mapped => ranking::Memory::Mapped,
        }
    }
}

/// The most call paths of single processes together that Perfetto is told apart: 100 MB.
const PROCESS_SITES: usize = 1 << 20;

/// The end of a session, and what is to be shown of it.
struct End {
    snapshot: Arc<Snapshot>,
    ranking: Ranking,
    /// For Perfetto.
    by_process: BTreeMap<Pid, ProcessRanking>,
    /// For Firefox.
    by_thread: BTreeMap<(Pid, Tid), Vec<SymbolizedUsage>>,
    sort: Option<SortKey>,
    top: Option<usize>,
    weight: Weight,
}

/// Replays the trace and writes the report.
pub(crate) fn run(mut arguments: Arguments) -> Result<Outcome> {
    let places = std::mem::take(&mut arguments.symbols).places();
    let mut names = Names::new(Symbolizer::new(places.clone()));
    let suppressions = arguments.detectors.suppressions()?;
    let arguments = &arguments;
    let output = arguments.output.as_deref();
    let format = arguments.format.or_else(|| Format::of_path(output?)).unwrap_or(Format::Text);
    arguments.refuse_what_means_nothing(format)?;
    let mut out = Output::open(output, &arguments.file)?;
    if format.is_binary() && out.is_terminal() {
        bail!("{} is binary; name a file with -o, or pipe it on", format.name());
    }
    let trace = arguments.file.as_path();
    let mut end = |write: &dyn Fn(&mut Output, &mut End) -> io::Result<()>| {
        let mut end = End::replay(arguments, format, &places, &mut names, &suppressions)?;
        write(&mut out, &mut end).with_context(|| cannot_write(output))
    };
    match format {
        Format::Text => end(&|out, end| {
            let options = text::Options {
                width: terminal::width(),
                style: if output.is_none() { terminal::style() } else { Style::Plain },
                sort: end.sort,
                top: end.top,
                histograms: arguments.histograms.then(|| end.top.unwrap_or(HISTOGRAMS)),
            };
            out.write_all(text::render(&end.snapshot, &mut end.ranking, &options).as_bytes())
        }),
        Format::Html => events::html(&mut out, arguments, places, &mut names, &suppressions),
        Format::Json => end(&|out, end| json::write(out, &end.snapshot, &end.ranking, end.top)),
        Format::Csv => end(&|out, end| match &end.ranking.timelines {
            Some(timelines) => csv::write_timelines(out, timelines),
            None => csv::write(out, &end.ranking, end.top),
        }),
        Format::Folded => end(&|out, end| folded::write(out, &end.ranking, end.weight)),
        Format::Svg => {
            end(&|out, end| flamegraph::write(out, &end.snapshot, &end.ranking, end.weight))
        }
        Format::Pprof => {
            end(&|out, end| pprof::write(out, &end.snapshot, &end.ranking, end.weight.memory))
        }
        Format::Speedscope => {
            end(&|out, end| speedscope::write(out, &end.snapshot, &end.ranking, end.weight))
        }
        Format::Firefox => end(&|out, end| {
            let End { snapshot, ranking, by_thread, weight, .. } = end;
            firefox::write(out, snapshot, ranking, by_thread, *weight)
        }),
        Format::Perfetto => end(&|out, end| perfetto::write(out, &end.snapshot, &end.by_process)),
        Format::Dhat => events::dhat(&mut out, trace, output, &mut names),
        Format::Heaptrack => events::heaptrack(&mut out, trace, output, &mut names),
        Format::Parquet => events::parquet(&mut out, trace, output, &mut names),
    }?;
    out.commit()?;
    Ok(Outcome::Fine)
}

impl End {
    /// Replays the trace; an error if a picture of it would be empty.
    fn replay(
        arguments: &Arguments,
        format: Format,
        places: &symbols::Options,
        names: &mut Names,
        suppressions: &Suppressions,
    ) -> Result<End> {
        let mut limits = arguments.detectors.limits();
        if format == Format::Perfetto {
            limits.process_sites = PROCESS_SITES;
        }
        let Arguments { file, pids, .. } = arguments;
        let part = arguments.part.part()?;
        let mut activity = arguments.timeline.then(|| Activity::new(Level::Held));
        // What threads held at the peak is not known.
        let mut by_thread = (format == Format::Firefox && arguments.metric != Some(Sort::Peak))
            .then(ByThread::default);
        let is_watched = activity.is_some() || by_thread.is_some();
        let mut watcher = |record: &Record, postings: &[Posting], pipeline: &Pipeline| {
            if let Some(activity) = &mut activity {
                activity.event(record, postings, pipeline);
            }
            if let Some(by_thread) = &mut by_thread {
                by_thread.event(record, postings, pipeline);
            }
        };
        let watch: Option<&mut Watch> = if is_watched { Some(&mut watcher) } else { None };
        let operations = arguments.detectors.operations(places.clone())?;
        let snapshot = match (part, watch) {
            (Some(part), watch) => replay_part(file, pids, limits, operations, &part, watch)?,
            (None, Some(watch)) => {
                replay_events(file, pids, limits, operations, |record, postings, pipeline| {
                    watch(record, postings, pipeline);
                    Ok(())
                })?
            }
            (None, None) => {
                replay(file, pids, limits, operations, Pace::AtEnd, |_| ControlFlow::Continue(()))?
            }
        };
        arguments.detectors.require_operations(&snapshot.operations)?;
        let sort = arguments.sort.map(SortKey::from);
        let mut ranking = rank(&snapshot, names, sort.unwrap_or(SortKey::Live));
        ranking.findings.suppress(suppressions);
        if let Some(activity) = activity {
            let shown = match (arguments.top, format) {
                (Some(top), _) => top,
                (None, Format::Text) => timelines::DEFAULT_SHOWN,
                (None, _) => MOST_TIMELINES,
            };
            ranking.timelines =
                Some(Timelines::new(&snapshot, activity, names, shown.min(MOST_TIMELINES)));
        }
        let weight = Weight {
            memory: arguments.memory.unwrap_or(Memory::Heap).into(),
            key: arguments.metric.unwrap_or(Sort::Live).into(),
        };
        if format.is_weighed() && weight.is_nothing(&ranking) {
            bail!("no stack has any {}; choose another --metric or --memory", weight.title());
        }
        let by_process = rank_processes(&snapshot, names, SortKey::Live);
        let by_thread = match by_thread {
            Some(by_thread) => by_thread.finish(&snapshot, names),
            None => BTreeMap::new(),
        };
        Ok(End { snapshot, ranking, by_process, by_thread, sort, top: arguments.top, weight })
    }
}

impl Arguments {
    /// An option that would change nothing is a misunderstanding.
    fn refuse_what_means_nothing(&self, format: Format) -> Result<()> {
        let given: [(&str, bool, bool); 6] = [
            ("--timeline", self.timeline, format.is_list()),
            ("--top", self.top.is_some(), format.is_list()),
            ("--histograms", self.histograms, format == Format::Text),
            ("--sort", self.sort.is_some(), format.is_list()),
            ("--metric", self.metric.is_some(), format.is_weighed()),
            ("--memory", self.memory.is_some(), format.is_weighed() || format == Format::Pprof),
        ];
        let name = format.name();
        if self.timeline && self.part.is_moment() {
            bail!("--timeline is about a time and --at about a moment; use --from and --to");
        }
        if self.part.is_given() && !format.shows_a_part() {
            bail!(
                "--format {name} is about the whole trace; leave out --from, --to and --at, or \
                 choose another format"
            );
        }
        if !self.pids.is_empty() && format.is_made_of_events() {
            bail!(
                "--format {name} is about all processes of the trace; leave out --pid, or choose \
                 another format"
            );
        }
        match given.iter().find(|(_, is_given, means)| *is_given && !means) {
            Some((option, ..)) => bail!("{option} means nothing for --format {name}; leave it out"),
            None => Ok(()),
        }
    }
}

/// Writes the JSON report of a session, with everything in it; timelines if there is an `activity`.
pub(crate) fn write_json(
    mut out: Output,
    snapshot: &Snapshot,
    activity: Option<Activity>,
    names: &mut Names,
    suppressions: &Suppressions,
) -> Result<()> {
    let mut ranking = rank(snapshot, names, SortKey::Live);
    ranking.findings.suppress(suppressions);
    ranking.timelines =
        activity.map(|activity| Timelines::new(snapshot, activity, names, MOST_TIMELINES));
    json::write(&mut out, snapshot, &ranking, None)
        .context("cannot write the report; free some space or name another --report")?;
    out.commit()
}
