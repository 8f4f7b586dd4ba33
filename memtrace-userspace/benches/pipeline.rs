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
    churn("churn, 10,000 live blocks", 10_000 / scale, 1_000, 8_000_000 / scale);
    churn("churn, 1 M live blocks", 1_000_000 / scale, 10_000, 8_000_000 / scale);
    churn("churn, 10 M live blocks", 10_000_000 / scale, 100_000, 8_000_000 / scale);
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
        let id = WireStackId(stack.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        pipeline.apply(&Record::Stack { id, pid: PID, end: End::Root, frames });
    }
    pipeline
}

/// `malloc` and `free` in turn: what a hot loop does.
fn pairs(count: u64) {
    let mut pipeline = start(1, 1);
    let (tid, stack) = (Tid(PID.0), WireStackId(0x9e37_79b9_7f4a_7c15));

    let started = Instant::now();
    for i in 0..count {
        let (time, ptr) = (Time(i * 1000), Avma(0x5555_0000 + i % 64 * 16));
        pipeline.apply(&Record::Alloc { time, tid, api: Api::Malloc, ptr, size: 64, stack });
        pipeline.apply(&Record::Free { time, tid, api: Api::Free, ptr });
    }
    report("malloc and free in turn", 2 * count, started, &mut pipeline, None);
}

/// Frees a random block and allocates another, `live` blocks being live all the while.
fn churn(name: &str, live: u64, stacks: u64, events: u64) {
    let before = resident_bytes();
    let mut pipeline = start(8, stacks);
    let mut random = Random(88_172_645_463_325_252);
    let alloc = |i: u64, ptr: u64, random: &mut Random| Record::Alloc {
        time: Time(i * 1000),
        // Events come in runs, as the rings are drained one after the other.
        tid: Tid(PID.0 + (i / 16 % 8) as u32),
        api: Api::Malloc,
        ptr: Avma(ptr),
        size: 16 + random.below(1000),
        stack: WireStackId((1 + random.below(stacks)).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
    };
    // Blocks of 64 bytes, so that the place of each is known and needs no table here.
    let place = |block: u64| 0x7f00_0000_0000 + block * 64;
    let started = Instant::now();
    for i in 0..live {
        pipeline.apply(&alloc(i, place(i), &mut random));
    }
    let filled = started.elapsed();
    let bytes = (resident_bytes() - before) as f64 / live as f64;

    let records: Vec<_> = (0..events / 2)
        .flat_map(|i| {
            let (time, block) = (Time((live + i) * 1000), random.below(live));
            let tid = Tid(PID.0 + (i / 16 % 8) as u32);
            let free = Record::Free { time, tid, api: Api::Free, ptr: Avma(place(block)) };
            [free, alloc(live + i, place(block), &mut random)]
        })
        .collect();
    let started = Instant::now();
    for record in &records {
        pipeline.apply(record);
    }
    println!("{name}: filled with {:.1} M/s", live as f64 / filled.as_secs_f64() / 1e6);
    report(name, events, started, &mut pipeline, Some(bytes));
}

fn report(name: &str, events: u64, started: Instant, pipeline: &mut Pipeline, block: Option<f64>) {
    let rate = events as f64 / started.elapsed().as_secs_f64() / 1e6;
    let started = Instant::now();
    let snapshot = black_box(pipeline.snapshot());
    let took = started.elapsed().as_secs_f64() * 1e3;
    print!(
        "{name}: {rate:.1} M events/s, snapshot of {} stacks {took:.2} ms",
        snapshot.stacks.len()
    );
    match block {
        Some(bytes) => println!(", {bytes:.1} bytes per live block"),
        None => println!(),
    }
}

/// Resident memory of this process.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}
