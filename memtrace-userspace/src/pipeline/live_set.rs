//! The heap blocks that a process holds now.
//!
//! In: blocks that are acquired and released. Out: what was known of a block that is gone. It
//! keeps no sums and does not know what a contradiction means; the heap's rules do.
//!
//! Ten million live blocks are normal, so a block takes 24 bytes, in tables of open addressing:
//!
//! ```text
//!   hash   | shard 6 bits | place in the shard: (rest * slots) >> 64 |
//!   slot   | address 56 bits, born 8 | size 48, born 16 | site 32 | thread 22, claim 2, born 8 |
//!            address 0: empty
//! ```
//!
//! No user address has more bits than that, and no block. [`Birth`] says what the 32 bits of
//! `born` are.
//!
//! A block lies in its place or, if that is taken, in the next free slot behind it; a release
//! moves the followers up, so that no search ever passes an empty slot. Shards are between 60%
//! and 75% full and grow by a quarter, each on its own: no event has to move more than a 64th of
//! all blocks, and a table that grows needs no second one of its whole size.

use memtrace_common::addr::Avma;

use super::account::Claim;
use super::stacks::SiteId;
use super::threads::ThreadId;
use crate::hash::Seed;
use crate::record::Time;

const SHARD_BITS: u32 = 6;
/// Slots of a shard that holds its first block.
const FIRST_SLOTS: usize = 16;
/// Up to this size, shards double.
const SMALL_SLOTS: usize = 1024;

/// No block lies at or beyond this address.
pub(super) const ADDRESS_LIMIT: u64 = 1 << 56;
/// No block is as large as this.
pub(super) const SIZE_LIMIT: u64 = 1 << 48;

/// What is known of a live block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// What the program asked for.
    pub(super) size_bytes: u64,
    /// When it was allocated; `realloc` goes on with the life of the block that it took.
    pub(super) born: Birth,
    /// Which call path and API made it.
    pub(super) site: SiteId,
    /// Which thread made it, perhaps one of the parent process.
    pub(super) thread: ThreadId,
    /// By what right the process holds it.
    pub(super) claim: Claim,
}

/// A time in 32 bits: 10 µs exactly in the first 22 minutes, to 1 part in 67 million later.
///
/// ```text
///   | exponent 5 | mantissa 27 |      time = (mantissa << exponent) × 10 µs, rounded down
///   after 1 hour: 40 µs    1 day: 640 µs    30 days: 20 ms
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Birth(u32);

impl Birth {
    /// A unit of time.
    pub(super) const UNIT_NS: u64 = 10_000;
    const MANTISSA_BITS: u32 = 27;

    /// The time, rounded down.
    #[inline(always)]
    pub(super) fn at(time: Time) -> Birth {
        let units = time.0 / Self::UNIT_NS;
        let bits = u64::BITS - units.leading_zeros();
        let exponent = bits.saturating_sub(Self::MANTISSA_BITS);
        // Time ends at 2^51 units: the exponent has at most 24.
        Birth((exponent << Self::MANTISSA_BITS) | (units >> exponent) as u32)
    }

    /// The earliest time that this stands for.
    #[inline(always)]
    pub(super) fn time(self) -> Time {
        Time(self.units() * Self::UNIT_NS)
    }

    /// How long ago it was, in units of [`Birth::UNIT_NS`].
    #[inline(always)]
    pub(super) fn age_units(self, now: Time) -> u64 {
        Birth::at(now).units().saturating_sub(self.units())
    }

    /// The same, in units of [`Birth::UNIT_NS`].
    #[inline(always)]
    fn units(self) -> u64 {
        let exponent = self.0 >> Self::MANTISSA_BITS;
        let mantissa = self.0 & ((1 << Self::MANTISSA_BITS) - 1);
        u64::from(mantissa) << exponent
    }
}

/// What a block is charged to, perhaps. Default: the first site, and the beginning.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LikelyBlock {
    pub(super) site: SiteId,
    pub(super) born: Birth,
}

/// Set in [`Slot::thread_claim_born`] for an inherited block.
const INHERITED: u32 = 1 << 8;
/// Set in it for a block from before the range.
const EARLIER: u32 = 1 << 9;
const THREAD_SHIFT: u32 = 10;

const _: () = assert!(ThreadId::LIMIT <= 1 << (u32::BITS - THREAD_SHIFT));

#[derive(Clone, Copy, Default)]
struct Slot {
    /// Address of the block, 0 if the slot is empty; the lowest byte of its birth.
    address_born: u64,
    /// Its size; the two bytes of its birth above the lowest.
    size_born: u64,
    site: SiteId,
    /// A [`ThreadId`], [`INHERITED`] or [`EARLIER`], the highest byte of its birth.
    thread_claim_born: u32,
}

const _: () = assert!(size_of::<Slot>() == 24);

impl Slot {
    #[inline(always)]
    fn new(address: Avma, block: Block) -> Slot {
        debug_assert!(address.0 < ADDRESS_LIMIT && block.size_bytes < SIZE_LIMIT);
        let Block { size_bytes, born: Birth(born), site, thread, claim } = block;
        let claim = match claim {
            Claim::Own => 0,
            Claim::Inherited => INHERITED,
            Claim::Earlier => EARLIER,
        };
        Slot {
            address_born: (address.0 << 8) | u64::from(born & 0xff),
            size_born: (size_bytes << 16) | u64::from((born >> 8) & 0xffff),
            site,
            thread_claim_born: (thread.to_bits() << THREAD_SHIFT) | claim | (born >> 24),
        }
    }

    #[inline(always)]
    fn address(&self) -> u64 {
        self.address_born >> 8
    }

    #[inline(always)]
    fn born(&self) -> Birth {
        let &Slot { address_born, size_born, site: _, thread_claim_born } = self;
        let (low, middle) = (address_born as u32 & 0xff, size_born as u32 & 0xffff);
        Birth(low | (middle << 8) | ((thread_claim_born & 0xff) << 24))
    }

    #[inline(always)]
    fn block(&self) -> Block {
        let &Slot { address_born: _, size_born, site, thread_claim_born } = self;
        Block {
            size_bytes: size_born >> 16,
            born: self.born(),
            site,
            thread: ThreadId::from_bits(thread_claim_born >> THREAD_SHIFT),
            claim: match thread_claim_born & (INHERITED | EARLIER) {
                0 => Claim::Own,
                EARLIER => Claim::Earlier,
                _ => Claim::Inherited,
            },
        }
    }
}

/// The live blocks of one process, by address. Address 0 is no block's.
#[derive(Clone)]
pub(super) struct LiveSet {
    seed: Seed,
    /// Empty until the first block comes, then `2^SHARD_BITS`.
    shards: Box<[Shard]>,
    blocks: usize,
}

impl LiveSet {
    pub(super) fn new(seed: Seed) -> LiveSet {
        LiveSet { seed, shards: Box::default(), blocks: 0 }
    }

    /// How many blocks it holds.
    pub(super) fn len(&self) -> usize {
        self.blocks
    }

    /// Puts `block` at `address`; returns what was there, which is then no longer.
    #[inline]
    pub(super) fn insert(&mut self, address: Avma, block: Block) -> Option<Block> {
        debug_assert_ne!(address, Avma(0));
        if self.shards.is_empty() {
            self.shards = vec![Shard::default(); 1 << SHARD_BITS].into();
        }
        let hash = self.seed.hash_word(address.0);
        let replaced =
            self.shards[shard_of(hash)].insert(self.seed, hash, Slot::new(address, block));
        self.blocks += usize::from(replaced.is_none());
        replaced.map(|slot| slot.block())
    }

    /// Takes out the block at `address`; `None` if there is none.
    #[inline]
    pub(super) fn remove(&mut self, address: Avma) -> Option<Block> {
        let hash = self.seed.hash_word(address.0);
        let slot = self.shards.get_mut(shard_of(hash))?.remove(self.seed, hash, address.0)?;
        self.blocks -= 1;
        Some(slot.block())
    }

    /// What is in the place of a block at `address`, whatever lies there.
    ///
    /// For loading the place into the cache. It does not look whether the place is taken: the
    /// processor would guess that, guess wrong, and wait for the memory after all.
    #[inline(always)]
    pub(super) fn likely_block(&self, address: Avma) -> Option<LikelyBlock> {
        let hash = self.seed.hash_word(address.0);
        let shard = self.shards.get(shard_of(hash))?;
        let slot = shard.slots.get(shard.home(hash))?;
        Some(LikelyBlock { site: slot.site, born: slot.born() })
    }

    /// Whether there is a block at `address`.
    pub(super) fn contains(&self, address: Avma) -> bool {
        let hash = self.seed.hash_word(address.0);
        self.shards.get(shard_of(hash)).is_some_and(|shard| {
            shard.slots.get(shard.find(hash, address.0)).is_some_and(Slot::is_used)
        })
    }

    /// The blocks, in no order that may show.
    pub(super) fn blocks(&self) -> impl Iterator<Item = Block> {
        self.blocks_at().map(|(_, block)| block)
    }

    /// The blocks and where they are, in no order that may show.
    pub(super) fn blocks_at(&self) -> impl Iterator<Item = (Avma, Block)> {
        let slots = self.shards.iter().flat_map(|shard| &shard.slots);
        slots.filter(|slot| slot.is_used()).map(|slot| (Avma(slot.address()), slot.block()))
    }

    /// What a child holds after `fork`: copies of the same blocks.
    pub(super) fn fork(&self) -> LiveSet {
        let mut child = self.clone();
        for slot in child.shards.iter_mut().flat_map(|shard| &mut shard.slots) {
            if slot.is_used() {
                slot.thread_claim_born = (slot.thread_claim_born & !EARLIER) | INHERITED;
            }
        }
        child
    }
}

impl Slot {
    #[inline(always)]
    fn is_used(&self) -> bool {
        self.address() != 0
    }
}

/// The shard of a hash: its highest bits.
#[inline(always)]
fn shard_of(hash: u64) -> usize {
    (hash >> (64 - SHARD_BITS)) as usize
}

#[derive(Clone, Default)]
struct Shard {
    slots: Vec<Slot>,
    used: usize,
}

impl Shard {
    /// Where a block with this hash wants to be, in `slots.len()` slots.
    #[inline(always)]
    fn home(&self, hash: u64) -> usize {
        let rest = hash << SHARD_BITS;
        ((u128::from(rest) * self.slots.len() as u128) >> 64) as usize
    }

    #[inline(always)]
    fn after(&self, index: usize) -> usize {
        if index + 1 == self.slots.len() { 0 } else { index + 1 }
    }

    /// The slot of `address`, or the empty one where it belongs; 0 if there are no slots.
    #[inline(always)]
    fn find(&self, hash: u64, address: u64) -> usize {
        let mut index = self.home(hash);
        while let Some(slot) = self.slots.get(index) {
            if slot.address() == address || slot.address() == 0 {
                break;
            }
            index = self.after(index);
        }
        index
    }

    #[inline(always)]
    fn insert(&mut self, seed: Seed, hash: u64, new: Slot) -> Option<Slot> {
        if (self.used + 1) * 4 > self.slots.len() * 3 {
            let slots = self.slots.len();
            let more = if slots < SMALL_SLOTS { slots.max(FIRST_SLOTS) } else { slots / 4 };
            self.resize(seed, slots + more);
        }
        let index = self.find(hash, new.address());
        let old = std::mem::replace(&mut self.slots[index], new);
        self.used += usize::from(!old.is_used());
        old.is_used().then_some(old)
    }

    #[inline(always)]
    fn remove(&mut self, seed: Seed, hash: u64, address: u64) -> Option<Slot> {
        let mut hole = self.find(hash, address);
        let removed = *self.slots.get(hole).filter(|slot| slot.is_used())?;
        self.used -= 1;
        let mut index = self.after(hole);
        while self.slots[index].is_used() {
            // A follower may move up to the hole unless that is before its place.
            let home = self.home(seed.hash_word(self.slots[index].address()));
            if self.distance(home, index) >= self.distance(hole, index) {
                self.slots[hole] = self.slots[index];
                hole = index;
            }
            index = self.after(index);
        }
        self.slots[hole] = Slot::default();
        if self.slots.len() > SMALL_SLOTS && self.used * 8 < self.slots.len() {
            self.resize(seed, self.slots.len() / 4);
        }
        Some(removed)
    }

    /// How many slots one has to go on from `from` to get to `to`.
    #[inline(always)]
    fn distance(&self, from: usize, to: usize) -> usize {
        if to >= from { to - from } else { to + self.slots.len() - from }
    }

    /// Moves everything into `slots` slots, which must be more than it uses.
    #[cold]
    fn resize(&mut self, seed: Seed, slots: usize) {
        let old = std::mem::replace(&mut self.slots, vec![Slot::default(); slots]);
        for slot in old.into_iter().filter(Slot::is_used) {
            let index = self.find(seed.hash_word(slot.address()), slot.address());
            self.slots[index] = slot;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn block(size_bytes: u64, claim: Claim) -> Block {
        let born = Birth::at(Time(size_bytes.wrapping_mul(12_345_678)));
        Block { size_bytes, born, site: SiteId::default(), thread: ThreadId::from_bits(3), claim }
    }

    #[test]
    fn slot_gives_back_the_largest_block() {
        let block = Block {
            size_bytes: SIZE_LIMIT - 1,
            born: Birth::at(Time(u64::MAX)),
            site: SiteId::default(),
            thread: ThreadId::from_bits(ThreadId::LIMIT as u32 - 1),
            claim: Claim::Inherited,
        };

        let slot = Slot::new(Avma(ADDRESS_LIMIT - 1), block);

        assert_eq!((slot.address(), slot.block()), (ADDRESS_LIMIT - 1, block));
    }

    #[test]
    fn birth_is_exact_at_first_and_never_late() {
        for units in [0, 1, (1 << 27) - 1] {
            assert_eq!(Birth::at(Time(units * 10_000 + 9_999)).time(), Time(units * 10_000));
        }
        for time in [1 << 41, 86_400_000_000_000, u64::MAX] {
            let Time(kept) = Birth::at(Time(time)).time();
            assert!(
                kept <= time && (time - kept) / 10_000 <= (time / 10_000) >> 26,
                "{time} {kept}"
            );
        }
    }

    #[test]
    fn remove_of_an_unknown_address_changes_nothing() {
        let mut live = LiveSet::new(Seed::random());

        assert_eq!(live.remove(Avma(16)), None);
        live.insert(Avma(16), block(1, Claim::Own));
        assert_eq!(live.remove(Avma(32)), None);

        assert_eq!(live.len(), 1);
        assert!(live.contains(Avma(16)));
    }

    #[test]
    fn insert_at_a_used_address_returns_the_old_block() {
        let mut live = LiveSet::new(Seed::random());
        live.insert(Avma(16), block(1, Claim::Own));

        let replaced = live.insert(Avma(16), block(2, Claim::Own));

        assert_eq!(replaced, Some(block(1, Claim::Own)));
        assert_eq!((live.len(), live.remove(Avma(16))), (1, Some(block(2, Claim::Own))));
    }

    #[test]
    fn fork_makes_every_block_inherited() {
        let mut parent = LiveSet::new(Seed::random());
        parent.insert(Avma(16), block(1, Claim::Own));

        let mut child = parent.fork();

        assert_eq!(child.remove(Avma(16)), Some(block(1, Claim::Inherited)));
        assert_eq!(parent.remove(Avma(16)), Some(block(1, Claim::Own)));
    }

    #[test]
    fn set_that_has_shrunk_gives_its_slots_back() {
        let mut live = LiveSet::new(Seed::random());
        let addresses = || (1..=1_000_000u64).map(|i| Avma(i * 16));
        let slots =
            |live: &LiveSet| live.shards.iter().map(|shard| shard.slots.len()).sum::<usize>();

        for address in addresses() {
            live.insert(address, block(1, Claim::Own));
        }
        let most = slots(&live);
        for address in addresses().skip(100) {
            assert!(live.remove(address).is_some());
        }

        assert!(most < 1_700_000, "{most}");
        assert!(slots(&live) <= 64 * SMALL_SLOTS, "{}", slots(&live));
        assert_eq!(live.blocks().count(), 100);
    }

    proptest! {
        /// The twin is a `HashMap`. Few addresses, so that searches collide and followers move.
        #[test]
        fn live_set_equals_a_hash_map(steps in prop::collection::vec(
            (any::<bool>(), 1u64..300, 0..SIZE_LIMIT), 0..2000)
        ) {
            let mut live = LiveSet::new(Seed::random());
            let mut twin = HashMap::new();

            for (insert, address, size) in steps {
                let address = Avma(address);
                if insert {
                    let block = block(size, Claim::Own);
                    prop_assert_eq!(live.insert(address, block), twin.insert(address, block));
                } else {
                    prop_assert_eq!(live.remove(address), twin.remove(&address));
                }
                prop_assert_eq!(live.len(), twin.len());
            }

            let mut left: Vec<_> = live.blocks().map(|block| block.size_bytes).collect();
            let mut expected: Vec<_> = twin.values().map(|block| block.size_bytes).collect();
            left.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(left, expected);
        }
    }
}
