//! The address space of a process, as far as its calls have made it.
//!
//! In: ranges that are mapped and unmapped, or change between memory and mere address space. Out:
//! [`SiteChange`]s, what to charge to which site. A mapping dies piecemeal, so it is more than one
//! piece, and counts as freed with its last one:
//!
//! ```text
//!   map     |################|     1 allocation
//!   unmap        |#####|
//!   left    |####|     |#####|     2 pieces of it: live_blocks 1, frees 0
//! ```
//!
//! Address space without access (`PROT_NONE`) is a mapping that nobody is charged for. What becomes
//! accessible in it is a new one, charged to whoever asked for that; what becomes inaccessible again
//! is released:
//!
//! ```text
//!   map     |----------------|     PROT_NONE: no allocation
//!   commit    |####|  |##|         two calls, 2 allocations
//!   commit  |################|     1 allocation of what was left, in three pieces
//!   decommit   |----------|
//! ```
//!
//! `munmap` and `mremap` take their range on entry. What they took, [`Released`], is kept until
//! it is known whether the call has failed: then it comes back, but never over what was mapped
//! there meanwhile. Ranges are whole pages, as they are for the kernel.

mod ledger;
mod pages;

use std::collections::BTreeMap;

use memtrace_common::addr::Avma;

pub(super) use self::pages::Pages;

use self::ledger::Ledger;
use super::account::{Change, Claim, Posting};
use super::processes::Incarnation;
use super::stacks::SiteId;
use super::threads::ThreadId;
use crate::record::{Pid, Time};

/// How many pieces one call can release so that they can come back; a call that fails after it
/// has released more is all but unknown.
const MOST_CUTS: usize = 1024;

/// What a call changes for a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SiteChange {
    pub(super) site: SiteId,
    pub(super) thread: ThreadId,
    pub(super) change: Change,
    pub(super) blocks: u64,
    pub(super) bytes: u64,
}

impl SiteChange {
    /// The same, in a process.
    pub(super) fn of(self, pid: Pid) -> Posting {
        let SiteChange { site, thread, change, blocks, bytes } = self;
        Posting { pid, site, thread, change, blocks, bytes }
    }
}

/// What came of a call: what to charge, and what had to be left out for want of room.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) postings: Vec<SiteChange>,
    /// Pieces that were not kept.
    pub(super) left_out: u64,
}

/// What a `munmap` or `mremap` took.
#[derive(Debug)]
pub(super) struct Released {
    pages: Option<Pages>,
    cuts: Vec<Cut>,
    /// Whose memory it was.
    pub(super) incarnation: Incarnation,
}

impl Released {
    /// The start and length of the range that the call named; `None` if that was empty.
    pub(super) fn range(&self) -> Option<(Avma, u64)> {
        self.pages.map(|pages| (Avma(pages.start), pages.bytes()))
    }

    /// Whether it took a range where nothing was known.
    pub(super) fn is_orphan(&self) -> bool {
        self.pages.is_some() && self.cuts.is_empty()
    }
}

/// A part of a mapping that was taken out.
#[derive(Clone, Copy, Debug)]
struct Cut {
    pages: Pages,
    mapping: MappingId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct MappingId(u32);

/// Who mapped something, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    /// To whom it is charged.
    pub(super) site: SiteId,
    pub(super) thread: ThreadId,
    pub(super) born: Time,
}

/// What is left of a mapping, a piece of it each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LivePiece {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) origin: Origin,
}

/// What one call mapped, and what is left of it.
#[derive(Clone, Copy, Debug)]
struct Mapping {
    /// `None` for address space only.
    origin: Option<Origin>,
    claim: Claim,
    /// Pieces that are mapped.
    pieces: u32,
    /// Cuts in a [`Released`] that refer to it.
    cuts: u32,
}

/// What a piece is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holding {
    Memory,
    /// Address space only.
    Reserved,
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    end: u64,
    mapping: MappingId,
}

/// The mappings of one process.
#[derive(Clone, Debug, Default)]
pub(super) struct Mappings {
    /// By start; they do not overlap.
    pieces: BTreeMap<u64, Piece>,
    mappings: Vec<Mapping>,
    /// Those without pieces and cuts.
    vacant: Vec<MappingId>,
}

impl Mappings {
    /// How many pieces there are.
    pub(super) fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Whether nothing is mapped.
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Maps pages and charges them to `origin`; what they overlap is unmapped.
    ///
    /// `room` is how many pieces more there may be.
    pub(super) fn map(&mut self, pages: Pages, origin: Option<Origin>, room: usize) -> Outcome {
        let mut ledger = Ledger::new(self, room);
        let cuts = ledger.cut(pages);
        ledger.forget(&cuts);
        ledger.add(&[pages], origin, Claim::Own);
        ledger.outcome
    }

    /// Maps pages that are held by right of `claim`.
    pub(super) fn hold(
        &mut self,
        pages: Pages,
        origin: Option<Origin>,
        claim: Claim,
        room: usize,
    ) -> Outcome {
        let mut ledger = Ledger::new(self, room);
        let cuts = ledger.cut(pages);
        ledger.forget(&cuts);
        ledger.add(&[pages], origin, claim);
        ledger.outcome
    }

    /// Every piece: its start, its length, and where it comes from.
    pub(super) fn all(&self) -> impl Iterator<Item = (Avma, u64, Option<Origin>)> {
        self.pieces.iter().map(|(&start, piece)| {
            let origin = self.mappings[piece.mapping.0 as usize].origin;
            (Avma(start), piece.end - start, origin)
        })
    }

    /// What `released` may bring back, likewise.
    pub(super) fn cuts(
        &self,
        released: &Released,
    ) -> impl Iterator<Item = (Avma, u64, Option<Origin>)> {
        released.cuts.iter().map(|cut| {
            let origin = self.mappings[cut.mapping.0 as usize].origin;
            (Avma(cut.pages.start), cut.pages.bytes(), origin)
        })
    }

    /// Whether any of the pages are address space only.
    pub(super) fn has_reserved(&self, pages: Pages) -> bool {
        self.overlapping(pages, Holding::Reserved).next().is_some()
    }

    /// Makes one mapping of all pages that were address space only.
    pub(super) fn commit(&mut self, pages: Pages, origin: Origin, room: usize) -> Outcome {
        let reserved: Vec<Pages> = self.overlapping(pages, Holding::Reserved).collect();
        let mut ledger = Ledger::new(self, room);
        ledger.replace(&reserved, Some(origin));
        ledger.outcome
    }

    /// Makes address space of all pages that were memory.
    pub(super) fn decommit(&mut self, pages: Pages, room: usize) -> Outcome {
        let memory: Vec<Pages> = self.overlapping(pages, Holding::Memory).collect();
        let mut ledger = Ledger::new(self, room);
        ledger.replace(&memory, None);
        ledger.outcome
    }

    /// The parts of `pages` that hold such pieces, in ascending order.
    fn overlapping(&self, pages: Pages, holding: Holding) -> impl Iterator<Item = Pages> {
        let Pages { start, end } = pages;
        let before = self.pieces.range(..start).next_back().filter(|(_, piece)| piece.end > start);
        before.into_iter().chain(self.pieces.range(start..end)).filter_map(move |(&left, piece)| {
            let origin = self.mappings[piece.mapping.0 as usize].origin;
            let found = if origin.is_some() { Holding::Memory } else { Holding::Reserved };
            (found == holding).then(|| Pages { start: left.max(start), end: piece.end.min(end) })
        })
    }

    /// Unmaps pages for good.
    pub(super) fn unmap(&mut self, pages: Pages, room: usize) -> Outcome {
        let mut ledger = Ledger::new(self, room);
        let cuts = ledger.cut(pages);
        ledger.forget(&cuts);
        ledger.outcome
    }

    /// Unmaps pages, so that they can come back. To be given back, or to [`Mappings::forget`].
    pub(super) fn release(
        &mut self,
        pages: Option<Pages>,
        incarnation: Incarnation,
        room: usize,
    ) -> (Released, Outcome) {
        let mut ledger = Ledger::new(self, room);
        let mut cuts = pages.map(|pages| ledger.cut(pages)).unwrap_or_default();
        let beyond = cuts.split_off(cuts.len().min(MOST_CUTS));
        ledger.outcome.left_out += beyond.len() as u64;
        ledger.forget(&beyond);
        (Released { pages, cuts, incarnation }, ledger.outcome)
    }

    /// The call has succeeded: what it released never comes back.
    pub(super) fn forget(&mut self, released: &Released) {
        Ledger::new(self, 0).forget(&released.cuts);
    }

    /// The call has failed: maps again what it released, where nothing else is mapped now.
    pub(super) fn restore(&mut self, released: &Released, room: usize) -> Outcome {
        let mut ledger = Ledger::new(self, room);
        for cut in &released.cuts {
            for pages in ledger.gaps(cut.pages) {
                ledger.reclaim(pages, cut.mapping);
            }
        }
        ledger.forget(&released.cuts);
        ledger.outcome
    }

    /// Maps at `pages` what was released, in the same order; growth is charged to `growth`.
    ///
    /// `released` is `None` if the start of the call was lost: then all of it is growth. Growth
    /// of address space is address space.
    pub(super) fn remap(
        &mut self,
        released: Option<&Released>,
        pages: Pages,
        growth: Origin,
        room: usize,
    ) -> Outcome {
        let mut ledger = Ledger::new(self, room);
        let overlapped = ledger.cut(pages);
        ledger.forget(&overlapped);
        let old = released.and_then(|released| released.pages);
        let cuts = released.map_or(&[][..], |released| &released.cuts);
        for cut in cuts {
            if let Some(old) = old
                && let Some(moved) = move_cut(cut.pages, old, pages)
            {
                ledger.reclaim(moved, cut.mapping);
            }
        }
        let kept = old.map_or(0, Pages::bytes);
        if kept < pages.bytes() {
            let origin = match cuts.last() {
                Some(cut) => ledger.mapping(cut.mapping).origin.map(|_| growth),
                None => Some(growth),
            };
            let grown = Pages { start: pages.start + kept, end: pages.end };
            ledger.add(&[grown], origin, Claim::Own);
        }
        ledger.forget(cuts);
        ledger.outcome
    }

    /// What a child has after `fork`, and what that changes for the sites.
    pub(super) fn fork(&self) -> (Mappings, Vec<SiteChange>) {
        let mut child = self.clone();
        for (index, mapping) in child.mappings.iter_mut().enumerate() {
            mapping.claim = Claim::Inherited;
            // What a call under way in the parent has released does not come back in the child.
            if mapping.cuts > 0 && mapping.pieces == 0 {
                child.vacant.push(MappingId(index as u32));
            }
            mapping.cuts = 0;
        }
        let postings = child.postings(|_| Change::Inherit);
        (child, postings)
    }

    /// What changes for the sites when the program ends.
    pub(super) fn end(&self) -> Vec<SiteChange> {
        self.postings(Claim::end)
    }

    /// What the process mapped itself and is charged to somebody, by address.
    pub(super) fn pieces(&self) -> impl Iterator<Item = LivePiece> {
        self.pieces.iter().filter_map(|(&start, piece)| {
            let mapping = &self.mappings[piece.mapping.0 as usize];
            let origin = mapping.origin.filter(|_| mapping.claim == Claim::Own)?;
            Some(LivePiece { start, end: piece.end, origin })
        })
    }

    /// One posting for each mapping that has a site, with all its bytes.
    fn postings(&self, change: impl Fn(Claim) -> Change) -> Vec<SiteChange> {
        let mut bytes = vec![0u64; self.mappings.len()];
        for (start, piece) in &self.pieces {
            bytes[piece.mapping.0 as usize] += piece.end - start;
        }
        let mapped = self.mappings.iter().zip(bytes).filter(|(mapping, _)| mapping.pieces > 0);
        mapped
            .filter_map(|(mapping, bytes)| {
                let change = change(mapping.claim);
                let Origin { site, thread, born: _ } = mapping.origin?;
                Some(SiteChange { site, thread, change, blocks: 1, bytes })
            })
            .collect()
    }
}

/// Where `cut` comes to lie when `old` is moved to `new`; `None` if it is cut off.
fn move_cut(cut: Pages, old: Pages, new: Pages) -> Option<Pages> {
    let (from, to) = (cut.start - old.start, cut.end - old.start);
    let to = to.min(new.bytes());
    (from < to).then(|| Pages { start: new.start + from, end: new.start + to })
}
