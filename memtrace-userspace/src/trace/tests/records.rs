//! Round trips of arbitrary records.

use memtrace_common::addr::{Avma, FileOffset};
use memtrace_common::event::Api;
use memtrace_common::unwind::End;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;

use super::{read, trace_of};
use crate::record::{
    Alignment, BeforeAttach, EndReason, Image, LimitKind, MapKind, MemoryByKind, MemoryFigures,
    Module, Namespaces, Origin, Pid, Probe, ProbeCost, Process, Record, Session, Tid, Time,
    WireStackId,
};
use crate::trace::format::MAX_STACK_FRAMES;
use crate::trace::model::MAX_SHARED_FRAMES;
use crate::trace::{WriteError, Writer};

/// How many variants [`Record`] has.
pub(super) const VARIANTS: usize = 35;

/// Number of a variant. A new one breaks the build here: it needs a strategy in [`records`].
pub(super) fn variant(record: &Record) -> usize {
    match record {
        Record::Session(_) => 0,
        Record::Probe(_) => 1,
        Record::Process(_) => 2,
        Record::BeforeAttach(_) => 3,
        Record::Module(_) => 4,
        Record::ModuleGone { .. } => 5,
        Record::Thread { .. } => 6,
        Record::ThreadExit { .. } => 7,
        Record::Stack { .. } => 8,
        Record::Alloc { .. } => 9,
        Record::Free { .. } => 10,
        Record::Retire { .. } => 11,
        Record::Restore { .. } => 12,
        Record::Map { .. } => 13,
        Record::Unmap { .. } => 14,
        Record::UnmapFailed { .. } => 15,
        Record::RemapStart { .. } => 16,
        Record::Remap { .. } => 17,
        Record::Break { .. } => 18,
        Record::Fork { .. } => 19,
        Record::Exec { .. } => 20,
        Record::Exit { .. } => 21,
        Record::Resident { .. } => 22,
        Record::Counters(_) => 23,
        Record::Tick { .. } => 24,
        Record::End { .. } => 25,
        Record::Namespaces(_) => 26,
        Record::JitSymbol { .. } => 27,
        Record::MemoryLimit { .. } => 28,
        Record::Mark { .. } => 29,
        Record::Held { .. } => 30,
        Record::MemoryDetail { .. } => 31,
        Record::Commit { .. } => 32,
        Record::Decommit { .. } => 33,
        Record::Operation { .. } => 34,
    }
}

pub(super) fn figures(numbers: [u64; 7]) -> MemoryFigures {
    let [size_bytes, reserved_bytes, resident_bytes, proportional_bytes, ..] = numbers;
    let [.., private_dirty_bytes, swapped_bytes, huge_bytes] = numbers;
    MemoryFigures {
        size_bytes,
        reserved_bytes,
        resident_bytes,
        proportional_bytes,
        private_dirty_bytes,
        swapped_bytes,
        huge_bytes,
    }
}

/// Numbers that repeat, as in programs, and any others.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 0..6u64, 2 => (0..6u64).prop_map(|n| 0x7f00_0000_0000 + n * 16), 1 => any::<u64>()]
}

fn address() -> impl Strategy<Value = Avma> {
    number().prop_map(Avma)
}

fn time() -> impl Strategy<Value = Time> {
    number().prop_map(Time)
}

fn small() -> impl Strategy<Value = u32> {
    prop_oneof![6 => 1..4u32, 1 => any::<u32>()]
}

fn pid() -> impl Strategy<Value = Pid> {
    small().prop_map(Pid)
}

fn tid() -> impl Strategy<Value = Tid> {
    small().prop_map(Tid)
}

fn stack_id() -> impl Strategy<Value = WireStackId> {
    number().prop_map(WireStackId)
}

fn text() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..12)
}

fn name() -> impl Strategy<Value = String> {
    vec(any::<char>(), 0..8).prop_map(String::from_iter)
}

fn texts() -> impl Strategy<Value = Vec<Vec<u8>>> {
    vec(text(), 0..4)
}

fn api() -> impl Strategy<Value = Api> {
    select(Api::ALL)
}

fn namespaces() -> impl Strategy<Value = Namespaces> {
    let optional = || proptest::option::of(text());
    (pid(), vec(any::<u32>(), 0..4), optional(), optional()).prop_map(
        |(pid, inner_pids, cgroup, container)| Namespaces { pid, inner_pids, cgroup, container },
    )
}

fn setting() -> impl Strategy<Value = Record> {
    let image = prop_oneof![
        (text(), text()).prop_map(|(path, build_id)| Image::File { path, build_id }),
        Just(Image::Vdso),
        Just(Image::Anonymous),
    ];
    prop_oneof![
        (name(), name(), number(), pid(), select(&[Origin::Attached, Origin::Launched][..]))
            .prop_map(|(tool_version, kernel, started_unix_s, pid, origin)| {
                Record::Session(Session { tool_version, kernel, started_unix_s, pid, origin })
            }),
        (name(), text(), number(), select(&[ProbeCost::Emulated, ProbeCost::Stepped][..]))
            .prop_map(|(symbol, module, offset, cost)| {
                Record::Probe(Probe { symbol, module, offset: FileOffset(offset), cost })
            }),
        (time(), pid(), proptest::option::of(pid()), text(), texts()).prop_map(
            |(time, pid, parent, exe, command)| {
                Record::Process(Process { time, pid, parent, exe, command })
            }
        ),
        (pid(), number(), number(), number()).prop_map(
            |(pid, heap_bytes, anonymous_bytes, resident_bytes)| {
                Record::BeforeAttach(BeforeAttach {
                    pid,
                    heap_bytes,
                    anonymous_bytes,
                    resident_bytes,
                })
            }
        ),
        namespaces().prop_map(Record::Namespaces),
        (time(), pid(), address(), address(), number(), image).prop_map(
            |(time, pid, start, end, offset, image)| {
                let offset = FileOffset(offset);
                Record::Module(Module { time, pid, start, end, offset, image })
            }
        ),
        (time(), pid(), address()).prop_map(|(time, pid, start)| Record::ModuleGone {
            time,
            pid,
            start
        }),
        (time(), pid(), tid(), text()).prop_map(|(time, pid, tid, name)| Record::Thread {
            time,
            pid,
            tid,
            name
        }),
        (time(), tid()).prop_map(|(time, tid)| Record::ThreadExit { time, tid }),
        (stack_id(), pid(), select(End::ALL), vec(address(), 0..8))
            .prop_map(|(id, pid, end, frames)| Record::Stack { id, pid, end, frames }),
    ]
}

fn life() -> impl Strategy<Value = Record> {
    let reason =
        select(&[EndReason::TargetExited, EndReason::Interrupted, EndReason::DurationOver][..]);
    prop_oneof![
        (time(), pid(), pid()).prop_map(|(time, parent, child)| Record::Fork {
            time,
            parent,
            child
        }),
        (time(), pid(), text(), texts()).prop_map(|(time, pid, exe, command)| Record::Exec {
            time,
            pid,
            exe,
            command
        }),
        (time(), pid()).prop_map(|(time, pid)| Record::Exit { time, pid }),
        (time(), pid(), number()).prop_map(|(time, pid, rss_bytes)| Record::Resident {
            time,
            pid,
            rss_bytes
        }),
        (time(), pid(), address(), number(), text()).prop_map(|(time, pid, start, size, name)| {
            Record::JitSymbol { time, pid, start, size, name }
        }),
        (pid(), address(), number(), name()).prop_map(|(pid, start, length, class)| {
            Record::Operation { pid, start, length, class }
        }),
        (time(), pid(), any::<bool>(), number(), number()).prop_map(
            |(time, pid, machine, limit_bytes, used_bytes)| {
                let kind = if machine { LimitKind::Machine } else { LimitKind::Cgroup };
                Record::MemoryLimit { time, pid, kind, limit_bytes, used_bytes }
            }
        ),
        (time(), pid(), proptest::array::uniform5(proptest::array::uniform7(number()))).prop_map(
            |(time, pid, kinds)| {
                let [heap, anonymous, file, stack, shared] = kinds.map(figures);
                let memory = Box::new(MemoryByKind { heap, anonymous, file, stack, shared });
                Record::MemoryDetail { time, pid, memory }
            }
        ),
        vec((name(), number()), 0..4).prop_map(Record::Counters),
        time().prop_map(|time| Record::Tick { time }),
        (time(), reason).prop_map(|(time, reason)| Record::End { time, reason }),
        (time(), name()).prop_map(|(time, text)| Record::Mark { time, text }),
        (
            time(),
            pid(),
            tid(),
            proptest::option::of(api()),
            address(),
            number(),
            alignment(),
            stack_id()
        )
            .prop_map(|(born, pid, tid, api, start, length, alignment, stack)| {
                Record::Held { born, pid, tid, api, start, length, alignment, stack }
            }),
    ]
}

fn alignment() -> impl Strategy<Value = Alignment> {
    let some = (1u8..64).prop_filter_map("in an address", Alignment::from_log2);
    prop_oneof![2 => Just(Alignment::NONE), 1 => some]
}

fn heap() -> impl Strategy<Value = Record> {
    prop_oneof![
        3 => (time(), tid(), api(), address(), number(), alignment(), stack_id()).prop_map(
            |(time, tid, api, ptr, size, alignment, stack)| {
                Record::Alloc { time, tid, api, ptr, size, alignment, stack }
            }
        ),
        3 => (time(), tid(), api(), address())
            .prop_map(|(time, tid, api, ptr)| Record::Free { time, tid, api, ptr }),
        1 => (time(), tid(), address()).prop_map(|(time, tid, ptr)| Record::Retire { time, tid, ptr }),
        1 => (time(), tid(), address()).prop_map(|(time, tid, ptr)| Record::Restore { time, tid, ptr }),
    ]
}

fn mapping() -> impl Strategy<Value = Record> {
    let kind = select(&[MapKind::Anonymous, MapKind::File, MapKind::Shared, MapKind::Reserved][..]);
    prop_oneof![
        (time(), tid(), address(), number(), kind, stack_id()).prop_map(
            |(time, tid, start, length, kind, stack)| {
                Record::Map { time, tid, start, length, kind, stack }
            }
        ),
        (time(), tid(), address(), number()).prop_map(|(time, tid, start, length)| Record::Unmap {
            time,
            tid,
            start,
            length
        }),
        (time(), tid()).prop_map(|(time, tid)| Record::UnmapFailed { time, tid }),
        (time(), tid(), address(), number())
            .prop_map(|(time, tid, start, length)| Record::RemapStart { time, tid, start, length }),
        (time(), tid(), address(), number(), stack_id()).prop_map(
            |(time, tid, start, length, stack)| Record::Remap { time, tid, start, length, stack }
        ),
        (time(), tid(), address(), address(), stack_id())
            .prop_map(|(time, tid, old, new, stack)| Record::Break { time, tid, old, new, stack }),
        (time(), tid(), address(), number(), stack_id()).prop_map(
            |(time, tid, start, length, stack)| Record::Commit { time, tid, start, length, stack }
        ),
        (time(), tid(), address(), number())
            .prop_map(|(time, tid, start, length)| Record::Decommit { time, tid, start, length }),
    ]
}

fn records() -> impl Strategy<Value = Vec<Record>> {
    // Boxed: a value with room for every variant would not fit into a test's stack.
    let record = prop_oneof![
        8 => heap().boxed(),
        2 => mapping().boxed(),
        1 => setting().boxed(),
        1 => life().boxed(),
    ];
    vec(record, 0..200)
}

proptest! {
    #[test]
    fn records_round_trip(records in records(), block in 1..80usize) {
        let bytes = trace_of(&records, block);

        let (found, end) = read(&bytes);

        prop_assert_eq!(found, records);
        prop_assert_eq!(end.unwrap(), None);
    }
}

#[test]
fn every_variant_is_generated() {
    let mut seen = [false; VARIANTS];
    let mut runner = proptest::test_runner::TestRunner::deterministic();

    let strategy = records();
    for _ in 0..50 {
        let records = strategy.new_tree(&mut runner).unwrap().current();
        records.iter().for_each(|record| seen[variant(record)] = true);
    }

    assert_eq!(seen, [true; VARIANTS]);
}

#[test]
fn blocks_longer_than_a_full_one_round_trip() {
    let records: Vec<_> = (0..200_000)
        .map(|n| Record::Alloc {
            time: Time(n),
            tid: Tid(7),
            api: Api::Malloc,
            ptr: Avma(0x1000 + n * 48),
            size: n % 90,
            alignment: Alignment::NONE,
            stack: WireStackId(n % 30),
        })
        .collect();

    let (found, end) = read(&trace_of(&records, usize::MAX));

    assert_eq!(found, records);
    assert_eq!(end.unwrap(), None);
}

#[test]
fn free_beyond_the_remembered_allocs_round_trips() {
    let alloc = |n: u64| Record::Alloc {
        time: Time(0),
        tid: Tid(7),
        api: Api::Malloc,
        ptr: Avma(n * 16),
        size: 8,
        alignment: Alignment::NONE,
        stack: WireStackId(1),
    };
    let free =
        |n: u64| Record::Free { time: Time(0), tid: Tid(7), api: Api::Free, ptr: Avma(n * 16) };
    let mut records: Vec<_> = (1..300_000).map(alloc).collect();
    records.extend((1..300_000).map(free));

    let (found, _) = read(&trace_of(&records, usize::MAX));

    assert_eq!(found, records);
}

#[test]
fn more_stacks_and_threads_than_the_dictionaries_hold_round_trip() {
    let records: Vec<_> = (0..400_000)
        .map(|n: u32| Record::Alloc {
            time: Time(0),
            tid: Tid(n),
            api: Api::Malloc,
            ptr: Avma(16),
            size: 8,
            alignment: Alignment::NONE,
            stack: WireStackId(u64::from(n) << 32),
        })
        .collect();

    let (found, end) = read(&trace_of(&records, usize::MAX));

    assert!(found == records);
    assert_eq!(end.unwrap(), None);
}

#[test]
fn deep_stacks_that_share_frames_round_trip() {
    let frames = |inner: u64| {
        std::iter::once(inner)
            .chain(0x1000..0x1000 + 2 * MAX_SHARED_FRAMES as u64)
            .map(Avma)
            .collect()
    };
    let stack =
        |id, frames| Record::Stack { id: WireStackId(id), pid: Pid(1), end: End::Root, frames };
    let records =
        vec![stack(1, frames(5)), stack(2, frames(6)), stack(3, vec![]), stack(4, frames(6))];

    let (found, _) = read(&trace_of(&records, usize::MAX));

    assert_eq!(found, records);
}

#[test]
fn longest_command_line_of_linux_round_trips() {
    // 6 MiB, each argument a byte and its zero.
    let command = vec![b"x".to_vec(); 3 << 20];
    let mut records = vec![Record::Exec { time: Time(1), pid: Pid(1), exe: vec![], command }];
    let unmap = |n: u64| Record::Unmap {
        time: Time(n << 40),
        tid: Tid(n as u32),
        start: Avma(n << 60),
        length: u64::MAX,
    };
    // The longest operations, so that a block with all of them would be too large.
    records.splice(0..0, (0..60_000).map(unmap));
    records.extend((0..60_000).map(unmap));

    let (found, end) = read(&trace_of(&records, usize::MAX));

    assert!(found == records);
    assert_eq!(end.unwrap(), None);
}

#[test]
fn stack_beyond_the_limit_is_refused_and_leaves_the_trace_whole() {
    let stack = |frames| Record::Stack {
        id: WireStackId(1),
        pid: Pid(1),
        end: End::Root,
        frames: vec![Avma(1); frames],
    };
    let mut writer = Writer::new(Vec::new()).unwrap();
    writer.write(&stack(MAX_STACK_FRAMES)).unwrap();

    let refused = writer.write(&stack(MAX_STACK_FRAMES + 1));

    assert!(matches!(refused, Err(WriteError::StackTooDeep { .. })));
    assert_eq!(read(&writer.finish().unwrap()).0, [stack(MAX_STACK_FRAMES)]);
}

#[test]
fn record_beyond_the_limit_is_refused_and_leaves_the_trace_whole() {
    let tick = Record::Tick { time: Time(1) };
    let mut writer = Writer::new(Vec::new()).unwrap();
    writer.write(&tick).unwrap();

    let huge = Record::Thread { time: Time(2), pid: Pid(1), tid: Tid(1), name: vec![0; 16 << 20] };
    let refused = writer.write(&huge);

    assert!(matches!(refused, Err(WriteError::RecordTooLarge { .. })));
    let (found, end) = read(&writer.finish().unwrap());
    assert_eq!(found, [tick]);
    assert_eq!(end.unwrap(), None);
}
