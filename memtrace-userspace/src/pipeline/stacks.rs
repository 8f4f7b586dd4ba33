//! The ids under which the kernel speaks of call paths, and what was charged to these.
//!
//! In: the frames behind a stack id, at any time: before the events that name the id, after
//! them, again, or never. Out: the [`SiteId`] of a call path and an API, to which memory is
//! charged.
//!
//! ```text
//!   WireStackId 17 ─┐
//!   WireStackId 18 ─┴→ stack 2 (known)   ─┬→ site 0: malloc
//!                                         └→ site 3: calloc
//!   WireStackId 19 ──→ stack 3 (awaited) ──→ site 4: malloc, shown as the site of stack 0
//! ```
//!
//! When the frames of id 19 arrive and are those of stack 2, site 4 stays where blocks refer to
//! it and is shown as site 0 from then on. Stacks that never arrive are shown as one without
//! frames, ended by [`memtrace_common::unwind::End::Missing`].

use std::collections::HashMap;
use std::sync::Arc;

use memtrace_common::event::Api;

use super::account::{Account, Epoch, add_usage};
use super::call_paths::{CallPaths, StackId};
use super::limits::Limits;
use super::operations::OperationId;
use super::snapshot::{Stack, StackUsage, Usage};
use super::wire_ids::WireIds;
use crate::hash::Seed;
use crate::record::{Alignment, WireStackId};

/// A call path and an API. Default: the first one made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct SiteId(u32);

impl SiteId {
    /// Its number: they are counted from 0 as they appear.
    #[inline(always)]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A call path, an API and an alignment.
#[derive(Debug)]
struct Site {
    stack: StackId,
    api: Api,
    alignment: Alignment,
    /// What it is part of, if its frames were known when it was first charged.
    operation: Option<OperationId>,
    /// Itself, or the site whose numbers include these.
    shown_as: SiteId,
}

/// A site that asks for an alignment.
#[derive(Clone, Copy, Debug)]
struct AlignedSite {
    api: Api,
    alignment: Alignment,
    site: SiteId,
}

/// What a stack id of the kernel means.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meaning {
    stack: StackId,
    /// The API, alignment and site asked for last; most stacks have one only.
    recent: Option<(Api, Alignment, SiteId)>,
}

/// All stacks of a session.
#[derive(Debug)]
pub(super) struct Stacks {
    /// The call paths themselves.
    pub(super) paths: CallPaths,
    wire_ids: WireIds,
    sites: Vec<Site>,
    /// What was charged to each site.
    accounts: Vec<Account>,
    site_ids: HashMap<(StackId, Api), SiteId, Seed>,
    /// The sites that ask for an alignment. Each is shown as the one of its stack and API.
    aligned: HashMap<StackId, Vec<AlignedSite>, Seed>,
    aligned_sites: usize,
    aligned_limit: usize,
    aligned_beyond_limit: u64,
    has_custom_sites: bool,
    has_operations: bool,
    seed: Seed,
}

impl Stacks {
    pub(super) fn new(limits: &Limits, seed: Seed) -> Stacks {
        Stacks {
            paths: CallPaths::new(limits, seed),
            wire_ids: WireIds::new(limits.stack_ids, seed),
            sites: Vec::new(),
            accounts: Vec::new(),
            site_ids: HashMap::with_hasher(seed),
            aligned: HashMap::with_hasher(seed),
            aligned_sites: 0,
            aligned_limit: limits.aligned_sites,
            aligned_beyond_limit: 0,
            has_custom_sites: false,
            has_operations: false,
            seed,
        }
    }

    /// The site of a stack id, an API and an alignment.
    #[inline]
    pub(super) fn site(&mut self, wire: WireStackId, api: Api, alignment: Alignment) -> SiteId {
        if let Some(meaning) = self.wire_ids.get(wire)
            && let Some((recent, recent_alignment, site)) = meaning.recent
            && (recent, recent_alignment) == (api, alignment)
        {
            return site;
        }
        self.find_site(wire, api, alignment)
    }

    fn find_site(&mut self, wire: WireStackId, api: Api, alignment: Alignment) -> SiteId {
        if wire == WireStackId(0) {
            return self.aligned_site_of(StackId::NONE, api, alignment);
        }
        let stack = match self.wire_ids.get(wire) {
            Some(meaning) => meaning.stack,
            None => self.paths.await_frames(),
        };
        let site = self.aligned_site_of(stack, api, alignment);
        self.wire_ids.set(wire, Meaning { stack, recent: Some((api, alignment, site)) });
        site
    }

    /// The site of a stack, an API and an alignment; the one without it, if there is no room.
    fn aligned_site_of(&mut self, stack: StackId, api: Api, alignment: Alignment) -> SiteId {
        let plain = self.site_of(stack, api);
        if alignment == Alignment::NONE {
            return plain;
        }
        let sites = self.aligned.get(&stack).map(Vec::as_slice).unwrap_or_default();
        if let Some(known) =
            sites.iter().find(|site| (site.api, site.alignment) == (api, alignment))
        {
            return known.site;
        }
        if self.aligned_sites >= self.aligned_limit {
            self.aligned_beyond_limit += 1;
            return plain;
        }
        self.aligned_sites += 1;
        let Site { shown_as, operation, .. } = self.sites[plain.0 as usize];
        // Fits: there are at most half of u32::MAX plain ones, and the limit is far below that.
        let site = SiteId(self.sites.len() as u32);
        self.sites.push(Site { stack, api, alignment, operation, shown_as });
        self.accounts.push(Account::default());
        self.aligned.entry(stack).or_default().push(AlignedSite { api, alignment, site });
        site
    }

    fn site_of(&mut self, stack: StackId, api: Api) -> SiteId {
        if let Some(&site) = self.site_ids.get(&(stack, api)) {
            return site;
        }
        self.has_custom_sites |= matches!(api, Api::CustomAlloc | Api::CustomRealloc);
        let is_awaited = self.paths.is_awaited(stack);
        let shown_as = is_awaited.then(|| self.site_of(StackId::MISSING, api));
        let operation = self.paths.operation(stack);
        self.has_operations |= operation.is_some();
        // Fits: there are at most u32::MAX / APIs stacks.
        let id = SiteId(self.sites.len() as u32);
        let shown_as = shown_as.unwrap_or(id);
        let alignment = Alignment::NONE;
        self.sites.push(Site { stack, api, alignment, operation, shown_as });
        self.accounts.push(Account::default());
        self.site_ids.insert((stack, api), id);
        id
    }

    /// Every site, in the order of their numbers.
    pub(super) fn sites(&self) -> impl Iterator<Item = SiteId> {
        (0..self.sites.len() as u32).map(SiteId)
    }

    /// The account of a site.
    #[inline(always)]
    pub(super) fn account_mut(&mut self, site: SiteId) -> &mut Account {
        &mut self.accounts[site.0 as usize]
    }

    /// The account of a site.
    #[inline(always)]
    pub(super) fn account(&self, site: SiteId) -> &Account {
        &self.accounts[site.0 as usize]
    }

    /// The site with which a site is shown.
    pub(super) fn shown_as(&self, site: SiteId) -> SiteId {
        self.sites[site.0 as usize].shown_as
    }

    /// The API of a site.
    pub(super) fn api(&self, site: SiteId) -> Api {
        self.sites[site.0 as usize].api
    }

    /// To what a site asks its blocks to be aligned.
    #[inline(always)]
    pub(super) fn alignment(&self, site: SiteId) -> Alignment {
        // Most programs ask for none, and then this costs nothing.
        if self.aligned_sites == 0 {
            Alignment::NONE
        } else {
            self.sites[site.0 as usize].alignment
        }
    }

    /// Whether any site is part of an operation.
    #[inline(always)]
    pub(super) fn has_operations(&self) -> bool {
        self.has_operations
    }

    /// The operation whose growth a site is part of.
    #[inline(always)]
    pub(super) fn operation(&self, site: SiteId) -> Option<OperationId> {
        // Most sessions have none, and then this costs nothing.
        if self.has_operations { self.sites[site.0 as usize].operation } else { None }
    }

    /// The operation that a site is shown with.
    pub(super) fn shown_operation(&self, site: SiteId) -> Option<OperationId> {
        self.sites[self.shown_as(site).0 as usize].operation
    }

    /// Whether any site asks for an alignment.
    pub(super) fn has_aligned_sites(&self) -> bool {
        self.aligned_sites > 0
    }

    /// Whether blocks come from functions that the user has named.
    pub(super) fn has_custom_sites(&self) -> bool {
        self.has_custom_sites
    }

    /// The call path that a site is shown with.
    pub(super) fn shown_stack(&self, site: SiteId) -> Arc<Stack> {
        self.call_path(site).0
    }

    /// The call path that stands for all whose frames are not known.
    fn missing(&self) -> Arc<Stack> {
        Arc::clone(self.paths.known(StackId::MISSING).expect("it is known from the start"))
    }

    /// The site that an allocation with this stack is probably charged to.
    ///
    /// For loading it into the cache, as [`Stacks::likely_account`] does.
    #[inline(always)]
    pub(super) fn likely_site(&self, wire: WireStackId) -> SiteId {
        let recent = self.wire_ids.peek(wire).and_then(|meaning| meaning.recent);
        recent.map_or(SiteId::default(), |(_, _, site)| site)
    }

    /// The account of a site that may not be there.
    #[inline(always)]
    pub(super) fn likely_account(&self, site: SiteId) -> Option<&Account> {
        self.accounts.get(site.0 as usize)
    }

    /// Learns what `wire` stands for, from now on and since it was first named, and to which
    /// operation that belongs.
    ///
    /// A second record for an id is believed: earlier events keep the earlier frames.
    pub(super) fn define(
        &mut self,
        wire: WireStackId,
        stack: Stack,
        operation: Option<OperationId>,
    ) {
        let stack = match self.wire_ids.get(wire) {
            Some(Meaning { stack: id, .. }) if self.paths.is_awaited(id) => {
                self.arrive(id, stack, operation)
            }
            _ => self.paths.intern(stack, operation),
        };
        self.wire_ids.set(wire, Meaning { stack, recent: None });
    }

    /// Gives an awaited stack its frames; returns the stack with these frames.
    fn arrive(&mut self, id: StackId, stack: Stack, operation: Option<OperationId>) -> StackId {
        let Some(known) = self.paths.arrive(id, stack, operation) else { return id };
        for &api in Api::ALL {
            if let Some(&site) = self.site_ids.get(&(id, api)) {
                let shown_as = if known == id { site } else { self.site_of(known, api) };
                self.sites[site.0 as usize].shown_as = shown_as;
            }
        }
        for aligned in self.aligned.get(&id).map(Vec::as_slice).unwrap_or_default() {
            let plain = self.site_ids[&(id, aligned.api)];
            self.sites[aligned.site.0 as usize].shown_as = self.sites[plain.0 as usize].shown_as;
        }
        known
    }

    /// What was charged to each call path and API. `epoch_of` gives the peak that counts.
    pub(super) fn usage(&self, epoch_of: impl Fn(Api) -> Epoch) -> Vec<StackUsage> {
        let usage = |site: SiteId| {
            let account = &self.accounts[site.0 as usize];
            account.usage(epoch_of(self.sites[site.0 as usize].api))
        };
        // Few sites are shown as another one.
        let mut others: HashMap<SiteId, Usage, Seed> = HashMap::with_hasher(self.seed);
        let mut own = Vec::with_capacity(self.sites.len());
        for (id, site) in (0..).map(SiteId).zip(&self.sites) {
            if site.shown_as == id {
                own.push((id, site));
            } else {
                add_usage(others.entry(site.shown_as).or_default(), &usage(id));
            }
        }
        let mut stacks = Vec::with_capacity(own.len());
        for (id, site) in own {
            let mut usage = usage(id);
            if let Some(others) = others.get(&id) {
                add_usage(&mut usage, others);
            }
            // What is shown as itself has frames, or stands for all that have none.
            if usage != Usage::default()
                && let Some(stack) = self.paths.known(site.stack)
            {
                stacks.push(StackUsage { stack: Arc::clone(stack), api: site.api, usage });
            }
        }
        stacks
    }

    /// Every id in use and the stack that it means, in order.
    pub(super) fn ids(&self) -> Vec<(WireStackId, StackId)> {
        let mut ids: Vec<_> =
            self.wire_ids.all().map(|(id, meaning)| (id, meaning.stack)).collect();
        ids.sort_unstable();
        ids
    }

    /// The stack of a site, as it is shown.
    pub(super) fn stack_of(&self, site: SiteId) -> StackId {
        let Site { stack, shown_as, .. } = self.sites[site.0 as usize];
        if self.paths.is_duplicate(stack) { self.sites[shown_as.0 as usize].stack } else { stack }
    }

    /// The API and the call path of a site; without the latter while its frames are awaited.
    pub(super) fn known_call_path(&self, site: SiteId) -> (Api, Option<&Arc<Stack>>) {
        let site = &self.sites[site.0 as usize];
        let shown = &self.sites[site.shown_as.0 as usize];
        // What is awaited is shown as the stack that stands for all missing ones.
        (site.api, self.paths.known(shown.stack).filter(|_| shown.stack != StackId::MISSING))
    }

    /// The call path and API of a site; those that stand for all unknown ones, if it is unknown.
    pub(super) fn call_path(&self, site: SiteId) -> (Arc<Stack>, Api) {
        let (api, stack) = self.known_call_path(site);
        (stack.map_or_else(|| self.missing(), Arc::clone), api)
    }

    /// Times a call path with another alignment found no room.
    pub(super) fn aligned_beyond_limit(&self) -> u64 {
        self.aligned_beyond_limit
    }

    /// Stack ids forgotten because too many others came.
    pub(super) fn forgotten_ids(&self) -> u64 {
        self.wire_ids.forgotten()
    }
}
