//! How fast a trace is written and read, and how many bytes an event takes in it.
//!
//! `cargo bench -p memtrace-userspace --bench trace` prints a line for each load. The loads are
//! made up: threads that allocate and free along call paths, on an allocator with a free list for
//! each size. Exact times are the largest part of a trace, so each load runs with exact ones and
//! with times of 10 µs resolution.

use std::hint::black_box;
use std::time::{Duration, Instant};

use memtrace_common::addr::Avma;
use memtrace_common::event::Api;
use memtrace_userspace::record::{Record, Tid, Time, WireStackId};
use memtrace_userspace::trace::{Reader, Writer};

const ROUNDS: usize = 5;

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

/// What a load does.
struct Load {
    name: &'static str,
    threads: u32,
    stacks: u64,
    /// Blocks that a thread holds before it begins to free.
    held: usize,
    /// Whether a thread frees its last block or any.
    order: Order,
}

#[derive(Clone, Copy)]
enum Order {
    LastFirst,
    Any,
}

/// Bytes between the heaps of two threads.
const ARENA: u64 = 64 << 20;

/// One thread's heap.
struct Thread {
    tid: Tid,
    top: u64,
    free: Vec<Vec<u64>>,
    held: Vec<(u64, usize)>,
}

fn events(load: &Load, count: usize, resolution_ns: u64) -> Vec<Record> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut threads: Vec<_> = (0..load.threads)
        .map(|n| Thread {
            tid: Tid(4000 + n),
            top: 0x7f00_0000_0000 + u64::from(n) * ARENA,
            free: vec![Vec::new(); 64],
            held: Vec::new(),
        })
        .collect();
    let mut now = 0;
    let mut current = 0;
    (0..count)
        .map(|_| {
            // A pair costs some microseconds under the probes.
            now += 900 + random.below(2500);
            let time = Time(now / resolution_ns * resolution_ns);
            if random.below(20) == 0 {
                current = random.below(u64::from(load.threads)) as usize;
            }
            let thread = &mut threads[current];
            let tid = thread.tid;
            if thread.held.len() > load.held && random.below(2) == 0 {
                let last = thread.held.len() - 1;
                let victim = match load.order {
                    Order::LastFirst => last,
                    Order::Any => random.below(last as u64 + 1) as usize,
                };
                let (ptr, class) = thread.held.swap_remove(victim);
                thread.free[class].push(ptr);
                return Record::Free { time, tid, api: Api::Free, ptr: Avma(ptr) };
            }
            // Few paths do most of the work, and a path nearly always asks for one size.
            let path = random.below(load.stacks).min(random.below(load.stacks));
            let class = (path % 60) as usize + usize::from(random.below(16) == 0);
            let size = 16 * class as u64 + 24;
            let ptr = thread.free[class].pop().unwrap_or_else(|| {
                let ptr = thread.top;
                thread.top += size + 8;
                ptr
            });
            thread.held.push((ptr, class));
            let stack = WireStackId((path + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            Record::Alloc { time, tid, api: Api::Malloc, ptr: Avma(ptr), size, stack }
        })
        .collect()
}

/// The best of some rounds, and the result of the last.
fn best<T>(mut work: impl FnMut() -> T) -> (Duration, T) {
    let mut time = |()| {
        let start = Instant::now();
        let result = work();
        (start.elapsed(), result)
    };
    let first = time(());
    (1..ROUNDS).fold(first, |(least, _), _| {
        let (elapsed, result) = time(());
        (least.min(elapsed), result)
    })
}

fn measure(load: &Load, count: usize, resolution_ns: u64) {
    let records = events(load, count, resolution_ns);

    let (writing, trace) = best(|| {
        let mut writer = Writer::new(Vec::new()).expect("memory takes every byte");
        for record in &records {
            writer.write(record).expect("memory takes every byte");
        }
        writer.finish().expect("memory takes every byte")
    });
    let (reading, found) = best(|| {
        let mut reader = Reader::new(&trace[..]).expect("the trace was just written");
        let (mut found, mut records) = (0, Vec::new());
        while reader.read(&mut records, 4096).expect("the trace was just written") > 0 {
            found += black_box(&records).len();
            records.clear();
        }
        found
    });
    assert_eq!(found, records.len());

    let millions = |elapsed: Duration| count as f64 / elapsed.as_secs_f64() / 1e6;
    println!(
        "{:32} {:>6} ns  write {:5.1} M/s  read {:5.1} M/s  {:5.2} bytes/event",
        load.name,
        resolution_ns,
        millions(writing),
        millions(reading),
        trace.len() as f64 / count as f64,
    );
}

fn main() {
    // `cargo test --benches` only wants to know that it runs.
    let scale = if std::env::args().any(|argument| argument == "--bench") { 1 } else { 1000 };
    let loads = [
        Load {
            name: "one thread, stack-like",
            threads: 1,
            stacks: 50,
            held: 20,
            order: Order::LastFirst,
        },
        Load {
            name: "eight threads, stack-like",
            threads: 8,
            stacks: 500,
            held: 200,
            order: Order::LastFirst,
        },
        Load {
            name: "eight threads, any order",
            threads: 8,
            stacks: 5000,
            held: 5000,
            order: Order::Any,
        },
    ];
    for load in &loads {
        for resolution_ns in [1, 10_000] {
            measure(load, 2_000_000 / scale, resolution_ns);
        }
    }
}
