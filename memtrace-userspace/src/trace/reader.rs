//! A file to records.

use std::io::{self, Read, Seek, SeekFrom};

use zerocopy::FromBytes;
use zstd::bulk::Decompressor;

use crate::record::Record;

use super::columns::Decoder;
use super::error::{Cut, Damage, TraceError, Truncation};
use super::format::{
    BLOCK, BlockHeader, END, EndMark, FLAG_INDEPENDENT, FileHeader, INDEX, IndexHeader,
    IndexTrailer, KEYFRAME, KeyframeHeader, MAGIC, MAX_BLOCK_RECORDS, MAX_INDEX_BYTES,
    MAX_PAYLOAD_BYTES, VERSION, header_crc,
};
use super::index::{self, Index};

/// Reads a trace, block by block.
///
/// Memory is bounded by the format's limits, whatever the file says: a block of 16 MiB in the
/// file, decompressed and by columns, one record of it, and the tables of the model.
pub struct Reader<R: Read> {
    input: R,
    decoder: Decoder,
    decompressor: Decompressor<'static>,
    /// The header or payload as it stands in the file, and the payload decompressed.
    compressed: Vec<u8>,
    payload: Vec<u8>,
    /// Records of the block that are not yet decoded.
    left: u32,
    blocks: u32,
    records: u64,
    /// Where the block starts that is being decoded, and where the next one does.
    block_offset: u64,
    offset: u64,
    /// The next block must be independent: nothing is known of those before.
    starts_over: bool,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Reading,
    Complete,
    Truncated(Truncation),
    Damaged {
        offset: u64,
        damage: Damage,
    },
    /// Bytes are missing in the middle, so what follows means nothing.
    Failed {
        offset: u64,
        kind: io::ErrorKind,
    },
}

/// What comes next in the file.
enum Next {
    Block,
    /// Something that only a reader of a part needs.
    Aside,
    Nothing(State),
}

impl<R: Read> Reader<R> {
    /// Reads the header of the file.
    pub fn new(mut input: R) -> Result<Reader<R>, TraceError> {
        let io_error = |source| TraceError::Io { offset: 0, source };
        let mut bytes = Vec::new();
        read_up_to(&mut input, size_of::<FileHeader>(), &mut bytes).map_err(io_error)?;
        if !bytes.iter().zip(&MAGIC).all(|(found, expected)| found == expected) {
            return Err(TraceError::NotATrace);
        }
        let Ok(header) = FileHeader::read_from_bytes(&bytes) else {
            return Err(TraceError::NoHeader { found_bytes: bytes.len() });
        };
        check_crc(&bytes, header.crc.get())
            .map_err(|damage| TraceError::Damaged { offset: 0, damage })?;
        if header.version.get() != VERSION {
            return Err(TraceError::Version { found: header.version.get(), supported: VERSION });
        }
        Ok(Reader {
            input,
            decoder: Decoder::new(),
            decompressor: Decompressor::new().map_err(io_error)?,
            compressed: Vec::new(),
            payload: Vec::new(),
            left: 0,
            blocks: 0,
            records: 0,
            block_offset: 0,
            offset: bytes.len() as u64,
            starts_over: true,
            state: State::Reading,
        })
    }

    /// Appends the next records, at most `limit`, and says how many.
    ///
    /// None means the end, or that the file was cut here ([`Self::truncation`]). An error ends the
    /// trace: every further call returns it again. The records before it are appended.
    pub fn read(&mut self, records: &mut Vec<Record>, limit: usize) -> Result<usize, TraceError> {
        while self.left == 0 {
            match self.state {
                State::Reading => {}
                State::Complete | State::Truncated(_) => return Ok(0),
                State::Damaged { offset, damage } => {
                    return Err(TraceError::Damaged { offset, damage });
                }
                State::Failed { offset, kind } => {
                    return Err(TraceError::Io { offset, source: kind.into() });
                }
            }
            self.next_block()?;
        }
        let count = limit.min(self.left as usize);
        let decoded = self.decoder.decode(records, count);
        self.left -= count as u32;
        let checked = match self.left {
            0 => decoded.and_then(|()| self.decoder.end_block()),
            _ => decoded,
        };
        checked.map(|()| count).map_err(|damage| self.damaged(self.block_offset, damage))
    }

    /// Where and how the file was cut; known once [`Self::read`] finds no more records.
    pub fn truncation(&self) -> Option<Truncation> {
        match self.state {
            State::Truncated(truncation) => Some(truncation),
            State::Reading | State::Complete | State::Damaged { .. } | State::Failed { .. } => None,
        }
    }

    /// How many records the trace has up to the last one given.
    pub fn position(&self) -> u64 {
        self.records - u64::from(self.left)
    }

    /// Bytes read so far, for a progress display.
    pub fn bytes_read(&self) -> u64 {
        self.offset
    }
}

impl<R: Read + Seek> Reader<R> {
    /// Goes on after `records` records, or at a place not far before: [`Self::position`] tells.
    pub fn seek(&mut self, index: &Index, records: u64) -> Result<(), TraceError> {
        let Some(segment) = index.segment_for(records) else {
            // Not even the first block is whole.
            return Ok(());
        };
        self.input
            .seek(SeekFrom::Start(segment.offset))
            .map_err(|source| TraceError::Io { offset: segment.offset, source })?;
        self.decoder = Decoder::new();
        self.left = 0;
        self.blocks = segment.blocks_before;
        self.records = segment.records_before;
        self.offset = segment.offset;
        self.block_offset = segment.offset;
        self.state = State::Reading;
        self.starts_over = true;
        Ok(())
    }

    /// The file, for reading an index or a keyframe; [`Self::seek`] has to follow.
    pub fn input(&mut self) -> &mut R {
        &mut self.input
    }
}

impl<R: Read> Reader<R> {
    fn damaged(&mut self, offset: u64, damage: Damage) -> TraceError {
        self.left = 0;
        self.state = State::Damaged { offset, damage };
        TraceError::Damaged { offset, damage }
    }

    fn next_block(&mut self) -> Result<(), TraceError> {
        self.block_offset = self.offset;
        match self.read_block() {
            Ok(Next::Block | Next::Aside) => Ok(()),
            Ok(Next::Nothing(state)) => {
                self.state = state;
                Ok(())
            }
            Err(Failure::Damage(damage)) => Err(self.damaged(self.block_offset, damage)),
            Err(Failure::Io(source)) => {
                self.state = State::Failed { offset: self.offset, kind: source.kind() };
                Err(TraceError::Io { offset: self.offset, source })
            }
        }
    }

    fn read_block(&mut self) -> Result<Next, Failure> {
        if let Some(cut) = self.read_header_part(4)? {
            return Ok(cut);
        }
        match self.compressed.first_chunk() {
            Some(&BLOCK) => {}
            Some(&KEYFRAME) => return self.pass_keyframe(),
            Some(&INDEX) => return self.pass_index(),
            Some(&END) => return self.read_end(),
            Some(_) | None => return Err(Damage::Marker.into()),
        }
        if let Some(cut) = self.read_header_part(size_of::<BlockHeader>())? {
            return Ok(cut);
        }
        let header = BlockHeader::read_from_bytes(&self.compressed)
            .expect("a header's worth of bytes was read");
        check_crc(&self.compressed, header.crc.get())?;
        let payload_bytes = header.payload_bytes.get();
        let raw_bytes = header.raw_bytes.get();
        let records = header.records.get();
        let flags = header.flags.get();
        if header.sequence.get() != self.blocks {
            let found = header.sequence.get();
            return Err(Damage::Sequence { expected: self.blocks, found }.into());
        }
        check_limit("the block's length", raw_bytes, MAX_PAYLOAD_BYTES)?;
        let bound = zstd::zstd_safe::compress_bound(MAX_PAYLOAD_BYTES);
        check_limit("the block's length in the file", payload_bytes, bound)?;
        check_limit("the number of records", records, MAX_BLOCK_RECORDS as usize)?;
        if records == 0 {
            return Err(Damage::UnknownValue { what: "the number of records", found: 0 }.into());
        }
        let independent = flags & FLAG_INDEPENDENT != 0;
        if flags & !FLAG_INDEPENDENT != 0 || (self.starts_over && !independent) {
            let found = u64::from(flags);
            return Err(Damage::UnknownValue { what: "the block's flags", found }.into());
        }

        self.compressed.clear();
        read_up_to(&mut self.input, payload_bytes as usize, &mut self.compressed)?;
        if self.compressed.len() < payload_bytes as usize {
            let lost = size_of::<BlockHeader>() + self.compressed.len();
            return Ok(self.cut(lost, Cut::Payload));
        }
        let found = crc32fast::hash(&self.compressed);
        let expected = header.payload_crc.get();
        if found != expected {
            return Err(Damage::PayloadChecksum { expected, found }.into());
        }
        self.payload.clear();
        self.payload.resize(raw_bytes as usize, 0);
        let decompressed =
            self.decompressor.decompress_to_buffer(&self.compressed, self.payload.as_mut_slice());
        if decompressed.ok() != Some(raw_bytes as usize) {
            return Err(Damage::Compression { expected: raw_bytes }.into());
        }
        self.decoder.start_block(&self.payload, independent)?;
        self.starts_over = false;
        self.offset += size_of::<BlockHeader>() as u64 + u64::from(payload_bytes);
        self.blocks += 1;
        self.records += u64::from(records);
        self.left = records;
        Ok(Next::Block)
    }

    /// Checks a keyframe and passes over it.
    fn pass_keyframe(&mut self) -> Result<Next, Failure> {
        if let Some(cut) = self.read_header_part(size_of::<KeyframeHeader>())? {
            return Ok(cut);
        }
        let header = KeyframeHeader::read_from_bytes(&self.compressed)
            .expect("a header's worth of bytes was read");
        index::check(&self.compressed, header.crc.get())?;
        let keyframe = index::keyframe(&header, self.offset)?;
        let (read, found) = self.pass(keyframe.snapshot_bytes)?;
        let header_bytes = size_of::<KeyframeHeader>() as u64;
        if read < keyframe.snapshot_bytes {
            return Ok(self.cut((header_bytes + read) as usize, Cut::Payload));
        }
        let expected = header.snapshot_crc.get();
        if found != expected {
            return Err(Damage::PayloadChecksum { expected, found }.into());
        }
        self.offset += header_bytes + read;
        Ok(Next::Aside)
    }

    /// Checks the index and passes over it.
    fn pass_index(&mut self) -> Result<Next, Failure> {
        if let Some(cut) = self.read_header_part(size_of::<IndexHeader>())? {
            return Ok(cut);
        }
        let header = IndexHeader::read_from_bytes(&self.compressed)
            .expect("a header's worth of bytes was read");
        check_crc(&self.compressed, header.crc.get())?;
        check_limit("the length of the index", header.payload_bytes.get(), MAX_INDEX_BYTES)?;
        let payload_bytes = header.payload_bytes.get() as usize;
        let frame_bytes = size_of::<IndexHeader>() + payload_bytes + size_of::<IndexTrailer>();
        self.payload.clear();
        let rest = frame_bytes - size_of::<IndexHeader>();
        read_up_to(&mut self.input, rest, &mut self.payload)?;
        if self.payload.len() < rest {
            let lost = size_of::<IndexHeader>() + self.payload.len();
            return Ok(self.cut(lost, Cut::Payload));
        }
        let (payload, trailer) = self.payload.split_at(payload_bytes);
        let (expected, found) = (header.payload_crc.get(), crc32fast::hash(payload));
        if found != expected {
            return Err(Damage::PayloadChecksum { expected, found }.into());
        }
        Index::decode(&header, payload)?;
        let trailer =
            IndexTrailer::read_from_bytes(trailer).expect("a trailer's worth of bytes was read");
        check_crc(&self.payload[payload_bytes..], trailer.crc.get())?;
        if trailer.marker != INDEX || trailer.frame_bytes.get() as usize != frame_bytes {
            return Err(Damage::Marker.into());
        }
        self.offset += frame_bytes as u64;
        Ok(Next::Aside)
    }

    /// Reads `count` bytes, or those that are left, and forgets them; gives their CRC-32.
    fn pass(&mut self, count: u64) -> io::Result<(u64, u32)> {
        let mut hasher = crc32fast::Hasher::new();
        let mut read = 0;
        while read < count {
            let chunk = (count - read).min(1 << 16) as usize;
            self.compressed.clear();
            read_up_to(&mut self.input, chunk, &mut self.compressed)?;
            hasher.update(&self.compressed);
            read += self.compressed.len() as u64;
            if self.compressed.len() < chunk {
                break;
            }
        }
        Ok((read, hasher.finalize()))
    }

    /// Reads the rest of the end mark and checks that it fits what was read.
    fn read_end(&mut self) -> Result<Next, Failure> {
        if let Some(cut) = self.read_header_part(size_of::<EndMark>())? {
            return Ok(cut);
        }
        let end = EndMark::read_from_bytes(&self.compressed).expect("an end mark's worth was read");
        check_crc(&self.compressed, end.crc.get())?;
        let (expected, found) = (end.records.get(), self.records);
        if end.blocks.get() != self.blocks || expected != found || end.offset.get() != self.offset {
            return Err(Damage::RecordCount { expected, found }.into());
        }
        self.offset += size_of::<EndMark>() as u64;
        self.compressed.clear();
        read_up_to(&mut self.input, 1, &mut self.compressed)?;
        if !self.compressed.is_empty() {
            return Err(Damage::AfterEnd.into());
        }
        Ok(Next::Nothing(State::Complete))
    }

    /// Reads on until `self.compressed` has `length` bytes of a header, from its first on.
    fn read_header_part(&mut self, length: usize) -> io::Result<Option<Next>> {
        if length == 4 {
            self.compressed.clear();
        }
        let missing = length - self.compressed.len();
        read_up_to(&mut self.input, missing, &mut self.compressed)?;
        let lost = self.compressed.len();
        Ok(match lost {
            0 => Some(self.cut(0, Cut::BetweenBlocks)),
            _ if lost < length => Some(self.cut(lost, Cut::Header)),
            _ => None,
        })
    }

    fn cut(&self, lost_bytes: usize, cut: Cut) -> Next {
        Next::Nothing(State::Truncated(Truncation {
            offset: self.offset,
            lost_bytes: lost_bytes as u64,
            cut,
        }))
    }
}

/// Why a block cannot be had.
enum Failure {
    Damage(Damage),
    Io(io::Error),
}

impl From<Damage> for Failure {
    fn from(damage: Damage) -> Failure {
        Failure::Damage(damage)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Io(error)
    }
}

/// Appends `count` bytes, or those that are left.
fn read_up_to(input: &mut impl Read, count: usize, bytes: &mut Vec<u8>) -> io::Result<()> {
    input.by_ref().take(count as u64).read_to_end(bytes).map(|_| ())
}

fn check_crc(header: &[u8], expected: u32) -> Result<(), Damage> {
    let found = header_crc(header);
    if found == expected { Ok(()) } else { Err(Damage::HeaderChecksum { expected, found }) }
}

fn check_limit(what: &'static str, found: u32, limit: usize) -> Result<(), Damage> {
    if found as usize <= limit {
        return Ok(());
    }
    Err(Damage::TooLarge { what, found: u64::from(found), limit: limit as u64 })
}
