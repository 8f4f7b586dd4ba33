//! The hash of tables with foreign keys: one multiplication a word, seeded.
//!
//! A trace or a program's file may come from an attacker, who could choose addresses, stack ids or
//! names that collide under a known hash. The seed is random; nothing that is published depends on
//! it, because no table is ever published in its own order.

use std::hash::{BuildHasher, Hasher, RandomState};

/// An odd number without pattern: the fraction of the golden ratio.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// `high(x * MULTIPLIER) ^ low(x * MULTIPLIER)`, the product taken in 128 bits.
#[inline(always)]
fn fold(x: u64) -> u64 {
    let product = u128::from(x) * u128::from(MULTIPLIER);
    (product >> 64) as u64 ^ product as u64
}

/// What makes the hashes of one table differ from those of another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seed(u64);

impl Seed {
    /// A seed that nobody can guess.
    pub(crate) fn random() -> Seed {
        Seed(RandomState::new().build_hasher().finish())
    }

    /// The hash of one word. All its bits are good.
    #[inline(always)]
    pub(crate) fn hash_word(self, word: u64) -> u64 {
        fold(word ^ self.0)
    }
}

impl BuildHasher for Seed {
    type Hasher = Fold;

    #[inline(always)]
    fn build_hasher(&self) -> Fold {
        Fold(self.0)
    }
}

/// The hasher of [`Seed`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fold(u64);

impl Hasher for Fold {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks();
        for word in words {
            self.write_u64(u64::from_le_bytes(*word));
        }
        if !rest.is_empty() {
            let mut word = [0; 8];
            word[..rest.len()].copy_from_slice(rest);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    #[inline(always)]
    fn write_u8(&mut self, value: u8) {
        self.write_u64(value.into());
    }

    #[inline(always)]
    fn write_u16(&mut self, value: u16) {
        self.write_u64(value.into());
    }

    #[inline(always)]
    fn write_u32(&mut self, value: u32) {
        self.write_u64(value.into());
    }

    /// Adds the multiplier, so that a run of zeros is not hashed to zero.
    #[inline(always)]
    fn write_u64(&mut self, value: u64) {
        self.0 = fold(self.0.wrapping_add(MULTIPLIER) ^ value);
    }

    #[inline(always)]
    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }

    #[inline(always)]
    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn hash_of_neighbouring_addresses_differs_in_high_and_in_low_bits() {
        let seed = Seed::random();
        let hashes = (0..4096u64).map(|i| seed.hash_word(0x7f00_0000_0000 + i * 16));

        let (high, low): (HashSet<_>, HashSet<_>) =
            hashes.map(|hash| (hash >> 52, hash & 0xfff)).unzip();

        // 4096 throws into 4096 boxes fill 63% of them, give or take 1%.
        assert!(high.len() > 2300, "{}", high.len());
        assert!(low.len() > 2300, "{}", low.len());
    }

    #[test]
    fn hash_of_bytes_depends_on_each_of_them() {
        let seed = Seed(7);
        let hash = |bytes: &[u8]| {
            let mut hasher = seed.build_hasher();
            hasher.write(bytes);
            hasher.finish()
        };

        let hashes = [b"libfoo.so.1", b"libfoo.so.2", b"1ibfoo.so.1"].map(|b| hash(b));

        assert_eq!(HashSet::from(hashes).len(), 3);
    }
}
