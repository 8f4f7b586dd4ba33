//! Reports that are made of every event, while the trace is read.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use flate2::write::GzEncoder;
use memtrace_userspace::pipeline::Limits;
use memtrace_userspace::symbols;
use memtrace_userspace::views::activity::{Activity, Level};
use memtrace_userspace::views::export::{dhat, heaptrack, html, parquet};
use memtrace_userspace::views::frames::Names;
use memtrace_userspace::views::ranking::{SortKey, rank};
use memtrace_userspace::views::suppressions::Suppressions;

use super::Arguments;
use crate::cli::output::cannot_write;
use crate::cli::replay::replay_events;

/// Replays the trace into a file for DHAT's viewer. `output` is the name of `out`.
pub(super) fn dhat(
    out: impl Write,
    trace: &Path,
    output: Option<&Path>,
    names: &mut Names,
) -> Result<()> {
    let mut profile = dhat::Profile::default();
    let snapshot = replay_events(trace, &[], Limits::default(), None, |_, postings, pipeline| {
        profile.event(postings, pipeline, names);
        Ok(())
    })?;
    profile.write(out, &snapshot).with_context(|| cannot_write(output))
}

/// Replays the trace into a file of heaptrack's, packed as the end of its name says.
pub(super) fn heaptrack(
    out: impl Write,
    trace: &Path,
    output: Option<&Path>,
    names: &mut Names,
) -> Result<()> {
    let cannot_write = || cannot_write(output);
    match output.and_then(Path::extension).and_then(|ending| ending.to_str()) {
        Some("gz") => {
            let out = GzEncoder::new(out, flate2::Compression::default());
            heaptrack_text(out, trace, output, names)?.finish().with_context(cannot_write)?;
        }
        Some("zst") => {
            let out = zstd::Encoder::new(out, zstd::DEFAULT_COMPRESSION_LEVEL);
            let out = heaptrack_text(out.with_context(cannot_write)?, trace, output, names)?;
            out.finish().with_context(cannot_write)?;
        }
        Some(_) | None => {
            heaptrack_text(out, trace, output, names)?;
        }
    }
    Ok(())
}

fn heaptrack_text<W: Write>(
    out: W,
    trace: &Path,
    output: Option<&Path>,
    names: &mut Names,
) -> Result<W> {
    let mut events = heaptrack::Writer::new(out);
    let snapshot =
        replay_events(trace, &[], Limits::default(), None, |record, postings, pipeline| {
            let written = events.event(record, postings, pipeline, names);
            written.with_context(|| cannot_write(output))
        })?;
    events.finish(&snapshot).with_context(|| cannot_write(output))
}

/// Replays the trace into a Parquet file.
pub(super) fn parquet(
    out: impl Write + Send,
    trace: &Path,
    output: Option<&Path>,
    names: &mut Names,
) -> Result<()> {
    let cannot_write = || cannot_write(output);
    let mut events = parquet::Writer::new(out).with_context(cannot_write)?;
    let snapshot =
        replay_events(trace, &[], Limits::default(), None, |record, postings, pipeline| {
            let written = events.event(record, postings, pipeline, names);
            written.with_context(cannot_write)
        })?;
    events.finish(&snapshot).with_context(cannot_write)
}

/// Replays the trace into a page for a browser.
pub(super) fn html(
    out: impl Write,
    arguments: &Arguments,
    places: symbols::Options,
    names: &mut Names,
    suppressions: &Suppressions,
) -> Result<()> {
    let Arguments { file, pids, detectors, output, .. } = arguments;
    let mut activity = Activity::new(Level::Live);
    let limits = detectors.limits();
    let operations = detectors.operations(places)?;
    let snapshot = replay_events(file, pids, limits, operations, |record, postings, pipeline| {
        activity.event(record, postings, pipeline);
        Ok(())
    })?;
    detectors.require_operations(&snapshot.operations)?;
    let mut ranking = rank(&snapshot, names, SortKey::Live);
    ranking.findings.suppress(suppressions);
    html::write(out, &snapshot, &ranking, activity, names)
        .with_context(|| cannot_write(output.as_deref()))
}
