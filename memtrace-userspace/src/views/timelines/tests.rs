//! Courses of made-up sessions, against sums that somebody else made.

use memtrace_common::addr::{Avma, FileOffset};
use memtrace_common::event::Api;
use memtrace_common::unwind::End;
use proptest::prelude::*;

use super::*;
use crate::pipeline::{Limits, Pipeline, Posting};
use crate::record::{Alignment, Image, Module, Pid, Process, Record, Tid, WireStackId};
use crate::views::activity::Level;
use crate::views::fixture;

const PID: Pid = Pid(1);
/// Where the fixture's server is mapped.
const CODE: u64 = 0x40_0000;
const MS: u64 = 1_000_000;

/// A process of the fixture's server with stacks 1 to 3 of different functions, and a nameless 4.
fn start() -> Vec<Record> {
    let image = Image::File { path: b"/srv/app/server".to_vec(), build_id: vec![1] };
    let module = Module {
        time: Time(0),
        pid: PID,
        start: Avma(CODE),
        end: Avma(CODE + 0x10_000),
        offset: FileOffset(0),
        image,
    };
    let (exe, command) = (b"/srv/app/server".to_vec(), Vec::new());
    let mut records = vec![
        Record::Process(Process { time: Time(0), pid: PID, parent: None, exe, command }),
        Record::Module(module),
    ];
    for tid in 1..=3 {
        let name = format!("worker-{tid}").into_bytes();
        records.push(Record::Thread { time: Time(0), pid: PID, tid: Tid(tid), name });
    }
    for (id, offset) in [(1, 0x1000), (2, 0x1100), (3, 0x1200)] {
        let frames = vec![Avma(CODE + offset)];
        records.push(Record::Stack { id: WireStackId(id), pid: PID, end: End::Root, frames });
    }
    records.push(Record::Stack { id: WireStackId(4), pid: PID, end: End::Root, frames: vec![] });
    records
}

fn alloc(ns: u64, tid: u32, ptr: u64, size: u64, stack: u64) -> Record {
    let (tid, ptr, stack) = (Tid(tid), Avma(ptr), WireStackId(stack));
    Record::Alloc {
        time: Time(ns),
        tid,
        api: Api::Malloc,
        ptr,
        size,
        alignment: Alignment::NONE,
        stack,
    }
}

fn free(ns: u64, ptr: u64) -> Record {
    Record::Free { time: Time(ns), tid: Tid(1), api: Api::Free, ptr: Avma(ptr) }
}

/// The timelines of `records[from..]`, as a range if anything comes before.
fn timelines(records: &[Record], from: usize, shown: usize) -> (Timelines, Arc<Snapshot>) {
    let mut activity = Activity::new(Level::Held);
    let mut pipeline = Pipeline::new(Limits::default());
    if from > 0 {
        let mut before = Pipeline::new(Limits::default());
        before.apply_all(&records[..from]);
        pipeline = Pipeline::of_range(Limits::default(), &[]);
        let mut postings: Vec<Posting> = Vec::new();
        let told = before.tell_held(crate::pipeline::Purpose::GoOn, &mut |record| {
            pipeline.apply_with(record, &mut postings);
            activity.event(record, &postings, &pipeline);
            Ok::<(), ()>(())
        });
        told.expect("nothing fails");
        pipeline.begin_range(before.now());
    }
    let mut postings = Vec::new();
    for record in &records[from..] {
        pipeline.apply_with(record, &mut postings);
        activity.event(record, &postings, &pipeline);
    }
    let snapshot = pipeline.snapshot();
    let timelines = Timelines::new(&snapshot, activity, &mut fixture::names(), shown);
    (timelines, snapshot)
}

fn sum<'c>(courses: impl Iterator<Item = &'c Course>, steps: usize) -> Course {
    let mut sum = Course::of(steps);
    courses.for_each(|course| sum.add(course));
    sum
}

fn named(timelines: &Timelines) -> Vec<(&str, &[u64])> {
    let name = |of: &FunctionCourse| match of.function.name.as_deref() {
        Some("leak_per_request") => "leak_per_request",
        Some("handle") => "handle",
        Some("main") => "main",
        _ => "another",
    };
    timelines.functions.iter().map(|of| (name(of), of.course.live_bytes.as_slice())).collect()
}

#[test]
fn functions_and_threads_have_what_they_held_at_the_end_of_each_step() {
    let mut records = start();
    records.extend([
        alloc(0, 1, 0x100, 10, 1),
        alloc(1, 2, 0x200, 30, 2),
        alloc(MS, 2, 0x300, 5, 1),
        free(2 * MS, 0x200),
        alloc(2 * MS, 3, 0x400, 7, 4),
        Record::Tick { time: Time(3 * MS - 1) },
    ]);

    let (timelines, _) = timelines(&records, 0, 10);

    assert_eq!(
        named(&timelines),
        [("handle", &[30, 30, 0][..]), ("leak_per_request", &[10, 15, 15])]
    );
    assert_eq!(timelines.functions[1].course.allocated_bytes, [10, 5, 0]);
    assert_eq!(timelines.functions[1].course.allocations, [1, 1, 0]);
    // A call path without frames has no function to be told under.
    assert_eq!(timelines.other_functions.count, 1);
    assert_eq!(timelines.other_functions.course.live_bytes, [0, 0, 7]);
    let threads: Vec<_> =
        timelines.threads.iter().map(|of| (of.thread.tid.0, &of.course.live_bytes[..])).collect();
    assert_eq!(threads, [(2, &[30, 35, 5][..]), (1, &[10, 10, 10]), (3, &[0, 0, 7])]);
    assert_eq!(timelines.all.live_bytes, [40, 45, 22]);
}

#[test]
fn functions_beyond_the_limit_are_one_course() {
    let mut records = start();
    records.extend([
        alloc(0, 1, 0x100, 10, 1),
        alloc(1, 2, 0x200, 30, 2),
        alloc(2, 3, 0x300, 20, 3),
    ]);

    let (timelines, _) = timelines(&records, 0, 1);

    assert_eq!(named(&timelines), [("handle", &[30][..])]);
    assert_eq!((timelines.other_functions.count, timelines.other_threads.count), (2, 2));
    assert_eq!(timelines.other_functions.course.live_bytes, [30]);
    assert_eq!(timelines.other_threads.course.live_bytes, [30]);
}

#[test]
fn range_begins_with_what_was_held_before_it() {
    let mut records = start();
    records.extend([alloc(0, 1, 0x100, 10, 1), alloc(5 * MS, 2, 0x200, 30, 2)]);
    let from = records.len();
    records.extend([
        alloc(6 * MS, 1, 0x300, 4, 1),
        free(7 * MS, 0x200),
        Record::Tick { time: Time(8 * MS - 1) },
    ]);

    let (timelines, _) = timelines(&records, from, 10);

    assert_eq!(timelines.start, Time(5 * MS));
    let expected = [("handle", &[30, 30, 0][..]), ("leak_per_request", &[10, 14, 14])];
    assert_eq!(named(&timelines), expected);
    assert_eq!(timelines.all.allocated_bytes, [0, 4, 0]);
}

#[test]
fn range_in_which_nothing_happens_shows_what_is_held() {
    let mut records = start();
    records.extend([alloc(0, 1, 0x100, 10, 1), alloc(5 * MS, 2, 0x200, 30, 2)]);

    let (timelines, _) = timelines(&records, records.len(), 10);

    assert_eq!((timelines.start, &timelines.ends[..]), (Time(5 * MS), &[Time(5 * MS)][..]));
    assert_eq!(timelines.all.live_bytes, [40]);
}

#[test]
fn program_that_has_ended_holds_nothing() {
    let mut records = start();
    records.extend([alloc(0, 1, 0x100, 10, 1), Record::Exit { time: Time(2 * MS), pid: PID }]);

    let (timelines, snapshot) = timelines(&records, 0, 10);

    assert_eq!(timelines.all.live_bytes, [10, 10, 0]);
    assert_eq!(snapshot.totals.heap.live_bytes, 10);
}

/// What happens next: nanoseconds to the event, thread, place of the block, size, stack; size 0
/// frees, and stack 9 forks or ends a child.
fn events() -> impl Strategy<Value = Vec<(u64, u32, u64, u64, u64)>> {
    let gap = prop_oneof![8 => 0u64..300_000, 1 => 0u64..50_000_000];
    proptest::collection::vec((gap, 1u32..4, 1u64..40, 0u64..1000, 1u64..10), 1..400)
}

fn records(events: &[(u64, u32, u64, u64, u64)]) -> Vec<Record> {
    let mut records = start();
    let (mut now, mut child) = (0, 100);
    for &(gap, tid, place, size, stack) in events {
        now += gap;
        let ptr = place * 0x1000;
        match (size, stack) {
            (0..300, 1..9) => records.push(free(now, ptr)),
            (_, 9) if child % 2 == 0 => {
                child += 1;
                records.push(Record::Fork { time: Time(now), parent: PID, child: Pid(child) });
            }
            (_, 9) => {
                records.push(Record::Exit { time: Time(now), pid: Pid(child) });
                child += 1;
            }
            _ => records.push(alloc(now, tid, ptr, size, stack % 5 + 1)),
        }
    }
    records
}

proptest! {
    #[test]
    fn courses_add_up_to_the_timeline_of_the_pipeline(
        events in events(),
        past in 0usize..300,
        shown in 0usize..5,
    ) {
        let records = records(&events);
        let from = if past < 30 { 0 } else { (start().len() + past).min(records.len()) };

        let (timelines, snapshot) = timelines(&records, from, shown);

        let Timelines { ends, all, functions, other_functions, threads, other_threads, .. } =
            &timelines;
        let of_functions = functions.iter().map(|of| &of.course);
        let of_threads = threads.iter().map(|of| &of.course);
        prop_assert_eq!(&sum(of_functions.chain([&other_functions.course]), ends.len()), all);
        prop_assert_eq!(&sum(of_threads.chain([&other_threads.course]), ends.len()), all);
        prop_assert!(functions.len() <= shown && threads.len() <= shown);
        // The pipeline's own timeline counts the total and knows of no function. Its steps are
        // shorter or the same: what it allocated up to a moment is compared, and what is held then.
        let (mut so_far, mut allocated) = (0, std::collections::HashMap::new());
        for point in &snapshot.timeline {
            so_far += point.allocated_bytes;
            allocated.insert(point.time, (so_far, point.live_bytes));
        }
        let mut so_far = 0;
        for (step, end) in ends.iter().enumerate() {
            so_far += all.allocated_bytes[step];
            prop_assert_eq!(Some(&(so_far, all.live_bytes[step])), allocated.get(end), "{:?}", end);
        }
        prop_assert_eq!(so_far, snapshot.totals.heap.allocated_bytes);
    }
}
