//! The session's clock: the kernel's monotonic time, counted from the session's start.
//!
//! Every time of the session is a multiple of [`RESOLUTION_NS`]. Exact nanoseconds are noise that
//! no view shows, and they cost half of a trace: the low digits do not compress.

use crate::record::Time;

/// What a time of the session is a multiple of, in nanoseconds.
pub const RESOLUTION_NS: u64 = 10_000;

/// Turns the kernel's times into the session's, rounded down to [`RESOLUTION_NS`].
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
        let since_start_ns = kernel_ns.saturating_sub(self.start_ns);
        self.last_ns = self.last_ns.max(since_start_ns - since_start_ns % RESOLUTION_NS);
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

        let times = [900, 51_000, 31_000, 61_000].map(|kernel_ns| clock.at(kernel_ns).0);

        assert_eq!(times, [0, 50_000, 50_000, 60_000]);
    }

    #[test]
    fn time_is_rounded_down_to_the_resolution() {
        let mut clock = Clock { start_ns: 1000, last_ns: 0 };

        let times = [10_999, 11_000, 20_999, 21_000].map(|kernel_ns| clock.at(kernel_ns).0);

        assert_eq!(times, [0, 10_000, 10_000, 20_000]);
    }
}
