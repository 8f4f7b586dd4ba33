//! `memtrace check` and `memtrace diff` on programs with known numbers: what passes and what fails
//! to the last byte, exit statuses, and what differs between two builds.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use memtrace_tests::program::{self, FramePointers, Program};
use memtrace_tests::recording::{Finished, Running, memtrace, record_launched, run};
use memtrace_tests::{privileged, scratch_directory};
use serde_json::Value;

fn build(program: Program) -> Result<PathBuf> {
    program.build(FramePointers::Omitted)
}

fn record(directory: &Path, name: &str, program: Program) -> Result<PathBuf> {
    let trace = directory.join(name);
    record_launched(&trace, &[&build(program)?])?;
    Ok(trace)
}

/// Runs `memtrace check`, and parses its JSON if it judged.
fn check(arguments: &[&str], command: &[&Path]) -> Result<(Finished, Value)> {
    let mut check = memtrace()?;
    check.args(["check", "--format", "json"]).args(arguments);
    if !command.is_empty() {
        check.arg("--").args(command);
    }
    let finished = run(&mut check)?;
    let json = serde_json::from_str(&finished.stdout).unwrap_or(Value::Null);
    Ok((finished, json))
}

#[track_caller]
fn require_status(finished: &Finished, status: i32) -> Result<()> {
    let Finished { status: found, stdout, stderr } = finished;
    ensure!(found.code() == Some(status), "{found}, not {status}\n{stdout}\n{stderr}");
    Ok(())
}

/// The verdicts, by what was checked.
fn verdicts(check: &Value) -> Result<Vec<(String, String)>> {
    let checks = check["checks"].as_array().context("no checks")?;
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    Ok(checks
        .iter()
        .map(|entry| {
            let subject = text(&entry["subject"]);
            (format!("{subject} {}", text(&entry["check"])), text(&entry["verdict"]))
        })
        .collect())
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|&(name, verdict)| (name.to_owned(), verdict.to_owned())).collect()
}

#[test]
fn command_is_held_against_its_budget_to_the_last_byte() -> Result<()> {
    privileged!();
    let directory = scratch_directory("budget_command")?;
    let budget = directory.join("mem.toml");
    let budget_text = |live: u32| {
        format!(
            "[total]\nlive-at-exit = {live}\npeak = 222000\nallocated = 359484\n\
             allocations = 1734\ntemporary = 505\n\n[[function]]\nname = \"leak_*\"\n\
             module = \"leak\"\nlive-at-exit = 149464\n"
        )
    };
    let path = budget.to_str().context("the path is text")?;
    let leak = build(program::LEAK)?;

    fs::write(&budget, budget_text(149_464))?;
    let (kept, json) = check(&["--budget", path], &[&leak])?;
    require_status(&kept, 0)?;
    ensure!(json["verdict"] == "pass" && json["checks"][0]["subject"] == "command", "{json}");

    fs::write(&budget, budget_text(149_463))?;
    let (exceeded, json) = check(&["--budget", path], &[&leak])?;
    require_status(&exceeded, 1)?;
    let expected = [
        ("command end", "pass"),
        ("total peak", "pass"),
        ("total live-at-exit", "fail"),
        ("total allocated", "pass"),
        ("total allocations", "pass"),
        ("total temporary", "pass"),
        ("leak_* in leak live-at-exit", "pass"),
    ];
    ensure!(verdicts(&json)? == pairs(&expected), "{json}");
    ensure!(json["checks"][2]["source"]["line"] == 2, "{json}");
    ensure!(json["checks"][2]["stacks"][0]["amount"] == 138_233, "{json}");
    Ok(())
}

#[test]
fn command_that_fails_is_a_finding_and_keeps_its_output() -> Result<()> {
    privileged!();
    let mut check = memtrace()?;
    check.args(["check", "--max-peak", "1GB", "--", "sh", "-c", "echo its output; exit 3"]);

    let finished = run(&mut check)?;

    require_status(&finished, 1)?;
    ensure!(finished.stdout.starts_with("its output\n"), "{}", finished.stdout);
    ensure!(finished.stdout.contains("it ended with exit status 3"), "{}", finished.stdout);
    Ok(())
}

#[test]
fn budget_that_is_wrong_runs_nothing() -> Result<()> {
    privileged!();
    let directory = scratch_directory("budget_wrong")?;
    let (budget, witness) = (directory.join("mem.toml"), directory.join("witness"));
    let path = budget.to_str().context("the path is text")?;
    let touch: [&Path; 2] = [Path::new("touch"), &witness];
    for text in ["[total]\npeek = 1\n", "[baseline]\ntrace = \"none\"\ntolerance = \"5%\"\n", ""] {
        fs::write(&budget, text)?;

        let (finished, _) = check(&["--budget", path], &touch)?;

        require_status(&finished, 2)?;
        ensure!(finished.stderr.lines().count() == 1, "{}", finished.stderr);
        ensure!(!witness.exists(), "the command ran");
    }
    Ok(())
}

#[test]
fn growth_within_the_tolerance_passes_and_beyond_it_fails() -> Result<()> {
    privileged!();
    let directory = scratch_directory("budget_baseline")?;
    let before = record(&directory, "before.mtrace", program::BUILD_BEFORE)?;
    let after = record(&directory, "after.mtrace", program::BUILD_AFTER)?;
    let report = directory.join("before.json");
    let mut write = memtrace()?;
    write.arg("report").arg(&before).args(["--format", "json", "-o"]).arg(&report);
    run(&mut write)?.require_success("memtrace report")?;
    let after = after.to_str().context("the path is text")?;

    for baseline in [&before, &report] {
        let baseline = baseline.to_str().context("the path is text")?;
        // 25,565 live bytes are 64.4% more than 15,555.
        let with = |tolerance| {
            let growth = ["--baseline", baseline, "--max-live", tolerance, after];
            check(&growth, &[])
        };
        require_status(&with("+65%")?.0, 0)?;
        require_status(&with("+10010")?.0, 0)?;
        require_status(&with("+64%")?.0, 1)?;
        let (finished, json) = with("+10009")?;
        require_status(&finished, 1)?;
        ensure!(json["checks"][0]["baseline"] == 15_555, "{json}");
    }
    Ok(())
}

#[test]
fn two_builds_differ_in_what_was_changed() -> Result<()> {
    privileged!();
    let directory = scratch_directory("two_builds")?;
    let before = record(&directory, "before.mtrace", program::BUILD_BEFORE)?;
    let after = record(&directory, "after.mtrace", program::BUILD_AFTER)?;

    let mut diff = memtrace()?;
    diff.arg("diff").args([&before, &after]).args(["--format", "json"]);
    let finished = run(&mut diff)?.require_success("memtrace diff")?;

    let json: Value = serde_json::from_str(&finished.stdout)?;
    let functions = json["functions"].as_array().context("no functions")?;
    let status = |name: &str| {
        let function = functions.iter().find(|function| function["function"] == name);
        function.map(|f| (f["status"].as_str().unwrap_or(""), f["change"].as_i64()))
    };
    ensure!(status("grows") == Some(("grown", Some(10_010))), "{json}");
    ensure!(status("stays") == Some(("same", Some(0))), "{json}");
    ensure!(status("old_name") == Some(("gone", Some(-2_515))), "{json}");
    ensure!(status("new_name") == Some(("new", Some(2_515))), "{json}");
    ensure!(status("main").is_some_and(|(status, _)| status == "same"), "{json}");
    let stays = json["stacks"].as_array().context("no stacks")?.iter();
    // The first block makes the C library map memory, through the same call path.
    let heap = stays.filter(|stack| stack["memory"] == "heap");
    let first = |stack: &&Value| {
        let index = stack["frames"][0].as_u64()? as usize;
        json["frames"][index]["function"].as_str()
    };
    let stays: Vec<_> = heap.filter(|stack| first(stack) == Some("stays")).collect();
    let [stays] = &stays[..] else { anyhow::bail!("not one stack: {stays:?}") };
    ensure!(stays["status"] == "same", "{stays}");
    Ok(())
}

/// The sample server leaks 1,024,000 bytes a second.
fn start_server() -> Result<Running> {
    let server = env!("CARGO_BIN_EXE_sample-server");
    let mut server = Running::start(Command::new(server).stdin(Stdio::null()))?;
    server.wait_for_stdout("leaks")?;
    Ok(server)
}

#[test]
fn server_is_judged_while_a_load_runs() -> Result<()> {
    privileged!();
    let server = start_server()?;
    let pid = server.pid().to_string();
    let watch = |arguments: &[&str], script: &str| {
        let shell = [Path::new("sh"), Path::new("-c"), Path::new(script)];
        check(&[&["-p", &pid], arguments].concat(), &shell)
    };

    let (kept, json) = watch(&["--max-live", "1GB", "--max-rss", "1GB"], "sleep 2")?;
    require_status(&kept, 0)?;
    let expected = [("load end", "pass"), ("total live-at-exit", "pass"), ("total rss", "pass")];
    ensure!(verdicts(&json)? == pairs(&expected), "{json}");
    ensure!(json["duration_ns"].as_u64() < Some(20_000_000_000), "it outlived its load: {json}");

    let (exceeded, json) = watch(&["--max-live", "1K", "--for", "1s"], "sleep 1000")?;
    require_status(&exceeded, 1)?;
    let expected = [("load end", "pass"), ("total live-at-exit", "fail")];
    ensure!(verdicts(&json)? == pairs(&expected), "{json}");

    let (failed, json) = watch(&["--max-live", "1GB"], "exit 4")?;
    require_status(&failed, 1)?;
    ensure!(json["checks"][0]["notes"][0] == "it ended with exit status 4", "{json}");

    let (missing, _) = check(&["-p", &pid, "--max-live", "1GB"], &[Path::new("/no/such/load")])?;
    require_status(&missing, 2)?;
    ensure!(server.is_running()?, "the server does not run");
    Ok(())
}

#[test]
fn server_that_ends_under_its_load_is_a_finding() -> Result<()> {
    privileged!();
    let server = start_server()?;
    let pid = server.pid().to_string();
    let script = format!("kill {pid}; sleep 1000");
    let shell = [Path::new("sh"), Path::new("-c"), Path::new(&script)];

    let (finished, json) = check(&["-p", &pid, "--max-live", "1GB"], &shell)?;

    require_status(&finished, 1)?;
    ensure!(json["checks"][0]["subject"] == "target", "{json}");
    ensure!(json["checks"][0]["verdict"] == "fail", "{json}");
    Ok(())
}
