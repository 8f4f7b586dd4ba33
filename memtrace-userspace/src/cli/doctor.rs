//! `memtrace doctor`: what this machine allows, and what to do about what it does not.

mod checks;
mod debug_files;
mod host;
mod overhead;
mod target;

use std::collections::HashSet;
use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use memtrace_userspace::live::allocators::spec::ProbeSpec;
use memtrace_userspace::live::allocators::survey::{Module, survey};
use memtrace_userspace::record::Pid;
use memtrace_userspace::views::layout::wrap;
use memtrace_userspace::views::printable::printable_str;

use self::checks::{Check, Verdict};
use self::host::Host;
use super::target::pid;
use super::{Outcome, quantity, terminal};

const EXAMPLES: &str = "\
Examples:
  sudo memtrace doctor               can memtrace attach on this machine?
  sudo memtrace doctor -p 4711       and to this process? what would it cost, what is missing?
  sudo memtrace doctor -p 4711 --sample 10s
  sudo memtrace doctor -p 4711 --sample 0s     look only, attach nothing";

/// Check what this machine allows, and say how to get what is missing.
#[derive(Debug, Args)]
#[command(before_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// A process to look at as well
    #[arg(short, long = "pid", value_name = "PID", value_parser = pid)]
    pid: Option<Pid>,
    /// How long to trace that process, to see what tracing costs it; 0s to attach nothing
    #[arg(long, value_name = "TIME", value_parser = quantity::duration, default_value = "2s",
          requires = "pid")]
    sample: Duration,
    /// A function to probe as well, as in `memtrace record --probe`; may be given again
    #[arg(long = "probe", value_name = "SPEC", requires = "pid")]
    probes: Vec<ProbeSpec>,
}

/// Prints a line for each check; fails if one of them means that memtrace cannot attach.
pub(crate) fn run(arguments: Arguments) -> Result<Outcome> {
    let host = Host::look();
    let mut checks = checks::host(&host);
    let mut sections = String::new();
    let mut inside = HashSet::new();
    if let Some(pid) = arguments.pid {
        let process = checks::process(&host, pid);
        let can_be_read =
            process.iter().all(|check| check.subject != "process" || check.verdict == Verdict::Ok);
        checks.extend(process);
        match survey(pid, &arguments.probes) {
            // It says why already.
            _ if !can_be_read => {}
            Ok(survey) => {
                checks.push(checks::allocators(&survey));
                inside = survey.probed_inside();
                let find = |module: &Module| debug_files::find(&module.path, &module.facts);
                let debug: Vec<_> = survey.modules.iter().map(find).collect();
                let style = terminal::style();
                sections = target::sections(&survey, &debug, terminal::width(), style);
            }
            Err(error) => checks.push(Check {
                verdict: Verdict::Fail,
                subject: "files",
                finding: printable_str(&error.to_string()).into_owned(),
                advice: None,
            }),
        }
    }
    let failed = checks.iter().any(|check| check.verdict == Verdict::Fail);
    let mut out = io::stdout().lock();
    write(&mut out, &checks).context("cannot write to stdout")?;
    write!(out, "{sections}").context("cannot write to stdout")?;
    if let Some(pid) = arguments.pid.filter(|_| !failed && !arguments.sample.is_zero()) {
        out.flush().context("cannot write to stdout")?;
        let lines = match overhead::sample(pid, arguments.sample, arguments.probes, &inside) {
            Ok(sample) => sample.lines(),
            Err(error) => vec![format!("not measured: {error:#}")],
        };
        writeln!(out, "\n{}", terminal::style().heading("Expected overhead"))
            .and_then(|()| {
                lines.iter().try_for_each(|line| writeln!(out, "  {}", printable_str(line)))
            })
            .context("cannot write to stdout")?;
    }
    Ok(if failed { Outcome::Failed } else { Outcome::Fine })
}

fn write(out: &mut impl Write, checks: &[Check]) -> io::Result<()> {
    let (style, width) = (terminal::style(), terminal::width());
    for Check { verdict, subject, finding, advice } in checks {
        let mark = match verdict {
            Verdict::Ok => "ok  ".to_owned(),
            Verdict::Warn => style.warning("warn"),
            Verdict::Fail => style.warning("FAIL"),
        };
        let text = format!("{subject}: {finding}");
        for (i, line) in wrap(&text, width.saturating_sub(6)).into_iter().enumerate() {
            let mark = if i == 0 { mark.as_str() } else { "    " };
            writeln!(out, "{mark}  {line}")?;
        }
        for (i, line) in wrap(advice.unwrap_or_default(), width.saturating_sub(8))
            .into_iter()
            .filter(|line| !line.is_empty())
            .enumerate()
        {
            writeln!(out, "      {} {line}", if i == 0 { "→" } else { " " })?;
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
