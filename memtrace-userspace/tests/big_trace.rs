//! Every report of a trace with many stacks keeps to its memory.
//!
//! A million stacks may take 2 GB (docs/exports.md). Most of that grows with the stacks, so a twentieth
//! of them shows what a report takes for each, in the time that a test has.

#[expect(dead_code, reason = "the benches use all of it")]
#[path = "../benches/load.rs"]
mod load;
#[expect(dead_code, reason = "the benches use all of it")]
#[path = "../benches/reports.rs"]
mod reports;

use std::path::Path;
use std::time::Duration;

use self::load::{Code, Load, Order, Program, write_trace};
use self::reports::{Cost, REPORTS, make};

const STACKS: u64 = 50_000;

/// As many as name each stack once and again.
const EVENTS: u64 = 200_000;

/// Few, because finding names is slow without optimization.
const CALLS: u64 = 2_000;

/// What a report takes however many stacks there are: the program, its symbols, buffers.
const BASE_BYTES: u64 = 130_000_000;

/// What Parquet takes on top: the texts of a group of rows.
const ROW_GROUP_BYTES: u64 = 250_000_000;

/// What a flame graph takes on top: it has at most ten thousand parts that can be seen.
const PICTURE_BYTES: u64 = 30_000_000;

/// What it may take for each, so that a million take 2 GB.
const STACK_BYTES: u64 = (2_000_000_000 - BASE_BYTES) / 1_000_000;

#[test]
fn report_of_many_stacks_keeps_to_its_memory() {
    let directory = tempfile::tempdir().expect("temp dir");
    let trace = directory.path().join("big.mtrace");
    let room = directory.path().join("reports");
    std::fs::create_dir(&room).expect("space");
    let length = write(&trace, STACKS);

    let mut too_large = Vec::new();
    for report in REPORTS {
        let memtrace = env!("CARGO_BIN_EXE_memtrace");
        let Cost { status, peak_bytes, .. } = make(memtrace, &trace, length, &room, *report);
        // 1: a check cannot be sure of a program that was attached to.
        assert!(matches!(status.code(), Some(0 | 1)), "{}: {status}", report.0);
        println!("{}: {} MB", report.0, peak_bytes / 1_000_000);
        let fixed = match report.0 {
            "parquet" => ROW_GROUP_BYTES,
            "svg" => PICTURE_BYTES,
            _ => 0,
        };
        if peak_bytes > BASE_BYTES + STACKS * STACK_BYTES + fixed {
            too_large.push((report.0, peak_bytes));
        }
    }

    assert_eq!(too_large, []);
}

/// Writes a trace with so many stacks; says how long it is.
fn write(trace: &Path, stacks: u64) -> Duration {
    let load = Load { threads: 4, stacks, live_blocks: 50_000, order: Order::Any };
    let code = Code::of(&std::env::current_exe().expect("Linux names the program"), CALLS);
    let program = Program::with_code(load, code);
    let written = write_trace(trace, program, |written| written.events >= EVENTS);
    Duration::from_nanos(written.end.0)
}
