//! Operations: classes of work, each named by functions of the program.
//!
//! In: which code belongs to which class, before the stacks through it. Out: the class of a call
//! path, and what the call paths of each hold.
//!
//! ```text
//!   frames    malloc ← grow ← sqlite3_step ← handle_upload ← main
//!   classes                   select          upload               →  select: the innermost
//! ```
//!
//! Code is known by file and offset, so that all processes that map a file share it. A piece of
//! code stays with the class that was told first. A call path keeps the class that it has when its
//! frames arrive: what was charged before that is in the usage of the class, and not in its spikes.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::Arc;

use memtrace_common::addr::{Avma, FileOffset};
use rustc_hash::FxHashMap;

use super::account::{Account, Change, Epoch, HeldBefore};
use super::detect::{Holder, Total};
use super::limits::Limits;
use super::live_set::Block;
use super::mappings::SiteChange;
use super::snapshot::{Memory, OperationUsage, Place, Usage};
use super::threads::ThreadId;
use super::{Pipeline, add_usage};
use crate::modules::Backing;
use crate::record::Pid;

/// A class of work in [`Operations`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct OperationId(NonZero<u8>);

impl OperationId {
    fn from_index(index: usize) -> Option<OperationId> {
        u8::try_from(index + 1).ok().and_then(NonZero::new).map(OperationId)
    }

    /// Its number: they are counted from 0 as they appear.
    pub(super) fn index(self) -> usize {
        usize::from(self.0.get()) - 1
    }
}

/// Where code of a class ends.
#[derive(Clone, Copy, Debug)]
struct Code {
    end: FileOffset,
    operation: OperationId,
}

/// What the call paths of a class do.
#[derive(Debug, Default)]
struct Work {
    heap: Account,
    mapped: Account,
}

/// All classes of a session.
#[derive(Debug)]
pub(super) struct Operations {
    names: Vec<Arc<str>>,
    /// By image and first byte; no two overlap.
    code: BTreeMap<(u32, FileOffset), Code>,
    work: Vec<Work>,
    /// The heap blocks of each class, by the thread that allocated them.
    threads: FxHashMap<(OperationId, ThreadId), Account>,
    limit: usize,
    code_limit: usize,
}

impl Operations {
    pub(super) fn new(limits: &Limits) -> Operations {
        Operations {
            names: Vec::new(),
            code: BTreeMap::new(),
            work: Vec::new(),
            threads: FxHashMap::default(),
            limit: limits.operations,
            code_limit: limits.operation_code,
        }
    }

    /// Their names, by number.
    pub(super) fn names(&self) -> &[Arc<str>] {
        &self.names
    }

    /// Every class, by number.
    pub(super) fn ids(&self) -> impl Iterator<Item = OperationId> + use<> {
        (0..self.names.len()).filter_map(OperationId::from_index)
    }

    /// Every class, in the order of their names.
    pub(super) fn by_name(&self) -> Vec<OperationId> {
        let mut all: Vec<_> = self.ids().collect();
        all.sort_by_key(|operation| &self.names[operation.index()]);
        all
    }

    /// The class of a call path: that of its innermost frame that has one.
    pub(super) fn of_frames(&self, frames: &[Place]) -> Option<OperationId> {
        if self.code.is_empty() {
            return None;
        }
        frames.iter().find_map(|frame| match *frame {
            Place::InFile { image, offset } => {
                let (&(of, _), code) = self.code.range(..=(image, offset)).next_back()?;
                (of == image && offset < code.end).then_some(code.operation)
            }
            Place::Anonymous { .. } | Place::Unknown { .. } => None,
        })
    }

    /// What code of an image belongs to which class, between two offsets: start, end and name.
    pub(super) fn code_of(
        &self,
        image: u32,
        from: FileOffset,
        to: FileOffset,
    ) -> impl Iterator<Item = (FileOffset, FileOffset, &str)> {
        self.within(image, from, to).map(move |(start, code)| {
            let name = &self.names[code.operation.index()];
            (start.max(from), code.end.min(to), &**name)
        })
    }

    /// What lies between two offsets of an image, by first byte.
    fn within(
        &self,
        image: u32,
        from: FileOffset,
        to: FileOffset,
    ) -> impl Iterator<Item = (FileOffset, Code)> {
        let before = self.code.range(..(image, from)).next_back();
        let rest = (from < to).then(|| self.code.range((image, from)..(image, to)));
        let all = before.into_iter().chain(rest.into_iter().flatten());
        all.filter(move |((of, _), code)| *of == image && code.end > from)
            .map(|(&(_, start), code)| (start, *code))
    }

    /// What the call paths of a class hold, in bytes.
    pub(super) fn held_bytes(&self, operation: OperationId, memory: Memory) -> u64 {
        let Work { heap, mapped } = &self.work[operation.index()];
        match memory {
            Memory::Heap => heap.held_bytes(),
            Memory::Mapped => mapped.held_bytes(),
        }
    }

    /// What a thread holds in heap blocks that it allocated in a class.
    pub(super) fn held_by_thread(&self, operation: OperationId, thread: ThreadId) -> u64 {
        self.threads.get(&(operation, thread)).map_or(0, Account::held_bytes)
    }

    /// The class with this name, which may be new; `None` if there is no room for it.
    fn named(&mut self, name: &str) -> Option<OperationId> {
        let known = self.names.iter().position(|known| **known == *name);
        let operation = OperationId::from_index(known.unwrap_or(self.names.len()))?;
        if known.is_none() {
            if self.names.len() >= self.limit {
                return None;
            }
            self.names.push(name.into());
            self.work.push(Work::default());
        }
        Some(operation)
    }

    /// Gives code of an image to a class, but for what has one; false without room.
    fn learn(
        &mut self,
        image: u32,
        start: FileOffset,
        end: FileOffset,
        operation: OperationId,
    ) -> bool {
        let (mut free, mut from) = (Vec::new(), start);
        for (other, code) in self.within(image, start, end) {
            if from < other {
                free.push((from, other));
            }
            from = from.max(code.end);
        }
        if from < end {
            free.push((from, end));
        }
        let has_room = self.code.len() + free.len() <= self.code_limit;
        if has_room {
            let pieces = free.into_iter();
            self.code.extend(pieces.map(|(start, end)| ((image, start), Code { end, operation })));
        }
        has_room
    }

    fn post_block(
        &mut self,
        operation: OperationId,
        thread: ThreadId,
        (change, bytes): (Change, u64),
        epoch: Epoch,
    ) -> HeldBefore {
        self.work[operation.index()].heap.apply(change, 1, bytes, epoch);
        self.threads.entry((operation, thread)).or_default().apply(change, 1, bytes, epoch)
    }
}

impl Pipeline {
    /// Learns that code of a process belongs to a class.
    pub(super) fn operation(&mut self, pid: Pid, start: Avma, length: u64, class: &str) {
        let process = self.processes.find(pid).map(|id| self.processes.running(id));
        let backing = process.and_then(|process| process.modules.locate(start));
        let Some(Backing::Image(image, offset)) = backing else {
            self.anomalies.operation_code_left_out += 1;
            return;
        };
        let end = FileOffset(offset.0.saturating_add(length));
        let class = self.cut_text(class.as_bytes());
        let known = self.operations.names.len();
        let learned = self
            .operations
            .named(&String::from_utf8_lossy(&class))
            .is_some_and(|operation| self.operations.learn(image.index(), offset, end, operation));
        self.anomalies.operation_code_left_out += u64::from(!learned);
        for name in &self.operations.names[known..] {
            self.detectors.watch(name, &self.limits);
        }
    }

    /// Changes what a class holds by a block.
    #[inline(never)]
    pub(super) fn post_to_operation(
        &mut self,
        operation: OperationId,
        block: &Block,
        change: Change,
    ) {
        let &Block { size_bytes, thread, .. } = block;
        let epoch = self.heap_peak.epoch();
        let held = self.operations.post_block(operation, thread, (change, size_bytes), epoch);
        if let Some(held) = held {
            self.detectors.first_change(Holder::ThreadIn(operation, thread), held);
        }
        self.look_at(operation, Memory::Heap);
    }

    /// Changes what classes hold by mappings.
    #[inline(never)]
    pub(super) fn post_to_operations(&mut self, changes: &[SiteChange], epoch: Epoch) {
        for &SiteChange { site, thread: _, change, blocks, bytes } in changes {
            if let Some(operation) = self.stacks.operation(site) {
                let work = &mut self.operations.work[operation.index()];
                work.mapped.apply(change, blocks, bytes, epoch);
            }
        }
        // Of what is moved or replaced, the parts come one after the other.
        for &SiteChange { site, .. } in changes {
            if let Some(operation) = self.stacks.operation(site) {
                self.look_at(operation, Memory::Mapped);
            }
        }
    }

    /// Looks whether what a class holds makes a spike.
    fn look_at(&mut self, operation: OperationId, memory: Memory) {
        let total = Total { operation: Some(operation), memory };
        if self.detectors.is_rising(total, self.operations.held_bytes(operation, memory)) {
            self.measure_spike(total);
        }
    }

    /// What each class did, in the order of their names. `epoch_of` gives the peak that counts.
    pub(super) fn operation_usage(
        &self,
        epoch_of: impl Fn(Memory) -> Epoch,
    ) -> Vec<OperationUsage> {
        let mut sums = vec![(Usage::default(), Usage::default()); self.operations.names.len()];
        if !sums.is_empty() {
            for site in self.stacks.sites() {
                let Some(operation) = self.stacks.shown_operation(site) else { continue };
                let (heap, mapped) = &mut sums[operation.index()];
                let memory = Memory::of(self.stacks.api(site));
                let sum = match memory {
                    Memory::Heap => heap,
                    Memory::Mapped => mapped,
                };
                add_usage(sum, &self.stacks.account(site).usage(epoch_of(memory)));
            }
        }
        let usage = |operation: OperationId| {
            let (heap, mapped) = sums[operation.index()];
            let name = Arc::clone(&self.operations.names[operation.index()]);
            OperationUsage { name, heap, mapped }
        };
        self.operations.by_name().into_iter().map(usage).collect()
    }
}
