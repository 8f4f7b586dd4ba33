//! Which processes are traced: several, by name, by cgroup, by container, and later ones.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use memtrace_tests::compare::{Stacks, compare};
use memtrace_tests::privileged;
use memtrace_tests::program::{self, FramePointers};
use memtrace_tests::recording::{
    ATTACHED, Finished, Running, memtrace, record_launched, report, run, start_waiting, trace_path,
};
use memtrace_tests::report::Report;

/// A copy of a program under a name that nothing else on the host has.
fn renamed(program: program::Program, trace: &Path, name: &str) -> Result<PathBuf> {
    let copy = trace.with_file_name(name);
    fs::copy(program.build(FramePointers::Omitted)?, &copy).context("copy the program")?;
    Ok(copy)
}

fn start_steady(executable: &Path) -> Result<Running> {
    let mut target = Running::start(Command::new(executable).stdin(Stdio::piped()))?;
    target.wait_for_stdout("ready")?;
    Ok(target)
}

/// A name of at most 15 bytes, which is what the kernel keeps.
fn unique(letter: char) -> String {
    format!("mt{letter}{}", std::process::id())
}

fn recorder(trace: &Path, arguments: &[&str]) -> Result<Running> {
    let mut record = memtrace()?;
    record.args(["record", "-o"]).arg(trace).args(arguments).stdin(Stdio::null());
    Running::start(&mut record)
}

fn detach(recorder: Running) -> Result<Finished> {
    recorder.signal("INT")?;
    recorder.finish()?.require_success("memtrace record")
}

fn pids(report: &Report) -> Result<BTreeSet<u64>> {
    let processes = report.json["target"]["processes"].as_array().context("processes")?;
    processes.iter().map(|process| process["pid"].as_u64().context("a pid")).collect()
}

fn report_only(trace: &Path, pid: u32) -> Result<Report> {
    let mut only = memtrace()?;
    only.arg("report").arg(trace).args(["--format", "json", "-p", &pid.to_string()]);
    Report::parse(&run(&mut only)?.require_success("memtrace report")?.stdout)
}

/// A cgroup of its own for processes; it must be empty when this is dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    /// `None` if this machine allows no new cgroups.
    fn create(name: &str) -> Option<Cgroup> {
        let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
        let is_unified = |mount: &&str| Path::new(mount).join("cgroup.controllers").is_file();
        let directory = Path::new(mounts.into_iter().find(is_unified)?).join(name);
        fs::create_dir(&directory).ok()?;
        Some(Cgroup(directory))
    }

    fn add(&self, process: &Running) -> Result<()> {
        let path = self.0.join("cgroup.procs");
        fs::write(&path, process.pid().to_string()).with_context(|| path.display().to_string())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            eprintln!("{}: {error}", self.0.display());
        }
    }
}

#[test]
fn two_processes_of_one_trace_are_shown_together_and_each_alone() -> Result<()> {
    privileged!();
    let trace = trace_path("two_processes")?;
    let (leak, chain) = (program::LEAK, program::REALLOC_CHAIN);
    let mut first = start_waiting(&leak.build(FramePointers::Omitted)?)?;
    let mut second = start_waiting(&chain.build(FramePointers::Omitted)?)?;
    let (first_pid, second_pid) = (first.pid(), second.pid());
    let both = format!("{first_pid},{second_pid}");
    let mut recorder = recorder(&trace, &["-p", &both])?;
    recorder.wait_for_stderr(&format!("attached to {second_pid}"))?;

    for target in [&mut first, &mut second] {
        target.go_on()?;
        target.wait_for_stdout("done")?;
    }
    detach(recorder)?;
    for mut target in [first, second] {
        target.go_on()?;
        target.finish()?.require_success("a target")?;
    }

    let (all, first, second) =
        (report(&trace)?, report_only(&trace, first_pid)?, report_only(&trace, second_pid)?);
    compare(&leak.table()?, &first, Stacks::Complete)?;
    compare(&chain.table()?, &second, Stacks::Complete)?;
    ensure!(pids(&all)? == BTreeSet::from([first_pid.into(), second_pid.into()]), "all");
    ensure!(pids(&first)? == BTreeSet::from([first_pid.into()]), "the first alone");
    ensure!(first.json["target"]["left_out_processes"] == 1, "{}", first.json["target"]);
    for number in ["/totals/allocations", "/totals/frees", "/totals/live_bytes"] {
        let sum = first.number(number)? + second.number(number)?;
        ensure!(all.number(number)? == sum, "{number}: {} is not {sum}", all.number(number)?);
    }
    let text = run(memtrace()?.arg("report").arg(&trace))?.require_success("memtrace report")?;
    ensure!(text.stdout.contains("Processes by allocated bytes"), "{}", text.stdout);
    Ok(())
}

#[test]
fn process_that_the_trace_does_not_have_is_refused_with_those_it_has() -> Result<()> {
    privileged!();
    let trace = trace_path("not_in_trace")?;
    record_launched(&trace, &["true".as_ref()])?;
    let pid = report(&trace)?.number("/target/pid")?;

    let finished = run(memtrace()?.arg("report").arg(&trace).args(["-p", "999999999"]))?;

    ensure!(finished.status.code() == Some(2), "{}", finished.status);
    ensure!(finished.stderr.contains(&format!("it has {pid}")), "{}", finished.stderr);
    Ok(())
}

#[test]
fn every_process_of_a_name_is_traced_and_no_other() -> Result<()> {
    privileged!();
    let trace = trace_path("by_name")?;
    let named = renamed(program::STEADY, &trace, &unique('a'))?;
    let other = start_steady(&renamed(program::STEADY, &trace, &unique('b'))?)?;
    let targets = [start_steady(&named)?, start_steady(&named)?];
    let pattern = format!("*{}", &unique('a')[1..]);

    let mut recorder = recorder(&trace, &["--comm", &pattern])?;
    for _ in &targets {
        recorder.wait_for_stderr(ATTACHED)?;
    }
    detach(recorder)?;

    let expected: BTreeSet<u64> = targets.iter().map(|target| target.pid().into()).collect();
    let found = pids(&report(&trace)?)?;
    ensure!(found == expected, "{found:?} instead of {expected:?}");
    for target in targets.into_iter().chain([other]) {
        target.finish()?.require_success("a target")?;
    }
    Ok(())
}

#[test]
fn misspelt_name_is_refused_with_the_right_one() -> Result<()> {
    privileged!();
    let trace = trace_path("misspelt")?;
    let name = unique('c');
    let target = start_steady(&renamed(program::STEADY, &trace, &name)?)?;

    let misspelt = recorder(&trace, &["--comm", &format!("{name}x")])?.finish()?;

    ensure!(misspelt.status.code() == Some(2), "{}", misspelt.status);
    let suggestion = format!("{name} ({})", target.pid());
    ensure!(misspelt.stderr.contains(&suggestion), "{}", misspelt.stderr);
    ensure!(!trace.exists(), "it left a file");
    target.finish()?.require_success("the target")?;
    Ok(())
}

#[test]
fn selected_process_that_cannot_be_traced_is_left_out() -> Result<()> {
    privileged!();
    let trace = trace_path("left_out")?;
    let name = unique('d');
    let whole = program::STEADY_STATIC.build(FramePointers::Omitted)?;
    let stripped = trace.with_file_name(format!("{name}s"));
    run(Command::new("strip").arg("-s").arg("-o").arg(&stripped).arg(&whole))?
        .require_success("strip")?;
    let refused = start_steady(&stripped)?;
    let target = start_steady(&renamed(program::STEADY, &trace, &name)?)?;

    let mut recorder = recorder(&trace, &["--comm", &format!("{name}*")])?;
    recorder.wait_for_stderr(&format!("attached to {}", target.pid()))?;
    let finished = detach(recorder)?;

    ensure!(finished.stderr.contains("left out"), "{}", finished.stderr);
    let found = pids(&report(&trace)?)?;
    ensure!(found == BTreeSet::from([target.pid().into()]), "{found:?}");
    for target in [refused, target] {
        target.finish()?.require_success("a target")?;
    }
    Ok(())
}

#[test]
fn process_that_matches_later_is_attached_to() -> Result<()> {
    privileged!();
    let trace = trace_path("later")?;
    let name = unique('e');
    let executable = renamed(program::STEADY, &trace, &name)?;
    let mut recorder = recorder(&trace, &["--comm", &name, "--follow", "-v"])?;
    recorder.wait_for_stderr("nothing matches yet")?;

    let mut found = BTreeSet::new();
    for _ in 0..2 {
        let target = start_steady(&executable)?;
        recorder.wait_for_stderr(&format!("attached to {}", target.pid()))?;
        found.insert(u64::from(target.pid()));
        target.finish()?.require_success("the target")?;
    }
    detach(recorder)?;

    let report = report(&trace)?;
    ensure!(pids(&report)? == found, "{:?} instead of {found:?}", pids(&report)?);
    ensure!(report.json["capture"]["end"] == "interrupted", "{}", report.json["capture"]["end"]);
    let before = &report.json["target"]["processes"][1]["before_attach"];
    ensure!(before.is_object(), "what was missed is not told: {before}");
    Ok(())
}

#[test]
fn every_process_of_a_cgroup_is_traced() -> Result<()> {
    privileged!();
    let trace = trace_path("by_cgroup")?;
    let name = format!("memtrace-test-{}", std::process::id());
    let Some(cgroup) = Cgroup::create(&name) else {
        println!("skipped: no cgroup can be made here");
        return Ok(());
    };
    let target = start_steady(&program::STEADY.build(FramePointers::Omitted)?)?;
    cgroup.add(&target)?;

    let mut recorder = recorder(&trace, &["--cgroup", &cgroup.0.to_string_lossy()])?;
    recorder.wait_for_stderr(&format!("attached to {}", target.pid()))?;
    detach(recorder)?;

    let process = &report(&trace)?.json["target"]["processes"][0];
    ensure!(process["cgroup"] == format!("/{name}"), "{process}");
    ensure!(process["container"].is_null(), "{process}");
    target.finish()?.require_success("the target")?;
    Ok(())
}

#[test]
fn every_process_of_a_container_is_traced() -> Result<()> {
    privileged!();
    let trace = trace_path("by_container")?;
    let id = format!("{:0>64x}", 0xa000_0000_0000u64 + u64::from(std::process::id()));
    let id: String = id.chars().rev().collect();
    let Some(cgroup) = Cgroup::create(&format!("docker-{id}.scope")) else {
        println!("skipped: no cgroup can be made here");
        return Ok(());
    };
    let target = start_steady(&program::STEADY.build(FramePointers::Omitted)?)?;
    cgroup.add(&target)?;

    let mut recorder = recorder(&trace, &["--container", &id[..12]])?;
    recorder.wait_for_stderr(&format!("attached to {}", target.pid()))?;
    detach(recorder)?;

    let process = &report(&trace)?.json["target"]["processes"][0];
    ensure!(process["container"] == id, "{process}");
    target.finish()?.require_success("the target")?;
    Ok(())
}

#[test]
fn processes_with_one_id_one_after_the_other_are_told_apart() -> Result<()> {
    privileged!();
    let program = program::PID_REUSE;
    let trace = trace_path("pid_reuse")?;

    record_launched(&trace, &[&program.build(FramePointers::Omitted)?])?;

    let report = report(&trace)?;
    compare(&program.table()?, &report, Stacks::Complete)?;
    ensure!(pids(&report)?.len() == 2, "{:?}", pids(&report)?);
    Ok(())
}
