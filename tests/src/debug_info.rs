//! A program of two units, and its debug information, taken apart by the real tools.
//!
//! ```text
//!   two_units/{main.cc, other.cc} ─ -gsplit-dwarf ─→ two_units, main.dwo, other.dwo ─ dwp ─→ .dwp
//!                                 ─ dwz -m ────────→ two_units, shared.debug
//!                                 ─ strip ─────────→ two_units without names, two_units.debug
//! ```
//!
//! Its sources say which lines a report must show: a comment `line: NAME` stands on the one at
//! which NAME is when it allocates.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::recording::run;
use crate::report::{Frame, Report};
use crate::table::Table;

/// Each call path from where memory is allocated to `main`, by the markers in the sources.
const PATHS: [[&str; 4]; 2] = [
    ["Holder::take", "take_some", "fill_main", "main to fill_main"],
    ["Holder::take", "take_some", "fill_other", "main to fill_other"],
];

/// Where the sources are.
pub fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/two_units")
}

/// The numbers that a report must have.
pub fn table() -> Result<Table> {
    Table::parse(&fs::read_to_string(sources().join("main.cc")).context("read main.cc")?)
}

/// Compiles both units in `directory` and links them to `two_units` there; returns its path.
pub fn build(directory: &Path, compiler: &str, options: &[&str]) -> Result<PathBuf> {
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    for unit in ["main", "other"] {
        // From within, so that the names of split files are relative, as build systems have them.
        let mut compile = Command::new(compiler);
        compile.current_dir(directory).args(["-std=c++17", "-O2", "-g", "-Wall", "-Werror"]);
        compile.args(options).arg("-c").arg(sources().join(format!("{unit}.cc")));
        finish(compile.args(["-o", &format!("{unit}.o")]))?;
    }
    let mut link = Command::new(compiler);
    link.current_dir(directory).args(["main.o", "other.o", "-Wl,--build-id", "-o", "two_units"]);
    finish(&mut link)?;
    Ok(directory.join("two_units"))
}

/// Runs it to its end, which must be a good one.
pub fn finish(command: &mut Command) -> Result<()> {
    let what = format!("{command:?}");
    run(command).context("`cargo xtask setup` installs it")?.require_success(&what)?;
    Ok(())
}

/// Takes debug information and names out of a program; returns the path of the file with them.
pub fn strip(program: &Path) -> Result<PathBuf> {
    let debug = program.with_extension("debug");
    finish(Command::new("objcopy").arg("--only-keep-debug").arg(program).arg(&debug))?;
    finish(Command::new("strip").arg(program))?;
    Ok(debug)
}

/// What [`call_paths`] must give where everything is known.
pub fn expected_paths() -> Result<Vec<Vec<String>>> {
    let frame = |marker: &&str| frame(marker, marker);
    PATHS.iter().map(|path| path.iter().map(frame).collect()).collect()
}

/// What it must give where symbols and lines are known, but not which functions are inlined: lines
/// are those of the innermost code.
pub fn expected_paths_without_inlined() -> Result<Vec<Vec<String>>> {
    let path = |[innermost, _, outer, main]: &[&str; 4]| {
        Ok(vec![frame(outer, innermost)?, frame(main, main)?])
    };
    PATHS.iter().map(path).collect()
}

/// The frame of the function that a marker names, at the line of another marker.
fn frame(marker: &str, line: &str) -> Result<String> {
    let (name, _) = marker.split_once(" to ").unwrap_or((marker, ""));
    Ok(match name {
        "Holder::take" => {
            format!("Holder<Entry>::take(unsigned long) {} inlined", place(line)?)
        }
        "take_some" => format!("take_some(unsigned long) {} inlined", place(line)?),
        "main" => format!("main {}", place(line)?),
        name => format!("{name}(unsigned long) {}", place(line)?),
    })
}

/// `FILE:LINE` of a marker.
fn place(marker: &str) -> Result<String> {
    for file in ["units.h", "main.cc", "other.cc"] {
        let text = fs::read_to_string(sources().join(file)).with_context(|| file.to_owned())?;
        let is_marked = |line: &str| line.ends_with(&format!("// line: {marker}"));
        if let Some(index) = text.lines().position(is_marked) {
            return Ok(format!("{file}:{}", index + 1));
        }
    }
    bail!("no line is marked `{marker}`")
}

/// The call paths of a report's mallocs that go through `main`, up to it, each once: frames as `FUNCTION
/// FILE:LINE`, with ` inlined` behind it if it is, and `??` for what is not known.
pub fn call_paths(report: &Report) -> Vec<Vec<String>> {
    let frame = |Frame { function, module: _, file, line, inlined }: &Frame| {
        let function = function.as_deref().unwrap_or("??");
        let file = file.as_deref().unwrap_or("??").rsplit('/').next().unwrap_or_default();
        let line = line.map_or_else(|| "??".to_owned(), |line| line.to_string());
        let inlined = if *inlined { " inlined" } else { "" };
        format!("{function} {file}:{line}{inlined}")
    };
    let mut paths: Vec<Vec<String>> = Vec::new();
    for stack in report.stacks.iter().filter(|stack| stack.api == "malloc") {
        let Some(main) = stack.frames.iter().position(|frame| frame.is("main")) else { continue };
        paths.push(stack.frames[..=main].iter().map(frame).collect());
    }
    paths.sort();
    paths.dedup();
    paths
}
