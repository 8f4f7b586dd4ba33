//! `memtrace mark`: a name for this moment, in the trace that is being recorded.

use anyhow::Result;
use clap::Args;
use memtrace_userspace::control::client;
use memtrace_userspace::record::Pid;
use memtrace_userspace::views::printable::printable_str;
use memtrace_userspace::views::{quantity, summary};

use super::target::pid;
use super::{Outcome, tell};

const EXAMPLES: &str = "\
Examples:
  sudo memtrace mark -p 4711 \"after warm-up\"               while `memtrace record -p 4711` runs
  memtrace report api.mtrace                               has a row for each phase between marks
  memtrace report api.mtrace --from mark:\"after warm-up\"   what happened from then on";

/// Mark this moment in the trace of a process that is being recorded.
#[derive(Debug, Args)]
#[command(before_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The process that `memtrace record` was given or has started
    #[arg(short, long, value_name = "PID", value_parser = pid)]
    pid: Pid,
    /// What happens now, in your words
    text: String,
}

/// Asks the recorder for a mark and says where it stands.
pub(crate) fn run(arguments: Arguments) -> Result<Outcome> {
    let Arguments { pid, text } = arguments;
    let time = client::mark(pid, &text)?;
    tell(&format!(
        "marked \"{}\" at {}",
        printable_str(&text),
        quantity::duration(summary::since_start(time))
    ));
    Ok(Outcome::Fine)
}
