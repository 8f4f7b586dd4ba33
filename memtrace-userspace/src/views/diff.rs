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
use std::sync::Arc;

pub use self::flame::{FlameError, folded, write_svg};
pub use self::json::{VERSION, write as write_json};
pub use self::text::{Options, render};
use crate::pipeline::add_usage;
use crate::pipeline::snapshot::Usage;
use crate::views::profile::{FrameId, FunctionId, FunctionUsage, Profile, Stack, Vocabulary};
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
    pub frames: Arc<[FrameId]>,
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
    /// Its functions, from the allocating one outwards; none follows itself.
    pub path: Box<[FunctionId]>,
    /// What it used before.
    pub old: Option<StackSide>,
    /// What it uses now.
    pub new: Option<StackSide>,
}

impl StackChange {
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

    let mut stacks = StackSides::new();
    for stack in &old.stacks {
        add_stack(&mut stacks, stack, words, key, |(old, _)| old);
    }
    for stack in &new.stacks {
        add_stack(&mut stacks, stack, words, key, |(_, new)| new);
    }
    let change = |((memory, path), (old, new))| StackChange { memory, path, old, new };
    let mut stacks: Vec<_> = stacks.into_iter().map(change).collect();
    // Paths are compared where they are: of a million stacks, their names would be gigabytes.
    let ranks = words.ranks();
    stacks.sort_by(|a, b| {
        let [a_ranks, b_ranks] = [a, b].map(|change| change.path.iter().map(|&id| ranks.of(id)));
        moved(b.amounts(key)).cmp(&moved(a.amounts(key))).then_with(|| a_ranks.cmp(b_ranks))
    });
    Comparison { key, functions, stacks }
}

/// By how much a number changed.
fn moved((old, new): (Option<u64>, Option<u64>)) -> u64 {
    old.unwrap_or(0).abs_diff(new.unwrap_or(0))
}

/// What a stack used before and now, by its memory and its path.
type StackSides = BTreeMap<(Memory, Box<[FunctionId]>), (Option<StackSide>, Option<StackSide>)>;

fn add_stack(
    stacks: &mut StackSides,
    stack: &Stack,
    words: &Vocabulary,
    key: SortKey,
    side: impl Fn(&mut (Option<StackSide>, Option<StackSide>)) -> &mut Option<StackSide>,
) {
    let Stack { memory, is_complete, frames, usage } = stack;
    let sides = stacks.entry((*memory, path(frames, words))).or_default();
    let amount = key.of(usage);
    match side(sides) {
        Some(known) => {
            add_usage(&mut known.usage, usage);
            if amount > known.heaviest {
                known.frames = Arc::clone(frames);
                known.is_complete = *is_complete;
                known.heaviest = amount;
            }
        }
        none => {
            *none = Some(StackSide {
                frames: Arc::clone(frames),
                is_complete: *is_complete,
                usage: *usage,
                heaviest: amount,
            });
        }
    }
}

fn path(frames: &[FrameId], words: &Vocabulary) -> Box<[FunctionId]> {
    let mut path: Vec<_> = frames.iter().map(|&frame| words.frame(frame).function).collect();
    path.dedup();
    path.into()
}

/// `frames` in runs of one function, as they stand in a path.
fn runs<'f>(frames: &'f [FrameId], words: &Vocabulary) -> impl Iterator<Item = &'f [FrameId]> {
    frames.chunk_by(|&a, &b| words.frame(a).function == words.frame(b).function)
}

#[cfg(test)]
mod tests;
