//! The session's clock: the kernel's monotonic nanoseconds, counted from the session's start.

use crate::record::Time;

/// Turns the kernel's times into the session's.
///
/// Events of two CPUs may be a moment out of order in the ring. The ring's order is the truth for
/// every address, so a time that would go back is held at the last one.
#[derive(Debug)]
pub struct Clock {
    start_ns: u64,
    last_ns: u64,
}

impl Clock {
    /// A clock that starts now.
    pub fn start() -> Self {
        Clock { start_ns: monotonic_ns(), last_ns: 0 }
    }

    /// The session time of an event at `kernel_ns`.
    pub fn at(&mut self, kernel_ns: u64) -> Time {
        self.last_ns = self.last_ns.max(kernel_ns.saturating_sub(self.start_ns));
        Time(self.last_ns)
    }

    /// The session time of the last event.
    pub fn last(&self) -> Time {
        Time(self.last_ns)
    }

    /// The session time now.
    pub fn now(&mut self) -> Time {
        self.at(monotonic_ns())
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds, as `bpf_ktime_get_ns` has it.
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists and the pointer is valid.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_never_goes_back() {
        let mut clock = Clock { start_ns: 1000, last_ns: 0 };

        let times = [900, 1500, 1400, 1600].map(|kernel_ns| clock.at(kernel_ns).0);

        assert_eq!(times, [0, 500, 500, 600]);
    }
}
