//! Processes and threads that come, change and go.

use super::*;

/// A parent with one block of 100 bytes from stack 1 and a mapping of two pages from stack 2.
fn parent() -> Vec<Record> {
    vec![
        process(MAIN),
        thread(MAIN, MAIN),
        stack(1, 1),
        stack(2, 2),
        alloc(1, MAIN, 0x10, 100, 1),
        map(2, MAIN, 10, 2, MapKind::Anonymous, 2),
    ]
}

fn snapshot_after(records: &[Record]) -> Arc<Snapshot> {
    snapshot_of(&[parent(), records.to_vec()].concat())
}

#[test]
fn child_holds_copies_that_nobody_allocated() {
    let snapshot = snapshot_after(&[fork(3, MAIN, CHILD)]);

    let copied = Usage {
        live_blocks: 2,
        live_bytes: 200,
        inherited_blocks: 1,
        inherited_bytes: 100,
        ..usage(1, 100, 0, 0, 200)
    };
    let child = Usage {
        live_blocks: 1,
        live_bytes: 100,
        inherited_blocks: 1,
        inherited_bytes: 100,
        ..usage(0, 0, 0, 0, 100)
    };
    assert_eq!(snapshot.totals.heap, copied);
    assert_eq!(snapshot.totals.peak_live_bytes, 200);
    assert_eq!(usage_at(&snapshot, Api::Malloc, 1), copied);
    assert_eq!(snapshot.threads[0].heap, copied);
    assert_eq!(snapshot.processes[0].heap, usage(1, 100, 0, 0, 100));
    assert_eq!(snapshot.processes[1].heap, child);
    assert_eq!(snapshot.processes[1].parent, Some(Pid(MAIN)));
    assert_eq!(snapshot.processes[1].mapped.inherited_bytes, 8192);
    assert_eq!(snapshot.totals.mapped.peak_bytes, 16384);
}

#[test]
fn child_that_releases_its_copies_takes_nothing_from_the_parent() {
    let snapshot = snapshot_after(&[
        fork(3, MAIN, CHILD),
        free(4, CHILD, 0x10),
        unmap(5, CHILD, 10, 1),
        free(6, MAIN, 0x10),
    ]);

    let temporary = Usage { temporary_allocations: 1, ..usage(1, 100, 1, 100, 100) };
    assert_eq!(snapshot.processes[0].heap, temporary);
    let expected = Usage { peak_bytes: 100, ..Usage::default() };
    assert_eq!(snapshot.processes[1].heap, expected);
    assert_eq!(snapshot.processes[0].mapped.live_bytes, 8192);
    assert_eq!(snapshot.processes[1].mapped.live_bytes, 4096);
    assert_eq!(counters(&snapshot), []);
}

#[test]
fn copies_are_gone_when_the_child_ends() {
    let snapshot = snapshot_after(&[fork(3, MAIN, CHILD), exec(4, CHILD), exit(5, CHILD)]);

    assert_eq!(snapshot.totals.heap, usage(1, 100, 0, 0, 200));
    assert_eq!(snapshot.totals.mapped, usage(1, 8192, 0, 0, 16384));
    assert_eq!(snapshot.processes[1].ended, Some(Time(5)));
}

#[test]
fn unmap_under_way_does_not_reach_into_memory_that_a_fork_replaced() {
    let begun = [
        process(CHILD),
        thread(CHILD, CHILD),
        map(3, CHILD, 50, 2, MapKind::Anonymous, 2),
        map(3, CHILD, 60, 2, MapKind::Anonymous, 2),
        unmap(4, CHILD, 60, 2),
        unmap(4, CHILD, 50, 2),
    ];
    let mut failed = begun.to_vec();
    failed.extend([exit(5, MAIN), process(MAIN), fork(6, MAIN, CHILD), unmap_failed(7, CHILD)]);

    let snapshot = snapshot_after(&failed);

    assert_eq!(snapshot.processes[1].mapped.live_bytes, 0);
}

#[test]
fn failed_realloc_and_munmap_of_copies_leave_everything_as_it_was() {
    let before = snapshot_after(&[fork(3, MAIN, CHILD)]);
    let after = snapshot_after(&[
        fork(3, MAIN, CHILD),
        retire(4, CHILD, 0x10),
        restore(5, CHILD, 0x10),
        unmap(6, CHILD, 0, 100),
        unmap_failed(7, CHILD),
    ]);

    assert_eq!(after.totals, before.totals);
}

#[test]
fn blocks_held_at_the_end_stay_live_but_make_no_peak() {
    let snapshot = snapshot_after(&[
        exit(3, MAIN),
        process(CHILD),
        alloc(4, CHILD, 0x10, 60, 1),
        alloc(5, CHILD, 0x20, 50, 1),
    ]);

    assert_eq!(snapshot.totals.heap, usage(3, 210, 0, 0, 110));
    assert_eq!((snapshot.totals.peak_live_bytes, snapshot.totals.peak_at), (110, Time(5)));
    assert_eq!(snapshot.processes[0].heap, usage(1, 100, 0, 0, 0));
    assert_eq!(snapshot.processes[1].heap, usage(2, 110, 0, 0, 110));
    let last = snapshot.timeline[snapshot.timeline.len() - 1];
    assert_eq!((last.live_bytes, last.mapped_bytes), (110, 0));
}

#[test]
fn exec_starts_with_empty_memory() {
    let snapshot = snapshot_after(&[
        exec(3, MAIN),
        free(4, MAIN, 0x10),
        unmap(5, MAIN, 10, 2),
        alloc(6, MAIN, 0x10, 7, 1),
    ]);

    assert_eq!(snapshot.totals.heap, usage(2, 107, 0, 0, 100));
    assert_eq!(snapshot.processes[0].exe, b"/bin/other");
    assert_eq!(snapshot.processes[0].ended, None);
    assert_eq!(counters(&snapshot), [("orphan_frees", 1), ("orphan_unmaps", 1)]);
}

#[test]
fn exec_ends_all_threads_but_the_main_one() {
    let snapshot = snapshot_after(&[
        thread(MAIN, WORKER),
        process(CHILD),
        exec(3, MAIN),
        alloc(4, WORKER, 0x10, 7, 1),
        alloc(5, MAIN, 0x20, 7, 1),
    ]);

    assert_eq!(counters(&snapshot), [("events_of_unknown_threads", 1)]);
    assert_eq!(snapshot.threads.len(), 2);
}

#[test]
fn what_a_call_took_before_exec_does_not_come_back() {
    let snapshot = snapshot_after(&[
        retire(3, MAIN, 0x10),
        unmap(4, MAIN, 10, 2),
        exec(5, MAIN),
        restore(6, MAIN, 0x10),
        unmap_failed(7, MAIN),
    ]);

    assert_eq!(snapshot.totals.heap, usage(1, 100, 1, 100, 100));
    assert_eq!(counters(&snapshot), [("orphan_restores", 1), ("orphan_unmap_failures", 1)]);
}

#[test]
fn thread_id_used_again_is_another_thread() {
    let named = |pid, tid, name: &[u8]| Record::Thread {
        time: Time(3),
        pid: Pid(pid),
        tid: Tid(tid),
        name: name.to_vec(),
    };

    let snapshot = snapshot_after(&[
        named(MAIN, WORKER, b"first"),
        alloc(4, WORKER, 0x20, 8, 1),
        Record::ThreadExit { time: Time(5), tid: Tid(WORKER) },
        named(MAIN, WORKER, b"second"),
        alloc(6, WORKER, 0x30, 9, 1),
        named(MAIN, WORKER, b"renamed"),
    ]);

    let threads: Vec<_> = snapshot
        .threads
        .iter()
        .skip(1)
        .map(|thread| (thread.name.as_slice(), thread.heap.allocated_bytes))
        .collect();
    assert_eq!(threads, [(&b"first"[..], 8), (&b"renamed"[..], 9)]);
}

#[test]
fn thread_id_in_another_process_means_that_its_exit_was_lost() {
    let snapshot = snapshot_after(&[
        thread(MAIN, WORKER),
        process(CHILD),
        thread(CHILD, WORKER),
        alloc(4, WORKER, 0x20, 8, 1),
    ]);

    assert_eq!(snapshot.processes[1].heap, usage(1, 8, 0, 0, 8));
    assert_eq!(counters(&snapshot), [("missed_thread_exits", 1)]);
}

#[test]
fn process_id_used_again_is_another_process() {
    let snapshot =
        snapshot_after(&[exit(3, MAIN), process(MAIN), free(4, MAIN, 0x10), exit(5, MAIN)]);

    let ended: Vec<_> = snapshot.processes.iter().map(|p| (p.pid, p.ended)).collect();
    assert_eq!(ended, [(Pid(MAIN), Some(Time(3))), (Pid(MAIN), Some(Time(5)))]);
    assert_eq!(counters(&snapshot), [("orphan_frees", 1)]);
}

#[test]
fn fork_of_a_child_that_still_runs_means_that_its_exit_was_lost() {
    let snapshot = snapshot_after(&[fork(3, MAIN, CHILD), fork(4, MAIN, CHILD)]);

    assert_eq!(snapshot.processes[1].ended, Some(Time(4)));
    assert_eq!(snapshot.processes[2].heap.inherited_bytes, 100);
    assert_eq!(counters(&snapshot), [("missed_process_exits", 1)]);
}

#[test]
fn records_of_a_child_may_overtake_its_fork() {
    let snapshot = snapshot_after(&[process(CHILD), thread(CHILD, CHILD), fork(3, MAIN, CHILD)]);

    assert_eq!(snapshot.processes.len(), 2);
    assert_eq!(snapshot.processes[1].heap.inherited_bytes, 100);
    assert_eq!(counters(&snapshot), []);
}

#[test]
fn fork_of_an_unknown_parent_is_counted() {
    let snapshot = snapshot_of(&[fork(1, MAIN, CHILD), alloc(2, CHILD, 0x10, 8, 0)]);

    assert_eq!(snapshot.processes[0].heap, usage(1, 8, 0, 0, 8));
    assert_eq!(
        counters(&snapshot),
        [("allocations_with_stack_ended_no_scratch", 1), ("orphan_forks", 1),]
    );
}

#[test]
fn unknown_thread_belongs_to_the_only_process() {
    let snapshot = snapshot_after(&[alloc(3, WORKER, 0x20, 8, 1)]);

    assert_eq!(snapshot.processes[0].heap.allocations, 2);
    assert_eq!(counters(&snapshot), [("threads_without_start", 1)]);
}

#[test]
fn unknown_thread_among_several_processes_is_left_out() {
    let snapshot = snapshot_after(&[process(CHILD), alloc(3, WORKER, 0x20, 8, 1)]);

    assert_eq!(snapshot.totals.heap.allocations, 1);
    assert_eq!(counters(&snapshot), [("events_of_unknown_threads", 1)]);
}

#[test]
fn events_before_any_process_belong_to_the_one_of_the_session() {
    let snapshot = snapshot_of(&[session(MAIN), stack(1, 1), alloc(1, WORKER, 0x20, 8, 1)]);

    assert_eq!(snapshot.processes[0].pid, Pid(MAIN));
    assert_eq!(snapshot.processes[0].heap, usage(1, 8, 0, 0, 8));
}

#[test]
fn resident_memory_is_that_of_the_running_processes() {
    let resident =
        |time, pid, rss_bytes| Record::Resident { time: Time(time), pid: Pid(pid), rss_bytes };

    let snapshot = snapshot_after(&[
        process(CHILD),
        resident(3, MAIN, 1000),
        resident(4, CHILD, 50),
        resident(5, CHILD, 70),
        exit(6, MAIN),
        resident(7, MAIN, 9999),
    ]);

    assert_eq!(snapshot.timeline[0].resident_bytes, 70);
    assert_eq!(snapshot.totals.peak_resident_bytes, 1070);
    assert_eq!(snapshot.processes[0].resident_bytes, Some(1000));
    assert_eq!(snapshot.processes[1].resident_bytes, Some(70));
}
