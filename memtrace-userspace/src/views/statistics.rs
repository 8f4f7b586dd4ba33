//! What blocks were like by function and by call path, with names.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

use memtrace_common::event::Api;
use rustc_hash::FxHashMap;

use crate::pipeline::snapshot::{Snapshot, Stack, StackUsage, Usage};
use crate::pipeline::statistics::{
    AlignedBlocks, FUNDAMENTAL_ALIGNMENT_BYTES, Histogram, Histograms, Reallocations, SiteAligned,
    SiteHistograms, SiteReallocations, Statistics,
};
use crate::record::Alignment;
use crate::views::frames::{Frame, Function, FunctionId, Names, SymbolizedStack};
use crate::views::ranking::compare_frames;

/// Growth steps of a function from which on they are worth a word.
const MANY_STEPS: u64 = 1000;
/// Steps of less than one part in so many of the block are small.
const SMALL_STEP: u64 = 16;

/// What a function did, itself.
#[derive(Clone, Debug)]
pub struct OfFunction<T> {
    /// The allocating function; `None` if no frame is known.
    pub function: Option<Arc<Function>>,
    /// A line of it that does so.
    pub line: Option<u32>,
    /// The sum over its call paths.
    pub sum: T,
}

/// What a call path did, and what its blocks were like.
#[derive(Clone, Debug)]
pub struct CallPath {
    /// The call path.
    pub stack: Arc<SymbolizedStack>,
    /// The API.
    pub api: Api,
    /// What it did.
    pub usage: Usage,
    /// Of its blocks but the first ones.
    pub histograms: Histograms,
}

/// What a function's blocks were like that were to be aligned to so much.
#[derive(Clone, Debug, Default)]
pub struct Aligned {
    /// To what.
    pub alignment: Alignment,
    /// How many, and what that costs.
    pub blocks: AlignedBlocks,
}

/// What the session's call paths were like, by allocating function.
#[derive(Clone, Debug, Default)]
pub struct FunctionStatistics {
    /// Most blocks first.
    pub histograms: Vec<OfFunction<Histograms>>,
    /// Those that have histograms, most allocations first.
    pub call_paths: Vec<CallPath>,
    /// Most calls first.
    pub reallocations: Vec<OfFunction<Reallocations>>,
    /// Most allocations first; an entry for each alignment that a function asks for.
    pub aligned: Vec<OfFunction<Aligned>>,
}

impl FunctionStatistics {
    /// Finds the names, and sums up.
    pub fn new(snapshot: &Snapshot, names: &mut Names) -> FunctionStatistics {
        let Statistics { histograms_by_site, reallocations, aligned, .. } = &snapshot.statistics;
        let histograms = histograms_by_site.iter();
        let histograms =
            histograms.map(|SiteHistograms { stack, api: _, histograms }| (stack, histograms));
        let mut histograms = by_function(snapshot, names, histograms, Histograms::merge);
        histograms.sort_by_key(|of| Reverse(of.sum.sizes.count()));
        let reallocations = reallocations.iter();
        let reallocations = reallocations
            .map(|SiteReallocations { stack, api: _, reallocations }| (stack, reallocations));
        let mut reallocations = by_function(snapshot, names, reallocations, Reallocations::add);
        reallocations.sort_by_key(|of| Reverse(of.sum.calls));
        FunctionStatistics {
            histograms,
            call_paths: call_paths(snapshot, names),
            reallocations,
            aligned: by_alignment(snapshot, names, aligned),
        }
    }

    /// Functions that let blocks grow by many small steps, most steps first.
    pub fn growing_by_small_steps(&self) -> impl Iterator<Item = &OfFunction<Reallocations>> {
        self.reallocations.iter().filter(|of| {
            let &Reallocations { grown, growth_bytes, grown_from_bytes, .. } = &of.sum;
            grown >= MANY_STEPS && growth_bytes.saturating_mul(SMALL_STEP) < grown_from_bytes
        })
    }
}

/// The reallocations of all functions.
pub fn all_reallocations(snapshot: &Snapshot) -> Reallocations {
    let mut sum = Reallocations::default();
    snapshot.statistics.reallocations.iter().for_each(|site| sum.add(&site.reallocations));
    sum
}

/// All blocks that were to be aligned to more than every block is.
pub fn over_aligned(snapshot: &Snapshot) -> AlignedBlocks {
    let mut sum = AlignedBlocks::default();
    let sites = snapshot.statistics.aligned.iter();
    let over = sites.filter(|site| site.alignment.bytes() > FUNDAMENTAL_ALIGNMENT_BYTES);
    over.for_each(|site| sum.add(&site.blocks));
    sum
}

/// The sizes that were asked for, through whichever API.
pub fn all_sizes(snapshot: &Snapshot) -> Histogram {
    let mut sum = Histogram::default();
    snapshot.statistics.sizes.iter().for_each(|(_, sizes): &(Api, _)| sum.merge(sizes));
    sum
}

fn call_paths(snapshot: &Snapshot, names: &mut Names) -> Vec<CallPath> {
    let usage: FxHashMap<(*const Stack, Api), &Usage> = snapshot
        .stacks
        .iter()
        .map(|StackUsage { stack, api, usage }| ((Arc::as_ptr(stack), *api), usage))
        .collect();
    let sites = snapshot.statistics.histograms_by_site.iter();
    let mut call_paths: Vec<CallPath> = sites
        .filter_map(|SiteHistograms { stack, api, histograms }| {
            Some(CallPath {
                usage: **usage.get(&(Arc::as_ptr(stack), *api))?,
                stack: names.symbolize(&snapshot.images, stack),
                api: *api,
                histograms: histograms.clone(),
            })
        })
        .collect();
    call_paths.sort_by(|a, b| {
        let by_allocations = b.usage.allocations.cmp(&a.usage.allocations);
        by_allocations
            .then_with(|| a.api.cmp(&b.api))
            .then_with(|| compare_frames(&a.stack, &b.stack))
    });
    call_paths
}

fn by_alignment(
    snapshot: &Snapshot,
    names: &mut Names,
    sites: &[SiteAligned],
) -> Vec<OfFunction<Aligned>> {
    let alignments: BTreeSet<Alignment> = sites.iter().map(|site| site.alignment).collect();
    let mut sums = Vec::new();
    for alignment in alignments {
        let of_it = sites.iter().filter(|site| site.alignment == alignment);
        let of_it = of_it.map(|site| (&site.stack, &site.blocks));
        let of_functions = by_function(snapshot, names, of_it, AlignedBlocks::add);
        sums.extend(of_functions.into_iter().map(|OfFunction { function, line, sum: blocks }| {
            OfFunction { function, line, sum: Aligned { alignment, blocks } }
        }));
    }
    sums.sort_by_key(|of| Reverse(of.sum.blocks.allocations));
    sums
}

/// Sums by function, in the order of the functions.
fn by_function<'s, T: Default + 's>(
    snapshot: &Snapshot,
    names: &mut Names,
    sites: impl Iterator<Item = (&'s Arc<Stack>, &'s T)>,
    add: impl Fn(&mut T, &T),
) -> Vec<OfFunction<T>> {
    let mut sums: FxHashMap<Option<FunctionId>, OfFunction<T>> = FxHashMap::default();
    for (stack, numbers) in sites {
        let stack = names.symbolize(&snapshot.images, stack);
        let first = stack.functions().next();
        let function = first.map(|Frame { function, .. }| Arc::clone(function));
        let line = first.and_then(|frame| frame.line);
        let of = sums
            .entry(function.as_ref().map(|function| function.id))
            .or_insert_with(|| OfFunction { function, line, sum: T::default() });
        of.line = of.line.min(line).or(of.line).or(line);
        add(&mut of.sum, numbers);
    }
    let mut sums: Vec<_> = sums.into_values().collect();
    sums.sort_by(|a, b| a.function.cmp(&b.function));
    sums
}
