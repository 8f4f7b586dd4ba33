//! The user's marks, and what happened between two of them.
//!
//! In: marks, and the sums whenever one comes. Out: a [`Phase`] for each stretch between the
//! start, the marks and now. They are as many as the limit allows; later marks are counted.

use super::snapshot::{Amount, Mark, Phase};
use crate::record::Time;

/// The sums of the heap since the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Sums {
    pub(super) allocated: Amount,
    pub(super) freed: Amount,
    /// Live bytes of the running processes.
    pub(super) held_bytes: u64,
}

/// The phases that are over, and the one under way.
#[derive(Debug)]
pub(super) struct Marks {
    limit: usize,
    marks: Vec<Mark>,
    phases: Vec<Phase>,
    from: Time,
    before: Sums,
    peak_bytes: u64,
    peak_at: Time,
}

impl Marks {
    pub(super) fn new(limit: usize) -> Marks {
        Marks {
            limit,
            marks: Vec::new(),
            phases: Vec::new(),
            from: Time(0),
            before: Sums::default(),
            peak_bytes: 0,
            peak_at: Time(0),
        }
    }

    /// Forgets everything; `held_bytes` are held at `now`.
    pub(super) fn restart(&mut self, now: Time, held_bytes: u64) {
        let before = Sums { held_bytes, ..Sums::default() };
        *self = Marks {
            from: now,
            before,
            peak_bytes: held_bytes,
            peak_at: now,
            ..Marks::new(self.limit)
        };
    }

    /// Notes that the live heap bytes have changed.
    #[inline(always)]
    pub(super) fn observe(&mut self, held_bytes: u64, now: Time) {
        if held_bytes > self.peak_bytes {
            self.peak_bytes = held_bytes;
            self.peak_at = now;
        }
    }

    /// Whether another mark finds room.
    pub(super) fn has_room(&self) -> bool {
        self.marks.len() < self.limit
    }

    /// Ends a phase.
    pub(super) fn mark(&mut self, time: Time, text: String, sums: Sums) {
        self.phases.push(self.phase(time, sums));
        self.marks.push(Mark { time, text });
        self.from = time;
        self.before = sums;
        self.peak_bytes = sums.held_bytes;
        self.peak_at = time;
    }

    pub(super) fn marks(&self) -> &[Mark] {
        &self.marks
    }

    /// All phases, the one under way up to `now`; none without a mark.
    pub(super) fn phases(&self, now: Time, sums: Sums) -> Vec<Phase> {
        if self.marks.is_empty() {
            return Vec::new();
        }
        let mut phases = self.phases.clone();
        phases.push(self.phase(now, sums));
        phases
    }

    fn phase(&self, to: Time, sums: Sums) -> Phase {
        Phase {
            begins_with: self.marks.last().map(|mark| mark.text.clone()),
            from: self.from,
            to,
            allocated: sums.allocated.since(self.before.allocated),
            freed: sums.freed.since(self.before.freed),
            live_bytes_before: self.before.held_bytes,
            live_bytes_after: sums.held_bytes,
            peak_live_bytes: self.peak_bytes,
            peak_at: self.peak_at,
        }
    }
}
