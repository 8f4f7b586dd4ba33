//! Accounts of pairs of somebody (a process, a thread) and a site.
//!
//! Sites are summed over processes and threads; who wants them apart keeps these beside.

use std::hash::Hash;

use rustc_hash::FxHashMap;

use super::account::Account;
use super::stacks::SiteId;

/// An account for each pair that has changed, up to a limit.
#[derive(Debug)]
pub(crate) struct PairAccounts<Who> {
    /// Where the account of a pair is; those beyond the limit have nobody.
    places: FxHashMap<(Option<Who>, SiteId), usize>,
    accounts: Vec<Account>,
    limit: usize,
    beyond_limit: u64,
}

impl<Who: Copy + Eq + Hash + Ord> PairAccounts<Who> {
    /// Room for `limit` pairs.
    pub(crate) fn new(limit: usize) -> Self {
        PairAccounts { places: FxHashMap::default(), accounts: Vec::new(), limit, beyond_limit: 0 }
    }

    /// How many pairs have room.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// The account of a pair, or that of nobody and the site if there is no room for it.
    pub(crate) fn account_mut(&mut self, who: Who, site: SiteId) -> &mut Account {
        let key = (Some(who), site);
        let has_room = self.places.len() < self.limit || self.places.contains_key(&key);
        let key = if has_room { key } else { (None, site) };
        self.beyond_limit += u64::from(!has_room);
        let place = *self.places.entry(key).or_insert(self.accounts.len());
        if place == self.accounts.len() {
            self.accounts.push(Account::default());
        }
        &mut self.accounts[place]
    }

    /// Changes of pairs that found no room.
    pub(crate) fn beyond_limit(&self) -> u64 {
        self.beyond_limit
    }

    /// Every pair that has changed, in their order, nobody's first.
    pub(crate) fn all(&self) -> Vec<(Option<Who>, SiteId, &Account)> {
        let pairs = self.places.iter();
        let mut all: Vec<_> =
            pairs.map(|(&(who, site), &place)| (who, site, &self.accounts[place])).collect();
        all.sort_unstable_by_key(|&(who, site, _)| (who, site));
        all
    }
}
