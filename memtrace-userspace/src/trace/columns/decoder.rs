//! Columns to records: the twin of the encoder, one function for each of its.

use memtrace_common::addr::Avma;
use memtrace_common::event::Api;

use crate::record::{Alignment, MapKind, Record, Tid, Time, WireStackId};
use crate::trace::bytes::{Input, undelta, undelta_address};
use crate::trace::error::Damage;
use crate::trace::model::{Block, MAX_DICTIONARY, Model, StackIndex, ThreadIndex};
use crate::trace::rows;

use super::{ADDRESS, ALIGNED, API, COLUMNS, KIND, NAMES, NO_API, SIZE, STACK, column, kind};

/// Takes one payload after the other apart.
#[derive(Debug)]
pub(in crate::trace) struct Decoder {
    model: Model,
    columns: [Input; COLUMNS],
    /// Time of the last record that has one; `None` at the start of a block.
    time: Option<Clock>,
    thread: ThreadIndex,
    /// How many records of `thread` are left before the next run.
    run: u64,
}

#[derive(Clone, Copy, Debug)]
struct Clock {
    now: u64,
    unit: u64,
}

impl Decoder {
    pub(in crate::trace) fn new() -> Decoder {
        Decoder {
            model: Model::new(),
            columns: NAMES.map(Input::new),
            time: None,
            thread: 0,
            run: 0,
        }
    }

    /// Takes the payload of the next block.
    pub(in crate::trace) fn start_block(
        &mut self,
        payload: &[u8],
        independent: bool,
    ) -> Result<(), Damage> {
        if independent {
            self.model.reset();
        }
        self.time = None;
        self.run = 0;

        let mut lengths = Input::new("the list of columns");
        lengths.refill(payload.get(..COLUMNS * 10).unwrap_or(payload));
        let mut counts = [0; COLUMNS];
        for count in &mut counts {
            *count = lengths.varint_u32()? as usize;
        }
        let mut rest = payload.get(lengths.position()..).unwrap_or_default();
        for (column, count) in self.columns.iter_mut().zip(counts) {
            let (bytes, others) =
                rest.split_at_checked(count).ok_or(Damage::ColumnEnds { what: "the payload" })?;
            column.refill(bytes);
            rest = others;
        }
        if rest.is_empty() { Ok(()) } else { Err(Damage::LeftOver { what: "the payload" }) }
    }

    /// Checks that the block holds nothing more.
    pub(in crate::trace) fn end_block(&self) -> Result<(), Damage> {
        self.columns.iter().try_for_each(Input::expect_end)
    }

    /// Appends the next `count` records of the block.
    pub(in crate::trace) fn decode(
        &mut self,
        records: &mut Vec<Record>,
        count: usize,
    ) -> Result<(), Damage> {
        records.reserve(count);
        for _ in 0..count {
            records.push(self.next()?);
        }
        Ok(())
    }

    #[inline]
    fn next(&mut self) -> Result<Record, Damage> {
        let operation = self.columns[column::OPERATIONS].byte()?;
        match operation & KIND {
            kind::ALLOC => self.alloc(operation, Alignment::NONE),
            kind::FREE => self.free(operation),
            kind::ALIGNED_ALLOC => {
                let alignment = self.alignment()?;
                self.alloc(operation, alignment)
            }
            kind::RETIRE => self.retire(operation),
            kind::RESTORE => self.restore(operation),
            kind::UNTIMED_ROW => self.untimed_row(),
            kind::TIMED_ROW => {
                let time = self.time()?;
                rows::decode_timed(&mut self.columns[column::ROWS], time)
            }
            kind::MAP => {
                let (time, tid, thread) = self.who()?;
                let stack = self.stack(thread, operation)?.1;
                let (start, length) = self.range()?;
                let kind = map_kind(self.columns[column::MAPPINGS].byte()?)?;
                Ok(Record::Map { time, tid, start, length, kind, stack })
            }
            kind::UNMAP => {
                let (time, tid, _) = self.who()?;
                let (start, length) = self.range()?;
                Ok(Record::Unmap { time, tid, start, length })
            }
            kind::UNMAP_FAILED => {
                let (time, tid, _) = self.who()?;
                Ok(Record::UnmapFailed { time, tid })
            }
            kind::REMAP_START => {
                let (time, tid, _) = self.who()?;
                let (start, length) = self.range()?;
                Ok(Record::RemapStart { time, tid, start, length })
            }
            kind::REMAP => {
                let (time, tid, thread) = self.who()?;
                let stack = self.stack(thread, operation)?.1;
                let (start, length) = self.range()?;
                Ok(Record::Remap { time, tid, start, length, stack })
            }
            kind::BREAK => {
                let (time, tid, thread) = self.who()?;
                let stack = self.stack(thread, operation)?.1;
                let (old, growth) = self.range()?;
                let new = Avma(old.0.wrapping_add(growth));
                Ok(Record::Break { time, tid, old, new, stack })
            }
            kind::COMMIT => {
                let (time, tid, thread) = self.who()?;
                let stack = self.stack(thread, operation)?.1;
                let (start, length) = self.range()?;
                Ok(Record::Commit { time, tid, start, length, stack })
            }
            kind::DECOMMIT => {
                let (time, tid, _) = self.who()?;
                let (start, length) = self.range()?;
                Ok(Record::Decommit { time, tid, start, length })
            }
            kind::HELD => {
                let (pid, tid) = rows::decode_holder(&mut self.columns[column::ROWS])?;
                let api = match self.columns[column::APIS].byte()? {
                    NO_API => None,
                    number => Some(api(number)?),
                };
                let alignment = match operation & ALIGNED {
                    0 => Alignment::NONE,
                    _ => self.alignment()?,
                };
                let [_, _, _, stacks, stack_ids, ..] = &mut self.columns;
                let index = stack_index(stacks, stack_ids, &mut self.model)?;
                let stack = self.model.stack(index).id;
                let (start, length) = self.range()?;
                let born = self.time()?;
                Ok(Record::Held { born, pid, tid, api, start, length, alignment, stack })
            }
            other => Err(Damage::UnknownValue { what: "an operation", found: u64::from(other) }),
        }
    }

    fn untimed_row(&mut self) -> Result<Record, Damage> {
        let Decoder { model, columns, .. } = self;
        let [_, _, _, stacks, stack_ids, _, _, _, _, _, _, rows] = columns;
        rows::decode_untimed(rows, model, |model| {
            let index = stack_index(stacks, stack_ids, model)?;
            Ok(model.stack(index).id)
        })
    }

    #[inline]
    fn alloc(&mut self, operation: u8, alignment: Alignment) -> Result<Record, Damage> {
        let (time, tid, thread) = self.who()?;
        let (index, stack) = self.stack(thread, operation)?;

        let last = self.model.stack(index);
        if operation & API == 0 {
            last.api = self.columns[column::APIS].byte()?;
        }
        if operation & SIZE == 0 {
            last.size = self.columns[column::SIZES].varint()?;
        }
        let (api, size) = (api(last.api)?, last.size);

        let guess = self.model.guess_alloc(thread, size);
        let ptr = if operation & ADDRESS == 0 {
            undelta_address(guess, self.columns[column::ADDRESSES].varint()?)
        } else {
            guess
        };
        self.model.saw_alloc(thread, ptr, size);
        Ok(Record::Alloc { time, tid, api, ptr: Avma(ptr), size, alignment, stack })
    }

    #[inline]
    fn free(&mut self, operation: u8) -> Result<Record, Damage> {
        let (time, tid, thread) = self.who()?;
        let last_api = &mut self.model.thread(thread).free_api;
        if operation & API == 0 {
            *last_api = self.columns[column::APIS].byte()?;
        }
        let api = api(*last_api)?;
        let block = self.released(operation)?;
        self.model.saw_free(thread, block);
        Ok(Record::Free { time, tid, api, ptr: Avma(block.ptr) })
    }

    fn alignment(&mut self) -> Result<Alignment, Damage> {
        let log2 = self.columns[column::APIS].byte()?;
        Alignment::from_log2(log2)
            .filter(|alignment| *alignment != Alignment::NONE)
            .ok_or(Damage::UnknownValue { what: "an alignment", found: u64::from(log2) })
    }

    fn retire(&mut self, operation: u8) -> Result<Record, Damage> {
        let (time, tid, thread) = self.who()?;
        let block = self.released(operation)?;
        self.model.saw_retire(thread, block);
        Ok(Record::Retire { time, tid, ptr: Avma(block.ptr) })
    }

    fn restore(&mut self, operation: u8) -> Result<Record, Damage> {
        let (time, tid, thread) = self.who()?;
        let expected = self.model.take_retired(thread);
        let ptr = if operation & ADDRESS == 0 {
            undelta_address(expected, self.columns[column::FREED].varint()?)
        } else {
            expected
        };
        Ok(Record::Restore { time, tid, ptr: Avma(ptr) })
    }

    #[inline]
    fn released(&mut self, operation: u8) -> Result<Block, Damage> {
        if operation & ADDRESS == 0 {
            let delta = self.columns[column::FREED].varint()?;
            return Ok(Block::of_unknown_size(undelta_address(self.model.freed, delta)));
        }
        let distance = self.columns[column::RECENT].varint()?;
        self.model
            .recent(distance)
            .ok_or(Damage::UnknownValue { what: NAMES[column::RECENT], found: distance })
    }

    fn range(&mut self) -> Result<(Avma, u64), Damage> {
        let mappings = &mut self.columns[column::MAPPINGS];
        let start = undelta(self.model.mapped, mappings.varint()?);
        let length = mappings.varint()?;
        self.model.mapped = start;
        Ok((Avma(start), length))
    }

    #[inline]
    fn stack(
        &mut self,
        thread: ThreadIndex,
        operation: u8,
    ) -> Result<(StackIndex, WireStackId), Damage> {
        let index = if operation & STACK == 0 {
            let [_, _, _, stacks, stack_ids, ..] = &mut self.columns;
            stack_index(stacks, stack_ids, &mut self.model)?
        } else {
            self.model.expected_stack(thread)
        };
        self.model.saw_stack(thread, index);
        Ok((index, self.model.stack(index).id))
    }

    #[inline]
    fn who(&mut self) -> Result<(Time, Tid, ThreadIndex), Damage> {
        let time = self.time()?;
        if self.run == 0 {
            self.next_run()?;
        }
        self.run -= 1;
        Ok((time, self.model.thread(self.thread).tid, self.thread))
    }

    fn next_run(&mut self) -> Result<(), Damage> {
        let threads = &mut self.columns[column::THREADS];
        let index = threads.varint_u32()?;
        if index as usize == self.model.threads.len() {
            check_room(self.model.threads.len(), "the number of threads")?;
            self.model.add_thread(Tid(threads.varint_u32()?));
        } else if index as usize > self.model.threads.len() {
            return Err(Damage::UnknownValue {
                what: NAMES[column::THREADS],
                found: u64::from(index),
            });
        }
        self.thread = index;
        self.run = threads.varint()?;
        if self.run == 0 {
            return Err(Damage::UnknownValue { what: NAMES[column::THREADS], found: 0 });
        }
        Ok(())
    }

    #[inline]
    fn time(&mut self) -> Result<Time, Damage> {
        let times = &mut self.columns[column::TIMES];
        let clock = match self.time {
            Some(Clock { now, unit }) => {
                let steps = undelta(0, times.varint()?);
                Clock { now: now.wrapping_add(steps.wrapping_mul(unit)), unit }
            }
            None => Clock { now: times.varint()?, unit: times.varint()? },
        };
        self.time = Some(clock);
        Ok(Time(clock.now))
    }
}

#[inline]
fn stack_index(
    stacks: &mut Input,
    stack_ids: &mut Input,
    model: &mut Model,
) -> Result<StackIndex, Damage> {
    let index = stacks.varint_u32()?;
    if index as usize == model.stacks.len() {
        check_room(model.stacks.len(), "the number of stacks")?;
        model.add_stack(WireStackId(u64::from_le_bytes(stack_ids.array()?)));
    } else if index as usize > model.stacks.len() {
        return Err(Damage::UnknownValue { what: NAMES[column::STACKS], found: u64::from(index) });
    }
    Ok(index)
}

fn check_room(entries: usize, what: &'static str) -> Result<(), Damage> {
    if entries < MAX_DICTIONARY {
        return Ok(());
    }
    Err(Damage::TooLarge { what, found: entries as u64 + 1, limit: MAX_DICTIONARY as u64 })
}

#[inline]
fn map_kind(number: u8) -> Result<MapKind, Damage> {
    match number {
        0 => Ok(MapKind::Anonymous),
        1 => Ok(MapKind::File),
        2 => Ok(MapKind::Shared),
        3 => Ok(MapKind::Reserved),
        _ => Err(Damage::UnknownValue { what: "the kind of a mapping", found: u64::from(number) }),
    }
}

fn api(number: u8) -> Result<Api, Damage> {
    Api::from_wire(number)
        .ok_or(Damage::UnknownValue { what: NAMES[column::APIS], found: u64::from(number) })
}
