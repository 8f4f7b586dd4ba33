//! A profile for <https://profiler.firefox.com>, in version 60 of its *processed* format.
//!
//! The threads of the session, whose samples are the call paths of what they allocated, weighed in
//! bytes, and counters of live, mapped and resident memory over time. All tables are columns, and
//! samples refer to nodes of a tree that all threads share. The paths come in the order of the tree,
//! so a node is new exactly where a path leaves the one before, and nodes are numbered as they come:
//!
//! ```text
//!   main handle leak     nodes 0 1 2     prefix -, 0, 1    sample at 2
//!   main handle read     node  3         prefix 1          sample at 3
//! ```
//!
//! Whatever the format's later versions changed, the profiler converts on loading, as
//! `docs-developer/CHANGELOG-formats.md` in its repository tells.

mod tables;

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::Serialize;

use self::tables::{Tables, nodes};
use super::weights::{Call, Paths, Weight};
use crate::pipeline::snapshot::{Snapshot, TimelinePoint};
use crate::record::{Pid, Tid};
use crate::views::frames::base_name;
use crate::views::printable::{printable, printable_str};
use crate::views::ranking::{Ranking, SortKey, SymbolizedUsage};
use crate::views::{caveats, summary};

#[derive(Serialize)]
struct Profile<'r, S> {
    meta: Meta,
    libs: &'r [tables::Lib],
    shared: S,
    threads: Vec<Thread>,
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
struct Thread {
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
    samples: Samples,
    markers: Markers,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Samples {
    length: usize,
    weight_type: &'static str,
    stack: Vec<usize>,
    time: Vec<f64>,
    weight: Vec<u64>,
}

/// The user's marks.
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Markers {
    length: usize,
    /// None has more to say than its name.
    data: Vec<()>,
    name: Vec<usize>,
    start_time: Vec<f64>,
    /// An instant has no end.
    end_time: Vec<()>,
    phase: Vec<u32>,
    category: Vec<u32>,
}

/// A marker that is a moment, in the format's numbering.
const INSTANT: u32 = 0;
/// The category of whatever has no other, in the list of categories.
const OTHER: u32 = 0;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Counter {
    name: &'static str,
    category: &'static str,
    description: &'static str,
    color: &'static str,
    pid: String,
    main_thread_index: usize,
    samples: CounterSamples,
}

#[derive(Serialize)]
struct CounterSamples {
    length: usize,
    time: Vec<f64>,
    count: Vec<i64>,
}

/// Writes the profile. Without `by_thread`, all call paths are those of one thread.
///
/// What is at the peak is not known by thread ([`SortKey::Peak`]).
pub fn write(
    mut out: impl Write,
    snapshot: &Snapshot,
    ranking: &Ranking,
    by_thread: &BTreeMap<(Pid, Tid), Vec<SymbolizedUsage>>,
    weight: Weight,
) -> io::Result<()> {
    let stacks = by_thread.values().enumerate();
    let stacks = stacks.flat_map(|(owner, stacks)| stacks.iter().map(move |stack| (owner, stack)));
    let paths = match by_thread.is_empty() {
        true => Paths::new(ranking, weight, Call::new),
        false => Paths::of_owners(stacks, weight, Call::new),
    };
    let mut tables = Tables::new(snapshot, &paths);
    let process = tables::process(snapshot);
    let ids = match by_thread.is_empty() {
        true => vec![(process, process)],
        false => by_thread.keys().map(|(pid, tid)| (pid.0, tid.0)).collect(),
    };
    let mut threads: Vec<Thread> =
        ids.iter().map(|&(pid, tid)| thread(snapshot, pid, tid, weight)).collect();
    let moment = match weight.key {
        SortKey::Peak => milliseconds(snapshot.totals.peak_at.0),
        SortKey::Live | SortKey::Allocated | SortKey::Allocations | SortKey::Temporary => {
            milliseconds(snapshot.now.0)
        }
    };
    for (step, path) in paths.walk().zip(nodes(&paths)) {
        let samples = &mut threads[step.owner].samples;
        samples.length += 1;
        samples.stack.push(path.last);
        samples.time.push(moment);
        samples.weight.push(step.weight);
    }
    // The marks and the counters stand at the process that the session is named after.
    let main = threads
        .iter()
        .position(|thread| thread.is_main_thread && thread.pid == process.to_string());
    if main.is_none() {
        threads.insert(0, thread(snapshot, process, process, weight));
    }
    let main = main.unwrap_or(0);
    threads[main].markers = markers(snapshot, &mut tables);
    let profile = Profile {
        meta: meta(snapshot),
        libs: &tables.libs,
        shared: tables.shared(&paths),
        threads,
        counters: counters(snapshot, process, main),
    };
    serde_json::to_writer(&mut out, &profile).map_err(io::Error::from)?;
    out.write_all(b"\n")
}

/// A thread without samples.
fn thread(snapshot: &Snapshot, pid: u32, tid: u32, weight: Weight) -> Thread {
    let known = snapshot.threads.iter().rfind(|thread| (thread.pid.0, thread.tid.0) == (pid, tid));
    let name = match known {
        Some(thread) if !thread.name.is_empty() => printable(&thread.name).into_owned(),
        Some(_) => format!("thread {tid}"),
        None if pid == 0 => "other threads".to_owned(),
        None => summary::target(snapshot),
    };
    let process = snapshot.processes.iter().rfind(|process| process.pid.0 == pid);
    let ended = process.and_then(|process| process.ended).map(|time| milliseconds(time.0));
    let started = process.map_or(0.0, |process| milliseconds(process.started.0));
    Thread {
        name: format!("{name}: {}", weight.title()),
        process_type: "default",
        process_name: match process {
            Some(process) => base_name(&printable(&process.exe)).to_owned(),
            None => summary::target(snapshot),
        },
        process_startup_time: started,
        process_shutdown_time: ended,
        register_time: started,
        unregister_time: ended,
        paused_ranges: [],
        is_main_thread: pid == tid,
        pid: pid.to_string(),
        tid,
        samples: Samples {
            length: 0,
            weight_type: match weight.key {
                SortKey::Live | SortKey::Peak | SortKey::Allocated => "bytes",
                SortKey::Allocations | SortKey::Temporary => "samples",
            },
            stack: Vec::new(),
            time: Vec::new(),
            weight: Vec::new(),
        },
        markers: Markers::default(),
    }
}

fn markers(snapshot: &Snapshot, tables: &mut Tables) -> Markers {
    let marks = &snapshot.marks;
    Markers {
        length: marks.len(),
        data: vec![(); marks.len()],
        name: marks.iter().map(|mark| tables.string(&printable_str(&mark.text))).collect(),
        start_time: marks.iter().map(|mark| milliseconds(mark.time.0)).collect(),
        end_time: vec![(); marks.len()],
        phase: vec![INSTANT; marks.len()],
        category: vec![OTHER; marks.len()],
    }
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
fn counters(snapshot: &Snapshot, process: u32, main_thread: usize) -> Vec<Counter> {
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
            main_thread_index: main_thread,
            samples: CounterSamples { length: count.len(), time, count },
        })
    };
    all.into_iter().filter_map(counter).collect()
}

fn milliseconds(ns: u64) -> f64 {
    ns as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pipeline::snapshot::Mark;
    use crate::record::Time;
    use crate::views::fixture;
    use crate::views::ranking::{Memory, rank};

    #[test]
    fn threads_share_a_tree_and_have_their_own_samples() {
        let snapshot = fixture::snapshot();
        let ranking = rank(&snapshot, &mut fixture::names(), SortKey::Live);
        let heap = |share: u64| {
            let mut stacks = ranking.stacks.clone();
            stacks.iter_mut().for_each(|stack| stack.usage.live_bytes /= share);
            stacks
        };
        let by_thread = BTreeMap::from([
            ((Pid(0), Tid(0)), heap(4)),
            ((Pid(4242), Tid(4242)), heap(1)),
            ((Pid(4242), Tid(4243)), heap(2)),
        ]);
        let mut out = Vec::new();

        let weight = Weight { memory: Memory::Heap, key: SortKey::Live };
        write(&mut out, &snapshot, &ranking, &by_thread, weight).expect("a Vec takes all");

        let profile: Value = serde_json::from_slice(&out).expect("JSON");
        let threads = profile["threads"].as_array().expect("threads");
        let sum = |thread: &Value| {
            let weights = thread["samples"]["weight"].as_array().expect("weights");
            weights.iter().filter_map(Value::as_u64).sum::<u64>()
        };
        let all = (12 << 20) + (2 << 20) + 300;
        assert_eq!(threads.iter().map(sum).collect::<Vec<_>>(), [all / 4, all, all / 2]);
        let stacks = |thread: &Value| thread["samples"]["stack"].clone();
        assert_eq!(stacks(&threads[0]), stacks(&threads[1]));
        assert_eq!(threads[0]["name"], "other threads: live bytes");
        assert_eq!(threads[2]["name"], "worker\\x1b[2J: live bytes");
        let is_main = threads.iter().map(|thread| thread["isMainThread"] == true);
        assert_eq!(is_main.collect::<Vec<_>>(), [true, true, false]);
        let counters = profile["counters"].as_array().expect("counters");
        assert!(counters.iter().all(|counter| counter["mainThreadIndex"] == 1), "{counters:?}");
    }

    #[test]
    fn marks_are_markers_at_their_moments() {
        let mut snapshot = fixture::snapshot();
        let mark = |ms: u64, text: &str| Mark { time: Time(ms * 1_000_000), text: text.to_owned() };
        snapshot.marks = vec![mark(500, "warm"), mark(1500, "load\x1b")];
        let ranking = rank(&snapshot, &mut fixture::names(), SortKey::Live);
        let mut out = Vec::new();

        let weight = Weight { memory: Memory::Heap, key: SortKey::Live };
        write(&mut out, &snapshot, &ranking, &BTreeMap::new(), weight).expect("a Vec takes all");

        let profile: Value = serde_json::from_slice(&out).expect("JSON");
        let markers = &profile["threads"][0]["markers"];
        let name = |index: usize| {
            let string = markers["name"][index].as_u64().expect("a string's index");
            profile["shared"]["stringArray"][string as usize].clone()
        };
        assert_eq!([name(0), name(1)], [json!("warm"), json!("load\\x1b")]);
        assert_eq!(markers["startTime"], json!([500.0, 1500.0]));
        assert_eq!(markers["endTime"], json!([null, null]));
        assert_eq!((&markers["length"], &markers["phase"]), (&json!(2), &json!([0, 0])));
    }
}
