//! The frame of a trace file: header, block headers, end mark, and the limits on all of them.
//!
//! ```text
//!   | FileHeader 16 | BlockHeader 48 | payload | BlockHeader 48 | payload | … | EndMark 28 |
//! ```
//!
//! Numbers are little-endian and unaligned, so a header is read from wherever it lies. What is
//! inside a payload is the business of [`super::columns`] and [`super::rows`].

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes of every trace file; the first is no ASCII, the last is damaged by text transfers.
pub(super) const MAGIC: [u8; 8] = *b"\x89MTRACE\n";

/// The version that this memtrace writes, and the newest that it reads.
pub const VERSION: u32 = 1;

/// Marker of a block.
pub(super) const BLOCK: [u8; 4] = *b"BLK\n";

/// Marker of the end of a trace that was finished in order.
pub(super) const END: [u8; 4] = *b"END\n";

/// The most bytes of a payload, decompressed.
///
/// The largest record is a command line, which Linux limits to 6 MiB: three million arguments of
/// one byte and its zero, which take five bytes each here.
pub(super) const MAX_PAYLOAD_BYTES: usize = 16 << 20;

/// The most bytes of one row; the rest of a payload is room for columns.
pub(super) const MAX_ROW_BYTES: usize = MAX_PAYLOAD_BYTES - (64 << 10);

/// The most frames of a stack: far more than the kernel's walk records.
///
/// A frame can be one byte here and is eight in memory, sixteen while it is decoded.
pub(super) const MAX_STACK_FRAMES: usize = 1 << 16;

/// The most records of a block.
pub(super) const MAX_BLOCK_RECORDS: u32 = 1 << 16;

/// Row bytes after which the writer ends a block.
///
/// A record takes 80 bytes in the columns at most, so a block stays far below
/// [`MAX_PAYLOAD_BYTES`] unless one row alone is larger than this.
pub(super) const BLOCK_ROW_BYTES: usize = 1 << 20;

/// Bit of [`BlockHeader::flags`]: the block can be decoded without those before it.
pub(super) const FLAG_INDEPENDENT: u32 = 1;

/// The start of the file. Its layout is the same in every version.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct FileHeader {
    /// [`MAGIC`].
    pub(super) magic: [u8; 8],
    /// [`VERSION`] of the writer.
    pub(super) version: U32,
    /// CRC-32 of the bytes before.
    pub(super) crc: U32,
}

/// The start of a block; `payload_bytes` of zstd follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct BlockHeader {
    /// [`BLOCK`].
    pub(super) marker: [u8; 4],
    /// How many blocks come before.
    pub(super) sequence: U32,
    /// [`FLAG_INDEPENDENT`].
    pub(super) flags: U32,
    /// How many records the block holds; never 0.
    pub(super) records: U32,
    /// Bytes of the payload in the file.
    pub(super) payload_bytes: U32,
    /// Bytes of the payload when decompressed.
    pub(super) raw_bytes: U32,
    /// The lowest time in the block, in nanoseconds since the session started.
    ///
    /// A block without times has the times of the block before, or zeros.
    pub(super) first_time: U64,
    /// The highest time in the block.
    pub(super) last_time: U64,
    /// CRC-32 of the payload in the file.
    pub(super) payload_crc: U32,
    /// CRC-32 of the bytes before.
    pub(super) crc: U32,
}

/// The end of a trace that was finished in order. Nothing follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct EndMark {
    /// [`END`].
    pub(super) marker: [u8; 4],
    /// How many blocks come before.
    pub(super) blocks: U32,
    /// How many records they hold.
    pub(super) records: U64,
    /// Where this mark starts in the file.
    pub(super) offset: U64,
    /// CRC-32 of the bytes before.
    pub(super) crc: U32,
}

const _: () = {
    assert!(size_of::<FileHeader>() == 16);
    assert!(size_of::<BlockHeader>() == 48);
    assert!(size_of::<EndMark>() == 28);
};

/// CRC-32 (IEEE) of everything but the last four bytes, which hold it.
pub(super) fn header_crc(header: &[u8]) -> u32 {
    crc32fast::hash(&header[..header.len().saturating_sub(4)])
}
