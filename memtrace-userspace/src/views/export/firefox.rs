//! A profile for <https://profiler.firefox.com>, in version 60 of its *processed* format.
//!
//! One thread, whose samples are the call paths weighed in bytes, and counters of live, mapped and
//! resident memory over time. All tables are columns, and samples refer to nodes of a tree. The
//! paths come in the order of the tree, so a node is new exactly where a path leaves the one
//! before, and nodes are numbered as they come:
//!
//! ```text
//!   main handle leak     nodes 0 1 2     prefix -, 0, 1    sample at 2
//!   main handle read     node  3         prefix 1          sample at 3
//! ```
//!
//! Whatever the format's later versions changed, the profiler converts on loading, as
//! `docs-developer/CHANGELOG-formats.md` in its repository tells.

mod tables;

use std::io::{self, Write};

use serde::Serialize;

use self::tables::{Tables, nodes};
use super::list::List;
use super::weights::{Call, Paths, Weight};
use crate::pipeline::snapshot::{Snapshot, TimelinePoint};
use crate::views::ranking::{Ranking, SortKey};
use crate::views::{caveats, summary};

#[derive(Serialize)]
struct Profile<'r, S, T> {
    meta: Meta,
    libs: &'r [tables::Lib],
    shared: S,
    threads: [Thread<T>; 1],
    counters: Vec<Counter>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    interval: f64,
    start_time: f64,
    process_type: u32,
    product: String,
    stackwalk: u32,
    version: u32,
    preprocessed_profile_version: u32,
    symbolicated: bool,
    imported_from: &'static str,
    uses_only_one_stack_type: bool,
    source_code_is_not_on_searchfox: bool,
    categories: [Category; 2],
    marker_schema: [(); 0],
    extra: Vec<ExtraSection>,
}

#[derive(Serialize)]
struct Category {
    name: &'static str,
    color: &'static str,
    subcategories: [&'static str; 1],
}

#[derive(Serialize)]
struct ExtraSection {
    label: &'static str,
    entries: Vec<ExtraEntry>,
}

#[derive(Serialize)]
struct ExtraEntry {
    label: String,
    format: &'static str,
    value: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Thread<T> {
    name: String,
    process_type: &'static str,
    process_name: String,
    process_startup_time: f64,
    process_shutdown_time: Option<f64>,
    register_time: f64,
    unregister_time: Option<f64>,
    paused_ranges: [(); 0],
    is_main_thread: bool,
    pid: String,
    tid: u32,
    samples: T,
    markers: Markers,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Samples<S, T, W> {
    length: usize,
    weight_type: &'static str,
    stack: S,
    time: T,
    weight: W,
}

#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Markers {
    length: usize,
    data: [(); 0],
    name: [(); 0],
    start_time: [(); 0],
    end_time: [(); 0],
    phase: [(); 0],
    category: [(); 0],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Counter {
    name: &'static str,
    category: &'static str,
    description: &'static str,
    color: &'static str,
    pid: String,
    main_thread_index: u32,
    samples: CounterSamples,
}

#[derive(Serialize)]
struct CounterSamples {
    length: usize,
    time: Vec<f64>,
    count: Vec<i64>,
}

/// Writes the profile.
pub fn write(
    mut out: impl Write,
    snapshot: &Snapshot,
    ranking: &Ranking,
    weight: Weight,
) -> io::Result<()> {
    let paths = Paths::new(ranking, weight, Call::new);
    let tables = Tables::new(snapshot, &paths);
    let moment = match weight.key {
        SortKey::Peak => milliseconds(snapshot.totals.peak_at.0),
        SortKey::Live | SortKey::Allocated | SortKey::Allocations | SortKey::Temporary => {
            milliseconds(snapshot.now.0)
        }
    };
    let process = tables::process(snapshot);
    let profile = Profile {
        meta: meta(snapshot),
        libs: &tables.libs,
        shared: tables.shared(&paths),
        threads: [Thread {
            name: weight.title(),
            process_type: "default",
            process_name: summary::target(snapshot),
            process_startup_time: 0.0,
            process_shutdown_time: None,
            register_time: 0.0,
            unregister_time: None,
            paused_ranges: [],
            is_main_thread: true,
            pid: process.to_string(),
            tid: process,
            samples: Samples {
                length: paths.len(),
                weight_type: match weight.key {
                    SortKey::Live | SortKey::Peak | SortKey::Allocated => "bytes",
                    SortKey::Allocations | SortKey::Temporary => "samples",
                },
                stack: List(|| nodes(&paths).map(|path| path.last)),
                time: List(|| paths.walk().map(|_| moment)),
                weight: List(|| paths.walk().map(|step| step.weight)),
            },
            markers: Markers::default(),
        }],
        counters: counters(snapshot, process),
    };
    serde_json::to_writer(&mut out, &profile).map_err(io::Error::from)?;
    out.write_all(b"\n")
}

fn meta(snapshot: &Snapshot) -> Meta {
    let started = snapshot.session.as_ref().map_or(0, |session| session.started_unix_s);
    let entry = |(number, caveat)| ExtraEntry {
        label: format!("{number}"),
        format: "string",
        value: caveat,
    };
    let caveats: Vec<_> = (1..).zip(caveats::caveats(snapshot)).map(entry).collect();
    let capture = ExtraEntry {
        label: "Capture".to_owned(),
        format: "string",
        value: format!("{}; {}", summary::capture(snapshot), summary::loss(snapshot)),
    };
    Meta {
        interval: 1.0,
        start_time: started as f64 * 1e3,
        process_type: 0,
        product: format!("memtrace: {}", summary::target(snapshot)),
        stackwalk: 1,
        version: 31,
        preprocessed_profile_version: 60,
        symbolicated: true,
        imported_from: "memtrace",
        uses_only_one_stack_type: true,
        source_code_is_not_on_searchfox: true,
        categories: [
            Category { name: "Other", color: "grey", subcategories: ["Other"] },
            Category { name: "Code", color: "blue", subcategories: ["Other"] },
        ],
        marker_schema: [],
        extra: vec![
            ExtraSection { label: "memtrace", entries: vec![capture] },
            ExtraSection { label: "Caveats", entries: caveats },
        ],
    }
}

/// Memory over time: what each counter changed by, step by step.
fn counters(snapshot: &Snapshot, process: u32) -> Vec<Counter> {
    type Level = fn(&TimelinePoint) -> u64;
    let all: [(&str, &str, &str, Level); 3] = [
        ("Heap", "Live heap bytes of the running processes", "orange", |p| p.live_bytes),
        ("Mapped", "Mapped bytes", "blue", |p| p.mapped_bytes),
        ("Resident", "Resident bytes, as sampled", "green", |p| p.resident_bytes),
    ];
    let counter = |(name, description, color, level): (_, _, _, Level)| {
        let levels = std::iter::once(0).chain(snapshot.timeline.iter().map(level));
        let changes = levels.clone().skip(1).zip(levels);
        let count: Vec<i64> =
            changes.map(|(now, before)| now.wrapping_sub(before) as i64).collect();
        let time: Vec<f64> = snapshot.timeline.iter().map(|p| milliseconds(p.time.0)).collect();
        count.iter().any(|&change| change != 0).then_some(Counter {
            name,
            category: "Memory",
            description,
            color,
            pid: process.to_string(),
            main_thread_index: 0,
            samples: CounterSamples { length: count.len(), time, count },
        })
    };
    all.into_iter().filter_map(counter).collect()
}

fn milliseconds(ns: u64) -> f64 {
    ns as f64 / 1e6
}
