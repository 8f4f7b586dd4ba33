//! `memtrace record`: a process, traced into a file.

use std::ffi::OsString;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use memtrace_userspace::live::allocators::survey::Verdict;
use memtrace_userspace::pipeline::Pipeline;
use memtrace_userspace::pipeline::snapshot::Snapshot;
use memtrace_userspace::record::Pid;
use memtrace_userspace::session::{
    Apply, Progress, RecordOptions, SessionSummary, SnapshotFiles, Target,
};
use memtrace_userspace::views::activity::{Activity, Level};
use memtrace_userspace::views::printable::printable_str;
use memtrace_userspace::views::{quantity, summary};

use super::detectors::DetectorArguments;
use super::output::Output;
use super::progress::{self, Line, warning};
use super::report::write_json;
use super::source::{SymbolArguments, TraceArguments};
use super::target::{TargetArguments, one_target};
use super::{Outcome, quantity as quantity_arguments, tell};

const EXAMPLES: &str = "\
Examples:
  sudo memtrace record -p 4711                            until Ctrl-C, into memtrace.4711.mtrace
  sudo memtrace record -p 4711 -o api.mtrace --duration 30s
  sudo memtrace record -p 4711 -p 4712                    two processes, one trace
  sudo memtrace record -p 4711 --children                 and what it starts from now on
  sudo memtrace record --comm nginx --follow              all of a name, later ones too
  sudo memtrace record --container 3f2a9c1d5b7e           all of a container
  sudo memtrace record -o build.mtrace -- make -j4        a command and its children
  sudo memtrace record -p 4711 --probe 'alloc:pool_alloc(size=arg1)' --probe 'free:pool_free(ptr=arg1)'
  sudo memtrace record -p 4711 --operation select=sqlite3_step --operation 'upload=receive_*'
  sudo memtrace record --report test.json -- ./test       and the report, for CI
  sudo memtrace record --report test.json --timeline -- ./test";

/// Two lines that fit into 80 columns.
const USAGE: &str = "\
memtrace record [OPTIONS] -- CMD...
       memtrace record [OPTIONS] -p PID|--comm NAME|--cgroup PATH|--container ID";

/// How many names are tried for a trace whose name is not given.
const NAMES: u32 = 1000;

/// Attach to running processes, or start a command, and write a trace.
#[derive(Debug, Args)]
#[command(before_help = EXAMPLES)]
#[command(override_usage = USAGE)]
#[command(group = one_target().arg("command"))]
pub(crate) struct Arguments {
    #[command(flatten)]
    target: TargetArguments,
    /// The trace [default: memtrace.PID.mtrace or memtrace.CMD.mtrace, with a number if it exists]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write the JSON report of the session as well, as `memtrace report --format json` would
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// With --report: also what functions and threads held and allocated over time, as
    /// `memtrace report --timeline` would; takes up to some 200 MB, and the daemon more time
    #[arg(long, requires = "report")]
    timeline: bool,
    /// Write a heap snapshot so often, beside the trace: api.0001.mtrace, api.0002.mtrace, …
    #[arg(long, value_name = "TIME", value_parser = quantity_arguments::positive_duration)]
    snapshot_every: Option<Duration>,
    /// Write one when a spike begins, too: api.spike.0001.mtrace, …, at most 100 and one a second
    #[arg(long)]
    snapshot_on_spike: bool,
    #[command(flatten)]
    trace: TraceArguments,
    #[command(flatten)]
    detectors: DetectorArguments,
    /// The command to trace, from its first instruction
    #[arg(last = true, value_name = "CMD", conflicts_with = "processes")]
    command: Vec<OsString>,
}

/// Traces, shows progress, and ends with one line about what was written.
pub(crate) fn run(arguments: Arguments) -> Result<Outcome> {
    let Arguments {
        target,
        output,
        report,
        timeline,
        snapshot_every,
        snapshot_on_spike,
        trace,
        detectors,
        command,
    } = arguments;
    let suppressions = detectors.suppressions()?;
    let options = match command.is_empty() {
        true => trace.attach(target.resolve()?, None),
        false => trace.session(Target::Launch(command), None),
    };
    let is_launch = matches!(options.target, Target::Launch(_));
    let output = match output {
        Some(output) => output,
        None => free_name(&options.target)?,
    };
    if report.as_ref() == Some(&output) {
        bail!(
            "{} cannot be both the trace and the report; name another --report",
            output.display()
        );
    }
    let report = report.map(|path| Output::open(Some(&path), &output)).transpose()?;
    let snapshot_files = (snapshot_every.is_some() || snapshot_on_spike).then(|| SnapshotFiles {
        every: snapshot_every,
        on_spike: snapshot_on_spike,
        beside: output.clone(),
    });
    let options = RecordOptions {
        output: Some(output.clone()),
        limits: detectors.limits(),
        operations: detectors.operations_of_running(&SymbolArguments::default())?,
        snapshot_files,
        ..options
    };
    let activity = Arc::new(Mutex::new(timeline.then(|| Activity::new(Level::Held))));
    let apply: Apply = match timeline {
        true => noting(Arc::clone(&activity)),
        false => Box::new(Pipeline::apply_all),
    };
    let go_on = |_: Progress<'_>| ControlFlow::Continue(());
    let summary = progress::run_watched(options, apply, Line::Shown, go_on)?;
    let SessionSummary { snapshot, trace_bytes: _, verdict, exit_status, lost: _ } = summary;
    tell(&summary_line(&snapshot, &output));
    detectors.require_operations(&snapshot.operations)?;
    if let Some(report) = report {
        let running = snapshot.processes.iter().filter(|process| process.ended.is_none());
        let running: Vec<Pid> = running.map(|process| process.pid).collect();
        let mut names = SymbolArguments::default().names_of_running(&running);
        let activity = activity.lock().unwrap_or_else(PoisonError::into_inner).take();
        write_json(report, &snapshot, activity, &mut names, &suppressions)?;
    }
    if let Some(status) = exit_status.filter(|status| !status.success()) {
        tell(&format!("the command ended with {status}"));
    }
    if is_launch {
        warning(verdict).iter().for_each(|line| tell(line));
    }
    Ok(match verdict {
        Verdict::NoAllocator if snapshot.events == 0 => Outcome::Failed,
        Verdict::NoAllocator | Verdict::Traceable | Verdict::GoWithC | Verdict::Go => Outcome::Fine,
    })
}

/// Has a pipeline apply records, and an activity see what each changes.
fn noting(activity: Arc<Mutex<Option<Activity>>>) -> Apply {
    let mut postings = Vec::new();
    Box::new(move |pipeline, records| {
        // Nobody else wants it before the session is over.
        let mut activity = activity.lock().unwrap_or_else(PoisonError::into_inner);
        for record in records {
            pipeline.apply_with(record, &mut postings);
            if let Some(activity) = &mut *activity {
                activity.event(record, &postings, pipeline);
            }
        }
    })
}

/// What was written, and the caveat that matters most.
pub(crate) fn summary_line(snapshot: &Snapshot, output: &Path) -> String {
    let path = output.display().to_string();
    let path = printable_str(&path);
    let size = match output.metadata() {
        Ok(metadata) if metadata.is_file() => format!(" ({})", quantity::bytes(metadata.len())),
        Ok(_) | Err(_) => String::new(),
    };
    format!(
        "wrote {path}{size}: {} of {}, {} events, {} lost; live {}, peak {}",
        quantity::duration(summary::since_start(snapshot.now)),
        summary::target(snapshot),
        quantity::count(snapshot.events),
        quantity::count(snapshot.lost_events()),
        quantity::bytes(snapshot.totals.heap.live_bytes),
        quantity::bytes(snapshot.totals.peak_live_bytes),
    )
}

/// A name that says what was traced and that no file has yet.
fn free_name(target: &Target) -> Result<PathBuf> {
    let what = match target {
        Target::Attach(pids) => {
            pids.first().map_or_else(|| "trace".to_owned(), |pid| pid.0.to_string())
        }
        Target::Launch(command) => {
            command.first().and_then(|program| Path::new(program).file_name()).map_or_else(
                || "trace".to_owned(),
                |name| printable_str(&name.to_string_lossy()).into_owned(),
            )
        }
    };
    for number in 0..NAMES {
        let name = match number {
            0 => format!("memtrace.{what}.mtrace"),
            _ => format!("memtrace.{what}.{number}.mtrace"),
        };
        match Path::new(&name).symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(name.into()),
            Ok(_) | Err(_) => {}
        }
    }
    bail!("memtrace.{what}.mtrace and {NAMES} more exist; remove some or name a file with -o")
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use memtrace_userspace::live::tracer::Children;

    use super::super::target::Resolved;
    use super::super::{Cli, Command};
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Arguments, clap::Error> {
        let all = ["memtrace", "record"].iter().chain(arguments);
        match Cli::try_parse_from(all)?.command {
            Command::Record(arguments) => Ok(arguments),
            other => panic!("{other:?}"),
        }
    }

    fn resolved(target: TargetArguments) -> Resolved {
        target.resolve().expect("ids need no look")
    }

    #[test]
    fn command_keeps_its_own_options() {
        let arguments = parse(&["-o", "x", "--", "ls", "-l", "--", "-p"]).expect("valid");

        assert_eq!(arguments.command, ["ls", "-l", "--", "-p"]);
    }

    #[test]
    fn several_processes_are_one_target() {
        let arguments = parse(&["-p", "1", "-p", "2,3"]).expect("valid");

        assert_eq!(resolved(arguments.target).pids, [Pid(1), Pid(2), Pid(3)]);
    }

    #[test]
    fn a_target_is_needed_and_only_one() {
        assert!(parse(&[]).is_err());
        assert!(parse(&["-p", "1", "--", "ls"]).is_err());
        assert!(parse(&["-p", "0"]).is_err());
        assert!(parse(&["-p", "self"]).is_err());
        assert!(parse(&["--comm", "x", "--", "ls"]).is_err());
        assert!(parse(&["--follow"]).is_err());
    }

    #[test]
    fn target_may_be_given_in_any_way_and_in_several() {
        for arguments in [
            &["--comm", "nginx", "--follow"][..],
            &["--cgroup", "/system.slice"],
            &["--container", "3f2a9c1d"],
            &["-p", "1", "--comm", "a*", "--comm", "b", "--container", "3f2a"],
        ] {
            assert!(parse(arguments).is_ok(), "{arguments:?}");
        }
        assert!(parse(&["--comm", "/usr/bin/nginx"]).is_err());
        assert!(parse(&["--container", "web"]).is_err());
    }

    #[test]
    fn id_cannot_be_followed() {
        let arguments = parse(&["-p", "1", "--follow"]).expect("the parser lets it pass");

        let error = arguments.target.resolve().expect_err("an id means one process");

        assert!(error.to_string().contains("--comm"), "{error}");
    }

    #[test]
    fn ring_size_and_duration_take_units() {
        let arguments =
            parse(&["-p", "1", "--ring-size", "8M", "--duration", "500ms"]).expect("valid");

        let session = arguments.trace.attach(resolved(arguments.target), None);
        assert_eq!(session.ring_bytes, 8 << 20);
        assert_eq!(session.duration, Some(Duration::from_millis(500)));
        assert!(parse(&["-p", "1", "--ring-size", "2G"]).is_err());
    }

    #[test]
    fn children_of_a_process_are_traced_when_asked_for() {
        let children = |arguments: &[&str]| {
            let Arguments { target, trace, command, .. } = parse(arguments).expect("valid");
            match command.is_empty() {
                true => trace.attach(resolved(target), None).children,
                false => trace.session(Target::Launch(command), None).children,
            }
        };

        assert_eq!(children(&["-p", "1"]), Children::Ignore);
        assert_eq!(children(&["-p", "1", "--children"]), Children::Follow);
        assert_eq!(children(&["--", "make"]), Children::Follow);
    }

    #[test]
    fn default_name_says_what_is_traced() {
        let attach = free_name(&Target::Attach(vec![Pid(999_999_999)])).expect("free");
        let launch =
            free_name(&Target::Launch(vec!["/usr/bin/some\x1btool".into()])).expect("free");

        assert_eq!(attach, Path::new("memtrace.999999999.mtrace"));
        assert_eq!(launch, Path::new("memtrace.some\\x1btool.mtrace"));
    }
}
