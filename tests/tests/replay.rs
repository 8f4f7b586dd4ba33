//! A trace stands in for the process: what a session reports and what its replay reports is equal.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use memtrace_tests::privileged;
use memtrace_tests::program::{self, FramePointers};
use memtrace_tests::recording::{Recorder, Running, memtrace, run, trace_path};

/// Both reports byte for byte; the first difference is shown by its line.
fn require_equal(live: &Path, trace: &Path, more: &[&str]) -> Result<()> {
    let replayed = run(memtrace()?.arg("report").arg(trace).args(["--format", "json"]).args(more))?
        .require_success("memtrace report")?
        .stdout;
    let live = fs::read_to_string(live).context("read the report of the session")?;
    for (number, (live, replayed)) in live.lines().zip(replayed.lines()).enumerate() {
        ensure!(live == replayed, "line {}:\nlive   {live}\nreplay {replayed}", number + 1);
    }
    ensure!(live == replayed, "{} bytes live, {} from the trace", live.len(), replayed.len());
    Ok(())
}

#[test]
fn report_of_a_command_and_its_children_equals_its_replay() -> Result<()> {
    privileged!();
    let trace = trace_path("replay_launched")?;
    let live = trace.with_extension("json");
    let script = "ls -l /usr > /dev/null; \"$1\"; exec \"$1\"";
    let leak = program::LEAK.build(FramePointers::Omitted)?;
    let mut record = memtrace()?;
    record.args(["record", "-o"]).arg(&trace).arg("--report").arg(&live);
    record.args(["--", "sh", "-c", script, "sh"]).arg(&leak);

    run(&mut record)?.require_success("memtrace record")?;

    require_equal(&live, &trace, &[])
}

#[test]
fn report_of_an_attached_process_equals_its_replay() -> Result<()> {
    privileged!();
    let trace = trace_path("replay_attached")?;
    let live = trace.with_extension("json");
    let executable = program::STEADY.build(FramePointers::Kept)?;
    let mut target = Running::start(Command::new(executable).stdin(Stdio::piped()))?;
    target.wait_for_stdout("ready")?;
    let path = live.to_str().context("the path is text")?;

    let arguments = ["--duration", "2s", "--report", path];
    Recorder::attach_with(target.pid(), &trace, &arguments)?.finish()?;

    require_equal(&live, &trace, &[])
}

#[test]
fn timelines_of_a_session_equal_those_of_its_replay() -> Result<()> {
    privileged!();
    let trace = trace_path("replay_timelines")?;
    let live = trace.with_extension("json");
    let mut record = memtrace()?;
    record.args(["record", "--timeline", "-o"]).arg(&trace).arg("--report").arg(&live);
    record.arg("--").arg(program::FORK_BOTH.build(FramePointers::Omitted)?);

    run(&mut record)?.require_success("memtrace record")?;

    require_equal(&live, &trace, &["--timeline"])?;
    let report: serde_json::Value = serde_json::from_str(&fs::read_to_string(&live)?)?;
    let functions = report["timelines"]["functions"].as_array().context("timelines")?;
    ensure!(functions.len() >= 4, "{functions:?}");
    Ok(())
}
