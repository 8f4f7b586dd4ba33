//! A made-up program: threads that allocate and free along call paths.
//!
//! Its allocator has a free list for each size and thread, as glibc's and jemalloc's caches are.
//! Few paths do most of the work, and a path nearly always asks for one size. The same numbers
//! come in every run.

use memtrace_common::addr::{Avma, FileOffset};
use memtrace_common::event::Api;
use memtrace_common::unwind::End;
use memtrace_userspace::record::{
    Alignment, Image, Module, Origin, Pid, Process, Record, Session, Tid, Time, WireStackId,
};

const PID: Pid = Pid(4000);

/// Depth of the call paths.
const FRAMES: u64 = 30;

/// Bytes between the heaps of two threads.
const ARENA_BYTES: u64 = 16 << 30;

/// The resolution of times in a recording.
const RESOLUTION_NS: u64 = 10_000;

/// What the program does.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) threads: u32,
    pub(crate) stacks: u64,
    /// Blocks that are live once the program has got going.
    pub(crate) live_blocks: usize,
    pub(crate) order: Order,
}

/// Which block a thread frees.
#[derive(Clone, Copy)]
pub(crate) enum Order {
    /// The one that it allocated last: work on a stack.
    LastFirst,
    /// Any: a cache, a session store.
    Any,
}

/// One thread's heap.
struct Thread {
    tid: Tid,
    top: u64,
    free: Vec<Vec<u64>>,
    /// Address and size class.
    held: Vec<(u64, u8)>,
}

/// The program as it runs: its events, without end.
pub(crate) struct Program {
    load: Load,
    random: Random,
    threads: Vec<Thread>,
    current: usize,
    now_ns: u64,
}

impl Program {
    pub(crate) fn new(load: Load) -> Program {
        let thread = |n: u32| Thread {
            tid: Tid(PID.0 + n),
            top: 0x7000_0000_0000 + u64::from(n) * ARENA_BYTES,
            free: vec![Vec::new(); 64],
            held: Vec::new(),
        };
        Program {
            load,
            random: Random(0x9e37_79b9_7f4a_7c15),
            threads: (0..load.threads).map(thread).collect(),
            current: 0,
            now_ns: 0,
        }
    }

    /// What stands in front of the events: the process, its code, threads and call paths.
    pub(crate) fn start(&self) -> Vec<Record> {
        let time = Time(0);
        let mut records = vec![
            Record::Session(Session {
                tool_version: String::new(),
                kernel: String::new(),
                started_unix_s: 0,
                pid: PID,
                origin: Origin::Attached,
            }),
            Record::Process(Process {
                time,
                pid: PID,
                parent: None,
                exe: Vec::new(),
                command: Vec::new(),
            }),
            Record::Module(Module {
                time,
                pid: PID,
                start: Avma(0x1000_0000),
                end: Avma(0x2000_0000),
                offset: FileOffset(0),
                image: Image::File { path: b"/usr/bin/server".to_vec(), build_id: vec![1; 20] },
            }),
        ];
        records.extend(self.threads.iter().map(|thread| Record::Thread {
            time,
            pid: PID,
            tid: thread.tid,
            name: b"worker".to_vec(),
        }));
        records.extend((0..self.load.stacks).map(|path| {
            let frame = |depth| Avma(0x1000_0000 + (path + 1) * 31 * (depth + 1) % 0x1000_0000);
            let frames = (0..FRAMES).map(frame).collect();
            Record::Stack { id: wire_id(path), pid: PID, end: End::Root, frames }
        }));
        records
    }
}

impl Iterator for Program {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        let Program { load, random, threads, current, now_ns } = self;
        // An event costs its program about a microsecond under the probes.
        *now_ns += 500 + random.below(1500);
        let time = Time(*now_ns - *now_ns % RESOLUTION_NS);
        if random.below(20) == 0 {
            *current = random.below(u64::from(load.threads)) as usize;
        }
        let thread = &mut threads[*current];
        let tid = thread.tid;
        let is_full = thread.held.len() * load.threads as usize >= load.live_blocks;
        // The heap fills at first; then about as much is freed as is allocated.
        if is_full && random.below(2) == 0 {
            let last = thread.held.len() - 1;
            let victim = match load.order {
                Order::LastFirst => last,
                Order::Any => random.below(last as u64 + 1) as usize,
            };
            let (ptr, class) = thread.held.swap_remove(victim);
            thread.free[usize::from(class)].push(ptr);
            return Some(Record::Free { time, tid, api: Api::Free, ptr: Avma(ptr) });
        }
        let path = random.below(load.stacks).min(random.below(load.stacks));
        let class = (path % 60) as u8 + u8::from(random.below(16) == 0);
        let size = 16 * u64::from(class) + 24;
        let ptr = thread.free[usize::from(class)].pop().unwrap_or_else(|| {
            let ptr = thread.top;
            thread.top += size + 8;
            ptr
        });
        thread.held.push((ptr, class));
        let stack = wire_id(path);
        Some(Record::Alloc {
            time,
            tid,
            api: Api::Malloc,
            ptr: Avma(ptr),
            size,
            alignment: Alignment::NONE,
            stack,
        })
    }
}

/// The kernel's id of a call path: no pattern in it, and never 0.
fn wire_id(path: u64) -> WireStackId {
    WireStackId((path + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

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
