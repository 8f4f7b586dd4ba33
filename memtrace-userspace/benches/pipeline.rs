//! How fast the pipeline is and how much memory it takes.
//!
//! `cargo bench -p memtrace-userspace --bench pipeline` prints a line for each load: events per
//! second on one core, and what a snapshot costs. The process's resident memory gives the bytes
//! of a live block, everything included.

use std::hint::black_box;
use std::time::Instant;

use memtrace_common::addr::{Avma, FileOffset};
use memtrace_common::event::Api;
use memtrace_common::unwind::End;
use memtrace_userspace::pipeline::{Limits, Pipeline};
use memtrace_userspace::record::{
    Image, Module, Origin, Pid, Process, Record, Session, Tid, Time, WireStackId,
};

const PID: Pid = Pid(100);

/// Steps that are measured together.
const PIECE: u64 = 500;

/// Numbers without pattern, the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

fn main() {
    // `cargo test --benches` only wants to know that it runs.
    let scale = if std::env::args().any(|argument| argument == "--bench") { 1 } else { 1000 };
    pairs(4_000_000 / scale);
    churn(10_000 / scale, 1_000, 4_000_000 / scale);
    churn(1_000_000 / scale, 10_000, 4_000_000 / scale);
    churn(10_000_000 / scale, 100_000, 4_000_000 / scale);
}

/// A process with `threads` threads and `stacks` stacks of 30 frames.
fn start(threads: u32, stacks: u64) -> Pipeline {
    let mut pipeline = Pipeline::new(Limits::default());
    let time = Time(0);
    pipeline.apply(&Record::Session(Session {
        tool_version: String::new(),
        kernel: String::new(),
        started_unix_s: 0,
        pid: PID,
        origin: Origin::Attached,
    }));
    pipeline.apply(&Record::Process(Process {
        time,
        pid: PID,
        parent: None,
        exe: Vec::new(),
        command: Vec::new(),
    }));
    pipeline.apply(&Record::Module(Module {
        time,
        pid: PID,
        start: Avma(0x1000_0000),
        end: Avma(0x2000_0000),
        offset: FileOffset(0),
        image: Image::File { path: b"/usr/bin/server".to_vec(), build_id: vec![1; 20] },
    }));
    for thread in 0..threads {
        let tid = Tid(PID.0 + thread);
        pipeline.apply(&Record::Thread { time, pid: PID, tid, name: b"worker".to_vec() });
    }
    for stack in 1..=stacks {
        let frames = (0..30).map(|depth| Avma(0x1000_0000 + (stack * 31 * (depth + 1)))).collect();
        let id = wire_id(stack);
        pipeline.apply(&Record::Stack { id, pid: PID, end: End::Root, frames });
    }
    pipeline
}

/// `malloc` and `free` in turn: what a hot loop does.
fn pairs(count: u64) {
    let mut pipeline = start(1, 1);
    let (tid, stack) = (Tid(PID.0), wire_id(1));

    let rate = measure(&mut pipeline, count, |i| {
        let (time, ptr) = (Time(i * 1000), Avma(0x5555_0000 + i % 64 * 16));
        let alloc = Record::Alloc { time, tid, api: Api::Malloc, ptr, size: 64, stack };
        [alloc, Record::Free { time, tid, api: Api::Free, ptr }]
    });

    println!("malloc and free in turn: {rate:.1} M events/s");
}

/// Frees a random block and allocates another, `live` blocks being live all the while.
fn churn(live: u64, stacks: u64, count: u64) {
    let before = resident_bytes();
    let mut pipeline = start(8, stacks);
    let mut random = Random(88_172_645_463_325_252);
    // Blocks of 64 bytes, so that the place of each is known and needs no table here.
    let place = |block: u64| Avma(0x7f00_0000_0000 + block * 64);
    // Events come in runs, as the rings are drained one after the other.
    let tid = |i: u64| Tid(PID.0 + (i / 16 % 8) as u32);
    let alloc = |i: u64, ptr: Avma, random: &mut Random| Record::Alloc {
        time: Time(i * 1000),
        tid: tid(i),
        api: Api::Malloc,
        ptr,
        size: 16 + random.below(1000),
        stack: wire_id(1 + random.below(stacks)),
    };

    let filling = measure(&mut pipeline, live, |i| [alloc(i, place(i), &mut random)]);
    let bytes = resident_bytes().saturating_sub(before) as f64 / live as f64;
    let rate = measure(&mut pipeline, count, |i| {
        let (i, ptr) = (live + i, place(random.below(live)));
        let free = Record::Free { time: Time(i * 1000), tid: tid(i), api: Api::Free, ptr };
        [free, alloc(i, ptr, &mut random)]
    });
    let started = Instant::now();
    let snapshot = black_box(pipeline.snapshot());
    let took = started.elapsed().as_secs_f64() * 1e3;
    let started = Instant::now();
    let (time, child) = (Time((live + count) * 1000), Pid(PID.0 + 1000));
    pipeline.apply(&Record::Fork { time, parent: PID, child });
    pipeline.apply(&Record::Exit { time, pid: child });
    let fork = started.elapsed().as_secs_f64() * 1e3;

    println!(
        "{live} live blocks, {} stacks: {filling:.1} M allocations/s, then {rate:.1} M events/s; \
         {bytes:.1} bytes per block; snapshot {took:.2} ms; fork and exit {fork:.2} ms",
        snapshot.stacks.len(),
    );
}

/// Million events per second: the median over pieces, so that other work on the machine counts
/// as little as possible.
fn measure<const N: usize>(
    pipeline: &mut Pipeline,
    count: u64,
    mut events: impl FnMut(u64) -> [Record; N],
) -> f64 {
    let mut rates = Vec::new();
    let mut records = Vec::new();
    for first in (0..count).step_by(PIECE as usize) {
        records.clear();
        records.extend((first..count.min(first + PIECE)).flat_map(&mut events));
        let started = Instant::now();
        pipeline.apply_all(&records);
        rates.push(records.len() as f64 / started.elapsed().as_secs_f64() / 1e6);
    }
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// The id of the stack with this number.
fn wire_id(stack: u64) -> WireStackId {
    WireStackId(stack.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// Resident memory of this process.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}
