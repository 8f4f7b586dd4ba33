//! Short traces and what must come of them; [`twin`] compares long ones with a stupid twin.

mod address_space;
mod commit;
mod freed;
mod heap;
mod journal;
mod leak_corpus;
mod lifecycle;
mod limits;
mod operations;
mod oracle;
mod range;
mod shown;
mod spikes;
mod stacks;
mod statistics;
mod twin;

use std::sync::Arc;

use memtrace_common::addr::{Avma, FileOffset};
use memtrace_common::event::Api;
use memtrace_common::unwind::End;

use super::snapshot::{Snapshot, Usage};
use super::{Limits, Pipeline};
use crate::record::{
    Alignment, Image, MapKind, Module, Origin, Pid, Process, Record, Session, Tid, Time,
    WireStackId,
};

/// The process of most traces, and the id of its main thread.
const MAIN: u32 = 100;
/// Another thread of it.
const WORKER: u32 = 101;
/// A child process, and its main thread.
const CHILD: u32 = 200;

fn snapshot_of(records: &[Record]) -> Arc<Snapshot> {
    snapshot_within(Limits::default(), records)
}

fn snapshot_within(limits: Limits, records: &[Record]) -> Arc<Snapshot> {
    let mut pipeline = Pipeline::new(limits);
    for record in records {
        pipeline.apply(record);
    }
    pipeline.snapshot()
}

/// The counters of a snapshot, to compare with literals.
fn counters(snapshot: &Snapshot) -> Vec<(&str, u64)> {
    snapshot.counters.iter().map(|(name, value)| (name.as_str(), *value)).collect()
}

/// What the call path that `place` ends in did through `api`.
fn usage_at(snapshot: &Snapshot, api: Api, frame: u64) -> Usage {
    let mut found = snapshot.stacks.iter().filter(|stack| {
        let address = stack.stack.frames.first().map(|place| match place {
            super::snapshot::Place::InFile { offset, .. } => offset.0,
            super::snapshot::Place::Anonymous { address, .. } => address.0,
            super::snapshot::Place::Unknown { address, .. } => address.0,
        });
        stack.api == api && address == Some(frame)
    });
    let usage = found.next().map(|stack| stack.usage).unwrap_or_default();
    assert!(found.next().is_none(), "two entries for one stack and API");
    usage
}

/// Usage without copies.
fn usage(allocations: u64, allocated: u64, frees: u64, freed: u64, peak: u64) -> Usage {
    Usage {
        allocations,
        allocated_bytes: allocated,
        frees,
        freed_bytes: freed,
        live_blocks: allocations - frees,
        live_bytes: allocated - freed,
        inherited_blocks: 0,
        inherited_bytes: 0,
        peak_bytes: peak,
        temporary_allocations: 0,
    }
}

fn session(pid: u32) -> Record {
    Record::Session(Session {
        tool_version: "0".to_owned(),
        kernel: "6".to_owned(),
        started_unix_s: 0,
        pid: Pid(pid),
        origin: Origin::Launched,
    })
}

fn process(pid: u32) -> Record {
    Record::Process(Process {
        time: Time(0),
        pid: Pid(pid),
        parent: None,
        exe: b"/bin/program".to_vec(),
        command: vec![b"program".to_vec()],
    })
}

fn thread(pid: u32, tid: u32) -> Record {
    Record::Thread { time: Time(0), pid: Pid(pid), tid: Tid(tid), name: b"name".to_vec() }
}

/// A file mapped from its start, for frames.
fn module(pid: u32, start: u64, end: u64, path: &str) -> Record {
    Record::Module(Module {
        time: Time(0),
        pid: Pid(pid),
        start: Avma(start),
        end: Avma(end),
        offset: FileOffset(0),
        image: Image::File { path: path.into(), build_id: vec![] },
    })
}

/// A complete stack of one frame in unknown code.
fn stack(id: u64, frame: u64) -> Record {
    let frames = vec![Avma(frame)];
    Record::Stack { id: WireStackId(id), pid: Pid(MAIN), end: End::Root, frames }
}

fn alloc(time: u64, tid: u32, ptr: u64, size: u64, stack: u64) -> Record {
    Record::Alloc {
        time: Time(time),
        tid: Tid(tid),
        api: Api::Malloc,
        ptr: Avma(ptr),
        size,
        alignment: Alignment::NONE,
        stack: WireStackId(stack),
    }
}

fn realloc(time: u64, tid: u32, ptr: u64, size: u64, stack: u64) -> Record {
    Record::Alloc {
        time: Time(time),
        tid: Tid(tid),
        api: Api::Realloc,
        ptr: Avma(ptr),
        size,
        alignment: Alignment::NONE,
        stack: WireStackId(stack),
    }
}

fn free(time: u64, tid: u32, ptr: u64) -> Record {
    Record::Free { time: Time(time), tid: Tid(tid), api: Api::Free, ptr: Avma(ptr) }
}

fn retire(time: u64, tid: u32, ptr: u64) -> Record {
    Record::Retire { time: Time(time), tid: Tid(tid), ptr: Avma(ptr) }
}

fn restore(time: u64, tid: u32, ptr: u64) -> Record {
    Record::Restore { time: Time(time), tid: Tid(tid), ptr: Avma(ptr) }
}

/// `start` and `pages` count pages of 4096 bytes.
fn map(time: u64, tid: u32, start: u64, pages: u64, kind: MapKind, stack: u64) -> Record {
    let (start, length) = (Avma(start * 4096), pages * 4096);
    let (time, tid, stack) = (Time(time), Tid(tid), WireStackId(stack));
    Record::Map { time, tid, start, length, kind, stack }
}

fn unmap(time: u64, tid: u32, start: u64, pages: u64) -> Record {
    let (start, length) = (Avma(start * 4096), pages * 4096);
    Record::Unmap { time: Time(time), tid: Tid(tid), start, length }
}

fn unmap_failed(time: u64, tid: u32) -> Record {
    Record::UnmapFailed { time: Time(time), tid: Tid(tid) }
}

fn remap_start(time: u64, tid: u32, start: u64, pages: u64) -> Record {
    let (start, length) = (Avma(start * 4096), pages * 4096);
    Record::RemapStart { time: Time(time), tid: Tid(tid), start, length }
}

fn remap(time: u64, tid: u32, start: u64, pages: u64, stack: u64) -> Record {
    let (start, length) = (Avma(start * 4096), pages * 4096);
    Record::Remap { time: Time(time), tid: Tid(tid), start, length, stack: WireStackId(stack) }
}

fn commit(time: u64, tid: u32, start: u64, pages: u64, stack: u64) -> Record {
    let (start, length) = (Avma(start * 4096), pages * 4096);
    Record::Commit { time: Time(time), tid: Tid(tid), start, length, stack: WireStackId(stack) }
}

fn decommit(time: u64, tid: u32, start: u64, pages: u64) -> Record {
    let (start, length) = (Avma(start * 4096), pages * 4096);
    Record::Decommit { time: Time(time), tid: Tid(tid), start, length }
}

/// Addresses in bytes.
fn move_break(time: u64, tid: u32, old: u64, new: u64, stack: u64) -> Record {
    let (old, new) = (Avma(old), Avma(new));
    Record::Break { time: Time(time), tid: Tid(tid), old, new, stack: WireStackId(stack) }
}

fn fork(time: u64, parent: u32, child: u32) -> Record {
    Record::Fork { time: Time(time), parent: Pid(parent), child: Pid(child) }
}

fn exec(time: u64, pid: u32) -> Record {
    let (exe, command) = (b"/bin/other".to_vec(), vec![b"other".to_vec()]);
    Record::Exec { time: Time(time), pid: Pid(pid), exe, command }
}

fn exit(time: u64, pid: u32) -> Record {
    Record::Exit { time: Time(time), pid: Pid(pid) }
}
