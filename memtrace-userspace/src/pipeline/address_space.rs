//! The address space's rules: what `mmap`, `munmap`, `mremap`, `brk` and `mprotect` change.

use memtrace_common::addr::Avma;
use memtrace_common::event::Api;

use super::Pipeline;
use super::detect::{Holder, Total};
use super::mappings::{Mappings, Origin, Outcome, Pages, Released, SiteChange};
use super::processes::{EntryId, Running, RunningId};
use super::snapshot::Memory;
use super::threads::{Actor, ThreadId};
use crate::record::{Alignment, MapKind, Tid, WireStackId};

impl Pipeline {
    pub(super) fn map(
        &mut self,
        tid: Tid,
        start: Avma,
        length: u64,
        kind: MapKind,
        stack: WireStackId,
    ) {
        let Some(Actor { thread, process }) = self.actor(tid) else {
            return;
        };
        self.forget_released(thread, process);
        let Some(pages) = Pages::touched(start, length) else {
            return;
        };
        let origin = match kind {
            MapKind::Anonymous | MapKind::File | MapKind::Shared => {
                Some(self.origin(thread, stack, Api::Mmap))
            }
            MapKind::Reserved => None,
        };
        let outcome = self.change_mappings(process, |m, room| m.map(pages, origin, room));
        self.post_outcome(process, outcome);
    }

    /// Takes out what `munmap` or `mremap` is about to release.
    pub(super) fn release(&mut self, tid: Tid, start: Avma, length: u64) {
        let Some(Actor { thread, process }) = self.actor(tid) else {
            return;
        };
        self.forget_released(thread, process);
        let incarnation = self.processes.running(process).incarnation;
        let pages = Pages::touched(start, length);
        let (released, outcome) =
            self.change_mappings(process, |m, room| m.release(pages, incarnation, room));
        if released.is_orphan() {
            self.anomalies.orphan_unmaps += 1;
        }
        self.threads.get_mut(thread).released = Some(Box::new(released));
        self.post_outcome(process, outcome);
    }

    pub(super) fn unmap_failed(&mut self, tid: Tid) {
        let Some(Actor { thread, process }) = self.actor(tid) else {
            return;
        };
        let Some(released) = self.take_released(thread, process) else {
            self.anomalies.orphan_unmap_failures += 1;
            return;
        };
        if released.is_orphan() {
            // It was not known, but it was not unmapped either.
            let orphans = &mut self.anomalies.orphan_unmaps;
            *orphans = orphans.saturating_sub(1);
        }
        let outcome = self.change_mappings(process, |m, room| m.restore(&released, room));
        self.post_outcome(process, outcome);
    }

    pub(super) fn remap(&mut self, tid: Tid, start: Avma, length: u64, stack: WireStackId) {
        let Some(Actor { thread, process }) = self.actor(tid) else {
            return;
        };
        let released = self.take_released(thread, process);
        if released.is_none() {
            self.anomalies.orphan_remaps += 1;
        }
        let released = released.as_deref();
        let Some(pages) = Pages::touched(start, length) else {
            if let Some(released) = released {
                self.processes.running_mut(process).mappings.forget(released);
            }
            return;
        };
        let growth = self.origin(thread, stack, Api::Mremap);
        let outcome =
            self.change_mappings(process, |m, room| m.remap(released, pages, growth, room));
        self.post_outcome(process, outcome);
    }

    /// `old` is 0 when the program asks where its break is: nothing has moved.
    pub(super) fn move_break(&mut self, tid: Tid, old: Avma, new: Avma, stack: WireStackId) {
        let Some(Actor { thread, process }) = self.actor(tid) else {
            return;
        };
        self.forget_released(thread, process);
        if old == Avma(0) {
            return;
        }
        if let Some(pages) = Pages::between(old, new) {
            let origin = Some(self.origin(thread, stack, Api::Brk));
            let outcome = self.change_mappings(process, |m, room| m.map(pages, origin, room));
            self.post_outcome(process, outcome);
        } else if let Some(pages) = Pages::between(new, old) {
            let outcome = self.change_mappings(process, |m, room| m.unmap(pages, room));
            self.post_outcome(process, outcome);
        }
    }

    /// What of the range was reserved is memory from now on, charged to whoever asked for it.
    pub(super) fn commit(&mut self, tid: Tid, start: Avma, length: u64, stack: WireStackId) {
        let Some(Actor { thread, process }) = self.actor(tid) else {
            return;
        };
        self.forget_released(thread, process);
        let Some(pages) = Pages::touched(start, length) else {
            return;
        };
        // Most calls change what is memory already, and are not worth a site.
        if !self.processes.running(process).mappings.has_reserved(pages) {
            return;
        }
        let origin = self.origin(thread, stack, Api::Mprotect);
        let outcome = self.change_mappings(process, |m, room| m.commit(pages, origin, room));
        self.post_outcome(process, outcome);
    }

    /// What of the range was memory is address space only from now on.
    pub(super) fn decommit(&mut self, tid: Tid, start: Avma, length: u64) {
        let Some(Actor { thread, process }) = self.actor(tid) else {
            return;
        };
        self.forget_released(thread, process);
        let Some(pages) = Pages::touched(start, length) else {
            return;
        };
        let outcome = self.change_mappings(process, |m, room| m.decommit(pages, room));
        self.post_outcome(process, outcome);
    }

    /// What a thread's `munmap` or `mremap` under way took, and from whom.
    pub(super) fn released_under_way(&self, thread: ThreadId) -> Option<(&Running, &Released)> {
        let released = self.threads.get(thread).released.as_deref()?;
        let running = self.processes.running(self.threads.process_of(thread)?);
        (released.incarnation == running.incarnation).then_some((running, released))
    }

    /// Who maps something now.
    fn origin(&mut self, thread: ThreadId, stack: WireStackId, api: Api) -> Origin {
        Origin { site: self.stacks.site(stack, api, Alignment::NONE), thread, born: self.now }
    }

    /// What the thread's call under way took, if it was of the memory that the process has now.
    fn take_released(&mut self, thread: ThreadId, process: RunningId) -> Option<Box<Released>> {
        let released = self.threads.get_mut(thread).released.take()?;
        let current = self.processes.running(process).incarnation;
        (released.incarnation == current).then_some(released)
    }

    /// The thread goes on, so its last `munmap` or `mremap` is over and has not failed.
    pub(super) fn forget_released(&mut self, thread: ThreadId, process: RunningId) {
        if let Some(released) = self.take_released(thread, process) {
            self.processes.running_mut(process).mappings.forget(&released);
        }
    }

    /// Changes the mappings of a process, `room` being how many pieces more there may be.
    pub(super) fn change_mappings<T>(
        &mut self,
        process: RunningId,
        change: impl FnOnce(&mut Mappings, usize) -> T,
    ) -> T {
        let room = self.limits.mappings.saturating_sub(self.mapping_pieces);
        let mappings = &mut self.processes.running_mut(process).mappings;
        let before = mappings.len();
        let result = change(mappings, room);
        self.mapping_pieces = self.mapping_pieces - before + mappings.len();
        result
    }

    pub(super) fn post_outcome(&mut self, process: RunningId, outcome: Outcome) {
        let Outcome { postings, left_out } = outcome;
        self.anomalies.mappings_beyond_limit += left_out;
        let entry = self.processes.running(process).entry;
        self.post_mappings(entry, &postings);
    }

    /// Changes the accounts that mappings concern, and ends the event.
    pub(super) fn post_mappings(&mut self, entry: EntryId, changes: &[SiteChange]) {
        if !self.is_shown(entry) {
            return;
        }
        let epoch = self.mapped_peak.epoch();
        for &SiteChange { site, thread: _, change, blocks, bytes } in changes {
            let held = self.stacks.account_mut(site).apply(change, blocks, bytes, epoch);
            if let Some(held) = held {
                self.detectors.first_change(Holder::Site(site), held);
            }
            self.processes.entry_mut(entry).mapped.apply(change, blocks, bytes, epoch);
            self.process_sites.apply((entry, site), change, (blocks, bytes), epoch);
            self.mapped_peak.apply(change, bytes);
        }
        self.mapped_peak.settle(self.now);
        if self.stacks.has_operations() {
            self.post_to_operations(changes, epoch);
        }
        if let Some(journal) = &mut self.journal {
            let pid = self.processes.entry(entry).pid;
            journal.extend(changes.iter().map(|change| change.of(pid)));
        }
        let mapped = Total::all(Memory::Mapped);
        if self.detectors.is_rising(mapped, self.mapped_peak.held_bytes()) {
            self.measure_spike(mapped);
        }
    }
}
