//! Statistics in the JSON report.

use serde::Serialize;

use crate::pipeline::snapshot::Snapshot;
use crate::pipeline::statistics::{self, HeldMemory, LIFETIME_UNIT_NS, Reallocations};
use crate::record::{MemoryByKind, MemoryFigures};
use crate::views::frames::Function;
use crate::views::statistics::{FunctionStatistics, OfFunction, all_sizes};

#[derive(Serialize)]
pub(super) struct Statistics<'r> {
    temporary_between: usize,
    allocated_bytes_per_second: u64,
    freed_bytes_per_second: u64,
    sizes: Vec<Bucket>,
    sizes_by_api: Vec<ApiSizes>,
    lifetimes: Vec<Bucket>,
    lifetimes_by_function: Vec<FunctionLifetimes<'r>>,
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

#[derive(Serialize)]
struct ApiSizes {
    api: &'static str,
    sizes: Vec<Bucket>,
}

#[derive(Serialize)]
struct Named<'r> {
    function: Option<&'r str>,
    module: Option<&'r str>,
    file: Option<&'r str>,
    line: Option<u32>,
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
    of_functions: &'r FunctionStatistics,
    top: usize,
) -> Statistics<'r> {
    let heap = &snapshot.totals.heap;
    let FunctionStatistics { lifetimes, reallocations } = of_functions;
    Statistics {
        temporary_between: snapshot.statistics.temporary_between,
        allocated_bytes_per_second: snapshot.per_second(heap.allocated_bytes),
        freed_bytes_per_second: snapshot.per_second(heap.freed_bytes),
        sizes: buckets(&all_sizes(snapshot), 1),
        sizes_by_api: snapshot
            .statistics
            .sizes
            .iter()
            .map(|(api, sizes)| ApiSizes { api: api.name(), sizes: buckets(sizes, 1) })
            .collect(),
        lifetimes: buckets(&snapshot.statistics.lifetimes, LIFETIME_UNIT_NS),
        lifetimes_by_function: lifetimes
            .iter()
            .take(top)
            .map(|of| FunctionLifetimes {
                named: named(of),
                lifetimes: buckets(&of.sum, LIFETIME_UNIT_NS),
            })
            .collect(),
        reallocations_by_function: reallocations.iter().take(top).map(reallocation).collect(),
    }
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
    let function: Option<&Function> = of.function.as_deref();
    Named {
        function: function.and_then(|function| function.name.as_deref()),
        module: function.map(|function| &*function.module),
        file: function.and_then(|function| function.file.as_deref()),
        line: of.line,
    }
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
