//! What blocks are like: their sizes, how long they live, how they grow, how large they really are.
//!
//! In: blocks that are allocated, released and reallocated; samples of a process's memory. Out:
//! [`Statistics`] and [`HeldMemory`]. An event costs a few additions in tables that stay in the
//! cache; nothing is kept per block.
//!
//! ```text
//!   lifetime     free − birth; realloc goes on with the life of the block that it takes
//!   temporary    freed by its own thread, with at most N allocations of the thread between
//!   usable       ≥ what was asked for: the allocator's size class, computed
//! ```

mod held_memory;
mod histogram;
mod newest;
mod usable;

use std::collections::HashMap;
use std::sync::Arc;

use memtrace_common::event::Api;
use rustc_hash::FxHashMap;

pub use self::held_memory::HeldMemory;
pub use self::histogram::{Bucket, Histogram};
pub use self::newest::MOST_BETWEEN;
pub(super) use self::newest::Newest;
pub use self::usable::{Allocator, Known};

use super::live_set::Birth;
use super::snapshot::Stack;
use super::stacks::{SiteId, Stacks};
use super::{Limits, Pipeline};
use crate::hash::Seed;

/// A unit of lifetimes: what is freed within one lived for 0 of them.
pub const LIFETIME_UNIT_NS: u64 = Birth::UNIT_NS;

/// So many blocks of a call path are released before lifetimes are kept of it.
pub const FREES_BEFORE_LIFETIMES: u64 = 64;

/// What the blocks of a session were like.
#[derive(Clone, Debug, Default)]
pub struct Statistics {
    /// How many allocations may lie between those of a temporary block and its release.
    pub temporary_between: usize,
    /// The sizes that were asked for, by API; those that were never called are absent.
    pub sizes: Vec<(Api, Histogram)>,
    /// How long released blocks lived, in [`LIFETIME_UNIT_NS`], and their bytes.
    pub lifetimes: Histogram,
    /// The same of call paths, after their first [`FREES_BEFORE_LIFETIMES`].
    pub lifetimes_by_site: Vec<SiteLifetimes>,
    /// How blocks were reallocated, by the call path of `realloc`.
    pub reallocations: Vec<SiteReallocations>,
    /// Whose blocks they are, as far as their usable size can be computed.
    pub allocator: Known,
}

/// Lifetimes of the blocks of one call path and API.
#[derive(Clone, Debug)]
pub struct SiteLifetimes {
    /// The call path.
    pub stack: Arc<Stack>,
    /// The API.
    pub api: Api,
    /// In [`LIFETIME_UNIT_NS`].
    pub lifetimes: Histogram,
}

/// Reallocations through one call path and API.
#[derive(Clone, Debug)]
pub struct SiteReallocations {
    /// The call path of `realloc`.
    pub stack: Arc<Stack>,
    /// The API.
    pub api: Api,
    /// What they did.
    pub reallocations: Reallocations,
}

/// What reallocations of known blocks did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reallocations {
    /// How many there were.
    pub calls: u64,
    /// Of these, those that gave memory elsewhere.
    pub moved: u64,
    /// What they copied at most: the smaller of both sizes.
    pub copied_bytes: u64,
    /// Those that asked for more than before.
    pub grown: u64,
    /// By how much, together.
    pub growth_bytes: u64,
    /// How large the blocks were before they grew, together.
    pub grown_from_bytes: u64,
}

impl Reallocations {
    /// Adds what others did. Sums wrap around, as those of accounts do.
    pub fn add(&mut self, more: &Reallocations) {
        let Reallocations { calls, moved, copied_bytes, grown, growth_bytes, grown_from_bytes } =
            self;
        *calls = calls.wrapping_add(more.calls);
        *moved = moved.wrapping_add(more.moved);
        *copied_bytes = copied_bytes.wrapping_add(more.copied_bytes);
        *grown = grown.wrapping_add(more.grown);
        *growth_bytes = growth_bytes.wrapping_add(more.growth_bytes);
        *grown_from_bytes = grown_from_bytes.wrapping_add(more.grown_from_bytes);
    }
}

/// Where `realloc` gave memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NewPlace {
    /// At the address of the block that it took.
    Same,
    /// Elsewhere.
    Other,
}

/// What is collected while records come.
#[derive(Debug)]
pub(super) struct Collected {
    pub(super) allocator: Known,
    pub(super) temporary_allocations: u64,
    /// By the number of the API.
    sizes: Box<[Histogram]>,
    lifetimes: Histogram,
    /// By the number of the site: one more than an index into `site_lifetimes`, or 0.
    lifetime_indices: Vec<u32>,
    site_lifetimes: Vec<(SiteId, Histogram)>,
    lifetime_sites: usize,
    lifetime_sites_beyond_limit: u64,
    reallocations: HashMap<SiteId, Reallocations, Seed>,
    reallocation_sites: usize,
    reallocations_beyond_limit: u64,
}

impl Collected {
    pub(super) fn new(limits: &Limits, seed: Seed) -> Collected {
        let apis = Api::ALL.iter().map(|api| *api as usize + 1).max().unwrap_or(0);
        Collected {
            allocator: Known::Nothing,
            temporary_allocations: 0,
            sizes: vec![Histogram::default(); apis].into(),
            lifetimes: Histogram::default(),
            lifetime_indices: Vec::new(),
            site_lifetimes: Vec::new(),
            lifetime_sites: limits.lifetime_sites,
            lifetime_sites_beyond_limit: 0,
            reallocations: HashMap::with_hasher(seed),
            reallocation_sites: limits.reallocation_sites,
            reallocations_beyond_limit: 0,
        }
    }

    #[inline(always)]
    pub(super) fn allocated(&mut self, api: Api, size_bytes: u64) {
        self.sizes[api as usize].add(size_bytes, size_bytes);
    }

    /// A block was released, the `frees`th of its site.
    #[inline(always)]
    pub(super) fn released(&mut self, site: SiteId, frees: u64, age_units: u64, size_bytes: u64) {
        self.lifetimes.add(age_units, size_bytes);
        match self.lifetime_indices.get(site.index()).copied() {
            Some(index @ 1..) => {
                self.site_lifetimes[index as usize - 1].1.add(age_units, size_bytes);
            }
            Some(0) | None if frees == FREES_BEFORE_LIFETIMES => self.keep_lifetimes(site),
            Some(0) | None => {}
        }
    }

    /// Keeps lifetimes of a site from now on, if there is room.
    #[cold]
    fn keep_lifetimes(&mut self, site: SiteId) {
        if self.site_lifetimes.len() >= self.lifetime_sites {
            self.lifetime_sites_beyond_limit += 1;
            return;
        }
        self.site_lifetimes.push((site, Histogram::default()));
        if self.lifetime_indices.len() <= site.index() {
            self.lifetime_indices.resize(site.index() + 1, 0);
        }
        self.lifetime_indices[site.index()] = self.site_lifetimes.len() as u32;
    }

    /// `realloc` has made a block of `old_bytes` one of `new_bytes`.
    pub(super) fn reallocated(
        &mut self,
        site: SiteId,
        old_bytes: u64,
        new_bytes: u64,
        place: NewPlace,
    ) {
        if self.reallocations.len() >= self.reallocation_sites
            && !self.reallocations.contains_key(&site)
        {
            self.reallocations_beyond_limit += 1;
            return;
        }
        let (moved, copied_bytes) = match place {
            NewPlace::Same => (0, 0),
            NewPlace::Other => (1, old_bytes.min(new_bytes)),
        };
        let growth_bytes = new_bytes.saturating_sub(old_bytes);
        let has_grown = growth_bytes > 0;
        self.reallocations.entry(site).or_default().add(&Reallocations {
            calls: 1,
            moved,
            copied_bytes,
            grown: u64::from(has_grown),
            growth_bytes,
            grown_from_bytes: if has_grown { old_bytes } else { 0 },
        });
    }

    /// What found no room, by name.
    pub(super) fn counters(&self) -> [(&'static str, u64); 2] {
        [
            ("lifetime_sites_beyond_limit", self.lifetime_sites_beyond_limit),
            ("reallocations_beyond_limit", self.reallocations_beyond_limit),
        ]
    }

    fn lifetimes_by_site(&self, stacks: &Stacks) -> Vec<SiteLifetimes> {
        let mut shown: FxHashMap<SiteId, Histogram> = FxHashMap::default();
        for (site, lifetimes) in &self.site_lifetimes {
            shown.entry(stacks.shown_as(*site)).or_default().merge(lifetimes);
        }
        let mut shown: Vec<_> =
            shown.into_iter().filter(|(_, lifetimes)| lifetimes.count() > 0).collect();
        shown.sort_by_key(|(site, _)| *site);
        let site = |(site, lifetimes)| SiteLifetimes {
            stack: stacks.shown_stack(site),
            api: stacks.api(site),
            lifetimes,
        };
        shown.into_iter().map(site).collect()
    }

    fn reallocations_by_site(&self, stacks: &Stacks) -> Vec<SiteReallocations> {
        let mut shown: FxHashMap<SiteId, Reallocations> = FxHashMap::default();
        for (site, reallocations) in &self.reallocations {
            shown.entry(stacks.shown_as(*site)).or_default().add(reallocations);
        }
        let mut shown: Vec<_> = shown.into_iter().collect();
        shown.sort_by_key(|(site, _)| *site);
        let site = |(site, reallocations)| SiteReallocations {
            stack: stacks.shown_stack(site),
            api: stacks.api(site),
            reallocations,
        };
        shown.into_iter().map(site).collect()
    }
}

impl Pipeline {
    pub(super) fn statistics(&self) -> Statistics {
        let collected = &self.collected;
        let sizes = Api::ALL.iter().map(|api| (*api, &collected.sizes[*api as usize]));
        let sizes = sizes.filter(|(_, sizes)| sizes.count() > 0);
        Statistics {
            temporary_between: self.limits.temporary_between.min(MOST_BETWEEN),
            sizes: sizes.map(|(api, sizes)| (api, sizes.clone())).collect(),
            lifetimes: collected.lifetimes.clone(),
            lifetimes_by_site: collected.lifetimes_by_site(&self.stacks),
            reallocations: collected.reallocations_by_site(&self.stacks),
            allocator: collected.allocator,
        }
    }
}
