//! Traces that are cut, damaged or none at all.

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
        require_words(&finished.stderr, &["the trace"])
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
