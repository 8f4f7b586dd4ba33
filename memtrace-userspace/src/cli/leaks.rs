//! `memtrace leaks`: the blocks of a process that nothing points to any more, while it runs or at the
//! end of a command.

use std::ffi::OsString;
use std::io::Write;
use std::ops::ControlFlow;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use memtrace_userspace::live::heap_scan::Stop;
use memtrace_userspace::pipeline::findings::Level;
use memtrace_userspace::record::Pid;
use memtrace_userspace::session::{RecordOptions, ScanOptions, SessionSummary, Target};
use memtrace_userspace::views::export::json::lost as json;
use memtrace_userspace::views::export::lost as text;
use memtrace_userspace::views::findings::{Findings, NamedVerdict};
use memtrace_userspace::views::lost::rank;
use memtrace_userspace::views::style::Style;
use memtrace_userspace::views::suppressions::Suppressions;

use super::detectors::read_suppressions;
use super::output::{Output, cannot_write};
use super::progress::{self, Line};
use super::source::{SymbolArguments, TraceArguments};
use super::target::pid;
use super::{Outcome, quantity, tell, terminal};

const EXAMPLES: &str = "\
Examples:
  sudo memtrace leaks -p 4711                             watch until Ctrl-C, then look
  sudo memtrace leaks -p 4711 --duration 5m               watch for five minutes, then look
  sudo memtrace leaks -p 4711 --duration 5m --definite    only what is lost, not what grows
  sudo memtrace leaks -p 4711 --duration 5m --no-stop     without stopping it for a moment
  sudo memtrace leaks -p 4711 --duration 1m --format json -o lost.json
  sudo memtrace leaks --suppressions known.txt -- ./test  a command, and each of its children,
                                                          looked at when it exits";

/// Find memory of a process that nothing points to any more.
///
/// Watches the process allocate, then stops its threads for a moment, reads its registers and
/// memory, and reports the blocks that no pointer leads to, by allocation stack, and what grows.
/// A command is looked at when it exits, and each of its children when that does; it goes on until
/// all have ended. Blocks from before the attach cannot be judged, nor those that `fork` copied; a pointer in them counts. Exit status 1 if anything is lost and not suppressed, if
/// something grows at 50 MB/h or more as leaks do, or if the command fails.
#[derive(Debug, Args)]
#[command(before_help = EXAMPLES)]
#[command(override_usage = "memtrace leaks [OPTIONS] <-p PID | -- CMD...>")]
pub(crate) struct Arguments {
    /// The process
    #[arg(short, long = "pid", value_name = "PID", value_parser = pid)]
    #[arg(required_unless_present = "command")]
    pid: Option<Pid>,
    /// Tell only what is lost for certain, not what grows
    #[arg(long)]
    definite: bool,
    /// Leaks that are known, in LeakSanitizer's syntax: lines of leak:PATTERN
    #[arg(long, value_name = "FILE")]
    suppressions: Option<PathBuf>,
    /// Do not stop the process while it is read; a pointer that moves can be missed
    #[arg(long, conflicts_with = "max_stop")]
    no_stop: bool,
    /// Let the process go on, and give up, after this time [default: 1s, and 1s more for each GiB]
    #[arg(long, value_name = "TIME", value_parser = quantity::positive_duration)]
    max_stop: Option<Duration>,
    /// What the report is for
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Write to this file instead of stdout; it appears when the report is complete
    #[arg(short, long, value_name = "OUT")]
    output: Option<PathBuf>,
    /// The most call paths to list [text: 20, json: all]
    #[arg(long, value_name = "N")]
    top: Option<usize>,
    #[command(flatten)]
    trace: TraceArguments,
    #[command(flatten)]
    symbols: SymbolArguments,
    /// The command to run and to look at when it exits
    #[arg(last = true, value_name = "CMD", conflicts_with = "pid")]
    command: Vec<OsString>,
}

/// What a report is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// To read
    Text,
    /// For other programs; docs/leaks.schema.json describes it
    Json,
}

/// Watches, looks, and reports.
pub(crate) fn run(arguments: Arguments) -> Result<Outcome> {
    let Arguments {
        pid,
        definite,
        suppressions,
        no_stop,
        max_stop,
        format,
        output,
        top,
        trace,
        symbols,
        command,
    } = arguments;
    let suppressions = match suppressions {
        Some(path) => read_suppressions(&path)?,
        None => Suppressions::default(),
    };
    let mut out = Output::open(output.as_deref(), Path::new("/"))?;
    let stop = if no_stop { Stop::Nothing } else { Stop::All(max_stop) };
    let target = match pid {
        Some(pid) => Target::Attach(vec![pid]),
        None => Target::Launch(command),
    };
    let options = RecordOptions { scan: Some(ScanOptions { stop }), ..trace.session(target, None) };
    // The command writes where a line of progress would be.
    let line = if pid.is_some() { Line::Shown } else { Line::Hidden };
    let SessionSummary { snapshot, trace_bytes: _, verdict: _, exit_status, lost } =
        progress::run(options, line, |_| ControlFlow::Continue(()))?;
    let Some(lost) = lost else { bail!("{}", not_read(pid, exit_status)) };
    let failed = exit_status.filter(|status| !status.success());
    if let Some(status) = failed {
        tell(&format!("the command ended with {status}"));
    }
    let pids: Vec<Pid> = snapshot.processes.iter().map(|process| process.pid).collect();
    let mut names = symbols.names_of_running(&pids);
    let ranking = rank(&snapshot, &lost, &mut names, &suppressions);
    let growth = (!definite).then(|| {
        let mut growth = Findings::new(&snapshot, &mut names);
        growth.suppress(&suppressions);
        growth
    });
    let written = match format {
        Format::Json => json::write(&mut out, &snapshot, &lost, &ranking, growth.as_ref(), top),
        Format::Text => {
            let options = text::Options {
                width: terminal::width(),
                style: if output.is_none() { terminal::style() } else { Style::Plain },
                top,
            };
            let text = text::render(&snapshot, &lost, &ranking, growth.as_ref(), &options);
            out.write_all(text.as_bytes())
        }
    };
    written.with_context(|| cannot_write(output.as_deref()))?;
    out.commit()?;
    let is_alarming = |named: &NamedVerdict| named.verdict.level == Level::Alert;
    let leaks = growth.iter().flat_map(Findings::leaks).any(is_alarming);
    let is_fine = ranking.direct.blocks == 0 && !leaks && failed.is_none();
    Ok(if is_fine { Outcome::Fine } else { Outcome::Findings })
}

/// Why nothing was read.
fn not_read(pid: Option<Pid>, status: Option<ExitStatus>) -> String {
    match (pid, status.and_then(|status| status.signal())) {
        (Some(Pid(pid)), _) => {
            format!("process {pid} ended before its memory was read; choose a shorter --duration")
        }
        (None, Some(signal)) => format!(
            "the command was ended by signal {signal} before its memory was read, which happens when \
             it calls exit or returns from main; to look while it runs, use --duration"
        ),
        (None, None) => "the command ended before its memory was read: it did not end \
             through its C library's exit; to look while it runs, use --duration"
            .to_owned(),
    }
}
