//! What each process did at each site, for exports that show processes apart.
//!
//! The pipeline sums sites over processes. Whoever wants both watches the postings.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use super::call_paths::CallPaths;
use super::frames::Names;
use super::ranking::{SortKey, SymbolizedUsage, sort_stacks};
use crate::pipeline::snapshot::Snapshot;
use crate::pipeline::{Account, Pipeline, Posting, SiteId};
use crate::record::{Pid, Record};

/// The most pairs of a process and a site: 100 MB.
const PAIRS: usize = 1 << 20;

/// The usage of each process at each site.
///
/// Copies that `fork` made are the child's. Pairs beyond the limit are those of process 0, which no
/// program has.
#[derive(Default)]
pub struct ByProcess {
    call_paths: CallPaths,
    /// Where the account of a pair is.
    places: FxHashMap<(Pid, SiteId), usize>,
    accounts: Vec<Account>,
}

impl ByProcess {
    /// Takes in what a record changed.
    pub fn event(&mut self, record: &Record, postings: &[Posting], pipeline: &Pipeline) {
        self.call_paths.event(record, pipeline);
        for posting in postings {
            self.call_paths.meet(posting.site, pipeline);
            let key = (posting.pid, posting.site);
            let has_room = self.places.len() < PAIRS || self.places.contains_key(&key);
            let key = if has_room { key } else { (Pid(0), posting.site) };
            let place = *self.places.entry(key).or_insert(self.accounts.len());
            if place == self.accounts.len() {
                self.accounts.push(Account::default());
            }
            self.accounts[place].post(posting);
        }
    }

    /// The stacks of each process, those that hold most first.
    pub fn finish(
        self,
        snapshot: &Snapshot,
        names: &mut Names,
    ) -> BTreeMap<Pid, Vec<SymbolizedUsage>> {
        let sites = self.call_paths.finish();
        let mut pairs: Vec<_> = self.places.into_iter().collect();
        // Equal sessions give equal files.
        pairs.sort_unstable_by_key(|(key, _)| *key);
        let mut processes: BTreeMap<Pid, Vec<SymbolizedUsage>> = BTreeMap::new();
        for ((pid, site), place) in pairs {
            let usage = self.accounts[place].usage_without_peak();
            let (stack, api) = &sites[site.index()];
            let stack = names.symbolize(&snapshot.images, stack);
            let stacks = processes.entry(pid).or_default();
            stacks.push(SymbolizedUsage { stack, api: *api, usage });
        }
        for stacks in processes.values_mut() {
            sort_stacks(stacks, SortKey::Live);
        }
        processes
    }
}
