//! What a process held when the kernel was asked about its memory.

use crate::pipeline::Pipeline;
use crate::record::{MemoryByKind, Pid, Time};

use std::sync::Arc;

/// The memory of a process at one moment: what it asked for, and what the kernel says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldMemory {
    /// When.
    pub time: Time,
    /// Heap blocks that were live.
    pub live_blocks: u64,
    /// What the program asked for them.
    pub requested_bytes: u64,
    /// What it got for that, computed; `None` if the allocator is none that is computed.
    pub usable_bytes: Option<u64>,
    /// What the kernel says.
    pub kinds: MemoryByKind,
}

impl HeldMemory {
    /// Resident and swapped memory that only the heap and `mmap` can have filled.
    pub fn filled_bytes(&self) -> u64 {
        let MemoryByKind { heap, anonymous, file: _, stack: _, shared: _ } = self.kinds;
        [heap.resident_bytes, heap.swapped_bytes, anonymous.resident_bytes, anonymous.swapped_bytes]
            .iter()
            .fold(0, |sum: u64, bytes| sum.saturating_add(*bytes))
    }

    /// Address space of the heap and of `mmap` that was never filled, or was given back.
    pub fn untouched_bytes(&self) -> u64 {
        let MemoryByKind { heap, anonymous, file: _, stack: _, shared: _ } = self.kinds;
        heap.size_bytes.saturating_add(anonymous.size_bytes).saturating_sub(self.filled_bytes())
    }

    /// What the live blocks take, as far as it is known.
    pub fn known_bytes(&self) -> u64 {
        self.usable_bytes.unwrap_or(self.requested_bytes)
    }
}

impl Pipeline {
    /// The kernel was asked about a process's memory.
    pub(in crate::pipeline) fn memory_detail(&mut self, pid: Pid, kinds: &MemoryByKind) {
        // A sample may come after the end of its process.
        let Some(id) = self.processes.find(pid) else {
            return;
        };
        let running = self.processes.running(id);
        let (entry, live_blocks) = (running.entry, running.heap.len() as u64);
        let usable_bytes = self.computed_allocator().map(|_| running.usable_bytes);
        // Copies that it inherited are live in it too.
        let requested_bytes = self.processes.entry_mut(entry).heap.held_bytes();
        if !self.processes.stands_for_many(entry) {
            self.processes.entry_mut(entry).memory = Some(Arc::new(HeldMemory {
                time: self.now,
                live_blocks,
                requested_bytes,
                usable_bytes,
                kinds: *kinds,
            }));
        }
    }
}
