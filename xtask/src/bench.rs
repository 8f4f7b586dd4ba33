//! Measures what tracing costs, and compares it with what others cost.
//!
//! ```text
//!   stage ─→ micro (calls, threads, paths) ─┐
//!            peers                          ├─→ Section ─→ terminal, target/bench/bench.json,
//!            programs, redis                │              docs/benchmarks.md, README.md
//!            attach, loss                  ─┘
//! ```
//!
//! Each part measures its variants in interleaved rounds and makes one [`report::Section`]. Ratios
//! are of one run: nothing is compared with a figure from another day. What is lost, cut or counted
//! wrong stands beside what it cost, since a tool that sees half is not twice as fast.
//!
//! A complete run writes `docs/benchmarks.md` and the excerpt in `README.md`; a run of some parts
//! writes to `target/bench` only.

mod attach;
mod background;
mod compare;
mod loss;
mod machine;
mod micro;
mod peers;
mod programs;
mod programs_table;
mod redis;
mod report;
mod stage;
mod stats;
mod workloads;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::shell;
use machine::Machine;
use report::Section;
use stage::Stage;
use workloads::Scale;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only these parts, separated by commas; the documents stay as they are.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PARTS")]
    only: Vec<Part>,
    /// Only cases and programs whose name contains this; the documents stay as they are.
    #[arg(long, value_name = "NAME", default_value = "")]
    case: String,
    /// Interleaved rounds; the figures are their medians.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Allocations and releases in a batch.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(10..))]
    pairs: u64,
    /// How long the test for lost events runs.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    loss_seconds: u32,
    /// One short round of everything: does the bench work? Its figures mean nothing.
    #[arg(long)]
    quick: bool,
}

/// What can be measured alone: one module's work, one [`Section`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// One pair, in one thread, on one call path
    Micro,
    /// Two and eight threads
    Threads,
    /// Stacks that change from call to call
    Paths,
    /// Other tools on the same loop
    Peers,
    /// Real programs, with the other tools
    Programs,
    /// Attaching and detaching, and how long the program stands still
    Attach,
    /// A minute of nothing but allocations
    Loss,
}

impl Part {
    const ALL: [Self; 7] = [
        Self::Micro,
        Self::Threads,
        Self::Paths,
        Self::Peers,
        Self::Programs,
        Self::Attach,
        Self::Loss,
    ];

    /// The section's heading.
    fn title(self) -> &'static str {
        match self {
            Self::Micro => "One allocation and its release",
            Self::Threads => "Several threads",
            Self::Paths => "Changing call paths",
            Self::Peers => "Other tools, one pair at depth 20",
            Self::Programs => "Real programs",
            Self::Attach => "Attaching and detaching",
            Self::Loss => "Lost events",
        }
    }
}

/// One short round.
const SMOKE: Plan<'static> =
    Plan { case: "", rounds: 1, pairs: 500, loss: Duration::from_secs(1), scale: Scale::Smoke };

/// How much is measured.
struct Plan<'a> {
    case: &'a str,
    rounds: u32,
    pairs: u64,
    loss: Duration,
    scale: Scale,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let Options { only, case, rounds, pairs, loss_seconds, quick } = options;
    let loss = Duration::from_secs(u64::from(*loss_seconds));
    let full = Plan { case, rounds: *rounds, pairs: *pairs, loss, scale: Scale::Full };
    let plan = if *quick { Plan { case, ..SMOKE } } else { full };
    let stage = Stage::set_up()?;
    let machine = Machine::look()?;
    let sections = measure_parts(&stage, only, &plan)?;
    if sections.is_empty() {
        bail!("no case of these parts has `{case}` in its name");
    }
    print!("{}", report::text(&machine, &sections));
    let complete = only.is_empty() && case.is_empty() && !quick;
    write(&stage, &machine, &sections, complete)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs everything once and shortly, so that a test can tell whether the bench still works.
pub(crate) fn smoke() -> Result<()> {
    let sections = measure_parts(&Stage::set_up()?, &[], &SMOKE)?;
    ensure!(sections.len() == Part::ALL.len(), "a part measured nothing");
    Ok(())
}

fn measure_parts(stage: &Stage, only: &[Part], plan: &Plan<'_>) -> Result<Vec<Section>> {
    let chosen = Part::ALL.into_iter().filter(|part| only.is_empty() || only.contains(part));
    chosen.filter_map(|part| measure(stage, part, plan).transpose()).collect()
}

/// Measures one part; `None` if the selection leaves nothing of it.
fn measure(stage: &Stage, part: Part, plan: &Plan<'_>) -> Result<Option<Section>> {
    let title = part.title();
    let micro = |cases: &'static [micro::Case]| {
        let cases = cases.iter().filter(|case| case.name.contains(plan.case));
        let cases: Vec<_> = match plan.scale {
            Scale::Full => cases.collect(),
            Scale::Smoke => cases.take(1).collect(),
        };
        if cases.is_empty() {
            return Ok(None);
        }
        micro::measure(stage, title, &cases, plan.rounds, plan.pairs).map(Some)
    };
    match part {
        Part::Micro => micro(micro::CALLS),
        Part::Threads => micro(micro::THREADS),
        Part::Paths => micro(micro::PATHS),
        Part::Peers if plan.case.is_empty() => {
            compare::measure(stage, title, plan.rounds, plan.pairs).map(Some)
        }
        Part::Programs => programs::measure(stage, title, plan.rounds, plan.scale, plan.case),
        Part::Attach if plan.case.is_empty() => {
            attach::measure(stage, title, plan.rounds, plan.scale).map(Some)
        }
        Part::Loss if plan.case.is_empty() => loss::measure(stage, title, plan.loss).map(Some),
        Part::Peers | Part::Attach | Part::Loss => Ok(None),
    }
}

/// What README shows.
const QUOTED: &[(Part, &[&str])] = &[
    (Part::Micro, &["case", "bare ns", "floor ns", "memtrace ns", "× floor", "lost", "complete"]),
    (
        Part::Programs,
        &[
            "program",
            "bare s",
            "floor",
            "memtrace",
            "lost",
            "complete",
            "memleak",
            "bpftrace",
            "heaptrack",
        ],
    ),
];

/// Writes what was measured to `target/bench`, and into the documents if it is everything.
fn write(stage: &Stage, machine: &Machine, sections: &[Section], complete: bool) -> Result<()> {
    let save = |path: PathBuf, text: &str| {
        eprintln!("bench: writing {}", path.display());
        fs::write(&path, text).with_context(|| path.display().to_string())
    };
    save(stage.dir.join("bench.json"), &report::json(machine, sections)?)?;
    save(stage.dir.join("benchmarks.md"), &report::markdown(machine, sections))?;
    if complete {
        save(shell::root().join("docs/benchmarks.md"), &report::markdown(machine, sections))?;
        let readme = shell::root().join("README.md");
        let quotes = QUOTED.iter().filter_map(|(part, columns)| {
            let section = sections.iter().find(|section| section.title == part.title())?;
            Some((section, *columns))
        });
        let quotes: Vec<_> = quotes.collect();
        save(readme.clone(), &with_excerpt(&readme, &report::excerpt(machine, &quotes))?)?;
    }
    Ok(())
}

fn with_excerpt(document: &Path, excerpt: &str) -> Result<String> {
    let text = fs::read_to_string(document).with_context(|| document.display().to_string())?;
    report::replace_between_marks(&text, excerpt)
        .with_context(|| format!("{} has no marks for the bench's figures", document.display()))
}
