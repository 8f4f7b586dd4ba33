//! Stacks that arrive in time, late, twice or never, and where their frames lie.

use super::*;
use crate::pipeline::snapshot::{Place, Stack};

fn start() -> Vec<Record> {
    vec![process(MAIN), thread(MAIN, MAIN)]
}

fn snapshot_after(records: &[Record]) -> Arc<Snapshot> {
    snapshot_of(&[start(), records.to_vec()].concat())
}

#[test]
fn two_ids_of_the_same_frames_are_one_stack() {
    let snapshot = snapshot_after(&[
        stack(1, 7),
        stack(2, 7),
        alloc(1, MAIN, 0x10, 1, 1),
        alloc(2, MAIN, 0x20, 2, 2),
    ]);

    assert_eq!(snapshot.stacks.len(), 1);
    assert_eq!(usage_at(&snapshot, Api::Malloc, 7), usage(2, 3, 0, 0, 3));
}

#[test]
fn apis_of_one_stack_are_kept_apart() {
    let snapshot = snapshot_after(&[
        stack(1, 7),
        alloc(1, MAIN, 0x10, 1, 1),
        realloc(2, MAIN, 0x20, 2, 1),
        alloc(3, MAIN, 0x30, 4, 1),
    ]);

    assert_eq!(usage_at(&snapshot, Api::Malloc, 7), usage(2, 5, 0, 0, 5));
    assert_eq!(usage_at(&snapshot, Api::Realloc, 7), usage(1, 2, 0, 0, 2));
}

#[test]
fn stack_that_arrives_late_gets_what_came_before_it() {
    let snapshot = snapshot_after(&[
        alloc(1, MAIN, 0x10, 1, 1),
        stack(1, 7),
        alloc(2, MAIN, 0x20, 2, 1),
        free(3, MAIN, 0x10),
    ]);

    assert_eq!(snapshot.stacks.len(), 1);
    let expected = Usage { temporary_allocations: 1, ..usage(2, 3, 1, 1, 3) };
    assert_eq!(usage_at(&snapshot, Api::Malloc, 7), expected);
    assert_eq!(counters(&snapshot), []);
}

#[test]
fn late_stack_that_is_known_already_is_the_known_one() {
    let snapshot = snapshot_after(&[
        stack(1, 7),
        alloc(1, MAIN, 0x10, 1, 1),
        alloc(2, MAIN, 0x20, 2, 2),
        realloc(3, MAIN, 0x30, 4, 2),
        stack(2, 7),
        free(4, MAIN, 0x20),
        alloc(5, MAIN, 0x40, 8, 2),
    ]);

    assert_eq!(snapshot.stacks.len(), 2);
    let expected = Usage { temporary_allocations: 1, ..usage(3, 11, 1, 2, 9) };
    assert_eq!(usage_at(&snapshot, Api::Malloc, 7), expected);
    assert_eq!(usage_at(&snapshot, Api::Realloc, 7), usage(1, 4, 0, 0, 4));
    assert_eq!(counters(&snapshot), []);
}

#[test]
fn stacks_that_never_arrive_are_one_without_frames_and_counted() {
    let snapshot = snapshot_after(&[
        alloc(1, MAIN, 0x10, 1, 1),
        alloc(2, MAIN, 0x20, 2, 2),
        alloc(3, MAIN, 0x30, 4, 2),
    ]);

    assert_eq!(snapshot.stacks.len(), 1);
    assert_eq!(*snapshot.stacks[0].stack, Stack { end: End::Missing, frames: vec![] });
    assert_eq!(snapshot.stacks[0].usage, usage(3, 7, 0, 0, 7));
    assert_eq!(
        counters(&snapshot),
        [("allocations_with_stack_ended_missing", 3), ("unknown_stacks", 2)]
    );
}

#[test]
fn stack_id_0_is_no_walk() {
    let snapshot = snapshot_after(&[alloc(1, MAIN, 0x10, 1, 0)]);

    assert_eq!(*snapshot.stacks[0].stack, Stack { end: End::NoScratch, frames: vec![] });
    assert_eq!(counters(&snapshot), [("allocations_with_stack_ended_no_scratch", 1)]);
}

#[test]
fn id_that_gets_other_frames_keeps_earlier_events_where_they_are() {
    let snapshot = snapshot_after(&[
        stack(1, 7),
        alloc(1, MAIN, 0x10, 1, 1),
        stack(1, 8),
        alloc(2, MAIN, 0x20, 2, 1),
    ]);

    assert_eq!(usage_at(&snapshot, Api::Malloc, 7), usage(1, 1, 0, 0, 1));
    assert_eq!(usage_at(&snapshot, Api::Malloc, 8), usage(1, 2, 0, 0, 2));
}

#[test]
fn stacks_without_a_root_are_counted_by_reason_with_their_allocations() {
    let cut = |id, end| Record::Stack {
        id: WireStackId(id),
        pid: Pid(MAIN),
        end,
        frames: vec![Avma(id)],
    };

    let snapshot = snapshot_after(&[
        cut(1, End::NoUnwindInfo),
        cut(2, End::NoUnwindInfo),
        cut(3, End::FrameLimit),
        alloc(1, MAIN, 0x10, 1, 1),
        alloc(2, MAIN, 0x20, 2, 1),
        map(3, MAIN, 10, 1, MapKind::Anonymous, 2),
    ]);

    assert_eq!(
        counters(&snapshot),
        [
            ("allocations_with_stack_ended_no_unwind_info", 3),
            ("stacks_ended_frame_limit", 1),
            ("stacks_ended_no_unwind_info", 2),
        ]
    );
}

#[test]
fn frames_lie_where_the_modules_were_when_the_stack_arrived() {
    let frames = vec![Avma(0x1010), Avma(0x9010), Avma(0x5010)];
    let arrive = |id| Record::Stack {
        id: WireStackId(id),
        pid: Pid(MAIN),
        end: End::Root,
        frames: frames.clone(),
    };
    let mut jit = module(MAIN, 0x9000, 0xa000, "");
    if let Record::Module(module) = &mut jit {
        module.image = Image::Anonymous;
    }

    let snapshot = snapshot_after(&[
        module(MAIN, 0x1000, 0x2000, "/lib/a.so"),
        jit,
        arrive(1),
        Record::ModuleGone { time: Time(1), pid: Pid(MAIN), start: Avma(0x1000) },
        module(MAIN, 0x1000, 0x2000, "/lib/b.so"),
        arrive(2),
        alloc(2, MAIN, 0x10, 1, 1),
        alloc(3, MAIN, 0x20, 2, 2),
    ]);

    let pid = Pid(MAIN);
    let places = |image| {
        vec![
            Place::InFile { image, offset: FileOffset(0x10) },
            Place::Anonymous { pid, address: Avma(0x9010) },
            Place::Unknown { pid, address: Avma(0x5010) },
        ]
    };
    let stacks: Vec<_> = snapshot.stacks.iter().map(|s| s.stack.frames.clone()).collect();
    assert_eq!(stacks, [places(0), places(1)]);
    let images: Vec<_> = snapshot.images.iter().map(|image| Image::clone(image)).collect();
    let file = |path: &str| Image::File { path: path.into(), build_id: vec![] };
    assert_eq!(images, [file("/lib/a.so"), file("/lib/b.so")]);
}

#[test]
fn same_code_of_two_processes_is_one_stack() {
    let arrive = |id, pid, address| Record::Stack {
        id: WireStackId(id),
        pid: Pid(pid),
        end: End::Root,
        frames: vec![Avma(address)],
    };

    let snapshot = snapshot_after(&[
        module(MAIN, 0x1000, 0x2000, "/lib/a.so"),
        fork(1, MAIN, CHILD),
        process(300),
        module(300, 0x7000, 0x8000, "/lib/a.so"),
        arrive(1, MAIN, 0x1004),
        arrive(2, CHILD, 0x1004),
        arrive(3, 300, 0x7004),
        alloc(1, MAIN, 0x10, 1, 1),
        alloc(2, CHILD, 0x10, 2, 2),
        alloc(3, 300, 0x10, 4, 3),
    ]);

    assert_eq!(snapshot.stacks.len(), 1);
    assert_eq!(usage_at(&snapshot, Api::Malloc, 4), usage(3, 7, 0, 0, 7));
}

#[test]
fn exec_forgets_the_modules() {
    let snapshot = snapshot_after(&[
        module(MAIN, 0x1000, 0x2000, "/lib/a.so"),
        exec(1, MAIN),
        stack(1, 0x1004),
        alloc(2, MAIN, 0x10, 1, 1),
    ]);

    let place = Place::Unknown { pid: Pid(MAIN), address: Avma(0x1004) };
    assert_eq!(snapshot.stacks[0].stack.frames, [place]);
}

#[test]
fn module_records_that_make_no_sense_are_counted() {
    let gone = |start| Record::ModuleGone { time: Time(0), pid: Pid(MAIN), start: Avma(start) };

    let snapshot = snapshot_after(&[module(MAIN, 0x2000, 0x2000, "/lib/a.so"), gone(0x2000)]);

    assert_eq!(counters(&snapshot), [("empty_modules", 1), ("orphan_module_ends", 1)]);
}
