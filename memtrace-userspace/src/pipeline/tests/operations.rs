//! What belongs to an operation, and when it makes a spike of its own.

use std::collections::BTreeMap;

use super::*;
use crate::pipeline::findings::{Severity, Spike};
use crate::pipeline::snapshot::{Memory, OperationUsage};

const SECOND: u64 = 1_000_000_000;
const MB: u64 = 1_000_000;

/// `"a"` at 0x1000: `select` from 0x1100 on, `upload` from 0x1200 on, 0x100 bytes each.
fn start() -> Vec<Record> {
    let code = |start: u64, class: &str| Record::Operation {
        pid: Pid(MAIN),
        start: Avma(start),
        length: 0x100,
        class: class.into(),
    };
    vec![
        session(MAIN),
        process(MAIN),
        thread(MAIN, MAIN),
        thread(MAIN, WORKER),
        module(MAIN, 0x1000, 0x2000, "a"),
        code(0x1100, "select"),
        code(0x1200, "upload"),
        path(1, &[0x1010, 0x1110, 0x1210]),
        path(2, &[0x1010, 0x12ff]),
        path(3, &[0x1010, 0x1300]),
    ]
}

fn path(id: u64, frames: &[u64]) -> Record {
    let frames = frames.iter().map(|frame| Avma(*frame)).collect();
    Record::Stack { id: WireStackId(id), pid: Pid(MAIN), end: End::Root, frames }
}

/// Blocks of a megabyte, one each 100 µs.
fn rise(records: &mut Vec<Record>, start: u64, blocks: u64, stack: u64) {
    let block = |n: u64| alloc(start + n * 100_000, WORKER, (stack * 1000 + n) * 2 * MB, MB, stack);
    records.extend((0..blocks).map(block));
}

fn snapshot_at(mut records: Vec<Record>, end: u64) -> Arc<Snapshot> {
    records.push(Record::Tick { time: Time(end) });
    snapshot_of(&records)
}

/// Name, allocations, live bytes.
fn heap(snapshot: &Snapshot) -> Vec<(&str, u64, u64)> {
    let row = |o: &'_ OperationUsage| (o.heap.allocations, o.heap.live_bytes);
    let all = snapshot.operations.iter();
    all.map(|o| (&*o.name, row(o))).map(|(name, (count, bytes))| (name, count, bytes)).collect()
}

fn spike_of<'s>(snapshot: &'s Snapshot, operation: &str) -> &'s Spike {
    let [spike] = &snapshot.spikes[..] else { panic!("{:?}", snapshot.spikes) };
    assert_eq!(spike.operation.as_deref(), Some(operation));
    spike
}

#[test]
fn call_path_belongs_to_its_innermost_operation() {
    let mut records = start();
    records.extend([alloc(1, MAIN, 0x10, 3, 1), alloc(2, MAIN, 0x20, 5, 2)]);
    records.extend([alloc(3, MAIN, 0x30, 7, 3), free(4, MAIN, 0x10)]);

    let snapshot = snapshot_of(&records);

    assert_eq!(heap(&snapshot), [("select", 1, 0), ("upload", 1, 5)]);
}

#[test]
fn operation_has_spikes_below_those_of_all() {
    let mut records = start();
    rise(&mut records, 5 * SECOND, 3, 2);
    rise(&mut records, 5 * SECOND + 300_000, 12, 1);
    for n in 0..12 {
        records.push(free(8 * SECOND, WORKER, (1000 + n) * 2 * MB));
    }

    let snapshot = snapshot_at(records, 20 * SECOND);

    let spike = spike_of(&snapshot, "select");
    assert_eq!((spike.memory, spike.severity), (Memory::Heap, Severity::Medium));
    assert_eq!((spike.base_bytes, spike.height_bytes), (0, 12 * MB));
    assert!(spike.returned.is_some());
    assert_eq!(spike.contributors.iter().map(|c| c.bytes).collect::<Vec<_>>(), [12 * MB]);
    let threads: Vec<_> = spike.threads.iter().map(|t| (t.tid, t.bytes)).collect();
    assert_eq!(threads, [(Tid(WORKER), 12 * MB)]);
    assert_eq!(snapshot.spikes_of("select"), 1);
}

#[test]
fn severities_of_an_operation_are_twice_and_four_times_its_threshold() {
    let severity = |blocks: u64| {
        let mut records = start();
        rise(&mut records, 5 * SECOND, blocks, 1);
        snapshot_at(records, 9 * SECOND).spikes.first().map(|spike| spike.severity)
    };

    assert_eq!(severity(9), None);
    assert_eq!(severity(10), Some(Severity::Medium));
    assert_eq!(severity(20), Some(Severity::High));
    let mut records = start();
    rise(&mut records, 5 * SECOND, 40, 1);
    let snapshot = snapshot_at(records, 9 * SECOND);
    let both: Vec<_> =
        snapshot.spikes.iter().map(|s| (s.operation.as_deref(), s.severity)).collect();
    assert_eq!(both, [(None, Severity::Medium), (Some("select"), Severity::Critical)]);
}

#[test]
fn threshold_that_is_given_replaces_the_usual_one() {
    let mut records = start();
    rise(&mut records, 5 * SECOND, 3, 1);
    let thresholds = BTreeMap::from([("select".to_owned(), 3 * MB)]);
    let limits = Limits { operation_thresholds: thresholds, ..Limits::default() };
    let mut pipeline = Pipeline::new(limits);

    pipeline.apply_all(&records);

    assert_eq!(spike_of(&pipeline.snapshot(), "select").height_bytes, 3 * MB);
}

#[test]
fn mappings_of_an_operation_make_spikes_of_their_own() {
    let mut records = start();
    records.push(map(5 * SECOND, WORKER, 1 << 20, 2500, MapKind::Anonymous, 1));

    let snapshot = snapshot_at(records, 9 * SECOND);

    let spike = spike_of(&snapshot, "select");
    assert_eq!((spike.memory, spike.height_bytes), (Memory::Mapped, 2500 * 4096));
    assert_eq!(spike.threads.iter().map(|t| t.tid).collect::<Vec<_>>(), [Tid(WORKER)]);
}

#[test]
fn memory_whose_frames_come_late_is_in_the_usage_and_makes_no_spike() {
    let mut records = start();
    rise(&mut records, 5 * SECOND, 12, 4);
    records.push(path(4, &[0x1011, 0x1150]));
    records.push(alloc(6 * SECOND, WORKER, 0x10, 8, 4));

    let snapshot = snapshot_at(records, 9 * SECOND);

    assert_eq!(heap(&snapshot), [("select", 13, 12 * MB + 8), ("upload", 0, 0)]);
    assert!(snapshot.spikes.is_empty(), "{:?}", snapshot.spikes);
}

#[test]
fn code_stays_with_the_operation_that_was_told_first() {
    let mut records = start();
    records.push(Record::Operation {
        pid: Pid(MAIN),
        start: Avma(0x1180),
        length: 0x200,
        class: "bulk".into(),
    });
    // Inside `select`, behind `upload`.
    records.extend([path(5, &[0x11ff]), path(6, &[0x1300])]);
    records.extend([alloc(1, MAIN, 0x10, 3, 5), alloc(2, MAIN, 0x20, 5, 6)]);

    let snapshot = snapshot_of(&records);

    // Stack 3 was there before.
    assert_eq!(heap(&snapshot), [("bulk", 1, 5), ("select", 1, 3), ("upload", 0, 0)]);
}

#[test]
fn operations_beyond_the_limit_and_in_no_file_are_counted() {
    let mut records = start();
    for start in [0x1400, 0x9000] {
        let (pid, start) = (Pid(MAIN), Avma(start));
        records.push(Record::Operation { pid, start, length: 8, class: "bulk".into() });
    }
    let mut pipeline = Pipeline::new(Limits { operations: 2, ..Limits::default() });

    pipeline.apply_all(&records);

    let snapshot = pipeline.snapshot();
    assert_eq!(heap(&snapshot), [("select", 0, 0), ("upload", 0, 0)]);
    assert_eq!(snapshot.counters, [("operation_code_left_out".to_owned(), 2)]);
}

#[test]
fn range_knows_the_operations_that_were_before_it() {
    let mut before = Pipeline::new(Limits::default());
    before.apply_all(&start());
    before.apply(&alloc(1, MAIN, 0x10, 3, 1));
    let mut range = Pipeline::of_range(Limits::default(), &[]);
    let told: Result<(), ()> = before.tell_held(crate::pipeline::Purpose::GoOn, &mut |record| {
        range.apply(record);
        Ok(())
    });
    range.begin_range(Time(SECOND));

    let mut records = vec![free(2 * SECOND, MAIN, 0x10)];
    rise(&mut records, 3 * SECOND, 11, 1);
    records.push(path(7, &[0x1012, 0x1250]));
    records.push(alloc(4 * SECOND, MAIN, 0x10, 5, 7));
    range.apply_all(&records);

    assert_eq!(told, Ok(()));
    let snapshot = range.snapshot();
    assert_eq!(heap(&snapshot), [("select", 11, 11 * MB), ("upload", 1, 5)]);
    assert_eq!(spike_of(&snapshot, "select").height_bytes, 11 * MB);
}
