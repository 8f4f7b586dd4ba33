//! A made-up program: threads that allocate and free along call paths.
//!
//! Its allocator has a free list for each size and thread, as glibc's and jemalloc's caches are.
//! Few paths do most of the work, and a path nearly always asks for one size. The same numbers
//! come in every run.
//!
//! Its code is made up, or that of a program with names ([`Code`]), in which paths branch like this:
//!
//! ```text
//!   depth   0     3       6        9 …     a branch of four, then two calls that are always the
//!   turn    p%4   p/4%4   p/16%4   …       same: 30 frames tell 4^10 paths apart
//! ```

use std::fs::File;
use std::io::BufWriter;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use memtrace_common::addr::{Avma, FileOffset};
use memtrace_common::event::Api;
use memtrace_common::unwind::End;
use memtrace_userspace::batches::BATCH_RECORDS;
use memtrace_userspace::heap_snapshot::{self, Spacing};
use memtrace_userspace::pipeline::{Limits, Pipeline, Purpose};
use memtrace_userspace::record::{
    Alignment, EndReason, Image, Module, Origin, Pid, Process, Record, Session, Tid, Time,
    WireStackId,
};
use memtrace_userspace::trace::Writer;
use object::{Object, ObjectSection};

const PID: Pid = Pid(4000);

/// Depth of the call paths.
const FRAMES: u64 = 30;

/// Frames between two branches of a call path.
const TURN_FRAMES: u32 = 3;

/// Where the program's code is mapped.
const CODE_START: u64 = 0x1000_0000;

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

/// The code that call paths go through.
#[derive(Clone)]
pub(crate) struct Code {
    image: Image,
    /// Where its text is in the file.
    text: std::ops::Range<u64>,
    /// Distinct calls in it.
    calls: u64,
}

impl Code {
    /// A file that does not exist, so that nothing has a name.
    pub(crate) fn made_up() -> Code {
        let image = Image::File { path: b"/usr/bin/server".to_vec(), build_id: vec![1; 20] };
        Code { image, text: 0..0x1000_0000, calls: 0x1000_0000 }
    }

    /// So many calls in the code of a program.
    pub(crate) fn of(path: &Path, calls: u64) -> Code {
        let bytes = std::fs::read(path).expect("the file can be read");
        let elf = object::File::parse(&*bytes).expect("the file is an ELF file");
        let text = elf.section_by_name(".text").and_then(|section| section.file_range());
        let (start, size) = text.expect("a program has code");
        let build_id = elf.build_id().expect("its notes are whole").unwrap_or_default().to_vec();
        let image = Image::File { path: path.as_os_str().as_bytes().to_vec(), build_id };
        Code { image, text: start..start + size, calls }
    }

    /// The frames of a call path, the allocating function first.
    fn frames(&self, path: u64) -> Vec<Avma> {
        let (start, size) = (self.text.start, self.text.end - self.text.start);
        let frame = |depth: u64| {
            // What a caller's frame is depends on the turns that were taken so far.
            let turns = path % 4_u64.pow(1 + depth as u32 / TURN_FRAMES);
            let call = hash(turns * FRAMES + depth) % self.calls;
            Avma(CODE_START + start + hash(call) % size)
        };
        (0..FRAMES).rev().map(frame).collect()
    }
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
    code: Code,
    random: Random,
    threads: Vec<Thread>,
    current: usize,
    now_ns: u64,
}

impl Program {
    pub(crate) fn new(load: Load) -> Program {
        Program::with_code(load, Code::made_up())
    }

    pub(crate) fn with_code(load: Load, code: Code) -> Program {
        let thread = |n: u32| Thread {
            tid: Tid(PID.0 + n),
            top: 0x7000_0000_0000 + u64::from(n) * ARENA_BYTES,
            free: vec![Vec::new(); 64],
            held: Vec::new(),
        };
        Program {
            load,
            code,
            random: Random(0x9e37_79b9_7f4a_7c15),
            threads: (0..load.threads).map(thread).collect(),
            current: 0,
            now_ns: 0,
        }
    }

    /// What stands in front of the events: the process, its code, threads and call paths.
    pub(crate) fn start(&self) -> Vec<Record> {
        self.beginning().into_iter().chain(self.call_paths()).collect()
    }

    fn call_paths(&self) -> impl Iterator<Item = Record> + use<> {
        let code = self.code.clone();
        (0..self.load.stacks).map(move |path| {
            let frames = code.frames(path);
            Record::Stack { id: wire_id(path), pid: PID, end: End::Root, frames }
        })
    }

    fn beginning(&self) -> Vec<Record> {
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
                start: Avma(CODE_START),
                end: Avma(CODE_START + self.code.text.end),
                offset: FileOffset(0),
                image: self.code.image.clone(),
            }),
        ];
        records.extend(self.threads.iter().map(|thread| Record::Thread {
            time,
            pid: PID,
            tid: thread.tid,
            name: b"worker".to_vec(),
        }));
        records
    }
}

impl Iterator for Program {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        let Program { load, code: _, random, threads, current, now_ns } = self;
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

/// What was written of a program.
pub(crate) struct Written {
    pub(crate) events: u64,
    pub(crate) bytes: u64,
    pub(crate) end: Time,
    pub(crate) keyframe_bytes: usize,
}

/// Writes a trace as a session would, keyframes included, until `is_enough`.
pub(crate) fn write_trace(
    path: &Path,
    mut program: Program,
    mut is_enough: impl FnMut(&Written) -> bool,
) -> Written {
    let file = BufWriter::with_capacity(1 << 18, File::create(path).expect("a file"));
    let mut writer = Writer::new(file).expect("the disk has room");
    let mut pipeline = Pipeline::new(Limits::default());
    let mut spacing = Spacing::new();
    let mut written = Written { events: 0, bytes: 0, end: Time(0), keyframe_bytes: 0 };
    let mut start = program.beginning().into_iter().chain(program.call_paths());
    let mut batch: Vec<Record> = Vec::with_capacity(BATCH_RECORDS);
    loop {
        batch.clear();
        batch.extend(start.by_ref().take(BATCH_RECORDS));
        if batch.is_empty() {
            if is_enough(&written) {
                break;
            }
            batch.extend(program.by_ref().take(BATCH_RECORDS));
            written.events += batch.len() as u64;
        }
        for record in &batch {
            writer.write(record).expect("the disk has room");
        }
        pipeline.apply_all(&batch);
        if spacing.is_due(writer.bytes_written()) {
            let snapshot = heap_snapshot::encode(&pipeline, Purpose::GoOn).expect("a Vec");
            spacing.made(writer.bytes_written(), snapshot.len());
            written.keyframe_bytes += snapshot.len();
            writer.write_keyframe(&pipeline.level(), &snapshot).expect("the disk has room");
            pipeline.restart_level();
        }
        written.bytes = writer.bytes_written();
        written.end = pipeline.now();
    }
    let end = Record::End { time: pipeline.now(), reason: EndReason::DurationOver };
    writer.write(&end).expect("the disk has room");
    pipeline.apply(&end);
    writer.write_keyframe(&pipeline.level(), &[]).expect("the disk has room");
    writer.finish().expect("the disk has room");
    written
}

/// Scatters numbers, always in the same way.
fn hash(number: u64) -> u64 {
    let mixed = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 16
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
