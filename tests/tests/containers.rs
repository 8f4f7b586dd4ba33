//! Programs in namespaces of their own, with another C library, traced from the host.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use memtrace_tests::compare::{Stacks, compare};
use memtrace_tests::container::{Container, Depth, PodmanContainer};
use memtrace_tests::privileged;
use memtrace_tests::program::{self, FramePointers};
use memtrace_tests::recording::{Recorder, Running, memtrace, run, trace_path};
use memtrace_tests::report::Report;

/// Attaches by the host's id; reports while the container is there.
fn record(container: Container, trace: &Path, arguments: &[&str]) -> Result<Report> {
    let json = trace.with_extension("json");
    let json_name = json.to_str().context("a path in UTF-8")?;
    let arguments = [arguments, &["--report", json_name]].concat();
    let recorder = Recorder::attach_with(container.pid, trace, &arguments)?;
    work_and_end(container.running, recorder)?;
    Report::parse(&fs::read_to_string(&json).context("read the report")?)
}

/// Lets the program in a container do its work, and end when the recorder has detached.
fn work_and_end(mut container: Running, recorder: Recorder) -> Result<()> {
    container.go_on()?;
    container.wait_for_stdout("done")?;
    recorder.detach()?;
    container.go_on()?;
    container.finish()?.require_success("the container")?;
    Ok(())
}

/// What the report says of the process that was attached to.
fn process(report: &Report) -> &serde_json::Value {
    &report.json["target"]["processes"][0]
}

#[test]
fn musl_program_in_a_container_is_traced_from_the_host() -> Result<()> {
    privileged!();
    let program = program::LEAK_MUSL;
    let trace = trace_path("container")?;
    let executable = program.build(FramePointers::Omitted)?;
    let container = Container::start("container", &executable, Depth::Single)?;
    let (pid, inner_pids, root) =
        (container.pid, container.inner_pids.clone(), container.root.clone());

    let report = record(container, &trace, &[])?;

    compare(&program.table()?, &report, Stacks::HeapComplete)?;
    ensure!(inner_pids.len() == 1 && inner_pids[0] > 1, "{inner_pids:?}");
    ensure!(process(&report)["pid"] == pid, "{}", process(&report));
    ensure!(process(&report)["namespace_pid"] == inner_pids[0], "{}", process(&report));
    ensure!(process(&report)["exe"] == "/bin/leak_musl", "{}", process(&report));

    // The container is gone; its files are known by where they were.
    let mut later = memtrace()?;
    later.arg("report").arg(&trace).args(["--format", "json", "--debug-dir"]).arg(&root);
    let later = Report::parse(&run(&mut later)?.require_success("memtrace report")?.stdout)?;
    compare(&program.table()?, &later, Stacks::HeapComplete)?;
    let text = run(memtrace()?.arg("report").arg(&trace))?.require_success("memtrace report")?;
    let title = format!("leak_musl (pid {pid}, {} in its namespace)", inner_pids[0]);
    ensure!(text.stdout.contains(&title), "{}", text.stdout);
    Ok(())
}

#[test]
fn program_in_nested_namespaces_has_its_innermost_id() -> Result<()> {
    privileged!();
    let program = program::LEAK_MUSL;
    let trace = trace_path("nested_container")?;
    let executable = program.build(FramePointers::Omitted)?;
    let container = Container::start("nested_container", &executable, Depth::Nested)?;
    let inner_pids = container.inner_pids.clone();

    let report = record(container, &trace, &[])?;

    compare(&program.table()?, &report, Stacks::HeapComplete)?;
    ensure!(inner_pids.len() == 2, "{inner_pids:?}");
    ensure!(process(&report)["namespace_pid"] == inner_pids[1], "{}", process(&report));
    Ok(())
}

#[test]
fn children_in_a_container_are_followed() -> Result<()> {
    privileged!();
    let program = program::FORK_BOTH_MUSL;
    let trace = trace_path("container_children")?;
    let executable = program.build(FramePointers::Omitted)?;
    let container = Container::start("container_children", &executable, Depth::Single)?;

    let report = record(container, &trace, &["--children"])?;

    compare(&program.table()?, &report, Stacks::HeapComplete)?;
    let processes = report.json["target"]["processes"].as_array().context("processes")?;
    for process in processes {
        ensure!(process["namespace_pid"].as_u64().is_some_and(|pid| pid > 1), "{process}");
    }
    Ok(())
}

#[test]
fn threads_in_a_container_have_complete_stacks() -> Result<()> {
    privileged!();
    let program = program::CROSS_THREAD_MUSL;
    let trace = trace_path("container_threads")?;
    let executable = program.build(FramePointers::Omitted)?;
    let container = Container::start("container_threads", &executable, Depth::Single)?;

    let report = record(container, &trace, &[])?;

    compare(&program.table()?, &report, Stacks::HeapComplete)
}

#[test]
fn container_of_podman_is_found_by_its_id() -> Result<()> {
    privileged!();
    let program = program::LEAK_MUSL;
    let trace = trace_path("podman")?;
    let executable = program.build(FramePointers::Omitted)?;
    let container = match PodmanContainer::start("podman", &executable)? {
        Ok(container) => container,
        Err(reason) => {
            println!("skipped: podman starts no container here: {reason}");
            return Ok(());
        }
    };

    let json = trace.with_extension("json");
    let json_name = json.to_str().context("a path in UTF-8")?;
    let recorder =
        Recorder::select(&["--container", &container.id[..12], "--report", json_name], &trace)?;
    work_and_end(container.running, recorder)?;

    let report = Report::parse(&fs::read_to_string(&json).context("read the report")?)?;
    compare(&program.table()?, &report, Stacks::HeapComplete)?;
    let processes = report.json["target"]["processes"].as_array().context("processes")?;
    ensure!(processes.len() == 1, "{processes:?}");
    ensure!(process(&report)["container"] == container.id, "{}", process(&report));
    ensure!(process(&report)["exe"] == "/bin/leak_musl", "{}", process(&report));
    ensure!(process(&report)["namespace_pid"] == 1, "{}", process(&report));
    Ok(())
}
