//! Sleep until the kernel half asks for attention.
//!
//! `poll` on a ring returns whenever something is in it, which a busy target sees to: the daemon
//! would go round with a hundred events each time, and find the processor's cache full of the
//! target's data each time. An edge-triggered epoll returns only after a wake-up
//! (`BPF_RB_FORCE_WAKEUP`, kernel/bpf/ringbuf.c), also one that came while nobody slept.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

/// The wake-ups of one ring.
#[derive(Debug)]
pub(super) struct Doorbell(OwnedFd);

impl Doorbell {
    /// The wake-ups of this map from now on.
    pub(super) fn of(ring: impl AsFd) -> io::Result<Self> {
        // SAFETY: a system call on integers.
        let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if epoll < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the system call has made this descriptor for us.
        let epoll = unsafe { OwnedFd::from_raw_fd(epoll) };
        let mut event =
            libc::epoll_event { events: (libc::EPOLLIN | libc::EPOLLET) as u32, u64: 0 };
        let ring = ring.as_fd().as_raw_fd();
        // SAFETY: two descriptors and one valid event.
        let added = unsafe {
            libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, ring, &raw mut event)
        };
        if added < 0 { Err(io::Error::last_os_error()) } else { Ok(Doorbell(epoll)) }
    }

    /// Sleeps until there is a wake-up, or `timeout` is over; whether there was one.
    pub(super) fn wait(&self, timeout: Duration) -> bool {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        let timeout = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: room for one event. An interrupted wait is a short one.
        unsafe { libc::epoll_wait(self.0.as_raw_fd(), &raw mut event, 1, timeout) == 1 }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn what_lies_there_wakes_once() {
        let (reader, mut writer) = io::pipe().expect("a pipe");
        let doorbell = Doorbell::of(&reader).expect("an epoll");
        assert!(!doorbell.wait(Duration::ZERO));

        writer.write_all(b"1").expect("room");
        assert!(doorbell.wait(Duration::from_secs(10)));
        assert!(!doorbell.wait(Duration::ZERO));

        writer.write_all(b"2").expect("room");
        assert!(doorbell.wait(Duration::from_secs(10)));
    }
}
