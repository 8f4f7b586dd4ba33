//! Sizes and lifetimes of the blocks of single call paths.
//!
//! Most call paths allocate a few blocks and never again; they get nothing of their own. One that
//! goes on gets two histograms, 1.5 KiB, as long as there is room. What counts there does not count
//! in the histograms of all, which the sum then completes.

use std::sync::Arc;

use memtrace_common::event::Api;
use rustc_hash::FxHashMap;

use super::Histogram;
use crate::pipeline::snapshot::Stack;
use crate::pipeline::stacks::{SiteId, Stacks};

/// So many blocks of a call path are allocated before histograms are kept of it.
pub const ALLOCATIONS_BEFORE_HISTOGRAMS: u64 = 64;

/// What the blocks of one call path and API were like, but for the first ones.
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
    /// How long released blocks lived, in [`LIFETIME_UNIT_NS`](super::LIFETIME_UNIT_NS).
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

/// The call paths that have histograms.
#[derive(Debug)]
pub(super) struct BySite {
    /// By the number of the site: one more than an index into `kept`, or 0.
    indices: Vec<u32>,
    kept: Vec<(SiteId, Histograms)>,
    limit: usize,
    beyond_limit: u64,
}

impl BySite {
    pub(super) fn new(limit: usize) -> BySite {
        BySite { indices: Vec::new(), kept: Vec::new(), limit, beyond_limit: 0 }
    }

    #[inline(always)]
    pub(super) fn get_mut(&mut self, site: SiteId) -> Option<&mut Histograms> {
        let index = *self.indices.get(site.index())? as usize;
        // An index of 0 becomes one beyond all.
        self.kept.get_mut(index.wrapping_sub(1)).map(|(_, histograms)| histograms)
    }

    /// Keeps histograms of a site from now on, if there is room.
    #[cold]
    pub(super) fn keep(&mut self, site: SiteId) {
        if self.kept.len() >= self.limit {
            self.beyond_limit += 1;
            return;
        }
        self.kept.push((site, Histograms::default()));
        if self.indices.len() <= site.index() {
            self.indices.resize(site.index() + 1, 0);
        }
        self.indices[site.index()] = self.kept.len() as u32;
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (SiteId, &Histograms)> {
        self.kept.iter().map(|(site, histograms)| (*site, histograms))
    }

    /// How many sites found no room.
    pub(super) fn beyond_limit(&self) -> u64 {
        self.beyond_limit
    }

    /// What there is, as it is shown.
    pub(super) fn shown(&self, stacks: &Stacks) -> Vec<SiteHistograms> {
        let mut shown: FxHashMap<SiteId, Histograms> = FxHashMap::default();
        for (site, histograms) in self.all() {
            shown.entry(stacks.shown_as(site)).or_default().merge(histograms);
        }
        let is_used = |histograms: &Histograms| {
            histograms.sizes.count() > 0 || histograms.lifetimes.count() > 0
        };
        let mut shown: Vec<_> =
            shown.into_iter().filter(|(_, histograms)| is_used(histograms)).collect();
        shown.sort_by_key(|(site, _)| *site);
        let site = |(site, histograms)| SiteHistograms {
            stack: stacks.shown_stack(site),
            api: stacks.api(site),
            histograms,
        };
        shown.into_iter().map(site).collect()
    }
}
