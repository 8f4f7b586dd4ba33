//! Who uses how much: the usage of stacks, summed up by function and put in order.
//!
//! For a function `f` over the stacks `s` of the heap,
//!
//! ```text
//!   self(f)  = Σ usage(s)  where f is the allocating function of s
//!   total(f) = Σ usage(s)  where f is anywhere in s; once, however often it recurs
//! ```
//!
//! and the same again for mappings, which are never added to the heap: the allocator maps the
//! memory that it hands out, so the sum would count bytes twice.
//!
//! The order is total: equal usage is ordered by name, so that equal snapshots give equal reports.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use memtrace_common::event::Api;
use rustc_hash::FxHashMap;

use crate::pipeline::add_usage;
pub use crate::pipeline::snapshot::Memory;
use crate::pipeline::snapshot::{Snapshot, StackUsage, Usage};
use crate::record::Pid;
use crate::views::findings::Findings;
use crate::views::frames::{Frame, Function, FunctionId, Names, Naming, SymbolizedStack};
use crate::views::statistics::FunctionStatistics;
use crate::views::timelines::Timelines;

/// What to put first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SortKey {
    /// Bytes held now, or at the end.
    Live,
    /// Bytes held at the moment of the global peak.
    Peak,
    /// All bytes ever allocated.
    Allocated,
    /// The number of allocations.
    Allocations,
    /// The number of temporary allocations.
    Temporary,
}

impl SortKey {
    /// Every key, in the order in which a user steps through them.
    pub const ALL: &[SortKey] = &[
        SortKey::Live,
        SortKey::Peak,
        SortKey::Allocated,
        SortKey::Allocations,
        SortKey::Temporary,
    ];

    /// The number that this key compares.
    pub fn of(self, usage: &Usage) -> u64 {
        match self {
            SortKey::Live => usage.live_bytes,
            SortKey::Peak => usage.peak_bytes,
            SortKey::Allocated => usage.allocated_bytes,
            SortKey::Allocations => usage.allocations,
            SortKey::Temporary => usage.temporary_allocations,
        }
    }

    /// How a heading names it.
    pub fn title(self) -> &'static str {
        match self {
            SortKey::Live => "live bytes",
            SortKey::Peak => "bytes at the peak",
            SortKey::Allocated => "allocated bytes",
            SortKey::Allocations => "allocations",
            SortKey::Temporary => "temporary allocations",
        }
    }
}

/// What a function allocated itself, and with its callees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Charge {
    /// The stacks whose allocating function it is.
    pub own: Usage,
    /// The stacks that it is in.
    pub total: Usage,
}

/// The usage of one function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionUsage {
    /// The function.
    pub function: Arc<Function>,
    /// The line through which most bytes were allocated.
    pub line: Option<u32>,
    /// Its heap blocks.
    pub heap: Charge,
    /// Its mappings.
    pub mapped: Charge,
}

/// The usage of one stack through one API, with names.
#[derive(Clone, Debug)]
pub struct SymbolizedUsage {
    /// The call path.
    pub stack: Arc<SymbolizedStack>,
    /// The function of the allocator or the system call.
    pub api: Api,
    /// What it did.
    pub usage: Usage,
}

/// A snapshot's functions and stacks, with names and in order.
#[derive(Debug)]
pub struct Ranking {
    /// The functions; by `self`, then by `total`.
    pub functions: Vec<FunctionUsage>,
    /// The stacks, heap and mappings in one order.
    pub stacks: Vec<SymbolizedUsage>,
    /// The spikes and leaks, with names.
    pub findings: Findings,
    /// Lifetimes and reallocations by function.
    pub statistics: FunctionStatistics,
    /// What has no name.
    pub naming: Naming,
    /// What functions and threads did over time, if somebody asked for it while the trace was read.
    pub timelines: Option<Timelines>,
}

/// The functions and stacks of one process, with names and in order.
#[derive(Clone, Debug, Default)]
pub struct ProcessRanking {
    /// As in [`Ranking`].
    pub functions: Vec<FunctionUsage>,
    /// As in [`Ranking`].
    pub stacks: Vec<SymbolizedUsage>,
}

impl ProcessRanking {
    /// Puts both lists in the order of `key`.
    pub fn sort(&mut self, key: SortKey) {
        sort(&mut self.functions, &mut self.stacks, key);
    }
}

/// Finds the names of all stacks, sums up by function, and sorts.
pub fn rank(snapshot: &Snapshot, names: &mut Names, key: SortKey) -> Ranking {
    names.learn_jit_names(&snapshot.jit_names);
    let stacks = symbolize(snapshot, &snapshot.stacks, names);
    let functions = sum_by_function(&stacks);
    let findings = Findings::new(snapshot, names);
    let statistics = FunctionStatistics::new(snapshot, names);
    let naming = names.naming();
    let mut ranking = Ranking { functions, stacks, findings, statistics, naming, timelines: None };
    ranking.sort(key);
    ranking
}

/// The same for each process, if the snapshot tells them apart.
pub fn rank_processes(
    snapshot: &Snapshot,
    names: &mut Names,
    key: SortKey,
) -> BTreeMap<Pid, ProcessRanking> {
    let rank = |(&pid, stacks): (&Pid, &Vec<StackUsage>)| {
        let stacks = symbolize(snapshot, stacks, names);
        let mut ranking = ProcessRanking { functions: sum_by_function(&stacks), stacks };
        ranking.sort(key);
        (pid, ranking)
    };
    snapshot.process_stacks.iter().map(rank).collect()
}

fn symbolize(
    snapshot: &Snapshot,
    stacks: &[StackUsage],
    names: &mut Names,
) -> Vec<SymbolizedUsage> {
    let named = |StackUsage { stack, api, usage }: &StackUsage| SymbolizedUsage {
        stack: names.symbolize(&snapshot.images, stack),
        api: *api,
        usage: *usage,
    };
    stacks.iter().map(named).collect()
}

impl Ranking {
    /// Puts both lists in the order of `key`.
    pub fn sort(&mut self, key: SortKey) {
        sort(&mut self.functions, &mut self.stacks, key);
    }
}

fn sort(functions: &mut [FunctionUsage], stacks: &mut [SymbolizedUsage], key: SortKey) {
    functions.sort_by(|a, b| compare_functions(key, a, b));
    sort_stacks(stacks, key);
}

/// Puts stacks in the order of `key`.
pub(super) fn sort_stacks(stacks: &mut [SymbolizedUsage], key: SortKey) {
    stacks.sort_by(|a, b| compare_stacks(key, a, b));
}

fn sum_by_function(stacks: &[SymbolizedUsage]) -> Vec<FunctionUsage> {
    // A table and not a map: every frame of every stack is looked at here.
    let mut by_function: Vec<Option<FunctionUsage>> = Vec::new();
    let mut by_line: FxHashMap<(FunctionId, u32), u64> = FxHashMap::default();
    for SymbolizedUsage { stack, api, usage } in stacks {
        for (depth, Frame { function, line, inlined: _, place: _ }) in stack.functions().enumerate()
        {
            let id = function.id.index();
            if id >= by_function.len() {
                by_function.resize_with(id + 1, || None);
            }
            let entry = by_function[id].get_or_insert_with(|| FunctionUsage {
                function: Arc::clone(function),
                line: None,
                heap: Charge::default(),
                mapped: Charge::default(),
            });
            let charge = match Memory::of(*api) {
                Memory::Heap => &mut entry.heap,
                Memory::Mapped => &mut entry.mapped,
            };
            add_usage(&mut charge.total, usage);
            if depth == 0 {
                add_usage(&mut charge.own, usage);
            }
            if let Some(line) = line {
                let bytes = by_line.entry((function.id, *line)).or_default();
                *bytes = bytes.saturating_add(usage.allocated_bytes);
            }
        }
    }
    let mut heaviest: FxHashMap<FunctionId, (u64, u32)> = FxHashMap::default();
    for (&(function, line), &bytes) in &by_line {
        let best = heaviest.entry(function).or_insert((bytes, line));
        if (bytes, std::cmp::Reverse(line)) > (best.0, std::cmp::Reverse(best.1)) {
            *best = (bytes, line);
        }
    }
    let mut functions: Vec<_> = by_function.into_iter().flatten().collect();
    for function in &mut functions {
        function.line = heaviest.get(&function.function.id).map(|&(_, line)| line);
    }
    functions
}

fn compare_functions(key: SortKey, a: &FunctionUsage, b: &FunctionUsage) -> Ordering {
    let numbers = |f: &FunctionUsage| {
        [
            key.of(&f.heap.own),
            key.of(&f.heap.total),
            f.heap.own.allocated_bytes,
            f.heap.total.allocated_bytes,
            key.of(&f.mapped.own),
            key.of(&f.mapped.total),
        ]
    };
    numbers(b).cmp(&numbers(a)).then_with(|| a.function.cmp(&b.function))
}

fn compare_stacks(key: SortKey, a: &SymbolizedUsage, b: &SymbolizedUsage) -> Ordering {
    let numbers = |s: &SymbolizedUsage| [key.of(&s.usage), s.usage.allocated_bytes];
    numbers(b)
        .cmp(&numbers(a))
        .then_with(|| a.api.cmp(&b.api))
        .then_with(|| compare_frames(&a.stack, &b.stack))
}

/// As slices compare, without a look into what both share.
pub(super) fn compare_frames(a: &SymbolizedStack, b: &SymbolizedStack) -> Ordering {
    let differing = a.frames().zip(b.frames()).filter(|(a, b)| !Arc::ptr_eq(a, b));
    let order = differing.map(|(a, b)| a.cmp(b)).find(|order| order.is_ne());
    order.unwrap_or_else(|| a.frames().count().cmp(&b.frames().count()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::views::fixture;

    fn function_named<'r>(ranking: &'r Ranking, name: &str) -> &'r FunctionUsage {
        let named = |f: &&FunctionUsage| f.function.name.as_deref() == Some(name);
        ranking.functions.iter().find(named).expect(name)
    }

    #[test]
    fn recursion_counts_a_stack_once() {
        let snapshot = fixture::snapshot();
        let mut names = fixture::names();

        let ranking = rank(&snapshot, &mut names, SortKey::Live);

        let parse = function_named(&ranking, "parse");
        assert_eq!(parse.heap.own, snapshot.stacks[2].usage);
        assert_eq!(parse.heap.total, snapshot.stacks[2].usage);
    }

    #[test]
    fn mappings_are_not_added_to_the_heap() {
        let snapshot = fixture::snapshot();
        let mut names = fixture::names();

        let ranking = rank(&snapshot, &mut names, SortKey::Live);

        let main = function_named(&ranking, "main");
        let mut heap = Usage::default();
        snapshot.stacks[..3].iter().for_each(|stack| add_usage(&mut heap, &stack.usage));
        assert_eq!(main.heap.total, heap);
        assert_eq!(main.mapped.own, snapshot.totals.mapped);
        assert_eq!(main.heap.own, Usage::default());
    }

    #[test]
    fn line_of_a_function_is_the_heaviest_call() {
        let snapshot = fixture::snapshot();
        let mut names = fixture::names();

        let ranking = rank(&snapshot, &mut names, SortKey::Live);

        assert_eq!(function_named(&ranking, "main").line, Some(92));
    }

    #[test]
    fn order_follows_the_key() {
        let snapshot = fixture::snapshot();
        let mut names = fixture::names();
        let first = |ranking: &Ranking| ranking.functions[0].function.name.clone();

        let mut ranking = rank(&snapshot, &mut names, SortKey::Live);
        assert_eq!(first(&ranking).as_deref(), Some("leak_per_request"));
        ranking.sort(SortKey::Peak);
        assert_eq!(first(&ranking).as_deref(), Some("cache::Entry::build"));
        ranking.sort(SortKey::Allocations);
        assert_eq!(first(&ranking).as_deref(), Some("parse"));
    }

    #[test]
    fn equal_usage_is_ordered_by_name() {
        let mut snapshot = fixture::snapshot();
        for stack in &mut snapshot.stacks {
            stack.usage = Usage { live_bytes: 1, ..Usage::default() };
        }
        let mut names = fixture::names();
        let order = |snapshot: &Snapshot, names: &mut Names| {
            let ranking = rank(snapshot, names, SortKey::Live);
            ranking
                .stacks
                .iter()
                .map(|s| s.stack.frames().next().unwrap().function.name.clone())
                .collect::<Vec<_>>()
        };

        let forwards = order(&snapshot, &mut names);
        snapshot.stacks.reverse();
        let mut other_names = fixture::names();
        let backwards = order(&snapshot, &mut other_names);

        assert_eq!(forwards, backwards);
    }
}
