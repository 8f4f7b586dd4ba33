//! What is a spike, who made it, and whether it came back.

use super::*;
use crate::pipeline::findings::{Severity, Spike};
use crate::pipeline::snapshot::{Memory, Place};

const SECOND: u64 = 1_000_000_000;
const MB: u64 = 1_000_000;
/// A tick of the default window of a second.
const TICK: u64 = SECOND / 16;

/// A process that held 1 MB at site 1 from the start, and two threads.
fn start() -> Vec<Record> {
    let mut records = vec![session(MAIN), process(MAIN), thread(MAIN, MAIN), thread(MAIN, WORKER)];
    records.extend([stack(1, 1), stack(2, 2), alloc(0, MAIN, 16, MB, 1)]);
    records
}

/// Blocks of a megabyte by the worker at site 2, one each 100 µs.
fn rise(records: &mut Vec<Record>, start: u64, blocks: u64) {
    let block = |n: u64| alloc(start + n * 100_000, WORKER, (n + 2) * 2 * MB, MB, 2);
    records.extend((0..blocks).map(block));
}

fn fall(records: &mut Vec<Record>, start: u64, blocks: u64) {
    records.extend((0..blocks).map(|n| free(start, WORKER, (n + 2) * 2 * MB)));
}

fn spikes_until(mut records: Vec<Record>, end: u64) -> Vec<Spike> {
    records.push(Record::Tick { time: Time(end) });
    snapshot_of(&records).spikes.clone()
}

fn makers(spike: &Spike) -> Vec<(u64, u64)> {
    let site = |stack: &crate::pipeline::snapshot::Stack| match stack.frames[..] {
        [Place::Unknown { address, .. }] => address.0,
        ref other => panic!("{other:?}"),
    };
    spike.contributors.iter().map(|c| (site(&c.stack), c.bytes)).collect()
}

#[test]
fn growth_within_the_window_is_a_spike_with_its_makers() {
    let mut records = start();
    rise(&mut records, 5 * SECOND + TICK / 2, 60);
    fall(&mut records, 8 * SECOND + TICK / 2, 60);

    let spikes = spikes_until(records, 20 * SECOND);

    let [spike] = &spikes[..] else { panic!("{spikes:?}") };
    assert_eq!((spike.memory, spike.severity), (Memory::Heap, Severity::High));
    assert_eq!((spike.base_bytes, spike.height_bytes, spike.window_bytes), (MB, 60 * MB, 60 * MB));
    assert_eq!(spike.start, Time(5 * SECOND));
    assert!((spike.end.0 - 5 * SECOND - TICK / 2) <= 60 * 100_000, "{:?}", spike.end);
    assert_eq!(spike.returned, Some(Time(8 * SECOND + TICK)));
    assert_eq!((makers(spike), spike.measured_bytes), (vec![(2, 60 * MB)], 60 * MB));
    assert_eq!(
        spike.threads.iter().map(|t| (t.tid, t.bytes)).collect::<Vec<_>>(),
        [(Tid(WORKER), 60 * MB)]
    );
    assert!(spike.alert);
}

#[test]
fn spike_in_the_first_tick_has_its_makers() {
    let mut records = start();
    rise(&mut records, 1_000_000, 60);

    let spikes = spikes_until(records, SECOND);

    let [spike] = &spikes[..] else { panic!("{spikes:?}") };
    assert_eq!(makers(spike), [(2, 60 * MB), (1, MB)]);
    assert_eq!(
        spike.threads.iter().map(|t| (t.tid, t.bytes)).collect::<Vec<_>>(),
        [(Tid(WORKER), 60 * MB), (Tid(MAIN), MB)]
    );
}

#[test]
fn growth_slower_than_the_window_is_no_spike() {
    let mut records = start();
    for second in 1..30 {
        let ptr = second * 100 * MB;
        records.push(alloc(second * SECOND, MAIN, ptr, 20 * MB, 2));
    }

    assert_eq!(spikes_until(records, 40 * SECOND).len(), 0);
}

#[test]
fn spike_of_a_moment_is_seen_and_has_returned() {
    let mut records = start();
    rise(&mut records, 3 * SECOND + 1000, 110);
    fall(&mut records, 3 * SECOND + 1000 + 110 * 100_000, 110);

    let spikes = spikes_until(records, 10 * SECOND);

    let [spike] = &spikes[..] else { panic!("{spikes:?}") };
    assert_eq!((spike.severity, spike.height_bytes), (Severity::Critical, 110 * MB));
    assert!(spike.measured_bytes * 16 >= spike.height_bytes * 15);
    assert_eq!(makers(spike), [(2, spike.measured_bytes)]);
    assert_eq!(spike.returned, Some(Time(3 * SECOND + TICK)));
}

#[test]
fn spike_that_rises_now_is_shown_with_what_is_left() {
    let mut records = start();
    rise(&mut records, 5 * SECOND, 30);

    let spikes = snapshot_of(&records).spikes.clone();

    let [spike] = &spikes[..] else { panic!("{spikes:?}") };
    assert_eq!((spike.returned, spike.left_bytes), (None, 30 * MB));
}

#[test]
fn long_rise_is_one_spike_with_its_largest_window() {
    let mut records = start();
    for n in 0..50 {
        records.push(alloc(SECOND + n * SECOND / 10, MAIN, (n + 2) * 10 * MB, 4 * MB, 2));
    }

    let spikes = spikes_until(records, 20 * SECOND);

    let [spike] = &spikes[..] else { panic!("{spikes:?}") };
    assert_eq!((spike.height_bytes, spike.severity), (200 * MB, Severity::Medium));
    assert_eq!(makers(spike), [(2, 200 * MB)]);
    assert_eq!(spike.left_bytes, 200 * MB);
}

#[test]
fn spikes_of_one_origin_are_told_every_third_time() {
    let mut records = start();
    for n in 1..=7 {
        rise(&mut records, n * 10 * SECOND, 30);
        fall(&mut records, (n * 10 + 3) * SECOND, 30);
    }

    let told: Vec<bool> = spikes_until(records, 100 * SECOND).iter().map(|s| s.alert).collect();

    assert_eq!(told, [true, false, false, true, false, false, true]);
}

#[test]
fn mappings_make_spikes_unless_the_heap_lies_in_them() {
    let mut own = start();
    own.push(map(5 * SECOND, WORKER, 1 << 20, 10_000, MapKind::Anonymous, 2));
    let mut allocators = own.clone();
    allocators.push(alloc(5 * SECOND, WORKER, (1 << 32) + 16, 40_000_000, 2));

    let own = spikes_until(own, 10 * SECOND);
    let allocators = spikes_until(allocators, 10 * SECOND);

    let [spike] = &own[..] else { panic!("{own:?}") };
    assert_eq!((spike.memory, spike.height_bytes), (Memory::Mapped, 10_000 * 4096));
    assert_eq!(makers(spike), [(2, 10_000 * 4096)]);
    assert_eq!(spike.threads.iter().map(|t| t.tid).collect::<Vec<_>>(), [Tid(WORKER)]);
    assert_eq!(allocators.iter().map(|s| s.memory).collect::<Vec<_>>(), [Memory::Heap]);
}

#[test]
fn creep_after_a_rise_of_two_ticks_is_no_second_spike() {
    let mut records = start();
    // 36 blocks in one tick, 24 in the next, and 2 MB more while only these 24 are in the window.
    rise(&mut records, 5 * SECOND + TICK - 3_550_000, 60);
    records.push(alloc(6 * SECOND + TICK / 2, MAIN, 4000 * MB, 2 * MB, 1));

    let heights: Vec<u64> =
        spikes_until(records, 9 * SECOND).iter().map(|s| s.height_bytes).collect();

    assert_eq!(heights.len(), 1, "{heights:?}");
}

#[test]
fn rise_that_barely_reaches_the_threshold_in_its_first_tick_is_one_spike() {
    let mut records = start();
    // A creep of a little more than a sixteenth of a megabyte each tick.
    for n in 0..80 {
        records.push(alloc(n * TICK + 1, MAIN, (n + 1) * 64 * 1024, 62_501, 1));
    }
    // In the last of these ticks 24 MB more: 25 MB are reached with 16 ticks' creep, and not with 15.
    rise(&mut records, 80 * TICK - 24 * 100_000, 24);
    let block = |n: u64| alloc(80 * TICK + 200_000 + n * 100_000, WORKER, (n + 40) * 2 * MB, MB, 2);
    records.extend((0..36).map(block));
    fall(&mut records, 7 * SECOND, 24);
    records.extend((0..36).map(|n| free(7 * SECOND, WORKER, (n + 40) * 2 * MB)));

    let spikes = spikes_until(records, 9 * SECOND);

    let [spike] = &spikes[..] else { panic!("{spikes:?}") };
    assert_eq!(spike.severity, Severity::High);
    assert!(spike.height_bytes > 60 * MB && spike.returned.is_some(), "{spike:?}");
}

#[test]
fn creep_before_a_spike_is_no_part_of_it() {
    let mut records = start();
    for n in 0..100 {
        records.push(alloc(n * SECOND / 20, MAIN, (n + 500) * 4 * MB, MB / 20, 1));
    }
    rise(&mut records, 5 * SECOND + TICK / 2, 60);

    let spikes = spikes_until(records, 7 * SECOND);

    let [spike] = &spikes[..] else { panic!("{spikes:?}") };
    assert_eq!((spike.start, makers(spike)), (Time(5 * SECOND), vec![(2, 60 * MB)]));
}
