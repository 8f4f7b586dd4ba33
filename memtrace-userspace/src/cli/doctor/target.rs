//! What `doctor -p` tells of a process's files: allocators, probes, unwind information, names.
//!
//! Pure: a [`Survey`] and what the package manager says go in, lines of at most 80 cells come out.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use memtrace_userspace::live::allocators::facts::Names;
use memtrace_userspace::live::allocators::survey::{Module, Survey};
use memtrace_userspace::live::allocators::{Plan, Role, Skip};
use memtrace_userspace::record::ProbeCost;
use memtrace_userspace::views::layout::{cut, fill, wrap};
use memtrace_userspace::views::printable::{printable, printable_str};
use memtrace_userspace::views::style::Style;

use super::debug_files::{Advice, Found, Origin};

/// Below this share of code with unwind information, stacks are likely to be cut.
const GOOD_COVERAGE: f64 = 0.9;

/// The sections about the files of a process.
pub(super) fn sections(survey: &Survey, debug: &[Found], width: usize, style: Style) -> String {
    let mut out = String::new();
    allocators(&mut out, survey, width, style);
    probes(&mut out, survey, width, style);
    files(&mut out, survey, debug, width, style);
    out
}

fn allocators(out: &mut String, survey: &Survey, width: usize, style: Style) {
    heading(out, style, "Allocators");
    for module in &survey.modules {
        let Ok(plan) = &module.plan else { continue };
        if plan.probes.is_empty() {
            continue;
        }
        let name = module.facts.allocator.unwrap_or("unknown");
        let path = printable(&module.path);
        let functions: BTreeSet<_> = plan.probes.iter().map(|p| p.target.svma).collect();
        let line = format!("  {name}  {path}, {} functions", functions.len());
        line_of(out, &line, width);
    }
}

fn probes(out: &mut String, survey: &Survey, width: usize, style: Style) {
    heading(out, style, "Probes");
    for module in &survey.modules {
        let Ok(plan) = &module.plan else { continue };
        if plan.probes.is_empty() && plan.skipped.is_empty() {
            continue;
        }
        line_of(out, &format!("  in {}", printable(&module.path)), width);
        for probe in &plan.probes {
            let place = format!("{}+{:#x}", printable_str(&probe.target.symbol), probe.site.delta);
            let returns = match probe.target.role {
                Role::Acquire | Role::Enclose => ", its return 0.6",
                Role::Release | Role::Midway | Role::Unwind | Role::End => "",
            };
            let cost = match probe.site.cost {
                ProbeCost::Emulated => format!("emulated, 0.7 µs a hit{returns}"),
                ProbeCost::Stepped => format!("stepped, 9 µs on a virtual machine{returns}"),
            };
            line_of(out, &format!("    {} {cost}", fill(&cut(&place, 30), 30)), width);
        }
        skipped(out, plan, width);
    }
}

/// What was passed over, by reason; other names for one function are of no interest.
fn skipped(out: &mut String, plan: &Plan, width: usize) {
    let mut reasons: Vec<(String, Vec<&str>)> = Vec::new();
    for skipped in plan.skipped.iter().filter(|s| !matches!(s.reason, Skip::Alias { .. })) {
        let reason = skipped.reason.to_string();
        match reasons.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, symbols)) => symbols.push(&skipped.symbol),
            None => reasons.push((reason, vec![&skipped.symbol])),
        }
    }
    for (reason, symbols) in reasons {
        let text = format!("not probed, {reason}: {}", symbols.join(", "));
        for line in wrap(&printable_str(&text), width.saturating_sub(4)) {
            line_of(out, &format!("    {line}"), width);
        }
    }
}

fn files(out: &mut String, survey: &Survey, debug: &[Found], width: usize, style: Style) {
    heading(out, style, "Files: share of code with unwind information, and names");
    for (module, found) in survey.modules.iter().zip(debug) {
        match &module.plan {
            Ok(_) => line_of(out, &file(module, found), width),
            Err(error) => {
                let text = format!("  {}: {error}", printable(&module.path));
                line_of(out, &printable_str(&text), width);
            }
        }
    }
    let mut advice: Vec<(&'static str, BTreeSet<&str>)> = Vec::new();
    for Advice { before, what } in debug.iter().filter_map(|found| found.advice.as_ref()) {
        match advice.iter_mut().find(|(known, _)| known == before) {
            Some((_, all)) => {
                all.insert(what);
            }
            None => advice.push((before, BTreeSet::from([what.as_str()]))),
        }
    }
    for (before, what) in advice {
        let text = format!("{before}{}", what.into_iter().collect::<Vec<_>>().join(" "));
        for (i, line) in wrap(&printable_str(&text), width.saturating_sub(6)).iter().enumerate() {
            let mark = if i == 0 { "→" } else { " " };
            line_of(out, &format!("    {mark} {line}"), width);
        }
    }
}

fn file(module: &Module, found: &Found) -> String {
    let facts = &module.facts;
    let coverage = match facts.code_bytes {
        0 => 1.0,
        bytes => facts.unwindable_bytes as f64 / bytes as f64,
    };
    // Rounded down: what is not whole must not look so.
    let percent = (coverage * 1000.0).floor() / 10.0;
    let mark = if coverage < GOOD_COVERAGE { "!" } else { " " };
    let names = match (&found.origin, facts.names) {
        (Origin::Itself, _) => "debug info",
        (Origin::Separate(_), _) => "debug file",
        (Origin::Nowhere, Names::Symbols) => "symbols",
        (Origin::Nowhere, Names::Exported | Names::DebugInfo) => "exports",
    };
    format!("{mark} {percent:5.1} %  {} {}", fill(names, 10), printable(&module.path))
}

fn heading(out: &mut String, style: Style, text: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(out, "\n{}", style.heading(text));
}

fn line_of(out: &mut String, line: &str, width: usize) {
    // As above. Only long paths and names are cut.
    let _ = writeln!(out, "{}", cut(line, width));
}
