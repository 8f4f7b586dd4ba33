//! Records in groups, whose memory is loaded at once.
//!
//! Blocks, stacks and accounts are scattered over memory. What a few events need is read together
//! first, so that they wait for the memory once.

use std::hint::black_box;

use memtrace_common::addr::Avma;

use super::Pipeline;
use super::account::Account;
use super::live_set::LikelyBlock;
use super::stacks::SiteId;
use crate::batches::RECORDS_LOADED_TOGETHER;
use crate::record::{Record, Tid};

impl Pipeline {
    /// Takes in records, in order: faster than one by one when much is known.
    pub fn apply_all(&mut self, records: &[Record]) {
        for records in records.chunks(RECORDS_LOADED_TOGETHER) {
            self.load(records);
            for record in records {
                self.apply(record);
            }
        }
    }

    /// Reads what the records will change: one thing of all of them after the other, so that none
    /// waits for the memory of another.
    fn load(&self, records: &[Record]) {
        let mut released = [LikelyBlock::default(); RECORDS_LOADED_TOGETHER];
        let mut sites = [SiteId::default(); RECORDS_LOADED_TOGETHER];
        for ((record, released), site) in records.iter().zip(&mut released).zip(&mut sites) {
            match record {
                &Record::Alloc { tid, ptr, stack, .. } => {
                    *site = self.stacks.likely_site(stack);
                    // What lies there is of no interest: its place is.
                    black_box(self.likely_block(tid, ptr));
                }
                &Record::Free { tid, ptr, .. } | &Record::Retire { tid, ptr, .. } => {
                    *released = self.likely_block(tid, ptr);
                }
                _ => {}
            }
        }
        let account = |site| self.stacks.likely_account(site);
        let held_bytes = |site| account(site).map_or(0, Account::held_bytes);
        black_box(sites.map(held_bytes));
        black_box(released.map(|block| held_bytes(block.site)));
        black_box(released.map(|LikelyBlock { site, born }| {
            let temporary = account(site).map_or(0, Account::temporary_allocations);
            temporary ^ self.collected.released_so_far(site, born.age_units(self.now))
        }));
    }

    #[inline(always)]
    fn likely_block(&self, tid: Tid, ptr: Avma) -> LikelyBlock {
        let actor = self.threads.peek(tid);
        let block =
            actor.and_then(|actor| self.processes.running(actor.process).heap.likely_block(ptr));
        block.unwrap_or_default()
    }
}
