//! Memory that a process has released and not got again.
//!
//! Its allocator keeps it, with the old contents. Pointers in there are left over: nobody may follow
//! them, so that they keep no block from being lost. Kept for a process only if it is asked for.
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

use super::Pipeline;
use crate::record::{Pid, Record};

/// The most ranges that are remembered: some 200 MB. Others count as memory of which nothing is known.
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

    /// Forgets what a record uses, in whichever process: too little is remembered then, never too
    /// much.
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
            Record::Exec { .. } | Record::Exit { .. } => self.ends.clear(),
            _ => {}
        }
    }

    fn add(&mut self, start: Avma, size_bytes: u64) {
        let end = start.0.saturating_add(size_bytes);
        self.cut(start, size_bytes);
        if start.0 < end && self.ends.len() < LIMIT {
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

/// What one process has released.
pub(super) struct Freed {
    pid: Pid,
    ranges: FreedRanges,
}

impl Pipeline {
    /// Remembers from now on what `pid` releases, for [`Pipeline::freed_ranges`].
    pub fn remember_freed(&mut self, pid: Pid) {
        self.freed = Some(Freed { pid, ranges: FreedRanges::default() });
    }

    /// What was released and not used again; nothing if it was not to be remembered.
    pub fn freed_ranges(&self) -> FreedRanges {
        self.freed.as_ref().map(|freed| freed.ranges.clone()).unwrap_or_default()
    }

    /// Whether the kernel half has lost events: what is released may then be used again, unseen.
    pub fn has_lost_events(&self) -> bool {
        self.counters.iter().any(|(name, value)| name.starts_with("lost_") && *value > 0)
    }

    /// A block was released by this process.
    #[inline(always)]
    pub(super) fn note_freed(&mut self, pid: Pid, start: Avma, size_bytes: u64) {
        if let Some(freed) = self.freed.as_mut().filter(|freed| freed.pid == pid) {
            freed.ranges.add(start, size_bytes);
        }
    }

    /// Ends a record that may use what was released.
    #[inline(always)]
    pub(super) fn note_use(&mut self, record: &Record) {
        if let Some(freed) = &mut self.freed {
            freed.ranges.note_use(record);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn range_that_is_used_again_in_the_middle_becomes_two() {
        let mut freed = FreedRanges::default();
        freed.add(Avma(100), 50);

        freed.cut(Avma(110), 10);

        assert_eq!(freed.ends, BTreeMap::from([(100, 110), (120, 150)]));
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
