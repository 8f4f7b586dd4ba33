//! What each thread did at each site, for exports that show threads apart.
//!
//! The pipeline sums sites over threads. Whoever wants both watches the postings.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use super::call_paths::CallPaths;
use super::frames::Names;
use super::ranking::{SortKey, SymbolizedUsage, sort_stacks};
use crate::pipeline::snapshot::Snapshot;
use crate::pipeline::{Account, Pipeline, Posting, SiteId};
use crate::record::{Pid, Record, Tid};

/// The most pairs of a thread and a site: 100 MB.
const PAIRS: usize = 1 << 20;

/// Who has the pairs beyond the limit: no program has process 0.
const BEYOND: (Pid, Tid) = (Pid(0), Tid(0));

/// The usage of each thread at each site: of the thread that allocated, whoever frees.
///
/// Copies that `fork` made are those of the thread whose block was copied. Threads with the same
/// ids, one after the other, are one; those of process and thread 0 are beyond the limit.
#[derive(Default)]
pub struct ByThread {
    call_paths: CallPaths,
    /// Where the account of a pair is.
    places: FxHashMap<((Pid, Tid), SiteId), usize>,
    accounts: Vec<Account>,
    temporary_allocations: u64,
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
            let key = (pipeline.thread_id(posting.thread), posting.site);
            let has_room = self.places.len() < PAIRS || self.places.contains_key(&key);
            let key = if has_room { key } else { (BEYOND, posting.site) };
            let place = *self.places.entry(key).or_insert(self.accounts.len());
            if place == self.accounts.len() {
                self.accounts.push(Account::default());
            }
            let account = &mut self.accounts[place];
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
        let mut pairs: Vec<_> = self.places.into_iter().collect();
        // Equal sessions give equal files.
        pairs.sort_unstable_by_key(|(key, _)| *key);
        let mut apart: BTreeMap<(Pid, Tid), Vec<SymbolizedUsage>> = BTreeMap::new();
        for ((thread, site), place) in pairs {
            let usage = self.accounts[place].usage_without_peak();
            let (stack, api) = &sites[site.index()];
            let stack = names.symbolize(&snapshot.images, stack);
            let stacks = apart.entry(thread).or_default();
            stacks.push(SymbolizedUsage { stack, api: *api, usage });
        }
        for stacks in apart.values_mut() {
            sort_stacks(stacks, SortKey::Live);
        }
        apart
    }
}
