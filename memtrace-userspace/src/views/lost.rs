//! Lost blocks with names, in order, and what a look at a process cannot see.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use memtrace_common::event::Api;
use rustc_hash::FxHashMap;

use crate::lost::{Amount, Births, Losses, LostBlocks, LostStack, NotJudged};
use crate::pipeline::snapshot::Snapshot;
use crate::reach::Cost;
use crate::record::Pid;
use crate::views::frames::{Frame, FunctionId, Names, SymbolizedStack};
use crate::views::quantity::{bytes, count, counted};
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

/// What a function lost, through whichever call paths.
#[derive(Clone, Debug)]
pub struct FunctionLosses {
    /// The function that allocated; `None` if its call path is not known.
    pub frame: Option<Arc<Frame>>,
    /// What nothing points to.
    pub direct: Amount,
    /// What only that leads to.
    pub held: Amount,
    /// In how many call paths something was lost directly.
    pub call_paths: u64,
    /// When the directly lost blocks were made.
    pub born: Births,
}

/// What a process lost, with names and in order.
#[derive(Clone, Debug)]
pub struct Ranking {
    /// First the call paths whose fixing would give back most.
    pub stacks: Vec<SymbolizedLosses>,
    /// The same by the function that allocated, in the same order.
    pub functions: Vec<FunctionLosses>,
    /// When the directly lost blocks were made; `None` if there are none.
    pub born: Option<Births>,
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
        functions: Vec::new(),
        born: None,
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
    let births = ranking.stacks.iter().filter_map(|stack| stack.losses.born);
    ranking.born = births.reduce(Births::with);
    let weight = |losses: &Losses| (losses.direct.plus(losses.held), losses.indirect);
    ranking.stacks.sort_by(|a, b| {
        weight(&b.losses)
            .cmp(&weight(&a.losses))
            .then_with(|| a.api.cmp(&b.api))
            .then_with(|| compare_frames(&a.stack, &b.stack))
    });
    ranking.functions = by_function(&ranking.stacks);
    ranking
}

/// Sums up by the function that allocated. `stacks` are in order, and so is the sum.
fn by_function(stacks: &[SymbolizedLosses]) -> Vec<FunctionLosses> {
    let mut functions: Vec<FunctionLosses> = Vec::new();
    let mut places: FxHashMap<Option<FunctionId>, usize> = FxHashMap::default();
    for SymbolizedLosses { stack, api: _, losses } in stacks {
        let Some(born) = losses.born else { continue };
        let frame = stack.frames().next();
        let function = frame.map(|frame| frame.function.id);
        let place = *places.entry(function).or_insert(functions.len());
        match functions.get_mut(place) {
            Some(function) => {
                function.direct = function.direct.plus(losses.direct);
                function.held = function.held.plus(losses.held);
                function.call_paths += 1;
                function.born = function.born.with(born);
            }
            None => functions.push(FunctionLosses {
                frame: frame.cloned(),
                direct: losses.direct,
                held: losses.held,
                call_paths: 1,
                born,
            }),
        }
    }
    // A stable sort: equal sums stay in the order of their first call paths.
    functions.sort_by_key(|function| Reverse(function.direct.plus(function.held)));
    functions
}

/// What the numbers do not see, the gravest first; each is one line of printable text.
pub fn caveats(snapshot: &Snapshot, lost: &LostBlocks) -> Vec<String> {
    let mut lines = caveats::caveats(snapshot);
    let NotJudged { contradictory, out_of_reach, changed, inherited } = lost.not_judged;
    let Cost { stopped, unreadable_bytes, .. } = lost.cost;
    if let Some((_, frees)) = snapshot.counters.iter().find(|(name, _)| name == "lost_frees") {
        let frees = counted(*frees, "lost event");
        lines.push(format!("{frees} told of released blocks: as many may be shown as lost memory"));
    }
    if lost.unread() > 0 {
        let processes = if lost.unread() == 1 { "process" } else { "processes" };
        let unread = count(lost.unread());
        lines.push(format!("{unread} {processes} not looked at: what is lost there is not known"));
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
        (inherited, "are copies that fork made of the parent's"),
    ];
    for (number, reason) in reasons {
        if number > 0 {
            let blocks = counted(number, "live block");
            lines.push(format!("{blocks} not judged: they {reason}"));
        }
    }
    lines
}

/// Path of the executable of a process, if the session knows it.
pub fn exe(snapshot: &Snapshot, pid: Pid) -> Option<&[u8]> {
    let process = snapshot.processes.iter().rfind(|process| process.pid == pid)?;
    Some(&process.exe)
}

fn stop_time(stopped: Duration) -> String {
    match stopped.as_millis() {
        0 => "less than 1 ms".to_owned(),
        _ => quantity::duration(stopped),
    }
}

/// `stopped 12 threads for 84 ms, read 855.2 MiB; memtrace used up to 1.3 GiB`.
pub fn cost(cost: &Cost) -> String {
    let Cost { stopped, threads, read_bytes, unreadable_bytes: _, uncopied_bytes, own_peak_bytes } =
        cost;
    let mut text = match stopped {
        Some(stopped) => format!(
            "stopped {} for {}, read {}",
            counted(*threads, "thread"),
            stop_time(*stopped),
            bytes(*read_bytes)
        ),
        None => format!("not stopped, read {} in two passes", bytes(*read_bytes)),
    };
    if stopped.is_some() && *uncopied_bytes > 0 {
        text.push_str(&format!(
            ", {} of it slowly for want of memory to copy it to",
            bytes(*uncopied_bytes)
        ));
    }
    if *own_peak_bytes > 0 {
        text.push_str(&format!("; memtrace used up to {}", bytes(*own_peak_bytes)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Time;
    use crate::views::fixture;

    #[test]
    fn suppressed_call_paths_are_left_out_with_what_they_hold() {
        let suppressions = Suppressions::parse("leak:^leak_per_*$").expect("valid");

        let ranking =
            rank(&fixture::snapshot(), &fixture::lost(), &mut fixture::names(), &suppressions);

        assert_eq!(ranking.suppressed, Amount { bytes: (12 << 20) + (3 << 10), blocks: 12_312 });
        assert_eq!(ranking.direct, Amount { bytes: 100, blocks: 3 });
        assert_eq!((ranking.indirect, ranking.stacks.len()), (Amount::default(), 2));
        assert_eq!(ranking.functions.len(), 1);
    }

    #[test]
    fn call_paths_of_a_function_are_added_up() {
        let mut lost = fixture::lost();
        let more = LostStack {
            api: Api::Calloc,
            losses: Losses {
                direct: Amount { bytes: 5, blocks: 1 },
                born: Some(Births { first: Time(1), last: Time(1) }),
                ..Losses::default()
            },
            ..lost.stacks[0].clone()
        };
        lost.stacks.push(more);
        let suppressions = Suppressions::default();

        let ranking = rank(&fixture::snapshot(), &lost, &mut fixture::names(), &suppressions);

        let first = &ranking.functions[0];
        assert_eq!(first.direct, Amount { bytes: (12 << 20) + 5, blocks: 12_289 });
        assert_eq!(first.held, Amount { bytes: 3 << 10, blocks: 24 });
        let last = Time(7_143_500_000);
        assert_eq!((first.call_paths, first.born), (2, Births { first: Time(1), last }));
        assert_eq!((ranking.functions.len(), ranking.stacks.len()), (2, 4));
    }

    #[test]
    fn cost_says_what_was_slow_and_what_it_took() {
        let cost = |cost: Cost| super::cost(&cost);
        let stopped =
            Cost { stopped: Some(Duration::from_micros(90)), threads: 1, ..Cost::default() };

        assert_eq!(cost(stopped), "stopped 1 thread for less than 1 ms, read 0 B");
        let slow = Cost { uncopied_bytes: 4 << 20, own_peak_bytes: 1 << 30, ..stopped };
        assert!(cost(slow).ends_with(
            "read 0 B, 4.0 MiB of it slowly for want of memory to copy it to; memtrace used up to \
             1.0 GiB"
        ));
    }
}
