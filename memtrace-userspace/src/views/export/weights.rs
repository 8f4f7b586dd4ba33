//! Call paths with weights: what every format that draws a tree is made of.
//!
//! In: a ranking, the kind of memory and the number that counts. Out: [`Paths`], sorted from the
//! root outwards, so that whoever walks them meets the nodes of the tree in order and needs no
//! tree:
//!
//! ```text
//!   main handle leak     shared 0   main, handle and leak are new
//!   main handle read     shared 2   read is new
//!   main parse           shared 1   parse is new
//! ```
//!
//! What makes two frames one node is the format's choice: a line of a function, or its name alone.
//! A stack that was cut hangs at a node that says so, not beside `main`. Paths that are equal then
//! are one, unless they are of different owners, as threads are. The heap and mappings are never in one tree: an allocator maps what it hands out.

use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::Arc;

use memtrace_common::unwind::End;
use rustc_hash::FxHashMap;

use crate::pipeline::snapshot::Usage;
use crate::views::frames::{Frame, Function, base_name};
use crate::views::ranking::{Memory, Ranking, SortKey, SymbolizedUsage};

/// What a tree is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight {
    /// The stacks that count.
    pub memory: Memory,
    /// The number that counts.
    pub key: SortKey,
}

impl Weight {
    /// How a heading names it: `live bytes, mapped`.
    pub fn title(self) -> String {
        match self.memory {
            Memory::Heap => self.key.title().to_owned(),
            Memory::Mapped => format!("{}, mapped", self.key.title()),
        }
    }

    /// Whether no stack weighs anything.
    pub fn is_nothing(self, ranking: &Ranking) -> bool {
        self.stacks(ranking).all(|stack| self.of(&stack.usage) == 0)
    }

    /// The stacks of the kind of memory that counts.
    pub(super) fn stacks(self, ranking: &Ranking) -> impl Iterator<Item = &SymbolizedUsage> {
        ranking.stacks.iter().filter(move |usage| Memory::of(usage.api) == self.memory)
    }

    /// The number that counts.
    pub(super) fn of(self, usage: &Usage) -> u64 {
        self.key.of(usage)
    }
}

/// A node of a tree, before a format has named it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Node<'r> {
    /// A call.
    Frame(&'r Frame),
    /// The root of stacks whose callers are unknown.
    Cut(End),
}

impl Node<'_> {
    /// The name of the function, `?? in plugin.so`, or `[cut: no_unwind_info]`.
    pub(super) fn name(self) -> String {
        match self {
            Node::Frame(frame) => {
                let Function { name, module, file: _, id: _ } = &*frame.function;
                function_name(name.as_deref(), module)
            }
            Node::Cut(end) => format!("[cut: {}]", end.name()),
        }
    }
}

/// A function in a picture; nameless code is that of its module.
pub(in crate::views) fn function_name(name: Option<&str>, module: &str) -> String {
    match name {
        Some(name) => name.to_owned(),
        None => format!("?? in {}", base_name(module)),
    }
}

/// A line of a function: what is one node where formats know files and lines.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Call {
    /// As [`Node::name`] says.
    pub(super) name: String,
    /// Path of the file that holds the code; `None` for a [`Node::Cut`].
    pub(super) module: Option<Arc<str>>,
    /// Path of the source file.
    pub(super) file: Option<Arc<str>>,
    /// The line in it.
    pub(super) line: Option<u32>,
    /// Whether its code is its caller's.
    pub(super) inlined: bool,
}

impl Call {
    pub(super) fn new(node: Node<'_>) -> Call {
        let name = node.name();
        match node {
            Node::Frame(frame) => Call {
                name,
                module: Some(Arc::clone(&frame.function.module)),
                file: frame.function.file.clone(),
                line: frame.line,
                inlined: frame.inlined,
            },
            Node::Cut(_) => Call { name, module: None, file: None, line: None, inlined: false },
        }
    }
}

/// One path; its nodes are in [`Paths::nodes`].
#[derive(Clone, Copy, Debug)]
struct Path {
    start: usize,
    length: u32,
    /// Whose it is.
    owner: usize,
    weight: u64,
}

/// A path as it is walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step<'p> {
    /// How many nodes it shares with the one before.
    pub(super) shared: usize,
    /// From the root outwards: indices into [`Paths::labels`].
    pub(super) nodes: &'p [u32],
    /// Whose it is; 0 if nobody was told apart.
    pub(super) owner: usize,
    /// Never 0.
    pub(super) weight: u64,
}

/// The call paths that have a weight, in the order of a tree.
pub(super) struct Paths<K> {
    /// What the format made of the nodes, each once, in order.
    pub(super) labels: Vec<K>,
    nodes: Vec<u32>,
    paths: Vec<Path>,
}

impl<K: Hash + Ord + Clone> Paths<K> {
    /// Those of the stacks that weigh something. Nodes with equal labels are one.
    pub(super) fn new<'r>(
        ranking: &'r Ranking,
        weight: Weight,
        label: impl Fn(Node<'r>) -> K,
    ) -> Paths<K> {
        Paths::of_owners(ranking.stacks.iter().map(|usage| (0, usage)), weight, label)
    }

    /// The same of stacks that have owners.
    pub(super) fn of_owners<'r>(
        stacks: impl Iterator<Item = (usize, &'r SymbolizedUsage)>,
        weight: Weight,
        label: impl Fn(Node<'r>) -> K,
    ) -> Paths<K> {
        let mut labels = Labels { by_label: FxHashMap::default(), all: Vec::new() };
        let mut by_frame: FxHashMap<*const Frame, u32> = FxHashMap::default();
        let (mut nodes, mut paths) = (Vec::new(), Vec::new());
        let counted = stacks.filter(|(_, usage)| Memory::of(usage.api) == weight.memory);
        for (owner, SymbolizedUsage { stack, api: _, usage }) in counted {
            let weight = weight.of(usage);
            if weight == 0 {
                continue;
            }
            let start = nodes.len();
            if stack.end != End::Root || stack.is_empty() {
                nodes.push(labels.intern(label(Node::Cut(stack.end))));
            }
            for frame in stack.frames().rev() {
                nodes.push(match by_frame.entry(Arc::as_ptr(frame)) {
                    Entry::Occupied(known) => *known.get(),
                    Entry::Vacant(new) => *new.insert(labels.intern(label(Node::Frame(frame)))),
                });
            }
            // Fits: a stack has at most a thousand places, each with a bounded number of frames.
            let length = (nodes.len() - start) as u32;
            paths.push(Path { start, length, owner, weight });
        }
        drop(by_frame);
        let labels = labels.sort(&mut nodes);
        let slice = |path: &Path| &nodes[path.start..path.start + path.length as usize];
        paths.sort_by(|a, b| slice(a).cmp(slice(b)).then(a.owner.cmp(&b.owner)));
        let mut merged: Vec<Path> = Vec::with_capacity(paths.len());
        for path in paths {
            match merged.last_mut() {
                Some(last) if last.owner == path.owner && slice(last) == slice(&path) => {
                    last.weight = last.weight.saturating_add(path.weight);
                }
                Some(_) | None => merged.push(path),
            }
        }
        Paths { labels, nodes, paths: merged }
    }

    /// The paths in the order of the tree.
    pub(super) fn walk(&self) -> impl Iterator<Item = Step<'_>> {
        let mut before: &[u32] = &[];
        self.paths.iter().map(move |path| {
            let nodes = &self.nodes[path.start..path.start + path.length as usize];
            let shared = nodes.iter().zip(before).take_while(|(a, b)| a == b).count();
            before = nodes;
            Step { shared, nodes, owner: path.owner, weight: path.weight }
        })
    }

    /// How many paths there are.
    pub(super) fn len(&self) -> usize {
        self.paths.len()
    }

    /// The sum of all weights.
    pub(super) fn total(&self) -> u64 {
        self.paths.iter().fold(0, |sum, path| sum.saturating_add(path.weight))
    }
}

/// Labels as they are found.
struct Labels<K> {
    by_label: FxHashMap<K, u32>,
    all: Vec<K>,
}

impl<K: Hash + Ord + Clone> Labels<K> {
    fn intern(&mut self, label: K) -> u32 {
        match self.by_label.entry(label) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                // Fits: each is one of at most 2^32 frames.
                let id = self.all.len() as u32;
                self.all.push(new.key().clone());
                new.insert(id);
                id
            }
        }
    }

    /// The labels in order; `nodes` follow.
    fn sort(self, nodes: &mut [u32]) -> Vec<K> {
        drop(self.by_label);
        let mut order: Vec<u32> = (0..self.all.len() as u32).collect();
        order.sort_by(|&a, &b| self.all[a as usize].cmp(&self.all[b as usize]));
        let mut place = vec![0; order.len()];
        for (new, &old) in (0..).zip(&order) {
            place[old as usize] = new;
        }
        for node in nodes {
            *node = place[*node as usize];
        }
        order.iter().map(|&old| self.all[old as usize].clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::views::fixture;
    use crate::views::ranking::rank;

    const LIVE_HEAP: Weight = Weight { memory: Memory::Heap, key: SortKey::Live };

    fn walked(weight: Weight, reversed: bool) -> Vec<(usize, String, u64)> {
        let mut snapshot = fixture::snapshot();
        if reversed {
            snapshot.stacks.reverse();
        }
        let ranking = rank(&snapshot, &mut fixture::names(), SortKey::Live);
        let paths = Paths::new(&ranking, weight, |node| node.name());
        let text = |step: Step<'_>| {
            let names: Vec<&str> =
                step.nodes.iter().map(|&node| paths.labels[node as usize].as_str()).collect();
            (step.shared, names.join(" "), step.weight)
        };
        paths.walk().map(text).collect()
    }

    #[test]
    fn paths_come_in_the_order_of_the_tree_with_what_they_share() {
        let expected = [
            (0, "[cut: unreadable_stack] ?? in plugin.so".to_owned(), 300),
            (0, "main cache_fill cache::Entry::build".to_owned(), 2 << 20),
            (1, "main handle leak_per_request".to_owned(), 12 << 20),
        ];

        assert_eq!(walked(LIVE_HEAP, false), expected);
        assert_eq!(walked(LIVE_HEAP, true), expected);
    }

    #[test]
    fn mappings_are_a_tree_of_their_own() {
        let mapped = Weight { memory: Memory::Mapped, key: SortKey::Live };

        assert_eq!(walked(mapped, false), [(0, "main".to_owned(), 32 << 20)]);
        assert_eq!(mapped.title(), "live bytes, mapped");
    }

    #[test]
    fn paths_with_equal_labels_are_one() {
        let ranking = rank(&fixture::snapshot(), &mut fixture::names(), SortKey::Live);
        let allocated = Weight { memory: Memory::Heap, key: SortKey::Allocated };

        let paths = Paths::new(&ranking, allocated, |_| "same");

        // Of three nodes the leak, the cache and the parser; of two the stack that was cut.
        let lengths: Vec<usize> = paths.walk().map(|step| step.nodes.len()).collect();
        assert_eq!((lengths, paths.labels), (vec![2, 3], vec!["same"]));
    }

    #[test]
    fn nothing_is_nothing() {
        let mut snapshot = fixture::snapshot();
        snapshot.stacks.retain(|stack| Memory::of(stack.api) == Memory::Mapped);
        let ranking = rank(&snapshot, &mut fixture::names(), SortKey::Live);

        assert!(LIVE_HEAP.is_nothing(&ranking));
        assert!(!Weight { memory: Memory::Mapped, ..LIVE_HEAP }.is_nothing(&ranking));
    }
}
