//! Outputs that cannot be written, commands that cannot be run.

use super::*;

#[test]
fn full_device_is_an_error_and_the_target_runs_on() -> Result<()> {
    privileged!();
    let target = start_steady()?;

    let finished = record_pid(target.pid(), Path::new("/dev/full"))?;

    require_unharmed(target)?;
    ensure!(finished.status.code() == Some(2), "{}", finished.status);
    require_words(&finished.stderr, &["/dev/full", "no space left"])
}

/// A file system of one page.
struct TinyDisk(PathBuf);

impl TinyDisk {
    fn mount(test: &str) -> Result<TinyDisk> {
        let directory = scratch_directory(test)?.join("disk");
        fs::create_dir(&directory)?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=4k", "tmpfs"]).arg(&directory);
        run(&mut mount)?.require_success("mount")?;
        Ok(TinyDisk(directory))
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        // Nothing more can be done about it; the next test mounts over it.
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn disk_that_fills_up_leaves_no_partial_file_unsaid() -> Result<()> {
    privileged!();
    let disk = TinyDisk::mount("full_disk")?;
    let trace = disk.0.join("trace.mtrace");

    let program = program::THREAD_CHURN.build(FramePointers::Omitted)?;
    let finished = record_command(&trace, &[&program])?;

    ensure!(finished.status.code() == Some(2), "{}", finished.status);
    require_words(&finished.stderr, &["trace.mtrace", "no space left"])?;
    if trace.exists() {
        require_words(&finished.stderr, &["written so far"])?;
        require_orderly(&report_on(&trace)?)?;
    }
    Ok(())
}

#[test]
fn output_that_cannot_be_written_is_refused_before_anything_runs() -> Result<()> {
    privileged!();
    let directory = scratch_directory("unwritable")?;
    let witness = directory.join("witness");
    for output in [directory.join("no/such/directory/trace"), directory.clone()] {
        let finished = record_command(&output, &[Path::new("touch"), &witness])?;

        require_refusal(&finished, &["unwritable"])?;
        ensure!(!witness.exists(), "the command ran");
    }
    let target = start_steady()?;
    let finished = record_pid(target.pid(), &directory)?;
    require_unharmed(target)?;
    require_refusal(&finished, &["unwritable", "directory"])
}

#[test]
fn command_that_does_not_exist_is_refused() -> Result<()> {
    privileged!();
    let trace = trace_path("no_such_command")?;
    for command in ["no-such-command-here", "/etc/passwd", "/"] {
        let finished = record_command(&trace, &[Path::new(command)])?;

        require_refusal(&finished, &[command])?;
        ensure!(!trace.exists(), "it left a file");
    }
    Ok(())
}

#[test]
fn report_into_a_full_device_is_an_error() -> Result<()> {
    privileged!();
    let trace = trace_path("report_full_device")?;
    record_launched(&trace, &[&program::LEAK.build(FramePointers::Omitted)?])?;

    let to_file = run(memtrace()?.arg("report").arg(&trace).args(["-o", "/dev/full"]))?;
    let script = "\"$0\" report \"$1\" --format json > /dev/full";
    let to_stdout = run(Command::new("sh").args(["-c", script]).arg(memtrace_path()?).arg(&trace))?;

    require_refusal(&to_file, &["/dev/full", "no space left"])?;
    require_refusal(&to_stdout, &["no space left"])
}

#[test]
fn reader_that_goes_away_is_no_error() -> Result<()> {
    privileged!();
    let trace = trace_path("broken_pipe")?;
    record_launched(&trace, &[&program::RECURSION.build(FramePointers::Omitted)?])?;
    let script = "{ \"$0\" report \"$1\" --format json; echo \"status $?\" >&2; } | head -c 10";

    let finished = run(Command::new("sh").args(["-c", script]).arg(memtrace_path()?).arg(&trace))?;

    ensure!(finished.stderr == "status 0\n", "{}", finished.stderr);
    Ok(())
}
