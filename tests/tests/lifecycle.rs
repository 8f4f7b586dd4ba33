//! Attaching and detaching: what was before, who ends first, and what is left behind.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};
use memtrace_tests::compare::{Stacks, compare};
use memtrace_tests::privileged;
use memtrace_tests::program::{self, FramePointers};
use memtrace_tests::recording::{
    Recorder, Running, memtrace, record_attached, record_launched, report, run, start_waiting,
    trace_path,
};

fn start_steady() -> Result<Running> {
    let executable = program::STEADY.build(FramePointers::Omitted)?;
    let mut target = Running::start(Command::new(executable).stdin(Stdio::piped()))?;
    target.wait_for_stdout("ready")?;
    Ok(target)
}

fn end_steady(mut target: Running) -> Result<()> {
    ensure!(target.is_running()?, "the target has stopped");
    target.go_on()?;
    target.finish()?.require_success("the target")?;
    Ok(())
}

#[test]
fn memory_from_before_the_attach_is_told_apart() -> Result<()> {
    privileged!();
    let program = program::BEFORE_ATTACH;
    let trace = trace_path("before_attach")?;

    record_attached(&trace, &program.build(FramePointers::Omitted)?)?;

    let report = report(&trace)?;
    compare(&program.table()?, &report, Stacks::Complete)?;
    ensure!(report.counter("orphan_frees") == 1013, "counters: {}", report.json["counters"]);
    let heap = report.number("/target/processes/0/before_attach/heap_bytes")?;
    ensure!(heap >= 1013 * 4099, "{heap} bytes of heap before the attach");
    Ok(())
}

#[test]
fn target_that_ends_ends_the_recording() -> Result<()> {
    privileged!();
    let program = program::LEAK;
    let trace = trace_path("target_ends")?;
    let mut target = start_waiting(&program.build(FramePointers::Omitted)?)?;
    let recorder = Recorder::attach(target.pid(), &trace)?;

    target.go_on()?;
    target.wait_for_stdout("done")?;
    target.go_on()?;
    target.finish()?.require_success("the target")?;
    recorder.finish()?;

    let report = report(&trace)?;
    ensure!(report.json["capture"]["end"] == "target_exited", "{}", report.json["capture"]["end"]);
    compare(&program.table()?, &report, Stacks::Complete)
}

#[test]
fn duration_ends_the_recording_and_the_target_goes_on() -> Result<()> {
    privileged!();
    let trace = trace_path("duration")?;
    let target = start_steady()?;

    Recorder::attach_with(target.pid(), &trace, &["--duration", "1s"])?.finish()?;

    end_steady(target)?;
    let report = report(&trace)?;
    ensure!(report.json["capture"]["end"] == "duration_over", "{}", report.json["capture"]["end"]);
    ensure!(report.number("/totals/allocations")? > 0, "nothing was recorded");
    ensure!(report.number("/capture/lost_events")? == 0, "{}", report.json["counters"]);
    Ok(())
}

#[test]
fn attaching_again_and_again_leaves_the_target_unharmed() -> Result<()> {
    privileged!();
    let trace = trace_path("again_and_again")?;
    let target = start_steady()?;

    for _ in 0..5 {
        Recorder::attach(target.pid(), &trace)?.detach()?;
    }

    end_steady(target)
}

#[test]
fn recorder_that_does_not_look_counts_every_event_it_lost() -> Result<()> {
    privileged!();
    let trace = trace_path("does_not_look")?;
    let mut target = start_waiting(&program::FLOOD.build(FramePointers::Omitted)?)?;
    let small = ["--ring-size", "1M", "--back-pressure", "10ms"];
    let recorder = Recorder::attach_with(target.pid(), &trace, &small)?;

    recorder.signal("STOP")?;
    target.go_on()?;
    target.wait_for_stdout("done")?;
    recorder.signal("CONT")?;
    recorder.detach()?;

    target.go_on()?;
    target.finish()?.require_success("the target")?;
    let report = report(&trace)?;
    let (allocations, frees) = (
        report.number("/totals/allocations")?,
        report.counter("orphan_frees") + report.number("/totals/frees")?,
    );
    let (lost_allocations, lost_frees) =
        (report.counter("lost_allocations"), report.counter("lost_frees"));
    ensure!(lost_allocations > 0 && lost_frees > 0, "counters: {}", report.json["counters"]);
    ensure!(allocations + lost_allocations == 40_000, "{allocations} + {lost_allocations}");
    ensure!(frees + lost_frees == 40_000, "{frees} + {lost_frees}");
    ensure!(report.number("/capture/lost_events")? > 0, "the report's head hides it");
    let (peak_bytes, stalls) = (report.counter("ring_peak_bytes"), report.counter("ring_stalls"));
    ensure!((900_000..=1 << 20).contains(&peak_bytes), "the ring held {peak_bytes} bytes");
    ensure!(stalls > 0, "counters: {}", report.json["counters"]);
    Ok(())
}

#[test]
fn small_ring_of_a_busy_target_loses_nothing() -> Result<()> {
    privileged!();
    let trace = trace_path("small_ring")?;
    let mut target = start_waiting(&program::MANY_PATHS.build(FramePointers::Omitted)?)?;
    let recorder = Recorder::attach_with(target.pid(), &trace, &["--ring-size", "1M"])?;

    // Twelve rings full of stacks, and as much again of allocations and releases.
    target.go_on()?;
    target.wait_for_stdout("done")?;
    recorder.detach()?;

    target.go_on()?;
    target.finish()?.require_success("the target")?;
    let report = report(&trace)?;
    ensure!(report.number("/capture/lost_events")? == 0, "counters: {}", report.json["counters"]);
    let peak_bytes = report.counter("ring_peak_bytes");
    ensure!(peak_bytes <= 1 << 20, "the ring held {peak_bytes} bytes");
    compare(&program::MANY_PATHS.table()?, &report, Stacks::Complete)
}

#[test]
fn target_whose_end_was_lost_ends_the_recording() -> Result<()> {
    privileged!();
    let trace = trace_path("lost_end")?;
    let mut target = start_waiting(&program::FLOOD.build(FramePointers::Omitted)?)?;
    let small = ["--ring-size", "1M", "--back-pressure", "0ms"];
    let recorder = Recorder::attach_with(target.pid(), &trace, &small)?;

    recorder.signal("STOP")?;
    target.go_on()?;
    target.wait_for_stdout("done")?;
    target.go_on()?;
    target.finish()?.require_success("the target")?;
    recorder.signal("CONT")?;
    recorder.finish()?;

    let report = report(&trace)?;
    ensure!(report.counter("lost_lifecycle_events") > 0, "counters: {}", report.json["counters"]);
    ensure!(report.json["capture"]["end"] == "target_exited", "{}", report.json["capture"]["end"]);
    Ok(())
}

#[test]
fn program_whose_beginning_was_lost_is_followed() -> Result<()> {
    privileged!();
    let trace = trace_path("lost_exec")?;
    let mut target = start_waiting(&program::EXEC_UNSEEN.build(FramePointers::Omitted)?)?;
    let mut record = memtrace()?;
    record.args(["record", "-v", "-p", &target.pid().to_string(), "-o"]).arg(&trace);
    record.args(["--ring-size", "1M", "--back-pressure", "0ms"]).stdin(Stdio::null());
    let mut recorder = Running::start(&mut record)?;
    recorder.wait_for_stderr("attached to")?;

    recorder.signal("STOP")?;
    target.go_on()?;
    target.wait_for_stdout("ready")?;
    recorder.signal("CONT")?;
    recorder.wait_for_stderr("the event of it was lost")?;
    target.go_on()?;
    target.wait_for_stdout("done")?;
    recorder.signal("INT")?;
    recorder.finish()?.require_success("memtrace record")?;
    target.go_on()?;
    target.finish()?.require_success("the target")?;

    let report = report(&trace)?;
    ensure!(report.counter("lost_lifecycle_events") > 0, "counters: {}", report.json["counters"]);
    let exe = report.json["target"]["processes"][0]["exe"].as_str().unwrap_or_default();
    ensure!(exe.ends_with("/exec_unseen_next"), "{exe}");
    let leaks: Vec<_> = report
        .stacks
        .iter()
        .filter(|stack| {
            stack.is_heap() && stack.frames.first().is_some_and(|f| f.is("leak_blocks"))
        })
        .collect();
    ensure!(leaks.len() == 1 && leaks[0].end == "root", "{leaks:?}");
    ensure!(leaks[0].json["live_blocks"] == 1009, "{}", leaks[0].json);
    Ok(())
}

#[test]
fn doctor_says_that_memtrace_can_attach_where_it_can() -> Result<()> {
    privileged!();

    let finished = run(memtrace()?.arg("doctor"))?.require_success("memtrace doctor")?;

    ensure!(finished.stdout.contains("memtrace can attach here"), "{}", finished.stdout);
    ensure!(finished.stdout.contains("bpf_loop"), "{}", finished.stdout);
    Ok(())
}

#[test]
fn killed_recorder_leaves_the_target_running_and_the_trace_readable() -> Result<()> {
    privileged!();
    let trace = trace_path("killed_recorder")?;
    let target = start_steady()?;
    let recorder = Recorder::attach_with(target.pid(), &trace, &["--duration", "60s"])?;
    // Not a wait for an event: the trace must have had the time to be written.
    std::thread::sleep(std::time::Duration::from_secs(3));

    recorder.kill()?;

    end_steady(target)?;
    let finished = run(memtrace()?.arg("report").arg(&trace).args(["--format", "json"]))?
        .require_success("memtrace report")?;
    let report = memtrace_tests::report::Report::parse(&finished.stdout)?;
    ensure!(report.number("/totals/allocations")? > 0, "nothing can be read");
    ensure!(report.json["capture"]["end"].is_null(), "{}", report.json["capture"]["end"]);
    ensure!(finished.stderr.contains("trace.mtrace"), "it does not say so: {}", finished.stderr);
    Ok(())
}

#[test]
fn recorder_killed_in_a_fork_leaves_no_child_stopped() -> Result<()> {
    privileged!();
    // A shell that forks all the time, so that the kill falls into a fork now and then.
    let script = "echo ready; while [ ! -e \"$1\" ]; do (exit 0); done; exit 7";
    for round in 0..3 {
        let trace = trace_path("killed_in_a_fork")?;
        let stop = trace.with_extension("stop");
        let mut shell = Command::new("sh");
        shell.args(["-c", script, "sh"]).arg(&stop).stdin(Stdio::null());
        let mut target = Running::start(&mut shell)?;
        target.wait_for_stdout("ready")?;
        let recorder = Recorder::attach(target.pid(), &trace)?;
        std::thread::sleep(std::time::Duration::from_millis(300 + 70 * round));

        recorder.kill()?;

        std::fs::write(&stop, "")?;
        let finished = target.finish()?;
        ensure!(finished.status.code() == Some(7), "the shell: {}", finished.status);
    }
    Ok(())
}

#[test]
fn exit_status_of_a_launched_command_does_not_matter() -> Result<()> {
    privileged!();
    let trace = trace_path("exit_status")?;

    record_launched(&trace, &["sh".as_ref(), "-c".as_ref(), "exit 3".as_ref()])?;

    ensure!(report(&trace)?.json["capture"]["end"] == "target_exited", "the end");
    Ok(())
}

#[test]
fn launched_command_keeps_its_limit_of_open_files() -> Result<()> {
    privileged!();
    let trace = trace_path("open_files")?;
    let ask = ["sh", "-c", "ulimit -S -n 1000; exec \"$@\"", "sh"];
    let mut record = Command::new(ask[0]);
    record.args(&ask[1..]).arg(memtrace()?.get_program()).args(["record", "-o"]).arg(&trace);
    record.args(["--", "sh", "-c", "ulimit -S -n"]);

    let finished = run(&mut record)?.require_success("memtrace record")?;

    ensure!(finished.stdout == "1000\n", "{:?}", finished.stdout);
    Ok(())
}

#[test]
fn ctrl_c_ends_a_launched_command_and_writes_the_trace() -> Result<()> {
    privileged!();
    let trace = trace_path("ctrl_c")?;
    let mut record = memtrace()?;
    // Once it has said so it has an allocator, which it does not have at its first instruction.
    let script = "echo started; exec sleep 1000";
    record.args(["record", "-o"]).arg(&trace).args(["--", "sh", "-c", script]);
    let mut running = Running::start(record.stdin(Stdio::null()).process_group(0))?;
    running.wait_for_stdout("started")?;

    // A terminal sends it to the whole group.
    running.signal_group("INT")?;

    running.finish()?.require_success("memtrace record")?;
    let report = report(&trace)?;
    let end = &report.json["capture"]["end"];
    ensure!(end == "interrupted" || end == "target_exited", "{end}");
    Ok(())
}

#[test]
fn go_program_gets_a_clear_answer_and_runs_on() -> Result<()> {
    privileged!();
    let executable = program::GO_PROGRAM.build(FramePointers::Kept)?;
    let trace = trace_path("go_program")?;

    let finished = record_attached(&trace, &executable)?;

    ensure!(finished.stderr.contains("Go"), "it does not say what it sees:\n{}", finished.stderr);
    let report = report(&trace)?;
    ensure!(report.number("/totals/allocations")? == 0, "Go calls no malloc");
    ensure!(report.number("/totals/mapped/allocated_bytes")? >= 128 << 20, "its mappings are not");
    ensure!(report.number("/capture/lost_events")? == 0, "{}", report.json["counters"]);
    Ok(())
}
