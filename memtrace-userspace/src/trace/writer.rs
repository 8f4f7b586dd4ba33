//! Records to a file.

use std::io::{self, Write};

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};
use zstd::bulk::Compressor;

use crate::batches::RECORDS_LOADED_TOGETHER;
use crate::record::{Level, Record, Time};

use super::columns::{Encoder, Next, Summary};
use super::error::WriteError;
use super::format::{
    BLOCK, BLOCK_ROW_BYTES, BlockHeader, END, EndMark, FLAG_INDEPENDENT, FileHeader,
    KeyframeHeader, MAGIC, MAX_BLOCK_RECORDS, MAX_KEYFRAME_BYTES, MAX_ROW_BYTES, MAX_STACK_FRAMES,
    VERSION, header_crc,
};
use super::index::{Index, Keyframe, Segment};
use super::rows;

/// zstd's fastest ordinary level: the columns are small already, and the writer must keep up.
const ZSTD_LEVEL: i32 = 1;

/// After how many bytes decoding can begin anew: 1 to 3 million events.
///
/// Starting over costs what the model has learned, which is less than 1% of so much.
const SEGMENT_BYTES: u64 = 2 << 20;

/// Writes a trace.
///
/// Records are gathered into blocks, and each block is written with one call once it is full, or
/// when [`flush_block`](Self::flush_block) asks for it. A writer that is killed leaves all whole
/// blocks behind. After a failed write nothing more is written, because the file would go on
/// behind half a block.
pub struct Writer<W: Write> {
    out: W,
    encoder: Encoder,
    compressor: Compressor<'static>,
    /// The payload before compression, and the block as it is written.
    payload: Vec<u8>,
    block: Vec<u8>,
    blocks: u32,
    records: u64,
    offset: u64,
    /// Times for the header of a block that has none.
    times: (Time, Time),
    index: Index,
    /// Where the segment under way starts.
    segment_offset: u64,
    failed: bool,
}

impl<W: Write> Writer<W> {
    /// Starts a trace and writes its header.
    pub fn new(out: W) -> Result<Writer<W>, WriteError> {
        let compressor = Compressor::new(ZSTD_LEVEL).map_err(|source| WriteError::Io {
            what: "the header",
            offset: 0,
            source,
        })?;
        let mut writer = Writer {
            out,
            encoder: Encoder::new(),
            compressor,
            payload: Vec::new(),
            block: Vec::new(),
            blocks: 0,
            records: 0,
            offset: 0,
            times: (Time(0), Time(0)),
            index: Index::new(),
            segment_offset: 0,
            failed: false,
        };
        let mut header = FileHeader { magic: MAGIC, version: U32::new(VERSION), crc: U32::ZERO };
        header.crc = U32::new(header_crc(header.as_bytes()));
        writer.block.extend_from_slice(header.as_bytes());
        writer.write_block("the header")?;
        Ok(writer)
    }

    /// Appends records, as [`Writer::write`] does: faster than one by one.
    pub fn write_all(&mut self, records: &[Record]) -> Result<(), WriteError> {
        for records in records.chunks(RECORDS_LOADED_TOGETHER) {
            self.encoder.load(records);
            for record in records {
                self.write(record)?;
            }
        }
        Ok(())
    }

    /// Appends a record, and writes a block if that is full.
    #[inline]
    pub fn write(&mut self, record: &Record) -> Result<(), WriteError> {
        let bytes = rows::bytes_bound(record);
        if bytes > MAX_ROW_BYTES {
            return Err(WriteError::RecordTooLarge { bytes, limit: MAX_ROW_BYTES });
        }
        if let Record::Stack { frames, .. } = record
            && frames.len() > MAX_STACK_FRAMES
        {
            let frames = frames.len();
            return Err(WriteError::StackTooDeep { frames, limit: MAX_STACK_FRAMES });
        }
        if bytes > 0 && self.encoder.row_bytes() + bytes > BLOCK_ROW_BYTES {
            self.flush_block()?;
        }
        self.encoder.push(record);
        if let Record::Mark { text, .. } = record {
            self.index.add_mark(self.records + self.encoder.records() as u64, text);
        }
        // A row that fills a block alone leaves no room for columns, so that block ends with it.
        if self.encoder.records() >= MAX_BLOCK_RECORDS as usize
            || self.encoder.row_bytes() >= BLOCK_ROW_BYTES
        {
            self.flush_block()?;
        }
        Ok(())
    }

    /// Writes what was gathered, so that it survives the writer.
    ///
    /// Costs a little size; once a second costs nothing to speak of.
    pub fn flush_block(&mut self) -> Result<(), WriteError> {
        if self.failed {
            return Err(WriteError::AlreadyFailed { offset: self.offset });
        }
        if self.encoder.records() == 0 {
            return Ok(());
        }
        let next = match self.offset - self.segment_offset {
            0..SEGMENT_BYTES => Next::GoesOn,
            _ => Next::Independent,
        };
        let Summary { records, times, independent } =
            self.encoder.finish_block(&mut self.payload, next);
        self.times = times.unwrap_or(self.times);
        if let Err(source) = self.compress_payload() {
            self.failed = true;
            return Err(WriteError::Io { what: "a block", offset: self.offset, source });
        }
        let payload = &self.block[size_of::<BlockHeader>()..];
        let mut header = BlockHeader {
            marker: BLOCK,
            sequence: U32::new(self.blocks),
            flags: U32::new(if independent { FLAG_INDEPENDENT } else { 0 }),
            records: U32::new(records),
            // The encoder keeps payloads below `MAX_PAYLOAD_BYTES`, which has 25 bits.
            payload_bytes: U32::new(payload.len() as u32),
            raw_bytes: U32::new(self.payload.len() as u32),
            first_time: U64::new(self.times.0.0),
            last_time: U64::new(self.times.1.0),
            payload_crc: U32::new(crc32fast::hash(payload)),
            crc: U32::ZERO,
        };
        header.crc = U32::new(header_crc(header.as_bytes()));
        self.block[..size_of::<BlockHeader>()].copy_from_slice(header.as_bytes());
        let segment = Segment {
            offset: self.offset,
            blocks_before: self.blocks,
            records_before: self.records,
        };
        self.write_block("a block")?;
        if independent {
            self.segment_offset = segment.offset;
            self.index.add_segment(segment);
        }
        self.blocks += 1;
        self.records += u64::from(records);
        Ok(())
    }

    /// Writes a keyframe: the level after some of the records, which may have been written before,
    /// and what was held then, as a trace; an empty one if that is not to be had.
    pub fn write_keyframe(&mut self, level: &Level, snapshot: &[u8]) -> Result<(), WriteError> {
        if self.failed {
            return Err(WriteError::AlreadyFailed { offset: self.offset });
        }
        if snapshot.len() as u64 > MAX_KEYFRAME_BYTES {
            let (bytes, limit) = (snapshot.len(), MAX_KEYFRAME_BYTES as usize);
            return Err(WriteError::RecordTooLarge { bytes, limit });
        }
        let snapshot_bytes = snapshot.len() as u64;
        let keyframe = Keyframe { level: *level, offset: self.offset, snapshot_bytes };
        let mut header = KeyframeHeader::from(keyframe);
        header.snapshot_crc = U32::new(crc32fast::hash(snapshot));
        header.crc = U32::new(header_crc(header.as_bytes()));
        self.block.clear();
        self.block.extend_from_slice(header.as_bytes());
        self.block.extend_from_slice(snapshot);
        self.write_block("a keyframe")?;
        self.index.add_keyframe(keyframe);
        Ok(())
    }

    /// Writes the last block, the index and the end mark; returns the output.
    ///
    /// Does not sync the output to the disk.
    pub fn finish(mut self) -> Result<W, WriteError> {
        self.flush_block()?;
        self.block = self.index.encode(self.records);
        self.write_block("the index")?;
        let mut end = EndMark {
            marker: END,
            blocks: U32::new(self.blocks),
            records: U64::new(self.records),
            offset: U64::new(self.offset),
            crc: U32::ZERO,
        };
        end.crc = U32::new(header_crc(end.as_bytes()));
        self.block.clear();
        self.block.extend_from_slice(end.as_bytes());
        self.write_block("the end mark")?;
        Ok(self.out)
    }

    /// Bytes written so far; everything before can be read, whatever comes.
    pub fn bytes_written(&self) -> u64 {
        self.offset
    }

    /// Puts room for a header and the compressed payload into `self.block`.
    fn compress_payload(&mut self) -> io::Result<()> {
        let header = size_of::<BlockHeader>();
        let bound = zstd::zstd_safe::compress_bound(self.payload.len());
        self.block.clear();
        self.block.resize(header + bound, 0);
        let length =
            self.compressor.compress_to_buffer(&self.payload, &mut self.block[header..])?;
        self.block.truncate(header + length);
        Ok(())
    }

    fn write_block(&mut self, what: &'static str) -> Result<(), WriteError> {
        let written = self.out.write_all(&self.block).and_then(|()| self.out.flush());
        if let Err(source) = written {
            self.failed = true;
            return Err(WriteError::Io { what, offset: self.offset, source });
        }
        self.offset += self.block.len() as u64;
        Ok(())
    }
}
