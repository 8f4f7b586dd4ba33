//! Exports, opened by the programs that they are for.
//!
//! ```text
//!   a trace of this test's own functions ─ memtrace report ─→ file ─→ go tool pprof, DuckDB, …
//!        └── the numbers below ───────────────────────────────────→ compare
//! ```
//!
//! None of these programs is ours. Where one is missing its test prints that it is skipped, except
//! under `CI=true`: there a skipped test would go unnoticed, and fails. `cargo xtask setup` installs
//! all of them.

mod browser;
mod consumer;
mod event_formats;
mod made_up;
mod page;
mod snapshot_formats;

use std::path::Path;
use std::process::Command;

use crate::made_up::Trace;

/// Writes a report of the made-up trace into a file of this name.
fn export(trace: &Trace, name: &str, arguments: &[&str]) -> std::path::PathBuf {
    let out = trace.directory().join(name);
    let output = Command::new(env!("CARGO_BIN_EXE_memtrace"))
        .arg("report")
        .arg(trace.path())
        .arg("-o")
        .arg(&out)
        .args(arguments)
        .output()
        .expect("memtrace runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert_eq!(stderr, "");
    out
}

/// What a program says about a file, on both of its streams.
fn ask(program: &Path, arguments: &[&str], file: &Path) -> String {
    let output = Command::new(program).args(arguments).arg(file).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program:?}: {text}");
    text
}
