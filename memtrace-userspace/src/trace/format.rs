//! The frame of a trace file: header, block headers, end mark, and the limits on all of them.
//!
//! ```text
//!   | FileHeader 16 | BlockHeader 48 | payload | BlockHeader 48 | payload | … | EndMark 28 |
//!   between blocks  | KeyframeHeader 76 | snapshot |
//!   before the end  | IndexHeader 36 | payload | IndexTrailer 12 |
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

/// Marker of a keyframe.
pub(super) const KEYFRAME: [u8; 4] = *b"KEY\n";

/// Marker of the index, at its start and at its end.
pub(super) const INDEX: [u8; 4] = *b"IDX\n";

/// The most bytes of a keyframe's snapshot.
pub(super) const MAX_KEYFRAME_BYTES: u64 = 1 << 30;

/// The most bytes of an index, header and trailer included.
pub(super) const MAX_INDEX_BYTES: usize = 16 << 20;

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

/// The start of a keyframe; `snapshot_bytes` of a trace of its own follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct KeyframeHeader {
    /// [`KEYFRAME`].
    pub(super) marker: [u8; 4],
    /// CRC-32 of the snapshot; 0 in the index.
    pub(super) snapshot_crc: U32,
    /// How many records of this trace it takes in.
    pub(super) records: U64,
    /// The time by then.
    pub(super) time: U64,
    /// Live heap bytes of the running processes by then.
    pub(super) live_bytes: U64,
    /// Their mapped bytes.
    pub(super) mapped_bytes: U64,
    /// The most live bytes since the keyframe before.
    pub(super) peak_live_bytes: U64,
    /// After how many records that was first reached.
    pub(super) peak_records: U64,
    /// When.
    pub(super) peak_at: U64,
    /// Bytes of the snapshot; 0 if there is none.
    pub(super) snapshot_bytes: U64,
    /// CRC-32 of the bytes before.
    pub(super) crc: U32,
}

/// The start of the index: segments, keyframes and marks follow, then an [`IndexTrailer`].
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct IndexHeader {
    /// [`INDEX`].
    pub(super) marker: [u8; 4],
    /// How many segments are listed.
    pub(super) segments: U32,
    /// How many keyframes.
    pub(super) keyframes: U32,
    /// How many marks; all ones if the trace has more than an index lists.
    pub(super) marks: U32,
    /// How many records the trace has.
    pub(super) records: U64,
    /// Bytes between this header and the trailer.
    pub(super) payload_bytes: U32,
    /// CRC-32 of these.
    pub(super) payload_crc: U32,
    /// CRC-32 of the bytes before.
    pub(super) crc: U32,
}

/// A segment in the index.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct SegmentEntry {
    /// Where its first block starts in the file.
    pub(super) offset: U64,
    /// Records before it.
    pub(super) records_before: U64,
    /// Blocks before it.
    pub(super) blocks_before: U32,
}

/// The end of the index, just before the end mark: from here one finds its start.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct IndexTrailer {
    /// Bytes of the whole index, this trailer included.
    pub(super) frame_bytes: U32,
    /// [`INDEX`].
    pub(super) marker: [u8; 4],
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
    assert!(size_of::<KeyframeHeader>() == 76);
    assert!(size_of::<IndexHeader>() == 36);
    assert!(size_of::<SegmentEntry>() == 20);
    assert!(size_of::<IndexTrailer>() == 12);
};

/// CRC-32 (IEEE) of everything but the last four bytes, which hold it.
pub(super) fn header_crc(header: &[u8]) -> u32 {
    crc32fast::hash(&header[..header.len().saturating_sub(4)])
}
