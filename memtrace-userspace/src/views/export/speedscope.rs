//! A profile for speedscope, as `file-format-schema.json` of its npm package describes it.
//!
//! One sampled profile: a sample for each call path, from the root outwards, and its weight. There
//! is no time in it: samples stand in the order of the tree, which the *left heavy* and *sandwich*
//! views do not mind.

use std::io::{self, Write};

use serde::Serialize;

use super::list::List;
use super::weights::{Call, Node, Paths, Weight};
use crate::pipeline::snapshot::Snapshot;
use crate::views::ranking::{Ranking, SortKey};
use crate::views::summary;

#[derive(Serialize)]
struct File<'r, S, W> {
    #[serde(rename = "$schema")]
    schema: &'static str,
    exporter: String,
    name: String,
    #[serde(rename = "activeProfileIndex")]
    active_profile_index: u32,
    shared: Shared<'r>,
    profiles: [Profile<S, W>; 1],
}

#[derive(Serialize)]
struct Shared<'r> {
    frames: Vec<Frame<'r>>,
}

#[derive(Serialize)]
struct Frame<'r> {
    name: &'r str,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'r str>,
}

#[derive(Serialize)]
struct Profile<S, W> {
    #[serde(rename = "type")]
    kind: &'static str,
    name: String,
    unit: &'static str,
    #[serde(rename = "startValue")]
    start_value: u64,
    #[serde(rename = "endValue")]
    end_value: u64,
    samples: S,
    weights: W,
}

/// A function whatever the line, so that two calls of one function are drawn as one.
fn function(node: Node<'_>) -> Call {
    Call { line: None, inlined: false, ..Call::new(node) }
}

/// Writes the profile.
pub fn write(
    mut out: impl Write,
    snapshot: &Snapshot,
    ranking: &Ranking,
    weight: Weight,
) -> io::Result<()> {
    let paths = Paths::new(ranking, weight, function);
    let file = File {
        schema: "https://www.speedscope.app/file-format-schema.json",
        exporter: format!("memtrace@{}", env!("CARGO_PKG_VERSION")),
        name: format!("{}: {}", summary::target(snapshot), weight.title()),
        active_profile_index: 0,
        shared: Shared { frames: paths.labels.iter().map(frame).collect() },
        profiles: [Profile {
            kind: "sampled",
            name: weight.title(),
            unit: match weight.key {
                SortKey::Live | SortKey::Peak | SortKey::Allocated => "bytes",
                SortKey::Allocations | SortKey::Temporary => "none",
            },
            start_value: 0,
            end_value: paths.total(),
            samples: List(|| paths.walk().map(|step| step.nodes)),
            weights: List(|| paths.walk().map(|step| step.weight)),
        }],
    };
    serde_json::to_writer(&mut out, &file).map_err(io::Error::from)?;
    out.write_all(b"\n")
}

fn frame(call: &Call) -> Frame<'_> {
    Frame { name: &call.name, file: call.file.as_deref().or(call.module.as_deref()) }
}
