//! Records to columns.

use std::hint::black_box;

use memtrace_common::addr::Avma;
use memtrace_common::event::Api;
use rustc_hash::FxHashMap;

use crate::record::{Alignment, MapKind, Record, Tid, Time, WireStackId};
use crate::trace::bytes::{address_delta, delta, put_varint};
use crate::trace::model::{Block, Model, StackIndex, ThreadIndex};
use crate::trace::rows;

use super::newest::Newest;
use super::{ADDRESS, ALIGNED, API, COLUMNS, NO_API, SIZE, STACK, column, kind};

/// What a block's header says about its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::trace) struct Summary {
    /// How many records there are.
    pub(in crate::trace) records: u32,
    /// Lowest and highest time; `None` if no record has one.
    pub(in crate::trace) times: Option<(Time, Time)>,
    /// Whether the block starts with an empty model.
    pub(in crate::trace) independent: bool,
}

/// What the next block starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::trace) enum Next {
    /// The model as it is.
    GoesOn,
    /// An empty model.
    Independent,
}

/// A run of records of one thread.
#[derive(Clone, Copy, Debug)]
struct Run {
    tid: Tid,
    thread: ThreadIndex,
    records: u64,
}

/// Builds one payload after the other.
#[derive(Debug)]
pub(in crate::trace) struct Encoder {
    model: Model,
    columns: [Vec<u8>; COLUMNS],
    /// The times of the block, which are written when their common unit is known.
    times: Vec<u64>,
    run: Option<Run>,
    independent: bool,
    /// Where a thread stands in the model.
    thread_indices: FxHashMap<Tid, ThreadIndex>,
    /// Where a stack stands in the model.
    stack_indices: FxHashMap<WireStackId, StackIndex>,
    newest: Newest,
}

impl Encoder {
    pub(in crate::trace) fn new() -> Encoder {
        let mut encoder = Encoder {
            model: Model::new(),
            columns: Default::default(),
            times: Vec::new(),
            run: None,
            independent: true,
            thread_indices: FxHashMap::default(),
            stack_indices: FxHashMap::default(),
            newest: Newest::new(),
        };
        encoder.stack_indices.insert(WireStackId(0), 0);
        encoder
    }

    /// How many records the block has so far.
    pub(in crate::trace) fn records(&self) -> usize {
        self.columns[column::OPERATIONS].len()
    }

    /// How many bytes its rows have.
    pub(in crate::trace) fn row_bytes(&self) -> usize {
        self.columns[column::ROWS].len()
    }

    /// Reads what pushing the records will: they wait for the memory together, and not one after the
    /// other.
    #[inline]
    pub(in crate::trace) fn load(&self, records: &[Record]) {
        for record in records {
            if let Record::Alloc { ptr, .. }
            | Record::Free { ptr, .. }
            | Record::Retire { ptr, .. } = record
            {
                black_box(self.newest.load(ptr.0));
            }
        }
    }

    /// Appends a record.
    #[inline]
    pub(in crate::trace) fn push(&mut self, record: &Record) {
        let Encoder { columns, model, .. } = self;
        let row = &mut columns[column::ROWS];
        match record {
            Record::Alloc { time, tid, api, ptr, size, alignment, stack } => {
                self.timed(*time);
                let kind = if *alignment == Alignment::NONE {
                    kind::ALLOC
                } else {
                    self.columns[column::APIS].push(alignment.log2());
                    kind::ALIGNED_ALLOC
                };
                self.alloc(kind, *tid, *api, *ptr, *size, *stack);
            }
            Record::Free { time, tid, api, ptr } => self.free(*time, *tid, *api, *ptr),
            Record::Retire { time, tid, ptr } => self.retire(*time, *tid, *ptr),
            Record::Restore { time, tid, ptr } => self.restore(*time, *tid, *ptr),
            Record::Map { time, tid, start, length, kind, stack } => {
                self.timed(*time);
                let thread = self.thread(*tid);
                let (_, flag) = self.stack(thread, *stack);
                self.columns[column::OPERATIONS].push(kind::MAP | flag);
                self.range(*start, *length);
                self.columns[column::MAPPINGS].push(map_kind_number(*kind));
            }
            Record::Unmap { time, tid, start, length } => {
                self.timed(*time);
                self.thread(*tid);
                self.columns[column::OPERATIONS].push(kind::UNMAP);
                self.range(*start, *length);
            }
            Record::UnmapFailed { time, tid } => {
                self.timed(*time);
                self.thread(*tid);
                self.columns[column::OPERATIONS].push(kind::UNMAP_FAILED);
            }
            Record::RemapStart { time, tid, start, length } => {
                self.timed(*time);
                self.thread(*tid);
                self.columns[column::OPERATIONS].push(kind::REMAP_START);
                self.range(*start, *length);
            }
            Record::Remap { time, tid, start, length, stack } => {
                self.timed(*time);
                let thread = self.thread(*tid);
                let (_, flag) = self.stack(thread, *stack);
                self.columns[column::OPERATIONS].push(kind::REMAP | flag);
                self.range(*start, *length);
            }
            Record::Break { time, tid, old, new, stack } => {
                self.timed(*time);
                let thread = self.thread(*tid);
                let (_, flag) = self.stack(thread, *stack);
                self.columns[column::OPERATIONS].push(kind::BREAK | flag);
                self.range(*old, new.0.wrapping_sub(old.0));
            }
            Record::Commit { time, tid, start, length, stack } => {
                self.timed(*time);
                let thread = self.thread(*tid);
                let (_, flag) = self.stack(thread, *stack);
                self.columns[column::OPERATIONS].push(kind::COMMIT | flag);
                self.range(*start, *length);
            }
            Record::Decommit { time, tid, start, length } => {
                self.timed(*time);
                self.thread(*tid);
                self.columns[column::OPERATIONS].push(kind::DECOMMIT);
                self.range(*start, *length);
            }
            Record::Stack { id, pid, end, frames } => {
                rows::put_stack(row, model, *pid, *end, frames);
                let index = self.stack_index(*id);
                put_varint(&mut self.columns[column::STACKS], u64::from(index));
                self.untimed_row();
            }
            Record::Held { born, pid, tid, api, start, length, alignment, stack } => {
                rows::put_holder(row, *pid, *tid);
                columns[column::APIS].push(api.map_or(NO_API, |api| api as u8));
                let mut operation = kind::HELD;
                if *alignment != Alignment::NONE {
                    columns[column::APIS].push(alignment.log2());
                    operation |= ALIGNED;
                }
                let index = self.stack_index(*stack);
                put_varint(&mut self.columns[column::STACKS], u64::from(index));
                self.range(*start, *length);
                self.timed(*born);
                self.columns[column::OPERATIONS].push(operation);
            }
            Record::Session(_)
            | Record::Probe(_)
            | Record::Process(_)
            | Record::BeforeAttach(_)
            | Record::Namespaces(_)
            | Record::Module(_)
            | Record::Operation { .. }
            | Record::ModuleGone { .. }
            | Record::Thread { .. }
            | Record::ThreadExit { .. }
            | Record::Fork { .. }
            | Record::Exec { .. }
            | Record::Exit { .. }
            | Record::Resident { .. }
            | Record::MemoryDetail { .. }
            | Record::JitSymbol { .. }
            | Record::MemoryLimit { .. }
            | Record::Counters(_)
            | Record::Mark { .. }
            | Record::Tick { .. }
            | Record::End { .. } => {
                rows::put(row, record);
                match record.time() {
                    None => self.untimed_row(),
                    Some(time) => self.timed_row(time),
                }
            }
        }
    }

    /// Writes the payload of the records pushed so far to `payload` and starts the next block.
    ///
    /// The next block is independent if the model is full, or if `next` asks for it.
    pub(in crate::trace) fn finish_block(&mut self, payload: &mut Vec<u8>, next: Next) -> Summary {
        self.end_run();
        let summary = Summary {
            records: self.records() as u32,
            times: self
                .times
                .iter()
                .min()
                .zip(self.times.iter().max())
                .map(|(&first, &last)| (Time(first), Time(last))),
            independent: self.independent,
        };
        put_times(&mut self.columns[column::TIMES], &self.times);
        self.times.clear();

        payload.clear();
        for column in &self.columns {
            put_varint(payload, column.len() as u64);
        }
        for column in &mut self.columns {
            payload.append(column);
        }

        self.independent = self.model.is_full() || next == Next::Independent;
        if self.independent {
            self.model.reset();
            self.thread_indices.clear();
            self.stack_indices.clear();
            self.stack_indices.insert(WireStackId(0), 0);
            self.newest.clear();
        }
        summary
    }

    fn untimed_row(&mut self) {
        self.columns[column::OPERATIONS].push(kind::UNTIMED_ROW);
    }

    fn timed_row(&mut self, time: Time) {
        self.timed(time);
        self.columns[column::OPERATIONS].push(kind::TIMED_ROW);
    }

    #[inline]
    fn timed(&mut self, time: Time) {
        self.times.push(time.0);
    }

    #[inline]
    fn alloc(&mut self, kind: u8, tid: Tid, api: Api, ptr: Avma, size: u64, stack: WireStackId) {
        let thread = self.thread(tid);
        let (index, flag) = self.stack(thread, stack);
        let mut operation = kind | flag;

        let last = self.model.stack(index);
        if last.api == api as u8 {
            operation |= API;
        } else {
            last.api = api as u8;
            self.columns[column::APIS].push(api as u8);
        }
        if last.size == size {
            operation |= SIZE;
        } else {
            last.size = size;
            put_varint(&mut self.columns[column::SIZES], size);
        }

        let guess = self.model.guess_alloc(thread, size);
        if guess == ptr.0 {
            operation |= ADDRESS;
        } else {
            put_varint(&mut self.columns[column::ADDRESSES], address_delta(guess, ptr.0));
        }
        self.newest.note(ptr.0, &self.model);
        self.model.saw_alloc(thread, ptr.0, size);
        self.columns[column::OPERATIONS].push(operation);
    }

    #[inline]
    fn free(&mut self, time: Time, tid: Tid, api: Api, ptr: Avma) {
        self.timed(time);
        let thread = self.thread(tid);
        let mut operation = kind::FREE;
        let last_api = &mut self.model.thread(thread).free_api;
        if *last_api == api as u8 {
            operation |= API;
        } else {
            *last_api = api as u8;
            self.columns[column::APIS].push(api as u8);
        }
        let (block, flag) = self.released(ptr);
        self.model.saw_free(thread, block);
        self.columns[column::OPERATIONS].push(operation | flag);
    }

    fn retire(&mut self, time: Time, tid: Tid, ptr: Avma) {
        self.timed(time);
        let thread = self.thread(tid);
        let (block, flag) = self.released(ptr);
        self.model.saw_retire(thread, block);
        self.columns[column::OPERATIONS].push(kind::RETIRE | flag);
    }

    fn restore(&mut self, time: Time, tid: Tid, ptr: Avma) {
        self.timed(time);
        let thread = self.thread(tid);
        let expected = self.model.take_retired(thread);
        if expected == ptr.0 {
            self.columns[column::OPERATIONS].push(kind::RESTORE | ADDRESS);
        } else {
            put_varint(&mut self.columns[column::FREED], address_delta(expected, ptr.0));
            self.columns[column::OPERATIONS].push(kind::RESTORE);
        }
    }

    /// Writes the address of a released block.
    #[inline]
    fn released(&mut self, ptr: Avma) -> (Block, u8) {
        if let Some((distance, block)) = self.newest.find(ptr.0, &self.model) {
            put_varint(&mut self.columns[column::RECENT], distance);
            return (block, ADDRESS);
        }
        put_varint(&mut self.columns[column::FREED], address_delta(self.model.freed, ptr.0));
        (Block::of_unknown_size(ptr.0), 0)
    }

    fn range(&mut self, start: Avma, length: u64) {
        let mappings = &mut self.columns[column::MAPPINGS];
        put_varint(mappings, delta(self.model.mapped, start.0));
        put_varint(mappings, length);
        self.model.mapped = start.0;
    }

    /// Writes the stack of something that `thread` did; returns where it stands in the model, and
    /// the flag for the operation.
    #[inline]
    fn stack(&mut self, thread: ThreadIndex, stack: WireStackId) -> (StackIndex, u8) {
        let expected = self.model.expected_stack(thread);
        if self.model.stack(expected).id == stack {
            self.model.saw_stack(thread, expected);
            return (expected, STACK);
        }
        let index = self.stack_index(stack);
        put_varint(&mut self.columns[column::STACKS], u64::from(index));
        self.model.saw_stack(thread, index);
        (index, 0)
    }

    /// Where the stack stands in the model; a new one gets a place and its id is written.
    #[inline]
    fn stack_index(&mut self, stack: WireStackId) -> StackIndex {
        let next = self.model.stacks.len() as StackIndex;
        let index = *self.stack_indices.entry(stack).or_insert(next);
        if index == next {
            self.model.add_stack(stack);
            self.columns[column::STACK_IDS].extend_from_slice(&stack.0.to_le_bytes());
        }
        index
    }

    /// Writes the thread of a record.
    #[inline]
    fn thread(&mut self, tid: Tid) -> ThreadIndex {
        if let Some(run) = &mut self.run
            && run.tid == tid
        {
            run.records += 1;
            return run.thread;
        }
        self.end_run();
        let next = self.model.threads.len() as ThreadIndex;
        let thread = *self.thread_indices.entry(tid).or_insert(next);
        let threads = &mut self.columns[column::THREADS];
        put_varint(threads, u64::from(thread));
        if thread == next {
            self.model.add_thread(tid);
            put_varint(threads, u64::from(tid.0));
        }
        self.run = Some(Run { tid, thread, records: 1 });
        thread
    }

    fn end_run(&mut self) {
        if let Some(run) = self.run.take() {
            put_varint(&mut self.columns[column::THREADS], run.records);
        }
    }
}

/// Writes the first time, the unit of all steps, and the steps in that unit.
///
/// The unit is the greatest common divisor: times that a source rounded cost what their
/// resolution costs, and exact ones stay exact.
fn put_times(out: &mut Vec<u8>, times: &[u64]) {
    let Some((&first, rest)) = times.split_first() else { return };
    let steps = || {
        rest.iter().scan(first, |last, &time| {
            let step = time.wrapping_sub(*last) as i64;
            *last = time;
            Some(step)
        })
    };
    let mut unit = 0;
    for step in steps() {
        unit = gcd(unit, step.unsigned_abs());
        if unit == 1 {
            break;
        }
    }
    let unit = i64::try_from(unit.max(1)).unwrap_or(1);
    put_varint(out, first);
    put_varint(out, unit as u64);
    for step in steps() {
        put_varint(out, delta(0, (step / unit) as u64));
    }
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// The twin of the decoder's `map_kind`.
fn map_kind_number(kind: MapKind) -> u8 {
    match kind {
        MapKind::Anonymous => 0,
        MapKind::File => 1,
        MapKind::Shared => 2,
        MapKind::Reserved => 3,
    }
}
