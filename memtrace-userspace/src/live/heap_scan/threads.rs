//! Stopping the threads of a process, and what their registers hold.
//!
//! ptrace stops a thread wherever it is, without a signal that its parent or a shell could see, and
//! the kernel lets it go on when the tracer ends, however that happens. A thread that was stopped
//! already (`SIGSTOP`) stays so. As with any debugger, a system call that a thread waits in may end
//! early: `epoll_wait` and a few others return `EINTR` (signal(7)).
//!
//! Requests for a traced thread must come from the thread that traces it, so [`Stopped`] stays in
//! the thread that made it.

use std::collections::HashSet;
use std::io;
use std::marker::PhantomData;
use std::ptr;
use std::time::{Duration, Instant};

use memtrace_common::addr::Avma;
use thiserror::Error;

use crate::live::process::{self, ProcessError};
use crate::record::{Pid, Tid};

/// `user_regs_struct`: 27 words, the stack pointer being the twentieth.
const GENERAL_WORDS: usize = 27;
const STACK_POINTER: usize = 19;
/// Room for the registers that `XSAVE` knows; AVX-512 takes 2.7 KB, AMX 11.
const EXTENDED_WORDS: usize = 2048;
/// The set of them, for `PTRACE_GETREGSET`; `libc` has no name for it.
const NT_X86_XSTATE: libc::c_int = 0x202;

/// Between two looks whether a thread has stopped: they do within microseconds.
const LOOK_AGAIN: Duration = Duration::from_micros(50);

/// Why threads cannot be stopped.
#[derive(Debug, Error)]
pub enum StopError {
    /// Somebody else traces it.
    #[error(
        "process {pid} is being debugged by process {tracer}, and only one can stop it; \
         detach that, or use --no-stop"
    )]
    Traced {
        /// The process.
        pid: u32,
        /// The other one.
        tracer: u32,
    },
    /// The kernel does not allow it.
    #[error(
        "cannot stop thread {tid}: {source}; run memtrace as root with CAP_SYS_PTRACE (and \
         kernel.yama.ptrace_scope below 3), or use --no-stop"
    )]
    Refused {
        /// The thread.
        tid: u32,
        /// Why.
        source: io::Error,
    },
    /// A thread waits where nothing can interrupt it.
    #[error(
        "thread {tid} does not stop: it waits in the kernel (vfork, or a device that does not \
         answer); try again, allow more with --max-stop, or use --no-stop"
    )]
    DoesNotStop {
        /// The thread.
        tid: u32,
    },
    /// Its registers cannot be read.
    #[error("cannot read the registers of thread {tid}: {source}; use --no-stop")]
    Registers {
        /// The thread.
        tid: u32,
        /// Why.
        source: io::Error,
    },
    /// `/proc` does not say which threads there are.
    #[error(transparent)]
    Process(#[from] ProcessError),
}

/// The threads of a process, all of them stopped until this is dropped.
pub(super) struct Stopped {
    threads: Vec<Thread>,
    /// Another thread must not drop it.
    here: PhantomData<*const ()>,
}

/// What the registers of all threads hold.
#[derive(Debug, Default)]
pub(super) struct Registers {
    pub(super) words: Vec<u64>,
    pub(super) stack_pointers: Vec<Avma>,
}

struct Thread {
    tid: Tid,
    state: State,
}

/// How far a thread has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// It was asked to stop.
    Asked,
    /// It stands still, and has this signal to handle when it goes on; 0 is none.
    Standing {
        signal: libc::c_int,
    },
    Ended,
}

impl Stopped {
    /// Stops all threads of `pid`; lets them go on if that takes longer than `until`.
    pub(super) fn stop(pid: Pid, until: Instant) -> Result<Stopped, StopError> {
        let mut stopped = Stopped { threads: Vec::new(), here: PhantomData };
        let mut known: HashSet<Tid> = HashSet::new();
        loop {
            // Threads that run can make others until they have stopped themselves.
            let mut is_complete = true;
            for tid in process::thread_ids(pid)? {
                if known.insert(tid) {
                    is_complete = false;
                    if seize(pid, tid)? {
                        stopped.threads.push(Thread { tid, state: State::Asked });
                    }
                }
            }
            if is_complete {
                break;
            }
            for thread in &mut stopped.threads {
                if thread.state == State::Asked {
                    thread.state = wait(thread.tid, until)?;
                }
            }
        }
        stopped.threads.retain(|thread| thread.state != State::Ended);
        if stopped.threads.is_empty() {
            return Err(ProcessError::NoSuchProcess { pid: pid.0 }.into());
        }
        Ok(stopped)
    }

    /// How many threads there are.
    pub(super) fn len(&self) -> usize {
        self.threads.len()
    }

    /// Reads the registers of all threads. One that was killed meanwhile has none.
    pub(super) fn registers(&self) -> Result<Registers, StopError> {
        let mut registers = Registers::default();
        let mut buffer = [0u64; EXTENDED_WORDS];
        for Thread { tid, state: _ } in &self.threads {
            for set in [libc::NT_PRSTATUS, NT_X86_XSTATE] {
                let words = match register_set(*tid, set, &mut buffer) {
                    Ok(words) => words,
                    Err(error) if error.raw_os_error() == Some(libc::ESRCH) => &[],
                    // A processor without XSAVE has no such set.
                    Err(error)
                        if set == NT_X86_XSTATE
                            && matches!(
                                error.raw_os_error(),
                                Some(libc::ENODEV | libc::EINVAL)
                            ) =>
                    {
                        &[]
                    }
                    Err(source) => return Err(StopError::Registers { tid: tid.0, source }),
                };
                registers.words.extend_from_slice(words);
                if set == libc::NT_PRSTATUS && words.len() == GENERAL_WORDS {
                    registers.stack_pointers.push(Avma(words[STACK_POINTER]));
                }
            }
        }
        Ok(registers)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        for Thread { tid, state } in &self.threads {
            if let State::Standing { signal } = state {
                // It fails if the thread was killed, which is as good. One that has not come to a
                // stop cannot be detached from; it goes on when this thread ends.
                let _ = ptrace(libc::PTRACE_DETACH, *tid, ptr::null_mut(), *signal as usize);
            }
        }
    }
}

/// Asks a thread to stop; false if it has ended.
fn seize(pid: Pid, tid: Tid) -> Result<bool, StopError> {
    let asked = ptrace(libc::PTRACE_SEIZE, tid, ptr::null_mut(), 0)
        .and_then(|()| ptrace(libc::PTRACE_INTERRUPT, tid, ptr::null_mut(), 0));
    let Err(source) = asked else { return Ok(true) };
    if source.raw_os_error() == Some(libc::ESRCH) {
        return Ok(false);
    }
    let status = std::fs::read_to_string(format!("/proc/{}/task/{}/status", pid.0, tid.0));
    match status.as_deref().map(parse_status) {
        // It is gone.
        Err(_) | Ok(Standing::Ended) => Ok(false),
        Ok(Standing::TracedBy(tracer)) => Err(StopError::Traced { pid: pid.0, tracer }),
        Ok(Standing::Free) => Err(StopError::Refused { tid: tid.0, source }),
    }
}

/// What keeps a thread from being traced, as far as the text of its `status` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It only waits to be noticed.
    Ended,
    TracedBy(u32),
    Free,
}

fn parse_status(status: &str) -> Standing {
    let value = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    if value("State:").is_some_and(|state| state.starts_with(['Z', 'X'])) {
        return Standing::Ended;
    }
    match value("TracerPid:").and_then(|tracer| tracer.parse().ok()) {
        Some(0) | None => Standing::Free,
        Some(tracer) => Standing::TracedBy(tracer),
    }
}

/// Waits until a thread that was asked to stands still.
fn wait(tid: Tid, until: Instant) -> Result<State, StopError> {
    loop {
        let mut status = 0;
        // SAFETY: a system call with a place for its result; it does not wait.
        let found =
            unsafe { libc::waitpid(tid.0 as i32, &raw mut status, libc::__WALL | libc::WNOHANG) };
        match found {
            // It was killed, and whoever asked first was told.
            -1 => return Ok(State::Ended),
            0 if Instant::now() >= until => return Err(StopError::DoesNotStop { tid: tid.0 }),
            0 => std::thread::sleep(LOOK_AGAIN),
            _ if !libc::WIFSTOPPED(status) => return Ok(State::Ended),
            // Without an event it is about to handle a signal, and will when it goes on.
            _ if status >> 16 == 0 => {
                return Ok(State::Standing { signal: libc::WSTOPSIG(status) });
            }
            _ => return Ok(State::Standing { signal: 0 }),
        }
    }
}

/// Reads a set of registers of a thread that stands still.
fn register_set(tid: Tid, set: libc::c_int, buffer: &mut [u64]) -> io::Result<&[u64]> {
    let mut vector =
        libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: size_of_val(buffer) };
    let address = ptr::without_provenance_mut(set as usize);
    ptrace(libc::PTRACE_GETREGSET, tid, address, (&raw mut vector).expose_provenance())?;
    Ok(&buffer[..(vector.iov_len / size_of::<u64>()).min(buffer.len())])
}

fn ptrace(
    request: libc::c_uint,
    tid: Tid,
    address: *mut libc::c_void,
    data: usize,
) -> io::Result<()> {
    let data: *mut libc::c_void = ptr::with_exposed_provenance_mut(data);
    // SAFETY: the requests used here write, if at all, to the vector that `data` points to, whose
    // owner waits for this call.
    match unsafe { libc::ptrace(request, tid.0 as libc::pid_t, address, data) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_tells_what_keeps_a_thread_from_being_traced() {
        let cases = [
            ("Name:\ta\nState:\tS (sleeping)\nTracerPid:\t0\n", Standing::Free),
            ("Name:\ta\nState:\tt (tracing stop)\nTracerPid:\t77\n", Standing::TracedBy(77)),
            ("Name:\ta\nState:\tZ (zombie)\nTracerPid:\t77\n", Standing::Ended),
        ];
        for (status, expected) in cases {
            assert_eq!(parse_status(status), expected, "{status}");
        }
    }
}
