//! A handle to a process, which tells whether it has ended.
//!
//! A process id comes to mean another process once the first one has ended; a handle does not.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use super::process::ProcessError;
use crate::record::Pid;

/// A pidfd.
pub(super) struct PidFd(OwnedFd);

impl PidFd {
    /// Opens the process that has the id `pid` now.
    pub(super) fn open(pid: Pid) -> Result<Self, ProcessError> {
        // SAFETY: a system call on integers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.0, 0) };
        match i32::try_from(fd) {
            // SAFETY: the system call has made this descriptor for us.
            Ok(fd @ 0..) => Ok(PidFd(unsafe { OwnedFd::from_raw_fd(fd) })),
            Ok(_) | Err(_) => {
                let source = io::Error::last_os_error();
                Err(match source.raw_os_error() {
                    Some(libc::ESRCH) => ProcessError::NoSuchProcess { pid: pid.0 },
                    _ => ProcessError::NoHandle { pid: pid.0, source },
                })
            }
        }
    }

    /// Whether the last thread of the process has ended.
    pub(super) fn has_ended(&self) -> bool {
        let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd; it does not wait.
        unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn handle_of_a_process_tells_its_end_whether_it_was_reaped_or_not() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().expect("cat exists");
        let handle = PidFd::open(Pid(child.id())).expect("it waits for its input");
        assert!(!handle.has_ended());

        drop(child.stdin.take());
        while !handle.has_ended() {
            std::thread::yield_now();
        }
        child.wait().expect("the child has ended");

        assert!(handle.has_ended());
    }

    #[test]
    fn id_of_no_process_is_named() {
        let mut child = Command::new("true").spawn().expect("true exists");
        child.wait().expect("the child ends");

        let opened = PidFd::open(Pid(child.id()));

        assert!(matches!(opened, Err(ProcessError::NoSuchProcess { pid }) if pid == child.id()));
    }
}
