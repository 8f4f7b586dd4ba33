//! Users who may not trace.

use super::*;

/// memtrace where every user may execute it.
fn public_memtrace(test: &str) -> Result<PathBuf> {
    let directory = std::env::temp_dir().join(format!("{test}-{}", std::process::id()));
    fs::create_dir_all(&directory).context("create a directory for all users")?;
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o777))?;
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
