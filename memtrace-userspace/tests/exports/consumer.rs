//! Programs that read exports, and where they are.

use std::path::{Path, PathBuf};

/// A file of a consumer; `None` if it is missing and the test is to be skipped.
pub(crate) fn require(path: impl AsRef<Path>) -> Option<PathBuf> {
    let path = path.as_ref();
    if path.exists() {
        return Some(path.to_owned());
    }
    let missing = format!("{} is missing; `cargo xtask setup` installs it", path.display());
    assert!(std::env::var_os("CI").is_none_or(|value| value != "true"), "{missing}");
    println!("skipped: {missing}");
    None
}

/// What `cargo xtask setup` put into `target/tools`.
fn tools() -> PathBuf {
    let target = Path::new(env!("CARGO_BIN_EXE_memtrace")).ancestors().nth(2);
    target.expect("target/debug/memtrace").join("tools")
}

/// Python with the packages `duckdb` and `perfetto`.
pub(crate) fn python() -> Option<PathBuf> {
    require(tools().join("python/bin/python"))
}

/// The npm package `speedscope`, which is the application.
pub(crate) fn speedscope() -> Option<PathBuf> {
    require(tools().join("npm/node_modules/speedscope/dist/release"))
}
