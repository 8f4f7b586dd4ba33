//! Parts of traces with and without keyframes, and of broken ones.

use std::io::Cursor as File;

use memtrace_common::addr::Avma;
use memtrace_common::event::Api;
use proptest::prelude::*;

use super::*;
use crate::record::{Alignment, Origin, Session, Tid, WireStackId};
use crate::trace::Writer;

/// A session that allocates and frees by a pattern, one event each microsecond.
fn records(events: u64) -> Vec<Record> {
    let mut records = vec![
        Record::Session(Session {
            tool_version: "0".into(),
            kernel: "6".into(),
            started_unix_s: 0,
            pid: Pid(1),
            origin: Origin::Launched,
        }),
        Record::Thread { time: Time(0), pid: Pid(1), tid: Tid(1), name: b"main".to_vec() },
    ];
    for n in 1..=events {
        let (time, tid) = (Time(n * 1000), Tid(1));
        // Two blocks come, and one of an earlier pair goes; the third that goes was the largest.
        let ptr = |n: u64| Avma(0x1000 + n * 16);
        records.push(match n % 3 {
            0 => Record::Free { time, tid, api: Api::Free, ptr: ptr(n / 2 / 3 * 3 + 1) },
            _ => Record::Alloc {
                time,
                tid,
                api: Api::Malloc,
                ptr: ptr(n),
                size: 1 + n * 7919 % 1000,
                alignment: Alignment::NONE,
                stack: WireStackId(n % 5),
            },
        });
        if n == events / 2 {
            records.push(Record::Mark { time, text: "half".into() });
        }
    }
    records
}

/// The trace of these records; a keyframe after so many each, in blocks of so many each.
fn trace(records: &[Record], block: usize, keyframe: usize) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new()).unwrap();
    let mut pipeline = Pipeline::new(Limits::default());
    for (n, record) in records.iter().enumerate() {
        writer.write(record).unwrap();
        pipeline.apply(record);
        if n % block == 0 {
            writer.flush_block().unwrap();
        }
        if n % keyframe == keyframe - 1 {
            let snapshot = heap_snapshot::encode(&pipeline, Purpose::GoOn).unwrap();
            writer.write_keyframe(&pipeline.level(), &snapshot).unwrap();
            pipeline.restart_level();
        }
    }
    writer.write_keyframe(&pipeline.level(), &[]).unwrap();
    writer.finish().unwrap()
}

fn part_of(bytes: &[u8], part: &Part) -> Result<Excerpt, PartError> {
    read_part(File::new(bytes), Limits::default(), &[], part, None, None, &mut |_| {})
}

fn shown(excerpt: &Excerpt) -> String {
    let snapshot = &excerpt.snapshot;
    let mut stacks: Vec<_> = snapshot
        .stacks
        .iter()
        .map(|s| format!("{:?} {:?} {:?}", s.stack, s.api, s.usage))
        .collect();
    stacks.sort();
    let Snapshot { now, events, totals, timeline, scope, phases, counters, .. } = &**snapshot;
    format!(
        "{stacks:#?}\n{now:?} {events} {totals:?} {timeline:?} {scope:?} {phases:?} {counters:?}"
    )
}

fn at(ns: u64) -> Place {
    Place::At(Time(ns))
}

fn place() -> impl Strategy<Value = Place> {
    prop_oneof![
        8 => (0u64..600_000).prop_map(at),
        1 => Just(Place::Start),
        1 => Just(Place::Peak),
        1 => Just(Place::Mark("half".to_owned())),
        1 => Just(Place::End),
    ]
}

fn part() -> impl Strategy<Value = Part> {
    prop_oneof![
        (place(), place()).prop_map(|(from, to)| Part::Range { from, to }),
        place().prop_map(Part::Moment),
    ]
}

proptest! {
    #[test]
    fn part_is_the_same_with_and_without_keyframes_and_index(
        part in part(),
        block in 1usize..90,
        keyframe in 1usize..200,
    ) {
        let records = records(500);
        let with = trace(&records, block, keyframe);
        let without = trace(&records, block, usize::MAX);
        // A killed writer leaves no index and no end mark.
        let killed = &with[..with.len() - 28 - 12];

        let results = [&with, &without, killed].map(|bytes| match part_of(bytes, &part) {
            Ok(excerpt) => shown(&excerpt),
            Err(error) => error.to_string(),
        });

        prop_assert_eq!(&results[0], &results[1]);
        prop_assert_eq!(&results[0], &results[2]);
    }

    #[test]
    fn damaged_trace_gives_an_error_or_the_same_part(
        part in part(),
        position in any::<prop::sample::Index>(),
        flip in 1u8..,
    ) {
        let bytes = trace(&records(500), 40, 100);
        let expected = part_of(&bytes, &part).map(|excerpt| shown(&excerpt));
        let mut damaged = bytes.clone();
        damaged[position.index(bytes.len())] ^= flip;

        if let Ok(excerpt) = part_of(&damaged, &part) && excerpt.truncation.is_none() {
            prop_assert_eq!(shown(&excerpt), expected.unwrap());
        }
    }

    #[test]
    fn trace_cut_anywhere_gives_no_panic(part in part(), length in any::<prop::sample::Index>()) {
        let bytes = trace(&records(300), 40, 100);

        let result = part_of(&bytes[..length.index(bytes.len())], &part);

        prop_assert!(result.is_ok() || result.is_err());
    }
}

#[test]
fn range_begins_and_ends_with_the_records_of_its_times() {
    let bytes = trace(&records(500), 40, 100);

    let excerpt = part_of(&bytes, &Part::Range { from: at(10_000), to: at(13_000) }).unwrap();

    // Times 10, 11, 12 and 13 µs.
    assert_eq!(excerpt.snapshot.events, 4);
    assert_eq!(excerpt.snapshot.now, Time(13_000));
}

#[test]
fn ranges_up_to_a_mark_and_from_it_have_every_event_once() {
    let bytes = trace(&records(500), 40, 100);
    let mark = || Place::Mark("half".to_owned());
    let events = |from, to| part_of(&bytes, &Part::Range { from, to }).unwrap().snapshot.events;

    assert_eq!(events(Place::Start, mark()) + events(mark(), Place::End), 500);
}

#[test]
fn snapshot_reads_like_the_moment_it_was_made_of() {
    let bytes = trace(&records(500), 40, 100);

    let held = read_held(File::new(&bytes), &at(250_000), &mut |_| {}).unwrap();

    let moment = part_of(&bytes, &Part::Moment(at(250_000))).unwrap();
    let again = part_of(&held, &Part::Moment(Place::End)).unwrap();
    assert_eq!(shown(&again), shown(&moment));
}

#[test]
fn unknown_mark_lists_the_known_ones() {
    let bytes = trace(&records(500), 40, 100);

    let error = part_of(&bytes, &Part::Moment(Place::Mark("full".to_owned()))).unwrap_err();

    assert_eq!(error.to_string(), "the trace has no mark \"full\"; it has \"half\"");
}

#[test]
fn range_behind_the_end_says_where_that_is() {
    let bytes = trace(&records(500), 40, 100);

    let error = part_of(&bytes, &Part::Range { from: at(1_000_000_000), to: Place::End });

    let error = error.unwrap_err().to_string();
    assert!(error.starts_with("the trace ends after 0.0005 s, before"), "{error}");
}
