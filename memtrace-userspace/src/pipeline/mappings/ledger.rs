//! One call's work on the mappings of a process.
//!
//! Pieces are cut out, put in and given back in any order that a call needs; what each step changes
//! for a site is collected on the way, and so is what finds no room.

use super::{Cut, Mapping, MappingId, Mappings, Origin, Outcome, Pages, Piece, SiteChange};
use crate::pipeline::account::{Change, Claim};

/// The mappings during one call, and what comes of it.
pub(super) struct Ledger<'m> {
    mappings: &'m mut Mappings,
    most_pieces: usize,
    pub(super) outcome: Outcome,
}

impl<'m> Ledger<'m> {
    pub(super) fn new(mappings: &'m mut Mappings, room: usize) -> Ledger<'m> {
        let most_pieces = mappings.len().saturating_add(room);
        Ledger { mappings, most_pieces, outcome: Outcome::default() }
    }

    pub(super) fn mapping(&mut self, id: MappingId) -> &mut Mapping {
        &mut self.mappings.mappings[id.0 as usize]
    }

    fn post(&mut self, origin: Option<Origin>, change: Change, blocks: u64, bytes: u64) {
        if let Some(Origin { site, thread, born: _ }) = origin {
            self.outcome.postings.push(SiteChange { site, thread, change, blocks, bytes });
        }
    }

    fn has_room(&mut self) -> bool {
        let room = self.mappings.pieces.len() < self.most_pieces;
        if !room {
            self.outcome.left_out += 1;
        }
        room
    }

    /// A new mapping instead of what is mapped there, a piece of it in each part.
    pub(super) fn replace(&mut self, parts: &[Pages], origin: Option<Origin>) {
        for &pages in parts {
            let cuts = self.cut(pages);
            self.forget(&cuts);
        }
        self.add(parts, origin, Claim::Own);
    }

    /// A new mapping, where nothing is mapped, a piece of it in each part.
    pub(super) fn add(&mut self, parts: &[Pages], origin: Option<Origin>, claim: Claim) {
        let room = self.most_pieces.saturating_sub(self.mappings.pieces.len());
        let (parts, beyond) = parts.split_at(parts.len().min(room));
        self.outcome.left_out += beyond.len() as u64;
        if parts.is_empty() {
            return;
        }
        let mapping = Mapping { origin, claim, pieces: parts.len() as u32, cuts: 0 };
        let id = self.mappings.vacant.pop();
        let id = id.unwrap_or(MappingId(self.mappings.mappings.len() as u32));
        match self.mappings.mappings.get_mut(id.0 as usize) {
            Some(slot) => *slot = mapping,
            None => self.mappings.mappings.push(mapping),
        }
        for pages in parts {
            self.mappings.pieces.insert(pages.start, Piece { end: pages.end, mapping: id });
        }
        let change = match claim {
            Claim::Own => Change::Acquire,
            Claim::Inherited | Claim::Earlier => claim.reclaim(),
        };
        let bytes = parts.iter().map(|pages| pages.bytes()).sum();
        self.post(origin, change, 1, bytes);
    }

    /// Takes out everything in `pages`, in ascending order. To be forgotten in the end.
    pub(super) fn cut(&mut self, pages: Pages) -> Vec<Cut> {
        let Pages { start, end } = pages;
        let mut cuts = Vec::new();
        let before = self.mappings.pieces.range(..start).next_back();
        if let Some((&left, &piece)) = before.filter(|(_, piece)| piece.end > start) {
            self.mappings.pieces.insert(left, Piece { end: start, ..piece });
            self.mapping(piece.mapping).pieces += 1;
            cuts.push(self.take(piece, start, end));
        }
        while let Some((&left, &piece)) = self.mappings.pieces.range(start..end).next() {
            self.mappings.pieces.remove(&left);
            cuts.push(self.take(piece, left, end));
        }
        cuts
    }

    /// Gives up a piece from `start` to `end`; what lies beyond is a piece again.
    fn take(&mut self, piece: Piece, start: u64, end: u64) -> Cut {
        let Piece { end: piece_end, mapping } = piece;
        let mut taken = piece_end - start;
        if piece_end > end && self.has_room() {
            self.mappings.pieces.insert(end, piece);
            self.mapping(mapping).pieces += 1;
            taken = end - start;
        }
        let state = self.mapping(mapping);
        state.pieces -= 1;
        state.cuts += 1;
        let Mapping { origin, claim, pieces, cuts: _ } = *state;
        self.post(origin, claim.release(), u64::from(pieces == 0), taken);
        Cut { pages: Pages { start, end: piece_end.min(end) }, mapping }
    }

    /// Maps a part of a mapping, where nothing is mapped.
    pub(super) fn reclaim(&mut self, pages: Pages, id: MappingId) {
        if !self.has_room() {
            return;
        }
        self.mappings.pieces.insert(pages.start, Piece { end: pages.end, mapping: id });
        let state = self.mapping(id);
        state.pieces += 1;
        let Mapping { origin, claim, pieces, cuts: _ } = *state;
        self.post(origin, claim.reclaim(), u64::from(pieces == 1), pages.bytes());
    }

    /// The parts of `pages` where nothing is mapped.
    pub(super) fn gaps(&self, pages: Pages) -> Vec<Pages> {
        let mut gaps = Vec::new();
        let before = self.mappings.pieces.range(..=pages.start).next_back();
        let mut start = before.map_or(pages.start, |(_, piece)| piece.end.max(pages.start));
        for (&left, piece) in self.mappings.pieces.range(pages.start..pages.end) {
            if start < left {
                gaps.push(Pages { start, end: left });
            }
            start = start.max(piece.end);
        }
        if start < pages.end {
            gaps.push(Pages { start, end: pages.end });
        }
        gaps
    }

    /// Drops cuts; a mapping without pieces and cuts is no more.
    pub(super) fn forget(&mut self, cuts: &[Cut]) {
        for cut in cuts {
            let state = self.mapping(cut.mapping);
            state.cuts -= 1;
            if state.cuts == 0 && state.pieces == 0 {
                self.mappings.vacant.push(cut.mapping);
            }
        }
    }
}
