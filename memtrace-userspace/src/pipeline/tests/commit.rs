//! `mprotect`: address space that becomes memory, and memory that becomes address space.

use super::*;
use crate::pipeline::snapshot::Scope;

const PAGE: u64 = 4096;

fn snapshot_after(records: &[Record]) -> Arc<Snapshot> {
    let start = [process(MAIN), thread(MAIN, MAIN), thread(MAIN, WORKER), stack(1, 1), stack(2, 2)];
    snapshot_of(&[&start, records].concat())
}

fn reserve(time: u64, start: u64, pages: u64) -> Record {
    map(time, MAIN, start, pages, MapKind::Reserved, 1)
}

/// [`usage`] with bytes in pages.
fn pages(allocations: u64, allocated: u64, frees: u64, freed: u64, peak: u64) -> Usage {
    usage(allocations, allocated * PAGE, frees, freed * PAGE, peak * PAGE)
}

#[test]
fn reservation_is_memory_where_it_was_made_accessible() {
    let snapshot = snapshot_after(&[reserve(1, 10, 100), commit(2, MAIN, 20, 3, 2)]);

    assert_eq!(usage_at(&snapshot, Api::Mprotect, 2), pages(1, 3, 0, 0, 3));
    assert_eq!(snapshot.totals.mapped, pages(1, 3, 0, 0, 3));
    assert_eq!(counters(&snapshot), []);
}

#[test]
fn memory_that_is_made_accessible_again_stays_whose_it_was() {
    let snapshot = snapshot_after(&[
        map(1, MAIN, 10, 4, MapKind::File, 1),
        reserve(2, 20, 4),
        commit(3, MAIN, 20, 4, 1),
        commit(4, MAIN, 10, 14, 2),
    ]);

    assert_eq!(usage_at(&snapshot, Api::Mmap, 1), pages(1, 4, 0, 0, 4));
    assert_eq!(usage_at(&snapshot, Api::Mprotect, 1), pages(1, 4, 0, 0, 4));
    assert_eq!(snapshot.totals.mapped, pages(2, 8, 0, 0, 8));
}

#[test]
fn one_call_is_one_allocation_however_many_gaps_it_fills() {
    let fill = [reserve(1, 10, 9), commit(2, MAIN, 12, 2, 1), commit(3, MAIN, 10, 9, 2)];
    let first = [decommit(4, MAIN, 10, 2)];
    let rest = [unmap(5, MAIN, 0, 100)];

    let filled = snapshot_after(&fill);
    let halfway = snapshot_after(&[&fill[..], &first].concat());
    let end = snapshot_after(&[&fill[..], &first, &rest].concat());

    assert_eq!(usage_at(&filled, Api::Mprotect, 2), pages(1, 7, 0, 0, 7));
    assert_eq!(usage_at(&halfway, Api::Mprotect, 2), pages(1, 7, 0, 2, 7));
    assert_eq!(usage_at(&end, Api::Mprotect, 2), pages(1, 7, 1, 7, 7));
    assert_eq!(counters(&end), []);
}

#[test]
fn inaccessible_memory_is_released_and_stays_reserved() {
    let snapshot = snapshot_after(&[
        map(1, MAIN, 10, 8, MapKind::Anonymous, 1),
        decommit(2, MAIN, 12, 4),
        decommit(3, MAIN, 12, 4),
        commit(4, WORKER, 13, 1, 2),
    ]);

    assert_eq!(usage_at(&snapshot, Api::Mmap, 1), pages(1, 8, 0, 4, 8));
    assert_eq!(usage_at(&snapshot, Api::Mprotect, 2), pages(1, 1, 0, 0, 0));
    assert_eq!(snapshot.totals.mapped, pages(2, 9, 0, 4, 8));
    assert_eq!(counters(&snapshot), []);
}

#[test]
fn memory_of_which_nothing_is_known_is_charged_to_nobody() {
    let snapshot = snapshot_after(&[commit(1, MAIN, 10, 4, 1), decommit(2, MAIN, 10, 4)]);

    assert_eq!(snapshot.totals.mapped, Usage::default());
    assert!(snapshot.stacks.is_empty());
}

#[test]
fn committed_memory_that_moves_leaves_its_reservation() {
    let snapshot = snapshot_after(&[
        reserve(1, 10, 8),
        commit(2, MAIN, 12, 2, 1),
        remap_start(3, MAIN, 12, 2),
        remap(4, MAIN, 50, 3, 2),
        commit(5, MAIN, 10, 8, 2),
    ]);

    assert_eq!(usage_at(&snapshot, Api::Mprotect, 1), pages(1, 2, 0, 0, 2));
    assert_eq!(usage_at(&snapshot, Api::Mremap, 2), pages(1, 1, 0, 0, 1));
    assert_eq!(usage_at(&snapshot, Api::Mprotect, 2), pages(1, 6, 0, 0, 6));
}

#[test]
fn child_commits_what_its_parent_reserved() {
    let snapshot = snapshot_after(&[
        reserve(1, 10, 8),
        commit(2, MAIN, 10, 2, 1),
        fork(3, MAIN, CHILD),
        thread(CHILD, CHILD),
        commit(4, CHILD, 10, 3, 2),
        decommit(5, CHILD, 10, 2),
    ]);

    assert_eq!(usage_at(&snapshot, Api::Mprotect, 1), pages(1, 2, 0, 0, 4));
    assert_eq!(usage_at(&snapshot, Api::Mprotect, 2), pages(1, 1, 0, 0, 1));
}

#[test]
fn address_space_from_before_the_attach_becomes_memory_and_is_no_heap_snapshot() {
    let held = Record::Held {
        born: Time(0),
        pid: Pid(MAIN),
        tid: Tid(MAIN),
        api: None,
        start: Avma(10 * PAGE),
        length: 8 * PAGE,
        alignment: Alignment::NONE,
        stack: WireStackId(0),
    };

    let snapshot = snapshot_after(&[held, commit(1, MAIN, 12, 2, 1)]);

    assert_eq!(snapshot.totals.mapped, pages(1, 2, 0, 0, 2));
    assert_eq!(snapshot.scope, Scope::Run);
}
