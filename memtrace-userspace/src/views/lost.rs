//! Lost blocks with names, in order, and what a look at a process cannot see.

use std::sync::Arc;

use memtrace_common::event::Api;

use crate::lost::{Amount, Losses, LostBlocks, LostStack, NotJudged};
use crate::pipeline::snapshot::Snapshot;
use crate::reach::Cost;
use crate::views::frames::{Names, SymbolizedStack};
use crate::views::quantity::{bytes, counted};
use crate::views::ranking::compare_frames;
use crate::views::suppressions::Suppressions;
use crate::views::{caveats, quantity};

/// What a call path lost, with names.
#[derive(Clone, Debug)]
pub struct SymbolizedLosses {
    /// The call path.
    pub stack: Arc<SymbolizedStack>,
    /// The function of the allocator.
    pub api: Api,
    /// What it lost.
    pub losses: Losses,
}

/// What a process lost, with names and in order.
#[derive(Clone, Debug)]
pub struct Ranking {
    /// First the call paths whose fixing would give back most.
    pub stacks: Vec<SymbolizedLosses>,
    /// What was lost directly, without what is suppressed.
    pub direct: Amount,
    /// What is held by that.
    pub indirect: Amount,
    /// What is lost by call paths that are suppressed, with what is held by it.
    pub suppressed: Amount,
}

/// Finds the names, leaves out what is suppressed, and sorts.
///
/// The order is total, so that equal losses give equal reports.
pub fn rank(
    snapshot: &Snapshot,
    lost: &LostBlocks,
    names: &mut Names,
    suppressions: &Suppressions,
) -> Ranking {
    names.learn_jit_names(&snapshot.jit_names);
    let mut ranking = Ranking {
        stacks: Vec::new(),
        direct: Amount::default(),
        indirect: Amount::default(),
        suppressed: Amount::default(),
    };
    for LostStack { stack, api, losses } in &lost.stacks {
        let stack = names.symbolize(&snapshot.images, stack);
        if suppressions.find(&stack).is_some() {
            ranking.suppressed = ranking.suppressed.plus(losses.direct).plus(losses.held);
        } else {
            ranking.direct = ranking.direct.plus(losses.direct);
            ranking.indirect = ranking.indirect.plus(losses.held);
            ranking.stacks.push(SymbolizedLosses { stack, api: *api, losses: *losses });
        }
    }
    let weight = |losses: &Losses| (losses.direct.plus(losses.held), losses.indirect);
    ranking.stacks.sort_by(|a, b| {
        weight(&b.losses)
            .cmp(&weight(&a.losses))
            .then_with(|| a.api.cmp(&b.api))
            .then_with(|| compare_frames(&a.stack, &b.stack))
    });
    ranking
}

/// What the numbers do not see, the gravest first; each is one line of printable text.
pub fn caveats(snapshot: &Snapshot, lost: &LostBlocks) -> Vec<String> {
    let mut lines = caveats::caveats(snapshot);
    let NotJudged { contradictory, out_of_reach, changed } = lost.not_judged;
    let Cost { stopped, threads: _, read_bytes: _, unreadable_bytes } = lost.cost;
    if let Some((_, frees)) = snapshot.counters.iter().find(|(name, _)| name == "lost_frees") {
        let frees = counted(*frees, "lost event");
        lines.push(format!("{frees} told of released blocks: as many may be shown as lost memory"));
    }
    if stopped.is_none() {
        lines.push(
            "the process ran on while it was read, and its registers were not seen: a pointer that \
             moved can have been missed, so confirm what is lost by a second run"
                .to_owned(),
        );
    }
    if unreadable_bytes > 0 {
        lines.push(format!(
            "{} could not be read: what only pointers in there lead to is shown as lost",
            bytes(unreadable_bytes)
        ));
    }
    let reasons = [
        (changed, "changed while the scan began"),
        (contradictory, "overlap others, since events were lost"),
        (out_of_reach, "lie beyond 47-bit addresses"),
    ];
    for (number, reason) in reasons {
        if number > 0 {
            let blocks = counted(number, "live block");
            lines.push(format!("{blocks} not judged: they {reason}"));
        }
    }
    lines
}

/// `stopped 12 threads for 84 ms, read 855.2 MiB`.
pub fn cost(cost: &Cost) -> String {
    let Cost { stopped, threads, read_bytes, unreadable_bytes: _ } = cost;
    match stopped {
        Some(stopped) => format!(
            "stopped {} for {}, read {}",
            counted(*threads, "thread"),
            quantity::duration(*stopped),
            bytes(*read_bytes)
        ),
        None => format!("not stopped, read {} in two passes", bytes(*read_bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::views::fixture;

    #[test]
    fn suppressed_call_paths_are_left_out_with_what_they_hold() {
        let suppressions = Suppressions::parse("leak:^leak_per_*$").expect("valid");

        let ranking =
            rank(&fixture::snapshot(), &fixture::lost(), &mut fixture::names(), &suppressions);

        assert_eq!(ranking.suppressed, Amount { bytes: (12 << 20) + (3 << 10), blocks: 12_312 });
        assert_eq!(ranking.direct, Amount { bytes: 100, blocks: 3 });
        assert_eq!((ranking.indirect, ranking.stacks.len()), (Amount::default(), 2));
    }
}
