//! Parts of a recording, marks and heap snapshots, on a program whose numbers are known.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use memtrace_tests::privileged;
use memtrace_tests::program::{self, FramePointers};
use memtrace_tests::recording::{Recorder, memtrace, report, run, start_waiting, trace_path};
use memtrace_tests::report::Report;

/// `memtrace report --format json` of a part of a trace.
fn report_part(trace: &Path, part: &[&str]) -> Result<Report> {
    let mut command = memtrace()?;
    command.arg("report").arg(trace).args(part).args(["--format", "json"]);
    Report::parse(&run(&mut command)?.require_success("memtrace report")?.stdout)
}

#[test]
fn marks_divide_a_recording_and_snapshots_show_what_was_held() -> Result<()> {
    privileged!();
    let trace = trace_path("marks")?;
    let snapshot = trace.with_file_name("snapshot.mtrace");
    let mut target = start_waiting(&program::LEAK.build(FramePointers::Omitted)?)?;
    let pid = target.pid().to_string();
    let recorder = Recorder::attach(target.pid(), &trace)?;
    let mark = |text: &str| {
        run(memtrace()?.args(["mark", "-p", &pid, text]))?.require_success("memtrace mark")
    };

    mark("before")?;
    target.go_on()?;
    target.wait_for_stdout("done")?;
    mark("after")?;
    let mut command = memtrace()?;
    run(command.args(["snapshot", "-p", &pid, "-o"]).arg(&snapshot))?
        .require_success("memtrace snapshot")?;
    recorder.detach()?;
    target.go_on()?;
    target.finish()?.require_success("the target")?;

    let whole = report(&trace)?;
    let allocated = whole.number("/totals/allocated_bytes")?;
    let live = whole.number("/totals/live_bytes")?;
    ensure!(allocated > 0 && live > 0, "{}", whole.json["totals"]);
    ensure!(whole.number("/phases/1/allocated/bytes")? == allocated, "{}", whole.json["phases"]);
    ensure!(whole.json["phases"][2]["begins_with"] == "after", "{}", whole.json["phases"]);
    let between = report_part(&trace, &["--from", "mark:before", "--to", "mark:after"])?;
    for total in ["allocations", "allocated_bytes", "frees", "freed_bytes", "peak_live_bytes"] {
        let path = format!("/totals/{total}");
        ensure!(between.number(&path)? == whole.number(&path)?, "{total}");
    }
    let after = report_part(&trace, &["--from", "mark:after"])?;
    ensure!(after.number("/totals/allocations")? == 0, "{}", after.json["totals"]);
    ensure!(after.number("/part/still_held/bytes")? == live, "{}", after.json["part"]);
    let held = report(&snapshot)?;
    ensure!(held.number("/totals/live_bytes")? == live, "{}", held.json["totals"]);
    ensure!(held.number("/totals/frees")? == 0, "{}", held.json["totals"]);
    let functions = |report: &Report| -> Result<Vec<(String, u64)>> {
        let functions = report.json["functions"].as_array().context("no functions")?;
        let own = |f: &serde_json::Value| f["self"]["live_bytes"].as_u64().unwrap_or(0);
        let mut functions: Vec<_> =
            functions.iter().map(|f| (f["function"].to_string(), own(f))).collect();
        functions.retain(|(_, live)| *live > 0);
        functions.sort();
        Ok(functions)
    };
    ensure!(functions(&held)? == functions(&whole)?, "{}", held.json["functions"]);
    Ok(())
}

#[test]
fn mark_of_a_process_that_nobody_records_says_what_to_do() -> Result<()> {
    privileged!();

    let finished = run(memtrace()?.args(["mark", "-p", "1", "x"]))?;

    ensure!(finished.status.code() == Some(2), "{}", finished.status);
    ensure!(finished.stderr.contains("start `memtrace record -p 1` first"), "{}", finished.stderr);
    Ok(())
}
