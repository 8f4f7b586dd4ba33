//! What cannot be traced or read: one clear line, exit status 2, the target unharmed.

mod elf_files;
mod outputs;
mod privileges;
mod processes;
mod traces;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use memtrace_tests::compare::{Stacks, compare};
use memtrace_tests::elf::{copy_with_broken_sections, make_executable, write_32_bit_program};
use memtrace_tests::privileged;
use memtrace_tests::program::{self, FramePointers};
use memtrace_tests::recording::{
    Finished, Running, memtrace, record_attached, record_launched, report, run, trace_path,
};
use memtrace_tests::table::{Subject, Table};
use memtrace_tests::{memtrace_path, scratch_directory};

/// Exit status 2 and one line on stderr that contains all of `words`.
#[track_caller]
fn require_refusal(finished: &Finished, words: &[&str]) -> Result<()> {
    let Finished { status, stdout, stderr } = finished;
    ensure!(status.code() == Some(2), "{status}, not 2\n{stdout}\n{stderr}");
    ensure!(stdout.is_empty(), "nothing belongs on stdout: {stdout}");
    ensure!(stderr.trim_end().lines().count() == 1, "not one line:\n{stderr}");
    require_words(stderr, words)
}

#[track_caller]
fn require_words(text: &str, words: &[&str]) -> Result<()> {
    let clean = text.chars().all(|c| c == '\n' || !c.is_control());
    ensure!(clean, "control characters: {text:?}");
    ensure!(!text.contains("panicked"), "it panicked:\n{text}");
    let lower = text.to_lowercase();
    for word in words {
        ensure!(lower.contains(&word.to_lowercase()), "no `{word}` in:\n{text}");
    }
    Ok(())
}

/// Neither a panic nor a signal, whatever the input.
fn require_orderly(finished: &Finished) -> Result<()> {
    let orderly = matches!(finished.status.code(), Some(0 | 2));
    ensure!(orderly, "{}\n{}\n{}", finished.status, finished.stdout, finished.stderr);
    require_words(&finished.stderr, &[])
}

fn record_pid(pid: u32, trace: &Path) -> Result<Finished> {
    let mut record = memtrace()?;
    record.args(["record", "--duration", "2s", "-p", &pid.to_string(), "-o"]).arg(trace);
    run(&mut record)
}

fn record_command(trace: &Path, command: &[&Path]) -> Result<Finished> {
    run(memtrace()?.args(["record", "-o"]).arg(trace).arg("--").args(command))
}

fn report_on(file: &Path) -> Result<Finished> {
    run(memtrace()?.arg("report").arg(file).args(["--format", "json"]))
}

fn start_steady() -> Result<Running> {
    start_ready(&program::STEADY.build(FramePointers::Omitted)?)
}

fn start_ready(executable: &Path) -> Result<Running> {
    let mut target = Running::start(Command::new(executable).stdin(Stdio::piped()))?;
    target.wait_for_stdout("ready")?;
    Ok(target)
}

/// The target runs, and ends as it should.
fn require_unharmed(mut target: Running) -> Result<()> {
    ensure!(target.is_running()?, "the target does not run");
    target.go_on()?;
    target.finish()?.require_success("the target")?;
    Ok(())
}
