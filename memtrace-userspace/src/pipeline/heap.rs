//! The heap's rules: what `malloc`, `free` and `realloc` change.
//!
//! ```text
//!   realloc that works     Retire old ─→ Alloc new
//!   realloc that fails     Retire old ─→ Restore old     as if nothing had happened
//!   realloc to 0 bytes     Retire old ─→                 a free
//! ```
//!
//! `free(NULL)` and `realloc(NULL, …)` release nothing, which is no contradiction.

use memtrace_common::addr::Avma;
use memtrace_common::event::Api;

use super::Pipeline;
use super::account::{Change, Claim, Posting};
use super::detect::{Holder, Total};
use super::live_set::{ADDRESS_LIMIT, Birth, Block, SIZE_LIMIT};
use super::processes::{EntryId, RunningId};
use super::snapshot::Memory;
use super::statistics::NewPlace;
use super::threads::{Actor, Retired, ThreadId};
use crate::record::{Alignment, Pid, Tid, WireStackId};

/// What `realloc` took, and where.
struct Taken {
    block: Block,
    address: Avma,
}

impl Pipeline {
    #[inline]
    pub(super) fn alloc(
        &mut self,
        tid: Tid,
        api: Api,
        ptr: Avma,
        size_bytes: u64,
        alignment: Alignment,
        stack: WireStackId,
    ) {
        let Some(Actor { thread, process }) = self.actor(tid) else {
            return;
        };
        if !api.acquires_block() {
            self.anomalies.allocations_by_wrong_api += 1;
            return;
        }
        if ptr == Avma(0) {
            self.anomalies.allocations_at_null += 1;
            return;
        }
        if ptr.0 >= ADDRESS_LIMIT || size_bytes >= SIZE_LIMIT {
            self.anomalies.impossible_allocations += 1;
            return;
        }
        let state = self.threads.get_mut(thread);
        let retired = state.retired.take();
        let taken = retired.and_then(|retired| self.note_moved(process, &retired));
        let is_beyond_limit = self.is_beyond_limit(process, ptr, size_bytes);
        let known = if is_beyond_limit { Avma(0) } else { ptr };
        let between = self.limits.temporary_between;
        self.threads.get_mut(thread).newest.push(known, between);
        if is_beyond_limit {
            return;
        }
        let site = self.stacks.site(stack, api, alignment);
        let born = match taken {
            Some(Taken { block, address }) if matches!(api, Api::Realloc | Api::Reallocarray) => {
                if self.is_shown(self.processes.running(process).entry) {
                    let place = if address == ptr { NewPlace::Same } else { NewPlace::Other };
                    self.collected.reallocated(site, block.size_bytes, size_bytes, place);
                }
                block.born
            }
            Some(_) | None => Birth::at(self.now),
        };
        let block = Block { size_bytes, born, site, thread, claim: Claim::Own };
        let entry = self.put_block(process, ptr, block);
        self.post_block(entry, &block, Change::Acquire);
        if self.is_shown(entry) {
            self.timeline.allocated(size_bytes);
            self.collected.allocated(api, site, self.stacks.account(site), size_bytes);
            // The site has none if there are too many alignments.
            if alignment != Alignment::NONE && self.stacks.alignment(site) == alignment {
                self.collected.aligned(site, alignment, ptr, size_bytes);
            }
        }
        self.settle_heap();
    }

    #[inline]
    pub(super) fn free(&mut self, tid: Tid, ptr: Avma) {
        if ptr == Avma(0) {
            return;
        }
        let Some(actor) = self.actor(tid) else {
            return;
        };
        self.threads.get_mut(actor.thread).retired = None;
        let Some(block) = self.take_block(actor, ptr) else {
            self.anomalies.orphan_frees += 1;
            return;
        };
        let running = self.processes.running(actor.process);
        let (entry, pid) = (running.entry, running.pid);
        self.note_freed(pid, ptr, block.size_bytes);
        if block.claim != Claim::Inherited && self.is_shown(entry) {
            // Of what was held before a range, the birth is known too.
            let frees = self.stacks.account(block.site).frees();
            let age_units = block.born.age_units(self.now);
            self.collected.released(block.site, frees, age_units, block.size_bytes);
            let thread = self.threads.get_mut(block.thread);
            if block.claim == Claim::Own
                && block.thread == actor.thread
                && thread.newest.take(ptr, self.limits.temporary_between)
            {
                self.collected.temporary_allocations += 1;
                thread.heap.note_temporary();
                self.stacks.account_mut(block.site).note_temporary();
                self.processes.entry_mut(entry).heap.note_temporary();
                self.process_sites.note_temporary(entry, block.site);
            }
        }
    }

    /// `realloc` has given memory, and so released the block that it took; returns that.
    fn note_moved(&mut self, process: RunningId, retired: &Retired) -> Option<Taken> {
        let running = self.processes.running(process);
        let &Retired { address, block, incarnation } = retired;
        let block = block.filter(|_| incarnation == running.incarnation)?;
        self.note_freed(running.pid, address, block.size_bytes);
        Some(Taken { block, address })
    }

    pub(super) fn retire(&mut self, tid: Tid, ptr: Avma) {
        if ptr == Avma(0) {
            return;
        }
        let Some(actor) = self.actor(tid) else {
            return;
        };
        let block = self.take_block(actor, ptr);
        if block.is_none() {
            self.anomalies.orphan_frees += 1;
        }
        let incarnation = self.processes.running(actor.process).incarnation;
        self.threads.get_mut(actor.thread).retired =
            Some(Retired { address: ptr, block, incarnation });
    }

    pub(super) fn restore(&mut self, tid: Tid, ptr: Avma) {
        if ptr == Avma(0) {
            return;
        }
        let Some(Actor { thread, process }) = self.actor(tid) else {
            return;
        };
        let incarnation = self.processes.running(process).incarnation;
        let retired = self.threads.get_mut(thread).retired.take();
        let retired = retired.filter(|r| r.address == ptr && r.incarnation == incarnation);
        let Some(Retired { block, .. }) = retired else {
            self.anomalies.orphan_restores += 1;
            return;
        };
        let Some(block) = block else {
            // It was not known, but it was not freed either.
            let orphans = &mut self.anomalies.orphan_frees;
            *orphans = orphans.saturating_sub(1);
            return;
        };
        if self.is_beyond_limit(process, ptr, block.size_bytes) {
            return;
        }
        let entry = self.put_block(process, ptr, block);
        self.post_block(entry, &block, block.claim.reclaim());
        self.settle_heap();
    }

    /// The block that a thread's `realloc` under way took, with its process and address.
    pub(super) fn retired_under_way(&self, thread: ThreadId) -> Option<(Pid, Avma, Option<Block>)> {
        let Retired { address, block, incarnation } = self.threads.get(thread).retired?;
        let running = self.processes.running(self.threads.process_of(thread)?);
        (incarnation == running.incarnation).then_some((running.pid, address, block))
    }

    /// Whether there is no room for a block at `ptr`; counts it then.
    #[inline(always)]
    pub(super) fn is_beyond_limit(
        &mut self,
        process: RunningId,
        ptr: Avma,
        size_bytes: u64,
    ) -> bool {
        let beyond = self.live_blocks >= self.limits.live_blocks
            && !self.processes.running(process).heap.contains(ptr);
        if beyond {
            self.anomalies.allocations_beyond_limit += 1;
            let bytes = &mut self.anomalies.allocated_bytes_beyond_limit;
            *bytes = bytes.wrapping_add(size_bytes);
        }
        beyond
    }

    /// Puts a block into the process's memory; one that was there was freed, unseen.
    #[inline(always)]
    pub(super) fn put_block(&mut self, process: RunningId, ptr: Avma, block: Block) -> EntryId {
        let usable_bytes = self.usable_bytes(ptr, &block);
        let running = self.processes.running_mut(process);
        let entry = running.entry;
        running.usable_bytes = running.usable_bytes.wrapping_add(usable_bytes);
        if let Some(lost) = running.heap.insert(ptr, block) {
            let usable_bytes = self.usable_bytes(ptr, &lost);
            let running = self.processes.running_mut(process);
            running.usable_bytes = running.usable_bytes.wrapping_sub(usable_bytes);
            self.anomalies.address_reuses += 1;
            self.post_block(entry, &lost, lost.claim.release());
        } else {
            self.live_blocks += 1;
        }
        entry
    }

    /// Takes the block at `ptr` out of the process's memory and the accounts.
    #[inline(always)]
    fn take_block(&mut self, actor: Actor, ptr: Avma) -> Option<Block> {
        let running = self.processes.running_mut(actor.process);
        let block = running.heap.remove(ptr)?;
        let entry = running.entry;
        let usable_bytes = self.usable_bytes(ptr, &block);
        let running = self.processes.running_mut(actor.process);
        running.usable_bytes = running.usable_bytes.wrapping_sub(usable_bytes);
        self.live_blocks -= 1;
        self.post_block(entry, &block, block.claim.release());
        Some(block)
    }

    /// What the allocator makes of a block's size; 0 if that is not known.
    #[inline(always)]
    fn usable_bytes(&self, ptr: Avma, block: &Block) -> u64 {
        let alignment = self.stacks.alignment(block.site);
        self.collected.allocator.usable_bytes(ptr, block.size_bytes, alignment).unwrap_or(0)
    }

    /// Changes the accounts that a block concerns.
    #[inline(always)]
    pub(super) fn post_block(&mut self, entry: EntryId, block: &Block, change: Change) {
        let &Block { size_bytes, born: _, site, thread, claim: _ } = block;
        if !self.is_shown(entry) {
            return;
        }
        let epoch = self.heap_peak.epoch();
        let held = self.stacks.account_mut(site).apply(change, 1, size_bytes, epoch);
        if let Some(held) = held {
            self.detectors.first_change(Holder::Site(site), held);
        }
        let held = self.threads.get_mut(thread).heap.apply(change, 1, size_bytes, epoch);
        if let Some(held) = held {
            self.detectors.first_change(Holder::Thread(thread), held);
        }
        self.processes.entry_mut(entry).heap.apply(change, 1, size_bytes, epoch);
        self.process_sites.apply((entry, site), change, (1, size_bytes), epoch);
        self.heap_peak.apply(change, size_bytes);
        self.before.apply(change, 1, size_bytes);
        if let Some(journal) = &mut self.journal {
            let pid = self.processes.entry(entry).pid;
            journal.push(Posting { pid, site, thread, change, blocks: 1, bytes: size_bytes });
        }
        if let Some(operation) = self.stacks.operation(site) {
            self.post_to_operation(operation, block, change);
        }
    }

    /// Ends an event of the heap that may have made a peak.
    #[inline(always)]
    pub(super) fn settle_heap(&mut self) {
        self.heap_peak.settle(self.now);
        let held = self.heap_peak.held_bytes();
        self.timeline.observe(held);
        self.marks.observe(held, self.now);
        if held > self.stretch.bytes {
            self.restart_level();
        }
        let heap = Total::all(Memory::Heap);
        if self.detectors.is_rising(heap, held) {
            self.measure_spike(heap);
        }
    }
}
