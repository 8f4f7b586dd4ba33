//! What a snapshot cannot see, in words.
//!
//! Every view shows these lines next to its numbers. They are derived from the counters, the
//! stacks and the session's origin; a session that saw everything has none.

use std::sync::Arc;

use memtrace_common::unwind::End;
use rustc_hash::FxHashSet;

use crate::pipeline::snapshot::{Scope, Snapshot};
use crate::record::{Origin, ProbeCost};
use crate::views::counters::{self, TRACE_TRUNCATED, Weight};
use crate::views::hints::hints;
use crate::views::printable::printable;
use crate::views::quantity;

/// How complete the stacks of a snapshot are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct StackQuality {
    /// Distinct stacks.
    pub stacks: u64,
    /// Of these, the ones that do not reach the root of their thread.
    pub truncated_stacks: u64,
    /// Allocations made through truncated stacks.
    pub truncated_allocations: u64,
}

/// Counts the stacks that end early.
pub fn stack_quality(snapshot: &Snapshot) -> StackQuality {
    let mut quality = StackQuality::default();
    let mut seen = FxHashSet::default();
    for usage in &snapshot.stacks {
        let truncated = usage.stack.end != End::Root;
        if seen.insert(Arc::as_ptr(&usage.stack)) {
            quality.stacks += 1;
            quality.truncated_stacks += u64::from(truncated);
        }
        if truncated {
            quality.truncated_allocations =
                quality.truncated_allocations.saturating_add(usage.usage.allocations);
        }
    }
    quality
}

/// The caveats of a snapshot, the gravest first; each is one line of printable text.
pub fn caveats(snapshot: &Snapshot) -> Vec<String> {
    let mut lines = Vec::new();
    if counter(snapshot, TRACE_TRUNCATED).is_some() {
        lines.push("the trace file stops early: what came after is not in these numbers".into());
    }
    if let Scope::Moment = snapshot.scope {
        lines.push(
            "only what was held at that moment: of allocations, those whose memory was; no \
             frees"
                .into(),
        );
    }
    if snapshot.left_out_processes > 0 {
        let others = match snapshot.left_out_processes {
            1 => "1 other process is".to_owned(),
            others => format!("{} other processes are", quantity::count(others as u64)),
        };
        lines.push(format!("{others} left out; events, losses and counters are those of all"));
    }
    let lost = snapshot.lost_events();
    if lost > 0 {
        lines.push(format!(
            "{} events were lost: the numbers are incomplete",
            quantity::count(lost)
        ));
    }
    for (name, value) in &snapshot.counters {
        let (weight, meaning) = counters::explain(name);
        let told_already = name.starts_with("lost_") || name == TRACE_TRUNCATED;
        if weight == Weight::Loss && !told_already {
            lines.push(format!(
                "{} {}: {meaning}",
                quantity::count(*value),
                printable(name.as_bytes())
            ));
        }
    }
    let quality = stack_quality(snapshot);
    if quality.truncated_stacks > 0 {
        lines.push(format!(
            "{} of {} stacks do not reach their thread's root ({} allocations)",
            quantity::count(quality.truncated_stacks),
            quantity::count(quality.stacks),
            quantity::count(quality.truncated_allocations),
        ));
    }
    if let Some(line) = before_attach(snapshot) {
        lines.push(line);
    }
    if snapshot.probes.is_empty() && snapshot.session.is_some() {
        lines.push("no allocator was found to probe: only memory mappings are counted".into());
    }
    let stepped = snapshot.probes.iter().filter(|p| p.cost == ProbeCost::Stepped).count();
    if stepped > 0 {
        lines.push(format!(
            "{stepped} of {} probes are single-stepped: their functions run slower than usual",
            snapshot.probes.len()
        ));
    }
    lines.extend(hints(snapshot));
    lines
}

/// What the processes held before memtrace saw them, which no number includes.
fn before_attach(snapshot: &Snapshot) -> Option<String> {
    let attached =
        snapshot.session.as_ref().is_some_and(|session| session.origin == Origin::Attached);
    let mut known = snapshot.processes.iter().filter_map(|p| p.before_attach.as_ref()).peekable();
    if known.peek().is_none() {
        return attached.then(|| "attached to a running process: what it held is unknown".into());
    }
    let (heap, anonymous, resident) = known.fold((0u64, 0u64, 0u64), |sum, before| {
        (
            sum.0.saturating_add(before.heap_bytes),
            sum.1.saturating_add(before.anonymous_bytes),
            sum.2.saturating_add(before.resident_bytes),
        )
    });
    Some(format!(
        "before attach: {} heap, {} anonymous, {} resident; not counted here",
        quantity::bytes(heap),
        quantity::bytes(anonymous),
        quantity::bytes(resident),
    ))
}

fn counter(snapshot: &Snapshot, name: &str) -> Option<u64> {
    snapshot.counters.iter().find(|(n, _)| n == name).map(|(_, value)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::views::fixture;

    #[test]
    fn lost_events_are_the_sum_of_what_was_lost() {
        let mut snapshot = fixture::snapshot();
        snapshot.counters = vec![
            ("lost_allocations".to_owned(), 5),
            ("lost_frees".to_owned(), 7),
            ("ring_waits".to_owned(), 100),
        ];

        assert_eq!(snapshot.lost_events(), 12);
    }

    #[test]
    fn stack_used_through_two_apis_is_one_stack() {
        let mut snapshot = fixture::snapshot();
        let mut twice = snapshot.stacks[4].clone();
        twice.api = memtrace_common::event::Api::Calloc;
        snapshot.stacks.push(twice);

        assert_eq!(
            stack_quality(&snapshot),
            StackQuality { stacks: 5, truncated_stacks: 1, truncated_allocations: 6 }
        );
    }

    #[test]
    fn complete_session_has_no_caveats() {
        let mut snapshot = fixture::snapshot();
        snapshot.counters.clear();
        snapshot.stacks.truncate(4);
        snapshot.probes.clear();
        snapshot.session = None;
        snapshot.processes[0].before_attach = None;

        assert_eq!(caveats(&snapshot), Vec::<String>::new());
    }

    #[test]
    fn session_without_probes_says_that_it_has_no_heap() {
        let mut snapshot = fixture::snapshot();
        snapshot.probes.clear();

        let line = "no allocator was found to probe: only memory mappings are counted";
        assert!(caveats(&snapshot).iter().any(|caveat| caveat == line));
    }

    #[test]
    fn processes_that_are_left_out_are_told() {
        let first = |left_out_processes| {
            caveats(&Snapshot { left_out_processes, ..fixture::snapshot() }).remove(0)
        };

        let rest = "left out; events, losses and counters are those of all";
        assert_eq!(first(1), format!("1 other process is {rest}"));
        assert_eq!(first(1200), format!("1,200 other processes are {rest}"));
    }

    #[test]
    fn every_caveat_is_named() {
        let mut snapshot = fixture::snapshot();
        snapshot.counters.push((TRACE_TRUNCATED.to_owned(), 1));
        snapshot.counters.push(("calls_without_thread_slot".to_owned(), 3));

        assert_eq!(
            caveats(&snapshot),
            [
                "the trace file stops early: what came after is not in these numbers",
                "5 events were lost: the numbers are incomplete",
                "3 calls_without_thread_slot: calls not recorded, too many threads were alive",
                "1 of 5 stacks do not reach their thread's root (3 allocations)",
                "before attach: 7.0 MiB heap, 3.0 MiB anonymous, 21.0 MiB resident; not counted here",
                "1 of 2 probes are single-stepped: their functions run slower than usual",
            ]
        );
    }
}
