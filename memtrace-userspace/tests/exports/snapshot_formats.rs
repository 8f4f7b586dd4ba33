//! Formats that show the end of a session.

use std::fs;
use std::path::Path;

use crate::browser::{BROWSER, document};
use crate::consumer::{python, require, speedscope};
use crate::made_up::{
    ALLOCATED_BYTES, ALLOCATIONS, CACHE_BYTES, LIVE_BLOCKS, LIVE_BYTES, MAPPED_BYTES, PARSED_BYTES,
    PEAK_BYTES, Trace,
};
use crate::{ask, export};

/// The numbers of a function in `pprof -top`: flat and cumulative.
fn top(go: &Path, file: &Path, sample: &str, function: &str) -> (String, String) {
    let sample = format!("-sample_index={sample}");
    let text = ask(go, &["tool", "pprof", "-top", "-unit=bytes", "-nodefraction=0", &sample], file);
    let line = text.lines().find(|line| line.trim_end().ends_with(function));
    let line = line.unwrap_or_else(|| panic!("{function}: {text}"));
    let fields: Vec<&str> = line.split_whitespace().collect();
    (fields[0].to_owned(), fields[3].to_owned())
}

#[test]
fn pprof_of_go_reads_all_four_numbers() {
    let Some(go) = require("/usr/bin/go") else { return };
    let trace = Trace::new();

    let file = export(&trace, "p.pb.gz", &[]);

    let numbers = |sample, function| top(&go, &file, sample, function);
    let bytes = |bytes: u64| format!("{bytes}B");
    assert_eq!(numbers("inuse_space", "::fill_cache").0, bytes(CACHE_BYTES));
    assert_eq!(numbers("inuse_space", "::serve"), ("0".to_owned(), bytes(LIVE_BYTES)));
    assert_eq!(numbers("inuse_objects", "::serve").1, format!("{LIVE_BLOCKS}bytes"));
    assert_eq!(numbers("alloc_space", "::parse").0, bytes(PARSED_BYTES));
    assert_eq!(numbers("alloc_objects", "::parse").0, "100bytes");
    let raw = ask(&go, &["tool", "pprof", "-raw"], &file);
    assert!(
        raw.contains(
            "alloc_objects/count alloc_space/bytes inuse_objects/count inuse_space/bytes[dflt]"
        ),
        "{raw}"
    );
}

#[test]
fn pprof_of_mappings_is_a_profile_of_its_own() {
    let Some(go) = require("/usr/bin/go") else { return };
    let trace = Trace::new();

    let file = export(&trace, "m.pb.gz", &["--memory", "mapped"]);

    assert_eq!(top(&go, &file, "inuse_space", "::report").0, format!("{MAPPED_BYTES}B"));
}

#[test]
fn flame_graph_in_a_browser_shows_functions_and_bytes() {
    let Some(browser) = require(BROWSER) else { return };
    let trace = Trace::new();

    let file = export(&trace, "f.svg", &["--metric", "peak"]);

    let page = document(&browser, trace.directory(), &format!("file://{}", file.display()));
    assert!(page.contains("memtrace: bytes at the peak"), "{page}");
    assert!(page.contains("::fill_cache (65,536 bytes, 5.88%)"), "{page}");
    assert!(page.contains("all (1,114,112 bytes, 100%)"), "{page}");
    assert!(!page.contains("::parse"), "{page}");
}

#[test]
fn folded_lines_add_up_to_the_metric() {
    let trace = Trace::new();
    let sum = |metric: &str| -> u64 {
        let file = export(&trace, "f.folded", &["--metric", metric]);
        let text = fs::read_to_string(file).expect("UTF-8");
        let weights = text.lines().map(|line| line.rsplit_once(' ').expect("a weight").1);
        weights.map(|weight| weight.parse::<u64>().expect("a number")).sum()
    };

    assert_eq!(sum("live"), LIVE_BYTES);
    assert_eq!(sum("peak"), PEAK_BYTES);
    assert_eq!(sum("allocated"), ALLOCATED_BYTES);
    assert_eq!(sum("allocations"), ALLOCATIONS);
}

#[test]
fn speedscope_opens_its_profile() {
    let (Some(app), Some(browser)) = (speedscope(), require(BROWSER)) else { return };
    let trace = Trace::new();

    let file = export(&trace, "s.speedscope.json", &["--metric", "allocated"]);

    let text = fs::read_to_string(&file).expect("UTF-8");
    let profile: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let schema = fs::read_to_string(app.join("file-format-schema.json")).expect("the schema");
    let schema: serde_json::Value = serde_json::from_str(&schema).expect("JSON");
    if let Err(error) = jsonschema::validate(&schema, &profile) {
        panic!("{}: {error}", error.instance_path());
    }
    assert_eq!(profile["profiles"][0]["endValue"], ALLOCATED_BYTES);
    // The application reads a script that hands it the file, as its own command line tool does.
    let quoted = serde_json::to_string(&text).expect("JSON");
    let script = format!("speedscope.loadFileFromBase64('made-up.json', btoa({quoted}))");
    let script_path = trace.directory().join("s.js");
    fs::write(&script_path, script).expect("space");
    let url =
        format!("file://{}/index.html#localProfilePath={}", app.display(), script_path.display());
    let page = document(&browser, trace.directory(), &url);
    assert!(page.contains("Left Heavy") && page.contains("allocated bytes"), "{page}");
}

#[test]
fn perfetto_messages_have_the_dump_and_the_counters() {
    let Some(python) = python() else { return };
    let trace = Trace::new();

    let file = export(&trace, "t.pftrace", &[]);

    let script = trace.directory().join("read.py");
    fs::write(&script, include_str!("perfetto.py")).expect("space");
    let text = ask(&python, &[script.to_str().expect("UTF-8")], &file);
    let expected = [
        format!("heap malloc allocated {ALLOCATED_BYTES} in {ALLOCATIONS}"),
        format!("heap malloc live {LIVE_BYTES} in {LIVE_BLOCKS}"),
        format!("heap mmap live {MAPPED_BYTES} in 1"),
        format!("fill_cache {CACHE_BYTES}"),
        format!("counter Live heap {LIVE_BYTES}"),
        "unresolved 0".to_owned(),
    ];
    for line in expected {
        assert!(text.lines().any(|found| found.ends_with(&line)), "{line}: {text}");
    }
}

#[test]
fn table_is_read_by_duckdb() {
    let Some(python) = python() else { return };
    let trace = Trace::new();

    let file = export(&trace, "t.csv", &[]);

    let query = "select sum(allocations), sum(live_bytes), sum(peak_bytes), max(line) from \
                 read_csv(getvariable('file')) where api <> 'mmap'";
    let row = crate::event_formats::duckdb(&python, query, &file);
    assert!(row.starts_with(&format!("{ALLOCATIONS}|{LIVE_BYTES}|{PEAK_BYTES}|")), "{row}");
}

#[test]
fn firefox_profile_is_one_tree_with_all_bytes() {
    let trace = Trace::new();

    let file = export(&trace, "t.firefox.json", &["--metric", "allocated"]);

    let text = fs::read_to_string(file).expect("UTF-8");
    let profile: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let numbers = |value: &serde_json::Value| -> Vec<Option<u64>> {
        value.as_array().expect("a list").iter().map(serde_json::Value::as_u64).collect()
    };
    let threads = profile["threads"].as_array().expect("threads");
    let weights = threads.iter().flat_map(|thread| numbers(&thread["samples"]["weight"]));
    assert_eq!(weights.flatten().sum::<u64>(), ALLOCATED_BYTES);
    let prefixes = numbers(&profile["shared"]["stackTable"]["prefix"]);
    // Three functions under `serve`, one under `main_of_it`.
    assert_eq!(prefixes.iter().filter(|prefix| prefix.is_none()).count(), 2);
    for (node, prefix) in (0..).zip(prefixes) {
        assert!(prefix.is_none_or(|prefix| prefix < node), "a caller stands before its callee");
    }
}
