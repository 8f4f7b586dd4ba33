//! Reserved address space that becomes memory: what the kernel shows is what memtrace says.

use anyhow::{Context, Result, ensure};
use memtrace_tests::privileged;
use memtrace_tests::program::{self, FramePointers};
use memtrace_tests::recording::{Recorder, record_launched, report, start_waiting, trace_path};
use memtrace_tests::report::Report;

/// The stack, which the kernel grows by itself, what `brk` gives, and the page of return probes.
const IGNORED: [&str; 3] = ["[stack]", "[heap]", "[uprobes]"];

/// Bytes that the process may access.
fn accessible_bytes(pid: u32) -> Result<u64> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).context("read maps")?;
    let mut sum = 0;
    for line in maps.lines() {
        let (range, rest) = line.split_once(' ').context("a mapping without rights")?;
        let (start, end) = range.split_once('-').context("a mapping without an end")?;
        if !rest.starts_with("---") && !IGNORED.iter().any(|name| line.ends_with(name)) {
            sum += u64::from_str_radix(end, 16)? - u64::from_str_radix(start, 16)?;
        }
    }
    Ok(sum)
}

/// What lives of the stacks that `is_wanted` is true for, by API.
fn live_bytes(report: &Report, api: &str, is_wanted: impl Fn(&str) -> bool) -> u64 {
    let wanted = report.stacks.iter().filter(|stack| {
        let names = || stack.frames.iter().filter_map(|frame| frame.function.as_deref());
        stack.api == api && names().any(&is_wanted)
    });
    wanted.filter_map(|stack| stack.json["live_bytes"].as_u64()).sum()
}

#[test]
fn thread_arenas_have_the_bytes_that_the_kernel_shows() -> Result<()> {
    privileged!();
    let trace = trace_path("arenas")?;
    let mut target = start_waiting(&program::ARENAS.build(FramePointers::Omitted)?)?;
    let recorder = Recorder::attach(target.pid(), &trace)?;
    let before = accessible_bytes(target.pid())?;

    target.go_on()?;
    target.wait_for_stdout("done")?;
    let grown = accessible_bytes(target.pid())? - before;
    recorder.detach()?;
    target.go_on()?;
    target.finish()?.require_success("the target")?;

    let report = report(&trace)?;
    ensure!(report.number("/capture/lost_events")? == 0, "{}", report.json["counters"]);
    let [mapped, committed] = ["mmap", "mprotect"].map(|api| live_bytes(&report, api, |_| true));
    ensure!(mapped + committed == grown, "{mapped} + {committed} are not {grown}");
    // 4000 blocks of 1000 bytes each, in arenas from before the attach as in those from after it.
    for run in ["grow_old_arena", "grow_new_arena"] {
        let bytes = live_bytes(&report, "mprotect", |name| name == run);
        ensure!(bytes > 3 * 4_000_000 - (3 << 20), "{run}: {bytes}");
    }
    Ok(())
}

#[test]
fn heap_of_node_is_mapped_by_its_functions() -> Result<()> {
    privileged!();
    const HOLD_30_MB: &str =
        "global.held = Array.from({ length: 40 }, () => new Array(100000).fill(0.5));";
    let trace = trace_path("node-heap")?;
    let script = trace.with_file_name("script.js");
    std::fs::write(&script, HOLD_30_MB).context("write a script")?;

    record_launched(&trace, &["/usr/bin/node".as_ref(), &script])?;

    let report = report(&trace)?;
    ensure!(report.number("/capture/lost_events")? == 0, "{}", report.json["counters"]);
    let functions = report.json["functions"].as_array().context("no functions")?;
    let largest = functions
        .iter()
        .filter(|function| function["function"].as_str().is_some_and(|f| f.starts_with("v8::")))
        .filter_map(|function| function["mapped"]["total"]["peak_bytes"].as_u64())
        .max();
    ensure!(largest.is_some_and(|bytes| bytes > 30_000_000), "{largest:?}");
    Ok(())
}
