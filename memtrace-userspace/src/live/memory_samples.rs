//! When a process's memory is looked at in detail.
//!
//! The kernel walks the whole page table for `/proc/PID/smaps`, some ten microseconds a megabyte
//! that is resident, and while it writes a mapping nobody can change the mappings of the process.
//! So it is read seldom, and the more seldom the longer it takes:
//!
//! ```text
//!   wait = max(1 s, 2 s, 4 s, … up to 30 s; 1000 × the time that the last look took)
//! ```
//!
//! A process that ends takes its memory with it: what is known then is of the last look.

use std::time::{Duration, Instant};

use super::clock::monotonic_ns;
use super::process;
use crate::record::{Pid, Record, Time};

const FIRST_WAIT_NS: u64 = 1_000_000_000;
const LONGEST_WAIT_NS: u64 = 30_000_000_000;
/// The share of the time that may be spent on looks is one part in so many.
const WAIT_PER_COST: u64 = 1000;

/// When the next look at one process is due.
#[derive(Clone, Copy, Debug)]
pub(super) struct MemorySamples {
    due_ns: u64,
    wait_ns: u64,
}

impl MemorySamples {
    /// Of a process that is traced from now on.
    pub(super) fn new(now_ns: u64) -> MemorySamples {
        MemorySamples { due_ns: now_ns.saturating_add(FIRST_WAIT_NS), wait_ns: FIRST_WAIT_NS }
    }

    /// Whether it is time for a look.
    pub(super) fn is_due(&self, now_ns: u64) -> bool {
        now_ns >= self.due_ns
    }

    /// A look at `now_ns` has taken so long.
    fn looked(&mut self, now_ns: u64, cost: Duration) {
        let cost_ns = u64::try_from(cost.as_nanos()).unwrap_or(u64::MAX);
        let wait_ns = self.wait_ns.max(cost_ns.saturating_mul(WAIT_PER_COST));
        self.due_ns = now_ns.saturating_add(wait_ns);
        self.wait_ns = self.wait_ns.saturating_mul(2).min(LONGEST_WAIT_NS);
    }

    /// Looks at a process; `None` if it cannot be read, as when it has just ended.
    pub(super) fn look(&mut self, pid: Pid, time: Time) -> Option<Record> {
        let start = Instant::now();
        let memory = process::memory_by_kind(pid);
        let cost = start.elapsed();
        self.looked(monotonic_ns(), cost);
        match memory {
            Ok(memory) => {
                tracing::debug!("the memory of process {} was read in {cost:?}", pid.0);
                Some(Record::MemoryDetail { time, pid, memory: Box::new(memory) })
            }
            Err(error) => {
                tracing::debug!("the memory of process {} is not known: {error}", pid.0);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// The times of the first looks, in seconds, if each takes `cost`.
    fn looks(cost: Duration, count: usize) -> Vec<u64> {
        let mut samples = MemorySamples::new(0);
        let mut times = Vec::new();
        for second in 0.. {
            if times.len() == count {
                break;
            }
            if samples.is_due(second * SECOND) {
                samples.looked(second * SECOND, cost);
                times.push(second);
            }
        }
        times
    }

    #[test]
    fn looks_become_rare_with_time() {
        assert_eq!(looks(Duration::ZERO, 9), [1, 2, 4, 8, 16, 32, 62, 92, 122]);
    }

    #[test]
    fn looks_that_take_long_are_rare_from_the_second_on() {
        assert_eq!(looks(Duration::from_millis(50), 4), [1, 51, 101, 151]);
    }
}
