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

mod aligned;
mod by_site;
mod held_memory;
mod histogram;
mod newest;
mod usable;

use std::collections::HashMap;
use std::sync::Arc;

use memtrace_common::event::Api;
use rustc_hash::FxHashMap;

pub use self::aligned::{AlignedBlocks, FUNDAMENTAL_ALIGNMENT_BYTES, SiteAligned};
pub use self::by_site::{
    ALLOCATIONS_TO_BE_SHOWN, FREES_BEFORE_LIFETIMES, Histograms, SiteHistograms,
};
use self::by_site::{Lifetimes, Sizes};
pub use self::held_memory::HeldMemory;
pub use self::histogram::{Bucket, Histogram};
pub use self::newest::MOST_BETWEEN;
pub(super) use self::newest::Newest;
pub use self::usable::Allocator;
pub(super) use self::usable::{Known, LiveBlocks};

use super::account::Account;
use super::live_set::Birth;
use super::snapshot::Stack;
use super::stacks::{SiteId, Stacks};
use super::{Limits, Pipeline};
use crate::hash::Seed;

/// A unit of lifetimes: what is freed within one lived for 0 of them.
pub const LIFETIME_UNIT_NS: u64 = Birth::UNIT_NS;

/// What the blocks of a session were like.
#[derive(Clone, Debug, Default)]
pub struct Statistics {
    /// How many allocations may lie between those of a temporary block and its release.
    pub temporary_between: usize,
    /// The sizes that were asked for, by API; those that were never called are absent.
    pub sizes: Vec<(Api, Histogram)>,
    /// How long released blocks lived, in [`LIFETIME_UNIT_NS`], and their bytes.
    pub lifetimes: Histogram,
    /// Sizes and lifetimes of the call paths with most allocations.
    pub histograms_by_site: Vec<SiteHistograms>,
    /// The blocks that were asked to be aligned, by call path and alignment.
    pub aligned: Vec<SiteAligned>,
    /// How blocks were reallocated, by the call path of `realloc`.
    pub reallocations: Vec<SiteReallocations>,
    /// Whose blocks they all are, if what can be used of them is computed.
    pub allocator: Option<Allocator>,
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
    sizes: Sizes,
    lifetimes: Lifetimes,
    aligned: HashMap<SiteId, AlignedBlocks, Seed>,
    reallocations: HashMap<SiteId, Reallocations, Seed>,
    reallocation_sites: usize,
    reallocations_beyond_limit: u64,
}

impl Collected {
    pub(super) fn new(limits: &Limits, seed: Seed) -> Collected {
        Collected {
            allocator: Known::Nothing,
            temporary_allocations: 0,
            sizes: Sizes::new(limits.histogram_sites),
            lifetimes: Lifetimes::new(limits.histogram_sites),
            aligned: HashMap::with_hasher(seed),
            reallocations: HashMap::with_hasher(seed),
            reallocation_sites: limits.reallocation_sites,
            reallocations_beyond_limit: 0,
        }
    }

    /// A block was allocated, and is in the account of its site.
    #[inline(always)]
    pub(super) fn allocated(&mut self, api: Api, site: SiteId, account: &Account, size_bytes: u64) {
        self.sizes.allocated(api, site, account, size_bytes);
    }

    /// A block was released, the `frees`th of its site.
    #[inline(always)]
    pub(super) fn released(&mut self, site: SiteId, frees: u64, age_units: u64, size_bytes: u64) {
        self.lifetimes.released(site, frees, age_units, size_bytes);
    }

    /// How many blocks of a site that lived about as long were released, if that is known.
    #[inline(always)]
    pub(super) fn released_so_far(&self, site: SiteId, age_units: u64) -> u64 {
        self.lifetimes.of(site).map_or(0, |lifetimes| lifetimes.count_like(age_units))
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
    pub(super) fn counters(&self) -> [(&'static str, u64); 3] {
        [
            ("lifetime_sites_beyond_limit", self.lifetimes.beyond_limit()),
            ("size_sites_beyond_limit", self.sizes.beyond_limit()),
            ("reallocations_beyond_limit", self.reallocations_beyond_limit),
        ]
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
    /// Whose blocks they all are, if every one of them can be computed.
    fn computed_allocator(&self) -> Option<Allocator> {
        let has_aligned_ones = self.stacks.has_aligned_sites();
        self.collected.allocator.allocator().filter(|allocator| match allocator {
            Allocator::Mimalloc if has_aligned_ones => false,
            _ => !self.stacks.has_custom_sites(),
        })
    }

    pub(super) fn statistics(&self) -> Statistics {
        let collected = &self.collected;
        let sizes = collected.sizes.sums(&self.stacks);
        let sizes = Api::ALL.iter().map(|api| (*api, &sizes[*api as usize]));
        let sizes = sizes.filter(|(_, sizes)| sizes.count() > 0);
        Statistics {
            temporary_between: self.limits.temporary_between.min(MOST_BETWEEN),
            sizes: sizes.map(|(api, sizes)| (api, sizes.clone())).collect(),
            lifetimes: collected.lifetimes.sum(),
            histograms_by_site: by_site::shown(
                &collected.sizes,
                &collected.lifetimes,
                &self.stacks,
                self.limits.histogram_sites,
            ),
            aligned: collected.aligned_by_site(&self.stacks, self.computed_allocator()),
            reallocations: collected.reallocations_by_site(&self.stacks),
            allocator: self.computed_allocator(),
        }
    }
}
