//! `memtrace doctor`: what this machine allows, and what to do about what it does not.

mod checks;
mod host;

use std::io::{self, Write};

use anyhow::{Context, Result};
use clap::Args;
use memtrace_userspace::record::Pid;

use self::checks::{Check, Verdict};
use self::host::Host;
use super::target::pid;
use super::{Outcome, terminal};

const EXAMPLES: &str = "\
Examples:
  sudo memtrace doctor               can memtrace attach on this machine?
  sudo memtrace doctor -p 4711       and to this process?";

/// Check what this machine allows, and say how to get what is missing.
#[derive(Debug, Args)]
#[command(before_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// A process to look at as well
    #[arg(short, long = "pid", value_name = "PID", value_parser = pid)]
    pid: Option<Pid>,
}

/// Prints a line for each check; fails if one of them means that memtrace cannot attach.
pub(crate) fn run(arguments: Arguments) -> Result<Outcome> {
    let host = Host::look();
    let mut checks = checks::host(&host);
    if let Some(pid) = arguments.pid {
        checks.extend(checks::process(&host, pid));
    }
    write(&mut io::stdout().lock(), &checks).context("cannot write to stdout")?;
    let failed = checks.iter().any(|check| check.verdict == Verdict::Fail);
    Ok(if failed { Outcome::Failed } else { Outcome::Fine })
}

fn write(out: &mut impl Write, checks: &[Check]) -> io::Result<()> {
    let style = terminal::style();
    for Check { verdict, subject, finding, advice } in checks {
        let mark = match verdict {
            Verdict::Ok => "ok  ".to_owned(),
            Verdict::Warn => style.warning("warn"),
            Verdict::Fail => style.warning("FAIL"),
        };
        writeln!(out, "{mark}  {subject}: {finding}")?;
        if let Some(advice) = advice {
            writeln!(out, "      → {advice}")?;
        }
    }
    let count = |verdict| checks.iter().filter(|check| check.verdict == verdict).count();
    let conclusion = match (count(Verdict::Fail), count(Verdict::Warn)) {
        (0, 0) => "memtrace can attach here.".to_owned(),
        (0, warnings) => format!("memtrace can attach here; {warnings} to look at above."),
        (failures, _) => format!("memtrace cannot attach here: {failures} to mend above."),
    };
    writeln!(out, "\n{}", style.heading(&conclusion))
}
