//! What each thread did at each site, for exports that show threads apart.
//!
//! The pipeline sums sites over threads. Whoever wants both watches the postings.

use std::collections::BTreeMap;

use super::call_paths::CallPaths;
use super::frames::Names;
use super::ranking::{SortKey, SymbolizedUsage, sort_stacks};
use crate::pipeline::snapshot::Snapshot;
use crate::pipeline::{PairAccounts, Pipeline, Posting};
use crate::record::{Pid, Record, Tid};

/// The most pairs of a thread and a site: 100 MB.
const PAIRS: usize = 1 << 20;

/// Who has the pairs beyond the limit: no program has process 0.
const BEYOND: (Pid, Tid) = (Pid(0), Tid(0));

/// The usage of each thread at each site: of the thread that allocated, whoever frees.
///
/// Copies that `fork` made are those of the thread whose block was copied. Threads with the same
/// ids, one after the other, are one; those of process and thread 0 are beyond the limit.
pub struct ByThread {
    call_paths: CallPaths,
    pairs: PairAccounts<(Pid, Tid)>,
    temporary_allocations: u64,
}

impl Default for ByThread {
    fn default() -> ByThread {
        let (call_paths, pairs) = (CallPaths::default(), PairAccounts::new(PAIRS));
        ByThread { call_paths, pairs, temporary_allocations: 0 }
    }
}

impl ByThread {
    /// Takes in what a record changed.
    pub fn event(&mut self, record: &Record, postings: &[Posting], pipeline: &Pipeline) {
        self.call_paths.event(record, pipeline);
        let temporary = pipeline.temporary_allocations();
        let is_temporary =
            temporary != std::mem::replace(&mut self.temporary_allocations, temporary);
        for posting in postings {
            self.call_paths.meet(posting.site, pipeline);
            let thread = pipeline.thread_id(posting.thread);
            let account = self.pairs.account_mut(thread, posting.site);
            account.post(posting);
            if is_temporary {
                // Only a free finds out that its block was, and a free is one posting.
                account.note_temporary();
            }
        }
    }

    /// The stacks of each, those that hold most first.
    pub fn finish(
        self,
        snapshot: &Snapshot,
        names: &mut Names,
    ) -> BTreeMap<(Pid, Tid), Vec<SymbolizedUsage>> {
        let sites = self.call_paths.finish();
        let mut apart: BTreeMap<(Pid, Tid), Vec<SymbolizedUsage>> = BTreeMap::new();
        for (thread, site, account) in self.pairs.all() {
            let usage = account.usage_without_peak();
            let (stack, api) = &sites[site.index()];
            let stack = names.symbolize(&snapshot.images, stack);
            let stacks = apart.entry(thread.unwrap_or(BEYOND)).or_default();
            stacks.push(SymbolizedUsage { stack, api: *api, usage });
        }
        for stacks in apart.values_mut() {
            sort_stacks(stacks, SortKey::Live);
        }
        apart
    }
}
