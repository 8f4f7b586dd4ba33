//! `memtrace check`: a budget for memory, for tests and for loads.
//!
//! ```text
//!   check TRACE              a recorded session
//!   check -- CMD             CMD, traced to its end; its own failure is one, too
//!   check -p PID -- LOAD     PID, traced while LOAD runs, which is not traced
//! ```

mod budget_file;
mod load;

use std::ffi::OsString;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, ValueEnum};
use memtrace_userspace::live::allocators::survey::Verdict as Traceable;
use memtrace_userspace::pipeline::Limits;
use memtrace_userspace::pipeline::snapshot::Snapshot;
use memtrace_userspace::record::{EndReason, Pid};
use memtrace_userspace::session::{Progress, RecordOptions, SessionSummary, Target, Updates};
use memtrace_userspace::views::budget::{
    self, Attach, Bound, Budget, Judgement, Limit, Loss, Metric, Row, Scope, Strictness, Verdict,
    judge,
};
use memtrace_userspace::views::profile::{Profile, Vocabulary};
use memtrace_userspace::views::quantity;
use memtrace_userspace::views::ranking::{SortKey, rank};
use memtrace_userspace::views::style::Style;
use memtrace_userspace::views::suppressions::Suppressions;

use self::budget_file::{Loaded, bound};
use self::load::{Load, LoadEnd, describe};
use super::detectors::read_suppressions;
use super::output::{Output, cannot_write};
use super::profile::{load as load_profile, load_judged};
use super::progress::{self, Line, warning};
use super::quantity::positive_duration;
use super::source::{SymbolArguments, TraceArguments};
use super::target::{TargetArguments, one_target};
use super::{Outcome, tell, terminal};

const EXAMPLES: &str = "\
Examples:
  sudo memtrace check --budget mem.toml -- ./test             a test and its children
  sudo memtrace check --max-peak 200MB --max-live 1MB -- ./test
  sudo memtrace check -p 4711 --max-rss 500MB --for 60s -- ./load.sh
  sudo memtrace check -p 4711 --max-leaks none --for 10m      nothing may leak meanwhile
  sudo memtrace check --comm nginx --max-live 50MB -- ./load.sh
  memtrace check --budget mem.toml test.mtrace                a trace, without root
  memtrace check --baseline main.json --tolerance 5% test.mtrace
  memtrace check --budget mem.toml test.mtrace --junit mem.xml --format github";

/// How often the end of a load is looked for, and so how late it may be noticed.
const LOOK: Duration = Duration::from_millis(200);

/// Check a trace, a command or a running process against a memory budget.
#[derive(Debug, Args)]
#[command(before_help = EXAMPLES)]
#[command(override_usage = "memtrace check [OPTIONS] <TRACE | -- CMD... | -p PID [-- LOAD...]>")]
#[command(group = one_target().args(["trace_file", "command"]))]
#[command(mut_arg("duration", |duration| duration.visible_alias("for")))]
pub(crate) struct Arguments {
    /// A trace, as `memtrace record` wrote it
    #[arg(value_name = "TRACE", conflicts_with_all = ["processes", "command", "output", "duration"])]
    trace_file: Option<PathBuf>,
    #[command(flatten)]
    processes: TargetArguments,
    /// The limits: a TOML file, see docs/budgets.md
    #[arg(long, value_name = "FILE", help_heading = "Limits")]
    budget: Option<PathBuf>,
    /// Heap bytes at the highest point, at most; `+5%` or `+1MB` is more than the baseline
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    max_peak: Option<String>,
    /// Heap bytes held at the end, at most; of a running process, those allocated since the attach
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    max_live: Option<String>,
    /// All heap bytes allocated, at most
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    max_allocated: Option<String>,
    /// The number of allocations, at most
    #[arg(long, value_name = "N", help_heading = "Limits")]
    max_allocations: Option<String>,
    /// Allocations that are freed at once, at most; a number or a share of all
    #[arg(long, value_name = "SHARE", help_heading = "Limits")]
    max_temporary: Option<String>,
    /// Resident memory at the highest sample, at most, whatever it is used for and since when
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    max_rss: Option<String>,
    /// How fast all leaks together may grow: none, or a rate such as 5MB/h
    #[arg(long, value_name = "RATE", help_heading = "Limits")]
    max_leaks: Option<String>,
    /// Leaks that are known, instead of the budget's: lines of leak:PATTERN
    #[arg(long, value_name = "FILE", help_heading = "Limits")]
    suppressions: Option<PathBuf>,
    /// How long a call path must have held memory before it is accused of a leak [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = positive_duration, help_heading = "Limits")]
    leak_after: Option<Duration>,
    /// A trace or a JSON report to compare with, instead of the budget's
    #[arg(long, value_name = "FILE", help_heading = "Limits")]
    baseline: Option<PathBuf>,
    /// How much more than the baseline peak, live, allocated and allocations may be
    #[arg(long, value_name = "SHARE", requires = "baseline", help_heading = "Limits")]
    tolerance: Option<String>,
    /// Take numbers as they are although events were lost or the trace stops early
    #[arg(long, help_heading = "Limits")]
    allow_loss: bool,
    /// Judge a trace that began by attaching by what was allocated since; `-p` always does
    #[arg(long, help_heading = "Limits")]
    since_attach: bool,
    /// What the result is for
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Write the result to this file instead of stdout
    #[arg(long, value_name = "FILE")]
    result: Option<PathBuf>,
    /// Write the result as JUnit XML as well
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Keep the trace of what was checked
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    trace: TraceArguments,
    #[command(flatten)]
    symbols: SymbolArguments,
    /// The command to check; with -p, a load to run meanwhile, which is not traced
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// What a result is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// To read
    Text,
    /// For other programs; docs/check.schema.json describes it
    Json,
    /// For continuous integration
    Junit,
    /// Annotations of GitHub Actions
    Github,
}

/// Judges, writes the result, and says whether all holds.
pub(crate) fn run(arguments: Arguments) -> Result<Outcome> {
    let Loaded { budget, baseline, suppressions } = limits(&arguments)?;
    let detectors = detectors(&budget, arguments.leak_after);
    let suppressions = match &suppressions {
        Some(path) => read_suppressions(path)?,
        None => Suppressions::default(),
    };
    let Arguments {
        trace_file,
        processes,
        allow_loss,
        since_attach,
        format,
        result,
        junit,
        output,
        trace,
        symbols,
        command,
        leak_after,
        ..
    } = arguments;
    let inputs: Vec<&Path> =
        [&trace_file, &baseline, &budget.file].into_iter().flatten().map(|p| &**p).collect();
    let mut out = Output::open_beside(result.as_deref(), &inputs)?;
    let junit = junit.map(|path| Output::open_beside(Some(&path), &inputs)).transpose()?;
    if let (None, Some(baseline)) = (&trace_file, &baseline) {
        // A baseline that cannot be read costs no run of the command. It is read again afterwards,
        // because the program is called as it is called now.
        load_profile(baseline, symbols.names(), &mut Vocabulary::default())?;
    }
    let is_attach = processes.is_given();
    let mut words = Vocabulary::default();
    let (profile, ends) = match trace_file {
        Some(trace) => {
            let (names, after) = (symbols.names(), detectors.detectors.leaks.after);
            let profile = load_judged(&trace, names, detectors, &suppressions, &mut words)?;
            let judged = profile.growth.needed;
            if judged != after && leak_after.is_some() {
                bail!(
                    "{} was written with --leak-after {}; write it anew, or check the trace itself",
                    trace.display(),
                    quantity::duration(judged)
                );
            }
            (profile, Vec::new())
        }
        None => {
            let (options, load) = match is_attach {
                true => (trace.attach(processes.resolve()?, output), command),
                false => (trace.session(Target::Launch(command), output), Vec::new()),
            };
            let options = RecordOptions { limits: detectors, ..options };
            let (snapshot, ends) = watch(options, load)?;
            let pids: Vec<Pid> = snapshot.processes.iter().map(|process| process.pid).collect();
            let mut names = symbols.names_of_running(if is_attach { &pids } else { &[] });
            let mut ranking = rank(&snapshot, &mut names, SortKey::Live);
            ranking.findings.suppress(&suppressions);
            (Profile::of_session(&snapshot, &ranking, &mut words), ends)
        }
    };
    let baseline =
        baseline.map(|path| load_profile(&path, symbols.names(), &mut words)).transpose()?;
    let strictness = Strictness {
        loss: if allow_loss { Loss::Allowed } else { Loss::Matters },
        attach: if since_attach || is_attach { Attach::SinceThen } else { Attach::Matters },
    };
    let mut judgement = judge(&budget, &profile, baseline.as_ref(), &words, strictness);
    judgement.rows.splice(0..0, ends);
    write(&mut out, format, &judgement, &profile, result.is_none())
        .with_context(|| cannot_write(result.as_deref()))?;
    out.commit()?;
    if let Some(mut junit) = junit {
        budget::write_junit(&mut junit, &judgement, &profile)
            .context("cannot write the JUnit file; free some space or name another --junit")?;
        junit.commit()?;
    }
    Ok(match judgement.verdict() {
        Verdict::Pass => Outcome::Fine,
        Verdict::Fail | Verdict::Unknown => Outcome::Findings,
    })
}

fn write(
    out: &mut Output,
    format: Format,
    judgement: &Judgement,
    profile: &Profile,
    to_stdout: bool,
) -> io::Result<()> {
    match format {
        Format::Text => {
            let style = if to_stdout { terminal::style() } else { Style::Plain };
            let options = budget::Options { width: terminal::width(), style };
            out.write_all(budget::render(judgement, profile, &options).as_bytes())
        }
        Format::Json => budget::write_json(out, judgement, profile),
        Format::Junit => budget::write_junit(out, judgement, profile),
        Format::Github => {
            // Annotations name files from the root of the repository.
            let root = std::env::var_os("GITHUB_WORKSPACE").map(PathBuf::from);
            let root = root.or_else(|| std::env::current_dir().ok());
            budget::write_github(out, judgement, root.as_deref())
        }
    }
}

/// The budget's limits and those of the arguments.
fn limits(arguments: &Arguments) -> Result<Loaded> {
    let mut loaded = match &arguments.budget {
        Some(path) => budget_file::load(path)?,
        None => Loaded { budget: Budget::default(), baseline: None, suppressions: None },
    };
    if let Some(baseline) = &arguments.baseline {
        loaded.baseline = Some(baseline.clone());
    }
    if let Some(suppressions) = &arguments.suppressions {
        loaded.suppressions = Some(suppressions.clone());
    }
    let mut add = |metric, bound| {
        loaded.budget.limits.push(Limit { scope: Scope::Total, metric, bound, line: None });
    };
    for (metric, flag, written) in [
        (Metric::Peak, "max-peak", &arguments.max_peak),
        (Metric::Live, "max-live", &arguments.max_live),
        (Metric::Allocated, "max-allocated", &arguments.max_allocated),
        (Metric::Allocations, "max-allocations", &arguments.max_allocations),
        (Metric::Temporary, "max-temporary", &arguments.max_temporary),
        (Metric::Resident, "max-rss", &arguments.max_rss),
        (Metric::Leaks, "max-leaks", &arguments.max_leaks),
    ] {
        if let Some(written) = written {
            let (metric, bound) =
                bound(metric, written).map_err(|error| anyhow!("--{flag}: {error}"))?;
            if !matches!(bound, Bound::AtMost(_)) && loaded.baseline.is_none() {
                bail!("--{flag} {written} is a limit on growth; give a --baseline");
            }
            add(metric, bound);
        }
    }
    if let Some(tolerance) = &arguments.tolerance {
        let ppm = super::quantity::share(tolerance).context("--tolerance")?;
        for metric in [Metric::Peak, Metric::Live, Metric::Allocated, Metric::Allocations] {
            add(metric, Bound::GrowthShare(ppm));
        }
    }
    if loaded.budget.limits.is_empty() {
        bail!("there is nothing to check; give a --budget with limits, or --max-peak and its like");
    }
    Ok(loaded)
}

/// What the detectors must see for the limits on leaks: also those as slow as a limit allows.
fn detectors(budget: &Budget, leak_after: Option<Duration>) -> Limits {
    let mut limits = Limits::default();
    let leaks = &mut limits.detectors.leaks;
    leaks.after = leak_after.unwrap_or(leaks.after);
    for Limit { scope: _, metric, bound, line: _ } in &budget.limits {
        if let (Metric::Leaks, &Bound::AtMost(rate)) = (metric, bound) {
            let slowest = budget::slowest_leak(rate) as f64;
            leaks.healthy_bytes_per_hour = leaks.healthy_bytes_per_hour.min(slowest);
        }
    }
    limits
}

/// Traces the target, with a load if there is one, and says how what ran has ended.
fn watch(
    options: RecordOptions,
    load: Vec<OsString>,
) -> Result<(std::sync::Arc<Snapshot>, Vec<Row>)> {
    let is_launch = matches!(options.target, Target::Launch(_));
    let until = options.duration;
    let options = RecordOptions {
        updates: if load.is_empty() { options.updates } else { Updates::Glances(LOOK) },
        ..options
    };
    // The command writes where a line of progress would be.
    let line = if is_launch { Line::Hidden } else { Line::Shown };
    let mut running: Option<io::Result<Load>> = None;
    let mut load_ended = false;
    let ended = progress::run(options, line, |step| match step {
        Progress::Started(_) if load.is_empty() => ControlFlow::Continue(()),
        Progress::Started(_) => {
            let started = Load::start(&load);
            let failed = started.is_err();
            running = Some(started);
            if failed { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
        Progress::Glance(_) | Progress::Snapshot(_) => {
            load_ended = running.as_ref().is_some_and(|r| r.as_ref().is_ok_and(Load::has_ended));
            if load_ended { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
    });
    let what = || {
        let name = load.first().map(|name| name.to_string_lossy()).unwrap_or_default();
        format!("cannot run the load {name}; check its name and that it may be executed")
    };
    let load_end = running.transpose().with_context(what)?.map(Load::end).transpose()?;
    let SessionSummary { snapshot, trace_bytes: _, verdict, exit_status, lost: _ } = ended?;
    let mut rows = Vec::new();
    if is_launch {
        rows.push(command_row(exit_status, snapshot.end));
        warning(verdict).iter().for_each(|line| tell(line));
    } else {
        rows.extend(target_row(&snapshot, load_end.is_some(), until));
    }
    rows.extend(load_end.map(|end| load_row(end, snapshot.end)));
    if verdict == Traceable::NoAllocator && snapshot.events == 0 {
        tell("nothing was seen of the target's memory; `memtrace doctor -p PID` says why");
    }
    Ok((snapshot, rows))
}

/// A budget means little if the command did not do its work.
fn command_row(status: Option<ExitStatus>, end: Option<EndReason>) -> Row {
    let (verdict, note) = match status {
        Some(status) if status.success() => (Verdict::Pass, "it succeeded".to_owned()),
        Some(status) => (Verdict::Fail, format!("it ended with {}", describe(status))),
        None => {
            let why = match end {
                Some(EndReason::DurationOver) => "the time was over before it ended",
                Some(EndReason::Interrupted) => "the check was interrupted before it ended",
                Some(EndReason::TargetExited) | None => "its exit status is not known",
            };
            (Verdict::Unknown, why.to_owned())
        }
    };
    Row::of_end("command", verdict, note)
}

/// A process that was to be watched for a while, and ended.
fn target_row(snapshot: &Snapshot, has_load: bool, until: Option<Duration>) -> Option<Row> {
    if snapshot.end != Some(EndReason::TargetExited) || (!has_load && until.is_none()) {
        return None;
    }
    let after = quantity::duration(Duration::from_nanos(snapshot.now.0));
    Some(Row::of_end("target", Verdict::Fail, format!("the process ended after {after}")))
}

fn load_row(end: LoadEnd, session_end: Option<EndReason>) -> Row {
    let (verdict, note) = match end {
        LoadEnd::Itself(status) if status.success() => (Verdict::Pass, "it succeeded".to_owned()),
        LoadEnd::Itself(status) => (Verdict::Fail, format!("it ended with {}", describe(status))),
        LoadEnd::Stopped => match session_end {
            Some(EndReason::DurationOver) => {
                (Verdict::Pass, "it was stopped when the time was over".to_owned())
            }
            Some(EndReason::TargetExited) => {
                (Verdict::Unknown, "it was stopped because the process had ended".to_owned())
            }
            Some(EndReason::Interrupted) | None => {
                (Verdict::Unknown, "it was stopped because the check was interrupted".to_owned())
            }
        },
    };
    Row::of_end("load", verdict, note)
}
