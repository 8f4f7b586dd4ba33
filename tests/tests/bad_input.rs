//! What cannot be traced or read: one clear line, exit status 2, the target unharmed.

use std::fs;
use std::os::unix::fs::symlink;
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

mod processes {
    use super::*;

    #[test]
    fn pid_that_does_not_exist_is_refused() -> Result<()> {
        privileged!();
        let trace = trace_path("no_such_pid")?;
        let child = Running::start(Command::new("true").stdin(Stdio::null()))?;
        let pid = child.pid();
        child.finish()?;

        let finished = record_pid(pid, &trace)?;

        require_refusal(&finished, &[&pid.to_string(), "no such process"])?;
        ensure!(!trace.exists(), "it left a file");
        Ok(())
    }

    #[test]
    fn pid_that_is_no_number_is_refused() -> Result<()> {
        for pid in ["0", "-1", "x", "99999999999999999999", ""] {
            let finished = run(memtrace()?.args(["record", "-p", pid]))?;

            ensure!(finished.status.code() == Some(2), "{pid}: {}", finished.status);
            require_words(&finished.stderr, &["error"])?;
        }
        Ok(())
    }

    #[test]
    fn process_that_ends_during_the_attach_is_no_surprise() -> Result<()> {
        privileged!();
        let trace = trace_path("ends_during_attach")?;
        for step in 0..20 {
            let seconds = format!("0.{:03}", step * 20);
            let target = Running::start(Command::new("sleep").arg(&seconds).stdin(Stdio::null()))?;

            let finished = record_pid(target.pid(), &trace)?;

            require_orderly(&finished).with_context(|| format!("after {seconds} s"))?;
            target.finish()?.require_success("the target")?;
        }
        Ok(())
    }

    #[test]
    fn zombie_is_refused() -> Result<()> {
        privileged!();
        let trace = trace_path("zombie")?;
        let target = Running::start(Command::new("true").stdin(Stdio::null()))?;
        while target.is_running()? {
            std::thread::sleep(Duration::from_millis(5));
        }

        let finished = record_pid(target.pid(), &trace)?;

        require_refusal(&finished, &[&target.pid().to_string()])?;
        ensure!(!trace.exists(), "it left a file");
        Ok(())
    }

    #[test]
    fn kernel_thread_is_refused() -> Result<()> {
        privileged!();
        let trace = trace_path("kernel_thread")?;
        if fs::read_to_string("/proc/2/comm").unwrap_or_default().trim() != "kthreadd" {
            println!("skipped: no kernel threads are visible in this PID namespace");
            return Ok(());
        }

        let finished = record_pid(2, &trace)?;

        require_refusal(&finished, &["2", "kernel thread"])?;
        ensure!(!trace.exists(), "it left a file");
        Ok(())
    }

    #[test]
    fn process_of_32_bits_is_refused_and_runs_on() -> Result<()> {
        privileged!();
        let trace = trace_path("32_bit")?;
        let executable = trace.with_file_name("pause32");
        write_32_bit_program(&executable)?;
        let Ok(target) = Running::start(Command::new(&executable).stdin(Stdio::null())) else {
            println!("skipped: this kernel runs no 32-bit programs");
            return Ok(());
        };

        let finished = record_pid(target.pid(), &trace)?;

        require_refusal(&finished, &["32-bit"])?;
        ensure!(target.is_running()?, "the target does not run");
        ensure!(!trace.exists(), "it left a file");
        Ok(())
    }

    #[test]
    fn static_program_without_symbols_is_refused_and_runs_on() -> Result<()> {
        privileged!();
        let trace = trace_path("stripped")?;
        let executable = trace.with_file_name("stripped");
        let whole = program::STEADY_STATIC.build(FramePointers::Omitted)?;
        run(Command::new("strip").arg("-s").arg("-o").arg(&executable).arg(&whole))?
            .require_success("strip")?;
        let target = start_ready(&executable)?;

        let finished = record_pid(target.pid(), &trace)?;

        require_unharmed(target)?;
        require_refusal(&finished, &["stripped", "symbol"])?;
        ensure!(!trace.exists(), "it left a file");
        Ok(())
    }
}

mod privileges {
    use super::*;

    /// memtrace where every user may execute it.
    fn public_memtrace(test: &str) -> Result<PathBuf> {
        let directory = std::env::temp_dir().join(format!("{test}-{}", std::process::id()));
        fs::create_dir_all(&directory).context("create a directory for all users")?;
        make_executable(&directory)?;
        let path = directory.join("memtrace");
        fs::copy(memtrace_path()?, &path).context("copy memtrace")?;
        make_executable(&path)?;
        Ok(path)
    }

    fn record_with_less(test: &str, setpriv: &[&str]) -> Result<Finished> {
        let target = start_steady()?;
        let memtrace = public_memtrace(test)?;
        let mut record = Command::new("setpriv");
        record.args(setpriv).arg(&memtrace).args(["record", "--duration", "1s"]);
        record.args(["-p", &target.pid().to_string(), "-o"]);
        record.arg(memtrace.with_file_name("trace.mtrace"));

        let finished = run(&mut record);

        fs::remove_dir_all(memtrace.parent().context("it lies in a directory")?)?;
        require_unharmed(target)?;
        finished
    }

    #[test]
    fn user_without_root_is_told_how() -> Result<()> {
        privileged!();
        let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];

        let finished = record_with_less("no-root", &nobody)?;

        require_refusal(&finished, &["root", "sudo"])
    }

    #[test]
    fn missing_capability_is_named() -> Result<()> {
        privileged!();
        let lesser = ["--bounding-set=-sys_admin,-bpf,-perfmon"];

        let finished = record_with_less("no-capability", &lesser)?;

        require_refusal(&finished, &["CAP_"])
    }

    #[test]
    fn report_needs_no_root() -> Result<()> {
        privileged!();
        let trace = trace_path("report_without_root")?;
        record_launched(&trace, &[&program::LEAK.build(FramePointers::Omitted)?])?;
        let memtrace = public_memtrace("report-without-root")?;
        let public = memtrace.with_file_name("trace.mtrace");
        fs::copy(&trace, &public)?;
        make_executable(&public)?;
        let mut report = Command::new("setpriv");
        report.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        report.arg(&memtrace).arg("report").arg(&public).args(["--format", "json"]);

        let finished = run(&mut report);

        fs::remove_dir_all(memtrace.parent().context("it lies in a directory")?)?;
        finished?.require_success("memtrace report")?;
        Ok(())
    }
}

mod outputs {
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
            require_words(&finished.stderr, &["partial"])?;
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
        let to_stdout =
            run(Command::new("sh").args(["-c", script]).arg(memtrace_path()?).arg(&trace))?;

        require_refusal(&to_file, &["/dev/full", "no space left"])?;
        require_refusal(&to_stdout, &["no space left"])
    }

    #[test]
    fn reader_that_goes_away_is_no_error() -> Result<()> {
        privileged!();
        let trace = trace_path("broken_pipe")?;
        record_launched(&trace, &[&program::RECURSION.build(FramePointers::Omitted)?])?;
        let script = "{ \"$0\" report \"$1\" --format json; echo \"status $?\" >&2; } | head -c 10";

        let finished =
            run(Command::new("sh").args(["-c", script]).arg(memtrace_path()?).arg(&trace))?;

        ensure!(finished.stderr == "status 0\n", "{}", finished.stderr);
        Ok(())
    }
}

mod traces {
    use super::*;

    #[test]
    fn truncated_trace_is_read_as_far_as_it_goes() -> Result<()> {
        privileged!();
        let trace = trace_path("truncated")?;
        record_launched(&trace, &[&program::THREAD_CHURN.build(FramePointers::Omitted)?])?;
        let whole = fs::read(&trace)?;
        let cut = trace.with_file_name("cut.mtrace");
        for step in 0..24 {
            let length = whole.len() * step / 24;
            fs::write(&cut, &whole[..length])?;

            let finished = report_on(&cut)?;

            require_orderly(&finished).with_context(|| format!("{length} bytes"))?;
            require_words(&finished.stderr, &["cut.mtrace"])
                .with_context(|| format!("{length} bytes"))?;
        }
        Ok(())
    }

    #[test]
    fn damaged_trace_is_no_surprise() -> Result<()> {
        privileged!();
        let trace = trace_path("damaged")?;
        record_launched(&trace, &[&program::LEAK.build(FramePointers::Omitted)?])?;
        let whole = fs::read(&trace)?;
        let damaged = trace.with_file_name("damaged.mtrace");
        for step in 0..24 {
            let mut bytes = whole.clone();
            let place = whole.len() * step / 24;
            bytes[place] ^= 0x55;
            fs::write(&damaged, &bytes)?;

            let finished = report_on(&damaged)?;

            require_orderly(&finished).with_context(|| format!("byte {place}"))?;
            require_words(&finished.stderr, &["damaged.mtrace"])
                .with_context(|| format!("byte {place}"))?;
        }
        Ok(())
    }

    #[test]
    fn foreign_file_is_refused() -> Result<()> {
        let directory = scratch_directory("foreign")?;
        let file = |name: &str, content: &[u8]| -> Result<PathBuf> {
            let path = directory.join(name);
            fs::write(&path, content)?;
            Ok(path)
        };
        let loop_path = directory.join("loop");
        symlink(&loop_path, &loop_path)?;
        let foreign = [
            file("empty", b"")?,
            file("short", b"m")?,
            file("text", b"{\"format\": \"memtrace-report\"}\n".repeat(100).as_slice())?,
            file("zeros", &[0; 100_000])?,
            file("ones", &[0xff; 100_000])?,
            PathBuf::from("/bin/sh"),
            PathBuf::from("/dev/zero"),
            directory.join("missing"),
            directory.clone(),
            loop_path,
        ];
        for path in foreign {
            let finished = report_on(&path)?;

            require_refusal(&finished, &[&path.to_string_lossy()])?;
        }
        Ok(())
    }
}

mod elf_files {
    use super::*;

    /// The rows of a table that need only the innermost frame.
    fn functions_only(mut table: Table) -> Table {
        table.rows.retain(|row| matches!(row.subject, Subject::Function(_)));
        table
    }

    #[test]
    fn broken_eh_frame_is_named_and_the_numbers_are_right() -> Result<()> {
        privileged!();
        let trace = trace_path("broken_eh_frame")?;
        let executable = trace.with_file_name("leak");
        let whole = program::LEAK.build(FramePointers::Omitted)?;
        copy_with_broken_sections(&whole, &executable, &[".eh_frame", ".eh_frame_hdr"])?;

        let finished = record_attached(&trace, &executable)?;

        require_words(&finished.stderr, &["eh_frame", "leak"])?;
        let report = report(&trace)?;
        ensure!(report.number("/capture/truncated_stacks")? > 0, "no stack is truncated");
        compare(&functions_only(program::LEAK.table()?), &report, Stacks::MayEndEarly)
    }

    #[test]
    fn broken_eh_frame_does_not_matter_where_frame_pointers_are_kept() -> Result<()> {
        privileged!();
        let trace = trace_path("broken_eh_frame_kept")?;
        let executable = trace.with_file_name("leak");
        let whole = program::LEAK.build(FramePointers::Kept)?;
        copy_with_broken_sections(&whole, &executable, &[".eh_frame", ".eh_frame_hdr"])?;

        record_attached(&trace, &executable)?;

        // Up to `_start`, which has no frame pointer.
        compare(&program::LEAK.table()?, &report(&trace)?, Stacks::MayEndEarly)
    }

    #[test]
    fn broken_dwarf_is_named_and_the_names_come_from_the_symbol_table() -> Result<()> {
        privileged!();
        let trace = trace_path("broken_dwarf")?;
        let executable = trace.with_file_name("leak");
        let whole = program::LEAK.build(FramePointers::Omitted)?;
        let sections = [".debug_info", ".debug_abbrev", ".debug_line", ".debug_aranges"];
        copy_with_broken_sections(&whole, &executable, &sections)?;

        record_launched(&trace, &[&executable])?;

        let finished = report_on(&trace)?;
        require_words(&finished.stderr, &["leak", "debug"])?;
        let report = memtrace_tests::report::Report::parse(&finished.stdout)?;
        compare(&program::LEAK.table()?, &report, Stacks::Complete)
    }
}
