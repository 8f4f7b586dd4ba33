//! Being quick while a process stands still: threads that the scheduler prefers.
//!
//! On a busy machine everybody else would come first otherwise, and a stop would take many times as
//! long as its work. Without the right to it (`CAP_SYS_NICE`) things take longer, and that is all.

/// The scheduler's most preferred.
const FIRST: libc::c_int = -20;

/// Makes this thread one of those that come first, until it is dropped.
pub(super) struct ComesFirst {
    before: libc::c_int,
}

impl ComesFirst {
    pub(super) fn begin() -> ComesFirst {
        // SAFETY: a system call on integers; 0 is this thread. It fails for no thread that exists.
        let before = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        set_niceness(FIRST);
        ComesFirst { before }
    }
}

impl Drop for ComesFirst {
    fn drop(&mut self) {
        set_niceness(self.before);
    }
}

fn set_niceness(niceness: libc::c_int) {
    // SAFETY: a system call on integers; 0 is this thread.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, niceness) } != 0 {
        tracing::debug!("a thread keeps its priority: {}", std::io::Error::last_os_error());
    }
}
