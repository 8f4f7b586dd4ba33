//! `mmap`, `munmap`, `mremap` and `brk`, when all goes well and when not.

use super::*;

const PAGE: u64 = 4096;

fn snapshot_after(records: &[Record]) -> Arc<Snapshot> {
    let start = [process(MAIN), thread(MAIN, MAIN), thread(MAIN, WORKER), stack(1, 1), stack(2, 2)];
    snapshot_of(&[&start, records].concat())
}

fn anonymous(time: u64, start: u64, pages: u64, stack: u64) -> Record {
    map(time, MAIN, start, pages, MapKind::Anonymous, stack)
}

/// [`usage`] with bytes in pages.
fn pages(allocations: u64, allocated: u64, frees: u64, freed: u64, peak: u64) -> Usage {
    usage(allocations, allocated * PAGE, frees, freed * PAGE, peak * PAGE)
}

#[test]
fn mapping_cut_in_the_middle_is_one_mapping_until_its_last_page_goes() {
    let cut = [anonymous(1, 10, 10, 1), unmap(2, MAIN, 13, 4)];
    let rest = [unmap(3, MAIN, 0, 13), unmap(4, MAIN, 17, 100)];

    let halfway = snapshot_after(&cut);
    let end = snapshot_after(&[&cut[..], &rest].concat());

    assert_eq!(usage_at(&halfway, Api::Mmap, 1), pages(1, 10, 0, 4, 10));
    assert_eq!(usage_at(&end, Api::Mmap, 1), pages(1, 10, 1, 10, 10));
    assert_eq!(counters(&end), []);
}

#[test]
fn fixed_mapping_replaces_what_it_overlaps() {
    let snapshot =
        snapshot_after(&[anonymous(1, 10, 4, 1), anonymous(2, 20, 4, 1), anonymous(3, 12, 10, 2)]);

    assert_eq!(usage_at(&snapshot, Api::Mmap, 1), pages(2, 8, 0, 4, 4));
    assert_eq!(usage_at(&snapshot, Api::Mmap, 2), pages(1, 10, 0, 0, 10));
    assert_eq!(snapshot.totals.mapped, pages(3, 18, 0, 4, 14));
    assert_eq!(snapshot.totals.heap, Usage::default());
}

#[test]
fn mapping_of_5_gib_is_counted_in_full() {
    let snapshot = snapshot_after(&[anonymous(1, 0x7f0_0000, 5 << 18, 1)]);

    assert_eq!(snapshot.totals.mapped, usage(1, 5 << 30, 0, 0, 5 << 30));
}

#[test]
fn length_counts_in_whole_pages() {
    let snapshot = snapshot_after(&[Record::Map {
        time: Time(1),
        tid: Tid(MAIN),
        start: Avma(0x1000),
        length: 1,
        kind: MapKind::File,
        stack: WireStackId(1),
    }]);

    assert_eq!(snapshot.totals.mapped, pages(1, 1, 0, 0, 1));
}

#[test]
fn reserved_address_space_is_not_memory_even_when_it_grows() {
    let snapshot = snapshot_after(&[
        map(1, MAIN, 10, 4, MapKind::Reserved, 1),
        remap_start(2, MAIN, 10, 4),
        remap(3, MAIN, 50, 8, 2),
        anonymous(4, 52, 1, 1),
    ]);

    assert_eq!(snapshot.totals.mapped, pages(1, 1, 0, 0, 1));
    assert_eq!(counters(&snapshot), []);
}

#[test]
fn munmap_that_fails_leaves_everything_as_it_was() {
    let snapshot =
        snapshot_after(&[anonymous(1, 10, 4, 1), unmap(2, MAIN, 0, 20), unmap_failed(3, MAIN)]);

    assert_eq!(snapshot.totals.mapped, pages(1, 4, 0, 0, 4));
    assert_eq!(counters(&snapshot), []);
}

#[test]
fn munmap_that_fails_does_not_come_back_over_newer_mappings() {
    let snapshot = snapshot_after(&[
        anonymous(1, 10, 4, 1),
        unmap(2, MAIN, 10, 4),
        map(3, WORKER, 11, 1, MapKind::Anonymous, 2),
        unmap_failed(4, MAIN),
    ]);

    assert_eq!(usage_at(&snapshot, Api::Mmap, 1), pages(1, 4, 0, 1, 4));
    assert_eq!(usage_at(&snapshot, Api::Mmap, 2), pages(1, 1, 0, 0, 0));
}

#[test]
fn munmap_failure_is_orphan_when_its_thread_has_gone_on() {
    let snapshot = snapshot_after(&[
        anonymous(1, 10, 4, 1),
        unmap(2, MAIN, 10, 4),
        anonymous(3, 20, 1, 2),
        unmap_failed(4, MAIN),
        unmap_failed(5, WORKER),
    ]);

    assert_eq!(usage_at(&snapshot, Api::Mmap, 1), pages(1, 4, 1, 4, 4));
    assert_eq!(counters(&snapshot), [("orphan_unmap_failures", 2)]);
}

#[test]
fn munmap_of_unknown_memory_is_counted_unless_it_fails() {
    let snapshot =
        snapshot_after(&[unmap(1, MAIN, 5, 1), unmap(2, MAIN, 5, 1), unmap_failed(3, MAIN)]);

    assert_eq!(counters(&snapshot), [("orphan_unmaps", 1)]);
}

#[test]
fn mremap_that_moves_and_grows_charges_the_growth_to_its_caller() {
    let snapshot = snapshot_after(&[
        anonymous(1, 10, 4, 1),
        remap_start(2, MAIN, 10, 4),
        remap(3, MAIN, 50, 6, 2),
        unmap(4, MAIN, 53, 2),
    ]);

    assert_eq!(usage_at(&snapshot, Api::Mmap, 1), pages(1, 4, 0, 1, 4));
    assert_eq!(usage_at(&snapshot, Api::Mremap, 2), pages(1, 2, 0, 1, 2));
    assert_eq!(counters(&snapshot), []);
}

#[test]
fn mremap_that_shrinks_frees_the_tail() {
    let snapshot = snapshot_after(&[
        anonymous(1, 10, 2, 1),
        anonymous(2, 12, 2, 2),
        remap_start(3, MAIN, 10, 4),
        remap(4, MAIN, 10, 1, 2),
    ]);

    assert_eq!(usage_at(&snapshot, Api::Mmap, 1), pages(1, 2, 0, 1, 2));
    assert_eq!(usage_at(&snapshot, Api::Mmap, 2), pages(1, 2, 1, 2, 2));
}

#[test]
fn mremap_that_fails_leaves_everything_as_it_was() {
    let snapshot = snapshot_after(&[
        anonymous(1, 10, 4, 1),
        remap_start(2, MAIN, 11, 2),
        unmap_failed(3, MAIN),
    ]);

    assert_eq!(snapshot.totals.mapped, pages(1, 4, 0, 0, 4));
}

#[test]
fn mremap_onto_another_mapping_replaces_it() {
    let snapshot = snapshot_after(&[
        anonymous(1, 10, 2, 1),
        anonymous(2, 20, 2, 2),
        remap_start(3, MAIN, 10, 2),
        remap(4, MAIN, 20, 2, 2),
    ]);

    assert_eq!(usage_at(&snapshot, Api::Mmap, 1), pages(1, 2, 0, 0, 2));
    assert_eq!(usage_at(&snapshot, Api::Mmap, 2), pages(1, 2, 1, 2, 2));
}

#[test]
fn mremap_without_its_start_is_charged_to_its_caller_and_counted() {
    let snapshot = snapshot_after(&[remap(1, MAIN, 20, 2, 2)]);

    assert_eq!(usage_at(&snapshot, Api::Mremap, 2), pages(1, 2, 0, 0, 2));
    assert_eq!(counters(&snapshot), [("orphan_remaps", 1)]);
}

#[test]
fn mremap_of_memory_older_than_the_attach_charges_only_the_growth() {
    let snapshot = snapshot_after(&[remap_start(1, MAIN, 10, 4), remap(2, MAIN, 50, 5, 2)]);

    assert_eq!(usage_at(&snapshot, Api::Mremap, 2), pages(1, 1, 0, 0, 1));
    assert_eq!(counters(&snapshot), [("orphan_unmaps", 1)]);
}

#[test]
fn break_is_charged_by_the_pages_it_gains_and_loses() {
    let snapshot = snapshot_after(&[
        move_break(1, MAIN, 0, 0x10_0800, 1),
        move_break(2, MAIN, 0x10_0800, 0x10_0900, 1),
        move_break(3, MAIN, 0x10_0900, 0x10_3001, 1),
        move_break(4, MAIN, 0x10_3001, 0x10_5000, 2),
        move_break(5, MAIN, 0x10_5000, 0x10_3800, 2),
    ]);

    assert_eq!(usage_at(&snapshot, Api::Brk, 1), pages(1, 3, 0, 0, 3));
    assert_eq!(usage_at(&snapshot, Api::Brk, 2), pages(1, 1, 1, 1, 1));
    assert_eq!(counters(&snapshot), []);
}

#[test]
fn range_beyond_the_address_space_is_cut() {
    let snapshot = snapshot_after(&[
        anonymous(1, 10, 2, 1),
        Record::Unmap {
            time: Time(2),
            tid: Tid(MAIN),
            start: Avma(u64::MAX - 5),
            length: u64::MAX,
        },
        Record::Unmap { time: Time(3), tid: Tid(MAIN), start: Avma(1), length: u64::MAX },
    ]);

    assert_eq!(snapshot.totals.mapped, pages(1, 2, 1, 2, 2));
}

#[test]
fn file_and_shared_mappings_count_as_mapped() {
    let snapshot = snapshot_after(&[
        map(1, MAIN, 10, 1, MapKind::File, 1),
        map(2, MAIN, 20, 2, MapKind::Shared, 1),
    ]);

    assert_eq!(snapshot.totals.mapped, pages(2, 3, 0, 0, 3));
}
