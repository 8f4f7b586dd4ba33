//! The links through which probes are attached: both kinds, and how fast they come and go.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use memtrace_tests::compare::{Stacks, compare};
use memtrace_tests::privileged;
use memtrace_tests::program::{self, FramePointers, Program};
use memtrace_tests::recording::{
    Recorder, Running, memtrace, record_attached, record_attached_with, record_launched, report,
    run, start_waiting, trace_path,
};

/// What the kernel before 6.6 has, and what the user may not choose otherwise.
const PERF: &[&str] = &["--probe-links", "perf"];

/// Whether memtrace uses links of many probes here.
fn has_multi_links() -> Result<bool> {
    if std::env::var_os("MEMTRACE_PROBE_LINKS").is_some_and(|kind| kind == "perf") {
        return Ok(false);
    }
    let doctor = run(memtrace()?.arg("doctor"))?;
    Ok(doctor.stdout.lines().any(|line| line.starts_with("ok    uprobe_multi links")))
}

/// Returns from a test of links of many probes where there are none.
macro_rules! multi_links {
    () => {
        if !has_multi_links()? {
            println!("skipped: no uprobe_multi links");
            return Ok(());
        }
    };
}

fn launched_with_perf_links(program: Program) -> Result<()> {
    privileged!();
    let trace = trace_path(&format!("perf-launched-{}", program.name))?;
    let mut record = memtrace()?;
    record.arg("record").args(PERF).arg("-o").arg(&trace).arg("--");

    run(record.arg(program.build(FramePointers::Omitted)?))?.require_success("memtrace record")?;

    compare(&program.table()?, &report(&trace)?, Stacks::Complete)
}

fn attached_with_perf_links(program: Program) -> Result<()> {
    privileged!();
    let trace = trace_path(&format!("perf-attached-{}", program.name))?;

    record_attached_with(&trace, &program.build(FramePointers::Omitted)?, PERF)?;

    compare(&program.table()?, &report(&trace)?, Stacks::Complete)
}

#[test]
fn launched_program_is_seen_through_perf_links() -> Result<()> {
    launched_with_perf_links(program::LEAK)
}

#[test]
fn library_rewritten_in_place_keeps_no_probe_where_its_allocator_was() -> Result<()> {
    privileged!();
    let program = program::REWRITTEN_LIBRARY;
    let trace = trace_path(program.name)?;

    record_launched(&trace, &[&program.build(FramePointers::Omitted)?])?;

    compare(&program.table()?, &report(&trace)?, Stacks::Complete)
}

#[test]
fn library_rewritten_in_place_keeps_no_perf_link_where_its_allocator_was() -> Result<()> {
    launched_with_perf_links(program::REWRITTEN_LIBRARY)
}

#[test]
fn forked_children_are_seen_through_perf_links() -> Result<()> {
    launched_with_perf_links(program::FORK_BOTH)
}

#[test]
fn exec_is_followed_through_perf_links() -> Result<()> {
    attached_with_perf_links(program::EXEC_AGAIN)
}

#[test]
fn many_threads_are_seen_through_perf_links() -> Result<()> {
    attached_with_perf_links(program::THREAD_CHURN)
}

#[test]
fn children_of_vfork_are_seen_through_perf_links() -> Result<()> {
    attached_with_perf_links(program::VFORK_CHILDREN)
}

#[test]
fn children_of_vfork_are_counted_where_they_cannot_be_seen() -> Result<()> {
    privileged!();
    multi_links!();
    let trace = trace_path("vfork_children")?;

    record_attached(&trace, &program::VFORK_CHILDREN.build(FramePointers::Omitted)?)?;

    let report = report(&trace)?;
    ensure!(report.counter("vfork_children") == 11, "counters: {}", report.json["counters"]);
    // What they allocated and their parent frees was never seen.
    ensure!(report.counter("orphan_frees") == 11, "counters: {}", report.json["counters"]);
    ensure!(report.number("/totals/allocations")? == 1, "{}", report.json["totals"]);
    Ok(())
}

#[test]
fn probes_outlive_the_first_thread() -> Result<()> {
    outlive_the_first_thread(&[])
}

#[test]
fn perf_links_outlive_the_first_thread() -> Result<()> {
    outlive_the_first_thread(PERF)
}

fn outlive_the_first_thread(arguments: &[&str]) -> Result<()> {
    privileged!();
    let program = program::FIRST_THREAD_ENDS;
    let trace = trace_path("first_thread_ends")?;
    let mut target = start_waiting(&program.build(FramePointers::Omitted)?)?;
    let recorder = Recorder::attach_with(target.pid(), &trace, arguments)?;
    target.go_on()?;
    target.wait_for_stdout("alone")?;

    // Closing anybody's probe makes the kernel look through all processes that map its file, for
    // breakpoints that no link wants any more.
    let other = start_waiting(&program::LEAK.build(FramePointers::Omitted)?)?;
    Recorder::attach(other.pid(), &trace_path("first_thread_ends-other")?)?.detach()?;
    target.go_on()?;
    target.wait_for_stdout("done")?;
    recorder.detach()?;

    target.go_on()?;
    target.finish()?.require_success("the target")?;
    compare(&program.table()?, &report(&trace)?, Stacks::Complete)
}

#[test]
fn child_that_is_not_traced_pays_nothing_for_long() -> Result<()> {
    privileged!();
    let trace = trace_path("untraced_child")?;

    // The program's status is that of its child.
    record_attached(&trace, &program::UNTRACED_CHILD.build(FramePointers::Omitted)?)?;

    let report = report(&trace)?;
    let counter = report.counter("forked_children_not_traced");
    ensure!(counter == 1, "counters: {}", report.json["counters"]);
    Ok(())
}

#[test]
fn detaching_takes_a_moment() -> Result<()> {
    privileged!();
    multi_links!();
    let target = start_waiting(&program::LEAK.build(FramePointers::Omitted)?)?;
    let recorder = Recorder::attach(target.pid(), &trace_path("detaching")?)?;

    let started = Instant::now();
    recorder.detach()?;

    // 70 ms on an idle machine; through perf links 2 s.
    let elapsed = started.elapsed();
    ensure!(elapsed < Duration::from_secs(1), "{elapsed:?}");
    Ok(())
}

#[test]
fn short_children_do_not_wait_for_each_other() -> Result<()> {
    privileged!();
    multi_links!();
    let trace = trace_path("short_children")?;
    let script = "i=0; while [ $i -lt 50 ]; do /bin/true; i=$((i+1)); done";
    let mut record = memtrace()?;
    record.args(["record", "-o"]).arg(&trace).args(["--", "sh", "-c", script]);

    let started = Instant::now();
    run(&mut record)?.require_success("memtrace record")?;

    // Less than 1 s on an idle machine; through perf links 2 minutes.
    let elapsed = started.elapsed();
    ensure!(elapsed < Duration::from_secs(15), "{elapsed:?}");
    let processes = report(&trace)?.json["target"]["processes"].as_array().map_or(0, Vec::len);
    ensure!(processes == 51, "{processes} processes");
    Ok(())
}

#[test]
fn target_hardly_stalls_while_probes_come_and_go() -> Result<()> {
    privileged!();
    let executable = program::STALLS.build(FramePointers::Omitted)?;
    let trace = trace_path("stalls")?;
    let mut target = Running::start(Command::new(executable).stdin(Stdio::piped()))?;
    target.wait_for_stdout("ready")?;

    for _ in 0..5 {
        target.go_on()?;
        target.wait_for_stdout("stall")?;
        Recorder::attach(target.pid(), &trace)?.detach()?;
        target.go_on()?;
        target.wait_for_stdout("stall")?;
    }

    // A busy machine may take the processor away in some rounds. What memtrace does is in each.
    let stdout = target.finish()?.require_success("the target")?.stdout;
    let stalls: Vec<u64> = stdout
        .lines()
        .filter_map(|line| line.strip_prefix("stall "))
        .map(|stall| stall.parse().with_context(|| stall.to_owned()))
        .collect::<Result<_>>()?;
    let shortest_us = stalls.iter().skip(1).step_by(2).min().context("no stalls")?;
    println!("longest stall of each round and of the time before it: {stalls:?} us");
    ensure!(*shortest_us < 20_000, "{stalls:?} us");
    Ok(())
}
