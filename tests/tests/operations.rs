//! Operations: what the functions that the user names allocate, hold and let spike.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use memtrace_tests::privileged;
use memtrace_tests::program::{self, FramePointers};
use memtrace_tests::recording::{Finished, memtrace, record_attached_with, run, trace_path};
use serde_json::{Value, json};

/// Names of the functions of `operations.c`, as a user writes them.
const NAMED: [&str; 4] = ["--operation", "Select=run_select", "--operation", "upload=handle_*"];

fn report_with(trace: &Path, arguments: &[&str]) -> Result<Finished> {
    run(memtrace()?.arg("report").arg(trace).args(["--format", "json"]).args(arguments))
}

fn parsed(report: Finished) -> Result<Value> {
    let report = report.require_success("memtrace report")?;
    serde_json::from_str(&report.stdout).context("the report is JSON")
}

/// Traces the program with further arguments.
fn trace_of(test: &str, arguments: &[&str]) -> Result<std::path::PathBuf> {
    let trace = trace_path(test)?;
    record_attached_with(&trace, &program::OPERATIONS.build(FramePointers::Omitted)?, arguments)?;
    Ok(trace)
}

/// Name, allocations, allocated and live bytes, and spikes of each operation.
fn operations(report: &Value) -> Value {
    let row = |o: &Value| {
        let heap = &o["heap"];
        json!([
            o["name"],
            heap["allocations"],
            heap["allocated_bytes"],
            heap["live_bytes"],
            o["spikes"]
        ])
    };
    report["operations"].as_array().into_iter().flatten().map(row).collect()
}

/// Operation, memory, severity and height of each spike, and what its makers grew by.
fn spikes(report: &Value) -> Value {
    let grown = |makers: &Value| -> Value {
        makers.as_array().into_iter().flatten().map(|maker| maker["bytes"].clone()).collect()
    };
    let row = |s: &Value| {
        json!([
            s["operation"],
            s["memory"],
            s["severity"],
            s["height_bytes"],
            grown(&s["contributors"]),
            grown(&s["threads"]),
        ])
    };
    report["spikes"].as_array().into_iter().flatten().map(row).collect()
}

/// What `operations.c` says of itself.
fn require_known_numbers(report: &Value) -> Result<()> {
    let expected = json!([["select", 13, 13_000_039, 0, 1], ["upload", 5, 500_015, 500_015, 0]]);
    ensure!(operations(report) == expected, "{}", report["operations"]);
    let expected =
        json!([["select", "heap", "medium", 13_000_039, [12_000_036, 1_000_003], [13_000_039]]]);
    ensure!(spikes(report) == expected, "{}", report["spikes"]);
    Ok(())
}

#[test]
fn spike_of_an_operation_is_found_live_and_by_replay() -> Result<()> {
    privileged!();
    let live = trace_path("operations-live-report")?.with_extension("json");
    let live_argument = live.to_str().context("the path is text")?;

    let trace = trace_of("operations-live", &[&NAMED[..], &["--report", live_argument]].concat())?;
    let replayed = report_with(&trace, &[])?.require_success("memtrace report")?.stdout;

    let live = std::fs::read_to_string(&live)?;
    ensure!(live == replayed, "{} bytes live, {} from the trace", live.len(), replayed.len());
    require_known_numbers(&serde_json::from_str(&replayed)?)
}

#[test]
fn trace_recorded_without_operations_can_be_given_some() -> Result<()> {
    privileged!();

    let trace = trace_of("operations-later", &[])?;

    let without = parsed(report_with(&trace, &[])?)?;
    ensure!(operations(&without) == json!([]) && spikes(&without) == json!([]), "{without}");
    require_known_numbers(&parsed(report_with(&trace, &NAMED)?)?)?;
    let range = [&NAMED[..], &["--from", "0s"]].concat();
    require_known_numbers(&parsed(report_with(&trace, &range)?)?)
}

#[test]
fn threshold_of_an_operation_is_that_of_its_class() -> Result<()> {
    privileged!();
    let trace = trace_of("operations-thresholds", &NAMED)?;
    let severities = |threshold: &str| -> Result<Value> {
        let report = parsed(report_with(&trace, &["--spike", threshold])?)?;
        Ok(report["spikes"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|spike| json!([spike["operation"], spike["severity"]]))
            .collect())
    };

    ensure!(severities("select=14MB")? == json!([]));
    ensure!(
        severities("SELECT=6MB,upload=500KB")? == json!([["select", "high"], ["upload", "medium"]])
    );
    ensure!(severities("select=3MB")? == json!([["select", "critical"]]));
    let unknown = report_with(&trace, &["--spike", "bulk=1MB"])?;
    ensure!(unknown.status.code() == Some(2) && unknown.stdout.is_empty(), "{unknown:?}");
    ensure!(unknown.stderr.contains("--operation bulk=FUNCTION"), "{}", unknown.stderr);
    Ok(())
}

#[test]
fn operation_without_functions_is_warned_of() -> Result<()> {
    privileged!();
    let trace = trace_of("operations-none", &[])?;

    let report = report_with(&trace, &["--operation", "insert=no_such_function"])?;

    ensure!(report.stderr.contains("--operation insert"), "{}", report.stderr);
    ensure!(parsed(report)?["operations"] == json!([]));
    Ok(())
}
