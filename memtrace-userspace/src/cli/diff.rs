//! `memtrace diff`: two sessions, compared.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use memtrace_userspace::views::diff::{self, FlameError, Side, Sides, compare};
use memtrace_userspace::views::printable::printable_str;
use memtrace_userspace::views::profile::Vocabulary;
use memtrace_userspace::views::ranking::SortKey;
use memtrace_userspace::views::style::Style;

use super::output::{Output, cannot_write};
use super::profile::load;
use super::source::{Sort, SymbolArguments};
use super::{Outcome, terminal};

const EXAMPLES: &str = "\
Examples:
  memtrace diff before.mtrace after.mtrace                what grew, by function and stack
  memtrace diff before.mtrace after.mtrace --sort peak    what made the peak higher
  memtrace diff main.json branch.mtrace                   a JSON report does as well
  memtrace diff short.mtrace long.mtrace --per-second     of different lengths
  memtrace diff before.mtrace after.mtrace --format svg -o diff.svg";

/// Compare two traces or JSON reports, of two builds or of one.
#[derive(Debug, Args)]
#[command(before_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// From before: a trace or a JSON report
    old: PathBuf,
    /// From after: a trace or a JSON report
    new: PathBuf,
    /// What the comparison is for
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Write to this file instead of stdout; it appears when it is complete
    #[arg(short, long, value_name = "OUT")]
    output: Option<PathBuf>,
    /// What to compare [default: live; with --per-second: allocated]
    #[arg(long, value_enum)]
    sort: Option<Sort>,
    /// The most functions and stacks to list [text: 20 and 10, json: all]
    #[arg(long, value_name = "N")]
    top: Option<usize>,
    /// Compare what was allocated in a second, for sessions of different lengths
    #[arg(long)]
    per_second: bool,
    #[command(flatten)]
    symbols: SymbolArguments,
}

/// What a comparison is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// To read
    Text,
    /// For other programs; docs/diff.schema.json describes it
    Json,
    /// A differential flame graph: red has grown, blue has shrunk
    Svg,
    /// Lines of stack, old number and new number, for flame graph tools
    Folded,
}

/// Loads both sides, compares them and writes the result.
pub(crate) fn run(arguments: Arguments) -> Result<Outcome> {
    let Arguments { old, new, format, output, sort, top, per_second, symbols } = arguments;
    let key = sort_key(sort, per_second)?;
    let mut out = Output::open_beside(output.as_deref(), &[&old, &new])?;
    if let (Err(error), Err(_)) = (old.metadata(), new.metadata()) {
        let (old, new) = (shown(&old), shown(&new));
        bail!("cannot read {old} and {new}: {error}; name two traces or JSON reports");
    }
    let mut words = Vocabulary::default();
    // The program is called as it is called now.
    let new_profile = load(&new, symbols.names(), &mut words)?;
    let old_profile = load(&old, symbols.names(), &mut words)?;
    let [old_profile, new_profile] = [old_profile, new_profile]
        .map(|profile| if per_second { profile.per_second() } else { profile });
    let (old, new) = (shown(&old), shown(&new));
    let sides = Sides {
        old: Side { name: &old, profile: &old_profile },
        new: Side { name: &new, profile: &new_profile },
        per_second,
    };
    let comparison = compare(&old_profile, &new_profile, &words, key);
    let written = match format {
        Format::Text => {
            let options = diff::Options {
                width: terminal::width(),
                style: if output.is_none() { terminal::style() } else { Style::Plain },
                top,
            };
            out.write_all(diff::render(&sides, &comparison, &words, &options).as_bytes())
        }
        Format::Json => diff::write_json(&mut out, &sides, &comparison, &words, top),
        Format::Svg => match diff::write_svg(&mut out, &sides, &comparison, &words) {
            Ok(()) => Ok(()),
            Err(error @ FlameError::Empty { .. }) => return Err(error.into()),
            Err(FlameError::Write(error)) => Err(error),
        },
        Format::Folded => {
            diff::folded(&comparison, &words).iter().try_for_each(|line| writeln!(out, "{line}"))
        }
    };
    written.with_context(|| cannot_write(output.as_deref()))?;
    out.commit()?;
    Ok(Outcome::Fine)
}

fn sort_key(sort: Option<Sort>, per_second: bool) -> Result<SortKey> {
    match (sort.map(SortKey::from), per_second) {
        (None, false) => Ok(SortKey::Live),
        (None, true) => Ok(SortKey::Allocated),
        (Some(SortKey::Live | SortKey::Peak), true) => {
            bail!("--per-second is for work: choose --sort allocated or --sort allocations")
        }
        (Some(key), _) => Ok(key),
    }
}

fn shown(path: &Path) -> String {
    printable_str(&path.display().to_string()).into_owned()
}
