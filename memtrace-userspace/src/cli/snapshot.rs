//! `memtrace snapshot`: what is held at one moment, in a small trace of its own.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use memtrace_userspace::control::client;
use memtrace_userspace::part::Place;
use memtrace_userspace::record::Pid;
use memtrace_userspace::views::printable::printable_str;
use memtrace_userspace::views::quantity;

use super::output::{Output, cannot_write};
use super::part::place;
use super::replay::snapshot_of;
use super::target::pid;
use super::{Outcome, tell};

const EXAMPLES: &str = "\
Examples:
  sudo memtrace snapshot -p 4711 -o now.mtrace             while `memtrace record -p 4711` runs
  memtrace snapshot api.mtrace --at peak -o peak.mtrace    of a trace
  memtrace report now.mtrace                               what was held then, by stack";

/// Save what is held at one moment: a small trace that every command reads.
#[derive(Debug, Args)]
#[command(before_help = EXAMPLES)]
#[command(override_usage = "memtrace snapshot [OPTIONS] -o OUT <FILE | -p PID>")]
#[command(group = clap::ArgGroup::new("source").required(true).args(["pid", "file"]))]
pub(crate) struct Arguments {
    /// A trace, as `memtrace record` wrote it
    file: Option<PathBuf>,
    /// The process that `memtrace record` was given or has started
    #[arg(short, long, value_name = "PID", value_parser = pid)]
    pid: Option<Pid>,
    /// The moment in the trace: 10s, peak, mark:TEXT, or end
    #[arg(long, value_name = "PLACE", value_parser = place, requires = "file", default_value = "end")]
    at: Place,
    /// The snapshot
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
}

/// Gets a snapshot from the recorder or out of a trace, and writes it.
pub(crate) fn run(arguments: Arguments) -> Result<Outcome> {
    let Arguments { file, pid, at, output } = arguments;
    let input = file.as_deref().unwrap_or(Path::new(""));
    let mut out = Output::open(Some(&output), input)?;
    let bytes = match (&file, pid) {
        (Some(file), _) => snapshot_of(file, &at)?,
        (None, Some(pid)) => client::snapshot(pid)?,
        (None, None) => anyhow::bail!("name a trace, or a process with -p"),
    };
    out.write_all(&bytes).with_context(|| cannot_write(Some(&output)))?;
    out.commit()?;
    let size = quantity::bytes(bytes.len() as u64);
    let path = output.display().to_string();
    tell(&format!("wrote {} ({size})", printable_str(&path)));
    Ok(Outcome::Fine)
}
