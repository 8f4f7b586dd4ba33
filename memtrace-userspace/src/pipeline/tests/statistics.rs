//! Lifetimes, sizes, reallocations and samples of memory.

use super::*;
use crate::pipeline::statistics::{
    AlignedBlocks, Allocator, Bucket, FREES_BEFORE_LIFETIMES, HeldMemory, Histogram, Reallocations,
};
use crate::record::{MemoryByKind, MemoryFigures, Probe, ProbeCost};

const MS: u64 = 1_000_000;

fn start() -> Vec<Record> {
    vec![process(MAIN), thread(MAIN, MAIN), stack(1, 0x11), stack(2, 0x22)]
}

fn snapshot_after(records: &[Record]) -> Arc<Snapshot> {
    snapshot_of(&[&start()[..], records].concat())
}

/// The lowest value, the number and the bytes of each bucket that is not empty.
fn filled(histogram: &Histogram) -> Vec<(u64, u64, u64)> {
    let buckets = histogram.buckets().into_iter().filter(|bucket| bucket.count > 0);
    buckets.map(|Bucket { from, to: _, count, bytes }| (from, count, bytes)).collect()
}

#[test]
fn lifetime_is_from_the_allocation_to_the_release() {
    let snapshot = snapshot_after(&[
        alloc(5 * MS, MAIN, 0x10, 100, 1),
        alloc(6 * MS, MAIN, 0x20, 7, 1),
        free(6 * MS, MAIN, 0x20),
        free(15 * MS, MAIN, 0x10),
    ]);

    // 10 ms are 1000 units of 10 µs.
    assert_eq!(filled(&snapshot.statistics.lifetimes), [(0, 1, 7), (512, 1, 100)]);
}

#[test]
fn block_freed_in_the_tick_of_its_birth_lived_for_nothing_however_late_that_was() {
    let late = 86_400_000 * MS + 630_000;

    let snapshot = snapshot_after(&[alloc(late, MAIN, 0x10, 1, 1), free(late, MAIN, 0x10)]);

    assert_eq!(filled(&snapshot.statistics.lifetimes), [(0, 1, 1)]);
}

#[test]
fn reallocated_block_lives_from_its_first_allocation() {
    let snapshot = snapshot_after(&[
        alloc(0, MAIN, 0x10, 100, 1),
        retire(10 * MS, MAIN, 0x10),
        realloc(10 * MS, MAIN, 0x20, 150, 2),
        free(20 * MS, MAIN, 0x20),
    ]);

    assert_eq!(filled(&snapshot.statistics.lifetimes), [(1024, 1, 150)]);
}

#[test]
fn lifetimes_of_a_call_path_begin_after_its_first_blocks_and_sizes_at_once() {
    let records: Vec<_> = (0..FREES_BEFORE_LIFETIMES + 3)
        .flat_map(|n| [alloc(n, MAIN, 0x10, 1, 1), free(n, MAIN, 0x10)])
        .collect();

    let snapshot = snapshot_after(&records);

    let [of_site] = &snapshot.statistics.histograms_by_site[..] else { panic!("one call path") };
    assert_eq!(of_site.histograms.lifetimes.count(), 3);
    let all = FREES_BEFORE_LIFETIMES + 3;
    assert_eq!(filled(&of_site.histograms.sizes), [(1, all, all)]);
    assert_eq!(snapshot.statistics.lifetimes.count(), FREES_BEFORE_LIFETIMES + 3);
    let [(Api::Malloc, sizes)] = &snapshot.statistics.sizes[..] else { panic!("one API") };
    assert_eq!(sizes.count(), FREES_BEFORE_LIFETIMES + 3);
}

#[test]
fn call_paths_without_room_are_counted() {
    let of = |id| {
        (0..FREES_BEFORE_LIFETIMES)
            .flat_map(move |n| [alloc(n, MAIN, 0x10, 1, id), free(n, MAIN, 0x10)])
    };
    let moves = [1, 2].into_iter().flat_map(|id| {
        [alloc(99, MAIN, 0x10, 1, 1), retire(99, MAIN, 0x10), realloc(99, MAIN, 0x10, 2, id)]
    });
    let records: Vec<_> = start().into_iter().chain(of(1)).chain(of(2)).chain(moves).collect();
    let limits = Limits { histogram_sites: 1, reallocation_sites: 1, ..Limits::default() };

    let snapshot = snapshot_within(limits, &records);

    let expected = [
        ("address_reuses", 1),
        ("lifetime_sites_beyond_limit", 1),
        ("reallocations_beyond_limit", 1),
    ];
    assert_eq!(counters(&snapshot), expected);
}

#[test]
fn sizes_are_kept_by_api() {
    let snapshot = snapshot_after(&[
        alloc(1, MAIN, 0x10, 100, 1),
        alloc(2, MAIN, 0x20, 0, 1),
        retire(3, MAIN, 0x10),
        realloc(3, MAIN, 0x10, 5000, 2),
    ]);

    let sizes: Vec<_> =
        snapshot.statistics.sizes.iter().map(|(api, sizes)| (*api, filled(sizes))).collect();
    let expected =
        [(Api::Malloc, vec![(0, 1, 0), (64, 1, 100)]), (Api::Realloc, vec![(4096, 1, 5000)])];
    assert_eq!(sizes, expected);
}

#[test]
fn reallocations_tell_what_moved_and_what_grew() {
    let snapshot = snapshot_after(&[
        alloc(1, MAIN, 0x10, 100, 1),
        retire(2, MAIN, 0x10),
        realloc(2, MAIN, 0x10, 116, 2),
        retire(3, MAIN, 0x10),
        realloc(3, MAIN, 0x40, 132, 2),
        retire(4, MAIN, 0x40),
        realloc(4, MAIN, 0x80, 50, 2),
        // A failure, and a block that was not known.
        retire(5, MAIN, 0x80),
        restore(5, MAIN, 0x80),
        retire(6, MAIN, 0x500),
        realloc(6, MAIN, 0x600, 50, 2),
    ]);

    let [site] = &snapshot.statistics.reallocations[..] else { panic!("one call path") };
    let expected = Reallocations {
        calls: 3,
        moved: 2,
        copied_bytes: 116 + 50,
        grown: 2,
        growth_bytes: 32,
        grown_from_bytes: 216,
    };
    assert_eq!((site.api, site.reallocations), (Api::Realloc, expected));
}

fn probe(module: &str) -> Record {
    Record::Probe(Probe {
        symbol: "malloc".to_owned(),
        module: module.into(),
        offset: FileOffset(0),
        cost: ProbeCost::Emulated,
    })
}

fn sample(time: u64, pid: u32) -> Record {
    let heap = MemoryFigures {
        size_bytes: 132 << 10,
        resident_bytes: 8 << 10,
        swapped_bytes: 4 << 10,
        ..MemoryFigures::default()
    };
    let memory = Box::new(MemoryByKind { heap, ..MemoryByKind::default() });
    Record::MemoryDetail { time: Time(time), pid: Pid(pid), memory }
}

#[test]
fn sample_of_memory_is_compared_with_the_blocks_of_its_moment() {
    let snapshot = snapshot_after(&[
        probe("/lib/libc.so.6"),
        alloc(1, MAIN, 0x1010, 100, 1),
        alloc(2, MAIN, 0x2010, 1, 1),
        retire(3, MAIN, 0x2010),
        realloc(3, MAIN, 0x2010, 25, 2),
        alloc(4, MAIN, 0x3010, 8, 1),
        free(5, MAIN, 0x3010),
        sample(6, MAIN),
        alloc(7, MAIN, 0x4010, 1 << 20, 1),
    ]);

    let memory = snapshot.processes[0].memory.as_deref().expect("a sample");
    let HeldMemory { time, live_blocks, requested_bytes, usable_bytes, kinds: _ } = *memory;
    assert_eq!((time, live_blocks, requested_bytes), (Time(6), 2, 125));
    assert_eq!(usable_bytes, Some(104 + 40));
    assert_eq!((memory.filled_bytes(), memory.untouched_bytes()), (12 << 10, 120 << 10));
    assert_eq!(snapshot.statistics.allocator, Some(Allocator::Glibc));
}

#[test]
fn usable_size_is_unknown_without_a_known_allocator() {
    let snapshot = snapshot_after(&[alloc(1, MAIN, 0x10, 1, 1), sample(2, MAIN)]);

    let memory = snapshot.processes[0].memory.as_deref().expect("a sample");
    assert_eq!((memory.requested_bytes, memory.usable_bytes), (1, None));
}

#[test]
fn child_has_its_parents_usable_bytes_and_a_new_program_none() {
    let records = [
        probe("/lib/libc.so.6"),
        alloc(1, MAIN, 0x10, 100, 1),
        fork(2, MAIN, CHILD),
        sample(3, CHILD),
        exec(4, MAIN),
        sample(5, MAIN),
    ];

    let snapshot = snapshot_after(&records);

    let usable: Vec<_> = snapshot
        .processes
        .iter()
        .map(|process| process.memory.as_deref().and_then(|memory| memory.usable_bytes))
        .collect();
    assert_eq!(usable, [Some(0), Some(104)]);
}

fn aligned(mut alloc: Record, log2: u8) -> Record {
    if let Record::Alloc { alignment, .. } = &mut alloc {
        *alignment = Alignment::from_log2(log2).expect("in an address");
    }
    alloc
}

#[test]
fn aligned_blocks_of_a_call_path_are_told_by_alignment() {
    let snapshot = snapshot_after(&[
        probe("/lib/libjemalloc.so.2"),
        aligned(alloc(1, MAIN, 0x1000, 100, 1), 6),
        aligned(alloc(2, MAIN, 0x2000, 20, 1), 6),
        aligned(alloc(3, MAIN, 0x3000, 8, 1), 12),
        alloc(4, MAIN, 0x4000, 100, 1),
        sample(5, MAIN),
        free(6, MAIN, 0x1000),
        free(6, MAIN, 0x2000),
        free(6, MAIN, 0x3000),
        free(6, MAIN, 0x4000),
        sample(7, MAIN),
    ]);

    let aligned = &snapshot.statistics.aligned;
    let of: Vec<_> = aligned.iter().map(|site| (site.alignment.bytes(), site.blocks)).collect();
    let blocks = |allocations, requested_bytes, smaller_allocations, extra_bytes| AlignedBlocks {
        allocations,
        requested_bytes,
        smaller_allocations,
        extra_bytes: Some(extra_bytes),
    };
    // 100 and 20 bytes take 112 and 32 without and 128 and 64 with it; 8 take 8, and a page.
    assert_eq!(of, [(64, blocks(2, 120, 1, 16 + 32)), (4096, blocks(1, 8, 1, 4096 - 8))]);
    assert_eq!(snapshot.stacks.len(), 1, "one call path of one API is shown once");
    let usage = snapshot.stacks[0].usage;
    assert_eq!((usage.allocations, usage.allocated_bytes, usage.live_blocks), (4, 228, 0));
    let memory = snapshot.processes[0].memory.as_deref().expect("a sample");
    assert_eq!((memory.requested_bytes, memory.usable_bytes), (0, Some(0)));
}

#[test]
fn usable_bytes_of_aligned_blocks_are_those_of_their_alignment() {
    let snapshot = snapshot_after(&[
        probe("/lib/libjemalloc.so.2"),
        aligned(alloc(1, MAIN, 0x1000, 100, 1), 12),
        alloc(2, MAIN, 0x4000, 100, 1),
        sample(3, MAIN),
    ]);

    let memory = snapshot.processes[0].memory.as_deref().expect("a sample");
    assert_eq!(memory.usable_bytes, Some(4096 + 112));
}

#[test]
fn alignment_without_room_is_left_out_and_counted() {
    let limits = Limits { aligned_sites: 1, ..Limits::default() };
    let records =
        [aligned(alloc(1, MAIN, 0x1000, 100, 1), 6), aligned(alloc(2, MAIN, 0x2000, 100, 1), 7)];

    let snapshot = snapshot_within(limits, &[&start()[..], &records].concat());

    assert_eq!(counters(&snapshot), [("aligned_sites_beyond_limit", 1)]);
    assert_eq!(snapshot.statistics.aligned.len(), 1);
    assert_eq!(snapshot.stacks[0].usage.allocations, 2);
}

#[test]
fn aligned_blocks_of_a_stack_that_comes_later_are_shown_with_it() {
    let records = [
        process(MAIN),
        thread(MAIN, MAIN),
        aligned(alloc(1, MAIN, 0x1000, 100, 7), 6),
        stack(8, 0x11),
        alloc(2, MAIN, 0x2000, 50, 8),
        stack(7, 0x11),
    ];

    let snapshot = snapshot_of(&records);

    assert_eq!(snapshot.stacks.len(), 1);
    assert_eq!(snapshot.stacks[0].usage.allocations, 2);
    assert!(Arc::ptr_eq(&snapshot.statistics.aligned[0].stack, &snapshot.stacks[0].stack));
}

#[test]
fn usable_size_is_unknown_where_one_block_is_not_computed() {
    let custom = |record| match record {
        Record::Alloc { time, tid, api: _, ptr, size, alignment, stack } => {
            Record::Alloc { time, tid, api: Api::CustomAlloc, ptr, size, alignment, stack }
        }
        other => other,
    };
    let cases = [
        ("/lib/libc.so.6", custom(alloc(1, MAIN, 0x1000, 100, 1))),
        ("/lib/libmimalloc.so.2", aligned(alloc(1, MAIN, 0x1000, 100, 1), 6)),
    ];
    for (module, block) in cases {
        let snapshot = snapshot_after(&[probe(module), block, sample(2, MAIN)]);

        let memory = snapshot.processes[0].memory.as_deref().expect("a sample");
        assert_eq!(memory.usable_bytes, None, "{module}");
        assert_eq!(snapshot.statistics.allocator, None, "{module}");
    }
}

#[test]
fn sizes_of_a_call_path_are_told_apart_by_their_order_of_magnitude() {
    let sizes = [40, 48, 50, 100, 40, 0, 1 << 20, 33];
    let repeated = (0..10).flat_map(|_| sizes).zip(1..);
    let records: Vec<_> =
        repeated.map(|(size, n)| alloc(n, MAIN, n << 24, size, 1 + n % 2)).collect();

    let snapshot = snapshot_after(&records);

    let mut expected = Histogram::default();
    (0..10).flat_map(|_| sizes).for_each(|size| expected.add(size, size));
    let [(Api::Malloc, found)] = &snapshot.statistics.sizes[..] else { panic!("one API") };
    assert_eq!(*found, expected);
    assert!(snapshot.statistics.histograms_by_site.is_empty(), "40 allocations are few");
}

#[test]
fn sizes_of_call_paths_without_room_count_in_the_total() {
    let sizes = [40u64, 100, 5000, 41];
    let records: Vec<_> = (0..256)
        .map(|n| alloc(n, MAIN, (n + 1) << 24, sizes[n as usize / 2 % 4], 1 + n % 2))
        .collect();
    let limits = Limits { histogram_sites: 1, ..Limits::default() };

    let snapshot = snapshot_within(limits, &[&start()[..], &records].concat());

    let [(Api::Malloc, found)] = &snapshot.statistics.sizes[..] else { panic!("one API") };
    assert_eq!(filled(found), [(32, 128, 64 * 81), (64, 64, 6400), (4096, 64, 320_000)]);
    assert_eq!(counters(&snapshot), [("size_sites_beyond_limit", 1)]);
    let [of_site] = &snapshot.statistics.histograms_by_site[..] else { panic!("one has room") };
    let sizes = &of_site.histograms.sizes;
    assert_eq!(filled(sizes), [(32, 64, 32 * 81), (64, 32, 3200), (4096, 32, 160_000)]);
}
