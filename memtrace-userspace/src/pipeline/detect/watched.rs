//! What is watched for spikes: the memory of all, and that of each operation.

use std::sync::Arc;

use super::options::SpikeOptions;
use super::spikes::Spikes;
use crate::pipeline::operations::OperationId;
use crate::pipeline::snapshot::Memory;
use crate::pipeline::stacks::{SiteId, Stacks};

/// What is watched for spikes: what an operation holds of one kind of memory, or what all hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pipeline) struct Total {
    pub(in crate::pipeline) operation: Option<OperationId>,
    pub(in crate::pipeline) memory: Memory,
}

impl Total {
    /// That of everything.
    pub(in crate::pipeline) const fn all(memory: Memory) -> Total {
        Total { operation: None, memory }
    }

    /// Whether what is charged to a site is part of it.
    pub(in crate::pipeline) fn has(self, site: SiteId, stacks: &Stacks) -> bool {
        let Total { operation, memory } = self;
        Memory::of(stacks.api(site)) == memory
            && operation.is_none_or(|operation| stacks.operation(site) == Some(operation))
    }
}

/// The spikes of one operation, or of everything.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) heap: Spikes,
    pub(super) mapped: Spikes,
}

impl Watched {
    pub(super) fn new(
        operation: Option<&Arc<str>>,
        options: SpikeOptions,
        window_ticks: usize,
    ) -> Watched {
        let spikes = |memory| Spikes::new(operation.cloned(), memory, options, window_ticks);
        Watched { heap: spikes(Memory::Heap), mapped: spikes(Memory::Mapped) }
    }

    #[inline(always)]
    pub(super) fn of(&self, memory: Memory) -> &Spikes {
        match memory {
            Memory::Heap => &self.heap,
            Memory::Mapped => &self.mapped,
        }
    }

    pub(super) fn of_mut(&mut self, memory: Memory) -> &mut Spikes {
        match memory {
            Memory::Heap => &mut self.heap,
            Memory::Mapped => &mut self.mapped,
        }
    }
}
