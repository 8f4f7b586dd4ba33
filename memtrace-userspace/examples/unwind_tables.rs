//! Compiles the unwind tables of files and prints how long it took and what they hold.
//!
//! ```text
//! cargo run --release --example unwind_tables -- /usr/bin/perl /lib/x86_64-linux-gnu/libc.so.6
//! RAYON_NUM_THREADS=1 cargo run --release --example unwind_tables -- /usr/bin/node
//! ```

use std::time::Instant;

use anyhow::Context as _;
use memtrace_userspace::cfi::{self, Unsupported};

/// The quickest of so many runs counts: on a busy machine most are interrupted.
const RUNS: usize = 25;

fn main() -> anyhow::Result<()> {
    println!("      ms     rows  table KiB  file");
    for path in std::env::args().skip(1) {
        if let Err(error) = survey(&path) {
            println!("{path}: {error:#}");
        }
    }
    Ok(())
}

fn survey(path: &str) -> anyhow::Result<()> {
    let data = std::fs::read(path).context("read")?;
    let elf = object::File::parse(data.as_slice()).context("parse")?;
    let mut best = f64::INFINITY;
    let mut table = None;
    for _ in 0..RUNS {
        let start = Instant::now();
        let compiled = cfi::compile(&elf)?;
        best = best.min(start.elapsed().as_secs_f64() * 1e3);
        table = Some(compiled);
    }
    let Some(table) = table else { return Ok(()) };
    let kib = (table.rows.len() * 8 + table.buckets.len() * 4) / 1024;
    println!("{best:8.2} {:8} {kib:10}  {path}", table.rows.len());
    let cfi::Skipped { unsupported, .. } = &table.skipped;
    for (reason, ranges) in Unsupported::ALL.iter().zip(unsupported).filter(|(_, n)| **n > 0) {
        println!("{ranges:28}  {reason:?}");
    }
    println!("{:28}  {:?}", "", table.skipped);
    Ok(())
}
