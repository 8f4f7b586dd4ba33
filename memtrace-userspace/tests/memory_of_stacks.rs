//! How much memory a call path takes. A test program of its own, so that nothing else allocates.

use memtrace_common::addr::{Avma, FileOffset};
use memtrace_common::event::Api;
use memtrace_common::unwind::End;
use memtrace_userspace::pipeline::{Limits, Pipeline};
use memtrace_userspace::record::{
    Alignment, Image, Module, Pid, Process, Record, Tid, Time, WireStackId,
};

const STACKS: u64 = 1_000_000;
const FRAMES: u64 = 30;
const PID: Pid = Pid(100);
const CODE: u64 = 0x1000_0000;

#[test]
fn million_call_paths_of_thirty_frames_take_less_than_2_gib() {
    let mut pipeline = Pipeline::new(Limits::default());
    let (exe, command) = (Vec::new(), Vec::new());
    let (time, parent) = (Time(0), None);
    pipeline.apply(&Record::Process(Process { time, pid: PID, parent, exe, command }));
    let image = Image::File { path: b"/bin/server".to_vec(), build_id: vec![1; 20] };
    let (start, end, offset) = (Avma(CODE), Avma(2 * CODE), FileOffset(0));
    pipeline.apply(&Record::Module(Module { time, pid: PID, start, end, offset, image }));
    let before = resident_bytes();

    // Each allocates more than is needed for histograms of its own, as far as there is room.
    for number in 0..STACKS {
        let id = WireStackId(number + 1);
        let frame = |depth| Avma(CODE + (number + depth * 31) % CODE);
        let frames = (0..FRAMES).map(frame).collect();
        pipeline.apply(&Record::Stack { id, pid: PID, end: End::Root, frames });
        for block in 0..if number < 10_000 { 70 } else { 2 } {
            pipeline.apply(&alloc(number, block));
            pipeline.apply(&Record::Free {
                time: Time(number * 1000),
                tid: Tid(PID.0),
                api: Api::Free,
                ptr: address(number, block),
            });
        }
    }

    let bytes = resident_bytes() - before;
    println!("{} bytes a call path of {FRAMES} frames", bytes / STACKS);
    let snapshot = pipeline.snapshot();
    assert_eq!(snapshot.stacks.len() as u64, STACKS);
    assert_eq!(snapshot.statistics.histograms_by_site.len(), Limits::default().histogram_sites);
    assert!(bytes < 2 << 30, "{bytes} bytes");
}

fn alloc(number: u64, block: u64) -> Record {
    Record::Alloc {
        time: Time(number * 1000),
        tid: Tid(PID.0),
        api: Api::Malloc,
        ptr: address(number, block),
        size: 48 + block,
        alignment: Alignment::NONE,
        stack: WireStackId(number + 1),
    }
}

fn address(number: u64, block: u64) -> Avma {
    Avma(0x7f00_0000_0000 + (number * 2 + block % 2) % 100_000 * 256)
}

/// Resident memory of this process.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux has it");
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.expect("the second number is that of resident pages") * 4096
}
