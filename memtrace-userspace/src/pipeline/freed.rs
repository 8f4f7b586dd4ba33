//! Memory that processes have released and not got again.
//!
//! Their allocators keep it, with the old contents. Pointers in there are left over: nobody may
//! follow them, so that they keep no block from being lost. Kept only if it is asked for.
//!
//! ```text
//!   free         |######|  |####|        remembered
//!   malloc          |--|                 used again, and some more: an allocator rounds up
//!   left         |##|      |####|
//!   munmap                   |-----      whatever is mapped there next is no heap
//!   left         |##|      |#|
//! ```

use std::collections::BTreeMap;
use std::ops::Range;

use memtrace_common::addr::Avma;

use rustc_hash::FxHashMap;

use super::Pipeline;
use crate::record::{Pid, Record};

/// The most ranges that are remembered, of all processes: some 200 MB. Others count as memory of which nothing is known.
const LIMIT: usize = 1 << 22;

/// Ranges that were released and not used again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FreedRanges {
    /// First addresses to ends; the ranges do not overlap.
    ends: BTreeMap<u64, u64>,
}

impl FreedRanges {
    /// The ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = Range<Avma>> {
        self.ends.iter().map(|(&start, &end)| Avma(start)..Avma(end))
    }

    /// Forgets what a record of this process uses.
    pub fn note_use(&mut self, record: &Record) {
        match record {
            Record::Alloc { ptr, size, .. } => self.cut(*ptr, most_bytes(*size)),
            Record::Map { start, length, .. }
            | Record::Unmap { start, length, .. }
            | Record::RemapStart { start, length, .. }
            | Record::Remap { start, length, .. }
            | Record::Commit { start, length, .. }
            | Record::Decommit { start, length, .. } => self.cut(*start, *length),
            Record::Break { old, new, .. } => {
                self.cut((*old).min(*new), old.0.abs_diff(new.0));
            }
            _ => {}
        }
    }

    fn add(&mut self, start: Avma, size_bytes: u64) {
        let end = start.0.saturating_add(size_bytes);
        self.cut(start, size_bytes);
        if start.0 < end {
            self.ends.insert(start.0, end);
        }
    }

    /// Forgets a range.
    fn cut(&mut self, start: Avma, size_bytes: u64) {
        let (start, end) = (start.0, start.0.saturating_add(size_bytes));
        while let Some((&from, &to)) = self.ends.range(..end).next_back() {
            if to <= start {
                break;
            }
            self.ends.remove(&from);
            if to > end {
                self.ends.insert(end, to);
            }
            if from < start {
                self.ends.insert(from, start);
                break;
            }
        }
    }
}

/// What a block of this size may take: size classes are a quarter apart, headers 16 bytes.
fn most_bytes(size_bytes: u64) -> u64 {
    size_bytes.saturating_add(size_bytes / 4 + 32)
}

/// What the running processes have released.
#[derive(Default)]
pub(super) struct Freed {
    of: FxHashMap<Pid, FreedRanges>,
    /// How many ranges that are.
    ranges: usize,
}

impl Freed {
    fn add(&mut self, pid: Pid, start: Avma, size_bytes: u64) {
        if self.ranges < LIMIT {
            let freed = self.of.entry(pid).or_default();
            let before = freed.ends.len();
            freed.add(start, size_bytes);
            self.ranges = self.ranges - before + freed.ends.len();
        }
    }

    /// Forgets what a record of `pid` uses; of a process that is not known, that of all: too little
    /// is remembered then, never too much.
    fn note_use(&mut self, pid: Option<Pid>, record: &Record) {
        let mut forget = |freed: &mut FreedRanges| {
            let before = freed.ends.len();
            freed.note_use(record);
            self.ranges = self.ranges - before + freed.ends.len();
        };
        match pid {
            Some(pid) => self.of.get_mut(&pid).map_or((), forget),
            None => self.of.values_mut().for_each(&mut forget),
        }
    }

    /// A child has a copy of its parent's memory, as far as there is room to remember it.
    fn fork(&mut self, parent: Pid, child: Pid) {
        self.end(child);
        let copy = self.of.get(&parent).filter(|freed| freed.ends.len() <= LIMIT - self.ranges);
        if let Some(copy) = copy.cloned() {
            self.ranges += copy.ends.len();
            self.of.insert(child, copy);
        }
    }

    fn end(&mut self, pid: Pid) {
        self.ranges -= self.of.remove(&pid).map_or(0, |freed| freed.ends.len());
    }
}

impl Pipeline {
    /// Remembers from now on what processes release, for [`Pipeline::freed_ranges`].
    pub fn remember_freed(&mut self) {
        self.freed = Some(Freed::default());
    }

    /// What a process released and did not use again; nothing if it was not to be remembered.
    pub fn freed_ranges(&self, pid: Pid) -> FreedRanges {
        let freed = self.freed.as_ref().and_then(|freed| freed.of.get(&pid));
        freed.cloned().unwrap_or_default()
    }

    /// A block was released by this process.
    #[inline(always)]
    pub(super) fn note_freed(&mut self, pid: Pid, start: Avma, size_bytes: u64) {
        if let Some(freed) = &mut self.freed {
            freed.add(pid, start, size_bytes);
        }
    }

    /// Ends a record that may use what was released.
    #[inline(always)]
    pub(super) fn note_use(&mut self, record: &Record) {
        if self.freed.is_some() {
            self.forget_freed(record);
        }
    }

    fn forget_freed(&mut self, record: &Record) {
        let pid = record.tid().and_then(|tid| self.process_of(tid));
        let Some(freed) = &mut self.freed else { return };
        match record {
            &Record::Fork { parent, child, .. } => freed.fork(parent, child),
            &Record::Exec { pid, .. } | &Record::Exit { pid, .. } => freed.end(pid),
            record => freed.note_use(pid, record),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::{Tid, Time};

    #[test]
    fn range_that_is_used_again_in_the_middle_becomes_two() {
        let mut freed = FreedRanges::default();
        freed.add(Avma(100), 50);

        freed.cut(Avma(110), 10);

        assert_eq!(freed.ends, BTreeMap::from([(100, 110), (120, 150)]));
    }

    #[test]
    fn each_process_has_ranges_of_its_own_and_a_child_a_copy_of_its_parents() {
        let (parent, child) = (Pid(1), Pid(2));
        let mut freed = Freed::default();
        freed.add(parent, Avma(100), 50);

        freed.fork(parent, child);
        let (time, tid, start, length) = (Time(0), Tid(2), Avma(100), 60);
        freed.note_use(Some(child), &Record::Unmap { time, tid, start, length });
        freed.add(child, Avma(10), 5);

        let starts = |freed: &Freed, pid| freed.of[&pid].ends.keys().copied().collect::<Vec<_>>();
        assert_eq!((starts(&freed, parent), starts(&freed, child)), (vec![100], vec![10]));
        freed.end(parent);
        assert_eq!((freed.of.len(), freed.ranges), (1, 1));
    }

    proptest! {
        /// The twin keeps one entry for each byte.
        #[test]
        fn freed_ranges_equal_a_table_of_bytes(steps in prop::collection::vec(
            (any::<bool>(), 0u64..60, 0u64..20), 0..40)
        ) {
            let mut freed = FreedRanges::default();
            let mut twin = [false; 80];

            for (is_free, start, size) in steps {
                if is_free {
                    freed.add(Avma(start), size);
                } else {
                    freed.cut(Avma(start), size);
                }
                twin[start as usize..(start + size) as usize].fill(is_free);
            }

            for (address, expected) in (0..).zip(twin) {
                let inside = freed.ends.iter().any(|(&from, &to)| from <= address && address < to);
                prop_assert_eq!(inside, expected, "{}", address);
            }
        }
    }
}
