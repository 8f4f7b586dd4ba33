//! Stacks through code that is hard to walk, to remember or to name, in programs with known numbers.
//!
//! The same program is built in all the ways in which its code can lie in memory and its unwind
//! information in the file; and files are taken away under a process that runs them.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use memtrace_tests::compare::{Stacks, compare};
use memtrace_tests::program::{self, FramePointers, Program, Startup};
use memtrace_tests::recording::{
    Recorder, Running, record_attached, report, run, start_waiting, trace_path,
};
use memtrace_tests::report::{Frame, Report};
use memtrace_tests::{privileged, scratch_directory};

fn attached(program: Program) -> Result<Report> {
    let executable = program.build(FramePointers::Omitted)?;
    let trace = trace_path(&format!("hostile-{}", program.name))?;
    record_attached(&trace, &executable)?;
    report(&trace)
}

fn require_table(program: Program) -> Result<()> {
    privileged!();
    let mut table = program.table()?;
    if program.startup == Startup::Allocates {
        table.totals.clear();
    }
    compare(&table, &attached(program)?, Stacks::Complete)
}

#[test]
fn program_with_debug_frame_only_is_walked() -> Result<()> {
    require_table(program::LEAK_DEBUG_FRAME)
}

#[test]
fn static_position_independent_program_is_walked() -> Result<()> {
    require_table(program::LEAK_STATIC_PIE)
}

#[test]
fn program_at_a_fixed_address_is_walked() -> Result<()> {
    require_table(program::LEAK_FIXED)
}

#[test]
fn few_call_paths_are_remembered_after_too_many() -> Result<()> {
    privileged!();
    let report = attached(program::MANY_PATHS)?;

    compare(&program::MANY_PATHS.table()?, &report, Stacks::Complete)?;
    let walks = report.counter("stack_walks");
    // The 16,384 paths are hardly recognised the second time; each of the 20 soon is.
    ensure!((25_000..34_000).contains(&walks), "{walks} of 132,768 stacks were walked");
    Ok(())
}

/// The program without its symbol table, and with that compressed in `.gnu_debugdata` if `packed`,
/// as Fedora's packages are.
fn stripped(directory: &str, packed: bool) -> Result<PathBuf> {
    let program = program::LEAK.build(FramePointers::Omitted)?;
    let directory = scratch_directory(directory)?;
    let [stripped, symbols] = ["leak", "symbols"].map(|name| directory.join(name));
    let objcopy = |arguments: &[&OsStr]| {
        run(Command::new("objcopy").args(arguments))?.require_success("objcopy")
    };
    objcopy(&["--strip-all".as_ref(), program.as_os_str(), stripped.as_os_str()])?;
    if packed {
        let only_symbols = ["--only-keep-debug", "--strip-debug"].map(OsStr::new);
        objcopy(&[&only_symbols[..], &[program.as_os_str(), symbols.as_os_str()]].concat())?;
        run(Command::new("xz").arg(&symbols))?.require_success("xz")?;
        let section = format!("--add-section=.gnu_debugdata={}.xz", symbols.display());
        objcopy(&[section.as_ref(), stripped.as_os_str()])?;
    }
    Ok(stripped)
}

#[test]
fn stripped_program_has_the_names_of_its_packed_symbols() -> Result<()> {
    privileged!();
    let trace = trace_path("hostile-packed")?;

    record_attached(&trace, &stripped("packed-symbols", true)?)?;

    compare(&program::LEAK.table()?, &report(&trace)?, Stacks::Complete)
}

#[test]
fn stripped_program_without_symbols_is_walked_without_names() -> Result<()> {
    privileged!();
    let trace = trace_path("hostile-stripped")?;

    record_attached(&trace, &stripped("no-symbols", false)?)?;

    let report = report(&trace)?;
    let names = report.stacks.iter().flat_map(|stack| &stack.frames);
    let own = |frame: &&Frame| frame.module.ends_with("/leak") && frame.function.is_some();
    ensure!(names.filter(own).count() == 0, "nothing tells these names: {}", report.json["stacks"]);
    for total in program::LEAK.table()?.totals {
        ensure!(report.json["totals"][total.name] == total.expected, "{}", total.name);
    }
    ensure!(report.number("/capture/truncated_stacks")? == 0, "{}", report.json["counters"]);
    Ok(())
}

/// The program, which waits, and the map that it has written.
fn start_hostile_frames() -> Result<(Running, PathBuf)> {
    let target = start_waiting(&program::HOSTILE_FRAMES.build(FramePointers::Omitted)?)?;
    let map = PathBuf::from(format!("/tmp/perf-{}.map", target.pid()));
    Ok((target, map))
}

#[test]
fn assembly_and_run_time_code_are_walked_and_named() -> Result<()> {
    privileged!();
    let trace = trace_path("hostile-frames")?;
    let (mut target, map) = start_hostile_frames()?;

    let recorder = Recorder::attach(target.pid(), &trace)?;
    target.go_on()?;
    target.wait_for_stdout("done")?;
    recorder.detach()?;
    end(target)?;
    std::fs::remove_file(map).context("the program's perf map")?;

    compare(&program::HOSTILE_FRAMES.table()?, &report(&trace)?, Stacks::Complete)
}

#[test]
fn run_time_code_of_a_program_that_has_ended_is_named() -> Result<()> {
    privileged!();
    let trace = trace_path("hostile-ended")?;
    let (mut target, map) = start_hostile_frames()?;

    let recorder = Recorder::attach(target.pid(), &trace)?;
    target.go_on()?;
    target.wait_for_stdout("done")?;
    end(target)?;
    recorder.finish()?;
    std::fs::remove_file(map).context("the program's perf map")?;

    let report = report(&trace)?;
    let named = report.stacks.iter().flat_map(|stack| &stack.frames);
    ensure!(named.filter(|frame| frame.is("jitted")).count() == 1, "{}", report.json["stacks"]);
    Ok(())
}

/// A copy of a program in a place of its own, which can be taken away.
fn copy_of(program: Program) -> Result<PathBuf> {
    let executable = program.build(FramePointers::Omitted)?;
    let copy = scratch_directory("hostile-copy")?.join(program.name);
    std::fs::copy(&executable, &copy).context("copy the program")?;
    Ok(copy)
}

#[test]
fn program_that_was_deleted_has_names_while_it_runs() -> Result<()> {
    privileged!();
    let executable = copy_of(program::LEAK)?;
    let trace = trace_path("hostile-deleted")?;
    let json = trace.with_file_name("report.json");
    let mut target = start_waiting(&executable)?;
    std::fs::remove_file(&executable).context("delete the program")?;
    // Another program takes its place, and would give wrong names.
    std::fs::copy("/bin/true", &executable).context("replace the program")?;

    let json_argument = json.to_string_lossy();
    let recorder = Recorder::attach_with(target.pid(), &trace, &["--report", &json_argument])?;
    target.go_on()?;
    target.wait_for_stdout("done")?;
    recorder.detach()?;
    end(target)?;

    let text = std::fs::read_to_string(&json).context("the report of the session")?;
    compare(&program::LEAK.table()?, &Report::parse(&text)?, Stacks::Complete)?;
    // Afterwards nobody has the file any more, and the report says so.
    let later = report(&trace)?;
    let named = later.stacks.iter().flat_map(|stack| &stack.frames);
    let mut named = named.filter_map(|frame| frame.function.as_deref());
    ensure!(named.all(|name| name != "leak_blocks"), "it has names of a file that is gone");
    Ok(())
}

fn end(mut target: Running) -> Result<()> {
    target.go_on()?;
    target.finish()?.require_success("the target")?;
    Ok(())
}
