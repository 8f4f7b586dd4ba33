//! A pipeline that counts some processes says what the one that counts all says of them.

use proptest::prelude::*;

use super::twin::records;
use super::*;
use crate::pipeline::add_usage;
use crate::pipeline::snapshot::{ProcessUsage, Stack, StackUsage};
use crate::record::Namespaces;

fn snapshot_only(pid: u32, records: &[Record]) -> Arc<Snapshot> {
    let mut pipeline = Pipeline::only(Limits::default(), vec![Pid(pid)]);
    pipeline.apply_all(records);
    pipeline.snapshot()
}

fn telling_processes_apart(process_sites: usize, records: &[Record]) -> Arc<Snapshot> {
    snapshot_within(Limits { process_sites, ..Limits::default() }, records)
}

/// The usage of each call path; bytes at the peak only of those that belong to the session's.
fn by_path(stacks: &[StackUsage], peak: fn(u64) -> u64) -> Vec<(Stack, Api, Usage)> {
    let mut paths: Vec<(Stack, Api, Usage)> = Vec::new();
    for StackUsage { stack, api, usage } in stacks {
        let usage = Usage { peak_bytes: peak(usage.peak_bytes), ..*usage };
        match paths.iter_mut().find(|(path, of, _)| *path == **stack && of == api) {
            Some((_, _, sum)) => add_usage(sum, &usage),
            None => paths.push(((**stack).clone(), *api, usage)),
        }
    }
    paths.retain(|(_, _, usage)| *usage != Usage::default());
    paths.sort_by_key(|(path, api, _)| format!("{path:?} {api:?}"));
    paths
}

/// Everything but the bytes at the peak, which is another one.
fn without_peak(process: &ProcessUsage) -> (Pid, Usage, Usage, Option<u64>) {
    let usage = |usage: Usage| Usage { peak_bytes: 0, ..usage };
    (process.pid, usage(process.heap), usage(process.mapped), process.resident_bytes)
}

/// The counters that do not come from what is shown.
fn of_session(snapshot: &Snapshot) -> Vec<(&str, u64)> {
    let mut counters = counters(snapshot);
    counters.retain(|(name, _)| !name.starts_with("allocations_with_stack_ended"));
    counters
}

fn family() -> Vec<Record> {
    vec![
        session(MAIN),
        process(MAIN),
        thread(MAIN, MAIN),
        stack(1, 1),
        alloc(1, MAIN, 0x10, 100, 1),
        fork(2, MAIN, CHILD),
        thread(CHILD, CHILD),
        alloc(3, CHILD, 0x20, 7, 1),
        free(4, CHILD, 0x10),
        alloc(5, MAIN, 0x20, 1000, 1),
    ]
}

#[test]
fn child_alone_holds_what_it_inherited_and_frees_it() {
    let before_the_free = snapshot_only(CHILD, &family()[..8]);
    let snapshot = snapshot_only(CHILD, &family());

    let inherited = Usage {
        live_blocks: 2,
        live_bytes: 107,
        inherited_blocks: 1,
        inherited_bytes: 100,
        ..usage(1, 7, 0, 0, 107)
    };
    assert_eq!(before_the_free.totals.heap, inherited);
    assert_eq!(snapshot.totals.heap, usage(1, 7, 0, 0, 107));
    assert_eq!(snapshot.totals.peak_live_bytes, 107);
    assert_eq!(usage_at(&snapshot, Api::Malloc, 1), usage(1, 7, 0, 0, 107));
    assert_eq!(counters(&snapshot), []);
    assert_eq!(snapshot.processes.len(), 1);
    assert_eq!(snapshot.left_out_processes, 1);
}

#[test]
fn threads_of_other_processes_are_left_out() {
    let snapshot = snapshot_only(MAIN, &family());

    assert_eq!(snapshot.threads.len(), 1);
    assert_eq!(snapshot.threads[0].pid, Pid(MAIN));
}

#[test]
fn ids_of_all_processes_are_known_whoever_counts() {
    let mut pipeline = Pipeline::only(Limits::default(), vec![Pid(9)]);

    pipeline.apply_all(&family());

    assert_eq!(pipeline.pids(), [Pid(MAIN), Pid(CHILD)]);
    assert_eq!(pipeline.snapshot().processes.len(), 0);
}

#[test]
fn processes_are_told_apart_only_if_somebody_asks() {
    assert_eq!(snapshot_of(&family()).process_stacks.len(), 0);

    let snapshot = telling_processes_apart(8, &family());

    let child = &snapshot.process_stacks[&Pid(CHILD)];
    assert_eq!(child.len(), 1);
    // At the peak, which is the session's.
    assert_eq!(child[0].usage, usage(1, 7, 0, 0, 7));
    assert_eq!(counters(&snapshot), []);
}

#[test]
fn call_paths_of_processes_beyond_the_limit_are_those_of_nobody() {
    let snapshot = telling_processes_apart(1, &family());

    let pids: Vec<_> = snapshot.process_stacks.keys().copied().collect();
    assert_eq!(pids, [Pid(0), Pid(MAIN)]);
    assert_eq!(snapshot.process_stacks[&Pid(0)][0].usage, usage(1, 7, 0, 0, 7));
    assert_eq!(counters(&snapshot), [("process_sites_beyond_limit", 3)]);
}

#[test]
fn place_of_a_process_is_shown_and_cut_to_what_the_kernel_allows() {
    let namespaces = Namespaces {
        pid: Pid(MAIN),
        inner_pids: (0..100).collect(),
        cgroup: Some(vec![b'c'; 10_000]),
        container: Some(b"3f2a".to_vec()),
    };
    let unknown = Namespaces { pid: Pid(CHILD), ..namespaces.clone() };

    let snapshot =
        snapshot_of(&[process(MAIN), Record::Namespaces(namespaces), Record::Namespaces(unknown)]);

    let [process] = &snapshot.processes[..] else { panic!("{:?}", snapshot.processes) };
    let place = process.namespaces.as_ref().expect("it was told");
    assert_eq!(process.inner_pid(), Some(99));
    assert_eq!(place.inner_pids.len(), 32);
    assert_eq!(place.cgroup.as_ref().map(Vec::len), Some(4096));
    assert_eq!(counters(&snapshot), [("texts_cut", 1)]);
}

proptest! {
    #[test]
    fn each_process_alone_does_what_it_did_among_all(records in records()) {
        let mut pipeline = Pipeline::new(Limits::default());
        pipeline.apply_all(&records);
        let all = pipeline.snapshot();

        let mut sum = 0;
        let mut temporary = 0;
        for pid in pipeline.pids() {
            let alone = snapshot_only(pid.0, &records);
            let among: Vec<_> =
                all.processes.iter().filter(|p| p.pid == pid).map(without_peak).collect();
            prop_assert_eq!(alone.processes.iter().map(without_peak).collect::<Vec<_>>(), among);
            let of_stacks = alone.stacks.iter().filter(|s| s.api.acquires_block());
            let bytes: u64 = of_stacks.map(|stack| stack.usage.live_bytes).sum();
            prop_assert_eq!(bytes, alone.totals.heap.live_bytes);
            let peak: u64 = alone.processes.iter().map(|p| p.heap.peak_bytes).sum();
            prop_assert_eq!(peak, alone.totals.peak_live_bytes);
            let timeline: u64 = alone.timeline.iter().map(|point| point.allocations).sum();
            prop_assert_eq!(timeline, alone.totals.heap.allocations);
            prop_assert_eq!(of_session(&alone), of_session(&all));
            sum += alone.totals.heap.allocations;
            temporary += alone.totals.temporary_allocations;
        }

        prop_assert_eq!(sum, all.totals.heap.allocations);
        prop_assert_eq!(temporary, all.totals.temporary_allocations);
    }
    #[test]
    fn call_paths_of_processes_are_those_of_each_alone_and_add_up(records in records()) {
        let all = telling_processes_apart(usize::MAX, &records);

        for process in &all.processes {
            let alone = snapshot_only(process.pid.0, &records);
            let among = all.process_stacks.get(&process.pid).map_or(&[][..], Vec::as_slice);
            // Alone, it has a peak of its own.
            prop_assert_eq!(by_path(among, |_| 0), by_path(&alone.stacks, |_| 0));
        }
        let together: Vec<StackUsage> = all.process_stacks.values().flatten().cloned().collect();
        prop_assert_eq!(by_path(&together, |peak| peak), by_path(&all.stacks, |peak| peak));
    }
}
