//! Which of the last allocs was at an address.
//!
//! ```text
//!   address ─hash─→ set of 16, the newest first:  | tag 15 bits | number of the alloc, modulo RECENT |
//! ```
//!
//! A set is a line of the cache, and all of them are a quarter of a map's size. A set that is full
//! forgets its oldest address, which costs the writer some bytes at its next release: of as many
//! addresses as [`RECENT`], less than one in a hundred. What a set says is only a hint, and
//! [`Model::recent`] decides.

use crate::trace::model::{Block, Model, RECENT};

const SETS_BITS: u32 = 14;
const WAYS: usize = 16;
const NUMBER_BITS: u32 = RECENT.ilog2();
const NUMBER: u64 = RECENT as u64 - 1;

const _: () = assert!(RECENT.is_power_of_two() && RECENT * 2 == WAYS << SETS_BITS);

#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Set([u32; WAYS]);

/// Numbers of allocs by address.
#[derive(Debug)]
pub(super) struct Newest {
    sets: Box<[Set]>,
}

/// Where an address belongs, and what tells it from most others there.
struct Place {
    set: usize,
    tag: u32,
}

/// An entry of a set, and the alloc that it is of.
struct Found {
    way: usize,
    distance: u64,
    block: Block,
}

impl Place {
    #[inline(always)]
    fn of(address: u64) -> Place {
        // Fibonacci hashing: the high bits depend on all of the address.
        let hash = address.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let set = (hash >> (u64::BITS - SETS_BITS)) as usize;
        Place { set, tag: ((hash << SETS_BITS) >> 32) as u32 >> NUMBER_BITS }
    }
}

impl Newest {
    pub(super) fn new() -> Newest {
        Newest { sets: vec![Set([0; WAYS]); 1 << SETS_BITS].into() }
    }

    pub(super) fn clear(&mut self) {
        self.sets.fill(Set([0; WAYS]));
    }

    /// Reads what [`Newest::find`] or [`Newest::note`] will, so that it is in the processor's cache.
    #[inline(always)]
    pub(super) fn load(&self, address: u64) -> u32 {
        self.sets[Place::of(address).set].0[0]
    }

    /// The last alloc at an address, if it is known: how many allocs ago, and its block.
    #[inline]
    pub(super) fn find(&self, address: u64, model: &Model) -> Option<(u64, Block)> {
        let Found { distance, block, .. } = self.look(&Place::of(address), address, model)?;
        Some((distance, block))
    }

    /// Notes that the next alloc is at `address`.
    #[inline]
    pub(super) fn note(&mut self, address: u64, model: &Model) {
        let place = Place::of(address);
        let way = self.look(&place, address, model).map_or(WAYS - 1, |found| found.way);
        let Set(ways) = &mut self.sets[place.set];
        ways.copy_within(..way, 1);
        ways[0] = place.tag << NUMBER_BITS | (model.allocs & NUMBER) as u32;
    }

    /// The first entry of a set whose alloc was at `address`.
    #[inline(always)]
    fn look(&self, place: &Place, address: u64, model: &Model) -> Option<Found> {
        let Set(ways) = &self.sets[place.set];
        let mut alike = 0u32;
        for (way, entry) in ways.iter().enumerate() {
            alike |= u32::from(entry >> NUMBER_BITS == place.tag) << way;
        }
        while alike != 0 {
            let way = alike.trailing_zeros() as usize;
            let distance = distance(ways[way], model);
            if let Some(block) = model.recent(distance)
                && block.ptr == address
            {
                return Some(Found { way, distance, block });
            }
            alike &= alike - 1;
        }
        None
    }
}

/// How many allocs ago an entry's was, if it is one of the last: 1 to [`RECENT`].
#[inline(always)]
fn distance(entry: u32, model: &Model) -> u64 {
    (model.allocs.wrapping_sub(u64::from(entry) + 1) & NUMBER) + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alloc(newest: &mut Newest, model: &mut Model, address: u64) {
        newest.note(address, model);
        model.saw_alloc(0, address, 24);
    }

    fn model() -> Model {
        let mut model = Model::new();
        model.add_thread(crate::record::Tid(1));
        model
    }

    #[test]
    fn last_alloc_at_an_address_is_found() {
        let (mut newest, mut model) = (Newest::new(), model());
        for address in [0x1000, 0x2000, 0x1000, 0x3000] {
            alloc(&mut newest, &mut model, address);
        }

        let distance = |address| newest.find(address, &model).map(|(distance, _)| distance);

        assert_eq!(
            [0x3000, 0x1000, 0x2000, 0x4000].map(distance),
            [Some(1), Some(2), Some(3), None]
        );
    }

    #[test]
    fn alloc_is_found_until_as_many_others_came_as_are_recent() {
        let (mut newest, mut model) = (Newest::new(), model());
        alloc(&mut newest, &mut model, 0x1000);
        for _ in 1..RECENT {
            alloc(&mut newest, &mut model, 0x2000);
        }

        let found = newest.find(0x1000, &model).map(|(distance, block)| (distance, block.ptr));
        assert_eq!(found, Some((RECENT as u64, 0x1000)));
        alloc(&mut newest, &mut model, 0x2000);
        assert!(newest.find(0x1000, &model).is_none());
    }

    #[test]
    fn few_of_the_recent_allocs_are_forgotten() {
        let (mut newest, mut model) = (Newest::new(), model());
        let addresses = || (0..RECENT as u64).map(|block| 0x7f00_0000_1010 + block * 48);
        for address in addresses() {
            alloc(&mut newest, &mut model, address);
        }

        let found = addresses().enumerate().filter(|(number, address)| {
            let distance = newest.find(*address, &model).map(|(distance, _)| distance);
            distance == Some((RECENT - number) as u64)
        });

        assert!(found.count() > RECENT / 100 * 99);
    }

    #[test]
    fn nothing_is_found_after_clearing() {
        let (mut newest, mut model) = (Newest::new(), model());
        alloc(&mut newest, &mut model, 0);
        alloc(&mut newest, &mut model, 0x1000);

        newest.clear();
        model.reset();

        assert!(newest.find(0x1000, &model).is_none());
        assert!(newest.find(0, &model).is_none());
    }
}
