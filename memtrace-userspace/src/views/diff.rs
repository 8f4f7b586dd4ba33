//! Two sessions, compared: what is new, gone, grown and shrunk.
//!
//! In: two profiles of one vocabulary. Out: a [`Comparison`], by function and by stack, in order of
//! how much they changed. Stacks are the same if they go through the same functions, whatever the
//! lines: those move from build to build. A function that calls itself counts once there, because
//! how deep a recursion goes depends on the input.
//!
//! ```text
//!   old   parse:15 ← parse:33 ← main:94     ─┐
//!   new   parse:18 ← main:99                ─┴→  one stack, parse ← main
//! ```

mod flame;
mod json;
mod text;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, Hash, Hasher};

pub use self::flame::{FlameError, folded, write_svg};
pub use self::json::{VERSION, write as write_json};
pub use self::text::{Options, render};
use rustc_hash::FxHashMap;

use crate::hash::Seed;
use crate::pipeline::add_usage;
use crate::pipeline::snapshot::Usage;
use crate::views::profile::{FrameId, FunctionId, FunctionUsage, Path, Profile, Stack, Vocabulary};
use crate::views::ranking::{Memory, SortKey};

/// A profile and where it comes from.
#[derive(Clone, Copy, Debug)]
pub struct Side<'p> {
    /// What the user called it; printable.
    pub name: &'p str,
    /// What was used.
    pub profile: &'p Profile,
}

/// The two sides of a comparison.
#[derive(Clone, Copy, Debug)]
pub struct Sides<'p> {
    /// From before.
    pub old: Side<'p>,
    /// From after.
    pub new: Side<'p>,
    /// Whether numbers of work are those of one second.
    pub per_second: bool,
}

/// What became of a function or a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// Only the new side has it.
    New,
    /// It has more than before.
    Grown,
    /// It has less than before.
    Shrunk,
    /// Only the old side has it.
    Gone,
    /// It has as much as before.
    Same,
}

impl Status {
    /// Every status.
    pub const ALL: &[Status] =
        &[Status::New, Status::Grown, Status::Shrunk, Status::Gone, Status::Same];

    /// Its name in every view.
    pub fn name(self) -> &'static str {
        match self {
            Status::New => "new",
            Status::Grown => "grown",
            Status::Shrunk => "shrunk",
            Status::Gone => "gone",
            Status::Same => "same",
        }
    }

    fn of(old: Option<u64>, new: Option<u64>) -> Status {
        match (old, new) {
            (None, _) => Status::New,
            (_, None) => Status::Gone,
            (Some(old), Some(new)) if new > old => Status::Grown,
            (Some(old), Some(new)) if new < old => Status::Shrunk,
            (Some(_), Some(_)) => Status::Same,
        }
    }
}

/// A function on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FunctionChange {
    /// The function.
    pub function: FunctionId,
    /// What it used before; `None` if no stack had it.
    pub old: Option<FunctionUsage>,
    /// What it uses now.
    pub new: Option<FunctionUsage>,
}

impl FunctionChange {
    /// The key's number of what the function allocated itself, before and now.
    pub fn own(&self, key: SortKey) -> (Option<u64>, Option<u64>) {
        let of = |usage: &FunctionUsage| key.of(&usage.charge.own);
        (self.old.as_ref().map(of), self.new.as_ref().map(of))
    }

    /// What became of it.
    pub fn status(&self, key: SortKey) -> Status {
        let (old, new) = self.own(key);
        Status::of(old, new)
    }
}

/// The usage of one stack on one side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackSide {
    /// The heaviest of the stacks that are taken for one.
    pub path: Path,
    /// Whether it reaches its thread's root.
    pub is_complete: bool,
    /// Of all of them.
    pub usage: Usage,
    /// What the heaviest has of the key.
    heaviest: u64,
}

/// A stack on both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackChange {
    /// What it holds.
    pub memory: Memory,
    /// What it used before, if the old side has it; one of them does.
    pub old: Option<StackSide>,
    /// What it uses now, if the new side has it.
    pub new: Option<StackSide>,
}

impl StackChange {
    /// Its functions, from the allocating one outwards; none follows itself.
    pub fn functions<'w>(&'w self, words: &'w Vocabulary) -> impl Iterator<Item = FunctionId> {
        without_repeats(self.frames(words), words)
    }

    /// The same from the root inwards.
    pub fn functions_from_root<'w>(
        &'w self,
        words: &'w Vocabulary,
    ) -> impl Iterator<Item = FunctionId> {
        without_repeats(self.frames(words).rev(), words)
    }

    /// Those of the new side, if that has it.
    fn frames<'w>(&'w self, words: &'w Vocabulary) -> impl DoubleEndedIterator<Item = FrameId> {
        let newest = self.new.as_ref().or(self.old.as_ref());
        newest.into_iter().flat_map(|side| words.frames(&side.path))
    }

    /// The key's number, before and now.
    pub fn amounts(&self, key: SortKey) -> (Option<u64>, Option<u64>) {
        let of = |side: &StackSide| key.of(&side.usage);
        (self.old.as_ref().map(of), self.new.as_ref().map(of))
    }

    /// What became of it.
    pub fn status(&self, key: SortKey) -> Status {
        let (old, new) = self.amounts(key);
        Status::of(old, new)
    }
}

/// What differs between two profiles; what changed most comes first.
#[derive(Debug)]
pub struct Comparison {
    /// What was compared.
    pub key: SortKey,
    /// Every function that allocates heap on either side, or calls one that does.
    pub functions: Vec<FunctionChange>,
    /// Every stack of either side.
    pub stacks: Vec<StackChange>,
}

/// Compares two profiles of one vocabulary.
pub fn compare(old: &Profile, new: &Profile, words: &Vocabulary, key: SortKey) -> Comparison {
    let mut functions: BTreeMap<FunctionId, FunctionChange> = BTreeMap::new();
    let empty = |function| FunctionChange { function, old: None, new: None };
    for (function, usage) in old.by_function(words, Memory::Heap) {
        functions.entry(function).or_insert_with(|| empty(function)).old = Some(usage);
    }
    for (function, usage) in new.by_function(words, Memory::Heap) {
        functions.entry(function).or_insert_with(|| empty(function)).new = Some(usage);
    }
    let mut functions: Vec<_> = functions.into_values().collect();
    functions.sort_by_cached_key(|change| {
        let total = |side: Option<FunctionUsage>| side.map(|usage| key.of(&usage.charge.total));
        let name = words.function(change.function).clone();
        (
            Reverse(moved(change.own(key))),
            Reverse(moved((total(change.old), total(change.new)))),
            name,
        )
    });

    let mut stacks = Stacks::new();
    for stack in &old.stacks {
        stacks.add(stack, words, key, |change| &mut change.old);
    }
    for stack in &new.stacks {
        stacks.add(stack, words, key, |change| &mut change.new);
    }
    let mut stacks = stacks.changes;
    // Paths are compared where they are: of a million stacks, their names would be gigabytes.
    let ranks = words.ranks();
    stacks.sort_by(|a, b| {
        let [a_ranks, b_ranks] =
            [a, b].map(|change| change.functions(words).map(|id| ranks.of(id)));
        moved(b.amounts(key))
            .cmp(&moved(a.amounts(key)))
            .then_with(|| a_ranks.cmp(b_ranks))
            .then(a.memory.cmp(&b.memory))
    });
    Comparison { key, functions, stacks }
}

/// By how much a number changed.
fn moved((old, new): (Option<u64>, Option<u64>)) -> u64 {
    old.unwrap_or(0).abs_diff(new.unwrap_or(0))
}

/// What stacks used before and now, each once by its memory and its functions.
struct Stacks {
    changes: Vec<StackChange>,
    /// Which of them has this hash; of several that would have the same one, each takes the next
    /// number that is free. The functions themselves would be most of the memory.
    by_hash: FxHashMap<u64, usize>,
    seed: Seed,
}

impl Stacks {
    fn new() -> Stacks {
        Stacks { changes: Vec::new(), by_hash: FxHashMap::default(), seed: Seed::random() }
    }

    fn add(
        &mut self,
        stack: &Stack,
        words: &Vocabulary,
        key: SortKey,
        side: impl Fn(&mut StackChange) -> &mut Option<StackSide>,
    ) {
        let Stack { memory, is_complete, path, usage } = stack;
        let amount = key.of(usage);
        let added = StackSide {
            path: path.clone(),
            is_complete: *is_complete,
            usage: *usage,
            heaviest: amount,
        };
        match side(self.change(*memory, path, words)) {
            Some(known) => {
                add_usage(&mut known.usage, usage);
                if amount > known.heaviest {
                    *known = StackSide { usage: known.usage, ..added };
                }
            }
            none => *none = Some(added),
        }
    }

    fn change(&mut self, memory: Memory, path: &Path, words: &Vocabulary) -> &mut StackChange {
        let functions = || without_repeats(words.frames(path), words);
        let mut hasher = self.seed.build_hasher();
        memory.hash(&mut hasher);
        functions().for_each(|function| function.hash(&mut hasher));
        let mut hash = hasher.finish();
        loop {
            match self.by_hash.entry(hash) {
                Entry::Vacant(free) => {
                    free.insert(self.changes.len());
                    self.changes.push(StackChange { memory, old: None, new: None });
                    let last = self.changes.len() - 1;
                    return &mut self.changes[last];
                }
                Entry::Occupied(taken) => {
                    let index = *taken.get();
                    let known = &self.changes[index];
                    if known.memory == memory && known.functions(words).eq(functions()) {
                        return &mut self.changes[index];
                    }
                    hash = hash.wrapping_add(1);
                }
            }
        }
    }
}

/// The functions of frames, in which none follows itself.
fn without_repeats<'w>(
    frames: impl Iterator<Item = FrameId> + 'w,
    words: &'w Vocabulary,
) -> impl Iterator<Item = FunctionId> + 'w {
    let mut last = None;
    let functions = frames.map(|frame| words.frame(frame).function);
    functions.filter(move |&function| last.replace(function) != Some(function))
}

/// A path in runs of one function, as they stand in [`StackChange::functions`]: the first frame of
/// each, and how many there are.
fn runs(side: Option<&StackSide>, words: &Vocabulary) -> Vec<(FrameId, usize)> {
    let mut runs: Vec<(FrameId, usize)> = Vec::new();
    for frame in side.into_iter().flat_map(|side| words.frames(&side.path)) {
        match runs.last_mut() {
            Some((first, length))
                if words.frame(*first).function == words.frame(frame).function =>
            {
                *length += 1;
            }
            Some(_) | None => runs.push((frame, 1)),
        }
    }
    runs
}

#[cfg(test)]
mod tests;
