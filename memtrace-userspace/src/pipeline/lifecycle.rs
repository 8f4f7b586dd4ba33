//! Processes and threads: how they come, change and go, and what that does to their memory.

use std::sync::Arc;

use memtrace_common::addr::Avma;

use super::Pipeline;
use super::account::Change;
use super::processes::{Running, RunningId};
use super::threads::{Actor, ThreadId};
use crate::modules::{Backing, Modules};
use crate::record::{BeforeAttach, Image, Module, Namespaces, Pid, Process, Tid};

/// PID namespaces inside each other; the kernel allows no more.
const MAX_INNER_PIDS: usize = 32;

impl Pipeline {
    /// Which thread of which process has this id; `None` if its events must be left out.
    #[inline(always)]
    pub(super) fn actor(&mut self, tid: Tid) -> Option<Actor> {
        match self.threads.find(tid) {
            Some(actor) => Some(actor),
            None => self.unknown_actor(tid),
        }
    }

    #[cold]
    fn unknown_actor(&mut self, tid: Tid) -> Option<Actor> {
        let actor = match self.processes.find(Pid(tid.0)) {
            Some(process) => self.start_thread(process, tid, &[]),
            None => {
                let only = self.only_process();
                let actor = only.and_then(|process| self.start_thread(process, tid, &[]));
                self.anomalies.threads_without_start += u64::from(actor.is_some());
                actor
            }
        };
        if actor.is_none() {
            self.anomalies.events_of_unknown_threads += 1;
        }
        actor
    }

    /// The process to which an event must belong that says nothing about it.
    fn only_process(&mut self) -> Option<RunningId> {
        match &self.session {
            Some(session) if self.processes.is_empty() => {
                let pid = session.pid;
                self.running(pid)
            }
            _ => self.processes.only(),
        }
    }

    /// The process with this id, which runs from now on if it did not; `None` if too many do.
    pub(super) fn running(&mut self, pid: Pid) -> Option<RunningId> {
        if let Some(id) = self.processes.find(pid) {
            return Some(id);
        }
        let Some(id) = self.processes.start(pid, self.now) else {
            self.anomalies.records_of_unknown_processes += 1;
            return None;
        };
        let entry = self.processes.running(id).entry;
        if self.processes.stands_for_many(entry) {
            self.anomalies.processes_beyond_limit += 1;
        }
        Some(id)
    }

    pub(super) fn process(&mut self, process: &Process) {
        let Process { time: _, pid, parent, exe, command } = process;
        if let Some(id) = self.running(*pid) {
            self.describe(id, exe, command);
            let entry = self.processes.running(id).entry;
            if let Some(parent) = parent
                && !self.processes.stands_for_many(entry)
            {
                self.processes.entry_mut(entry).parent = Some(*parent);
            }
        }
    }

    fn describe(&mut self, id: RunningId, exe: &[u8], command: &[Vec<u8>]) {
        let entry = self.processes.running(id).entry;
        if self.processes.stands_for_many(entry) {
            return;
        }
        let exe = self.cut_text(exe);
        let command = self.cut_command(command);
        let entry = self.processes.entry_mut(entry);
        entry.exe = exe;
        entry.command = command;
    }

    pub(super) fn cut_text(&mut self, text: &[u8]) -> Vec<u8> {
        let length = text.len().min(self.limits.text_bytes);
        if length < text.len() {
            self.anomalies.texts_cut += 1;
        }
        text[..length].to_vec()
    }

    /// The first arguments, as many as fit into one text, each counting a byte more.
    fn cut_command(&mut self, command: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut room = self.limits.text_bytes;
        let mut kept = Vec::new();
        for argument in command {
            if argument.len() >= room {
                self.anomalies.texts_cut += 1;
                kept.push(argument[..room.saturating_sub(1)].to_vec());
                break;
            }
            room -= argument.len() + 1;
            kept.push(argument.clone());
        }
        kept
    }

    pub(super) fn before_attach(&mut self, before: &BeforeAttach) {
        if let Some(id) = self.running(before.pid) {
            let entry = self.processes.running(id).entry;
            if !self.processes.stands_for_many(entry) {
                self.processes.entry_mut(entry).before_attach = Some(Arc::new(before.clone()));
            }
        }
    }

    pub(super) fn namespaces(&mut self, namespaces: &Namespaces) {
        let Namespaces { pid, inner_pids, cgroup, container } = namespaces;
        let Some(id) = self.processes.find(*pid) else {
            return;
        };
        let entry = self.processes.running(id).entry;
        if self.processes.stands_for_many(entry) {
            return;
        }
        // The innermost is the one that counts.
        let cut = inner_pids.len().saturating_sub(MAX_INNER_PIDS);
        let namespaces = Namespaces {
            pid: *pid,
            inner_pids: inner_pids[cut..].to_vec(),
            cgroup: cgroup.as_deref().map(|text| self.cut_text(text)),
            container: container.as_deref().map(|text| self.cut_text(text)),
        };
        self.processes.entry_mut(entry).namespaces = Some(Arc::new(namespaces));
    }

    pub(super) fn resident(&mut self, pid: Pid, rss_bytes: u64) {
        // A sample may come after the end of its process.
        let Some(id) = self.processes.find(pid) else {
            return;
        };
        let running = self.processes.running_mut(id);
        let entry = running.entry;
        let before = std::mem::replace(&mut running.resident_bytes, rss_bytes);
        if self.is_shown(entry) {
            self.resident_bytes = self.resident_bytes.wrapping_sub(before).wrapping_add(rss_bytes);
            self.peak_resident_bytes = self.peak_resident_bytes.max(self.resident_bytes);
        }
        if !self.processes.stands_for_many(entry) {
            self.processes.entry_mut(entry).resident_bytes = Some(rss_bytes);
        }
    }

    pub(super) fn thread(&mut self, pid: Pid, tid: Tid, name: &[u8]) {
        let Some(process) = self.running(pid) else {
            return;
        };
        match self.threads.find(tid) {
            Some(actor) if actor.process == process => {
                let name = self.cut_text(name);
                self.threads.rename(actor.thread, name);
                return;
            }
            Some(_) => {
                self.anomalies.missed_thread_exits += 1;
                self.end_thread(tid);
            }
            None => {}
        }
        if self.start_thread(process, tid, name).is_none() {
            self.anomalies.threads_beyond_limit += 1;
        }
    }

    pub(super) fn start_thread(
        &mut self,
        process: RunningId,
        tid: Tid,
        name: &[u8],
    ) -> Option<Actor> {
        if !self.threads.has_room() {
            return None;
        }
        let thread = self.thread_entry(process, tid, name);
        let actor = Actor { thread, process };
        self.threads.start(tid, actor);
        self.processes.running_mut(process).threads.insert(tid);
        Some(actor)
    }

    /// A new entry, or the one of the process's threads beyond the limit.
    fn thread_entry(&mut self, process: RunningId, tid: Tid, name: &[u8]) -> ThreadId {
        let entry = self.processes.running(process).entry;
        if self.threads.len() < self.limits.threads.min(ThreadId::LIMIT / 2) {
            let name = self.cut_text(name);
            let pid = self.processes.running(process).pid;
            return self.threads.add(pid, tid, name);
        }
        self.anomalies.threads_beyond_limit += 1;
        let entry = self.processes.entry_mut(entry);
        let pid = entry.pid;
        *entry.other_threads.get_or_insert_with(|| self.threads.add(pid, Tid(0), Vec::new()))
    }

    pub(super) fn end_thread(&mut self, tid: Tid) {
        if let Some(Actor { thread, process }) = self.threads.end(tid) {
            self.forget_released(thread, process);
            self.processes.running_mut(process).threads.remove(&tid);
        }
    }

    pub(super) fn module(&mut self, module: &Module) {
        let Module { time: _, pid, start, end, offset, image } = module;
        if start >= end {
            self.anomalies.empty_modules += 1;
            return;
        }
        let backing = match image {
            Image::Anonymous => Some(Backing::Anonymous),
            Image::File { .. } | Image::Vdso => {
                self.images.intern(image).map(|image| Backing::Image(image, *offset))
            }
        };
        let Some(process) = self.running(*pid) else {
            return;
        };
        // A mapping put into the middle of another makes two more.
        match backing {
            Some(backing) if self.modules + 2 <= self.limits.modules => {
                self.change_modules(process, |modules| modules.insert(*start, *end, backing));
            }
            _ => self.anomalies.modules_beyond_limit += 1,
        }
    }

    pub(super) fn module_gone(&mut self, pid: Pid, start: Avma) {
        let removed = self
            .processes
            .find(pid)
            .is_some_and(|process| self.change_modules(process, |modules| modules.remove(start)));
        if !removed {
            self.anomalies.orphan_module_ends += 1;
        }
    }

    fn change_modules<T>(
        &mut self,
        process: RunningId,
        change: impl FnOnce(&mut Modules) -> T,
    ) -> T {
        let modules = Arc::make_mut(&mut self.processes.running_mut(process).modules);
        let before = modules.len();
        let result = change(modules);
        self.modules = self.modules - before + modules.len();
        result
    }

    pub(super) fn fork(&mut self, parent: Pid, child: Pid) {
        // The records of a new process may overtake its fork, but it cannot hold memory yet.
        if let Some(id) = self.processes.find(child)
            && !self.processes.running(id).is_bare()
        {
            self.anomalies.missed_process_exits += 1;
            self.exit(child);
        }
        let Some(child) = self.running(child) else {
            return;
        };
        let entry = self.processes.running(child).entry;
        if !self.processes.stands_for_many(entry) {
            self.processes.entry_mut(entry).parent = Some(parent);
        }
        match self.processes.find(parent) {
            Some(parent) if parent != child => self.inherit(parent, child),
            _ => self.anomalies.orphan_forks += 1,
        }
    }

    /// Gives a child copies of all that its parent has.
    fn inherit(&mut self, parent: RunningId, child: RunningId) {
        let from = self.processes.running(parent);
        let blocks = from.heap.len();
        let heap = if self.live_blocks + blocks <= self.limits.live_blocks {
            Some(from.heap.fork())
        } else {
            self.anomalies.inherited_blocks_beyond_limit += blocks as u64;
            None
        };
        let pieces = from.mappings.len();
        let mappings = if self.mapping_pieces + pieces <= self.limits.mappings {
            Some(from.mappings.fork())
        } else {
            self.anomalies.mappings_beyond_limit += pieces as u64;
            None
        };
        let modules = if self.modules + from.modules.len() <= self.limits.modules {
            Some(Arc::clone(&from.modules))
        } else {
            self.anomalies.modules_beyond_limit += from.modules.len() as u64;
            None
        };

        // What a thread of the child's id had under way belongs to memory that is replaced here.
        let incarnation = self.processes.next_incarnation();
        let to = self.processes.running_mut(child);
        to.incarnation = incarnation;
        let entry = to.entry;
        if let Some(modules) = modules.filter(|_| to.modules.is_empty()) {
            self.modules += modules.len();
            to.modules = modules;
        }
        let mut postings = Vec::new();
        if let Some((mappings, inherited)) = mappings {
            self.mapping_pieces += mappings.len();
            to.mappings = mappings;
            postings = inherited;
        }
        if let Some(heap) = heap {
            self.live_blocks += heap.len();
            for block in heap.blocks() {
                self.post_block(entry, &block, Change::Inherit);
            }
            let usable_bytes = self.processes.running(parent).usable_bytes;
            let to = self.processes.running_mut(child);
            to.heap = heap;
            to.usable_bytes = usable_bytes;
        }
        self.post_mappings(entry, &postings);
        self.settle_heap();
    }

    pub(super) fn exec(&mut self, pid: Pid, exe: &[u8], command: &[Vec<u8>]) {
        let Some(id) = self.running(pid) else {
            return;
        };
        let incarnation = self.processes.next_incarnation();
        let running = self.processes.running_mut(id);
        let old = running.exec(incarnation);
        // The thread that called exec lives on, and has the id of the process.
        let others: Vec<Tid> = old.threads.iter().copied().filter(|tid| tid.0 != pid.0).collect();
        let main = old.threads.contains(&Tid(pid.0));
        self.write_off(&old);
        for tid in others {
            self.threads.end(tid);
        }
        if main {
            self.processes.running_mut(id).threads.insert(Tid(pid.0));
        }
        self.describe(id, exe, command);
        let entry = self.processes.entry_mut(old.entry);
        entry.before_attach = None;
        entry.memory = None;
    }

    pub(super) fn exit(&mut self, pid: Pid) {
        let Some(id) = self.processes.find(pid) else {
            return;
        };
        if self.processes.only() == Some(id) {
            // What it holds is judged before it is gone.
            self.last_leaks = self.find_leaks();
        }
        let old = self.processes.end(id, self.now);
        self.write_off(&old);
        for &tid in &old.threads {
            self.threads.end(tid);
        }
        if self.is_shown(old.entry) {
            self.resident_bytes = self.resident_bytes.wrapping_sub(old.resident_bytes);
        }
    }

    /// Takes the memory of a program that has ended out of the sums.
    fn write_off(&mut self, old: &Running) {
        self.jit_names.forget(old.pid);
        self.live_blocks -= old.heap.len();
        self.mapping_pieces -= old.mappings.len();
        self.modules -= old.modules.len();
        for block in old.heap.blocks() {
            self.post_block(old.entry, &block, block.claim.end());
        }
        self.post_mappings(old.entry, &old.mappings.end());
    }
}
