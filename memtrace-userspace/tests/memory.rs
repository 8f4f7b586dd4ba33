//! How much memory a live block takes. A test program of its own, so that nothing else allocates.

use memtrace_common::addr::Avma;
use memtrace_common::event::Api;
use memtrace_common::unwind::End;
use memtrace_userspace::pipeline::{Limits, Pipeline};
use memtrace_userspace::record::{Alignment, Pid, Process, Record, Tid, Time, WireStackId};

const LIVE_BLOCKS: u64 = 10_000_000;

const BATCH: u64 = 4096;

#[test]
fn ten_million_live_blocks_take_at_most_48_bytes_each() {
    let mut pipeline = Pipeline::new(Limits::default());
    let pid = Pid(100);
    let (exe, command) = (Vec::new(), Vec::new());
    pipeline.apply(&Record::Process(Process { time: Time(0), pid, parent: None, exe, command }));
    let (id, frames) = (WireStackId(1), vec![Avma(0x1000)]);
    pipeline.apply(&Record::Stack { id, pid, end: End::Root, frames });
    let before = resident_bytes();

    for first in (0..LIVE_BLOCKS).step_by(BATCH as usize) {
        let blocks = first..LIVE_BLOCKS.min(first + BATCH);
        let records: Vec<Record> = blocks.map(alloc).collect();
        pipeline.apply_all(&records);
    }

    let bytes = resident_bytes() - before;
    assert_eq!(pipeline.snapshot().totals.heap.live_blocks, LIVE_BLOCKS);
    assert!(bytes <= 48 * LIVE_BLOCKS, "{} bytes a block", bytes as f64 / LIVE_BLOCKS as f64);
}

fn alloc(number: u64) -> Record {
    Record::Alloc {
        time: Time(number),
        tid: Tid(100),
        api: Api::Malloc,
        ptr: Avma(0x7f00_0000_0000 + number * 64),
        size: 48,
        alignment: Alignment::NONE,
        stack: WireStackId(1),
    }
}

/// Resident memory of this process.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux has it");
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.expect("the second number is that of resident pages") * 4096
}
