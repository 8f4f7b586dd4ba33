//! The call paths that a page holds, and what the others are summed up to.
//!
//! A browser cannot work with a million stacks. The heaviest are kept, by the largest share that
//! they have in any number. Each of the others is folded into a row *other stacks* below the
//! outermost calls that it shares with these and that matter, so that every sum is right:
//!
//! ```text
//!   main handle leak             1.2 MiB  kept
//!   main handle parse_a              8 B ─┐
//!   main handle parse_b             16 B ─┴→  main handle [other stacks]   24 B
//! ```

use std::collections::hash_map::Entry;
use std::sync::Arc;

use memtrace_common::event::Api;
use memtrace_common::unwind::End;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::pipeline::add_usage;
use crate::pipeline::snapshot::{Snapshot, Usage};
use crate::record::Time;
use crate::views::activity::{Cell, Finished};
use crate::views::frames::{Frame, Function, FunctionId, Names, SymbolizedStack};
use crate::views::ranking::{Memory, Ranking, SortKey, SymbolizedUsage};

/// How much of a session a page holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Rows of single stacks.
    pub(super) rows: usize,
    /// Calls in the tree.
    pub(super) nodes: usize,
    /// Steps in which rows changed, of all rows together.
    pub(super) cells: usize,
}

/// Below a thousandth of the whole, a call is no place to fold stacks into.
const FOLD_PARTS: u64 = 1_000;

/// No caller.
pub(super) const ROOT: u32 = u32::MAX;

/// What a node of the tree stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Call {
    /// A line of a function; the number is one of [`Rows::functions`].
    Line { function: u32, line: Option<u32>, inlined: bool },
    /// The root of stacks whose callers are unknown.
    Cut(End),
    /// All stacks that have no row of their own.
    Others,
}

/// A call, called from `parent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Node {
    /// [`ROOT`] or an earlier node.
    pub(super) parent: u32,
    /// Index into [`Rows::calls`].
    pub(super) call: u32,
}

/// What a row did in a step in which it changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Change {
    pub(super) step: u32,
    pub(super) allocations: u64,
    pub(super) allocated_bytes: u64,
    pub(super) temporary: u64,
    /// What it held more at the step's end than at its beginning; modulo 2^64.
    pub(super) grown_bytes: u64,
}

/// A call path and its numbers.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) node: u32,
    pub(super) api: Api,
    /// Stacks that it sums up.
    pub(super) stacks: u64,
    pub(super) usage: Usage,
    pub(super) temporary: u64,
    /// Live bytes that a verdict calls leaked.
    pub(super) leaked_bytes: u64,
    pub(super) changes: Vec<Change>,
}

/// Everything that is drawn and listed.
#[derive(Debug, Default)]
pub(super) struct Rows {
    pub(super) functions: Vec<Arc<Function>>,
    pub(super) calls: Vec<Call>,
    pub(super) nodes: Vec<Node>,
    pub(super) rows: Vec<Row>,
    /// What each thread did, by its place in [`Snapshot::threads`].
    pub(super) threads: Vec<Vec<Change>>,
    /// When each step ends.
    pub(super) ends: Vec<Time>,
    /// Stacks without a row of their own.
    pub(super) folded_stacks: u64,
}

/// Tells stacks apart by where they are kept: [`Names`] keeps each once.
type Key = (*const SymbolizedStack, Api);

fn key(stack: &Arc<SymbolizedStack>, api: Api) -> Key {
    (Arc::as_ptr(stack), api)
}

/// Chooses the rows and gives each what it did over time.
pub(super) fn rows(
    snapshot: &Snapshot,
    ranking: &Ranking,
    finished: &Finished,
    names: &mut Names,
    room: Room,
) -> Rows {
    let weights = Weights::new(snapshot, ranking, names);
    let mut order: Vec<(u64, usize)> = (0..ranking.stacks.len())
        .map(|index| (weights.of(&ranking.stacks[index]), index))
        .collect();
    // The order of the ranking decides between equals, so that equal sessions give equal pages.
    order.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut tree = Tree::default();
    let mut row_of: Vec<Option<u32>> = vec![None; ranking.stacks.len()];
    let mut kept = 0;
    for &(_, index) in &order {
        let used = &ranking.stacks[index];
        if kept == room.rows || tree.nodes.len() + used.stack.frames().count() > room.nodes {
            break;
        }
        kept += 1;
        let node = tree.path(&used.stack);
        row_of[index] = Some(tree.add(node, used, weights.leaked(used)));
    }
    tree.fold(&order[kept..], ranking, &weights, &mut row_of);
    let mut row_of_stack: FxHashMap<Key, u32> = FxHashMap::default();
    for (used, row) in ranking.stacks.iter().zip(&row_of) {
        if let Some(row) = row {
            row_of_stack.insert(key(&used.stack, used.api), *row);
        }
    }
    let sites = finished.sites.iter().map(|(stack, api)| {
        let stack = names.symbolize(&snapshot.images, stack);
        row_of_stack.get(&key(&stack, *api)).copied()
    });
    let sites: Vec<Option<u32>> = sites.collect();
    drop(row_of_stack);
    let mut rows = Rows {
        functions: tree.functions,
        calls: tree.calls,
        nodes: tree.nodes,
        rows: tree.rows,
        threads: changes_of_threads(finished, snapshot.threads.len()),
        ends: finished.ends.clone(),
        folded_stacks: (ranking.stacks.len() - kept) as u64,
    };
    rows.give_changes(finished, &sites);
    rows.shorten(room.cells);
    rows
}

impl Rows {
    fn give_changes(&mut self, finished: &Finished, sites: &[Option<u32>]) {
        let mut held = vec![0u64; sites.len()];
        for (step, cells) in (0..).zip(&finished.of_sites) {
            for cell in cells {
                let &Cell { number, allocations, allocated_bytes, temporary, level_bytes } = cell;
                let number = number as usize;
                let before = std::mem::replace(&mut held[number], level_bytes);
                let Some(row) = sites[number] else { continue };
                let row = &mut self.rows[row as usize];
                row.temporary += temporary;
                let grown_bytes = level_bytes.wrapping_sub(before);
                let change = Change { step, allocations, allocated_bytes, temporary, grown_bytes };
                add(&mut row.changes, change);
            }
        }
    }

    /// The changes of all rows and threads.
    fn changes(&mut self) -> impl Iterator<Item = &mut Vec<Change>> {
        self.rows.iter_mut().map(|row| &mut row.changes).chain(&mut self.threads)
    }

    /// Makes steps longer until no more than `cells` changes are left.
    fn shorten(&mut self, cells: usize) {
        while self.ends.len() > 1
            && self.changes().map(|changes| changes.len()).sum::<usize>() > cells
        {
            for changes in self.changes() {
                for mut change in std::mem::take(changes) {
                    change.step /= 2;
                    add(changes, change);
                }
            }
            let last = self.ends.last().copied();
            self.ends = self.ends.chunks(2).filter_map(|pair| pair.last().copied()).collect();
            debug_assert_eq!(self.ends.last().copied(), last);
        }
    }
}

/// Adds a change of the last step or a later one.
fn add(changes: &mut Vec<Change>, change: Change) {
    let Change { step, allocations, allocated_bytes, temporary, grown_bytes } = change;
    match changes.last_mut() {
        Some(last) if last.step == step => {
            last.allocations += allocations;
            last.allocated_bytes = last.allocated_bytes.wrapping_add(allocated_bytes);
            last.temporary += temporary;
            last.grown_bytes = last.grown_bytes.wrapping_add(grown_bytes);
        }
        Some(_) | None => changes.push(change),
    }
}

/// What each thread did in the steps in which its blocks changed.
fn changes_of_threads(finished: &Finished, threads: usize) -> Vec<Vec<Change>> {
    let mut changes = vec![Vec::new(); threads];
    let mut held = vec![0u64; finished.threads.len()];
    for (step, cells) in (0..).zip(&finished.of_threads) {
        for cell in cells {
            let &Cell { number, allocations, allocated_bytes, temporary, level_bytes } = cell;
            let number = number as usize;
            let before = std::mem::replace(&mut held[number], level_bytes);
            let Some(place) = finished.threads[number] else { continue };
            let grown_bytes = level_bytes.wrapping_sub(before);
            let change = Change { step, allocations, allocated_bytes, temporary, grown_bytes };
            add(&mut changes[place], change);
        }
    }
    changes
}

/// What weighs how much in a session.
struct Weights {
    heap: [u64; SortKey::ALL.len()],
    mapped: [u64; SortKey::ALL.len()],
    leaked: FxHashMap<Key, u64>,
}

impl Weights {
    fn new(snapshot: &Snapshot, ranking: &Ranking, names: &mut Names) -> Weights {
        let mut weights = Weights {
            heap: Default::default(),
            mapped: Default::default(),
            leaked: FxHashMap::default(),
        };
        for SymbolizedUsage { stack: _, api, usage } in &ranking.stacks {
            let sums = match Memory::of(*api) {
                Memory::Heap => &mut weights.heap,
                Memory::Mapped => &mut weights.mapped,
            };
            for (sum, key) in sums.iter_mut().zip(SortKey::ALL) {
                *sum = sum.saturating_add(key.of(usage));
            }
        }
        for named in ranking.findings.leaks() {
            let stack = names.symbolize(&snapshot.images, &named.verdict.stack);
            let sum = weights.leaked.entry(key(&stack, named.verdict.api)).or_default();
            *sum = sum.saturating_add(named.verdict.live_bytes);
        }
        weights
    }

    /// Bytes of the stack that leak.
    fn leaked(&self, used: &SymbolizedUsage) -> u64 {
        self.leaked.get(&key(&used.stack, used.api)).copied().unwrap_or(0)
    }

    /// The largest share of a stack in any number, in parts of 2^32. What leaks always matters.
    fn of(&self, used: &SymbolizedUsage) -> u64 {
        if self.leaked(used) > 0 {
            return u64::MAX;
        }
        self.share(&used.usage, used.api)
    }

    /// The largest share that a usage has in any number, in parts of 2^32.
    fn share(&self, usage: &Usage, api: Api) -> u64 {
        let sums = match Memory::of(api) {
            Memory::Heap => &self.heap,
            Memory::Mapped => &self.mapped,
        };
        let shares = sums.iter().zip(SortKey::ALL).map(|(&sum, key)| {
            let share = (u128::from(key.of(usage)) << 32) / u128::from(sum.max(1));
            u64::try_from(share).unwrap_or(u64::MAX)
        });
        shares.max().unwrap_or(0)
    }
}

/// The rows, while they are chosen.
#[derive(Default)]
struct Tree {
    functions: Vec<Arc<Function>>,
    function_ids: FxHashMap<FunctionId, u32>,
    calls: Vec<Call>,
    call_ids: FxHashMap<Call, u32>,
    frame_calls: FxHashMap<*const Frame, u32>,
    nodes: Vec<Node>,
    node_ids: FxHashMap<Node, u32>,
    rows: Vec<Row>,
    row_ids: FxHashMap<(u32, Api), u32>,
}

impl Tree {
    /// The node at which a stack ends.
    fn path(&mut self, stack: &SymbolizedStack) -> u32 {
        let mut node = ROOT;
        if stack.end != End::Root || stack.is_empty() {
            let call = self.call(Call::Cut(stack.end));
            node = self.node(node, call);
        }
        for frame in stack.frames().rev() {
            let call = self.frame(frame);
            node = self.node(node, call);
        }
        node
    }

    fn frame(&mut self, frame: &Arc<Frame>) -> u32 {
        if let Some(&known) = self.frame_calls.get(&Arc::as_ptr(frame)) {
            return known;
        }
        let Frame { function, line, inlined, place: _ } = &**frame;
        let functions = &mut self.functions;
        let function = *self.function_ids.entry(function.id).or_insert_with(|| {
            functions.push(Arc::clone(function));
            // Fits, as do all numbers here: a page has few.
            functions.len() as u32 - 1
        });
        let call = self.call(Call::Line { function, line: *line, inlined: *inlined });
        self.frame_calls.insert(Arc::as_ptr(frame), call);
        call
    }

    fn call(&mut self, call: Call) -> u32 {
        match self.call_ids.entry(call) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                self.calls.push(call);
                *new.insert(self.calls.len() as u32 - 1)
            }
        }
    }

    fn node(&mut self, parent: u32, call: u32) -> u32 {
        let node = Node { parent, call };
        match self.node_ids.entry(node) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                self.nodes.push(node);
                *new.insert(self.nodes.len() as u32 - 1)
            }
        }
    }

    /// Adds a stack to the row of its node.
    fn add(&mut self, node: u32, used: &SymbolizedUsage, leaked_bytes: u64) -> u32 {
        let api = used.api;
        let rows = &mut self.rows;
        let row = *self.row_ids.entry((node, api)).or_insert_with(|| {
            let (usage, changes) = (Usage::default(), Vec::new());
            rows.push(Row { node, api, stacks: 0, usage, temporary: 0, leaked_bytes: 0, changes });
            rows.len() as u32 - 1
        });
        let Row { stacks, usage, leaked_bytes: leaked, .. } = &mut self.rows[row as usize];
        *stacks += 1;
        *leaked = leaked.saturating_add(leaked_bytes);
        add_usage(usage, &used.usage);
        row
    }

    /// Adds the stacks that have no row to those of *other stacks*.
    fn fold(
        &mut self,
        folded: &[(u64, usize)],
        ranking: &Ranking,
        weights: &Weights,
        row_of: &mut [Option<u32>],
    ) {
        if folded.is_empty() {
            return;
        }
        let places = self.heavy_nodes(weights);
        let others = self.call(Call::Others);
        for &(_, index) in folded {
            let used = &ranking.stacks[index];
            let mut place = ROOT;
            let cut = (used.stack.end != End::Root || used.stack.is_empty())
                .then(|| self.call_ids.get(&Call::Cut(used.stack.end)).copied());
            let frames = used.stack.frames().rev();
            let calls = frames.map(|frame| self.frame_calls.get(&Arc::as_ptr(frame)).copied());
            for call in cut.into_iter().chain(calls) {
                let inner = call.and_then(|call| self.node_ids.get(&Node { parent: place, call }));
                match inner.filter(|inner| places.contains(inner)) {
                    Some(&inner) => place = inner,
                    None => break,
                }
            }
            let node = self.node(place, others);
            // What is folded has one row for each kind of memory.
            let api = match Memory::of(used.api) {
                Memory::Heap => Api::Malloc,
                Memory::Mapped => Api::Mmap,
            };
            let folded = SymbolizedUsage { stack: Arc::clone(&used.stack), api, usage: used.usage };
            row_of[index] = Some(self.add(node, &folded, 0));
        }
    }

    /// The nodes with at least a thousandth of any number.
    fn heavy_nodes(&self, weights: &Weights) -> FxHashSet<u32> {
        let mut heaviest = vec![0u64; self.nodes.len()];
        for row in &self.rows {
            let share = weights.share(&row.usage, row.api);
            let mut node = row.node;
            while node != ROOT {
                heaviest[node as usize] = heaviest[node as usize].saturating_add(share);
                node = self.nodes[node as usize].parent;
            }
        }
        let heavy = (0..).zip(heaviest).filter(|&(_, share)| share >= (1 << 32) / FOLD_PARTS);
        heavy.map(|(node, _)| node).collect()
    }
}

#[cfg(test)]
mod tests {
    use memtrace_common::addr::FileOffset;

    use super::*;
    use crate::pipeline::snapshot::Place;
    use crate::views::activity::{Activity, Level};
    use crate::views::fixture;
    use crate::views::ranking::rank;

    const AMPLE: Room = Room { rows: 100, nodes: 1_000, cells: 1_000 };

    /// The session of all views, in which everything is called from one line of `main`.
    fn made(room: Room) -> Rows {
        let (mut snapshot, mut names) = (fixture::snapshot(), fixture::names());
        for used in &mut snapshot.stacks[..3] {
            let mut stack = (*used.stack).clone();
            let main = stack.frames.last_mut().expect("it has frames");
            *main = Place::InFile { image: 0, offset: FileOffset(0x1200) };
            used.stack = Arc::new(stack);
        }
        // As the pipeline does, equal call paths are one.
        for verdict in &mut snapshot.leaks.verdicts {
            let equal = snapshot.stacks.iter().find(|used| used.stack == verdict.stack);
            verdict.stack = Arc::clone(equal.map_or(&verdict.stack, |used| &used.stack));
        }
        let ranking = rank(&snapshot, &mut names, SortKey::Live);
        let finished = Activity::new(Level::Live).finish(&snapshot);
        rows(&snapshot, &ranking, &finished, &mut names, room)
    }

    /// The path of a row from the root, its stacks and live bytes.
    fn listed(rows: &Rows) -> Vec<(String, u64, u64)> {
        let name = |call: u32| match rows.calls[call as usize] {
            Call::Line { function, .. } => {
                rows.functions[function as usize].name.as_deref().unwrap_or("??").to_owned()
            }
            Call::Cut(end) => end.name().to_owned(),
            Call::Others => "others".to_owned(),
        };
        let path = |mut node: u32| {
            let mut path = Vec::new();
            while node != ROOT {
                let Node { parent, call } = rows.nodes[node as usize];
                path.insert(0, name(call));
                node = parent;
            }
            path.join(" ")
        };
        let row = |row: &Row| (path(row.node), row.stacks, row.usage.live_bytes);
        rows.rows.iter().map(row).collect()
    }

    #[test]
    fn stacks_beyond_the_room_are_summed_up_below_what_they_share_with_the_heaviest() {
        let all = listed(&made(AMPLE));
        let few = made(Room { rows: 2, ..AMPLE });

        assert_eq!(all.len(), 5);
        // What leaks comes first; then the only mapping, which is all that is mapped.
        assert_eq!(
            listed(&few),
            [
                ("main handle leak_per_request".to_owned(), 1, 12 << 20),
                ("main".to_owned(), 1, 32 << 20),
                ("main others".to_owned(), 2, 2 << 20),
                ("others".to_owned(), 1, 300),
            ]
        );
        assert_eq!(few.folded_stacks, 3);
        let sum = |rows: &[(String, u64, u64)]| rows.iter().map(|row| row.2).sum::<u64>();
        assert_eq!(sum(&listed(&few)), sum(&all));
    }

    #[test]
    fn tree_keeps_to_its_room() {
        let few = made(Room { nodes: 4, ..AMPLE });

        // One node more for each row of folded stacks.
        assert!(few.nodes.len() <= 4 + 2, "{few:?}");
    }

    #[test]
    fn too_many_changes_make_steps_longer_and_lose_nothing() {
        let mut rows = made(AMPLE);
        rows.ends = (1..=5).map(Time).collect();
        let change = |step, grown: i64| Change {
            step,
            allocations: 1,
            allocated_bytes: 8,
            temporary: 0,
            grown_bytes: grown.cast_unsigned(),
        };
        rows.rows[0].changes = vec![change(0, 8), change(1, -8), change(4, 8)];

        rows.shorten(2);

        assert_eq!(rows.ends, [Time(2), Time(4), Time(5)]);
        let merged = Change { allocations: 2, allocated_bytes: 16, ..change(0, 0) };
        assert_eq!(rows.rows[0].changes, [merged, change(2, 8)]);
    }
}
