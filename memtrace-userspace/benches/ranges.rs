//! How long a part of a long trace takes to open: `cargo bench --bench ranges`.
//!
//! Writes traces of `MEMTRACE_BENCH_BYTES` (256 MiB) as a session would, with up to
//! `MEMTRACE_BENCH_BLOCKS` live blocks, and prints for a range
//! in its middle, for moments and for the whole how long reading takes. That the numbers
//! do not depend on keyframes is for `part/tests.rs` to prove.

#[expect(dead_code, reason = "not every bench uses every kind of load")]
mod load;

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::time::Instant;

use memtrace_userspace::part::{Part, Place, read_part};
use memtrace_userspace::pipeline::Limits;
use memtrace_userspace::record::Time;

use self::load::{Load, Order, Program, Written, write_trace};

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
        let written = write_trace(&path, Program::new(load), |written| written.bytes >= bytes);
        let Written { events, bytes, end, keyframe_bytes } = written;
        println!(
            "{live_blocks} live blocks: {bytes} bytes, {keyframe_bytes} of them keyframes, \
             {events} events, {:.1} s",
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
    let excerpt = read_part(file, Limits::default(), &[], part, None, None, &mut |_| {})
        .expect("it can be read");
    println!(
        "  {:8.3} s  {what}: {} events, peak {}",
        start.elapsed().as_secs_f64(),
        excerpt.snapshot.events,
        excerpt.snapshot.totals.peak_live_bytes,
    );
}
