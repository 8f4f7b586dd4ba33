//! The guardian: a small process that continues what a dead daemon left stopped.
//!
//! The kernel programs stop a process for a moment so that the daemon can attach to it. If the
//! daemon is killed in that moment, nobody would continue it. The guardian reads the ids of traced
//! processes from a pipe; when the pipe closes without a farewell, it continues every one of them,
//! and every child of theirs, that is stopped.
//!
//! The pipe closes before the last of the daemon is gone: a stop may just be on its way, and a process
//! that the daemon was reading is still its tracee (`t`), and would be stopped again when it is let go.
//! So it looks several times, and continues tracees too.

use std::collections::BTreeSet;
use std::io::{self, BufRead, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use crate::record::Pid;

/// The hidden argument that makes `memtrace` a guardian.
pub const ARGUMENT: &str = "__guardian";

const FAREWELL: &str = "done";

/// How often it looks for stopped processes, over a second.
const LOOKS: u32 = 20;
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

/// The daemon's end of the pipe.
pub struct Guardian {
    child: Child,
    pipe: ChildStdin,
}

impl Guardian {
    /// Starts the guardian, which is this program under another name.
    pub fn start() -> io::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(ARGUMENT)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C at the terminal must not reach it.
            .process_group(0)
            .spawn()?;
        let pipe =
            child.stdin.take().ok_or_else(|| io::Error::other("the guardian has no pipe"))?;
        Ok(Guardian { child, pipe })
    }

    /// Tells it of a process that may be stopped.
    pub fn watch(&mut self, pid: Pid) -> io::Result<()> {
        writeln!(self.pipe, "{}", pid.0)
    }

    /// Sends it away: nothing is stopped any more.
    pub fn dismiss(mut self) -> io::Result<()> {
        writeln!(self.pipe, "{FAREWELL}")?;
        drop(self.pipe);
        self.child.wait()?;
        Ok(())
    }
}

/// What the guardian does: reads `input` until it ends, then continues what is stopped.
pub fn run(input: impl BufRead) {
    let mut watched: BTreeSet<u32> = BTreeSet::new();
    for line in input.lines().map_while(Result::ok) {
        if line == FAREWELL {
            return;
        }
        if let Ok(pid) = line.parse() {
            watched.insert(pid);
        }
    }
    for look in 0..LOOKS {
        if look > 0 {
            std::thread::sleep(BETWEEN_LOOKS);
        }
        for (pid, parent, state) in processes() {
            let is_watched = watched.contains(&pid) || watched.contains(&parent);
            if is_watched && matches!(state, b'T' | b't') {
                continue_process(Pid(pid));
            }
        }
    }
}

/// Continues a stopped process.
pub fn continue_process(pid: Pid) {
    // SAFETY: a system call; a process that is gone gives an error, which is as good.
    unsafe { libc::kill(pid.0 as i32, libc::SIGCONT) };
}

/// (pid, parent, state) of every process.
fn processes() -> Vec<(u32, u32, u8)> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read(entry.path().join("stat")).ok()?;
            let (state, parent) = parse_stat(&stat)?;
            Some((pid, parent, state))
        })
        .collect()
}

/// State and parent from `/proc/PID/stat`: `pid (name) state parent …`; the name may hold anything.
fn parse_stat(stat: &[u8]) -> Option<(u8, u32)> {
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let mut fields = stat.get(name_end + 2..)?.split(|byte| *byte == b' ');
    let state = *fields.next()?.first()?;
    let parent = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    Some((state, parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_of_a_process_with_a_name_of_its_choice_is_read() {
        assert_eq!(parse_stat(b"42 (a) T 7) S 41 42 42"), Some((b'S', 41)));
        assert_eq!(parse_stat(b"42 (x) T 7 42"), Some((b'T', 7)));
        assert_eq!(parse_stat(b"42 (x"), None);
    }

    #[test]
    fn farewell_leaves_stopped_processes_alone() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep exists");
        // SAFETY: a system call on a child of this test.
        unsafe { libc::kill(child.id() as i32, libc::SIGSTOP) };
        let state = |wanted: u8| {
            while processes().iter().all(|(pid, _, state)| *pid != child.id() || *state != wanted) {
                std::thread::yield_now();
            }
        };
        state(b'T');

        run(format!("{}\n{FAREWELL}\n", child.id()).as_bytes());
        state(b'T');
        run(format!("{}\n", child.id()).as_bytes());
        state(b'S');

        child.kill().expect("the child still runs");
        child.wait().expect("the child has ended");
    }
}
