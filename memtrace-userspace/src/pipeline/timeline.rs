//! The run in equal steps, never more than a fixed number of them.
//!
//! In: every change of the sums, and time. Out: [`TimelinePoint`]s. When the points are used up,
//! each two neighbours become one and the steps twice as long:
//!
//! ```text
//!   4 points of 1 ms, full   | a | b | c | d |
//!   4 points of 2 ms         |  ab   |  cd   |       |       |
//! ```
//!
//! so a session of any length has between half and all of its points.

use super::snapshot::TimelinePoint;
use crate::record::Time;

/// Length of the steps at the start.
const FIRST_STEP_NS: u64 = 1_000_000;

/// The sums of which the timeline keeps the course.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Level {
    /// Live heap bytes of the running processes.
    pub(super) live_bytes: u64,
    /// Mapped bytes of the running processes.
    pub(super) mapped_bytes: u64,
    /// Resident bytes of the running processes.
    pub(super) resident_bytes: u64,
}

/// The steps that are over, and the one under way.
#[derive(Debug)]
pub(super) struct Timeline {
    points: Vec<TimelinePoint>,
    limit: usize,
    start_ns: u64,
    step_ns: u64,
    /// End of the step under way; `None` if it lies beyond the end of time.
    end_ns: Option<u64>,
    peak_live_bytes: u64,
    allocated_bytes: u64,
    allocations: u64,
}

impl Timeline {
    /// A timeline of at most `limit` points, rounded up to an even number.
    pub(super) fn new(limit: usize) -> Timeline {
        Timeline::starting(limit, Time(0))
    }

    /// The same, from `start` on.
    pub(super) fn starting(limit: usize, start: Time) -> Timeline {
        let limit = limit.max(2).next_multiple_of(2);
        Timeline {
            points: Vec::new(),
            limit,
            start_ns: start.0,
            step_ns: FIRST_STEP_NS,
            end_ns: start.0.checked_add(FIRST_STEP_NS),
            peak_live_bytes: 0,
            allocated_bytes: 0,
            allocations: 0,
        }
    }

    /// Lets time pass up to `now`, with the sums at `level` all the while.
    #[inline(always)]
    pub(super) fn advance(&mut self, now: Time, level: impl FnOnce() -> Level) {
        if self.end_ns.is_some_and(|end| now.0 >= end) {
            self.close_steps(now, level());
        }
    }

    /// Notes that the live heap bytes have changed.
    #[inline(always)]
    pub(super) fn observe(&mut self, live_bytes: u64) {
        self.peak_live_bytes = self.peak_live_bytes.max(live_bytes);
    }

    /// Notes a heap allocation.
    #[inline(always)]
    pub(super) fn allocated(&mut self, bytes: u64) {
        self.allocations += 1;
        self.allocated_bytes = self.allocated_bytes.wrapping_add(bytes);
    }

    /// All points, the step under way ending at `now`.
    pub(super) fn points(&self, now: Time, level: Level) -> Vec<TimelinePoint> {
        let mut points = Vec::with_capacity(self.points.len() + 1);
        points.extend_from_slice(&self.points);
        points.push(self.point(now, level));
        points
    }

    fn point(&self, time: Time, level: Level) -> TimelinePoint {
        let Level { live_bytes, mapped_bytes, resident_bytes } = level;
        TimelinePoint {
            time,
            live_bytes,
            peak_live_bytes: self.peak_live_bytes,
            mapped_bytes,
            allocated_bytes: self.allocated_bytes,
            allocations: self.allocations,
            resident_bytes,
        }
    }

    #[cold]
    fn close_steps(&mut self, now: Time, level: Level) {
        while let Some(end) = self.end_ns.filter(|&end| now.0 >= end) {
            self.points.push(self.point(Time(end), level));
            self.peak_live_bytes = level.live_bytes;
            self.allocated_bytes = 0;
            self.allocations = 0;
            // At once, for the step under way is a point too.
            if self.points.len() == self.limit {
                self.halve();
            }
            let steps = self.points.len() as u64 + 1;
            let since_start = self.step_ns.checked_mul(steps);
            self.end_ns = since_start.and_then(|ns| ns.checked_add(self.start_ns));
        }
    }

    fn halve(&mut self) {
        let (pairs, _) = self.points.as_chunks();
        self.points = pairs.iter().map(merge).collect();
        self.step_ns *= 2;
    }
}

/// Two steps as one: the state at the end of the second, the work of both.
fn merge([first, second]: &[TimelinePoint; 2]) -> TimelinePoint {
    let &TimelinePoint {
        time,
        live_bytes,
        peak_live_bytes,
        mapped_bytes,
        allocated_bytes,
        allocations,
        resident_bytes,
    } = second;
    TimelinePoint {
        time,
        live_bytes,
        peak_live_bytes: peak_live_bytes.max(first.peak_live_bytes),
        mapped_bytes,
        allocated_bytes: allocated_bytes.wrapping_add(first.allocated_bytes),
        allocations: allocations + first.allocations,
        resident_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(live_bytes: u64) -> impl FnOnce() -> Level {
        move || Level { live_bytes, mapped_bytes: live_bytes + 1, resident_bytes: live_bytes + 2 }
    }

    fn point(ms: u64, live: u64, peak: u64, allocated: u64, allocations: u64) -> TimelinePoint {
        TimelinePoint {
            time: Time(ms * FIRST_STEP_NS),
            live_bytes: live,
            peak_live_bytes: peak,
            mapped_bytes: live + 1,
            allocated_bytes: allocated,
            allocations,
            resident_bytes: live + 2,
        }
    }

    #[test]
    fn idle_steps_carry_the_level_on() {
        let mut timeline = Timeline::new(8);

        timeline.allocated(5);
        timeline.observe(5);
        timeline.advance(Time(3 * FIRST_STEP_NS), level(5));

        let points = timeline.points(Time(3 * FIRST_STEP_NS), level(5)());
        let expected = [
            point(1, 5, 5, 5, 1),
            point(2, 5, 5, 0, 0),
            point(3, 5, 5, 0, 0),
            point(3, 5, 5, 0, 0),
        ];
        assert_eq!(points, expected);
    }

    #[test]
    fn full_timeline_merges_neighbours() {
        let mut timeline = Timeline::new(4);

        for ms in 1..=4 {
            timeline.allocated(ms);
            timeline.observe(10 * ms);
            timeline.advance(Time(ms * FIRST_STEP_NS), level(ms));
        }

        let points = timeline.points(Time(4 * FIRST_STEP_NS), level(4)());
        let expected = [point(2, 2, 20, 3, 2), point(4, 4, 40, 7, 2), point(4, 4, 4, 0, 0)];
        assert_eq!(points, expected);
    }

    #[test]
    fn timeline_reaches_the_end_of_time_within_its_limit() {
        let mut timeline = Timeline::new(4);

        timeline.advance(Time(u64::MAX), level(1));

        assert!(timeline.points(Time(u64::MAX), level(1)()).len() <= 4);
    }
}
