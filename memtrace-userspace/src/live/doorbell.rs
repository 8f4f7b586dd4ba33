//! Sleep until the kernel half asks for attention.
//!
//! `poll` on a ring returns whenever something is in it, which a busy target sees to: the daemon
//! would go round with a hundred events each time, and find the processor's cache full of the
//! target's data each time. An edge-triggered epoll returns only after a wake-up
//! (`BPF_RB_FORCE_WAKEUP`, kernel/bpf/ringbuf.c), also one that came while nobody slept.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{Timespec, epoll};

/// The wake-ups of one ring.
#[derive(Debug)]
pub(super) struct Doorbell(OwnedFd);

impl Doorbell {
    /// The wake-ups of this map from now on.
    pub(super) fn of(ring: impl AsFd) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake_ups = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, ring, epoll::EventData::new_u64(0), wake_ups)?;
        Ok(Doorbell(epoll))
    }

    /// Sleeps until there is a wake-up, or `timeout` is over; whether there was one.
    pub(super) fn wait(&self, timeout: Duration) -> bool {
        let timeout = Timespec::try_from(timeout).ok();
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }];
        // An interrupted wait is a short one.
        epoll::wait(&self.0, &mut events, timeout.as_ref()).is_ok_and(|woken| woken > 0)
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
