//! Statistics in the JSON report.

use serde::Serialize;

use crate::pipeline::snapshot::{Snapshot, Usage};
use crate::pipeline::statistics::{
    self, AlignedBlocks, Allocator, HeldMemory, LIFETIME_UNIT_NS, Reallocations,
};
use crate::record::{MemoryByKind, MemoryFigures};
use crate::views::export::json::named::{Named, name};
use crate::views::export::json::places::{Path, Places};
use crate::views::ranking::{FunctionUsage, Ranking};
use crate::views::statistics::{
    Aligned, CallPath, FunctionStatistics, OfFunction, all_sizes, over_aligned,
};

#[derive(Serialize)]
pub(super) struct Statistics<'r> {
    temporary_between: usize,
    allocator: Option<&'static str>,
    #[serde(flatten)]
    churn: Churn,
    churn_by_function: Vec<FunctionChurn<'r>>,
    sizes: Vec<Bucket>,
    sizes_by_api: Vec<ApiSizes>,
    sizes_by_function: Vec<FunctionSizes<'r>>,
    lifetimes: Vec<Bucket>,
    lifetimes_by_function: Vec<FunctionLifetimes<'r>>,
    call_paths: Vec<CallPathStatistics<'r>>,
    over_aligned: Alignments,
    aligned_by_function: Vec<FunctionAligned<'r>>,
    reallocations_by_function: Vec<FunctionReallocations<'r>>,
}

/// Values from `from` to less than `to`; the last bucket has no end.
#[derive(Serialize)]
struct Bucket {
    from: u64,
    to: Option<u64>,
    count: u64,
    bytes: u64,
}

/// What was done in one second.
#[derive(Serialize)]
struct Churn {
    allocations_per_second: u64,
    allocated_bytes_per_second: u64,
    freed_bytes_per_second: u64,
}

#[derive(Serialize)]
struct FunctionChurn<'r> {
    #[serde(flatten)]
    named: Named<'r>,
    allocations: u64,
    temporary_allocations: u64,
    #[serde(flatten)]
    churn: Churn,
}

#[derive(Serialize)]
struct FunctionSizes<'r> {
    #[serde(flatten)]
    named: Named<'r>,
    sizes: Vec<Bucket>,
}

#[derive(Serialize)]
struct CallPathStatistics<'r> {
    api: &'static str,
    allocations: u64,
    temporary_allocations: u64,
    #[serde(flatten)]
    churn: Churn,
    sizes: Vec<Bucket>,
    lifetimes: Vec<Bucket>,
    places: Path<'r>,
}

/// Blocks that were to be aligned.
#[derive(Serialize)]
struct Alignments {
    allocations: u64,
    requested_bytes: u64,
    smaller_allocations: u64,
    extra_bytes: Option<u64>,
}

#[derive(Serialize)]
struct FunctionAligned<'r> {
    #[serde(flatten)]
    named: Named<'r>,
    alignment: u64,
    #[serde(flatten)]
    blocks: Alignments,
}

#[derive(Serialize)]
struct ApiSizes {
    api: &'static str,
    sizes: Vec<Bucket>,
}

#[derive(Serialize)]
struct FunctionLifetimes<'r> {
    #[serde(flatten)]
    named: Named<'r>,
    lifetimes: Vec<Bucket>,
}

#[derive(Serialize)]
struct FunctionReallocations<'r> {
    #[serde(flatten)]
    named: Named<'r>,
    calls: u64,
    moved: u64,
    copied_bytes: u64,
    grown: u64,
    growth_bytes: u64,
    grown_from_bytes: u64,
}

/// The memory of a process at one moment.
#[derive(Serialize)]
pub(super) struct Memory {
    time_ns: u64,
    live_blocks: u64,
    requested_bytes: u64,
    usable_bytes: Option<u64>,
    untouched_bytes: u64,
    not_in_live_blocks_bytes: Option<u64>,
    heap: Figures,
    anonymous: Figures,
    file: Figures,
    stack: Figures,
    shared: Figures,
}

#[derive(Serialize)]
struct Figures {
    size_bytes: u64,
    reserved_bytes: u64,
    resident_bytes: u64,
    proportional_bytes: u64,
    private_dirty_bytes: u64,
    swapped_bytes: u64,
    huge_bytes: u64,
}

pub(super) fn statistics<'r>(
    snapshot: &Snapshot,
    ranking: &'r Ranking,
    top: usize,
    places: &'r Places<'r>,
) -> Statistics<'r> {
    let FunctionStatistics { histograms, call_paths, reallocations, aligned } = &ranking.statistics;
    let call_paths = call_paths.iter().take(top).map(|path| call_path(snapshot, path, places));
    Statistics {
        temporary_between: snapshot.statistics.temporary_between,
        allocator: snapshot.statistics.allocator.map(Allocator::name),
        churn: churn(snapshot, &snapshot.totals.heap),
        churn_by_function: churn_by_function(snapshot, &ranking.functions, top),
        sizes: buckets(&all_sizes(snapshot), 1),
        sizes_by_api: snapshot
            .statistics
            .sizes
            .iter()
            .map(|(api, sizes)| ApiSizes { api: api.name(), sizes: buckets(sizes, 1) })
            .collect(),
        lifetimes: buckets(&snapshot.statistics.lifetimes, LIFETIME_UNIT_NS),
        sizes_by_function: histograms
            .iter()
            .take(top)
            .map(|of| FunctionSizes { named: named(of), sizes: buckets(&of.sum.sizes, 1) })
            .collect(),
        lifetimes_by_function: histograms
            .iter()
            .filter(|of| of.sum.lifetimes.count() > 0)
            .take(top)
            .map(|of| FunctionLifetimes {
                named: named(of),
                lifetimes: buckets(&of.sum.lifetimes, LIFETIME_UNIT_NS),
            })
            .collect(),
        call_paths: call_paths.collect(),
        over_aligned: alignments(&over_aligned(snapshot)),
        aligned_by_function: aligned
            .iter()
            .take(top)
            .map(|of| {
                let Aligned { alignment, blocks } = &of.sum;
                FunctionAligned {
                    named: named(of),
                    alignment: alignment.bytes(),
                    blocks: alignments(blocks),
                }
            })
            .collect(),
        reallocations_by_function: reallocations.iter().take(top).map(reallocation).collect(),
    }
}

fn churn(snapshot: &Snapshot, usage: &Usage) -> Churn {
    Churn {
        allocations_per_second: snapshot.per_second(usage.allocations),
        allocated_bytes_per_second: snapshot.per_second(usage.allocated_bytes),
        freed_bytes_per_second: snapshot.per_second(usage.freed_bytes),
    }
}

/// Of functions that allocate themselves, those with most allocations first.
fn churn_by_function<'r>(
    snapshot: &Snapshot,
    functions: &'r [FunctionUsage],
    top: usize,
) -> Vec<FunctionChurn<'r>> {
    let allocates = |of: &&FunctionUsage| of.heap.own.allocations > 0;
    let mut functions: Vec<_> = functions.iter().filter(allocates).collect();
    // Functions with as many keep the order of the ranking, which is total.
    functions.sort_by_key(|of| std::cmp::Reverse(of.heap.own.allocations));
    let of_function = |of: &'r FunctionUsage| FunctionChurn {
        named: name(Some(&of.function), of.line),
        allocations: of.heap.own.allocations,
        temporary_allocations: of.heap.own.temporary_allocations,
        churn: churn(snapshot, &of.heap.own),
    };
    functions.into_iter().take(top).map(of_function).collect()
}

fn call_path<'r>(
    snapshot: &Snapshot,
    path: &'r CallPath,
    places: &'r Places<'r>,
) -> CallPathStatistics<'r> {
    let CallPath { stack, api, usage, histograms } = path;
    CallPathStatistics {
        api: api.name(),
        allocations: usage.allocations,
        temporary_allocations: usage.temporary_allocations,
        churn: churn(snapshot, usage),
        sizes: buckets(&histograms.sizes, 1),
        lifetimes: buckets(&histograms.lifetimes, LIFETIME_UNIT_NS),
        places: places.path(stack),
    }
}

fn alignments(blocks: &AlignedBlocks) -> Alignments {
    let &AlignedBlocks { allocations, requested_bytes, smaller_allocations, extra_bytes } = blocks;
    Alignments { allocations, requested_bytes, smaller_allocations, extra_bytes }
}

fn buckets(histogram: &statistics::Histogram, unit: u64) -> Vec<Bucket> {
    let bucket = |bucket: statistics::Bucket| {
        let statistics::Bucket { from, to, count, bytes } = bucket;
        let to = Some(to).filter(|to| *to < u64::MAX).map(|to| to.saturating_mul(unit));
        Bucket { from: from.saturating_mul(unit), to, count, bytes }
    };
    histogram.buckets().into_iter().map(bucket).collect()
}

fn named<T>(of: &OfFunction<T>) -> Named<'_> {
    name(of.function.as_deref(), of.line)
}

fn reallocation(of: &OfFunction<Reallocations>) -> FunctionReallocations<'_> {
    let Reallocations { calls, moved, copied_bytes, grown, growth_bytes, grown_from_bytes } =
        of.sum;
    FunctionReallocations {
        named: named(of),
        calls,
        moved,
        copied_bytes,
        grown,
        growth_bytes,
        grown_from_bytes,
    }
}

pub(super) fn memory(memory: &HeldMemory) -> Memory {
    let HeldMemory { time, live_blocks, requested_bytes, usable_bytes, kinds } = memory;
    let MemoryByKind { heap, anonymous, file, stack, shared } = kinds;
    Memory {
        time_ns: time.0,
        live_blocks: *live_blocks,
        requested_bytes: *requested_bytes,
        usable_bytes: *usable_bytes,
        untouched_bytes: memory.untouched_bytes(),
        not_in_live_blocks_bytes: memory.filled_bytes().checked_sub(memory.known_bytes()),
        heap: figures(heap),
        anonymous: figures(anonymous),
        file: figures(file),
        stack: figures(stack),
        shared: figures(shared),
    }
}

fn figures(figures: &MemoryFigures) -> Figures {
    let MemoryFigures {
        size_bytes,
        reserved_bytes,
        resident_bytes,
        proportional_bytes,
        private_dirty_bytes,
        swapped_bytes,
        huge_bytes,
    } = *figures;
    Figures {
        size_bytes,
        reserved_bytes,
        resident_bytes,
        proportional_bytes,
        private_dirty_bytes,
        swapped_bytes,
        huge_bytes,
    }
}
