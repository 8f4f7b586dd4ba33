//! Which heap blocks nothing points to any more: conservative marking over words that were read.
//!
//! ```text
//!   live blocks ──→ Blocks                 may this word point into one, and into which?
//!   memory ──→ Piece, Piece, … ─┐          the words that may, and where they lie
//!   registers ──────────────────┴→ judge ─→ Lost, Lost, …
//! ```
//!
//! A word points to a block if it lies in it, from its first byte to its last; one past the end is
//! another block's business. The lowest 47 bits count, so that tags above them (and, as an address
//! inside the block, those in the lowest bits) hide no pointer. A word inside a block that is judged
//! is followed only when that block is reached; every other word is a root.
//!
//! It reads no memory itself: what is here is a function of blocks and bytes.

mod blocks;
mod classify;
mod sightings;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use blocks::{BlockId, Blocks, Span};
pub use classify::{Lost, judge};
pub use sightings::{PIECE_BYTES, Piece, Room};

/// What it took to read a process, and what was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Cost {
    /// How long the process stood still; `None` if it ran on.
    pub stopped: Option<Duration>,
    /// How many threads were stopped.
    pub threads: u64,
    /// Bytes of the process that were read.
    pub read_bytes: u64,
    /// Bytes that should have been read and could not be.
    pub unreadable_bytes: u64,
    /// Bytes that were looked through while it stood still, for want of memory to copy them to.
    pub uncopied_bytes: u64,
    /// The most memory that memtrace itself has used, up to the verdict.
    pub own_peak_bytes: u64,
}

impl Cost {
    /// What two looks took: the longest stop, `None` if either process ran on, the larger peak, and
    /// the sums of everything else.
    pub fn plus(self, other: Cost) -> Cost {
        let Cost { stopped, threads, read_bytes, unreadable_bytes, uncopied_bytes, own_peak_bytes } =
            other;
        Cost {
            stopped: self.stopped.zip(stopped).map(|(a, b)| a.max(b)),
            threads: self.threads + threads,
            read_bytes: self.read_bytes + read_bytes,
            unreadable_bytes: self.unreadable_bytes + unreadable_bytes,
            uncopied_bytes: self.uncopied_bytes + uncopied_bytes,
            own_peak_bytes: self.own_peak_bytes.max(own_peak_bytes),
        }
    }
}

/// Bits of an address in user space on x86-64 with four levels of page tables.
const ADDRESS_BITS: u32 = 47;

/// The address that a word may hold, without a tag in its highest bits.
#[inline(always)]
fn untagged(word: u64) -> u64 {
    word & ((1 << ADDRESS_BITS) - 1)
}
