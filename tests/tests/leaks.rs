//! `memtrace leaks`: blocks that nothing points to, told from outside.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use memtrace_tests::privileged;
use memtrace_tests::program::{self, FramePointers, Program};
use memtrace_tests::recording::{
    ATTACHED, Finished, Running, memtrace, run, start_waiting, trace_path,
};
use memtrace_tests::report::frames;
use serde_json::Value;

/// What of one function's blocks is lost: (directly, indirectly).
type ByFunction = BTreeMap<String, (u64, u64)>;

/// Starts `memtrace leaks` and waits until it sees every call.
fn watch(target: &Running, arguments: &[&str]) -> Result<Running> {
    let mut command = memtrace()?;
    command.args(["leaks", "-p", &target.pid().to_string()]).args(arguments);
    let mut leaks = Running::start(command.stdin(Stdio::null()))?;
    leaks.wait_for_stderr(ATTACHED)?;
    Ok(leaks)
}

/// Has a waiting program do its work under `memtrace leaks`; it must end well afterwards.
fn leaks_of(program: Program, arguments: &[&str]) -> Result<Value> {
    let mut target = start_waiting(&program.build(FramePointers::Omitted)?)?;
    let leaks = watch(&target, &[&["--format", "json"], arguments].concat())?;
    target.go_on()?;
    target.wait_for_stdout("done")?;
    leaks.signal("INT")?;
    let found = leaks.finish()?;
    ensure!(target.is_running()?, "the target does not run after the scan");
    target.go_on()?;
    target.finish()?.require_success("the target, after the scan,")?;
    report(&found)
}

fn report(found: &Finished) -> Result<Value> {
    ensure!(found.status.code() == Some(1), "{}\n{}\n{}", found.status, found.stdout, found.stderr);
    serde_json::from_str(&found.stdout).context(found.stdout.clone())
}

fn number(report: &Value, pointer: &str) -> Result<u64> {
    report.pointer(pointer).and_then(Value::as_u64).with_context(|| format!("{pointer}: {report}"))
}

fn by_function(report: &Value) -> Result<ByFunction> {
    let mut functions = ByFunction::new();
    for stack in report["stacks"].as_array().context("stacks")? {
        let function = frames(report, stack)?.into_iter().next().and_then(|frame| frame.function);
        let losses = functions.entry(function.unwrap_or_else(|| "??".to_owned())).or_default();
        losses.0 += number(stack, "/direct_blocks")?;
        losses.1 += number(stack, "/indirect_blocks")?;
    }
    Ok(functions)
}

/// What `lost_blocks.c` says of itself.
fn expected() -> ByFunction {
    [
        ("lose_head_of_list", (1, 9)),
        ("lose_cycle", (1, 2)),
        ("lose_plain", (7, 0)),
        ("lose_hidden", (1, 0)),
        ("lose_large", (1, 0)),
        ("lose_with_owner", (1, 0)),
        ("lose_in_moved_table", (20, 0)),
    ]
    .map(|(function, losses)| (function.to_owned(), losses))
    .into()
}

#[test]
fn lost_blocks_are_found_and_no_others() -> Result<()> {
    privileged!();

    let report = leaks_of(program::LOST_BLOCKS, &[])?;

    ensure!(by_function(&report)? == expected(), "{report:#}");
    ensure!(number(&report, "/totals/direct_blocks")? == 32, "{report:#}");
    ensure!(number(&report, "/totals/indirect_blocks")? == 11, "{report:#}");
    ensure!(
        number(&report, "/totals/direct_bytes")?
            == 56 + 56 + 7 * 113 + 211 + 300_000 + 47 + 20 * 49
    );
    ensure!(number(&report, "/scan/threads")? == 3, "{report:#}");
    ensure!(number(&report, "/scan/stopped_ns")? > 0, "{report:#}");
    Ok(())
}

#[test]
fn process_that_waits_and_is_not_stopped_gives_the_same() -> Result<()> {
    privileged!();

    let report = leaks_of(program::LOST_BLOCKS, &["--no-stop"])?;

    let mut found = by_function(&report)?;
    let mut expected = expected();
    // A register is not seen; what earlier calls have left below the stack pointer is.
    for either in ["thread_with_register", "lose_in_moved_table"] {
        found.remove(either);
        expected.remove(either);
    }
    ensure!(found == expected, "{report:#}");
    ensure!(report["scan"]["stopped_ns"].is_null(), "{report:#}");
    Ok(())
}

/// LeakSanitizer knows neither epoll, nor mappings of the program's own, nor tags in the highest bits,
/// and no block of a cycle is its direct loss; otherwise both agree on every block.
#[test]
fn lost_blocks_are_those_of_leak_sanitizer() -> Result<()> {
    privileged!();
    let executable = program::LOST_BLOCKS_LSAN.build(FramePointers::Kept)?;
    let judged = run(Command::new(executable).env("LSAN_OPTIONS", "exitcode=0:detect_leaks=1"))?;

    let ours = by_function(&leaks_of(program::LOST_BLOCKS, &[])?)?;

    let mut theirs = leak_sanitizer(&judged.stderr)?;
    for kept in ["keep_in_epoll", "keep_in_mapping", "keep_with_high_tag"] {
        ensure!(theirs.remove(kept) == Some((1, 0)), "{kept}\n{}", judged.stderr);
    }
    let cycle = theirs.get_mut("lose_cycle").context("the cycle")?;
    ensure!(*cycle == (0, 3), "{}", judged.stderr);
    *cycle = (1, 2);
    ensure!(ours == theirs, "{ours:?}\n{}", judged.stderr);
    Ok(())
}

/// `Direct leak of 791 byte(s) in 7 object(s) allocated from:`, and the caller of malloc below.
fn leak_sanitizer(text: &str) -> Result<ByFunction> {
    // The first report alone: a second one comes at the end of the program.
    let text = text.split("SUMMARY:").next().unwrap_or_default();
    let mut functions = ByFunction::new();
    for part in text.split("\n\n") {
        let Some((kind, rest)) = part.trim().split_once(" leak of ") else { continue };
        let blocks = rest.split_once(" in ").and_then(|(_, rest)| rest.split(' ').next());
        let blocks: u64 = blocks.context(part.to_owned())?.parse()?;
        let caller = rest.lines().find(|line| line.trim_start().starts_with("#1 "));
        let function = caller.and_then(|line| line.split(" in ").nth(1)?.split(' ').next());
        let losses = functions.entry(function.context(part.to_owned())?.to_owned()).or_default();
        match kind.rsplit('\n').next() {
            Some("Direct") => losses.0 += blocks,
            _ => losses.1 += blocks,
        }
    }
    Ok(functions)
}

#[test]
fn process_that_allocates_meanwhile_loses_nothing_to_the_scan() -> Result<()> {
    privileged!();
    for _ in 0..3 {
        let report = leaks_of(program::LOST_UNDER_CHURN, &[])?;

        let expected = ByFunction::from([("lose_some".to_owned(), (100, 0))]);
        ensure!(by_function(&report)? == expected, "{report:#}");
        ensure!(number(&report, "/scan/threads")? == 5, "{report:#}");
    }
    Ok(())
}

#[test]
fn process_under_a_debugger_is_refused_and_can_be_read_without_a_stop() -> Result<()> {
    privileged!();
    let mut target = start_waiting(&program::LOST_BLOCKS.build(FramePointers::Omitted)?)?;
    let mut debugger = Running::start(
        Command::new("strace").args(["-f", "-p", &target.pid().to_string()]).stdin(Stdio::null()),
    )?;
    debugger.wait_for_stderr("attached")?;

    let refused = watch(&target, &[])?;
    refused.signal("INT")?;
    let refused = refused.finish()?;
    let found = watch(&target, &["--no-stop", "--format", "json"])?;
    target.go_on()?;
    target.wait_for_stdout("done")?;
    found.signal("INT")?;
    let found = found.finish()?;

    let reason = format!("is being debugged by process {}", debugger.pid());
    ensure!(refused.status.code() == Some(2), "{refused:?}");
    ensure!(refused.stderr.contains(&reason), "{}", refused.stderr);
    ensure!(number(&report(&found)?, "/totals/direct_blocks")? >= 12, "{}", found.stdout);
    debugger.signal("INT")?;
    debugger.finish()?;
    target.go_on()?;
    target.finish()?.require_success("the target")?;
    Ok(())
}

#[test]
fn process_that_ends_before_the_scan_is_an_error() -> Result<()> {
    privileged!();
    let mut target = start_waiting(&program::LEAK.build(FramePointers::Omitted)?)?;
    let leaks = watch(&target, &[])?;

    target.go_on()?;
    target.wait_for_stdout("done")?;
    target.go_on()?;
    target.finish()?.require_success("the target")?;
    let leaks = leaks.finish()?;

    ensure!(leaks.status.code() == Some(2), "{leaks:?}");
    ensure!(leaks.stderr.contains("ended before its memory was read"), "{}", leaks.stderr);
    Ok(())
}

#[test]
fn process_without_losses_ends_with_status_0() -> Result<()> {
    privileged!();
    let target = start_waiting(&program::LEAK.build(FramePointers::Omitted)?)?;
    let leaks = watch(&target, &[])?;

    leaks.signal("INT")?;
    let leaks = leaks.finish()?.require_success("memtrace leaks")?;

    ensure!(leaks.stdout.contains("Nothing is lost"), "{}", leaks.stdout);
    Ok(())
}

#[test]
fn stop_that_would_take_too_long_is_given_up_and_the_target_goes_on() -> Result<()> {
    privileged!();
    let mut target = start_waiting(&program::LEAK.build(FramePointers::Omitted)?)?;
    let leaks = watch(&target, &["--max-stop", "0.001ms"])?;

    leaks.signal("INT")?;
    let leaks = leaks.finish()?;

    ensure!(leaks.status.code() == Some(2), "{leaks:?}");
    ensure!(leaks.stderr.contains("--max-stop"), "{}", leaks.stderr);
    ensure!(target.is_running()?, "the target does not run");
    target.go_on()?;
    target.wait_for_stdout("done")?;
    target.go_on()?;
    target.finish()?.require_success("the target")?;
    Ok(())
}

/// Runs a command under `memtrace leaks`, with the report in a file beside what the command writes.
fn leaks_of_command(
    test: &str,
    arguments: &[&str],
    command: &[&str],
) -> Result<(Finished, Option<Value>)> {
    let path = trace_path(test)?.with_extension("json");
    let mut leaks = memtrace()?;
    leaks.args(["leaks", "--definite", "--format", "json", "-o"]).arg(&path).args(arguments);
    let found = run(leaks.arg("--").args(command).stdin(Stdio::null()))?;
    let report = std::fs::read(&path).ok();
    if report.is_some() {
        std::fs::remove_file(&path)?;
    }
    Ok((found, report.as_deref().map(serde_json::from_slice).transpose()?))
}

#[test]
fn command_is_looked_at_when_it_exits() -> Result<()> {
    privileged!();
    for program in [program::LOST_BLOCKS, program::LOST_BLOCKS_STATIC] {
        let executable = program.build(FramePointers::Omitted)?;
        let command = executable.to_str().context("the path is text")?;

        let (found, report) = leaks_of_command("lost_of_command", &[], &[command])?;

        let report = report.with_context(|| found.stderr.clone())?;
        // What the stacks of `main` and of the threads held is lost as well, or not any more there.
        let mut lost = by_function(&report)?;
        lost.retain(|function, _| function.starts_with("lose_") || function.starts_with("keep_"));
        ensure!(lost == expected(), "{report:#}");
        ensure!(found.status.code() == Some(1), "{found:?}");
        ensure!(number(&report, "/scan/threads")? == 1, "{report:#}");
    }
    Ok(())
}

#[test]
fn command_whose_losses_are_suppressed_ends_with_status_0() -> Result<()> {
    privileged!();
    let executable = program::LOST_BLOCKS.build(FramePointers::Omitted)?;
    let known = trace_path("known_losses_list")?.with_extension("txt");
    std::fs::write(&known, "leak:lose_*\nleak:main\nleak:thread_with_*\n")?;
    let (known, command) = (known.to_str(), executable.to_str());
    let (known, command) = known.zip(command).context("the paths are text")?;

    let arguments = ["--suppressions", known];
    let (found, report) = leaks_of_command("known_losses", &arguments, &[command])?;

    ensure!(found.status.success(), "{found:?}");
    let report = report.with_context(|| found.stderr.clone())?;
    ensure!(number(&report, "/totals/suppressed_blocks")? >= 43, "{report:#}");
    Ok(())
}

#[test]
fn command_that_fails_is_a_finding_and_its_children_end_by_themselves() -> Result<()> {
    privileged!();

    let (found, report) = leaks_of_command(
        "failing_command",
        &[],
        &["sh", "-c", "sh -c 'exit 0'; /bin/true; exit 3"],
    )?;

    ensure!(found.status.code() == Some(1), "{found:?}");
    ensure!(found.stderr.contains("the command ended with exit status: 3"), "{}", found.stderr);
    ensure!(report.is_some(), "{found:?}");
    Ok(())
}

#[test]
fn command_that_is_ended_by_a_signal_is_an_error() -> Result<()> {
    privileged!();

    let (found, report) = leaks_of_command("killed_command", &[], &["sh", "-c", "kill -TERM $$"])?;

    ensure!(found.status.code() == Some(2), "{found:?}");
    ensure!(found.stderr.contains("ended by signal 15 before"), "{}", found.stderr);
    ensure!(report.is_none(), "{report:?}");
    Ok(())
}

#[test]
fn every_process_of_a_command_is_looked_at_when_it_exits() -> Result<()> {
    privileged!();
    let executable = program::LOST_IN_CHILDREN.build(FramePointers::Omitted)?;
    let command = executable.to_str().context("the path is text")?;

    let (found, report) = leaks_of_command("lost_in_children", &[], &[command])?;

    let report = report.with_context(|| found.stderr.clone())?;
    // What `main` lost is nothing: the blocks that a child inherits are its parent's.
    let expected: ByFunction = [
        ("lose_in_parent", (5, 0)),
        ("lose_in_child", (7, 0)),
        ("lose_in_grandchild", (3, 0)),
        ("lose_in_program", (11, 0)),
    ]
    .map(|(function, losses)| (function.to_owned(), losses))
    .into();
    ensure!(by_function(&report)? == expected, "{report:#}");
    let processes = report["processes"].as_array().context("processes")?;
    let mut lost: Vec<_> =
        processes.iter().map(|process| process["direct_blocks"].as_u64()).collect();
    lost.sort();
    ensure!(lost == [0, 3, 5, 7, 11].map(Some), "{report:#}");
    let (killed, read): (Vec<_>, Vec<_>) =
        processes.iter().partition(|process| process["scan"].is_null());
    ensure!(killed.len() == 1 && killed[0]["not_read"].is_string(), "{report:#}");
    // The child and the grandchild have copies of what the parent holds and has lost.
    let inherited = |process: &&Value| process["scan"]["inherited_blocks"].as_u64();
    let mut inherited: Vec<_> = read.iter().map(inherited).collect();
    inherited.sort();
    ensure!(inherited == [0, 0, 45, 52].map(Some), "{report:#}");
    Ok(())
}

/// Bytes of a command that is to be read for a while.
const LARGE: u64 = 400 << 20;

/// Waits until the large command stands still at its end, in which it is read; `None` if it has ended.
///
/// When it was stopped before, to be attached to, it was small.
fn wait_for_the_end_of_a_large(pid: &str) -> Option<()> {
    loop {
        let read = |file| std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
        let (stat, statm) = read("stat").zip(read("statm"))?;
        let state = stat.rsplit_once(") ")?.1;
        let resident: u64 = statm.split(' ').nth(1)?.parse().ok()?;
        match state.as_bytes().first()? {
            b'T' | b't' if resident * 4096 >= LARGE => return Some(()),
            b'Z' | b'X' => return None,
            _ => {}
        }
    }
}

#[test]
fn command_goes_on_when_memtrace_is_ended_while_it_reads_it() -> Result<()> {
    privileged!();
    let python = format!("import os; held = b'x' * {LARGE}; os._exit(0)");
    let script = format!("echo $$; exec /usr/bin/python3 -c \"{python}\"");
    for signal in ["KILL", "TERM", "INT"] {
        // The look is over in moments, which this test may sleep through.
        let leaks = (0..10).find_map(|_| {
            let started = memtrace().and_then(|mut leaks| {
                leaks.args(["leaks", "--definite", "--", "sh", "-c", &script]);
                let mut leaks = Running::start(leaks.stdin(Stdio::null()))?;
                let pid = leaks.next_stdout_line()?;
                Ok(wait_for_the_end_of_a_large(&pid).map(|()| leaks))
            });
            started.transpose()
        });
        let leaks = leaks.context("it was never seen at its end")??;

        leaks.signal(signal)?;

        // The command has its stdout and stderr, too: this waits for the end of both.
        let ended = leaks.finish().with_context(|| format!("after SIG{signal}"))?;
        match signal {
            "KILL" => ensure!(ended.status.code().is_none(), "{ended:?}"),
            _ => ensure!(ended.stdout.contains("\n  scan"), "{signal}: {ended:?}"),
        }
    }
    Ok(())
}
