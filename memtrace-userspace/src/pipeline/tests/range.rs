//! A range must show the same whatever it began from, and what the whole session shows of it.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::twin::{config, path, records};
use super::*;
use crate::pipeline::Purpose;
use crate::pipeline::snapshot::{Amount, Range, Scope};

/// A pipeline that knows what `pipeline` holds, as that of a range which begins now.
fn resumed(pipeline: &Pipeline) -> Pipeline {
    let mut range = Pipeline::of_range(Limits::default(), &[]);
    tell(pipeline, Purpose::GoOn, &mut range);
    range.go_on_from(pipeline.records());
    range.begin_range(pipeline.now());
    range
}

fn tell(from: &Pipeline, purpose: Purpose, to: &mut Pipeline) {
    let told: Result<(), ()> = from.tell_held(purpose, &mut |record| {
        to.apply(record);
        Ok(())
    });
    assert_eq!(told, Ok(()));
}

fn pipeline_of(records: &[Record]) -> Pipeline {
    let mut pipeline = Pipeline::new(Limits::default());
    pipeline.apply_all(records);
    pipeline
}

/// All of a snapshot that shows, in an order that does not depend on how it came about.
fn shown(snapshot: &Snapshot) -> BTreeMap<String, String> {
    let mut shown = BTreeMap::new();
    for stack in &snapshot.stacks {
        shown.insert(
            format!("stack {:?} {:?}", stack.api, path(snapshot, stack)),
            format!("{:?}", stack.usage),
        );
    }
    for (n, process) in snapshot.processes.iter().enumerate() {
        shown.insert(format!("process {n}"), format!("{process:?}"));
    }
    let threads = snapshot.threads.iter().filter(|thread| thread.heap != Usage::default());
    for (n, thread) in threads.enumerate() {
        shown.insert(format!("thread {n}"), format!("{thread:?}"));
    }
    for operation in &snapshot.operations {
        let usage = [operation.heap, operation.mapped];
        if usage != [Usage::default(); 2] {
            shown.insert(format!("operation {}", operation.name), format!("{usage:?}"));
        }
    }
    let Snapshot { now, end, events, totals, timeline, scope, marks, phases, counters, .. } =
        snapshot;
    let rest = (now, end, events, totals, timeline, scope);
    shown.insert("rest".to_owned(), format!("{rest:?} {marks:?} {phases:?} {counters:?}"));
    shown
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn range_is_the_same_from_any_keyframe(
        records in records(),
        cuts in prop::array::uniform3(0usize..120),
    ) {
        let mut cuts = cuts.map(|cut| cut.min(records.len()));
        cuts.sort_unstable();
        let [keyframe, from, to] = cuts;

        // Everything before the range, or a keyframe and what follows it.
        let from_start = pipeline_of(&records[..from]);
        let mut from_keyframe = resumed(&pipeline_of(&records[..keyframe]));
        from_keyframe.apply_all(&records[keyframe..from]);
        let snapshots = [from_start, from_keyframe].map(|before| {
            let mut range = resumed(&before);
            range.apply_all(&records[from..to]);
            range.snapshot()
        });

        prop_assert_eq!(shown(&snapshots[0]), shown(&snapshots[1]));
    }

    #[test]
    fn range_is_what_the_whole_session_shows_of_it(
        records in records(),
        cuts in prop::array::uniform2(0usize..120),
    ) {
        let mut cuts = cuts.map(|cut| cut.min(records.len()));
        cuts.sort_unstable();
        let [from, to] = cuts;
        let mut whole = pipeline_of(&records[..from]);
        let before = whole.snapshot();
        let mut range = resumed(&whole);
        let mut peak = (whole.level().live_bytes, whole.now());

        range.apply_all(&records[from..to]);
        for record in &records[from..to] {
            whole.apply(record);
            if whole.level().live_bytes > peak.0 {
                peak = (whole.level().live_bytes, whole.now());
            }
        }

        let (after, range) = (whole.snapshot(), range.snapshot());
        prop_assert_eq!((range.totals.peak_live_bytes, range.totals.peak_at), peak);
        prop_assert_eq!(range.totals.heap.peak_bytes, peak.0);
        let of_stacks = range.stacks.iter().filter(|stack| stack.api.acquires_block());
        prop_assert_eq!(of_stacks.map(|stack| stack.usage.peak_bytes).sum::<u64>(), peak.0);
        prop_assert_eq!(range.events, after.events - before.events);
        let allocated = |snapshot: &Snapshot| {
            let heap = snapshot.totals.heap;
            (heap.allocations, heap.allocated_bytes)
        };
        let (was, is, within) = (allocated(&before), allocated(&after), allocated(&range));
        prop_assert_eq!(within, (is.0 - was.0, is.1 - was.1));
        let Scope::Range(Range { held_before, still_held, .. }) = range.scope else {
            panic!("it is a range");
        };
        prop_assert!(still_held.blocks <= held_before.blocks + 1, "a realloc may give one back");
    }

    #[test]
    fn moment_has_what_is_held_and_no_more(records in records(), at in 0usize..120) {
        let mut pipeline = pipeline_of(&records[..at.min(records.len())]);
        let level = pipeline.level();

        let mut moment = Pipeline::new(Limits::default());
        tell(&pipeline, Purpose::Show, &mut moment);

        let (snapshot, whole) = (moment.snapshot(), pipeline.snapshot());
        prop_assert_eq!(snapshot.totals.heap.live_bytes, level.live_bytes);
        prop_assert_eq!(snapshot.totals.mapped.live_bytes, level.mapped_bytes);
        prop_assert_eq!(snapshot.totals.heap.frees, 0);
        prop_assert_eq!(snapshot.now, whole.now);
        let live = |snapshot: &Snapshot| -> u64 {
            snapshot.stacks.iter().map(|stack| stack.usage.live_bytes).sum()
        };
        prop_assert_eq!(live(&snapshot), level.live_bytes + level.mapped_bytes);
    }
}

#[test]
fn lifetime_of_a_block_that_the_range_frees_began_before_it() {
    let before = [session(MAIN), process(MAIN), thread(MAIN, MAIN), alloc(0, MAIN, 0x10, 100, 7)];
    let within = [
        free(5_000_000_000, MAIN, 0x10),
        alloc(5_000_000_000, MAIN, 0x20, 3, 7),
        free(5_000_020_000, MAIN, 0x20),
    ];
    let mut range = resumed(&pipeline_of(&before));

    range.apply_all(&within);

    let whole = pipeline_of(&[&before[..], &within].concat()).snapshot();
    let range = range.snapshot();
    assert_eq!(range.statistics.lifetimes.count(), 2);
    assert_eq!(range.statistics.lifetimes, whole.statistics.lifetimes);
}

#[test]
fn leak_in_a_late_range_is_told_with_all_that_it_holds() {
    const SECOND: u64 = 1_000_000_000;
    let mut records = vec![session(MAIN), process(MAIN), thread(MAIN, MAIN), stack(7, 0x1000)];
    records.extend((0..11_000).map(|n| alloc(n * SECOND / 10, MAIN, (n + 1) * 0x8000, 20_000, 7)));
    let from = 4 + 10_000;
    let mut range = resumed(&pipeline_of(&records[..from]));

    range.apply_all(&records[from..]);

    let snapshot = range.snapshot();
    let [leak] = &snapshot.leaks.verdicts[..] else { panic!("{:?}", snapshot.leaks) };
    assert!(leak.class.is_leak(), "{leak:?}");
    assert_eq!((leak.live_blocks, leak.live_bytes), (11_000, 11_000 * 20_000));
}

#[test]
fn block_from_before_the_range_is_no_free_of_it() {
    let before = pipeline_of(&[
        session(MAIN),
        process(MAIN),
        thread(MAIN, MAIN),
        stack(7, 0x1000),
        alloc(1, MAIN, 0x10, 100, 7),
        alloc(2, MAIN, 0x20, 20, 7),
    ]);
    let mut range = resumed(&before);

    range.apply_all(&[free(3, MAIN, 0x10), alloc(4, MAIN, 0x30, 3, 7), free(5, MAIN, 0x30)]);

    let snapshot = range.snapshot();
    let amount = |blocks, bytes| Amount { blocks, bytes };
    let scope = Range { from: Time(2), held_before: amount(2, 120), still_held: amount(1, 20) };
    assert_eq!(snapshot.scope, Scope::Range(scope));
    let expected = Usage { temporary_allocations: 1, ..usage(1, 3, 1, 3, 120) };
    assert_eq!(usage_at(&snapshot, Api::Malloc, 0x1000), expected);
    assert_eq!((snapshot.totals.peak_live_bytes, snapshot.totals.peak_at), (120, Time(2)));
    assert_eq!((snapshot.events, snapshot.totals.temporary_allocations), (3, 1));
}

#[test]
fn phases_lie_between_the_marks() {
    let mark = |time, text: &str| Record::Mark { time: Time(time), text: text.to_owned() };
    let mut pipeline = pipeline_of(&[
        session(MAIN),
        process(MAIN),
        thread(MAIN, MAIN),
        alloc(1, MAIN, 0x10, 100, 0),
        mark(2, "warm"),
        alloc(3, MAIN, 0x20, 50, 0),
        free(4, MAIN, 0x10),
        mark(5, "done"),
    ]);

    let snapshot = pipeline.snapshot();

    let phases: Vec<_> = snapshot
        .phases
        .iter()
        .map(|phase| {
            let name = phase.begins_with.as_deref();
            let times = [phase.from, phase.to, phase.peak_at].map(|time| time.0);
            let bytes = [phase.allocated.bytes, phase.freed.bytes, phase.peak_live_bytes];
            (name, times, bytes, [phase.live_bytes_before, phase.live_bytes_after])
        })
        .collect();
    let expected = [
        (None, [0, 2, 1], [100, 0, 100], [0, 100]),
        (Some("warm"), [2, 5, 3], [50, 100, 150], [100, 50]),
        (Some("done"), [5, 5, 5], [0, 0, 50], [50, 50]),
    ];
    assert_eq!(phases, expected);
}
