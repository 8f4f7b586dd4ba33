//! Whether the stacks of a real program are whole.
//!
//! Every stack counts once here, however often it was used: a workload that calls one function a
//! million times says nothing about the others. What does not reach the root is shown with its
//! reason.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use crate::report::Report;

/// The share of stacks that must reach the root of their thread.
const COMPLETE: f64 = 0.995;

/// Nothing is lost, and nearly every stack is complete.
pub fn require_complete(program: &str, report: &Report) -> Result<()> {
    let mut ends: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for stack in &report.stacks {
        ends.entry(&stack.end).or_default().push(stack.path());
    }
    let all = report.stacks.len();
    let complete = ends.get("root").map_or(0, Vec::len) as f64 / all as f64;
    ends.remove("root");
    let counts: Vec<_> = ends.iter().map(|(end, paths)| (*end, paths.len())).collect();
    println!("{program}: {all} stacks, {:.2} % complete; {counts:?}", 100.0 * complete);
    ensure!(all > 50, "only {all} stacks were seen");
    let lost = report.number("/capture/lost_events")?;
    ensure!(lost == 0, "{lost} events were lost: {}", report.json["counters"]);
    ensure!(complete >= COMPLETE, "{program}: {:.2} % are complete\n{ends:#?}", 100.0 * complete);
    Ok(())
}

/// Requires a stack in which `inner` is called by `outer`, if through others.
pub fn require_path(report: &Report, inner: &str, outer: &str) -> Result<()> {
    let found = report.stacks.iter().any(|stack| {
        let names: Vec<&str> = stack.frames.iter().filter_map(|f| f.function.as_deref()).collect();
        let inner = names.iter().position(|name| *name == inner);
        let outer = names.iter().rposition(|name| *name == outer);
        stack.end == "root" && inner.zip(outer).is_some_and(|(inner, outer)| inner < outer)
    });
    ensure!(found, "no stack goes through {inner} and {outer}");
    Ok(())
}
