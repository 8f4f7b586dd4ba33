//! The numbers that limits are about, out of a profile.

use rustc_hash::FxHashMap;

use super::{Metric, Part, Pattern, Place, Scope, TopStack, WHOLE_PPM};
use crate::pipeline::snapshot::Totals;
use crate::symbols::{Wildcard, bare_name};
use crate::views::profile::{Frame, FrameId, FunctionId, Path, Profile, Stack, Vocabulary, label};
use crate::views::ranking::{Memory, SortKey};

/// How many stacks explain a row.
pub(super) const TOP_STACKS: usize = 3;

/// A number, as far as a profile tells it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reading {
    /// How much it is at least.
    pub(super) least: u64,
    /// How much more it may be: of stacks that could go through the functions unseen.
    pub(super) unsure: u64,
    /// Whether no function is meant.
    pub(super) is_unmatched: bool,
    /// The place in the functions through which most was allocated.
    pub(super) place: Option<Place>,
}

/// Reads the number; `None` if there is none.
pub(super) fn read(
    profile: &Profile,
    scope: &Scope,
    metric: Metric,
    words: &Vocabulary,
) -> Option<Reading> {
    match (scope, metric.sort_key()) {
        (Scope::Functions(pattern), Some(key)) => {
            Some(read_functions(profile, pattern, key, words))
        }
        (Scope::Functions(_), None) => None,
        (Scope::Total, _) => {
            let least = read_total(profile, metric)?;
            Some(Reading { least, unsure: 0, is_unmatched: false, place: None })
        }
    }
}

fn read_total(profile: &Profile, metric: Metric) -> Option<u64> {
    let Totals {
        heap,
        peak_live_bytes,
        peak_at: _,
        mapped: _,
        temporary_allocations,
        peak_resident_bytes,
    } = &profile.totals;
    Some(match metric {
        Metric::Peak => *peak_live_bytes,
        Metric::Live => heap.live_bytes,
        Metric::Allocated => heap.allocated_bytes,
        Metric::Allocations => heap.allocations,
        Metric::Temporary => *temporary_allocations,
        Metric::TemporaryShare => {
            let parts = u128::from(*temporary_allocations) * u128::from(WHOLE_PPM);
            // Rounded up, so that a limit is never kept by rounding.
            let share = parts.div_ceil(u128::from(heap.allocations.max(1)));
            u64::try_from(share).unwrap_or(u64::MAX)
        }
        Metric::Resident => return Some(*peak_resident_bytes).filter(|&bytes| bytes > 0),
        Metric::Leaks => return None,
    })
}

fn read_functions(
    profile: &Profile,
    pattern: &Pattern,
    key: SortKey,
    words: &Vocabulary,
) -> Reading {
    let mut matcher = Matcher::new(pattern);
    let mut reading = Reading { least: 0, unsure: 0, is_unmatched: true, place: None };
    let mut through: FxHashMap<FrameId, u64> = FxHashMap::default();
    for stack in heap(profile) {
        let amount = key.of(&stack.usage);
        match matcher.look(&stack.path, stack.is_complete, words) {
            Look::Inside(frame) => {
                reading.least = reading.least.saturating_add(amount);
                reading.is_unmatched = false;
                let sum = through.entry(frame).or_default();
                *sum = sum.saturating_add(amount);
            }
            Look::Unsure => reading.unsure = reading.unsure.saturating_add(amount),
            Look::Outside => {}
        }
    }
    let heaviest = through
        .into_iter()
        .filter_map(|(frame, amount)| {
            let Frame { function: _, file, line } = words.frame(frame);
            Some((amount, file.as_deref()?, (*line)?))
        })
        .max_by(|a, b| (a.0, b.1, b.2).cmp(&(b.0, a.1, a.2)));
    reading.place = heaviest.map(|(_, file, line)| Place { file: file.to_owned(), line });
    reading
}

/// The stacks that use most.
pub(super) fn top_stacks(
    profile: &Profile,
    scope: &Scope,
    key: SortKey,
    words: &Vocabulary,
) -> Vec<TopStack> {
    let mut matcher = match scope {
        Scope::Total => None,
        Scope::Functions(pattern) => Some(Matcher::new(pattern)),
    };
    let mut stacks: Vec<_> = heap(profile)
        .filter(|stack| key.of(&stack.usage) > 0)
        .filter(|stack| match &mut matcher {
            None => true,
            Some(matcher) => {
                let look = matcher.look(&stack.path, stack.is_complete, words);
                matches!(look, Look::Inside(_))
            }
        })
        .map(|stack| (key.of(&stack.usage), stack))
        .collect();
    // The order of a profile's stacks is total, and a stable sort keeps it.
    stacks.sort_by_key(|&(amount, _)| std::cmp::Reverse(amount));
    let top = stacks.into_iter().take(TOP_STACKS);
    top.map(|(amount, stack)| TopStack { amount, frames: label::lines(words, &stack.path) })
        .collect()
}

fn heap(profile: &Profile) -> impl Iterator<Item = &Stack> {
    profile.stacks.iter().filter(|stack| stack.memory == Memory::Heap)
}

/// Where a stack is, seen from a pattern.
pub(super) enum Look {
    /// It goes through a function that matches, here.
    Inside(FrameId),
    /// It goes through none that is known to match, but not everything of it is known.
    Unsure,
    /// It goes through none.
    Outside,
}

/// Whether functions match a pattern, each looked at once.
pub(super) struct Matcher {
    name: Wildcard,
    module: Option<Wildcard>,
    part: Part,
    known: FxHashMap<FunctionId, Match>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Match {
    Yes,
    No,
    /// It has no name, and could be anything in its module.
    Nameless,
}

impl Matcher {
    pub(super) fn new(pattern: &Pattern) -> Matcher {
        let Pattern { name, module, part } = pattern;
        Matcher {
            name: Wildcard::new(name),
            module: module.as_deref().map(Wildcard::new),
            part: *part,
            known: FxHashMap::default(),
        }
    }

    pub(super) fn look(&mut self, path: &Path, is_complete: bool, words: &Vocabulary) -> Look {
        let depth = match self.part {
            Part::Own => 1,
            Part::Total => usize::MAX,
        };
        let mut is_known = !path.is_empty() && (self.part == Part::Own || is_complete);
        for frame in words.frames(path).take(depth) {
            match self.matches(words.frame(frame).function, words) {
                Match::Yes => return Look::Inside(frame),
                Match::No => {}
                Match::Nameless => is_known = false,
            }
        }
        if is_known { Look::Outside } else { Look::Unsure }
    }

    fn matches(&mut self, id: FunctionId, words: &Vocabulary) -> Match {
        if let Some(&known) = self.known.get(&id) {
            return known;
        }
        let function = words.function(id);
        let in_module = self.module.as_ref().is_none_or(|module| module.matches(&function.module));
        let found = match &function.name {
            _ if !in_module => Match::No,
            None => Match::Nameless,
            Some(name) if self.name.matches(name) || self.name.matches(bare_name(name)) => {
                Match::Yes
            }
            Some(_) => Match::No,
        };
        self.known.insert(id, found);
        found
    }
}
