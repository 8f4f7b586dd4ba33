//! The kernel's tables: unwind rows, their bucket index, and the modules of each process.
//!
//! Array maps cannot grow, so room is handed out once and counted. A file's rows and buckets are
//! written once, whichever processes map it. A process has two regions of modules that are
//! written in turn, so that a walk does not see a half-written one unless two changes overtake it:
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
use memtrace_common::unwind::Row;

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

/// Room for the table of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Room {
    first_row: u32,
    first_bucket: u32,
    buckets: u32,
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
        let Some(Room { first_row, first_bucket, buckets }) =
            self.reserve(table.rows.len(), table.buckets.len())
        else {
            return Ok(None);
        };
        let chunks = table.rows.chunks(ROWS_PER_CHUNK);
        for (index, rows) in (first_row / ROWS_PER_CHUNK as u32..).zip(chunks) {
            let mut chunk: RowChunk = [Row::NONE; ROWS_PER_CHUNK];
            chunk[..rows.len()].copy_from_slice(rows);
            kernel.set_rows(index, chunk)?;
        }
        let chunks = table.buckets.chunks(BUCKETS_PER_CHUNK);
        for (index, entries) in (first_bucket / BUCKETS_PER_CHUNK as u32..).zip(chunks) {
            let mut chunk: BucketChunk = [0; BUCKETS_PER_CHUNK];
            for (to, from) in chunk.iter_mut().zip(entries) {
                *to = first_row + from;
            }
            kernel.set_buckets(index, chunk)?;
        }
        Ok(Some(Placed { base: table.base, first_bucket, bucket_count: buckets.saturating_sub(1) }))
    }

    /// Hands out whole chunks for a file; `None` if there are not enough.
    fn reserve(&mut self, rows: usize, buckets: usize) -> Option<Room> {
        let buckets_u32 = u32::try_from(buckets).ok()?;
        let next_row = end_of_chunks(self.next_row, rows, ROWS_PER_CHUNK, self.capacity.rows)?;
        let next_bucket =
            end_of_chunks(self.next_bucket, buckets, BUCKETS_PER_CHUNK, self.capacity.buckets)?;
        let (first_row, first_bucket) = (self.next_row, self.next_bucket);
        (self.next_row, self.next_bucket) = (next_row, next_bucket);
        Some(Room { first_row, first_bucket, buckets: buckets_u32 })
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
        let region = self.next_region(regions, modules.len());
        let Region { first, count } = region;
        let unused = std::iter::repeat(&NO_MODULE);
        for (index, module) in (first..first + count).zip(modules.iter().chain(unused)) {
            kernel.set_module(index, *module)?;
        }
        Ok((region, modules.len().min(count as usize)))
    }

    /// The region of a process that its walks do not use now, made larger if need be.
    ///
    /// If there is no room for a larger one it stays as it is; a process without any gets none.
    fn next_region(&mut self, regions: &mut Option<Regions>, modules: usize) -> Region {
        let wanted = u32::try_from(modules).unwrap_or(u32::MAX);
        let size = wanted.clamp(MIN_REGION, MAX_MODULES).next_power_of_two();
        if regions.is_none_or(|regions| regions.size < size)
            && let Some(first) = self.take(size)
        {
            self.give_back(regions.take());
            *regions = Some(Regions { first, size, written: 0 });
        }
        let Some(regions) = regions else { return Region { first: 0, count: 0 } };
        regions.written = 1 - regions.written;
        Region { first: regions.first[regions.written], count: regions.size }
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

/// Where the chunks that hold `more` entries from `next` on end; `None` if that is too far.
fn end_of_chunks(next: u32, more: usize, per_chunk: usize, capacity: u32) -> Option<u32> {
    let rounded = u32::try_from(more.checked_next_multiple_of(per_chunk)?).ok()?;
    let end = next.checked_add(rounded)?;
    // The map's last chunk is whole, whatever the capacity.
    (end <= capacity.checked_next_multiple_of(per_chunk as u32)?).then_some(end)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(rows: u32, buckets: u32, modules: u32) -> Tables {
        Tables::new(Capacity { ring_bytes: 0, rows, buckets, modules })
    }

    #[test]
    fn files_get_whole_chunks_one_after_the_other() {
        let mut tables = tables(4096, 8192, 0);

        let rooms = [(1, 1), (513, 1025), (512, 1024)].map(|(rows, buckets)| {
            tables.reserve(rows, buckets).map(|room| (room.first_row, room.first_bucket))
        });

        assert_eq!(rooms, [Some((0, 0)), Some((512, 1024)), Some((1536, 3072))]);
    }

    #[test]
    fn file_that_does_not_fit_takes_nothing() {
        let mut tables = tables(1024, 1024, 0);

        assert_eq!(tables.reserve(1025, 1), None);
        assert_eq!(tables.reserve(1, 1025), None);
        assert_eq!(tables.reserve(usize::MAX, 1), None);

        let room = Room { first_row: 0, first_bucket: 0, buckets: 1024 };
        assert_eq!(tables.reserve(1024, 1024), Some(room));
        assert_eq!(tables.reserve(1, 1), None);
    }

    #[test]
    fn regions_of_a_process_take_turns() {
        let mut tables = tables(0, 0, 1024);
        let mut regions = None;

        let firsts = [(); 3].map(|()| tables.next_region(&mut regions, 10).first);

        assert_eq!(firsts, [64, 0, 64]);
    }

    #[test]
    fn region_that_is_too_small_is_given_back_and_used_again() {
        let mut tables = tables(0, 0, 1024);
        let (mut first, mut second) = (None, None);
        tables.next_region(&mut first, 10);

        let larger = tables.next_region(&mut first, 65);
        let reused = tables.next_region(&mut second, 10);

        assert_eq!(larger, Region { first: 256, count: 128 });
        assert_eq!(reused, Region { first: 64, count: 64 });
    }

    #[test]
    fn process_keeps_its_region_when_there_is_no_larger_one() {
        let mut tables = tables(0, 0, 128);
        let (mut first, mut second) = (None, None);
        tables.next_region(&mut first, 10);

        assert_eq!(tables.next_region(&mut first, 5000), Region { first: 0, count: 64 });
        assert_eq!(tables.next_region(&mut second, 1), Region { first: 0, count: 0 });
    }
}
