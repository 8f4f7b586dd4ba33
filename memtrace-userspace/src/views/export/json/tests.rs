//! Tests of the JSON report.

use super::*;
use crate::views::fixture;
use crate::views::frames::Names;
use crate::views::ranking::{SortKey, rank};

fn json(snapshot: &Snapshot, names: &mut Names, top: Option<usize>) -> String {
    let ranking = rank(snapshot, names, SortKey::Live);
    let mut out = Vec::new();
    write(&mut out, snapshot, &ranking, top).expect("a Vec takes all");
    String::from_utf8(out).expect("JSON is UTF-8")
}

fn assert_valid(report: &str) {
    let schema = include_str!("../../../../../docs/report.schema.json");
    let schema = serde_json::from_str(schema).expect("the schema is JSON");
    let validator = jsonschema::validator_for(&schema).expect("the schema is a schema");
    let report = serde_json::from_str(report).expect("the report is JSON");
    let errors: Vec<String> =
        validator.iter_errors(&report).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert_eq!(errors, Vec::<String>::new());
}

#[test]
fn report_is_valid_and_unchanged() {
    let report = json(&fixture::snapshot(), &mut fixture::names(), None);

    assert_valid(&report);
    insta::assert_snapshot!(report);
}

#[test]
fn report_with_timelines_is_valid() {
    let snapshot = fixture::snapshot();
    let mut ranking = rank(&snapshot, &mut fixture::names(), SortKey::Live);
    ranking.timelines = Some(fixture::timelines(&ranking, &snapshot));
    let mut out = Vec::new();

    write(&mut out, &snapshot, &ranking, None).expect("a Vec takes all");

    let report = String::from_utf8(out).expect("JSON is UTF-8");
    assert_valid(&report);
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    let function = &report["timelines"]["functions"][0];
    assert_eq!(function["function"], "leak_per_request");
    assert_eq!(function["live_bytes"], serde_json::json!([4 << 20, 8 << 20, 12 << 20]));
    assert_eq!(report["timelines"]["threads"][0]["tid"], snapshot.threads[0].tid.0);
    assert_eq!(report["timelines"]["other_functions"]["count"], 2);
}

#[test]
fn report_of_nothing_is_valid() {
    let mut snapshot = fixture::snapshot();
    snapshot.session = None;
    snapshot.end = None;
    snapshot.stacks.clear();
    snapshot.processes.clear();
    snapshot.counters.clear();

    assert_valid(&json(&snapshot, &mut fixture::names(), None));
}

#[test]
fn report_with_an_unknown_key_type_is_invalid() {
    let report = json(&fixture::snapshot(), &mut fixture::names(), None)
        .replace("\"pid\": 4242", "\"pid\": \"4242\"");
    let schema = include_str!("../../../../../docs/report.schema.json");
    let schema = serde_json::from_str(schema).expect("the schema is JSON");
    let report = serde_json::from_str(&report).expect("the report is JSON");

    assert!(!jsonschema::is_valid(&schema, &report));
}

#[test]
fn order_of_stacks_in_the_snapshot_does_not_matter() {
    let mut snapshot = fixture::snapshot();
    let forwards = json(&snapshot, &mut fixture::names(), None);
    snapshot.stacks.reverse();

    assert_eq!(json(&snapshot, &mut fixture::names(), None), forwards);
}

#[test]
fn top_limits_lists_and_not_totals() {
    let report = json(&fixture::snapshot(), &mut fixture::names(), Some(1));

    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    assert_eq!(report["functions"].as_array().map(Vec::len), Some(1));
    assert_eq!(report["stacks"].as_array().map(Vec::len), Some(1));
    assert_eq!(report["totals"]["allocations"], 12 * 1024 + 256 + 1_234_567 + 3);
}
