//! The payload of a block: one column for each kind of number.
//!
//! ```text
//!   | lengths, one varint a column | operations | times | threads | … | rows |
//! ```
//!
//! Every record has one byte in the column of operations, which gives the order:
//!
//! ```text
//!   bit  7   6   5   4    3 2 1 0
//!       api size stack address  kind      a set flag: the value is what the model expects
//! ```
//!
//! and, for each value that is not as expected, a number in the column of that value. Rare
//! records are rows ([`super::rows`]). Splitting by column puts alike numbers next to each other,
//! which is what zstd needs to make them small.
//!
//! Encoder and decoder each own a [`Model`]; it lives on from block to block until a block is
//! marked as independent.

mod decoder;
mod encoder;
mod newest;

pub(super) use decoder::Decoder;
pub(super) use encoder::{Encoder, Next, Summary};

/// Low half of an operation.
mod kind {
    pub(super) const UNTIMED_ROW: u8 = 0;
    pub(super) const TIMED_ROW: u8 = 1;
    pub(super) const ALLOC: u8 = 2;
    pub(super) const FREE: u8 = 3;
    pub(super) const RETIRE: u8 = 4;
    pub(super) const RESTORE: u8 = 5;
    pub(super) const MAP: u8 = 6;
    pub(super) const UNMAP: u8 = 7;
    pub(super) const UNMAP_FAILED: u8 = 8;
    pub(super) const REMAP_START: u8 = 9;
    pub(super) const REMAP: u8 = 10;
    pub(super) const BREAK: u8 = 11;
    pub(super) const HELD: u8 = 12;
    pub(super) const COMMIT: u8 = 13;
    pub(super) const DECOMMIT: u8 = 14;
    /// An `ALLOC` with an alignment.
    pub(super) const ALIGNED_ALLOC: u8 = 15;
}

/// Mask of a [`kind`] in an operation.
const KIND: u8 = 0x0f;

/// The address is the expected one, or the number of a recent alloc gives it.
const ADDRESS: u8 = 0x10;

/// The stack is the expected one.
const STACK: u8 = 0x20;

/// The size is the expected one.
const SIZE: u8 = 0x40;

/// The API is the expected one.
const API: u8 = 0x80;

/// What is held has an alignment.
const ALIGNED: u8 = 0x80;

/// In the column of APIs: none.
const NO_API: u8 = 0xff;

/// How many columns a payload has.
const COLUMNS: usize = 12;

/// What they hold, in their order in the payload; the names stand in error messages.
const NAMES: [&str; COLUMNS] = [
    "the column of operations",
    "the column of times",
    "the column of threads",
    "the column of stacks",
    "the column of stack ids",
    "the column of APIs",
    "the column of sizes",
    "the column of addresses",
    "the column of recent allocations",
    "the column of freed addresses",
    "the column of mappings",
    "the rows",
];

/// Places in [`NAMES`].
mod column {
    pub(super) const OPERATIONS: usize = 0;
    pub(super) const TIMES: usize = 1;
    pub(super) const THREADS: usize = 2;
    pub(super) const STACKS: usize = 3;
    pub(super) const STACK_IDS: usize = 4;
    pub(super) const APIS: usize = 5;
    pub(super) const SIZES: usize = 6;
    pub(super) const ADDRESSES: usize = 7;
    pub(super) const RECENT: usize = 8;
    pub(super) const FREED: usize = 9;
    pub(super) const MAPPINGS: usize = 10;
    pub(super) const ROWS: usize = 11;
}
