//! Every store at its cap: what is left out, and that it is counted.

use super::*;
use crate::record::{Probe, ProbeCost};

fn start() -> Vec<Record> {
    vec![process(MAIN), thread(MAIN, MAIN), stack(1, 1)]
}

fn snapshot_at(limits: Limits, records: &[Record]) -> Arc<Snapshot> {
    snapshot_within(limits, &[start(), records.to_vec()].concat())
}

#[test]
fn allocation_beyond_the_live_blocks_is_left_out_with_its_bytes() {
    let limits = Limits { live_blocks: 1, ..Limits::default() };

    let snapshot = snapshot_at(
        limits,
        &[
            alloc(1, MAIN, 0x10, 100, 1),
            alloc(2, MAIN, 0x20, 30, 1),
            free(3, MAIN, 0x20),
            alloc(4, MAIN, 0x10, 7, 1),
            free(5, MAIN, 0x10),
            alloc(6, MAIN, 0x30, 9, 1),
        ],
    );

    let expected = Usage { temporary_allocations: 1, ..usage(3, 116, 2, 107, 100) };
    assert_eq!(snapshot.totals.heap, expected);
    assert_eq!(
        counters(&snapshot),
        [
            ("address_reuses", 1),
            ("allocated_bytes_beyond_limit", 30),
            ("allocations_beyond_limit", 1),
            ("orphan_frees", 1),
        ]
    );
}

#[test]
fn child_beyond_the_live_blocks_inherits_none() {
    let limits = Limits { live_blocks: 3, ..Limits::default() };

    let snapshot = snapshot_at(
        limits,
        &[alloc(1, MAIN, 0x10, 1, 1), alloc(2, MAIN, 0x20, 1, 1), fork(3, MAIN, CHILD)],
    );

    assert_eq!(snapshot.totals.heap, usage(2, 2, 0, 0, 2));
    assert_eq!(counters(&snapshot), [("inherited_blocks_beyond_limit", 2)]);
}

#[test]
fn stack_beyond_the_stacks_has_no_frames() {
    // Two are taken by the stacks without frames.
    let limits = Limits { stacks: 3, ..Limits::default() };

    let snapshot = snapshot_at(
        limits,
        &[
            stack(2, 2),
            alloc(1, MAIN, 0x10, 1, 1),
            alloc(2, MAIN, 0x20, 2, 2),
            alloc(3, MAIN, 0x30, 4, 3),
        ],
    );

    assert_eq!(usage_at(&snapshot, Api::Malloc, 1), usage(1, 1, 0, 0, 1));
    assert_eq!(snapshot.stacks[1].stack.end, End::Missing);
    assert_eq!(snapshot.stacks[1].usage, usage(2, 6, 0, 0, 6));
    assert_eq!(
        counters(&snapshot),
        [("allocations_with_stack_ended_missing", 2), ("stacks_beyond_limit", 2)]
    );
}

#[test]
fn stack_beyond_the_frames_has_no_frames_even_if_it_was_awaited() {
    let limits = Limits { stack_frames: 1, ..Limits::default() };

    let snapshot = snapshot_at(limits, &[alloc(1, MAIN, 0x10, 1, 2), stack(2, 2)]);

    assert_eq!(snapshot.stacks[0].stack.end, End::Missing);
    assert_eq!(
        counters(&snapshot),
        [
            ("allocations_with_stack_ended_missing", 1),
            ("stacks_beyond_limit", 1),
            ("unknown_stacks", 1),
        ]
    );
}

#[test]
fn stack_ids_that_are_in_use_are_not_forgotten() {
    let limits = Limits { stack_ids: 4, ..Limits::default() };
    let others = (2..100).flat_map(|id| [stack(id, id), alloc(id, MAIN, 0x20, 1, 1)]);

    let snapshot =
        snapshot_at(limits, &others.chain([alloc(100, MAIN, 0x30, 1, 2)]).collect::<Vec<_>>());

    assert_eq!(usage_at(&snapshot, Api::Malloc, 1).allocations, 98);
    let counters = counters(&snapshot);
    assert!(counters.contains(&("unknown_stacks", 1)), "{counters:?}");
    assert!(counters.iter().any(|(name, _)| *name == "stack_ids_forgotten"), "{counters:?}");
}

#[test]
fn mapping_beyond_the_pieces_is_left_out() {
    let limits = Limits { mappings: 2, ..Limits::default() };

    let snapshot = snapshot_at(
        limits,
        &[
            map(1, MAIN, 10, 9, MapKind::Anonymous, 1),
            unmap(2, MAIN, 14, 1),
            map(3, MAIN, 30, 1, MapKind::Anonymous, 1),
            unmap(4, MAIN, 11, 1),
        ],
    );

    // The last cut loses what lies behind it: 11, 12 and 13.
    assert_eq!(snapshot.totals.mapped, usage(1, 9 * 4096, 0, 4 * 4096, 9 * 4096));
    assert_eq!(counters(&snapshot), [("mappings_beyond_limit", 2)]);
}

#[test]
fn child_beyond_the_pieces_inherits_none() {
    let limits = Limits { mappings: 1, ..Limits::default() };

    let snapshot =
        snapshot_at(limits, &[map(1, MAIN, 10, 9, MapKind::Anonymous, 1), fork(2, MAIN, CHILD)]);

    assert_eq!(snapshot.processes[1].mapped, Usage::default());
    assert_eq!(counters(&snapshot), [("mappings_beyond_limit", 1)]);
}

#[test]
fn processes_beyond_the_list_share_an_entry() {
    let limits = Limits { processes: 1, ..Limits::default() };

    let snapshot = snapshot_at(
        limits,
        &[
            process(CHILD),
            alloc(1, CHILD, 0x10, 1, 1),
            exit(2, CHILD),
            process(300),
            alloc(3, 300, 0x10, 2, 1),
        ],
    );

    let processes: Vec<_> =
        snapshot.processes.iter().map(|p| (p.pid, p.exe.len(), p.ended, p.heap)).collect();
    let expected =
        [(Pid(MAIN), 12, None, Usage::default()), (Pid(0), 0, None, usage(2, 3, 0, 0, 2))];
    assert_eq!(processes, expected);
    assert_eq!(counters(&snapshot), [("processes_beyond_limit", 2)]);
}

#[test]
fn process_beyond_the_running_ones_is_left_out() {
    let limits = Limits { running_processes: 1, ..Limits::default() };

    let snapshot = snapshot_at(limits, &[process(CHILD), thread(CHILD, CHILD)]);

    assert_eq!(snapshot.processes.len(), 1);
    assert_eq!(counters(&snapshot), [("records_of_unknown_processes", 2)]);
}

#[test]
fn threads_beyond_the_list_share_an_entry() {
    let limits = Limits { threads: 1, ..Limits::default() };

    let snapshot = snapshot_at(
        limits,
        &[
            thread(MAIN, 101),
            thread(MAIN, 102),
            alloc(1, 101, 0x10, 1, 1),
            alloc(2, 102, 0x20, 2, 1),
        ],
    );

    let threads: Vec<_> = snapshot.threads.iter().map(|thread| (thread.tid, thread.heap)).collect();
    let expected = [(Tid(0), usage(2, 3, 0, 0, 3)), (Tid(MAIN), Usage::default())];
    assert_eq!(threads, expected);
    assert_eq!(counters(&snapshot), [("threads_beyond_limit", 2)]);
}

#[test]
fn thread_beyond_the_running_ones_is_unknown() {
    let limits = Limits { running_threads: 1, ..Limits::default() };

    let snapshot = snapshot_at(
        limits,
        &[thread(MAIN, WORKER), alloc(1, WORKER, 0x10, 1, 1), alloc(2, WORKER, 0x20, 1, 1)],
    );

    assert_eq!(snapshot.threads.len(), 1);
    assert_eq!(
        counters(&snapshot),
        [("events_of_unknown_threads", 2), ("threads_beyond_limit", 1)]
    );
}

#[test]
fn modules_and_images_beyond_their_limits_are_unknown_code() {
    let limits = Limits { modules: 3, images: 1, ..Limits::default() };

    let snapshot = snapshot_at(
        limits,
        &[
            module(MAIN, 0x1000, 0x2000, "/lib/a.so"),
            module(MAIN, 0x2000, 0x3000, "/lib/b.so"),
            module(MAIN, 0x3000, 0x4000, "/lib/a.so"),
            module(MAIN, 0x4000, 0x5000, "/lib/a.so"),
        ],
    );

    assert_eq!(snapshot.images.len(), 1);
    assert_eq!(counters(&snapshot), [("modules_beyond_limit", 2)]);
}

#[test]
fn texts_counters_and_probes_beyond_their_limits_are_cut() {
    let limits = Limits { text_bytes: 12, counters: 1, probes: 0, ..Limits::default() };
    let probe = Record::Probe(Probe {
        symbol: "malloc".to_owned(),
        module: vec![],
        offset: FileOffset(0),
        cost: ProbeCost::Emulated,
    });
    let command = vec![b"12345".to_vec(), b"12345".to_vec(), b"6".to_vec()];
    let exec = Record::Exec { time: Time(1), pid: Pid(MAIN), exe: vec![b'x'; 13], command };

    let snapshot = snapshot_at(
        limits,
        &[
            probe,
            exec,
            Record::Counters(vec![("lost".to_owned(), 2), ("other".to_owned(), 1)]),
            Record::Counters(vec![("lost".to_owned(), 3)]),
        ],
    );

    assert_eq!(snapshot.processes[0].exe, [b'x'; 12]);
    assert_eq!(snapshot.processes[0].command, [&b"12345"[..], b"12345", b""]);
    assert_eq!(
        counters(&snapshot),
        [("counters_beyond_limit", 1), ("lost", 3), ("probes_beyond_limit", 1), ("texts_cut", 2)]
    );
}

#[test]
fn timeline_beyond_its_points_gets_coarser() {
    let limits = Limits { timeline_points: 4, ..Limits::default() };
    let allocations = (0..100).map(|i| alloc(i * 1_000_000, MAIN, 0x10 + i, 1, 1));

    let snapshot = snapshot_at(limits, &allocations.collect::<Vec<_>>());

    let points: Vec<_> = snapshot
        .timeline
        .iter()
        .map(|point| (point.time.0 / 1_000_000, point.live_bytes, point.allocations))
        .collect();
    assert_eq!(points, [(32, 32, 32), (64, 64, 32), (96, 96, 32), (99, 100, 4)]);
}
