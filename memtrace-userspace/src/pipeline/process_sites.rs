//! What each process did at each site, for views that show the functions of one process.
//!
//! In: the changes of the accounts of sites. Out: [`Usage`] by process and call path. Sites are
//! summed over processes otherwise; these accounts are kept only where
//! [`Limits::process_sites`](super::Limits::process_sites) gives them room.

use std::collections::BTreeMap;

use memtrace_common::event::Api;

use super::account::{Change, Epoch, add_usage};
use super::pair_accounts::PairAccounts;
use super::processes::EntryId;
use super::snapshot::{StackUsage, Usage};
use super::stacks::{SiteId, Stacks};
use crate::record::Pid;

/// Accounts of pairs of a process and a site.
#[derive(Debug)]
pub(super) struct ProcessSites {
    pairs: PairAccounts<EntryId>,
}

impl ProcessSites {
    /// Room for `limit` pairs; 0 if nobody wants them.
    pub(super) fn new(limit: usize) -> ProcessSites {
        ProcessSites { pairs: PairAccounts::new(limit) }
    }

    /// Changes the account of a pair, if somebody wants it.
    #[inline(always)]
    pub(super) fn apply(
        &mut self,
        (entry, site): (EntryId, SiteId),
        change: Change,
        (blocks, bytes): (u64, u64),
        epoch: Epoch,
    ) {
        if self.pairs.limit() > 0 {
            self.pairs.account_mut(entry, site).apply(change, blocks, bytes, epoch);
        }
    }

    /// A block of the pair that was released has turned out to be temporary.
    #[inline(always)]
    pub(super) fn note_temporary(&mut self, entry: EntryId, site: SiteId) {
        if self.pairs.limit() > 0 {
            self.pairs.account_mut(entry, site).note_temporary();
        }
    }

    /// Changes of pairs that found no room.
    pub(super) fn beyond_limit(&self) -> u64 {
        self.pairs.beyond_limit()
    }

    /// The call paths of each process; of those beyond the limit, as process 0, which no program has.
    pub(super) fn usage(
        &self,
        stacks: &Stacks,
        pid_of: impl Fn(EntryId) -> Pid,
        epoch_of: impl Fn(Api) -> Epoch,
    ) -> BTreeMap<Pid, Vec<StackUsage>> {
        // Sites that are shown as one are one here, too.
        let mut sums: BTreeMap<(Pid, SiteId), Usage> = BTreeMap::new();
        for (entry, site, account) in self.pairs.all() {
            let (api, _) = stacks.known_call_path(site);
            let usage = account.usage(epoch_of(api));
            let pid = entry.map_or(Pid(0), &pid_of);
            add_usage(sums.entry((pid, stacks.shown_as(site))).or_default(), &usage);
        }
        let mut processes: BTreeMap<Pid, Vec<StackUsage>> = BTreeMap::new();
        for ((pid, site), usage) in sums {
            if usage != Usage::default() {
                let (stack, api) = stacks.call_path(site);
                processes.entry(pid).or_default().push(StackUsage { stack, api, usage });
            }
        }
        processes
    }
}
