//! Starting a program so that nothing of it runs before it is traced.
//!
//! ```text
//!   memtrace          child
//!     fork ─────────→ tells its pid
//!     expects it      waits
//!     go ───────────→ exec          the kernel program stops it at its first instruction
//! ```

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::thread::JoinHandle;

use crate::record::Pid;

/// A child that waits to run its program.
pub struct Prepared {
    /// Its id.
    pub pid: Pid,
    go: io::PipeWriter,
    child: JoinHandle<io::Result<Child>>,
}

/// Makes a child that will run `command`, and waits.
///
/// Fails if there is no such program only in [`Prepared::go`], when the child tries to run it.
pub fn prepare(command: &[OsString]) -> io::Result<Prepared> {
    let Some((program, arguments)) = command.split_first() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no command given"));
    };
    let (mut pid_reader, pid_writer) = io::pipe()?;
    let (go_reader, go) = io::pipe()?;
    let mut command = Command::new(program);
    command.args(arguments);
    let (pid_writer, go_reader) = (OwnedFd::from(pid_writer), OwnedFd::from(go_reader));
    // Only in the child would this stay open and hide the death of the parent.
    let go_in_parent = go.as_raw_fd();
    let tell_and_wait = move || {
        let pid = std::process::id().to_ne_bytes();
        let mut go = [0u8; 1];
        // Four bytes into an empty pipe: the write below cannot fail or be cut short.
        // SAFETY: the child's own copy of a descriptor that nothing else here uses.
        unsafe { libc::close(go_in_parent) };
        // SAFETY: a descriptor and a buffer that live, with its size.
        unsafe { libc::write(pid_writer.as_raw_fd(), pid.as_ptr().cast(), pid.len()) };
        // SAFETY: as above, one byte.
        let went = unsafe { libc::read(go_reader.as_raw_fd(), go.as_mut_ptr().cast(), 1) };
        if went == 1 { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ECANCELED)) }
    };
    // SAFETY: the closure makes system calls only, and makes its error without allocating.
    unsafe { command.pre_exec(tell_and_wait) };
    // `spawn` returns when the child has run its program, so it needs a thread.
    let child = std::thread::spawn(move || command.spawn());
    let mut pid = [0u8; 4];
    match pid_reader.read_exact(&mut pid) {
        Ok(()) => Ok(Prepared { pid: Pid(u32::from_ne_bytes(pid)), go, child }),
        Err(error) => match child.join() {
            Ok(Err(spawn_error)) => Err(spawn_error),
            _ => Err(error),
        },
    }
}

impl Prepared {
    /// Lets the child run its program. Gives it back when the program is loaded.
    pub fn go(mut self) -> io::Result<JoinHandle<io::Result<Child>>> {
        self.go.write_all(b"g")?;
        Ok(self.child)
    }
}
