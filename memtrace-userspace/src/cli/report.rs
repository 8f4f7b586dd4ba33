//! `memtrace report`: a trace, analysed.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use memtrace_userspace::pipeline::snapshot::Snapshot;
use memtrace_userspace::record::Pid;
use memtrace_userspace::views::export::{json, text};
use memtrace_userspace::views::frames::Names;
use memtrace_userspace::views::ranking::{SortKey, rank};
use memtrace_userspace::views::style::Style;

use super::output::Output;
use super::part::PartArguments;
use super::replay::{Pace, replay, replay_part};
use super::source::{Sort, SymbolArguments};
use super::target::pid;
use super::{Outcome, terminal};

const EXAMPLES: &str = "\
Examples:
  memtrace report api.mtrace                              to read
  memtrace report api.mtrace --sort peak --top 50         what made the peak, more of it
  memtrace report api.mtrace --from 10s --to 25s          what happened then
  memtrace report api.mtrace --at peak                    what was held then
  memtrace report api.mtrace -p 4711                      one process of several
  memtrace report api.mtrace --format json -o api.json    for other programs
  memtrace report api.mtrace --debug-dir ./symbols        recorded on another machine";

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
    /// What the report is for
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Write to this file instead of stdout; it appears when the report is complete
    #[arg(short, long, value_name = "OUT")]
    output: Option<PathBuf>,
    /// The most functions and stacks to list [text: 20 and 10, json: all]
    #[arg(long, value_name = "N")]
    top: Option<usize>,
    /// What to put first [default: live; text: a table each by peak and by live]
    #[arg(long, value_enum)]
    sort: Option<Sort>,
    #[command(flatten)]
    symbols: SymbolArguments,
}

/// What a report is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// To read
    Text,
    /// For other programs; docs/report.schema.json describes it
    Json,
}

/// Replays the trace and writes the report.
pub(crate) fn run(arguments: Arguments) -> Result<Outcome> {
    let Arguments { file, part, pids, format, output, top, sort, symbols } = arguments;
    let mut out = Output::open(output.as_deref(), &file)?;
    let snapshot = match part.part()? {
        Some(part) => replay_part(&file, &pids, &part)?,
        None => replay(&file, &pids, Pace::AtEnd, |_| ControlFlow::Continue(()))?,
    };
    let sort = sort.map(SortKey::from);
    let mut ranking = rank(&snapshot, &mut symbols.names(), sort.unwrap_or(SortKey::Live));
    let written = match format {
        Format::Json => json::write(&mut out, &snapshot, &ranking, top),
        Format::Text => {
            let options = text::Options {
                width: terminal::width(),
                style: if output.is_none() { terminal::style() } else { Style::Plain },
                sort,
                top,
            };
            out.write_all(text::render(&snapshot, &mut ranking, &options).as_bytes())
        }
    };
    written.with_context(|| match &output {
        Some(path) => {
            format!("cannot write {}; free some space or choose another -o", path.display())
        }
        None => "cannot write to stdout".to_owned(),
    })?;
    out.commit()?;
    Ok(Outcome::Fine)
}

/// Writes the JSON report of a session, with everything in it.
pub(crate) fn write_json(mut out: Output, snapshot: &Snapshot, names: &mut Names) -> Result<()> {
    let ranking = rank(snapshot, names, SortKey::Live);
    json::write(&mut out, snapshot, &ranking, None)
        .context("cannot write the report; free some space or choose another --report")?;
    out.commit()
}
