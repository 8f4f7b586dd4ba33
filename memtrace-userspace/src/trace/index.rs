//! Where things are in a trace, so that a part of it can be read without the rest.
//!
//! ```text
//!   | header | BLK BLK … | KEY | BLK … | IDX | END |
//!             segment 0    │    segment 1   └ offsets of segments and keyframes, and the marks
//!                          └ a heap snapshot as of a record, and the level since the last one
//! ```
//!
//! A *segment* is a run of blocks that begins with an independent one, so decoding can begin
//! there. A *keyframe* is all that was held after a number of records, as a trace of its own; a
//! pipeline that has read it can go on from there. Both are told by their headers, so a trace
//! whose writer was killed before the index has one made of those.
//!
//! Everything here says again what the blocks say; a reader of the whole trace passes over it.

use std::io::{self, Read, Seek, SeekFrom};

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use crate::record::{Level, Time};

use super::error::{Damage, TraceError};
use super::format::{
    BLOCK, BlockHeader, END, EndMark, FLAG_INDEPENDENT, FileHeader, INDEX, IndexHeader,
    IndexTrailer, KEYFRAME, KeyframeHeader, MAX_INDEX_BYTES, MAX_KEYFRAME_BYTES, SegmentEntry,
    header_crc,
};

/// The most segments that an index lists. Beyond: every other one is joined to the one before.
pub(super) const MAX_SEGMENTS: usize = 1 << 16;

/// The most keyframes that an index lists. Beyond: the oldest snapshots are not listed.
const MAX_KEYFRAMES: usize = 1 << 16;

/// The most marks that an index lists, as many as the pipeline keeps.
const MAX_MARKS: usize = 1 << 10;

/// The most bytes of a mark in the index. Longer ones are found by reading the trace.
const MAX_MARK_BYTES: usize = 1 << 10;

/// A run of blocks, the first of which is independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// Where its first block starts in the file.
    pub(super) offset: u64,
    /// Blocks before it.
    pub(super) blocks_before: u32,
    /// Records before it.
    pub(super) records_before: u64,
}

/// What was held after a number of records, and its place in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keyframe {
    /// How much was held, and the most since the keyframe before.
    pub level: Level,
    /// Where the frame starts in the file.
    pub(super) offset: u64,
    /// Bytes of its snapshot; 0 if it has none.
    pub(super) snapshot_bytes: u64,
}

/// A mark and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkPlace {
    /// How many records go up to it, itself included.
    pub records: u64,
    /// The user's words.
    pub text: String,
}

/// Segments, keyframes and marks of a trace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    pub(super) segments: Vec<Segment>,
    keyframes: Vec<Keyframe>,
    /// `None` if only the records know them.
    marks: Option<Vec<MarkPlace>>,
    /// How many records the trace has; `None` if it was cut.
    records: Option<u64>,
}

impl Keyframe {
    /// Whether it says what was held, and not only how much.
    pub fn has_snapshot(&self) -> bool {
        self.snapshot_bytes > 0
    }
}

impl Index {
    /// An index of nothing, for a writer.
    pub(super) fn new() -> Index {
        Index { marks: Some(Vec::new()), ..Index::default() }
    }

    /// Reads the index of a trace, or makes one from the headers of its blocks.
    pub fn read(file: &mut (impl Read + Seek)) -> Result<Index, TraceError> {
        let failed = |source| TraceError::Io { offset: 0, source };
        match read_written(file).map_err(failed)? {
            Some(index) => Ok(index),
            None => {
                file.seek(SeekFrom::Start(size_of::<FileHeader>() as u64)).map_err(failed)?;
                scan(file)
            }
        }
    }

    /// The keyframes, in order.
    pub fn keyframes(&self) -> &[Keyframe] {
        &self.keyframes
    }

    /// The marks in order; `None` if the trace must be read to know them.
    pub fn marks(&self) -> Option<&[MarkPlace]> {
        self.marks.as_deref()
    }

    /// How many records the trace has; `None` if it was cut.
    pub fn records(&self) -> Option<u64> {
        self.records
    }

    /// The last segment that begins with at most `records` records before it.
    pub(super) fn segment_for(&self, records: u64) -> Option<&Segment> {
        let after = self.segments.partition_point(|segment| segment.records_before <= records);
        self.segments[..after].last()
    }

    pub(super) fn add_segment(&mut self, segment: Segment) {
        if self.segments.len() >= MAX_SEGMENTS {
            let mut index = 0;
            self.segments.retain(|_| {
                index += 1;
                index % 2 == 1
            });
        }
        self.segments.push(segment);
    }

    pub(super) fn add_keyframe(&mut self, keyframe: Keyframe) {
        if self.keyframes.len() >= MAX_KEYFRAMES {
            join_keyframes(&mut self.keyframes);
        }
        self.keyframes.push(keyframe);
    }

    pub(super) fn add_mark(&mut self, records: u64, text: &str) {
        if let Some(marks) = &mut self.marks {
            if marks.len() < MAX_MARKS && text.len() <= MAX_MARK_BYTES {
                marks.push(MarkPlace { records, text: text.to_owned() });
            } else {
                self.marks = None;
            }
        }
    }

    /// The frame as it stands in the file.
    pub(super) fn encode(&self, records: u64) -> Vec<u8> {
        let mut payload = Vec::new();
        for segment in &self.segments {
            payload.extend_from_slice(SegmentEntry::from(*segment).as_bytes());
        }
        for keyframe in &self.keyframes {
            payload.extend_from_slice(KeyframeHeader::from(*keyframe).as_bytes());
            payload.extend_from_slice(&keyframe.offset.to_le_bytes());
        }
        for MarkPlace { records, text } in self.marks.iter().flatten() {
            payload.extend_from_slice(&records.to_le_bytes());
            payload.extend_from_slice(&(text.len() as u32).to_le_bytes());
            payload.extend_from_slice(text.as_bytes());
        }
        let mut header = IndexHeader {
            marker: INDEX,
            segments: U32::new(self.segments.len() as u32),
            keyframes: U32::new(self.keyframes.len() as u32),
            marks: U32::new(self.marks.as_ref().map_or(u32::MAX, |marks| marks.len() as u32)),
            records: U64::new(records),
            // Below `MAX_INDEX_BYTES`, by the limits above.
            payload_bytes: U32::new(payload.len() as u32),
            payload_crc: U32::new(crc32fast::hash(&payload)),
            crc: U32::ZERO,
        };
        header.crc = U32::new(header_crc(header.as_bytes()));
        let mut trailer = IndexTrailer { frame_bytes: U32::ZERO, marker: INDEX, crc: U32::ZERO };
        let frame_bytes = size_of::<IndexHeader>() + payload.len() + size_of::<IndexTrailer>();
        trailer.frame_bytes = U32::new(frame_bytes as u32);
        trailer.crc = U32::new(header_crc(trailer.as_bytes()));
        [header.as_bytes(), &payload, trailer.as_bytes()].concat()
    }

    /// Takes the payload apart; what an index says that cannot be true is damage.
    pub(super) fn decode(header: &IndexHeader, payload: &[u8]) -> Result<Index, Damage> {
        let ends = Damage::ColumnEnds { what: "the index" };
        let wrong = |what, found| Damage::UnknownValue { what, found };
        let mut rest = payload;
        let mut index = Index { records: Some(header.records.get()), ..Index::default() };
        for _ in 0..header.segments.get() {
            let (entry, after) = SegmentEntry::read_from_prefix(rest).map_err(|_| ends)?;
            let segment = Segment::from(entry);
            if index.segments.last().is_some_and(|last| last.offset >= segment.offset) {
                return Err(wrong("the offset of a segment", segment.offset));
            }
            index.segments.push(segment);
            rest = after;
        }
        for _ in 0..header.keyframes.get() {
            let (entry, after) = KeyframeHeader::read_from_prefix(rest).map_err(|_| ends)?;
            check(entry.as_bytes(), entry.crc.get())?;
            let (offset, after) = U64::read_from_prefix(after).map_err(|_| ends)?;
            let keyframe = keyframe(&entry, offset.get())?;
            if index
                .keyframes
                .last()
                .is_some_and(|last| last.level.records > keyframe.level.records)
            {
                return Err(wrong("the records of a keyframe", keyframe.level.records));
            }
            index.keyframes.push(keyframe);
            rest = after;
        }
        if header.marks.get() != u32::MAX {
            let mut marks = Vec::new();
            for _ in 0..header.marks.get() {
                let (records, after) = U64::read_from_prefix(rest).map_err(|_| ends)?;
                let (length, after) = U32::read_from_prefix(after).map_err(|_| ends)?;
                let (text, after) = after.split_at_checked(length.get() as usize).ok_or(ends)?;
                let text = str::from_utf8(text).map_err(|_| Damage::NotText { what: "a mark" })?;
                marks.push(MarkPlace { records: records.get(), text: text.to_owned() });
                rest = after;
            }
            index.marks = Some(marks);
        }
        if rest.is_empty() { Ok(index) } else { Err(Damage::LeftOver { what: "the index" }) }
    }
}

/// Halves the keyframes; what is left has the peaks of those that are gone.
fn join_keyframes(keyframes: &mut Vec<Keyframe>) {
    let (pairs, _) = keyframes.as_chunks();
    let joined = pairs.iter().map(|&[first, second]: &[Keyframe; 2]| {
        let Level { peak_live_bytes, peak_records, peak_at, .. } = first.level;
        if peak_live_bytes < second.level.peak_live_bytes {
            return second;
        }
        let level = Level { peak_live_bytes, peak_records, peak_at, ..second.level };
        Keyframe { level, ..second }
    });
    *keyframes = joined.collect();
}

/// The index that the writer has put before the end mark; `None` if there is none that holds.
fn read_written(file: &mut (impl Read + Seek)) -> io::Result<Option<Index>> {
    let tail = size_of::<IndexTrailer>() + size_of::<EndMark>();
    let length = file.seek(SeekFrom::End(0))?;
    let Some(tail_start) = length.checked_sub(tail as u64) else { return Ok(None) };
    file.seek(SeekFrom::Start(tail_start))?;
    let mut bytes = vec![0; tail];
    file.read_exact(&mut bytes)?;
    let (trailer, end) = bytes.split_at(size_of::<IndexTrailer>());
    let (Ok(trailer), Ok(end)) =
        (IndexTrailer::read_from_bytes(trailer), EndMark::read_from_bytes(end))
    else {
        return Ok(None);
    };
    let end_start = length - size_of::<EndMark>() as u64;
    let frame_bytes = trailer.frame_bytes.get() as usize;
    let around = size_of::<IndexHeader>() + size_of::<IndexTrailer>();
    if end.marker != END
        || header_crc(end.as_bytes()) != end.crc.get()
        || end.offset.get() != end_start
        || trailer.marker != INDEX
        || header_crc(trailer.as_bytes()) != trailer.crc.get()
        || !(around..=MAX_INDEX_BYTES).contains(&frame_bytes)
    {
        return Ok(None);
    }
    let Some(start) = end_start.checked_sub(frame_bytes as u64) else { return Ok(None) };
    file.seek(SeekFrom::Start(start))?;
    let mut frame = vec![0; frame_bytes - size_of::<IndexTrailer>()];
    file.read_exact(&mut frame)?;
    let Ok((header, payload)) = IndexHeader::read_from_prefix(&frame) else { return Ok(None) };
    if header.marker != INDEX
        || header_crc(header.as_bytes()) != header.crc.get()
        || header.payload_bytes.get() as usize != payload.len()
        || crc32fast::hash(payload) != header.payload_crc.get()
        || header.records != end.records
    {
        return Ok(None);
    }
    Ok(Index::decode(&header, payload).ok())
}

/// Makes an index from the headers of all frames, up to where they end or make no sense: the
/// reader says what is wrong there, if it gets there.
fn scan(file: &mut (impl Read + Seek)) -> Result<Index, TraceError> {
    let mut index = Index::default();
    let mut offset = size_of::<FileHeader>() as u64;
    let (mut blocks, mut records) = (0u32, 0u64);
    let length = file.seek(SeekFrom::End(0)).map_err(|source| TraceError::Io { offset, source })?;
    loop {
        let failed = |source| TraceError::Io { offset, source };
        file.seek(SeekFrom::Start(offset)).map_err(failed)?;
        let mut head = Vec::with_capacity(size_of::<KeyframeHeader>());
        file.take(size_of::<KeyframeHeader>() as u64).read_to_end(&mut head).map_err(failed)?;
        let frame_bytes = match head.first_chunk() {
            Some(&BLOCK) => {
                let Ok((header, _)) = BlockHeader::read_from_prefix(&head) else { break };
                if header_crc(header.as_bytes()) != header.crc.get() {
                    break;
                }
                if header.flags.get() & FLAG_INDEPENDENT != 0 {
                    index.add_segment(Segment {
                        offset,
                        blocks_before: blocks,
                        records_before: records,
                    });
                }
                blocks = blocks.wrapping_add(1);
                records = records.saturating_add(u64::from(header.records.get()));
                size_of::<BlockHeader>() as u64 + u64::from(header.payload_bytes.get())
            }
            Some(&KEYFRAME) => {
                let Ok((header, _)) = KeyframeHeader::read_from_prefix(&head) else { break };
                let Ok(()) = check(header.as_bytes(), header.crc.get()) else { break };
                let Ok(keyframe) = keyframe(&header, offset) else { break };
                let frame_bytes = size_of::<KeyframeHeader>() as u64 + keyframe.snapshot_bytes;
                let least = index.keyframes.last().map_or(0, |last| last.level.records);
                let is_next = least <= keyframe.level.records;
                if is_next && offset.saturating_add(frame_bytes) <= length {
                    index.add_keyframe(keyframe);
                }
                frame_bytes
            }
            Some(&INDEX) => {
                let Ok((header, _)) = IndexHeader::read_from_prefix(&head) else { break };
                let around = size_of::<IndexHeader>() + size_of::<IndexTrailer>();
                around as u64 + u64::from(header.payload_bytes.get())
            }
            Some(&END) => {
                index.records = Some(records);
                break;
            }
            Some(_) | None => break,
        };
        offset = offset.saturating_add(frame_bytes);
    }
    Ok(index)
}

/// Reads the snapshot of a keyframe: a trace of its own.
pub fn read_snapshot(
    file: &mut (impl Read + Seek),
    keyframe: &Keyframe,
) -> Result<Vec<u8>, TraceError> {
    let offset = keyframe.offset;
    let failed = |source| TraceError::Io { offset, source };
    let damaged = |damage| TraceError::Damaged { offset, damage };
    file.seek(SeekFrom::Start(offset)).map_err(failed)?;
    let mut head = [0; size_of::<KeyframeHeader>()];
    file.read_exact(&mut head).map_err(failed)?;
    let header = KeyframeHeader::read_from_bytes(&head).expect("a header's worth of bytes");
    if header.marker != KEYFRAME {
        return Err(damaged(Damage::Marker));
    }
    check(&head, header.crc.get()).map_err(damaged)?;
    let bytes = keyframe.snapshot_bytes;
    if header.snapshot_bytes.get() != bytes || bytes > MAX_KEYFRAME_BYTES {
        let what = "the length of a keyframe";
        return Err(damaged(Damage::UnknownValue { what, found: header.snapshot_bytes.get() }));
    }
    let mut snapshot = Vec::new();
    file.take(bytes).read_to_end(&mut snapshot).map_err(failed)?;
    if snapshot.len() as u64 != bytes {
        return Err(damaged(Damage::ColumnEnds { what: "a keyframe" }));
    }
    let (expected, found) = (header.snapshot_crc.get(), crc32fast::hash(&snapshot));
    if expected != found {
        return Err(damaged(Damage::PayloadChecksum { expected, found }));
    }
    Ok(snapshot)
}

pub(super) fn check(header: &[u8], expected: u32) -> Result<(), Damage> {
    let found = header_crc(header);
    if found == expected { Ok(()) } else { Err(Damage::HeaderChecksum { expected, found }) }
}

/// What a header says, if it can be true.
pub(super) fn keyframe(header: &KeyframeHeader, offset: u64) -> Result<Keyframe, Damage> {
    let snapshot_bytes = header.snapshot_bytes.get();
    if snapshot_bytes > MAX_KEYFRAME_BYTES {
        let what = "the length of a keyframe";
        return Err(Damage::TooLarge { what, found: snapshot_bytes, limit: MAX_KEYFRAME_BYTES });
    }
    let level = Level {
        records: header.records.get(),
        time: Time(header.time.get()),
        live_bytes: header.live_bytes.get(),
        mapped_bytes: header.mapped_bytes.get(),
        peak_live_bytes: header.peak_live_bytes.get(),
        peak_records: header.peak_records.get(),
        peak_at: Time(header.peak_at.get()),
    };
    Ok(Keyframe { level, offset, snapshot_bytes })
}

impl From<Keyframe> for KeyframeHeader {
    /// A header without the checksum of a snapshot.
    fn from(keyframe: Keyframe) -> KeyframeHeader {
        let Keyframe { level, offset: _, snapshot_bytes } = keyframe;
        let Level {
            records,
            time,
            live_bytes,
            mapped_bytes,
            peak_live_bytes,
            peak_records,
            peak_at,
        } = level;
        let mut header = KeyframeHeader {
            marker: KEYFRAME,
            snapshot_crc: U32::ZERO,
            records: U64::new(records),
            time: U64::new(time.0),
            live_bytes: U64::new(live_bytes),
            mapped_bytes: U64::new(mapped_bytes),
            peak_live_bytes: U64::new(peak_live_bytes),
            peak_records: U64::new(peak_records),
            peak_at: U64::new(peak_at.0),
            snapshot_bytes: U64::new(snapshot_bytes),
            crc: U32::ZERO,
        };
        header.crc = U32::new(header_crc(header.as_bytes()));
        header
    }
}

impl From<Segment> for SegmentEntry {
    fn from(segment: Segment) -> SegmentEntry {
        let Segment { offset, blocks_before, records_before } = segment;
        SegmentEntry {
            offset: U64::new(offset),
            records_before: U64::new(records_before),
            blocks_before: U32::new(blocks_before),
        }
    }
}

impl From<SegmentEntry> for Segment {
    fn from(entry: SegmentEntry) -> Segment {
        let SegmentEntry { offset, records_before, blocks_before } = entry;
        Segment {
            offset: offset.get(),
            blocks_before: blocks_before.get(),
            records_before: records_before.get(),
        }
    }
}
