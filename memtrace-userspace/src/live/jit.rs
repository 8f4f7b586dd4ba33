//! Names for code that the traced processes make at run time.
//!
//! In: the stacks that go by. Out: a record for each symbol that covers a frame of one, so that a
//! trace holds the names that its stacks need and no others. Looks are taken once a second and
//! when a program ends.

use memtrace_common::addr::Avma;

use super::attach::Traced;
use super::perf_map::{JitNames, JitSymbol, Unread};
use super::tracer::Tracer;
use crate::record::{Pid, Record, Time};

impl Tracer {
    /// Remembers the frames of a stack that lie in no file.
    pub(super) fn note_jit_frames(&mut self, pid: Pid, frames: &[Avma]) {
        let Some(traced) = self.processes.get_mut(&pid) else { return };
        if traced.has_anonymous_code {
            for &frame in frames {
                if traced.is_anonymous_code(frame) {
                    traced.jit_names.saw(frame);
                }
            }
        }
    }

    /// Names what can be named by now.
    pub(super) fn name_jit_frames(&mut self, time: Time) {
        let mut pids: Vec<Pid> = self.processes.keys().copied().collect();
        pids.sort();
        for pid in pids {
            if let Some(traced) = self.processes.get_mut(&pid) {
                let found = traced.jit_names.find();
                self.out.extend(records(time, pid, found));
            }
        }
    }

    /// The program of `pid` has ended, or is no longer traced: this is the last look at its names.
    pub(super) fn end_jit_names(&mut self, pid: Pid, jit_names: &mut JitNames, time: Time) {
        self.out.extend(records(time, pid, jit_names.find_all()));
        let Unread { lines, addresses, files } = jit_names.unread;
        let sum = &mut self.anomalies.jit_names_unread;
        sum.lines += lines;
        sum.addresses += addresses;
        sum.files += files;
        jit_names.unread = Unread::default();
    }
}

fn records(time: Time, pid: Pid, found: Vec<JitSymbol>) -> impl Iterator<Item = Record> {
    found.into_iter().map(move |JitSymbol { start, size, name }| Record::JitSymbol {
        time,
        pid,
        start,
        size,
        name,
    })
}

impl Traced {
    /// Whether `address` is in code that lies in no file.
    fn is_anonymous_code(&self, address: Avma) -> bool {
        let module = self.modules.range(..=address).next_back();
        module.is_some_and(|(_, module)| address < module.end && module.is_anonymous())
    }
}
