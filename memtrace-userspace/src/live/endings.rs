//! Processes that are read before they end.
//!
//! ```text
//!   process    … calls _exit │ stands still ················· goes on to its end
//!   tracer              reached │ waiting ·· next ─ read ─ let_go
//! ```
//!
//! A process stops where it calls `_exit` (`memtrace_ebpf::process::ends`). One that a signal ends,
//! or that calls the kernel itself, just ends; so does one whose end the kernel half could not tell.

use std::collections::{HashSet, VecDeque};

use super::guardian::continue_process;
use super::tracer::Tracer;
use crate::record::Pid;

/// What happens when a traced process ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AtEnd {
    /// Nothing: nobody reads processes.
    #[default]
    Nothing,
    /// It is noted, unless the process was read before.
    Note,
    /// It stops before, until it was read.
    Stop,
}

/// Whose end is waited for, and who stands still there.
#[derive(Debug, Default)]
pub(super) struct Endings {
    at_end: AtEnd,
    /// Those that stand still at their end, in the order in which they came.
    waiting: VecDeque<Pid>,
    /// The one that is being read.
    current: Option<Current>,
    /// Those that were read, as long as they live.
    read: HashSet<Pid>,
    /// Those that ended unread.
    missed: Vec<Pid>,
}

#[derive(Clone, Copy, Debug)]
struct Current {
    pid: Pid,
    /// Whether it stands still at its end.
    is_at_end: bool,
}

impl Endings {
    /// Whether processes stop at their ends.
    pub(super) fn are_watched(&self) -> bool {
        self.at_end == AtEnd::Stop
    }

    /// A process stands still at its end.
    pub(super) fn reached(&mut self, pid: Pid) {
        match &mut self.current {
            Some(current) if current.pid == pid => current.is_at_end = true,
            // Another of its threads has come as far.
            _ if self.waiting.contains(&pid) => {}
            _ if self.at_end == AtEnd::Stop && !self.read.contains(&pid) => {
                self.waiting.push_back(pid);
            }
            _ => continue_process(pid),
        }
    }

    /// A process has ended, or is not traced any more.
    pub(super) fn ended(&mut self, pid: Pid) {
        self.waiting.retain(|waiting| *waiting != pid);
        // Whoever reads it will notice. It is not among those that live.
        let was_current = self.current.take_if(|current| current.pid == pid).is_some();
        if !self.read.remove(&pid) && !was_current && self.at_end != AtEnd::Nothing {
            self.missed.push(pid);
        }
    }

    fn begin(&mut self, pid: Pid) {
        let waiting = self.waiting.len();
        self.waiting.retain(|waiting| *waiting != pid);
        let is_at_end = self.waiting.len() < waiting;
        self.current = Some(Current { pid, is_at_end });
    }

    fn end(&mut self) {
        if let Some(Current { pid, is_at_end }) = self.current.take() {
            self.read.insert(pid);
            if is_at_end {
                continue_process(pid);
            }
        }
    }

    /// Continues whoever stands still.
    pub(super) fn let_all_go(&mut self) {
        self.end();
        self.waiting.drain(..).for_each(continue_process);
    }
}

impl Tracer {
    /// Says what happens when a process ends. To be called before any is traced.
    pub fn at_end(&mut self, at_end: AtEnd) {
        self.endings.at_end = at_end;
    }

    /// Whether a process stands still at its end.
    pub fn is_any_at_end(&self) -> bool {
        let is_current = self.endings.current.is_some_and(|current| current.is_at_end);
        is_current || !self.endings.waiting.is_empty()
    }

    /// The process that has stood still at its end for longest, of those that were not read.
    pub fn next_at_end(&self) -> Option<Pid> {
        self.endings.waiting.front().copied()
    }

    /// The first traced process that was not read.
    pub fn next_unread(&self) -> Option<Pid> {
        self.processes.keys().filter(|pid| !self.endings.read.contains(pid)).min().copied()
    }

    /// A process is being read from now on, and no other one.
    pub fn begin_to_read(&mut self, pid: Pid) {
        self.endings.begin(pid);
    }

    /// The process has been read: if it stands still at its end, it goes on.
    pub fn end_reading(&mut self) {
        self.endings.end();
    }

    /// Takes the processes that have ended unread since the last call.
    pub fn missed(&mut self) -> Vec<Pid> {
        std::mem::take(&mut self.endings.missed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ids that no process has: continuing them does nothing.
    const FIRST: Pid = Pid(i32::MAX as u32 - 1);
    const SECOND: Pid = Pid(i32::MAX as u32);

    fn watched() -> Endings {
        Endings { at_end: AtEnd::Stop, ..Endings::default() }
    }

    #[test]
    fn processes_are_read_in_the_order_of_their_ends_and_once() {
        let mut endings = watched();
        [FIRST, SECOND, FIRST].into_iter().for_each(|pid| endings.reached(pid));
        assert_eq!(endings.waiting, [FIRST, SECOND]);

        endings.begin(FIRST);
        endings.end();
        endings.reached(FIRST);

        assert_eq!(endings.waiting, [SECOND]);
        assert!(endings.read.contains(&FIRST));
    }

    #[test]
    fn process_that_ends_unread_is_missed_and_no_other() {
        let mut endings = watched();
        endings.begin(FIRST);
        endings.end();
        endings.reached(SECOND);

        [FIRST, SECOND].into_iter().for_each(|pid| endings.ended(pid));

        assert_eq!((endings.missed, endings.waiting.len()), (vec![SECOND], 0));
        assert!(endings.read.is_empty(), "the id may be used again");
    }

    #[test]
    fn process_that_ends_while_it_is_read_leaves_nothing_behind() {
        let mut endings = watched();
        endings.begin(FIRST);

        endings.ended(FIRST);
        endings.end();

        assert!(endings.missed.is_empty() && endings.read.is_empty());
    }

    #[test]
    fn process_that_comes_to_its_end_while_it_is_read_goes_on_afterwards() {
        let mut endings = watched();
        endings.begin(FIRST);

        endings.reached(FIRST);

        assert!(endings.current.is_some_and(|current| current.is_at_end));
        assert!(endings.waiting.is_empty());
    }
}
