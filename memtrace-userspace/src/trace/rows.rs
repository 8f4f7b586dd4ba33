//! Rare records, one after the other.
//!
//! ```text
//!   | tag 1 | fields in the order of their declaration, without the time |
//! ```
//!
//! Numbers are varints, texts and lists a 32-bit length and what it counts. A length of its own
//! size keeps the memory a row can ask for within a small multiple of its bytes.
//!
//! Whether a row has a time, which its record's columns give, depends on its tag alone.

mod decoder;
mod encoder;

pub(super) use decoder::{decode_holder, decode_timed, decode_untimed};
pub(super) use encoder::{bytes_bound, put, put_holder, put_stack};

/// First byte of a row.
mod tag {
    pub(super) const SESSION: u8 = 0;
    pub(super) const PROBE: u8 = 1;
    pub(super) const PROCESS: u8 = 2;
    pub(super) const BEFORE_ATTACH: u8 = 3;
    pub(super) const MODULE: u8 = 4;
    pub(super) const MODULE_GONE: u8 = 5;
    pub(super) const THREAD: u8 = 6;
    pub(super) const THREAD_EXIT: u8 = 7;
    pub(super) const STACK: u8 = 8;
    pub(super) const FORK: u8 = 9;
    pub(super) const EXEC: u8 = 10;
    pub(super) const EXIT: u8 = 11;
    pub(super) const RESIDENT: u8 = 12;
    pub(super) const COUNTERS: u8 = 13;
    pub(super) const TICK: u8 = 14;
    pub(super) const END: u8 = 15;
    pub(super) const MARK: u8 = 16;
    pub(super) const JIT_SYMBOL: u8 = 17;
    pub(super) const NAMESPACES: u8 = 18;
    pub(super) const MEMORY_DETAIL: u8 = 19;
    pub(super) const MEMORY_LIMIT: u8 = 20;
    pub(super) const OPERATION: u8 = 21;
}
