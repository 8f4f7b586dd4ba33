//! Speed of the symbolizer: `cargo bench --bench symbolize -- [FILE]…`
//!
//! Asks for 100,000 addresses spread evenly over the functions of each file (by default this
//! program, which has a few thousand units of DWARF), twice: the second time from memory. The
//! first time includes opening, parsing and demangling.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use memtrace_common::addr::FileOffset;
use memtrace_userspace::record::Image;
use memtrace_userspace::symbols::{Options, Symbolizer};
use object::{Object, ObjectSection, SectionKind};

const ADDRESSES: u64 = 100_000;

fn main() -> Result<()> {
    // Cargo passes `--bench`.
    let files: Vec<PathBuf> =
        std::env::args_os().skip(1).filter(|arg| arg != "--bench").map(PathBuf::from).collect();
    if files.is_empty() {
        return measure(&std::env::current_exe()?);
    }
    files.iter().try_for_each(|file| measure(file))
}

fn measure(path: &Path) -> Result<()> {
    let (image, offsets) = read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut symbolizer = Symbolizer::new(Options::default());
    let megabytes = std::fs::metadata(path)?.len() >> 20;
    println!("{} ({megabytes} MiB)", path.display());
    for pass in ["first", "again"] {
        let start = Instant::now();
        let (mut named, mut frames, mut lines) = (0, 0, 0);
        for offset in &offsets {
            if let Ok(found) = symbolizer.symbolize(&image, *offset)? {
                named += 1;
                frames += found.len();
                lines += found.iter().filter(|frame| frame.line.is_some()).count();
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        let rate = offsets.len() as f64 / seconds;
        println!(
            "  {pass}: {rate:>12.0} addresses/s ({seconds:.3} s; {named} named, {frames} frames, {lines} lines)"
        );
    }
    println!("  resident: {} MiB, counters: {:?}", resident_megabytes()?, symbolizer.counters());
    Ok(())
}

/// The image, and offsets spread evenly over its code.
fn read(path: &Path) -> Result<(Image, Vec<FileOffset>)> {
    let bytes = std::fs::read(path)?;
    let file = object::File::parse(&*bytes)?;
    let build_id = file.build_id()?.unwrap_or_default().to_vec();
    let code = file.sections().filter(|section| section.kind() == SectionKind::Text);
    let ranges: Vec<(u64, u64)> = code.filter_map(|section| section.file_range()).collect();
    let total: u64 = ranges.iter().map(|(_, size)| size).sum();
    let step = (total / ADDRESSES).max(1);
    let offsets = ranges.iter().flat_map(|(start, size)| *start..start + size);
    let offsets = offsets.step_by(step as usize).map(FileOffset).collect();
    Ok((Image::File { path: path.as_os_str().as_bytes().to_vec(), build_id }, offsets))
}

fn resident_megabytes() -> Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = statm.split_whitespace().nth(1).context("statm is short")?.parse()?;
    Ok((pages * 4096) >> 20)
}
