//! Lifetimes and reallocations by function, with names.

use std::cmp::Reverse;
use std::sync::Arc;

use memtrace_common::event::Api;
use rustc_hash::FxHashMap;

use crate::pipeline::snapshot::{Snapshot, Stack};
use crate::pipeline::statistics::{
    Histogram, Reallocations, SiteLifetimes, SiteReallocations, Statistics,
};
use crate::views::frames::{Frame, Function, FunctionId, Names};

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

/// What the session's call paths were like, by allocating function.
#[derive(Clone, Debug, Default)]
pub struct FunctionStatistics {
    /// Most released blocks first.
    pub lifetimes: Vec<OfFunction<Histogram>>,
    /// Most calls first.
    pub reallocations: Vec<OfFunction<Reallocations>>,
}

impl FunctionStatistics {
    /// Finds the names, and sums up.
    pub fn new(snapshot: &Snapshot, names: &mut Names) -> FunctionStatistics {
        let Statistics { lifetimes_by_site, reallocations, .. } = &snapshot.statistics;
        let lifetimes = lifetimes_by_site.iter();
        let lifetimes =
            lifetimes.map(|SiteLifetimes { stack, api: _, lifetimes }| (stack, lifetimes));
        let mut lifetimes = by_function(snapshot, names, lifetimes, Histogram::merge);
        lifetimes.sort_by_key(|of| Reverse(of.sum.count()));
        let reallocations = reallocations.iter();
        let reallocations = reallocations
            .map(|SiteReallocations { stack, api: _, reallocations }| (stack, reallocations));
        let mut reallocations = by_function(snapshot, names, reallocations, Reallocations::add);
        reallocations.sort_by_key(|of| Reverse(of.sum.calls));
        FunctionStatistics { lifetimes, reallocations }
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

/// The sizes that were asked for, through whichever API.
pub fn all_sizes(snapshot: &Snapshot) -> Histogram {
    let mut sum = Histogram::default();
    snapshot.statistics.sizes.iter().for_each(|(_, sizes): &(Api, _)| sum.merge(sizes));
    sum
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
