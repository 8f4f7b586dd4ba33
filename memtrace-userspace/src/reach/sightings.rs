//! The words of the memory that may point to a block.
//!
//! Few words of a program are pointers into its heap, and of each the place matters as well: whether
//! it is followed depends on the block that it lies in. Both fit into a word:
//!
//! ```text
//!   | word of the piece 17 bits | address 47 bits |
//! ```
//!
//! So what is kept of a target never takes more than the target's own memory.

use memtrace_common::addr::Avma;

use super::blocks::Blocks;
use super::{ADDRESS_BITS, untagged};

/// The most bytes of a piece.
pub const PIECE_BYTES: usize = 8 << (u64::BITS - ADDRESS_BITS);

/// What was seen in a piece of memory.
#[derive(Debug)]
pub struct Piece {
    base: Avma,
    words: Vec<u64>,
}

/// Room for all words of a piece, which a thread uses again and again.
#[derive(Debug)]
pub struct Room(Vec<u64>);

impl Room {
    /// Room that the kernel has already given: it is written to.
    pub fn new() -> Room {
        Room(vec![1; PIECE_BYTES / size_of::<u64>()])
    }
}

impl Default for Room {
    fn default() -> Room {
        Room::new()
    }
}

impl Piece {
    /// Looks through `bytes`, which lie at `base`, a multiple of 8.
    ///
    /// More than [`PIECE_BYTES`] are not looked at.
    pub fn new(blocks: &Blocks, base: Avma, bytes: &[u8], Room(room): &mut Room) -> Piece {
        let (all, _) = bytes[..bytes.len().min(PIECE_BYTES)].as_chunks::<8>();
        // Every word is written and most are overwritten: the processor would guess a branch wrong.
        let mut seen = 0;
        for (index, word) in all.iter().enumerate() {
            let address = untagged(u64::from_le_bytes(*word));
            room[seen] = (index as u64) << ADDRESS_BITS | address;
            seen += usize::from(blocks.may_hold(address));
        }
        Piece { base, words: room[..seen].to_vec() }
    }

    /// How many words it has.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Whether nothing was seen.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Where each word lies, and the address that it holds.
    pub(super) fn words(&self) -> impl Iterator<Item = (u64, u64)> {
        self.words.iter().map(|word| {
            let offset = (word >> ADDRESS_BITS) * 8;
            (self.base.0.wrapping_add(offset), untagged(*word))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::blocks::Span;
    use super::*;

    #[test]
    fn words_that_may_point_to_a_block_are_kept_with_their_places() {
        let blocks = Blocks::new([Span { start: Avma(0x7f12_3456_7000), size_bytes: 64 }]);
        let words: [u64; 5] = [0, 0x7f12_3456_7008, 42, 0x8006_7f12_3456_7010, u64::MAX];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).chain([1]).collect();

        let piece = Piece::new(&blocks, Avma(0x1000), &bytes, &mut Room::new());

        let seen: Vec<_> = piece.words().collect();
        assert_eq!(seen, [(0x1008, 0x7f12_3456_7008), (0x1018, 0x7f12_3456_7010)]);
    }

    #[test]
    fn last_word_of_a_full_piece_keeps_its_place() {
        let blocks = Blocks::new([Span { start: Avma(0x1000), size_bytes: 8 }]);
        let mut bytes = vec![0xff; PIECE_BYTES + 8];
        bytes[PIECE_BYTES - 8..].copy_from_slice(&[0x1000u64.to_le_bytes(); 2].concat());

        let piece = Piece::new(&blocks, Avma(0x2000), &bytes, &mut Room::new());

        let place = 0x2000 + PIECE_BYTES as u64 - 8;
        assert_eq!(piece.words().collect::<Vec<_>>(), [(place, 0x1000)]);
    }
}
