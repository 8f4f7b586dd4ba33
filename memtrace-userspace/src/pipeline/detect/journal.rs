//! What accounts held before their first change in each tick of the window.
//!
//! ```text
//!   tick      1            2            3            now
//!   entries   A: 0, B: 0   A: 16        C: 0
//!   held at the start of tick 2: A 16 (its first entry from there on), C 0; others as now
//! ```
//!
//! So the growth of every account since any tick of the window is known, and an account that does
//! not change costs nothing.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use crate::pipeline::operations::OperationId;
use crate::pipeline::stacks::SiteId;
use crate::pipeline::threads::ThreadId;

/// Whose account changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::pipeline) enum Holder {
    Site(SiteId),
    Thread(ThreadId),
    /// Of a thread, what belongs to an operation.
    ThreadIn(OperationId, ThreadId),
}

/// What accounts held at some moment, if they have changed since.
pub(super) type Base = FxHashMap<Holder, u64>;

/// The entries of the ticks in the window.
#[derive(Debug)]
pub(super) struct Journal {
    entries: VecDeque<(Holder, u64)>,
    /// Number of the first entry that is kept.
    first: u64,
    /// Number of the first entry of each tick, the one under way last.
    ticks: VecDeque<u64>,
    window_ticks: usize,
    limit: usize,
    beyond_limit: u64,
}

impl Journal {
    pub(super) fn new(window_ticks: usize, limit: usize) -> Journal {
        Journal {
            entries: VecDeque::new(),
            first: 0,
            ticks: VecDeque::from([0]),
            window_ticks,
            limit,
            beyond_limit: 0,
        }
    }

    /// Notes what an account held before its first change in this tick.
    pub(super) fn note(&mut self, holder: Holder, held: u64) {
        if self.entries.len() < self.limit {
            self.entries.push_back((holder, held));
        } else {
            self.beyond_limit += 1;
        }
    }

    /// Begins a tick.
    pub(super) fn tick(&mut self) {
        self.ticks.push_back(self.end());
        if self.ticks.len() > self.window_ticks + 1 {
            self.ticks.pop_front();
            let keep = self.ticks.front().copied().unwrap_or(self.first);
            self.entries.drain(..(keep - self.first) as usize);
            self.first = keep;
        }
    }

    /// Number of the entry that comes next.
    pub(super) fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// Number of the first entry of the tick that began `ticks_ago` ticks before this one.
    pub(super) fn start_of_tick(&self, ticks_ago: usize) -> u64 {
        let index = self.ticks.len().saturating_sub(1 + ticks_ago);
        self.ticks.get(index).copied().unwrap_or(self.first)
    }

    /// Completes `base` with the entries from number `from` on; returns where they end.
    pub(super) fn complete(&self, base: &mut Base, from: u64) -> u64 {
        let skip = from.saturating_sub(self.first) as usize;
        for &(holder, held) in self.entries.iter().skip(skip) {
            base.entry(holder).or_insert(held);
        }
        self.end()
    }

    /// Changes that found no room.
    pub(super) fn beyond_limit(&self) -> u64 {
        self.beyond_limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thread(bits: u32) -> Holder {
        Holder::Thread(ThreadId::from_bits(bits))
    }

    #[test]
    fn first_entry_since_a_tick_is_what_was_held_then() {
        let mut journal = Journal::new(2, 100);
        journal.note(thread(1), 0);
        journal.tick();
        journal.note(thread(1), 16);
        journal.note(thread(2), 7);
        journal.tick();
        journal.note(thread(1), 99);

        let mut base = Base::default();
        let end = journal.complete(&mut base, journal.start_of_tick(1));

        assert_eq!(base, Base::from_iter([(thread(1), 16), (thread(2), 7)]));
        assert_eq!(end, 4);
    }

    #[test]
    fn entries_before_the_window_are_dropped_and_those_beyond_the_limit_counted() {
        let mut journal = Journal::new(2, 3);
        for tick in 0..10 {
            journal.note(thread(tick), 0);
            journal.tick();
        }
        assert_eq!(journal.entries.len(), 2);

        (0..5).for_each(|n| journal.note(thread(n), 0));

        assert_eq!((journal.entries.len(), journal.beyond_limit()), (3, 4));
    }
}
