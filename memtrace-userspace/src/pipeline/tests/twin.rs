//! The pipeline and its stupid twin get the same records and must say the same.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::oracle::{CODE_BYTES, Oracle, Path, Where};
use super::*;
use crate::pipeline::DetectorOptions;
use crate::pipeline::detect::Total;
use crate::pipeline::processes::Running;
use crate::pipeline::snapshot::{Memory, Place, StackUsage};

const TIMELINE_POINTS: usize = 8;

/// Everything is drawn from few values, so that it collides.
pub(super) fn records() -> impl Strategy<Value = Vec<Record>> {
    let pid = || prop_oneof![Just(MAIN), Just(MAIN + 1), Just(CHILD)].prop_map(Pid);
    let tid = || {
        prop_oneof![4 => Just(MAIN), 2 => Just(MAIN + 1), 2 => Just(CHILD), 3 => 300u32..304]
            .prop_map(Tid)
    };
    let ptr = || (1u64..12).prop_map(|n| Avma(n * 16));
    let page = || (1u64..24, 0u64..8192).prop_map(|(n, rest)| (Avma(n * 4096), rest));
    let length = || (0u64..9, any::<bool>()).prop_map(|(n, odd)| n * 4096 + u64::from(odd) * 5);
    let wire = || (0u64..6).prop_map(WireStackId);
    let code = || (0u64..CODE_BYTES as u64).prop_map(Avma);
    let size = || 0u64..100;
    let alignment = || (0u8..3).prop_filter_map("in an address", Alignment::from_log2);
    let time = Time(0);
    let api = prop_oneof![Just(Api::Malloc), Just(Api::Calloc), Just(Api::Realloc)];
    let kind = prop_oneof![
        4 => Just(MapKind::Anonymous),
        1 => Just(MapKind::File),
        2 => Just(MapKind::Reserved),
    ];
    let image = prop_oneof![
        Just(Image::Anonymous),
        Just(Image::Vdso),
        "[ab]".prop_map(|path| Image::File { path: path.into(), build_id: vec![] }),
    ];
    let end = prop_oneof![3 => Just(End::Root), 1 => Just(End::NoUnwindInfo)];
    let frames = prop_oneof![
        prop::collection::vec(Just(Avma(3)), 0..2),
        prop::collection::vec(code(), 0..3),
    ];
    let memory = prop_oneof![
        8 => (tid(), api, ptr(), size(), alignment(), wire()).prop_map(
            move |(tid, api, ptr, size, alignment, stack)| {
                Record::Alloc { time, tid, api, ptr, size, alignment, stack }
            }
        ),
        6 => (tid(), ptr())
            .prop_map(move |(tid, ptr)| Record::Free { time, tid, api: Api::Free, ptr }),
        2 => (tid(), ptr()).prop_map(move |(tid, ptr)| Record::Retire { time, tid, ptr }),
        2 => (tid(), ptr()).prop_map(move |(tid, ptr)| Record::Restore { time, tid, ptr }),
        4 => (tid(), page(), length(), kind, wire()).prop_map(
            move |(tid, (start, _), length, kind, stack)| {
                Record::Map { time, tid, start, length, kind, stack }
            }
        ),
        4 => (tid(), page(), length()).prop_map(move |(tid, (start, _), length)| {
            Record::Unmap { time, tid, start, length }
        }),
        2 => tid().prop_map(move |tid| Record::UnmapFailed { time, tid }),
        2 => (tid(), page(), length()).prop_map(move |(tid, (start, _), length)| {
            Record::RemapStart { time, tid, start, length }
        }),
        2 => (tid(), page(), length(), wire()).prop_map(
            move |(tid, (start, _), length, stack)| {
                Record::Remap { time, tid, start, length, stack }
            }
        ),
        3 => (tid(), page(), length(), wire()).prop_map(
            move |(tid, (start, _), length, stack)| {
                Record::Commit { time, tid, start, length, stack }
            }
        ),
        2 => (tid(), page(), length()).prop_map(move |(tid, (start, _), length)| {
            Record::Decommit { time, tid, start, length }
        }),
        2 => (tid(), page(), page(), wire(), any::<bool>()).prop_map(
            move |(tid, old, new, stack, first)| {
                let old = if first { Avma(0) } else { Avma(old.0.0 + old.1) };
                Record::Break { time, tid, old, new: Avma(new.0.0 + new.1), stack }
            }
        ),
    ];
    let life = prop_oneof![
        2 => (pid(), tid(), "[xy]").prop_map(move |(pid, tid, name)| {
            Record::Thread { time, pid, tid, name: name.into() }
        }),
        1 => tid().prop_map(move |tid| Record::ThreadExit { time, tid }),
        2 => (wire(), pid(), end, frames)
            .prop_map(|(id, pid, end, frames)| Record::Stack { id, pid, end, frames }),
        2 => (pid(), code(), 0u64..20, 0u64..9, image).prop_map(
            move |(pid, start, length, offset, image)| {
                let end = Avma((start.0 + 1 + length).min(CODE_BYTES as u64));
                Record::Module(Module { time, pid, start, end, offset: FileOffset(offset), image })
            }
        ),
        1 => (pid(), code())
            .prop_map(move |(pid, start)| Record::ModuleGone { time, pid, start }),
        1 => (pid(), pid())
            .prop_map(move |(parent, child)| Record::Fork { time, parent, child }),
        1 => pid().prop_map(|pid| exec(0, pid.0)),
        1 => pid().prop_map(move |pid| Record::Exit { time, pid }),
        1 => (pid(), any::<bool>()).prop_map(move |(pid, child)| {
            let parent = child.then_some(Pid(MAIN));
            Record::Process(Process { time, pid, parent, exe: b"e".to_vec(), command: vec![] })
        }),
        1 => (pid(), size())
            .prop_map(move |(pid, rss_bytes)| Record::Resident { time, pid, rss_bytes }),
        1 => Just(Record::Tick { time }),
        1 => size().prop_map(|value| Record::Counters(vec![("lost_frees".to_owned(), value)])),
    ];
    let record = prop_oneof![3 => memory, 1 => life];
    let start = prop_oneof![
        Just(vec![session(MAIN)]),
        Just(vec![session(MAIN), process(MAIN), thread(MAIN, 300)]),
        Just(vec![
            session(MAIN),
            process(MAIN),
            thread(MAIN, MAIN),
            thread(MAIN, 300),
            process(MAIN + 1),
            thread(MAIN + 1, 301),
        ]),
    ];
    let step = prop_oneof![6 => 0i64..50_000, 1 => 0i64..3_000_000, 1 => -100_000i64..0];
    (start, prop::collection::vec((record, step), 0..120)).prop_map(|(start, rest)| {
        let mut time = 0u64;
        let timed = rest.into_iter().map(|(record, step)| {
            time = time.saturating_add_signed(step);
            at(record, Time(time))
        });
        start.into_iter().chain(timed).flat_map(with_operations).collect()
    })
}

/// A mapping, and the operations that functions of its file belong to.
fn with_operations(record: Record) -> Vec<Record> {
    let code = |path: &[u8]| match path {
        b"a" => [(2, 4, "x"), (6, 9, "y")],
        _ => [(1, 7, "y"), (5, 8, "x")],
    };
    let mut records = vec![];
    if let Record::Module(Module {
        pid, start, end, offset, image: Image::File { path, .. }, ..
    }) = &record
    {
        for (from, to, class) in code(path) {
            let at = |code: u64| (start.0 + code.saturating_sub(offset.0)).min(end.0);
            let (start, length) = (Avma(at(from)), at(to) - at(from));
            if length > 0 {
                records.push(Record::Operation { pid: *pid, start, length, class: class.into() });
            }
        }
    }
    records.insert(0, record);
    records
}

/// The record at another time, if it has one.
fn at(mut record: Record, now: Time) -> Record {
    match &mut record {
        Record::Process(Process { time, .. })
        | Record::Module(Module { time, .. })
        | Record::ModuleGone { time, .. }
        | Record::Thread { time, .. }
        | Record::ThreadExit { time, .. }
        | Record::Alloc { time, .. }
        | Record::Free { time, .. }
        | Record::Retire { time, .. }
        | Record::Restore { time, .. }
        | Record::Map { time, .. }
        | Record::Unmap { time, .. }
        | Record::UnmapFailed { time, .. }
        | Record::RemapStart { time, .. }
        | Record::Remap { time, .. }
        | Record::Break { time, .. }
        | Record::Commit { time, .. }
        | Record::Decommit { time, .. }
        | Record::Fork { time, .. }
        | Record::Exec { time, .. }
        | Record::Exit { time, .. }
        | Record::Resident { time, .. }
        | Record::Mark { time, .. }
        | Record::JitSymbol { time, .. }
        | Record::MemoryDetail { time, .. }
        | Record::MemoryLimit { time, .. }
        | Record::Tick { time }
        | Record::End { time, .. } => *time = now,
        Record::Session(_)
        | Record::Probe(_)
        | Record::BeforeAttach(_)
        | Record::Namespaces(_)
        | Record::Operation { .. }
        | Record::Stack { .. }
        | Record::Held { .. }
        | Record::Counters(_) => {}
    }
    record
}

pub(super) fn path(snapshot: &Snapshot, stack: &StackUsage) -> Path {
    let place = |place: &Place| match *place {
        Place::InFile { image, offset } => {
            let name = match &*snapshot.images[image as usize] {
                Image::File { path, .. } => format!("{path:?}"),
                Image::Vdso => "vdso".to_owned(),
                Image::Anonymous => panic!("anonymous memory is no file"),
            };
            Where::File(name, offset.0)
        }
        Place::Anonymous { pid, address } => Where::Anonymous(pid.0, address.0),
        Place::Unknown { pid, address } => Where::Unknown(pid.0, address.0),
    };
    (stack.stack.end, stack.stack.frames.iter().map(place).collect())
}

fn sum(parts: impl Iterator<Item = Usage>) -> Usage {
    parts.fold(Usage::default(), |mut sum, part| {
        crate::pipeline::account::add_usage(&mut sum, &part);
        sum
    })
}

fn assert_equal(snapshot: &Snapshot, oracle: &Oracle) {
    let mut stacks = BTreeMap::new();
    for stack in &snapshot.stacks {
        let key = (path(snapshot, stack), stack.api);
        assert!(stacks.insert(key, stack.usage).is_none(), "two entries for a stack and an API");
    }
    let mut expected = oracle.heap(|path, api, _, _| (path, api));
    expected.append(&mut oracle.mapped(|path, api, _| (path, api)));
    expected.retain(|_, usage| *usage != Usage::default());
    assert_eq!(stacks, expected);

    let heap = oracle.heap(|_, _, process, _| process);
    let mapped = oracle.mapped(|_, _, process| process);
    let of = |sums: &BTreeMap<usize, Usage>, n| sums.get(&n).copied().unwrap_or_default();
    let processes: Vec<_> = snapshot
        .processes
        .iter()
        .map(|p| {
            let ended = p.ended.map(|time| time.0);
            let times = (p.started.0, ended, p.resident_bytes);
            (p.pid.0, p.parent.map(|pid| pid.0), p.exe.clone(), times, p.heap, p.mapped)
        })
        .collect();
    let expected: Vec<_> = oracle
        .processes
        .iter()
        .enumerate()
        .map(|(n, p)| {
            let times = (p.started, p.ended, p.resident);
            (p.pid, p.parent, p.exe.clone(), times, of(&heap, n), of(&mapped, n))
        })
        .collect();
    assert_eq!(processes, expected);

    let heap = oracle.heap(|_, _, _, thread| thread);
    let threads: Vec<_> =
        snapshot.threads.iter().map(|t| (t.pid.0, t.tid.0, t.name.clone(), t.heap)).collect();
    let mut expected: Vec<_> = oracle
        .threads
        .iter()
        .enumerate()
        .map(|(n, t)| (t.pid, t.tid, t.name.clone(), of(&heap, n)))
        .collect();
    expected.sort_by_key(|&(pid, tid, _, _)| (pid, tid));
    assert_eq!(threads, expected);

    let operations: Vec<_> =
        snapshot.operations.iter().map(|o| (o.name.to_string(), o.heap, o.mapped)).collect();
    let heap = oracle.heap(|path, _, _, _| oracle.operation(&path));
    let mapped = oracle.mapped(|path, _, _| oracle.operation(&path));
    let of = |sums: &BTreeMap<Option<String>, Usage>, name: &String| {
        sums.get(&Some(name.clone())).copied().unwrap_or_default()
    };
    let expected: Vec<_> = oracle
        .operation_names
        .iter()
        .map(|name| (name.clone(), of(&heap, name), of(&mapped, name)))
        .collect();
    assert_eq!(operations, expected);

    let totals = &snapshot.totals;
    assert_eq!((totals.peak_live_bytes, totals.peak_at.0), oracle.peak);
    assert_eq!(totals.heap.peak_bytes, totals.peak_live_bytes);
    assert_eq!(totals.heap, sum(snapshot.threads.iter().map(|thread| thread.heap)));
    assert_eq!(totals.heap, sum(snapshot.processes.iter().map(|process| process.heap)));
    assert_eq!(totals.mapped, sum(snapshot.processes.iter().map(|process| process.mapped)));
    assert_eq!(totals.temporary_allocations, totals.heap.temporary_allocations);
    assert_eq!((snapshot.now.0, snapshot.events), (oracle.now, oracle.events));
    assert_eq!(snapshot.counters, oracle.counters());

    let timeline: Vec<_> = snapshot
        .timeline
        .iter()
        .map(|p| {
            let (allocated, count) = (p.allocated_bytes, p.allocations);
            let peak = p.peak_live_bytes;
            [p.time.0, p.live_bytes, peak, p.mapped_bytes, allocated, count, p.resident_bytes]
        })
        .collect();
    assert_eq!(timeline, oracle.timeline(TIMELINE_POINTS as u64));
}

/// What is counted as it changes must be what there is.
fn assert_consistent(pipeline: &Pipeline) {
    let Pipeline { live_blocks, mapping_pieces, modules, resident_bytes, limits, .. } = pipeline;
    let sum = |of: fn(&Running) -> usize| pipeline.processes.all_running().map(of).sum::<usize>();
    assert_eq!(*live_blocks, sum(|running| running.heap.len()));
    assert_eq!(*live_blocks, sum(|running| running.heap.blocks().count()));
    assert_eq!(*mapping_pieces, sum(|running| running.mappings.len()));
    assert_eq!(*modules, sum(|running| running.modules.len()));
    for operation in pipeline.operations.by_name() {
        for memory in [Memory::Heap, Memory::Mapped] {
            let total = Total { operation: Some(operation), memory };
            let sites = pipeline.stacks.sites().filter(|site| total.has(*site, &pipeline.stacks));
            let held = sites.map(|site| pipeline.stacks.account(site).held_bytes()).sum::<u64>();
            assert_eq!(pipeline.operations.held_bytes(operation, memory), held);
        }
    }
    assert_eq!(*resident_bytes, sum(|running| running.resident_bytes as usize) as u64);
    assert!(*live_blocks <= limits.live_blocks, "{live_blocks} live blocks");
    assert!(*mapping_pieces <= limits.mappings, "{mapping_pieces} pieces");
    assert!(*modules <= limits.modules, "{modules} modules");
}

/// What holds even when much is left out: parts add up to the whole.
fn assert_adds_up(snapshot: &Snapshot) {
    let totals = &snapshot.totals;
    let (heap, mapped): (Vec<_>, Vec<_>) =
        snapshot.stacks.iter().partition(|stack| stack.api.acquires_block());
    assert_eq!(totals.heap, sum(heap.iter().map(|stack| stack.usage)));
    assert_eq!(totals.mapped, sum(mapped.iter().map(|stack| stack.usage)));
    assert_eq!(totals.heap, sum(snapshot.threads.iter().map(|thread| thread.heap)));
    assert_eq!(totals.heap.peak_bytes, totals.peak_live_bytes);
    for usage in snapshot.stacks.iter().map(|stack| stack.usage).chain([totals.heap]) {
        let Usage { allocations, frees, live_blocks, inherited_blocks, .. } = usage;
        assert_eq!(live_blocks, allocations - frees + inherited_blocks);
    }
}

/// 400 cases, or as many as `PROPTEST_CASES` asks for beyond that.
pub(super) fn config() -> ProptestConfig {
    let config = ProptestConfig::default();
    ProptestConfig { cases: config.cases.max(400), ..config }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn pipeline_equals_its_twin(records in records(), stop in 0usize..120) {
        let limits = Limits { timeline_points: TIMELINE_POINTS, ..Limits::default() };
        let (mut pipeline, mut oracle) = (Pipeline::new(limits), Oracle::default());

        // A snapshot in between changes nothing, nor does it to apply records together.
        let (first, rest) = records.split_at(stop.min(records.len()));
        first.iter().for_each(|record| pipeline.apply(record));
        first.iter().for_each(|record| oracle.apply(record));
        assert_equal(&pipeline.snapshot(), &oracle);
        pipeline.apply_all(rest);
        rest.iter().for_each(|record| oracle.apply(record));
        assert_equal(&pipeline.snapshot(), &oracle);
        assert_consistent(&pipeline);
    }

    #[test]
    fn pipeline_with_little_room_keeps_to_it_and_adds_up(records in records(), room in 1usize..6) {
        let limits = Limits {
            aligned_sites: 2,
            stacks: 2 + room,
            stack_frames: room,
            stack_ids: room,
            live_blocks: room,
            mappings: room,
            processes: room.min(2),
            process_sites: room,
            running_processes: room,
            threads: room,
            running_threads: room,
            modules: 2 + room,
            images: room.min(1) as u32,
            operations: room.min(2),
            operation_code: room,
            operation_thresholds: BTreeMap::new(),
            jit_symbols: 2,
            jit_addresses: 2,
            probes: room,
            counters: 0,
            marks: room,
            timeline_points: TIMELINE_POINTS,
            spike_changes: room,
            history_points: room,
            histogram_sites: room,
            reallocation_sites: room,
            temporary_between: room - 1,
            detectors: DetectorOptions::default(),
            text_bytes: 1,
        };
        let mut pipeline = Pipeline::new(limits);

        pipeline.apply_all(&records);

        let snapshot = pipeline.snapshot();
        assert_consistent(&pipeline);
        assert_adds_up(&snapshot);
        prop_assert!(snapshot.processes.len() <= 3);
        prop_assert!(snapshot.threads.len() <= room + 3);
        prop_assert!(snapshot.timeline.len() <= TIMELINE_POINTS);
    }
}
