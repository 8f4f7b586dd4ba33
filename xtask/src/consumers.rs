//! Installs the programs from PyPI and npm that open memtrace's exports in the tests.
//!
//! They stay in `target/tools`; the tests of exports know where. Their releases are fixed: a new one
//! that reads less is our business, but not today's.

use std::{path::PathBuf, process::Command};

use anyhow::Result;

use crate::shell;

/// Readers of Parquet and of Perfetto's messages.
const PYTHON: &[&str] = &["duckdb==2.0.1", "perfetto==0.59.1", "protobuf==7.36.2"];

/// The application, as npm has it.
const NPM: &str = "speedscope@1.25.0";

/// Installs what is missing.
pub(crate) fn ensure() -> Result<()> {
    let tools = shell::root().join("target/tools");
    ensure_python(tools.join("python"))?;
    ensure_npm(tools.join("npm"))
}

fn ensure_python(directory: PathBuf) -> Result<()> {
    let python = directory.join("bin/python");
    let imports = Command::new(&python).args(["-c", "import duckdb, perfetto"]).output();
    if imports.is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    shell::run(Command::new("/usr/bin/python3").args(["-m", "venv"]).arg(&directory))?;
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "--disable-pip-version-check", "install", "--quiet"]);
    shell::run(pip.args(PYTHON))
}

fn ensure_npm(directory: PathBuf) -> Result<()> {
    if directory.join("node_modules/speedscope/dist/release/index.html").is_file() {
        return Ok(());
    }
    let mut npm = Command::new("npm");
    npm.args(["install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"]);
    shell::run(npm.arg(directory).arg(NPM))
}
