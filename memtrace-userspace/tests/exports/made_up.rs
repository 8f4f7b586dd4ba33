//! A trace of functions of this test, so that they have names; they are never called.
//!
//! ```text
//!   time    stack                      what                                    live
//!    1 s    fill_cache ← serve         64 × malloc(1024)                     65,536
//!    2 s    parse ← serve              100 × malloc(100), each freed         65,536
//!    3 s    report ← main_of_it        malloc(1 MiB)                      1,114,112   the peak
//!    4 s                               free                                  65,536
//!    5 s    grow ← serve               malloc(100), realloc to 200           65,736
//!    6 s    report ← main_of_it        mmap(1 MiB)
//! ```

use std::fs::{self, File};
use std::hint::black_box;
use std::path::{Path, PathBuf};

use memtrace_common::addr::{Avma, FileOffset};
use memtrace_common::event::Api;
use memtrace_common::unwind::End;
use memtrace_userspace::record::{
    Alignment, EndReason, Image, MapKind, Module, Origin, Pid, Process, Record, Session, Tid, Time,
    WireStackId,
};
use memtrace_userspace::trace::Writer;
use tempfile::TempDir;

/// What all consumers must find.
pub(crate) const ALLOCATIONS: u64 = 64 + 100 + 1 + 2;
pub(crate) const ALLOCATED_BYTES: u64 = 65_536 + 10_000 + 1_048_576 + 300;
pub(crate) const LIVE_BLOCKS: u64 = 65;
pub(crate) const LIVE_BYTES: u64 = 65_536 + 200;
pub(crate) const PEAK_BYTES: u64 = 65_536 + 1_048_576;
pub(crate) const CACHE_BYTES: u64 = 65_536;
pub(crate) const PARSED_BYTES: u64 = 10_000;
pub(crate) const MAPPED_BYTES: u64 = 1 << 20;

const PID: Pid = Pid(4242);
const TID: Tid = Tid(4242);

// Different bodies, so that the linker cannot make one function of two.
#[inline(never)]
fn fill_cache() {
    black_box(1);
}
#[inline(never)]
fn parse() {
    black_box((2, 2));
}
#[inline(never)]
fn report() {
    black_box([3, 3, 3]);
}
#[inline(never)]
fn grow() {
    black_box([4, 4, 4, 4]);
}
#[inline(never)]
fn serve() {
    black_box("5");
}
#[inline(never)]
fn main_of_it() {
    black_box(6.0);
}

/// A trace in a directory of its own, which goes with it.
pub(crate) struct Trace {
    directory: TempDir,
}

impl Trace {
    pub(crate) fn new() -> Trace {
        Trace::of(&records())
    }

    pub(crate) fn of(records: &[Record]) -> Trace {
        let directory = tempfile::tempdir().expect("temp dir");
        let trace = Trace { directory };
        let file = File::create(trace.path()).expect("space");
        let mut writer = Writer::new(file).expect("space");
        for record in records {
            writer.write(record).expect("space");
        }
        writer.finish().expect("space");
        trace
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("t.mtrace")
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }
}

fn address(function: fn()) -> Avma {
    Avma(function as usize as u64)
}

/// The mapping of this program's code, as the kernel tells it.
fn code() -> Module {
    let maps = fs::read_to_string("/proc/self/maps").expect("Linux has it");
    let hex = |text: &str| u64::from_str_radix(text, 16).expect("a number");
    for line in maps.lines() {
        let mut fields = line.split_ascii_whitespace();
        let (Some(range), Some(_), Some(offset)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (start, end) = range.split_once('-').expect("a range");
        let (start, end) = (Avma(hex(start)), Avma(hex(end)));
        if (start..end).contains(&address(serve)) {
            let path = fields.nth(2).expect("a file").as_bytes().to_vec();
            let image = Image::File { path, build_id: Vec::new() };
            let offset = FileOffset(hex(offset));
            return Module { time: Time(0), pid: PID, start, end, offset, image };
        }
    }
    panic!("no mapping holds the code of this test:\n{maps}");
}

/// The records of the trace.
pub(crate) fn records() -> Vec<Record> {
    let time = |seconds: u64| Time(seconds * 1_000_000_000);
    let stack = |id, inner: fn(), outer: fn()| Record::Stack {
        id: WireStackId(id),
        pid: PID,
        end: End::Root,
        frames: vec![address(inner), address(outer)],
    };
    let alloc = |seconds, stack, ptr, size| Record::Alloc {
        time: time(seconds),
        tid: TID,
        api: Api::Malloc,
        ptr: Avma(ptr),
        size,
        alignment: Alignment::NONE,
        stack: WireStackId(stack),
    };
    let free = |seconds, ptr| Record::Free {
        time: time(seconds),
        tid: TID,
        api: Api::Free,
        ptr: Avma(ptr),
    };
    let mut records = vec![
        Record::Session(Session {
            tool_version: "0.1.0".to_owned(),
            kernel: "6.18.0".to_owned(),
            started_unix_s: 1_760_000_000,
            pid: PID,
            origin: Origin::Launched,
        }),
        Record::Process(Process {
            time: time(0),
            pid: PID,
            parent: None,
            exe: b"/srv/made-up".to_vec(),
            command: vec![b"made-up".to_vec(), b"--now".to_vec()],
        }),
        Record::Module(code()),
        Record::Thread { time: time(0), pid: PID, tid: TID, name: b"made-up".to_vec() },
        stack(1, fill_cache, serve),
        stack(2, parse, serve),
        stack(3, report, main_of_it),
        stack(4, grow, serve),
    ];
    records.extend((0..64).map(|n| alloc(1, 1, 0x10_0000 + n * 0x1000, 1024)));
    for _ in 0..100 {
        records.extend([alloc(2, 2, 0x20_0000, 100), free(2, 0x20_0000)]);
    }
    records.extend([alloc(3, 3, 0x30_0000, 1 << 20), free(4, 0x30_0000)]);
    records.extend([
        alloc(5, 4, 0x40_0000, 100),
        Record::Retire { time: time(5), tid: TID, ptr: Avma(0x40_0000) },
        Record::Alloc {
            time: time(5),
            tid: TID,
            api: Api::Realloc,
            ptr: Avma(0x50_0000),
            size: 200,
            alignment: Alignment::NONE,
            stack: WireStackId(4),
        },
        Record::Map {
            time: time(6),
            tid: TID,
            start: Avma(0x7000_0000),
            length: MAPPED_BYTES,
            kind: MapKind::Anonymous,
            stack: WireStackId(3),
        },
        Record::End { time: time(7), reason: EndReason::TargetExited },
    ]);
    records
}
