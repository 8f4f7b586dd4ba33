//! What a process has released and not got again.

use super::*;

fn ranges(records: &[Record]) -> Vec<(u64, u64)> {
    let mut pipeline = Pipeline::new(Limits::default());
    pipeline.remember_freed();
    pipeline.apply_all(records);
    pipeline.freed_ranges(Pid(7)).iter().map(|range| (range.start.0, range.end.0)).collect()
}

#[test]
fn block_is_remembered_when_it_is_freed_and_forgotten_when_it_is_used_again() {
    let freed = [process(7), alloc(1, 7, 0x1000, 64, 1), free(2, 7, 0x1000)];
    let used = [freed.as_slice(), &[alloc(3, 7, 0x1000, 8, 1)]].concat();

    assert_eq!(ranges(&freed), [(0x1000, 0x1040)]);
    assert_eq!(ranges(&used), [(0x102a, 0x1040)]);
}

#[test]
fn block_that_realloc_moves_is_released_when_it_has_moved() {
    let under_way = [process(7), alloc(1, 7, 0x1000, 64, 1), retire(2, 7, 0x1000)];
    let mapped = [under_way.as_slice(), &[map(3, 7, 9, 200, MapKind::Anonymous, 1)]].concat();
    let moved = [mapped.as_slice(), &[realloc(4, 7, 0x9010, 800_000, 1)]].concat();
    let failed = [mapped.as_slice(), &[restore(4, 7, 0x1000)]].concat();

    assert_eq!(ranges(&under_way), []);
    assert_eq!(ranges(&moved), [(0x1000, 0x1040)]);
    assert_eq!(ranges(&failed), []);
}

#[test]
fn memory_that_is_unmapped_and_the_memory_of_an_old_program_are_forgotten() {
    let freed = [process(7), alloc(1, 7, 0x1000, 0x3000, 1), free(2, 7, 0x1000)];
    let unmapped = [freed.as_slice(), &[unmap(3, 7, 2, 1)]].concat();
    let replaced = [freed.as_slice(), &[exec(3, 7)]].concat();

    assert_eq!(ranges(&unmapped), [(0x1000, 0x2000), (0x3000, 0x4000)]);
    assert_eq!(ranges(&replaced), []);
}

#[test]
fn block_of_another_process_is_not_remembered() {
    let freed = [process(8), alloc(1, 8, 0x1000, 64, 1), free(2, 8, 0x1000)];

    assert_eq!(ranges(&freed), []);
}

#[test]
fn child_has_a_copy_and_what_another_process_uses_stays_remembered() {
    let freed = [process(7), alloc(1, 7, 0x1000, 64, 1), free(2, 7, 0x1000)];
    let forked = [freed.as_slice(), &[fork(3, 7, 8), alloc(4, 8, 0x1000, 64, 1)]].concat();
    let mut pipeline = Pipeline::new(Limits::default());
    pipeline.remember_freed();

    pipeline.apply_all(&forked);

    assert_eq!(pipeline.freed_ranges(Pid(7)).iter().count(), 1);
    assert_eq!(pipeline.freed_ranges(Pid(8)).iter().count(), 0);
    assert_eq!(ranges(&forked[..4]), [(0x1000, 0x1040)]);
    pipeline.apply(&free(5, 8, 0x1000));
    let of_child: Vec<_> = pipeline.freed_ranges(Pid(8)).iter().map(|range| range.start).collect();
    assert_eq!(of_child, [Avma(0x1000)]);
}
