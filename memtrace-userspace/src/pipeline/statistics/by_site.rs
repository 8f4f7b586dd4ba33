//! Sizes and lifetimes of the blocks of single call paths.
//!
//! Most call paths ask for sizes of one order of magnitude only. Then their accounts say how many of
//! it there were, and one byte has to be kept: which. A histogram is made of what an account has
//! gained when the next size is of another order:
//!
//! ```text
//!   sizes        40   48   50  100   40
//!   order         6    6    6    7    6
//!   account     1/40 2/88 3/138 …                       allocations / bytes
//!   histogram                   6: 3/138   7: 1/100     made at 100, and at the last 40
//! ```
//!
//! Lifetimes are kept of a call path from its 65th release on. All this is for as many call paths as
//! there is room for; what of the others is not in accounts counts in sums of all.

use std::cmp::Reverse;
use std::sync::Arc;

use memtrace_common::event::Api;
use rustc_hash::FxHashMap;

use super::Histogram;
use crate::pipeline::account::Account;
use crate::pipeline::snapshot::Stack;
use crate::pipeline::stacks::{SiteId, Stacks};

/// So many blocks of a call path are released before lifetimes are kept of it.
pub const FREES_BEFORE_LIFETIMES: u64 = 64;

/// Call paths with fewer allocations are not shown.
pub const ALLOCATIONS_TO_BE_SHOWN: u64 = 64;

/// What the blocks of one call path and API were like.
#[derive(Clone, Debug)]
pub struct SiteHistograms {
    /// The call path.
    pub stack: Arc<Stack>,
    /// The API.
    pub api: Api,
    /// What they were like.
    pub histograms: Histograms,
}

/// Sizes and lifetimes.
#[derive(Clone, Debug, Default)]
pub struct Histograms {
    /// The sizes that were asked for.
    pub sizes: Histogram,
    /// How long released blocks lived, in [`LIFETIME_UNIT_NS`](super::LIFETIME_UNIT_NS), but for the
    /// first [`FREES_BEFORE_LIFETIMES`].
    pub lifetimes: Histogram,
}

impl Histograms {
    /// Adds what others have counted.
    pub fn merge(&mut self, other: &Histograms) {
        let Histograms { sizes, lifetimes } = self;
        sizes.merge(&other.sizes);
        lifetimes.merge(&other.lifetimes);
    }
}

/// What was allocated by then, as accounts say it.
#[derive(Clone, Copy, Debug, Default)]
struct Allocated {
    allocations: u64,
    bytes: u64,
}

impl Allocated {
    fn of(account: &Account) -> Allocated {
        Allocated { allocations: account.allocations(), bytes: account.allocated_bytes() }
    }

    fn since(self, before: Allocated) -> Allocated {
        Allocated {
            allocations: self.allocations.wrapping_sub(before.allocations),
            bytes: self.bytes.wrapping_sub(before.bytes),
        }
    }
}

/// Sizes by call path.
#[derive(Debug)]
pub(super) struct Sizes {
    /// By the number of the site: one more than the bucket of its last size, 0 without any,
    /// [`Sizes::NO_ROOM`].
    last: Vec<u8>,
    /// Of sites that have asked for sizes of several buckets, what came before the last ones.
    mixed: FxHashMap<SiteId, Mixed>,
    limit: usize,
    /// Of those that found no room, by the number of the API.
    rest: Box<[Histogram]>,
    beyond_limit: u64,
}

#[derive(Debug, Default)]
struct Mixed {
    before: Allocated,
    sizes: Histogram,
}

impl Sizes {
    const NO_ROOM: u8 = u8::MAX;

    pub(super) fn new(limit: usize) -> Sizes {
        let apis = Api::ALL.iter().map(|api| *api as usize + 1).max().unwrap_or(0);
        Sizes {
            last: Vec::new(),
            mixed: FxHashMap::default(),
            limit,
            rest: vec![Histogram::default(); apis].into(),
            beyond_limit: 0,
        }
    }

    /// A block was allocated, and is in the account.
    #[inline(always)]
    pub(super) fn allocated(&mut self, api: Api, site: SiteId, account: &Account, size_bytes: u64) {
        let bucket = Histogram::bucket_of(size_bytes) as u8 + 1;
        if self.last.get(site.index()) != Some(&bucket) {
            self.changed(api, site, account, size_bytes, bucket);
        }
    }

    #[inline(never)]
    fn changed(&mut self, api: Api, site: SiteId, account: &Account, size_bytes: u64, bucket: u8) {
        if self.last.len() <= site.index() {
            self.last.resize(site.index() + 1, 0);
        }
        let last = &mut self.last[site.index()];
        let now = Allocated::of(account).since(Allocated { allocations: 1, bytes: size_bytes });
        match *last {
            0 => *last = bucket,
            Sizes::NO_ROOM => self.rest[api as usize].add(size_bytes, size_bytes),
            of_last => {
                if self.mixed.len() >= self.limit && !self.mixed.contains_key(&site) {
                    self.beyond_limit += 1;
                    *last = Sizes::NO_ROOM;
                    let rest = &mut self.rest[api as usize];
                    rest.add_many(usize::from(of_last - 1), now.allocations, now.bytes);
                    rest.add(size_bytes, size_bytes);
                    return;
                }
                *last = bucket;
                let mixed = self.mixed.entry(site).or_default();
                let new = now.since(mixed.before);
                mixed.before = now;
                mixed.sizes.add_many(usize::from(of_last - 1), new.allocations, new.bytes);
            }
        }
    }

    /// The sizes of a site; `None` if they are not known.
    fn of(&self, site: SiteId, account: &Account) -> Option<Histogram> {
        let last = match self.last.get(site.index()).copied() {
            None | Some(0 | Sizes::NO_ROOM) => return None,
            Some(last) => usize::from(last - 1),
        };
        let mixed = self.mixed.get(&site);
        let new = Allocated::of(account).since(mixed.map_or(Allocated::default(), |m| m.before));
        let mut sizes = mixed.map_or(Histogram::default(), |mixed| mixed.sizes.clone());
        sizes.add_many(last, new.allocations, new.bytes);
        Some(sizes)
    }

    /// The sizes of all, by the number of the API.
    pub(super) fn sums(&self, stacks: &Stacks) -> Box<[Histogram]> {
        let mut sums = self.rest.clone();
        for (site, last) in stacks.sites().zip(&self.last) {
            if !matches!(*last, 0 | Sizes::NO_ROOM) {
                let mixed = self.mixed.get(&site);
                let before = mixed.map_or(Allocated::default(), |mixed| mixed.before);
                let new = Allocated::of(stacks.account(site)).since(before);
                let sum = &mut sums[stacks.api(site) as usize];
                sum.add_many(usize::from(last - 1), new.allocations, new.bytes);
                mixed.iter().for_each(|mixed| sum.merge(&mixed.sizes));
            }
        }
        sums
    }

    /// How many sites found no room.
    pub(super) fn beyond_limit(&self) -> u64 {
        self.beyond_limit
    }
}

/// Lifetimes by call path.
#[derive(Debug)]
pub(super) struct Lifetimes {
    /// By the number of the site: one more than an index into `kept`, or 0.
    indices: Vec<u32>,
    kept: Vec<Histogram>,
    /// Of all others.
    rest: Histogram,
    limit: usize,
    beyond_limit: u64,
}

impl Lifetimes {
    pub(super) fn new(limit: usize) -> Lifetimes {
        let (indices, kept) = (Vec::new(), Vec::new());
        Lifetimes { indices, kept, rest: Histogram::default(), limit, beyond_limit: 0 }
    }

    /// Where in `kept` those of a site are; beyond all if there are none.
    #[inline(always)]
    fn index(&self, site: SiteId) -> usize {
        let index = self.indices.get(site.index()).map_or(0, |index| *index as usize);
        index.wrapping_sub(1)
    }

    /// Those of a site, if they are kept.
    #[inline(always)]
    pub(super) fn of(&self, site: SiteId) -> Option<&Histogram> {
        self.kept.get(self.index(site))
    }

    /// A block was released, the `frees`th of its site.
    #[inline(always)]
    pub(super) fn released(&mut self, site: SiteId, frees: u64, age_units: u64, size_bytes: u64) {
        let index = self.index(site);
        match self.kept.get_mut(index) {
            Some(lifetimes) => lifetimes.add(age_units, size_bytes),
            None => {
                self.rest.add(age_units, size_bytes);
                if frees == FREES_BEFORE_LIFETIMES {
                    self.keep(site);
                }
            }
        }
    }

    /// Keeps lifetimes of a site from now on, if there is room.
    #[cold]
    fn keep(&mut self, site: SiteId) {
        if self.kept.len() >= self.limit {
            self.beyond_limit += 1;
            return;
        }
        self.kept.push(Histogram::default());
        if self.indices.len() <= site.index() {
            self.indices.resize(site.index() + 1, 0);
        }
        self.indices[site.index()] = self.kept.len() as u32;
    }

    /// Those of all.
    pub(super) fn sum(&self) -> Histogram {
        let mut sum = self.rest.clone();
        self.kept.iter().for_each(|lifetimes| sum.merge(lifetimes));
        sum
    }

    /// How many sites found no room.
    pub(super) fn beyond_limit(&self) -> u64 {
        self.beyond_limit
    }
}

/// The histograms of call paths, as they are shown: of `most` of them, those that allocate most.
pub(super) fn shown(
    sizes: &Sizes,
    lifetimes: &Lifetimes,
    stacks: &Stacks,
    most: usize,
) -> Vec<SiteHistograms> {
    let mut busy: Vec<(Reverse<u64>, SiteId)> = stacks
        .sites()
        .map(|site| (Reverse(stacks.account(site).allocations()), site))
        .filter(|(allocations, _)| allocations.0 >= ALLOCATIONS_TO_BE_SHOWN)
        .collect();
    if busy.len() > most {
        busy.select_nth_unstable(most);
        busy.truncate(most);
    }
    let mut shown: FxHashMap<SiteId, Histograms> = FxHashMap::default();
    for (_, site) in busy {
        let Some(sizes) = sizes.of(site, stacks.account(site)) else { continue };
        let lifetimes = lifetimes.of(site).cloned().unwrap_or_default();
        let histograms = Histograms { sizes, lifetimes };
        shown.entry(stacks.shown_as(site)).or_default().merge(&histograms);
    }
    let mut shown: Vec<_> = shown.into_iter().collect();
    shown.sort_by_key(|(site, _)| *site);
    let site = |(site, histograms)| SiteHistograms {
        stack: stacks.shown_stack(site),
        api: stacks.api(site),
        histograms,
    };
    shown.into_iter().map(site).collect()
}
