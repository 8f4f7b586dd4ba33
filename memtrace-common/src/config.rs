//! Limits and the layout of the maps that the daemon fills and the kernel reads.
//!
//! ```text
//!   PROCESSES[tgid] ──modules, count──> MODULES[first ..]  sorted by start
//!                                          │ buckets, rows
//!                                          ▼
//!   BUCKETS: one row index for each 256 bytes of text ──> ROWS: 8-byte unwind rows
//! ```
//!
//! Buckets and rows lie in array maps whose values are whole pages, so that a table of a million
//! rows is loaded with two thousand system calls and looked up without a helper call.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::unwind::Row;

/// The most frames that a walk records; deeper stacks end as `FrameLimit`.
pub const MAX_FRAMES: usize = 1024;

/// How many bytes of stack a walk copies; deeper words are read one by one.
pub const STACK_COPY_BYTES: usize = 64 * 1024;

/// How many return-address slots a remembered stack has at most; larger stacks are walked anew.
pub const MAX_REMEMBERED_SLOTS: usize = 256;

/// Text bytes that share a bucket, as a power of two.
pub const BUCKET_SHIFT: u32 = 8;

/// Rows in one value of the `ROWS` map: 4 KiB.
pub const ROWS_PER_CHUNK: usize = 512;

/// Bucket entries in one value of the `BUCKETS` map: 4 KiB.
pub const BUCKETS_PER_CHUNK: usize = 1024;

/// The most executable mappings of one process.
pub const MAX_MODULES: u32 = 4096;

/// One value of the `ROWS` map.
pub type RowChunk = [Row; ROWS_PER_CHUNK];

/// One value of the `BUCKETS` map.
pub type BucketChunk = [u32; BUCKETS_PER_CHUNK];

/// An executable mapping, as the kernel's walk sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Module {
    /// First address (AVMA).
    pub start: u64,
    /// One past the last address (AVMA).
    pub end: u64,
    /// Address (AVMA) that rows count from: `row.pc = pc - base`.
    pub base: u64,
    /// Index of its first bucket entry in `BUCKETS`.
    pub buckets: u32,
    /// How many bucket entries it has; 0 if the module has no table.
    pub bucket_count: u32,
}

/// A traced process, as the kernel sees it. Key: its tgid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Process {
    /// Changes whenever the process's code changes, so that no stack is mistaken for an older one.
    pub generation: u32,
    /// Index of its first module in `MODULES`.
    pub modules: u32,
    /// How many modules it has.
    pub module_count: u32,
    /// [`process_flag`] bits.
    pub flags: u32,
}

/// Bits of [`Process::flags`].
pub mod process_flag {
    /// Stop the process until the daemon has attached, when it forks, execs or maps code.
    pub const STOP_FOR_ATTACH: u32 = 1;
    /// Follow the children.
    pub const FOLLOW_CHILDREN: u32 = 2;
}

const _: () = {
    assert!(size_of::<Module>() == 32);
    assert!(size_of::<Process>() == 16);
    assert!(size_of::<RowChunk>() == 4096);
    assert!(size_of::<BucketChunk>() == 4096);
};
