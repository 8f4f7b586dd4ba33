//! The kernel's tables: unwind rows, their bucket index, and the modules of each process.
//!
//! Array maps cannot grow, so room is handed out once and counted. A file's rows and buckets are
//! written once, whichever processes map it. A process has two regions of modules that are
//! written in turn, so that a walk never sees a half-written one:
//!
//! ```text
//!   ROWS     | file A …… | file B … |            → grows
//!   BUCKETS  | A … | B … |                       → grows; entries count rows of the whole map
//!   MODULES  | process 1, even | process 1, odd | process 2, even | …
//! ```

use std::collections::HashMap;

use memtrace_common::addr::{Avma, Svma};
use memtrace_common::config::{
    BUCKETS_PER_CHUNK, BucketChunk, MAX_MODULES, Module, ROWS_PER_CHUNK, RowChunk,
};
use memtrace_common::unwind::{Row, cfa};

use super::loader::{Capacity, Kernel, LoadError};
use crate::cfi;

/// A module that no address is in, and that sorts behind all others.
const NO_MODULE: Module =
    Module { start: u64::MAX, end: u64::MAX, base: 0, buckets: 0, bucket_count: 0 };

/// The smallest region, in modules.
const MIN_REGION: u32 = 64;

/// Where the table of a file is in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// What its rows count from.
    pub base: Svma,
    /// Index of its first bucket entry.
    pub first_bucket: u32,
    /// How many buckets it has.
    pub bucket_count: u32,
}

impl Placed {
    /// A module without a table.
    pub const NOTHING: Placed = Placed { base: Svma(0), first_bucket: 0, bucket_count: 0 };
}

/// The two regions of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Regions {
    first: [u32; 2],
    size: u32,
    written: usize,
}

/// A region that is ready to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Index of its first module.
    pub first: u32,
    /// How many modules to search; the last ones may be unused.
    pub count: u32,
}

/// What is handed out.
#[derive(Debug)]
pub struct Tables {
    capacity: Capacity,
    next_row: u32,
    next_bucket: u32,
    next_module: u32,
    /// Regions that dead processes gave back, by size.
    free: HashMap<u32, Vec<[u32; 2]>>,
}

impl Tables {
    /// Nothing is handed out yet.
    pub fn new(capacity: Capacity) -> Self {
        Tables { capacity, next_row: 0, next_bucket: 0, next_module: 0, free: HashMap::new() }
    }

    /// Writes the table of a file; `None` if there is no room for it.
    pub fn place(
        &mut self,
        kernel: &mut Kernel,
        table: &cfi::Table,
    ) -> Result<Option<Placed>, LoadError> {
        let (Ok(rows), Ok(buckets)) =
            (u32::try_from(table.rows.len()), u32::try_from(table.buckets.len()))
        else {
            return Ok(None);
        };
        let fits = |next: u32, more: u32, capacity: u32| {
            next.checked_add(more).is_some_and(|end| end <= capacity)
        };
        if !fits(self.next_row, rows, self.capacity.rows)
            || !fits(self.next_bucket, buckets, self.capacity.buckets)
        {
            return Ok(None);
        }
        let (first_row, first_bucket) = (self.next_row, self.next_bucket);
        let no_row = Row { pc: 0, cfa_offset: 0, cfa_kind: cfa::NONE, rbp_offset_by_8: 0 };
        let mut chunk_index = first_row / ROWS_PER_CHUNK as u32;
        for rows in table.rows.chunks(ROWS_PER_CHUNK) {
            let mut chunk: RowChunk = [no_row; ROWS_PER_CHUNK];
            chunk[..rows.len()].copy_from_slice(rows);
            kernel.set_rows(chunk_index, chunk)?;
            chunk_index += 1;
        }
        self.next_row = chunk_index * ROWS_PER_CHUNK as u32;
        let mut chunk_index = first_bucket / BUCKETS_PER_CHUNK as u32;
        for entries in table.buckets.chunks(BUCKETS_PER_CHUNK) {
            let mut chunk: BucketChunk = [0; BUCKETS_PER_CHUNK];
            for (to, from) in chunk.iter_mut().zip(entries) {
                *to = first_row + from;
            }
            kernel.set_buckets(chunk_index, chunk)?;
            chunk_index += 1;
        }
        self.next_bucket = chunk_index * BUCKETS_PER_CHUNK as u32;
        Ok(Some(Placed { base: table.base, first_bucket, bucket_count: buckets.saturating_sub(1) }))
    }

    /// Writes the modules of a process, sorted by address, into its other region.
    ///
    /// Gives a region with as many of them as there is room for, and how many that are.
    pub fn write_modules(
        &mut self,
        kernel: &mut Kernel,
        regions: &mut Option<Regions>,
        modules: &[Module],
    ) -> Result<(Region, usize), LoadError> {
        let wanted = u32::try_from(modules.len()).unwrap_or(u32::MAX);
        let size = wanted.clamp(MIN_REGION, MAX_MODULES).next_power_of_two();
        if regions.is_none_or(|regions| regions.size < size)
            && let Some(first) = self.take(size)
        {
            self.give_back(regions.take());
            *regions = Some(Regions { first, size, written: 0 });
        }
        let Some(regions) = regions else { return Ok((Region { first: 0, count: 0 }, 0)) };
        regions.written = 1 - regions.written;
        let first = regions.first[regions.written];
        let unused = std::iter::repeat(&NO_MODULE);
        for (index, module) in (first..first + regions.size).zip(modules.iter().chain(unused)) {
            kernel.set_module(index, *module)?;
        }
        let written = modules.len().min(regions.size as usize);
        Ok((Region { first, count: regions.size }, written))
    }

    /// Takes back the regions of a process that has ended.
    pub fn give_back(&mut self, regions: Option<Regions>) {
        if let Some(Regions { first, size, written: _ }) = regions {
            self.free.entry(size).or_default().push(first);
        }
    }

    fn take(&mut self, size: u32) -> Option<[u32; 2]> {
        if let Some(first) = self.free.get_mut(&size).and_then(Vec::pop) {
            return Some(first);
        }
        let end = self.next_module.checked_add(size.checked_mul(2)?)?;
        if end > self.capacity.modules {
            return None;
        }
        let first = [self.next_module, self.next_module + size];
        self.next_module = end;
        Some(first)
    }
}

/// The kernel's view of a mapping whose file has its table at `placed`.
pub fn module(start: Avma, end: Avma, load_bias: u64, placed: Placed) -> Module {
    Module {
        start: start.0,
        end: end.0,
        base: placed.base.0.wrapping_add(load_bias),
        buckets: placed.first_bucket,
        bucket_count: placed.bucket_count,
    }
}
