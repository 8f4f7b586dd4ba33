//! The live blocks one by one, for a look at the process that holds them.

use std::sync::Arc;

use memtrace_common::addr::Avma;
use memtrace_common::event::Api;

use super::Pipeline;
use super::account::Claim;
use super::snapshot::Stack;
use super::stacks::SiteId;
use crate::record::{Pid, Time};

/// A live block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldBlock {
    /// Its first byte.
    pub address: Avma,
    /// What the program asked for.
    pub size_bytes: u64,
    /// When it was made; later than that by what a live block keeps less exactly.
    pub born: Time,
    /// Which call path and API made it; see [`Pipeline::call_path`].
    pub site: SiteId,
    /// Whether it is a copy that `fork` made of a block of the parent's.
    pub is_inherited: bool,
}

impl Pipeline {
    /// The blocks that a process holds now, in no order; `None` if it does not run.
    pub fn held_blocks(&self, pid: Pid) -> Option<Vec<HeldBlock>> {
        let process = self.processes.running(self.processes.find(pid)?);
        let mut held = Vec::with_capacity(process.heap.len());
        held.extend(process.heap.blocks_at().map(|(address, block)| HeldBlock {
            address,
            size_bytes: block.size_bytes,
            born: block.born.time(),
            site: block.site,
            is_inherited: block.claim == Claim::Inherited,
        }));
        Some(held)
    }

    /// The stack and the API behind a site, as far as they have become known.
    pub fn call_path(&self, site: SiteId) -> (Arc<Stack>, Api) {
        self.stacks.call_path(site)
    }
}
