//! Processes that cannot be traced.

use super::*;

#[test]
fn pid_that_does_not_exist_is_refused() -> Result<()> {
    privileged!();
    let trace = trace_path("no_such_pid")?;
    let child = Running::start(Command::new("true").stdin(Stdio::null()))?;
    let pid = child.pid();
    child.finish()?;

    let finished = record_pid(pid, &trace)?;

    require_refusal(&finished, &[&pid.to_string(), "no process has the id"])?;
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

#[test]
fn launched_static_program_without_symbols_is_traced_by_its_mappings_and_says_so() -> Result<()> {
    privileged!();
    let trace = trace_path("stripped_launched")?;
    let executable = trace.with_file_name("stripped");
    let whole = program::LEAK_STATIC.build(FramePointers::Omitted)?;
    run(Command::new("strip").arg("-s").arg("-o").arg(&executable).arg(&whole))?
        .require_success("strip")?;

    let finished = record_command(&trace, &[&executable])?;

    let finished = finished.require_success("memtrace record")?;
    require_words(&finished.stderr, &["warning", "no allocator", "mappings"])?;
    let report = report(&trace)?;
    ensure!(report.number("/totals/allocations")? == 0, "there was nothing to probe");
    ensure!(report.number("/totals/mapped_bytes")? > 0, "its mappings are not traced");
    Ok(())
}
