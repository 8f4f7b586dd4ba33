//! How long a part of a long trace takes to open: `cargo bench --bench ranges`.
//!
//! Writes traces of `MEMTRACE_BENCH_BYTES` (256 MiB) as a session would, with up to
//! `MEMTRACE_BENCH_BLOCKS` live blocks, and prints for a range
//! in its middle, for moments and for the whole how long reading takes. That the numbers
//! do not depend on keyframes is for `part/tests.rs` to prove.

#[expect(dead_code, reason = "not every bench uses every kind of load")]
mod load;

use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::Path;
use std::time::Instant;

use memtrace_userspace::batches::BATCH_RECORDS;
use memtrace_userspace::heap_snapshot::{self, Spacing};
use memtrace_userspace::part::{Part, Place, read_part};
use memtrace_userspace::pipeline::{Limits, Pipeline, Purpose};
use memtrace_userspace::record::Time;
use memtrace_userspace::trace::Writer;

use self::load::{Load, Order, Program};

fn main() {
    let measures = std::env::args().any(|argument| argument == "--bench");
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let bytes = number("MEMTRACE_BENCH_BYTES");
    let bytes = bytes.unwrap_or(if measures { 256 << 20 } else { 1 << 20 });
    let most_blocks = number("MEMTRACE_BENCH_BLOCKS").unwrap_or(1_000_000) as usize;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("long.mtrace");
    for live_blocks in
        [10_000, 100_000, 1_000_000].into_iter().filter(|blocks| *blocks <= most_blocks)
    {
        let load = Load { threads: 8, stacks: 10_000, live_blocks, order: Order::Any };
        let (end, events) = write(&path, load, bytes);
        println!(
            "{live_blocks} live blocks: {bytes} bytes, {events} events, {:.1} s",
            end.0 as f64 / 1e9
        );
        let middle = Time(end.0 / 2);
        let range = |width_ns: u64| Part::Range {
            from: Place::At(middle),
            to: Place::At(Time(middle.0 + width_ns)),
        };
        measure(&path, "moment in the middle", &Part::Moment(Place::At(middle)));
        measure(&path, "1 ms from the middle on", &range(1_000_000));
        measure(&path, "100 ms from the middle on", &range(100_000_000));
        measure(&path, "the peak", &Part::Moment(Place::Peak));
        if bytes <= 1 << 30 {
            measure(&path, "everything", &Part::Range { from: Place::Start, to: Place::End });
        }
    }
}

fn measure(path: &Path, what: &str, part: &Part) {
    let start = Instant::now();
    let file = BufReader::with_capacity(1 << 16, File::open(path).expect("it was written"));
    let excerpt =
        read_part(file, Limits::default(), &[], part, None, &mut |_| {}).expect("it can be read");
    println!(
        "  {:8.3} s  {what}: {} events, peak {}",
        start.elapsed().as_secs_f64(),
        excerpt.snapshot.events,
        excerpt.snapshot.totals.peak_live_bytes,
    );
}

/// Writes a trace of about `bytes`; gives its last time and how many events it has.
fn write(path: &Path, load: Load, bytes: u64) -> (Time, u64) {
    let file = BufWriter::with_capacity(1 << 18, File::create(path).expect("a file"));
    let mut writer = Writer::new(file).expect("the disk has room");
    let mut program = Program::new(load);
    let mut pipeline = Pipeline::new(Limits::default());
    let mut spacing = Spacing::new();
    let (mut snapshots, mut most) = (0, 0);
    let mut batch = program.start();
    while writer.bytes_written() < bytes {
        for record in &batch {
            writer.write(record).expect("the disk has room");
        }
        pipeline.apply_all(&batch);
        if spacing.is_due(writer.bytes_written()) {
            let start = Instant::now();
            let snapshot = heap_snapshot::encode(&pipeline, Purpose::GoOn).expect("a Vec");
            most = most.max(start.elapsed().as_millis());
            spacing.made(writer.bytes_written(), snapshot.len());
            snapshots += snapshot.len();
            writer.write_keyframe(&pipeline.level(), &snapshot).expect("the disk has room");
            pipeline.restart_level();
        }
        batch.clear();
        batch.extend(program.by_ref().take(BATCH_RECORDS));
    }
    writer.write_keyframe(&pipeline.level(), &[]).expect("the disk has room");
    writer.finish().expect("the disk has room");
    println!("keyframes: {snapshots} bytes, {most} ms each at most");
    (pipeline.now(), pipeline.snapshot().events)
}
