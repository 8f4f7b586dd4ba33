//! The command line.
//!
//! Results go to stdout, everything else to stderr. Exit status: 0 fine, 1 findings, 2 error.
//! A reader that closes the pipe early is fine.
//!
//! Each subcommand is a file; this one parses, dispatches, and turns an error into one line.

mod check;
mod detectors;
mod diff;
mod doctor;
mod leaks;
mod log;
mod mark;
mod output;
mod part;
mod profile;
mod progress;
mod quantity;
mod record;
mod replay;
mod report;
mod snapshot;
mod source;
mod target;
mod terminal;
mod top;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use memtrace_userspace::live::guardian;
use memtrace_userspace::views::printable::printable_str;

const EXAMPLES: &str = "\
Examples:
  sudo memtrace top -p 4711                          who is using the memory, live
  sudo memtrace record -p 4711 -o api.mtrace         write a trace; Ctrl-C detaches
  sudo memtrace record -o build.mtrace -- make       trace a command and its children
  sudo memtrace leaks -p 4711 --duration 1m          what nothing points to any more
  memtrace report api.mtrace                         read it, on any machine, without root
  memtrace report api.mtrace --from 10s --to 25s     a part of it
  memtrace report api.mtrace --format json -o r.json the same for other programs
  memtrace diff before.mtrace after.mtrace           what grew, what is new, what is gone
  sudo memtrace check --budget mem.toml -- ./test    a memory budget for a test
  sudo memtrace doctor                               what does this machine allow?";

/// Which functions allocate, hold and leak the memory of a running program.
#[derive(Debug, Parser)]
#[command(name = "memtrace", version, before_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    /// Tell more on stderr; twice for details. MEMTRACE_LOG takes a filter
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Record(record::Arguments),
    Top(top::Arguments),
    Report(report::Arguments),
    Mark(mark::Arguments),
    Snapshot(snapshot::Arguments),
    Diff(diff::Arguments),
    Check(Box<check::Arguments>),
    Leaks(leaks::Arguments),
    Doctor(doctor::Arguments),
    /// What memtrace starts beside itself; not for people
    #[command(name = guardian::ARGUMENT, hide = true)]
    Guardian,
}

/// How a command that could run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Nothing to complain about.
    Fine,
    /// Something that was to be checked does not hold; the output says what.
    Findings,
    /// What was asked for cannot be done; the output says why.
    Failed,
}

/// Runs the command that the arguments name.
pub(crate) fn main() -> ExitCode {
    let Cli { verbose, command } = Cli::parse();
    log::start(verbose);
    let outcome = match command {
        Command::Record(arguments) => record::run(arguments),
        Command::Top(arguments) => top::run(arguments),
        Command::Report(arguments) => report::run(arguments),
        Command::Mark(arguments) => mark::run(arguments),
        Command::Snapshot(arguments) => snapshot::run(arguments),
        Command::Diff(arguments) => diff::run(arguments),
        Command::Check(arguments) => check::run(*arguments),
        Command::Leaks(arguments) => leaks::run(arguments),
        Command::Doctor(arguments) => doctor::run(arguments),
        Command::Guardian => {
            guardian::run(io::stdin().lock());
            Ok(Outcome::Fine)
        }
    };
    match outcome {
        Ok(Outcome::Fine) => ExitCode::SUCCESS,
        Ok(Outcome::Findings) => ExitCode::from(1),
        Ok(Outcome::Failed) => ExitCode::from(2),
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&format!("error: {}", one_line(&error)));
            ExitCode::from(2)
        }
    }
}

/// Writes a line for the user to stderr.
fn tell(line: &str) {
    // Nowhere is left to say that stderr is closed.
    let _ = writeln!(io::stderr(), "memtrace: {line}");
}

/// The error and its causes; a cause that the line already tells is not told again.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !line.contains(&cause) {
            line.push_str(": ");
            line.push_str(&cause);
        }
    }
    printable_str(&line).into_owned()
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_opens_with_examples() {
        let mut command = Cli::command();
        assert!(command.render_long_help().to_string().starts_with("Examples:\n"));

        let shown =
            |command: &&mut clap::Command| !command.is_hide_set() && command.get_name() != "help";
        for subcommand in command.get_subcommands_mut().filter(shown) {
            let help = subcommand.render_long_help().to_string();
            assert!(help.starts_with("Examples:\n"), "{help}");
        }
    }

    #[test]
    fn usage_fits_into_80_columns() {
        let mut command = Cli::command().bin_name("memtrace");
        command.build();
        for subcommand in command.get_subcommands_mut() {
            let usage = subcommand.render_usage().to_string();
            assert!(usage.lines().all(|line| line.chars().count() <= 80), "{usage}");
        }
    }

    #[test]
    fn error_is_one_printable_line_with_its_causes() {
        let cause = io::Error::new(io::ErrorKind::NotFound, "no such file");
        let error = anyhow::Error::from(cause).context("cannot read a\x1b[2J\nb");

        assert_eq!(one_line(&error), "cannot read a\\x1b[2J\\x0ab: no such file");
    }

    #[test]
    fn broken_pipe_is_recognised_behind_context() {
        let error = anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe)).context("x");

        assert!(is_broken_pipe(&error));
        assert!(!is_broken_pipe(&anyhow::anyhow!("broken pipe")));
    }
}
