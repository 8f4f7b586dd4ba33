//! Cut, damaged, foreign and hostile files.

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::rc::Rc;

use memtrace_common::addr::Avma;
use memtrace_common::event::Api;
use memtrace_common::unwind::End;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::{read, trace_of};
use crate::record::{Alignment, EndReason, Origin, Pid, Record, Session, Tid, Time, WireStackId};
use crate::trace::format::{
    BLOCK, BlockHeader, FLAG_INDEPENDENT, FileHeader, INDEX, IndexHeader, IndexTrailer,
    MAX_BLOCK_RECORDS, MAX_PAYLOAD_BYTES, header_crc,
};
use crate::trace::{Cut, Damage, Reader, TraceError, Truncation, WriteError, Writer};

const FILE_HEADER: usize = size_of::<FileHeader>();
const BLOCK_HEADER: usize = size_of::<BlockHeader>();

/// Twelve records: four blocks of three.
fn sample() -> Vec<Record> {
    let mut records = vec![
        Record::Session(Session {
            tool_version: "0.1.0".into(),
            kernel: "6.1.0".into(),
            started_unix_s: 1_700_000_000,
            pid: Pid(7),
            origin: Origin::Launched,
        }),
        Record::Stack {
            id: WireStackId(0xabcd),
            pid: Pid(7),
            end: End::Root,
            frames: vec![Avma(0x5000), Avma(0x4000)],
        },
    ];
    for n in 0..4 {
        let ptr = Avma(0x7f00_0000_1000 + n % 2 * 64);
        let (time, tid) = (Time(1000 * n), Tid(8));
        let (size, stack) = (24 + n, WireStackId(0xabcd));
        records.push(Record::Alloc {
            time,
            tid,
            api: Api::Malloc,
            ptr,
            size,
            alignment: Alignment::NONE,
            stack,
        });
        records.push(Record::Free { time: Time(1000 * n + 500), tid, api: Api::Free, ptr });
    }
    records.push(Record::Tick { time: Time(10_000) });
    records.push(Record::End { time: Time(11_000), reason: EndReason::TargetExited });
    records
}

/// Where blocks start, and where the index and the end mark do.
fn frame_starts(bytes: &[u8]) -> Vec<usize> {
    let mut starts = block_starts(bytes);
    let index = *starts.last().unwrap();
    let (header, _) = IndexHeader::read_from_prefix(&bytes[index..]).unwrap();
    assert_eq!(header.marker, INDEX);
    let around = size_of::<IndexHeader>() + size_of::<IndexTrailer>();
    starts.push(index + around + header.payload_bytes.get() as usize);
    starts
}

/// Where blocks start, and where the index does.
fn block_starts(bytes: &[u8]) -> Vec<usize> {
    let mut starts = vec![FILE_HEADER];
    let mut at = FILE_HEADER;
    while bytes[at..].starts_with(&BLOCK) {
        let (header, _) = BlockHeader::read_from_prefix(&bytes[at..]).unwrap();
        at += BLOCK_HEADER + header.payload_bytes.get() as usize;
        starts.push(at);
    }
    starts
}

/// The trace with the first block's header changed and its checksum made right again.
fn with_header(bytes: &[u8], change: impl FnOnce(&mut BlockHeader)) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let place = &mut bytes[FILE_HEADER..FILE_HEADER + BLOCK_HEADER];
    let mut header = BlockHeader::read_from_bytes(&*place).unwrap();
    change(&mut header);
    header.crc = U32::new(header_crc(header.as_bytes()));
    place.copy_from_slice(header.as_bytes());
    bytes
}

/// A trace of one block with this payload.
fn with_payload(payload: &[u8], records: u32) -> Vec<u8> {
    let mut bytes = trace_of(&[], 1)[..FILE_HEADER].to_vec();
    let compressed = zstd::bulk::compress(payload, 1).unwrap();
    let mut header = BlockHeader {
        marker: BLOCK,
        sequence: U32::new(0),
        flags: U32::new(FLAG_INDEPENDENT),
        records: U32::new(records),
        payload_bytes: U32::new(compressed.len() as u32),
        raw_bytes: U32::new(payload.len() as u32),
        first_time: U64::new(0),
        last_time: U64::new(0),
        payload_crc: U32::new(crc32fast::hash(&compressed)),
        crc: U32::ZERO,
    };
    header.crc = U32::new(header_crc(header.as_bytes()));
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(&compressed);
    bytes
}

fn damage(bytes: &[u8]) -> Damage {
    match read(bytes) {
        (_, Err(TraceError::Damaged { damage, .. })) => damage,
        other => panic!("not damaged: {other:?}"),
    }
}

#[test]
fn trace_cut_anywhere_gives_exactly_the_whole_blocks_before() {
    let records = sample();
    let bytes = trace_of(&records, 3);
    let starts = frame_starts(&bytes);
    assert_eq!(starts.len(), 6);

    for length in FILE_HEADER..bytes.len() {
        let (found, end) = read(&bytes[..length]);

        let whole = starts.iter().rposition(|&start| start <= length).unwrap();
        let lost = length - starts[whole];
        let cut = match lost {
            0 => Cut::BetweenBlocks,
            _ if whole == 5 => Cut::Header,
            _ if whole == 4 && lost < size_of::<IndexHeader>() => Cut::Header,
            _ if whole < 4 && lost < BLOCK_HEADER => Cut::Header,
            _ => Cut::Payload,
        };
        let truncation = Truncation { offset: starts[whole] as u64, lost_bytes: lost as u64, cut };
        assert_eq!(found, records[..whole.min(4) * 3], "cut at {length}");
        assert_eq!(end.unwrap(), Some(truncation), "cut at {length}");
    }
}

#[test]
fn trace_cut_in_its_header_is_named() {
    let bytes = trace_of(&sample(), 3);

    for length in 0..FILE_HEADER {
        let (_, error) = read(&bytes[..length]);

        assert!(
            matches!(error, Err(TraceError::NoHeader { found_bytes }) if found_bytes == length)
        );
    }
}

#[test]
fn flipped_bit_anywhere_is_found_before_a_record_is_wrong() {
    let records = sample();
    let bytes = trace_of(&records, 3);

    for bit in 0..bytes.len() * 8 {
        let mut bytes = bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);

        let (found, end) = read(&bytes);

        assert!(records.starts_with(&found), "bit {bit}");
        assert!(end.is_err(), "bit {bit}");
    }
}

#[test]
fn damage_is_returned_again_and_names_the_block() {
    let mut bytes = trace_of(&sample(), 3);
    let start = block_starts(&bytes)[1];
    bytes[start + BLOCK_HEADER] ^= 1;
    let mut reader = Reader::new(&bytes[..]).unwrap();
    let mut records = Vec::new();
    assert_eq!(reader.read(&mut records, 4).unwrap(), 3);

    for _ in 0..2 {
        let error = reader.read(&mut records, 4).unwrap_err();

        let TraceError::Damaged { offset, damage: Damage::PayloadChecksum { .. } } = error else {
            panic!("{error}");
        };
        assert_eq!(offset, start as u64);
    }
    assert_eq!(reader.truncation(), None);
}

#[test]
fn foreign_files_are_no_traces() {
    for bytes in [&b"\x7fELF and more of that"[..], b"heaptrack", b"{", &[0; 100]] {
        assert!(matches!(Reader::new(bytes), Err(TraceError::NotATrace)));
    }
}

#[test]
fn newer_version_names_both_versions() {
    let mut bytes = trace_of(&sample(), 3);
    bytes[8..12].copy_from_slice(&9u32.to_le_bytes());
    let crc = header_crc(&bytes[..FILE_HEADER]);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());

    let error = Reader::new(&bytes[..]).err().unwrap();

    assert_eq!(
        error.to_string(),
        "the trace has format version 9, and this memtrace reads versions up to 1; update memtrace"
    );
}

#[test]
fn lost_and_repeated_blocks_are_found() {
    let bytes = trace_of(&sample(), 3);
    let starts = block_starts(&bytes);
    let without = [&bytes[..starts[1]], &bytes[starts[2]..]].concat();
    let twice = [&bytes[..starts[2]], &bytes[starts[1]..]].concat();
    let early_end = [&bytes[..starts[2]], &bytes[starts[4]..]].concat();

    assert_eq!(damage(&without), Damage::Sequence { expected: 1, found: 2 });
    assert_eq!(damage(&twice), Damage::Sequence { expected: 2, found: 1 });
    assert_eq!(damage(&early_end), Damage::RecordCount { expected: 12, found: 6 });
}

#[test]
fn data_behind_the_end_mark_is_damage() {
    let mut bytes = trace_of(&sample(), 3);
    bytes.push(0);

    assert_eq!(damage(&bytes), Damage::AfterEnd);
}

#[test]
fn lengths_beyond_the_limits_are_refused() {
    let bytes = trace_of(&sample(), 3);
    let raw = with_header(&bytes, |header| header.raw_bytes = U32::new(1 + (16 << 20)));
    let compressed = with_header(&bytes, |header| header.payload_bytes = U32::new(u32::MAX));
    let records = with_header(&bytes, |header| header.records = U32::new(MAX_BLOCK_RECORDS + 1));

    assert!(matches!(damage(&raw), Damage::TooLarge { what: "the block's length", .. }));
    assert!(matches!(
        damage(&compressed),
        Damage::TooLarge { what: "the block's length in the file", .. }
    ));
    assert!(matches!(damage(&records), Damage::TooLarge { what: "the number of records", .. }));
}

#[test]
fn payload_that_decompresses_to_another_length_is_refused() {
    let bytes = trace_of(&sample(), 3);

    for change in [-1i32, 1, 1000] {
        let bytes = with_header(&bytes, |header| {
            header.raw_bytes = U32::new(header.raw_bytes.get().wrapping_add_signed(change));
        });

        assert!(matches!(damage(&bytes), Damage::Compression { .. }));
    }
}

#[test]
fn bomb_is_refused_at_its_promised_length() {
    let bomb = with_payload(&vec![0; MAX_PAYLOAD_BYTES * 4], 1);
    let bomb = with_header(&bomb, |header| header.raw_bytes = U32::new(1000));

    assert_eq!(damage(&bomb), Damage::Compression { expected: 1000 });
}

#[test]
fn count_of_records_that_the_columns_do_not_have_is_damage() {
    let bytes = trace_of(&sample(), 3);
    let more = with_header(&bytes, |header| header.records = U32::new(4));
    let fewer = with_header(&bytes, |header| header.records = U32::new(2));

    assert!(matches!(damage(&more), Damage::ColumnEnds { .. }));
    assert!(matches!(damage(&fewer), Damage::LeftOver { .. }));
}

#[test]
fn payloads_of_noise_are_damage() {
    // xorshift64*: any fixed noise does.
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut noise = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    };
    for _ in 0..2000 {
        // Columns of up to 15 bytes, so that decoding gets far.
        let lengths: Vec<u8> = (0..12).map(|_| (noise() >> 60) as u8).collect();
        let body: usize = lengths.iter().map(|&length| usize::from(length)).sum();
        let mut payload = lengths;
        payload.extend((0..body).map(|_| (noise() >> 56) as u8 & (noise() >> 56) as u8));

        let (_, end) = read(&with_payload(&payload, 15));

        assert!(end.is_err());
    }
}

#[test]
fn row_that_promises_a_billion_items_is_damage() {
    // A column of one operation, no time; `Counters`, and `Stack` with index 0 in its column.
    let counters = [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 13, 0xff, 0xff, 0xff, 0xff];
    let stack = [1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 8, 1, 0, 0, 0xff, 0xff, 0xff, 0xff];

    assert_eq!(damage(&with_payload(&counters, 1)), Damage::ColumnEnds { what: "the rows" });
    assert!(matches!(
        damage(&with_payload(&stack, 1)),
        Damage::TooLarge { what: "the depth of a stack", .. }
    ));
}

/// Takes `room` bytes and no more.
struct Disk {
    bytes: Vec<u8>,
    room: Rc<Cell<usize>>,
}

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.room.get());
        if taken == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.room.set(self.room.get() - taken);
        self.bytes.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn full_disk_ends_the_trace_at_the_last_whole_block() {
    let room = Rc::new(Cell::new(1000));
    let mut writer = Writer::new(Disk { bytes: Vec::new(), room: Rc::clone(&room) }).unwrap();
    let records = sample();
    writer.write(&records[0]).unwrap();
    writer.flush_block().unwrap();
    let whole = writer.bytes_written();

    room.set(60);
    writer.write(&records[1]).unwrap();
    let full = writer.flush_block();
    room.set(1000);
    let after = writer.flush_block();

    assert!(matches!(full, Err(WriteError::Io { what: "a block", offset, .. }) if offset == whole));
    assert!(matches!(after, Err(WriteError::AlreadyFailed { offset }) if offset == whole));
}

/// Gives `good` bytes, then an error, then whatever is behind.
struct BadSector<'a> {
    good: &'a [u8],
    failed: bool,
}

impl Read for BadSector<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.good.is_empty() && !self.failed {
            self.failed = true;
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.good.read(out)
    }
}

#[test]
fn unreadable_byte_is_an_error_and_no_truncation() {
    let bytes = trace_of(&sample(), 3);
    let start = block_starts(&bytes)[1];
    let mut reader = Reader::new(BadSector { good: &bytes[..start + 9], failed: false }).unwrap();
    let mut records = Vec::new();
    assert_eq!(reader.read(&mut records, 4).unwrap(), 3);

    for _ in 0..2 {
        let error = reader.read(&mut records, 4).unwrap_err();

        let TraceError::Io { offset, source } = error else { panic!("{error}") };
        assert_eq!((offset, source.kind()), (start as u64, io::ErrorKind::TimedOut));
    }
    assert_eq!(reader.truncation(), None);
}

#[test]
fn block_headers_carry_times_and_counts() {
    let bytes = trace_of(&sample(), 3);

    let headers: Vec<_> = block_starts(&bytes)[..4]
        .iter()
        .map(|&start| {
            let (header, _) = BlockHeader::read_from_prefix(&bytes[start..]).unwrap();
            (header.records.get(), header.first_time.get(), header.last_time.get())
        })
        .collect();

    assert_eq!(headers, [(3, 0, 0), (3, 500, 1500), (3, 2000, 3000), (3, 3500, 11_000)]);
}

#[test]
fn trace_of_nothing_is_complete() {
    let (records, end) = read(&trace_of(&[], 1));

    assert_eq!(records, []);
    assert_eq!(end.unwrap(), None);
}
