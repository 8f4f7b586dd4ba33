//! A file of each format version, and what it says.
//!
//! `version_1.golden` holds [`records`], as memtrace 0.1.0 wrote them. It is written once, by
//! `cargo xtask bless` when it does not exist; from then on it proves that old traces can be read.

use std::path::Path;

use memtrace_common::addr::{Avma, FileOffset};
use memtrace_common::event::Api;
use memtrace_common::unwind::End;

use super::records::{VARIANTS, figures, variant};
use super::{read, trace_of};
use crate::record::{
    Alignment, BeforeAttach, EndReason, Image, LimitKind, MapKind, MemoryByKind, Module,
    Namespaces, Origin, Pid, Probe, ProbeCost, Process, Record, Session, Tid, Time, WireStackId,
};

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/trace/tests/version_1.golden");

/// A short session with everything that can happen in it.
fn records() -> Vec<Record> {
    let (pid, child, tid) = (Pid(100), Pid(101), Tid(102));
    let stack = WireStackId(0x1234_5678_9abc_def0);
    let block = Avma(0x5555_0000_12a0);
    let range = Avma(0x7f00_0000_0000);
    let mut clock = (1..).map(|tick| Time(tick * 1500));
    let mut now = || clock.next().unwrap();
    vec![
        Record::Session(Session {
            tool_version: "0.1.0".into(),
            kernel: "6.1.0-18-amd64".into(),
            started_unix_s: 1_700_000_000,
            pid,
            origin: Origin::Attached,
        }),
        Record::Probe(Probe {
            symbol: "malloc".into(),
            module: b"/lib/libc.so.6".to_vec(),
            offset: FileOffset(0x98860),
            cost: ProbeCost::Emulated,
        }),
        Record::Process(Process {
            time: now(),
            pid,
            parent: None,
            exe: b"/bin/server".to_vec(),
            command: vec![b"server".to_vec(), b"--port=1\x1b[31m".to_vec()],
        }),
        Record::BeforeAttach(BeforeAttach {
            pid,
            heap_bytes: 135_168,
            anonymous_bytes: 8192,
            resident_bytes: 1_048_576,
        }),
        Record::Namespaces(Namespaces {
            pid,
            inner_pids: vec![70_000, 7],
            cgroup: Some(b"/docker/3f2a".to_vec()),
            container: None,
        }),
        Record::Module(Module {
            time: now(),
            pid,
            start: Avma(0x5555_0000_0000),
            end: Avma(0x5555_0000_1000),
            offset: FileOffset(0x1000),
            image: Image::File { path: b"/bin/server".to_vec(), build_id: vec![0xca, 0xfe] },
        }),
        Record::Operation {
            pid,
            start: Avma(0x5555_0000_0100),
            length: 0x40,
            class: "select".into(),
        },
        Record::Thread { time: now(), pid, tid, name: b"worker".to_vec() },
        Record::Stack { id: stack, pid, end: End::Root, frames: vec![Avma(0x5555_0000_0123)] },
        Record::Alloc {
            time: now(),
            tid,
            api: Api::Malloc,
            ptr: block,
            size: 24,
            alignment: Alignment::NONE,
            stack,
        },
        Record::Retire { time: now(), tid, ptr: block },
        Record::Restore { time: now(), tid, ptr: block },
        Record::Free { time: now(), tid, api: Api::Free, ptr: block },
        Record::Alloc {
            time: now(),
            tid,
            api: Api::Malloc,
            ptr: block,
            size: 24,
            alignment: Alignment::NONE,
            stack,
        },
        Record::Alloc {
            time: now(),
            tid,
            api: Api::PosixMemalign,
            ptr: Avma(0x5555_0000_2000),
            size: 100,
            alignment: Alignment::from_log2(12).unwrap(),
            stack,
        },
        Record::Map { time: now(), tid, start: range, length: 5 << 30, kind: MapKind::File, stack },
        Record::RemapStart { time: now(), tid, start: range, length: 4096 },
        Record::Remap { time: now(), tid, start: range, length: 8192, stack },
        Record::Unmap { time: now(), tid, start: range, length: 4096 },
        Record::UnmapFailed { time: now(), tid },
        Record::Break { time: now(), tid, old: Avma(0x1000), new: Avma(0x800), stack },
        Record::Commit { time: now(), tid, start: range, length: 8192, stack },
        Record::Decommit { time: now(), tid, start: range, length: 4096 },
        Record::Fork { time: now(), parent: pid, child },
        Record::Exec { time: now(), pid: child, exe: b"/bin/ls".to_vec(), command: vec![] },
        Record::Exit { time: now(), pid: child },
        Record::Resident { time: now(), pid, rss_bytes: 2_097_152 },
        Record::MemoryLimit {
            time: now(),
            pid,
            kind: LimitKind::Cgroup,
            limit_bytes: 1 << 32,
            used_bytes: 1 << 30,
        },
        Record::Counters(vec![("lost_frees".into(), 3)]),
        Record::JitSymbol {
            time: now(),
            pid,
            start: Avma(0x7f00_0000_1000),
            size: 0x40,
            name: b"JS:*handle /srv/app.js:4:1".to_vec(),
        },
        Record::MemoryDetail {
            time: now(),
            pid,
            memory: Box::new(MemoryByKind {
                heap: figures([1 << 20, 0, 1 << 19, 1 << 19, 1 << 18, 4096, 0]),
                anonymous: figures([1 << 22, 1 << 26, 1 << 21, 1 << 21, 1 << 21, 0, 1 << 21]),
                ..MemoryByKind::default()
            }),
        },
        Record::Mark { time: now(), text: "after warm-up".into() },
        Record::Held {
            born: Time(1500),
            pid,
            tid,
            api: Some(Api::Malloc),
            start: block,
            length: 24,
            alignment: Alignment::NONE,
            stack,
        },
        Record::Held {
            born: Time(3000),
            pid,
            tid,
            api: Some(Api::PosixMemalign),
            start: Avma(0x5555_0000_2000),
            length: 100,
            alignment: Alignment::from_log2(12).unwrap(),
            stack,
        },
        Record::Held {
            born: Time(0),
            pid,
            tid,
            api: None,
            start: range,
            length: 4096,
            alignment: Alignment::NONE,
            stack: WireStackId(0),
        },
        Record::Tick { time: now() },
        Record::ThreadExit { time: now(), tid },
        Record::ModuleGone { time: now(), pid, start: Avma(0x5555_0000_0000) },
        Record::End { time: now(), reason: EndReason::Interrupted },
    ]
}

#[test]
fn trace_of_version_1_reads_as_it_was_written() {
    let blessing = std::env::var_os("INSTA_UPDATE").is_some_and(|update| update == "always");
    if blessing && !Path::new(PATH).exists() {
        std::fs::write(PATH, trace_of(&records(), 10)).unwrap();
    }

    let (found, end) = read(&std::fs::read(PATH).unwrap());

    assert_eq!(found, records());
    assert_eq!(end.unwrap(), None);
}

#[test]
fn golden_session_has_every_variant() {
    let mut seen = [false; VARIANTS];

    records().iter().for_each(|record| seen[variant(record)] = true);

    assert_eq!(seen, [true; VARIANTS]);
}
