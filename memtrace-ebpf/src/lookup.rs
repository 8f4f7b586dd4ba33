//! The search for the unwind row of a program counter.
//!
//! The modules of the process are bisected, then the rows between two entries of the bucket index.
//! The result is kept, since the frames near a thread's root are those of every walk.

use memtrace_common::config::{
    BUCKET_SHIFT, BUCKETS_PER_CHUNK, CHUNKS_PER_SEGMENT, Module, RECENT_ROW_PLACES, ROWS_PER_CHUNK,
};
use memtrace_common::unwind::Row;

use crate::bounds::element;
use crate::maps::{
    BUCKETS, CODE_CHANGES, MODULES, PROCESSES, RECENT_ROWS, ROWS, RecentRow, Scratch,
};
use crate::remember::mix;

/// A module table of 4096 entries is bisected in this many steps.
const MODULE_STEPS: u32 = 13;

/// The rows of one bucket, at most one a byte and two ends, are bisected in this many steps.
const ROW_STEPS: u32 = 9;

/// The unwind row for `pc`; `None` if it is in no module.
#[inline(always)]
pub fn find_row(s: &mut Scratch, pc: u64) -> Option<Row> {
    let check = mix(pc ^ s.owner_hash);
    let recent = RECENT_ROWS.get_ptr_mut(check as u32 & (RECENT_ROW_PLACES - 1))?;
    // SAFETY: a map value, aligned; volatile, because others change it.
    let kept = unsafe { core::ptr::read_volatile(recent) };
    if kept.check ^ kept.row == check {
        return Some(Row::from_bits(kept.row));
    }
    let row = search(s, pc)?;
    let new = RecentRow { check: check ^ row.to_bits(), row: row.to_bits() };
    // SAFETY: as above. Two halves of different writers do not pass the check.
    unsafe { core::ptr::write_volatile(recent, new) };
    Some(row)
}

#[inline(always)]
fn search(s: &mut Scratch, pc: u64) -> Option<Row> {
    if !(s.module.start <= pc && pc < s.module.end) {
        find_module(s, pc)?;
    }
    let Module { base, buckets, bucket_count, .. } = s.module;
    let relative = pc.wrapping_sub(base);
    let bucket = relative >> BUCKET_SHIFT;
    if bucket >= bucket_count as u64 {
        return Some(Row::NONE);
    }
    let bucket = buckets.wrapping_add(bucket as u32);
    let mut low = bucket_entry(bucket)?;
    let mut high = bucket_entry(bucket.wrapping_add(1))?;
    // The last row at or before `relative` is in low..=high.
    for _ in 0..ROW_STEPS {
        if low >= high {
            break;
        }
        let middle = low + (high - low + 1) / 2;
        if row_at(middle)?.pc as u64 <= relative {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    row_at(low)
}

#[inline(always)]
fn bucket_entry(index: u32) -> Option<u32> {
    let (segment, chunk) = place_of(index, BUCKETS_PER_CHUNK);
    Some(element::<0x3ff, _, _>(BUCKETS.get_value(segment, &chunk)?, index as u64))
}

#[inline(always)]
fn row_at(index: u32) -> Option<Row> {
    let (segment, chunk) = place_of(index, ROWS_PER_CHUNK);
    Some(element::<0x1ff, _, _>(ROWS.get_value(segment, &chunk)?, index as u64))
}

/// The segment that an entry is in, and its chunk in there.
#[inline(always)]
fn place_of(index: u32, per_chunk: usize) -> (u32, u32) {
    let chunk = index / per_chunk as u32;
    (chunk / CHUNKS_PER_SEGMENT as u32, chunk % CHUNKS_PER_SEGMENT as u32)
}

/// Puts the module that holds `pc` into the scratch.
#[inline(always)]
fn find_module(s: &mut Scratch, pc: u64) -> Option<()> {
    // The last module that starts at or before `pc` is in low..high.
    let mut low = 0;
    let mut high = s.module_count;
    if high == 0 {
        // A process that found no room for its modules must not be walked with another's.
        return None;
    }
    for _ in 0..MODULE_STEPS {
        if low + 1 >= high {
            break;
        }
        let middle = (low + high) / 2;
        if MODULES.get(s.first_module.wrapping_add(middle))?.start <= pc {
            low = middle;
        } else {
            high = middle;
        }
    }
    let module = MODULES.get(s.first_module.wrapping_add(low))?;
    if pc < module.start || pc >= module.end {
        return None;
    }
    // Said to be apart, they are copied word by word; else by a function, byte by byte.
    // SAFETY: the one is in the scratch, the other a value of another map.
    unsafe { core::ptr::copy_nonoverlapping(module, &raw mut s.module, 1) };
    Some(())
}

/// Whether the process has code that the daemon has not read yet.
#[inline(always)]
pub fn tables_are_behind(process: u32) -> bool {
    let (Some(table), Some(changes)) = (PROCESSES.get(process), CODE_CHANGES.get(process)) else {
        return false;
    };
    table.code_changes != *changes
}
