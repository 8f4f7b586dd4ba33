//! Builds every test program and prints where each lies, one to a line.
//!
//! Tests build what they trace when they need it. A machine that has no compilers, such as the
//! virtual ones of `cargo xtask vm-test`, gets the programs that this has built beforehand.

use anyhow::Result;
use memtrace_tests::program::{ALL, FramePointers};

fn main() -> Result<()> {
    for frame_pointers in [FramePointers::Kept, FramePointers::Omitted] {
        for program in ALL {
            for file in program.build_all(frame_pointers)? {
                println!("{}", file.display());
            }
        }
    }
    Ok(())
}
