//! `report --timeline`: what functions and threads did, of a session and of a range.

use crate::{Files, assert_error, memtrace, text, utf8};

fn timelines(trace: &str, part: &[&str]) -> serde_json::Value {
    let arguments = [&["report", trace, "--timeline", "--format", "json"], part].concat();
    let output = memtrace(&arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    report["timelines"].clone()
}

/// Of each step that ends at a whole second: its bytes.
fn at_whole_seconds(timelines: &serde_json::Value, of: &serde_json::Value) -> Vec<(u64, u64)> {
    let ends = timelines["ends_ns"].as_array().expect("a list").iter();
    let held = of["live_bytes"].as_array().expect("a list").iter();
    let number = |value: &serde_json::Value| value.as_u64().expect("a number");
    let steps = ends.zip(held).map(|(end, held)| (number(end), number(held)));
    let whole = steps.filter(|(end, _)| end.is_multiple_of(1_000_000_000));
    whole.map(|(end, held)| (end / 1_000_000_000, held)).collect()
}

#[test]
fn timelines_tell_what_was_held_when() {
    let files = Files::new();
    let trace = files.trace(4);

    let whole = timelines(utf8(&trace), &[]);
    let range = timelines(utf8(&trace), &["--from", "2s", "--to", "3s"]);

    // Steps of 16 ms: 4 s is their end, and an event at 4 s belongs to what follows.
    let function = &whole["functions"][0];
    assert_eq!(at_whole_seconds(&whole, function).last(), Some(&(4, 300)));
    assert_eq!(function["live_bytes"], whole["all"]["live_bytes"]);
    assert_eq!(whole["threads"][0]["live_bytes"], whole["all"]["live_bytes"]);
    assert_eq!(whole["other_functions"]["count"], 0);
    assert_eq!(range["start_ns"], 2_000_000_000_u64);
    // What happens at the range's last moment is in a step of its own.
    assert_eq!(at_whole_seconds(&range, &range["functions"][0]), [(3, 300), (3, 400)]);
    let allocated = range["all"]["allocated_bytes"].as_array().expect("a list");
    assert_eq!(allocated.iter().filter_map(serde_json::Value::as_u64).sum::<u64>(), 200);
}

#[test]
fn timelines_fit_80_columns_and_show_no_control_characters() {
    let files = Files::new();
    let trace = files.trace(4);

    let output = memtrace(&["report", utf8(&trace), "--timeline"]);

    let report = text(&output.stdout);
    let (_, lines) = report.split_once("Over time, 0 ms to 4.0 s").expect("it is there");
    let section = lines.split("\n\n").next().expect("the first");
    assert!(section.contains("300 B") || section.contains("400 B"), "{section}");
    assert!(section.lines().skip(1).all(|line| line.chars().count() <= 80), "{section}");
    assert!(!section.contains('\x1b'), "{section}");
}

#[test]
fn timeline_of_a_moment_or_a_picture_is_refused() {
    let files = Files::new();
    let trace = files.trace(4);

    let moment = memtrace(&["report", utf8(&trace), "--timeline", "--at", "peak"]);
    let picture = memtrace(&["report", utf8(&trace), "--timeline", "--format", "svg"]);

    assert_error(&moment, "--timeline is about a time and --at about a moment");
    assert_error(&picture, "--timeline means nothing for --format svg");
}
