//! The kernel's tables: unwind rows, their bucket index, and the modules of each process.
//!
//! There is a limit, so room is handed out and counted; a file that no process maps any more
//! gives its room back when another needs it. A file's rows and buckets are written once, whichever
//! processes map it. A process has two regions of modules that are written in turn, so that a walk
//! does not see a half-written one unless two changes overtake it:
//!
//! ```text
//!   ROWS     | file A …… | free | file C … | free …
//!   BUCKETS  | A … | free | C … | free …          entries count rows of the whole map
//!   MODULES  | process 1, even | process 1, odd | process 2, even | …
//! ```

use std::collections::{BTreeMap, HashMap};

use memtrace_common::addr::{Avma, Svma};
use memtrace_common::config::{BUCKETS_PER_CHUNK, MAX_MODULES, Module, ROWS_PER_CHUNK};

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
    /// What it takes.
    room: Room,
}

impl Placed {
    /// A module without a table.
    pub const NOTHING: Placed = Placed {
        base: Svma(0),
        first_bucket: 0,
        bucket_count: 0,
        room: Room { rows: Chunks::NONE, buckets: Chunks::NONE },
    };
}

/// Why a table cannot be placed, in the words of the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoom {
    /// There are too many rows.
    Rows,
    /// There is too much text.
    Buckets,
}

impl NoRoom {
    /// What an error of the kernel means here; the error itself goes to the log.
    fn because(self) -> impl FnOnce(LoadError) -> NoRoom {
        move |error| {
            tracing::warn!("{error}");
            self
        }
    }
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
    rows: Chunks,
    buckets: Chunks,
}

/// Neighbouring values of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Chunks {
    first: u32,
    count: u32,
}

impl Chunks {
    const NONE: Chunks = Chunks { first: 0, count: 0 };

    /// Index of the first entry.
    fn first_entry(self, per_chunk: usize) -> u32 {
        self.first * per_chunk as u32
    }
}

/// The free values of a map.
#[derive(Debug)]
struct Space {
    /// Count by first index; no two of them touch.
    free: BTreeMap<u32, u32>,
}

impl Space {
    /// All values that hold `entries`.
    fn new(entries: u32, per_chunk: usize) -> Self {
        let chunks = entries.div_ceil(per_chunk as u32);
        Space { free: BTreeMap::from([(0, chunks)]) }
    }

    /// The first place that is large enough for `entries`.
    fn take(&mut self, entries: usize, per_chunk: usize) -> Option<Chunks> {
        let count = u32::try_from(entries.div_ceil(per_chunk)).ok()?;
        if count == 0 {
            return Some(Chunks::NONE);
        }
        let (&first, &free) = self.free.iter().find(|(_, free)| **free >= count)?;
        self.free.remove(&first);
        if free > count {
            self.free.insert(first + count, free - count);
        }
        Some(Chunks { first, count })
    }

    fn give_back(&mut self, Chunks { mut first, mut count }: Chunks) {
        if count == 0 {
            return;
        }
        if let Some(behind) = self.free.remove(&(first + count)) {
            count += behind;
        }
        if let Some((&before, before_count)) = self.free.range_mut(..first).next_back()
            && before + *before_count == first
        {
            count += *before_count;
            first = before;
        }
        self.free.insert(first, count);
    }
}

/// What is handed out.
#[derive(Debug)]
pub struct Tables {
    capacity: Capacity,
    rows: Space,
    buckets: Space,
    next_module: u32,
    /// Regions that dead processes gave back, by size.
    free: HashMap<u32, Vec<[u32; 2]>>,
}

impl Tables {
    /// Nothing is handed out yet.
    pub fn new(capacity: Capacity) -> Self {
        Tables {
            capacity,
            rows: Space::new(capacity.rows, ROWS_PER_CHUNK),
            buckets: Space::new(capacity.buckets, BUCKETS_PER_CHUNK),
            next_module: 0,
            free: HashMap::new(),
        }
    }

    /// Writes the table of a file.
    pub fn place(&mut self, kernel: &mut Kernel, table: &cfi::Table) -> Result<Placed, NoRoom> {
        let room = self.reserve(table.rows.len(), table.buckets.len())?;
        let first_row = room.rows.first_entry(ROWS_PER_CHUNK);
        let first_bucket = room.buckets.first_entry(BUCKETS_PER_CHUNK);
        let entries: Vec<u32> = table.buckets.iter().map(|row| first_row + row).collect();
        // It found room, so it can be counted.
        let bucket_count = (entries.len() as u32).saturating_sub(1);
        let placed = Placed { base: table.base, first_bucket, bucket_count, room };
        let written =
            kernel.set_rows(first_row, &table.rows).map_err(NoRoom::Rows.because()).and_then(
                |()| kernel.set_buckets(first_bucket, &entries).map_err(NoRoom::Buckets.because()),
            );
        if written.is_err() {
            self.remove(placed);
        }
        written.map(|()| placed)
    }

    /// Takes back the room of a file's table, which no process may use any more.
    pub fn remove(&mut self, placed: Placed) {
        self.rows.give_back(placed.room.rows);
        self.buckets.give_back(placed.room.buckets);
    }

    /// Hands out whole chunks for a file.
    fn reserve(&mut self, rows: usize, buckets: usize) -> Result<Room, NoRoom> {
        let rows = self.rows.take(rows, ROWS_PER_CHUNK).ok_or(NoRoom::Rows)?;
        match self.buckets.take(buckets, BUCKETS_PER_CHUNK) {
            Some(buckets) => Ok(Room { rows, buckets }),
            None => {
                self.rows.give_back(rows);
                Err(NoRoom::Buckets)
            }
        }
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

/// The rows and buckets that these tables take, in whole chunks.
pub fn room_for<'a>(tables: impl IntoIterator<Item = &'a cfi::Table>) -> (u64, u64) {
    let whole = |entries: usize, per_chunk: usize| {
        entries.checked_next_multiple_of(per_chunk).map_or(u64::MAX, |entries| entries as u64)
    };
    tables.into_iter().fold((0, 0), |(rows, buckets), table| {
        let more_rows = whole(table.rows.len(), ROWS_PER_CHUNK);
        let more_buckets = whole(table.buckets.len(), BUCKETS_PER_CHUNK);
        (rows.saturating_add(more_rows), buckets.saturating_add(more_buckets))
    })
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
            tables.reserve(rows, buckets).map(|room| (room.rows.first, room.buckets.first))
        });

        assert_eq!(rooms, [Ok((0, 0)), Ok((1, 1)), Ok((3, 3))]);
    }

    #[test]
    fn file_that_does_not_fit_takes_nothing() {
        let mut tables = tables(1024, 1024, 0);

        assert_eq!(tables.reserve(1025, 1), Err(NoRoom::Rows));
        assert_eq!(tables.reserve(1, 1025), Err(NoRoom::Buckets));
        assert_eq!(tables.reserve(usize::MAX, 1), Err(NoRoom::Rows));

        let room =
            Room { rows: Chunks { first: 0, count: 2 }, buckets: Chunks { first: 0, count: 1 } };
        assert_eq!(tables.reserve(1024, 1024), Ok(room));
        assert_eq!(tables.reserve(1, 1), Err(NoRoom::Rows));
    }

    #[test]
    fn room_that_was_given_back_is_used_again() {
        let mut tables = tables(5 * 512, 5 * 1024, 0);
        let rooms: Vec<Room> =
            (0..5).map(|_| tables.reserve(512, 1024)).collect::<Result<_, _>>().unwrap();
        let placed = |room| Placed { room, ..Placed::NOTHING };

        // The neighbours of a gap before and behind it grow together with it.
        for index in [1, 3, 2] {
            tables.remove(placed(rooms[index]));
        }

        assert_eq!(tables.reserve(4 * 512, 1), Err(NoRoom::Rows));
        let room = tables.reserve(3 * 512, 3 * 1024);
        let chunks = Chunks { first: 1, count: 3 };
        assert_eq!(room, Ok(Room { rows: chunks, buckets: chunks }));
    }

    #[test]
    fn module_without_a_table_gives_nothing_back() {
        let mut tables = tables(512, 1024, 0);
        let room = tables.reserve(512, 1024);

        tables.remove(Placed::NOTHING);

        assert!(room.is_ok());
        assert_eq!(tables.reserve(1, 1), Err(NoRoom::Rows));
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
