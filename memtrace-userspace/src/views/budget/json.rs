//! The JSON form of a judgement, as `docs/check.schema.json` describes it.

use std::io::{self, Write};

use serde::Serialize;

use super::{Judgement, Metric, Numbers, Row, TopStack};
use crate::record::Origin;
use crate::views::export::json::layout::OneEntryPerLine;
use crate::views::profile::Profile;

/// The judgement's `version`.
pub const VERSION: u32 = 1;

#[derive(Serialize)]
struct Check<'j> {
    format: &'static str,
    version: u32,
    verdict: &'static str,
    target: &'j str,
    origin: Option<&'static str>,
    duration_ns: u64,
    losses: &'j [String],
    caveats: &'j [String],
    checks: Vec<Entry<'j>>,
}

#[derive(Serialize)]
struct Entry<'j> {
    subject: &'j str,
    check: &'static str,
    verdict: &'static str,
    unit: Option<&'static str>,
    actual: Option<u64>,
    limit: Option<u64>,
    baseline: Option<u64>,
    notes: &'j [String],
    source: Option<Place<'j>>,
    place: Option<Place<'j>>,
    stacks: Vec<Stack<'j>>,
}

#[derive(Serialize)]
struct Place<'j> {
    file: &'j str,
    line: u32,
}

#[derive(Serialize)]
struct Stack<'j> {
    amount: u64,
    frames: &'j [String],
}

/// Writes the judgement.
pub fn write(out: impl Write, judgement: &Judgement, profile: &Profile) -> io::Result<()> {
    let duration = profile.coverage.duration.as_nanos();
    let check = Check {
        format: "memtrace-check",
        version: VERSION,
        verdict: judgement.verdict().name(),
        target: &profile.target,
        origin: profile.coverage.origin.map(|origin| match origin {
            Origin::Attached => "attached",
            Origin::Launched => "launched",
        }),
        duration_ns: u64::try_from(duration).unwrap_or(u64::MAX),
        losses: &profile.coverage.losses,
        caveats: &profile.caveats,
        checks: judgement.rows.iter().map(entry).collect(),
    };
    let mut serializer = serde_json::Serializer::with_formatter(out, OneEntryPerLine::default());
    check.serialize(&mut serializer).map_err(io::Error::from)?;
    serializer.into_inner().write_all(b"\n")
}

fn entry(row: &Row) -> Entry<'_> {
    let Row { subject, metric, numbers, verdict, notes, stacks, place: at, source } = row;
    Entry {
        subject,
        check: metric.map_or("end", Metric::name),
        verdict: verdict.name(),
        unit: numbers.map(|numbers| numbers.unit.name()),
        actual: numbers.map(|Numbers { actual, .. }| actual),
        limit: numbers.and_then(|numbers| numbers.limit),
        baseline: numbers.and_then(|numbers| numbers.baseline),
        notes,
        source: source.as_ref().map(place),
        place: at.as_ref().map(place),
        stacks: stacks
            .iter()
            .map(|TopStack { amount, frames }| Stack { amount: *amount, frames })
            .collect(),
    }
}

fn place(place: &super::Place) -> Place<'_> {
    let super::Place { file, line } = place;
    Place { file, line: *line }
}
