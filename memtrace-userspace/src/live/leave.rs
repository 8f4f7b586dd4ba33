//! The end of tracing a process: it has ended, or it is left alone.
//!
//! Its place in the kernel's table, its modules' regions and its links are given back. A process
//! that ends needs no probe taken out of it; one that runs on does, before it can come to harm.

use super::attach::Traced;
use super::tracer::Tracer;
use crate::record::{Pid, Record, Time};

impl Tracer {
    /// A process has ended.
    pub(super) fn exited(&mut self, pid: Pid, time: Time) {
        let Some(mut traced) = self.processes.remove(&pid) else { return };
        self.endings.ended(pid);
        self.end_jit_names(pid, &mut traced.jit_names, time);
        self.out.push(Record::Exit { time, pid });
        self.give_back(traced);
    }

    fn give_back(&mut self, traced: Traced) {
        self.closer.close(traced.probed.into_links());
        self.tables.give_back(traced.regions);
        self.free_indices.push(traced.index);
    }

    /// Writes a process off that runs on, and takes its probes away before that.
    pub(super) fn leave(&mut self, pid: Pid, time: Time) {
        self.kernel.remove_process(pid);
        self.threads.retain(|_, of| *of != pid);
        let Some(mut traced) = self.processes.remove(&pid) else { return };
        self.end_jit_names(pid, &mut traced.jit_names, time);
        let Traced { probed, regions, index, .. } = traced;
        self.endings.ended(pid);
        drop(probed.into_links());
        self.tables.give_back(regions);
        self.free_indices.push(index);
        self.out.push(Record::Exit { time, pid });
    }

    /// Leaves a process alone that runs on.
    pub(super) fn let_go(&mut self, pid: Pid) {
        self.kernel.remove_process(pid);
        self.threads.retain(|_, of| *of != pid);
        let Some(traced) = self.processes.remove(&pid) else { return };
        self.give_back(traced);
    }
}
