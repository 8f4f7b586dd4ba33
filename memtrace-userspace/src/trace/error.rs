//! What can be wrong with a trace file, and with writing one.

#![expect(missing_docs, reason = "the fields of a variant are explained by its message")]

use std::io;

use thiserror::Error;

/// Why a trace file cannot be read.
#[derive(Debug, Error)]
pub enum TraceError {
    /// The file starts with something else.
    #[error("this is not a memtrace trace; `memtrace record -o FILE` writes one")]
    NotATrace,
    /// The file ends within its first 16 bytes.
    #[error("the trace ends after {found_bytes} bytes, before its first record; record it again")]
    NoHeader { found_bytes: usize },
    /// A newer memtrace wrote the file.
    #[error(
        "the trace has format version {found}, and this memtrace reads versions up to \
         {supported}; update memtrace"
    )]
    Version { found: u32, supported: u32 },
    /// The file was changed after it was written, or never was a trace.
    #[error(
        "the trace is damaged at byte {offset}: {damage}; copy it again from where it was \
         recorded, or record it again"
    )]
    Damaged { offset: u64, damage: Damage },
    /// The operating system did not give the bytes.
    #[error("cannot read the trace at byte {offset}; check the disk and the file's permissions")]
    Io { offset: u64, source: io::Error },
}

/// What is wrong with a damaged trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Damage {
    /// Neither a block nor the end mark.
    #[error("neither a block nor the end mark starts here")]
    Marker,
    /// A header's checksum differs.
    #[error("the header's checksum is {found:#010x}, not {expected:#010x}")]
    HeaderChecksum { expected: u32, found: u32 },
    /// A payload's checksum differs.
    #[error("the block's checksum is {found:#010x}, not {expected:#010x}")]
    PayloadChecksum { expected: u32, found: u32 },
    /// A block is missing, or is there twice.
    #[error("block {found} stands where block {expected} belongs")]
    Sequence { expected: u32, found: u32 },
    /// A length is beyond what any memtrace writes.
    #[error("{what} is {found}, and {limit} is the most")]
    TooLarge { what: &'static str, found: u64, limit: u64 },
    /// The payload does not decompress to what the header says.
    #[error("the block does not decompress to the {expected} bytes its header promises")]
    Compression { expected: u32 },
    /// A column or a row ends too early.
    #[error("{what} ends in the middle of a record")]
    ColumnEnds { what: &'static str },
    /// A column goes on behind the last record.
    #[error("{what} goes on behind the block's last record")]
    LeftOver { what: &'static str },
    /// A number that stands for nothing.
    #[error("{what} has the unknown value {found}")]
    UnknownValue { what: &'static str, found: u64 },
    /// A name that is always text is not.
    #[error("{what} is not UTF-8")]
    NotText { what: &'static str },
    /// Bytes behind the end mark.
    #[error("data follows the end mark")]
    AfterEnd,
    /// The end mark speaks of another number of records.
    #[error("the end mark counts {expected} records, and {found} were read")]
    RecordCount { expected: u64, found: u64 },
}

/// A trace that stops before its end mark: its writer was killed, or the file was cut.
///
/// Every record of every whole block before was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncation {
    /// Byte at which the last whole block ends: all that was read lies before.
    pub offset: u64,
    /// How many bytes of an unfinished block follow; 0 if the cut is at a block's end.
    pub lost_bytes: u64,
    /// What the cut went through.
    pub cut: Cut,
}

/// What a cut went through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Nothing: only the end mark is missing.
    BetweenBlocks,
    /// The header of a block, or the end mark.
    Header,
    /// The payload of a block.
    Payload,
}

impl std::fmt::Display for Truncation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Truncation { offset, lost_bytes, cut } = *self;
        match cut {
            Cut::BetweenBlocks => write!(f, "the trace stops at byte {offset} without an end mark"),
            Cut::Header => write!(
                f,
                "the trace stops at byte {offset}, and {lost_bytes} bytes of a block's header follow"
            ),
            Cut::Payload => write!(
                f,
                "the trace stops at byte {offset}, and {lost_bytes} bytes of an unfinished block follow"
            ),
        }
    }
}

/// Why a trace cannot be written.
#[derive(Debug, Error)]
pub enum WriteError {
    /// The output did not take the bytes. The file is readable up to `offset`.
    #[error(
        "cannot write {what} at byte {offset} of the trace; free some space, or choose another \
         file with -o"
    )]
    Io { what: &'static str, offset: u64, source: io::Error },
    /// An earlier write failed, so that the file ends there.
    #[error("the trace ends at byte {offset}, where an earlier write failed; record it again")]
    AlreadyFailed { offset: u64 },
    /// A record larger than any that Linux lets a program cause. Nothing of it was written.
    #[error("a record of {bytes} bytes exceeds the trace's limit of {limit}; leave it out")]
    RecordTooLarge { bytes: usize, limit: usize },
    /// A stack deeper than any walk goes. Nothing of it was written.
    #[error("a stack of {frames} frames exceeds the trace's limit of {limit}; cut it")]
    StackTooDeep { frames: usize, limit: usize },
}
