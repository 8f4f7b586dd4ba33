//! Reports that are made of every event, while the trace is read.

use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result};
use flate2::write::GzEncoder;
use memtrace_userspace::pipeline::{Pipeline, Posting};
use memtrace_userspace::record::Record;
use memtrace_userspace::views::export::{dhat, heaptrack, parquet};
use memtrace_userspace::views::frames::Names;

use super::cannot_write;
use super::format::Format;
use crate::cli::output::Output;
use crate::cli::replay::replay_events;

/// Replays the trace into a report. `output` is the name of `out`.
pub(super) fn write(
    format: Format,
    mut out: Output,
    trace: &Path,
    output: Option<&Path>,
    mut names: Names,
) -> Result<Output> {
    match format {
        Format::Parquet => {
            let cannot_write = || cannot_write(output);
            let mut events = parquet::Writer::new(&mut out).with_context(cannot_write)?;
            let snapshot = replay_events(trace, |record, postings, pipeline| {
                let written = events.event(record, postings, pipeline, &mut names);
                written.with_context(cannot_write)
            })?;
            events.finish(&snapshot).with_context(cannot_write)?;
            Ok(out)
        }
        Format::Heaptrack => match output.and_then(Path::extension).and_then(|e| e.to_str()) {
            Some("gz") => {
                let out = GzEncoder::new(out, flate2::Compression::default());
                heaptrack(out, trace, output, names)?.finish()
            }
            Some("zst") => {
                let level = zstd::DEFAULT_COMPRESSION_LEVEL;
                let out = zstd::Encoder::new(out, level).with_context(|| cannot_write(output))?;
                heaptrack(out, trace, output, names)?.finish()
            }
            Some(_) | None => return heaptrack(out, trace, output, names),
        }
        .with_context(|| cannot_write(output)),
        _ => {
            let mut profile = dhat::Profile::default();
            let snapshot = replay_events(trace, |_, postings, pipeline| {
                profile.event(postings, pipeline, &mut names);
                Ok(())
            })?;
            profile.write(&mut out, &snapshot).with_context(|| cannot_write(output))?;
            Ok(out)
        }
    }
}

fn heaptrack<W: Write>(out: W, trace: &Path, output: Option<&Path>, mut names: Names) -> Result<W> {
    let mut events = heaptrack::Writer::new(out);
    let snapshot =
        replay_events(trace, |record: &Record, postings: &[Posting], pipeline: &Pipeline| {
            let written = events.event(record, postings, pipeline, &mut names);
            written.with_context(|| cannot_write(output))
        })?;
    let finished: io::Result<W> = events.finish(&snapshot);
    finished.with_context(|| cannot_write(output))
}
