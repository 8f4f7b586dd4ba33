//! End-to-end tests: memtrace against real programs.
//!
//! `programs/` holds small programs whose sources say, in a table of comments, what each of their
//! functions allocates, frees and keeps. The harness builds them, runs `memtrace record` on them,
//! has `memtrace report` analyse the trace, and compares every number:
//!
//! ```text
//!   programs/leak.c ──program──> target/test-programs/omitted/leak ──recording──> trace ─> report
//!        └───────table──────────────────────────────────────────────────> compare ──────────┘
//! ```
//!
//! It knows the command line and the JSON report of memtrace, as any other tool would; it links
//! none of its code. Tests that trace need root and run one at a time ([`privilege`]).

pub mod allocators;
pub mod compare;
pub mod complete;
pub mod container;
pub mod debug_info;
pub mod debuginfod;
pub mod elf;
pub mod privilege;
pub mod program;
pub mod python;
pub mod recording;
pub mod report;
pub mod table;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The memtrace under test: `MEMTRACE_BIN`, or the one built next to this test.
pub fn memtrace_path() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("MEMTRACE_BIN") {
        return Ok(PathBuf::from(path));
    }
    let built = build_directory()?.join("memtrace");
    if !built.is_file() {
        bail!(
            "{} does not exist: run `cargo build -p memtrace-userspace`, or name a binary in \
             MEMTRACE_BIN",
            built.display()
        );
    }
    Ok(built)
}

/// `target/debug` or `target/release`: where the test's own profile puts binaries.
fn build_directory() -> Result<PathBuf> {
    let test = std::env::current_exe().context("the path of the test")?;
    let directory = test.ancestors().find(|directory| {
        directory.parent().is_some_and(|parent| parent.join("CACHEDIR.TAG").is_file())
    });
    directory
        .map(Path::to_owned)
        .with_context(|| format!("{} does not lie in a target directory of cargo", test.display()))
}

/// `target`.
fn target_directory() -> Result<PathBuf> {
    let built = build_directory()?;
    built.parent().map(Path::to_owned).context("the build directory has a parent")
}

/// A new, empty directory under `target/test-scratch` for the files of one test.
pub fn scratch_directory(test: &str) -> Result<PathBuf> {
    let directory = target_directory()?.join("test-scratch").join(test);
    if directory.exists() {
        std::fs::remove_dir_all(&directory)
            .with_context(|| format!("empty {}", directory.display()))?;
    }
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("create {}", directory.display()))?;
    Ok(directory)
}
