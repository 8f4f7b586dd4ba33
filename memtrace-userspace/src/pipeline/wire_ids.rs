//! What the kernel's stack ids mean, as long as they are in use.
//!
//! The kernel numbers some stacks once and for all and others anew for each event, so the ids
//! never end. Two tables keep the ones in use: what is looked up moves to the young one; when
//! that has half of the ids allowed, the old one is dropped and the young one grows old.

use std::collections::HashMap;

use super::stacks::Meaning;
use crate::hash::Seed;
use crate::record::WireStackId;

/// The meanings of the ids in use.
#[derive(Debug)]
pub(super) struct WireIds {
    young: HashMap<WireStackId, Meaning, Seed>,
    old: HashMap<WireStackId, Meaning, Seed>,
    generation: usize,
    forgotten: u64,
    seed: Seed,
}

impl WireIds {
    /// A table of at most `limit` ids.
    pub(super) fn new(limit: usize, seed: Seed) -> WireIds {
        WireIds {
            young: HashMap::with_hasher(seed),
            old: HashMap::with_hasher(seed),
            generation: (limit / 2).max(1),
            forgotten: 0,
            seed,
        }
    }

    /// The meaning of `id`; `None` if it was never told or is forgotten.
    #[inline(always)]
    pub(super) fn get(&mut self, id: WireStackId) -> Option<Meaning> {
        match self.young.get(&id) {
            Some(&meaning) => Some(meaning),
            None => self.get_old(id),
        }
    }

    /// The meaning of `id` if it was used lately. It does not count as a use.
    #[inline(always)]
    pub(super) fn peek(&self, id: WireStackId) -> Option<Meaning> {
        self.young.get(&id).copied()
    }

    fn get_old(&mut self, id: WireStackId) -> Option<Meaning> {
        let meaning = self.old.remove(&id)?;
        self.set(id, meaning);
        Some(meaning)
    }

    /// Gives `id` a meaning, or another one.
    pub(super) fn set(&mut self, id: WireStackId, meaning: Meaning) {
        self.old.remove(&id);
        if self.young.len() >= self.generation && !self.young.contains_key(&id) {
            let young = std::mem::replace(&mut self.young, HashMap::with_hasher(self.seed));
            self.forgotten += std::mem::replace(&mut self.old, young).len() as u64;
        }
        self.young.insert(id, meaning);
    }

    /// Every id and its meaning.
    pub(super) fn all(&self) -> impl Iterator<Item = (WireStackId, Meaning)> {
        self.young.iter().chain(&self.old).map(|(&id, &meaning)| (id, meaning))
    }

    /// How many ids were forgotten.
    pub(super) fn forgotten(&self) -> u64 {
        self.forgotten
    }
}
