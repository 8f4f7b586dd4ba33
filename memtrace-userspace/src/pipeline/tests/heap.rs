//! `malloc`, `realloc` and `free`, when all goes well and when not.

use super::*;

/// What a trace of the main thread and one worker, with stacks 1 and 2, says of stack 1.
fn snapshot_after(records: &[Record]) -> Arc<Snapshot> {
    let start =
        [process(MAIN), thread(MAIN, MAIN), thread(MAIN, WORKER), stack(1, 0x11), stack(2, 0x22)];
    snapshot_of(&[&start, records].concat())
}

#[test]
fn leak_is_charged_to_its_stack_thread_and_process() {
    let snapshot = snapshot_after(&[
        alloc(1, MAIN, 0x10, 100, 1),
        alloc(2, WORKER, 0x20, 50, 2),
        free(3, MAIN, 0x20),
    ]);

    assert_eq!(snapshot.totals.heap, usage(2, 150, 1, 50, 150));
    assert_eq!((snapshot.totals.peak_live_bytes, snapshot.totals.peak_at), (150, Time(2)));
    assert_eq!(usage_at(&snapshot, Api::Malloc, 0x11), usage(1, 100, 0, 0, 100));
    assert_eq!(usage_at(&snapshot, Api::Malloc, 0x22), usage(1, 50, 1, 50, 50));
    let threads: Vec<_> = snapshot.threads.iter().map(|thread| (thread.tid, thread.heap)).collect();
    let expected = [(Tid(MAIN), usage(1, 100, 0, 0, 100)), (Tid(WORKER), usage(1, 50, 1, 50, 50))];
    assert_eq!(threads, expected);
    assert_eq!(snapshot.processes[0].heap, usage(2, 150, 1, 50, 150));
    assert_eq!((snapshot.events, counters(&snapshot)), (3, vec![]));
}

#[test]
fn peak_bytes_of_stacks_are_those_of_the_moment_of_the_peak() {
    let snapshot = snapshot_after(&[
        alloc(1, MAIN, 0x10, 100, 1),
        free(2, MAIN, 0x10),
        alloc(3, MAIN, 0x20, 90, 2),
        alloc(4, MAIN, 0x30, 20, 1),
        free(5, MAIN, 0x20),
        alloc(6, MAIN, 0x40, 60, 1),
    ]);

    assert_eq!((snapshot.totals.peak_live_bytes, snapshot.totals.peak_at), (110, Time(4)));
    assert_eq!(usage_at(&snapshot, Api::Malloc, 0x11).peak_bytes, 20);
    assert_eq!(usage_at(&snapshot, Api::Malloc, 0x22).peak_bytes, 90);
}

#[test]
fn free_of_unknown_pointer_is_counted() {
    let snapshot = snapshot_after(&[free(1, MAIN, 0x10)]);

    assert_eq!(snapshot.totals.heap, Usage::default());
    assert_eq!(counters(&snapshot), [("orphan_frees", 1)]);
}

#[test]
fn free_and_realloc_of_null_are_nothing() {
    let snapshot = snapshot_after(&[
        free(1, MAIN, 0),
        retire(2, MAIN, 0),
        restore(3, MAIN, 0),
        retire(4, MAIN, 0),
        realloc(5, MAIN, 0x10, 9, 1),
    ]);

    assert_eq!(snapshot.totals.heap, usage(1, 9, 0, 0, 9));
    assert_eq!(counters(&snapshot), []);
}

#[test]
fn restore_beyond_the_limit_stays_freed() {
    let limits = Limits { live_blocks: 1, ..Limits::default() };

    let snapshot = snapshot_within(
        limits,
        &[
            process(MAIN),
            thread(MAIN, WORKER),
            stack(1, 1),
            alloc(1, MAIN, 0x10, 100, 1),
            retire(2, MAIN, 0x10),
            alloc(3, WORKER, 0x20, 7, 1),
            restore(4, MAIN, 0x10),
        ],
    );

    assert_eq!(snapshot.totals.heap, usage(2, 107, 1, 100, 100));
    assert_eq!(
        counters(&snapshot),
        [("allocated_bytes_beyond_limit", 100), ("allocations_beyond_limit", 1)]
    );
}

#[test]
fn address_allocated_again_without_free_drops_the_old_block() {
    let snapshot = snapshot_after(&[alloc(1, MAIN, 0x10, 100, 1), alloc(2, MAIN, 0x10, 30, 2)]);

    assert_eq!(usage_at(&snapshot, Api::Malloc, 0x11), usage(1, 100, 1, 100, 100));
    assert_eq!(usage_at(&snapshot, Api::Malloc, 0x22), usage(1, 30, 0, 0, 0));
    assert_eq!(counters(&snapshot), [("address_reuses", 1)]);
}

#[test]
fn realloc_that_moves_frees_the_old_block_and_allocates_the_new() {
    let snapshot = snapshot_after(&[
        alloc(1, MAIN, 0x10, 100, 1),
        retire(2, MAIN, 0x10),
        realloc(3, MAIN, 0x20, 150, 2),
    ]);

    assert_eq!(usage_at(&snapshot, Api::Malloc, 0x11), usage(1, 100, 1, 100, 0));
    assert_eq!(usage_at(&snapshot, Api::Realloc, 0x22), usage(1, 150, 0, 0, 150));
    assert_eq!(snapshot.totals.peak_live_bytes, 150);
    assert_eq!(snapshot.totals.temporary_allocations, 0);
}

#[test]
fn realloc_that_fails_leaves_everything_as_it_was() {
    let before = [alloc(1, MAIN, 0x10, 100, 1)];
    let failed = [retire(2, MAIN, 0x10), restore(3, MAIN, 0x10)];

    let snapshot = snapshot_after(&[&before[..], &failed].concat());

    assert_eq!(snapshot.totals.heap, usage(1, 100, 0, 0, 100));
    assert_eq!(usage_at(&snapshot, Api::Malloc, 0x11), usage(1, 100, 0, 0, 100));
    assert_eq!(counters(&snapshot), []);
}

#[test]
fn realloc_to_nothing_is_a_free() {
    let snapshot = snapshot_after(&[
        alloc(1, MAIN, 0x10, 100, 1),
        retire(2, MAIN, 0x10),
        alloc(3, WORKER, 0x10, 7, 2),
    ]);

    assert_eq!(usage_at(&snapshot, Api::Malloc, 0x11), usage(1, 100, 1, 100, 100));
    assert_eq!(counters(&snapshot), []);
}

#[test]
fn realloc_of_unknown_block_that_fails_is_no_orphan_free() {
    let snapshot = snapshot_after(&[retire(2, MAIN, 0x10), restore(3, MAIN, 0x10)]);

    assert_eq!(counters(&snapshot), []);
}

#[test]
fn restore_is_orphan_without_a_retire_of_its_thread_just_before() {
    let snapshot = snapshot_after(&[
        alloc(1, MAIN, 0x10, 100, 1),
        restore(2, MAIN, 0x10),
        retire(3, MAIN, 0x10),
        restore(4, WORKER, 0x10),
        free(5, MAIN, 0x90),
        restore(6, MAIN, 0x10),
    ]);

    assert_eq!(snapshot.totals.heap, usage(1, 100, 1, 100, 100));
    assert_eq!(counters(&snapshot), [("orphan_frees", 1), ("orphan_restores", 3)]);
}

#[test]
fn restore_over_another_block_drops_that() {
    let snapshot = snapshot_after(&[
        alloc(1, MAIN, 0x10, 100, 1),
        retire(2, MAIN, 0x10),
        alloc(3, WORKER, 0x10, 7, 2),
        restore(4, MAIN, 0x10),
    ]);

    assert_eq!(usage_at(&snapshot, Api::Malloc, 0x11), usage(1, 100, 0, 0, 100));
    assert_eq!(usage_at(&snapshot, Api::Malloc, 0x22), usage(1, 7, 1, 7, 0));
    assert_eq!(counters(&snapshot), [("address_reuses", 1)]);
}

/// What is temporary of blocks that live for two allocations, one, and none.
fn temporary_within(between: usize) -> Vec<u64> {
    let limits = Limits { temporary_between: between, ..Limits::default() };
    let records = [
        alloc(1, MAIN, 0x10, 1, 1),
        alloc(2, MAIN, 0x20, 1, 2),
        alloc(3, MAIN, 0x30, 1, 3),
        alloc(4, WORKER, 0x40, 1, 3),
        free(5, MAIN, 0x10),
        free(6, MAIN, 0x20),
        free(7, MAIN, 0x30),
    ];
    let start = [
        process(MAIN),
        thread(MAIN, MAIN),
        thread(MAIN, WORKER),
        stack(1, 0x11),
        stack(2, 0x22),
        stack(3, 0x33),
    ];
    let snapshot = snapshot_within(limits, &[&start[..], &records].concat());
    let of = |frame| usage_at(&snapshot, Api::Malloc, frame).temporary_allocations;
    let temporary = vec![of(0x11), of(0x22), of(0x33)];
    assert_eq!(snapshot.totals.heap.temporary_allocations, temporary.iter().sum::<u64>());
    temporary
}

#[test]
fn block_is_temporary_if_few_enough_allocations_of_its_thread_lie_between() {
    assert_eq!(temporary_within(0), [0, 0, 1]);
    assert_eq!(temporary_within(1), [0, 1, 1]);
    assert_eq!(temporary_within(2), [1, 1, 1]);
}

#[test]
fn block_freed_by_another_thread_is_not_temporary() {
    let snapshot = snapshot_after(&[alloc(1, MAIN, 0x10, 1, 1), free(2, WORKER, 0x10)]);

    assert_eq!(snapshot.totals.temporary_allocations, 0);
}

#[test]
fn block_of_another_thread_at_the_newest_address_is_not_temporary() {
    let snapshot = snapshot_after(&[
        alloc(1, MAIN, 0x10, 1, 1),
        free(2, WORKER, 0x10),
        alloc(3, WORKER, 0x10, 1, 1),
        free(4, MAIN, 0x10),
    ]);

    assert_eq!(snapshot.totals.temporary_allocations, 0);
}

#[test]
fn allocation_at_null_or_by_a_releasing_api_is_left_out() {
    let mut wrong = alloc(2, MAIN, 0x10, 8, 1);
    if let Record::Alloc { api, .. } = &mut wrong {
        *api = Api::Mmap;
    }

    let snapshot = snapshot_after(&[alloc(1, MAIN, 0, 8, 1), wrong]);

    assert_eq!(snapshot.totals.heap, Usage::default());
    assert_eq!(counters(&snapshot), [("allocations_at_null", 1), ("allocations_by_wrong_api", 1)]);
}

#[test]
fn sizes_beyond_any_memory_wrap_and_do_not_stop_the_session() {
    let snapshot = snapshot_after(&[
        alloc(1, MAIN, 0x10, u64::MAX, 1),
        alloc(2, MAIN, 0x20, 2, 1),
        free(3, MAIN, 0x10),
    ]);

    assert_eq!((snapshot.totals.heap.live_blocks, snapshot.totals.heap.live_bytes), (1, 2));
}

#[test]
fn time_that_goes_back_stands_still() {
    let snapshot = snapshot_after(&[alloc(9, MAIN, 0x10, 4, 1), alloc(5, MAIN, 0x20, 4, 1)]);

    assert_eq!((snapshot.now, snapshot.totals.peak_at), (Time(9), Time(9)));
}
