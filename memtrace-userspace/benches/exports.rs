//! What every report of a big trace takes: `cargo bench --bench exports`.
//!
//! Writes a trace of `MEMTRACE_BENCH_EVENTS` (100 million) events and `MEMTRACE_BENCH_STACKS` (a
//! million) stacks with the names of this program, has `memtrace` make each report of it, and
//! prints time, processor time, peak memory and size, as docs/exports.md has them.
//! `cargo bench --bench exports -- dhat json` makes two of them, and with `MEMTRACE_BENCH_TRACE` the
//! trace stays in that file and is taken from there the next time.

#[expect(dead_code, reason = "not every bench uses all of the program")]
mod load;
mod reports;

use std::path::{Path, PathBuf};
use std::time::Duration;

use self::load::{Code, Load, Order, Program, Written, write_trace};
use self::reports::{Cost, REPORTS, make};

/// Distinct calls: as many as those of a large server.
const CALLS: u64 = 100_000;

/// What an event takes the made-up program, on average.
const EVENT_NS: u64 = 1_250;

fn main() {
    let measures = std::env::args().any(|argument| argument == "--bench");
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let few = |count: u64| if measures { count } else { count / 10_000 };
    let events = number("MEMTRACE_BENCH_EVENTS").unwrap_or(few(100_000_000));
    let stacks = number("MEMTRACE_BENCH_STACKS").unwrap_or(few(1_000_000));
    let directory = tempfile::tempdir().expect("a temporary directory");
    let kept = std::env::var_os("MEMTRACE_BENCH_TRACE").map(PathBuf::from);
    let trace = kept.unwrap_or_else(|| directory.path().join("big.mtrace"));
    if !trace.exists() {
        write(&trace, events, stacks);
    }
    let room = directory.path().join("reports");
    std::fs::create_dir(&room).expect("the disk has room");
    println!("| report | seconds | of processor | peak MB | file MB |");
    println!("|---|--:|--:|--:|--:|");
    for report in REPORTS {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == report.0) {
            let length = Duration::from_nanos(events * EVENT_NS);
            let cost = make(env!("CARGO_BIN_EXE_memtrace"), &trace, length, &room, *report);
            let Cost { status, wall, processor, peak_bytes, made_bytes } = cost;
            // 1: a check cannot be sure of a program that was attached to.
            assert!(matches!(status.code(), Some(0 | 1)), "{}: {status}", report.0);
            println!(
                "| {} | {:.1} | {:.1} | {} | {:.1} |",
                report.0,
                wall.as_secs_f64(),
                processor.as_secs_f64(),
                peak_bytes / 1_000_000,
                made_bytes as f64 / 1e6,
            );
        }
    }
}

fn write(trace: &Path, events: u64, stacks: u64) {
    let load = Load { threads: 8, stacks, live_blocks: 1_000_000, order: Order::Any };
    let code = Code::of(&std::env::current_exe().expect("Linux names the program"), CALLS);
    let program = Program::with_code(load, code);
    let written = write_trace(trace, program, |written| written.events >= events);
    let Written { events, bytes, end, keyframe_bytes } = written;
    let seconds = end.0 as f64 / 1e9;
    println!("{events} events in {seconds:.1} s, {bytes} bytes, {keyframe_bytes} of keyframes");
}
