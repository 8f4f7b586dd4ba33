//! Regenerates the golden files.

use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::{cargo::cargo, shell};

/// Lets every golden test write what it sees, then shows what changed.
pub(crate) fn run() -> Result<ExitCode> {
    let mut tests = cargo("test");
    tests.args(["--workspace", "--exclude", "memtrace-tests", "--no-fail-fast", "--quiet"]);
    shell::run(tests.env("INSTA_UPDATE", "always"))?;
    eprintln!("bless: review the changes below like code, then commit them");
    shell::run(Command::new("git").current_dir(shell::root()).args([
        "--no-pager",
        "status",
        "--short",
        "--",
        "*.snap",
        "*.golden",
    ]))?;
    Ok(ExitCode::SUCCESS)
}
