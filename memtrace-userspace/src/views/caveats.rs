//! What a snapshot cannot see, in words.
//!
//! Every view shows these lines next to its numbers. They are derived from the counters, the
//! stacks and the session's origin; a session that saw everything has none.

use std::collections::BTreeMap;

use memtrace_common::counter::Counter;
use memtrace_common::unwind::End;
use rustc_hash::FxHashSet;

use crate::pipeline::snapshot::Snapshot;
use crate::record::{Origin, ProbeCost};
use crate::views::frames::Naming;
use crate::views::printable::printable;
use crate::views::quantity;

/// Counter for a trace file that stops before its end; 1, if it does.
pub const TRACE_TRUNCATED: &str = "trace_truncated";

/// What a counter that is not zero means for the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// Something is missing from them.
    Loss,
    /// Something happened that deserves a look; the numbers are right.
    Notice,
    /// How the tool did its work.
    Work,
}

/// How many events never reached the pipeline.
pub fn lost_events(snapshot: &Snapshot) -> u64 {
    snapshot
        .counters
        .iter()
        .filter(|(name, _)| name.starts_with("lost_"))
        .fold(0, |sum, (_, value)| sum.saturating_add(*value))
}

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
        if seen.insert(&usage.stack) {
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
    let lost = lost_events(snapshot);
    if lost > 0 {
        lines.push(format!(
            "{} events were lost: the numbers are incomplete",
            quantity::count(lost)
        ));
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
    let stepped = snapshot.probes.iter().filter(|p| p.cost == ProbeCost::Stepped).count();
    if stepped > 0 {
        lines.push(format!(
            "{stepped} of {} probes are single-stepped: their functions run slower than usual",
            snapshot.probes.len()
        ));
    }
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

/// Every counter that is not zero, of the session and of the symbolizer, sorted by its name.
pub fn counters(snapshot: &Snapshot, naming: &Naming) -> BTreeMap<String, u64> {
    let session = snapshot
        .counters
        .iter()
        .map(|(name, value)| (printable(name.as_bytes()).into_owned(), *value));
    let symbols = naming.counters.iter().map(|(name, value)| ((*name).to_owned(), *value));
    session.chain(symbols).collect()
}

fn counter(snapshot: &Snapshot, name: &str) -> Option<u64> {
    snapshot.counters.iter().find(|(n, _)| n == name).map(|(_, value)| *value)
}

/// What a counter means, in half a line; an empty text for one that this version does not know.
pub fn explain(name: &str) -> (Weight, &'static str) {
    if let Some(counter) = Counter::ALL.iter().find(|counter| counter.name() == name) {
        return explain_kernel(*counter);
    }
    match name {
        TRACE_TRUNCATED => {
            (Weight::Loss, "the trace file stops early; what came after is not counted")
        }
        _ if name.starts_with("lost_") => (Weight::Loss, "lost before they could be counted"),
        _ => (Weight::Notice, ""),
    }
}

fn explain_kernel(counter: Counter) -> (Weight, &'static str) {
    match counter {
        Counter::LostAllocs => {
            (Weight::Loss, "allocations not recorded, the ring was full; try a larger --ring-size")
        }
        Counter::LostFrees => {
            (Weight::Loss, "releases not recorded, the ring was full; live bytes are too high")
        }
        Counter::LostMappings => (Weight::Loss, "mapping events not recorded, the ring was full"),
        Counter::LostStacks => {
            (Weight::Loss, "stacks not recorded, the ring was full; sent again when seen again")
        }
        Counter::LostLifecycle => {
            (Weight::Loss, "process and thread events not recorded, the ring was full")
        }
        Counter::NoThreadSlot => {
            (Weight::Loss, "calls not recorded, too many threads were alive at once")
        }
        Counter::NoScratch => {
            (Weight::Loss, "allocations without a stack, no scratch memory was free to walk it")
        }
        Counter::RingWaits => {
            (Weight::Work, "times the target waited for room in the ring; nothing was lost by it")
        }
        Counter::AbandonedCalls => {
            (Weight::Notice, "allocator calls left by longjmp or an exception")
        }
        Counter::OrphanReturns => {
            (Weight::Notice, "allocator calls that began before the attach; not counted")
        }
        Counter::FailedCalls => (Weight::Notice, "allocator calls that returned no memory"),
        Counter::UnreadableStack => {
            (Weight::Notice, "stack words that were not in memory when a stack was walked")
        }
        Counter::StackWalks => (Weight::Work, "stacks walked; all others were seen before"),
        Counter::VforkCalls => {
            (Weight::Notice, "calls in vfork children, which borrow their parent's memory")
        }
    }
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

        assert_eq!(lost_events(&snapshot), 12);
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
    fn every_caveat_is_named() {
        let mut snapshot = fixture::snapshot();
        snapshot.counters.push((TRACE_TRUNCATED.to_owned(), 1));

        assert_eq!(
            caveats(&snapshot),
            [
                "the trace file stops early: what came after is not in these numbers",
                "5 events were lost: the numbers are incomplete",
                "1 of 5 stacks do not reach their thread's root (3 allocations)",
                "before attach: 7.0 MiB heap, 3.0 MiB anonymous, 21.0 MiB resident; not counted here",
                "1 of 2 probes are single-stepped: their functions run slower than usual",
            ]
        );
    }

    #[test]
    fn every_kernel_counter_is_explained() {
        for counter in Counter::ALL {
            assert!(!explain(counter.name()).1.is_empty(), "{}", counter.name());
        }
    }
}
