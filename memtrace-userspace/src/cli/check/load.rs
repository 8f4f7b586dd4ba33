//! A command that puts load on a process while that is watched.
//!
//! It is not traced. It has a process group of its own, so that whatever it starts can be ended
//! with it.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

/// How long a load has to end by itself when it is asked to.
const GRACE: Duration = Duration::from_secs(2);
/// How often to look whether it has.
const LOOK: Duration = Duration::from_millis(10);

/// A load that was started.
///
/// Its first process is reaped last of all: until then no other group can have its id.
pub(super) struct Load(Child);

/// How a load ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LoadEnd {
    /// By itself.
    Itself(ExitStatus),
    /// Because the time was over.
    Stopped,
}

impl Load {
    /// Starts the command; it has no input, and its output is memtrace's.
    pub(super) fn start(command: &[OsString]) -> io::Result<Load> {
        let Some((program, arguments)) = command.split_first() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no command given"));
        };
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).process_group(0).spawn().map(Load)
    }

    /// Whether it has ended.
    pub(super) fn has_ended(&self) -> bool {
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        matches!(waitid(WaitId::Pid(self.pid()), look), Ok(Some(_)))
    }

    /// Ends it if it still runs, and says how it ended.
    pub(super) fn end(mut self) -> io::Result<LoadEnd> {
        let by_itself = self.has_ended();
        if !by_itself {
            self.signal(Signal::TERM);
            let asked = Instant::now();
            while !self.has_ended() && asked.elapsed() < GRACE {
                std::thread::sleep(LOOK);
            }
            self.signal(Signal::KILL);
        }
        let status = self.0.wait()?;
        Ok(if by_itself { LoadEnd::Itself(status) } else { LoadEnd::Stopped })
    }

    fn signal(&self, signal: Signal) {
        // It fails if nobody is left in the group, which is what is wanted.
        let _ = kill_process_group(self.pid(), signal);
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.0)
    }
}

/// `exit status 3`, `signal 11`.
pub(super) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(script: &str) -> Load {
        Load::start(&["sh".into(), "-c".into(), script.into()]).expect("a shell")
    }

    #[test]
    fn load_that_ends_by_itself_tells_how() {
        let load = start("exit 3");
        while !load.has_ended() {
            std::thread::yield_now();
        }

        let end = load.end().expect("a child");

        let LoadEnd::Itself(status) = end else { panic!("it was not stopped") };

        assert_eq!(describe(status), "exit status 3");
    }

    #[test]
    fn load_that_goes_on_is_ended_with_its_children() {
        let (mut output, input) = std::io::pipe().expect("a pipe");
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & trap '' TERM; wait"]).stdout(input).process_group(0);
        let child = command.spawn().expect("a shell");
        drop(command);

        let end = Load(child).end().expect("a child");

        assert_eq!(end, LoadEnd::Stopped);
        // Nobody holds the other end any more.
        io::Read::read_to_end(&mut output, &mut Vec::new()).expect("the end");
    }

    #[test]
    fn load_that_does_not_exist_is_an_error() {
        assert!(Load::start(&["/no/such/load".into()]).is_err());
        assert!(Load::start(&[]).is_err());
    }
}
