//! Limits on memory, and whether a session keeps to them.
//!
//! In: a [`Budget`], the profile of a session and, for limits on growth, that of a baseline. Out: a
//! [`Judgement`] with one row for each limit, which the other files here write down.
//!
//! A row passes only if it is proven. A number above its limit fails, and its row says what was lost
//! (a lost release makes live bytes too high). One below it is *unknown* where
//!
//! ```text
//!   actual ≤ limit < actual + what code without names or roots allocated      (of functions)
//!   events were lost, the trace stops early, no allocator was seen
//!   the session began by attaching, and the limit is not about growth since then
//! ```

mod github;
mod json;
mod judge;
mod junit;
mod leaks;
mod reading;
mod text;

use std::path::PathBuf;

pub use self::github::write as write_github;
pub use self::json::{VERSION, write as write_json};
pub use self::judge::judge;
pub use self::junit::write as write_junit;
pub use self::leaks::slowest as slowest_leak;
pub use self::text::{Options, render};
use crate::views::quantity;
use crate::views::ranking::SortKey;

/// Parts in a whole that a share is counted in.
pub const WHOLE_PPM: u64 = 1_000_000;

/// What a limit is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Heap bytes at the highest point. Of a function: what it held when all held most.
    Peak,
    /// Heap bytes held at the end.
    Live,
    /// All heap bytes ever allocated.
    Allocated,
    /// The number of allocations.
    Allocations,
    /// Allocations that were freed before their thread allocated again.
    Temporary,
    /// Of all allocations, the share that is temporary.
    TemporaryShare,
    /// Resident memory of all processes at the highest sample, whatever it is used for.
    Resident,
    /// How fast call paths leak, all together, as the detectors see it.
    Leaks,
}

impl Metric {
    /// What readers see: only a whole run has an exit.
    pub fn title(self) -> &'static str {
        match self {
            Metric::Live => "live at the end",
            Metric::Peak
            | Metric::Allocated
            | Metric::Allocations
            | Metric::Temporary
            | Metric::TemporaryShare
            | Metric::Resident
            | Metric::Leaks => self.name(),
        }
    }

    /// Its name in a budget and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Peak => "peak",
            Metric::Live => "live-at-exit",
            Metric::Allocated => "allocated",
            Metric::Allocations => "allocations",
            Metric::Temporary | Metric::TemporaryShare => "temporary",
            Metric::Resident => "rss",
            Metric::Leaks => "leaks",
        }
    }

    /// What its numbers count.
    pub fn unit(self) -> Unit {
        match self {
            Metric::Peak | Metric::Live | Metric::Allocated | Metric::Resident => Unit::Bytes,
            Metric::Allocations | Metric::Temporary => Unit::Count,
            Metric::TemporaryShare => Unit::Share,
            Metric::Leaks => Unit::BytesPerHour,
        }
    }

    /// What to order stacks by that explain it.
    fn sort_key(self) -> Option<SortKey> {
        match self {
            Metric::Peak => Some(SortKey::Peak),
            Metric::Live => Some(SortKey::Live),
            Metric::Allocated => Some(SortKey::Allocated),
            Metric::Allocations => Some(SortKey::Allocations),
            Metric::Temporary | Metric::TemporaryShare | Metric::Resident | Metric::Leaks => None,
        }
    }
}

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Things.
    Count,
    /// Parts of [`WHOLE_PPM`].
    Share,
    /// Bytes an hour.
    BytesPerHour,
}

impl Unit {
    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Unit::Bytes => "bytes",
            Unit::Count => "count",
            Unit::Share => "ppm",
            Unit::BytesPerHour => "bytes_per_hour",
        }
    }

    /// A number as people read it.
    pub fn amount(self, number: u64) -> String {
        match self {
            Unit::Bytes => quantity::bytes(number),
            Unit::Count => quantity::count(number),
            Unit::Share => quantity::share(number, WHOLE_PPM),
            Unit::BytesPerHour if number == 0 => "none".to_owned(),
            Unit::BytesPerHour => format!("{}/h", quantity::bytes(number)),
        }
    }
}

/// Whose memory a limit is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything.
    Total,
    /// The functions that a pattern matches, together.
    Functions(Pattern),
}

/// Which functions, `*` standing for anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// Their names, in full or without the arguments of the call.
    pub name: String,
    /// File names of their modules; any, if it is not given.
    pub module: Option<String>,
    /// What counts as theirs.
    pub part: Part,
}

/// Which part of what happens in a function counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What it allocates itself.
    Own,
    /// What it and its callees allocate.
    Total,
}

/// How much is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// So much.
    AtMost(u64),
    /// So many parts of [`WHOLE_PPM`] more than the baseline.
    GrowthShare(u64),
    /// So much more than the baseline.
    Growth(u64),
}

/// One limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Whose memory.
    pub scope: Scope,
    /// Which number.
    pub metric: Metric,
    /// How much of it.
    pub bound: Bound,
    /// The line of the budget file that sets it.
    pub line: Option<u32>,
}

/// What is allowed.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Budget {
    /// The file that it was read from; printable when shown.
    pub file: Option<PathBuf>,
    /// The limits, in the order in which they are shown.
    pub limits: Vec<Limit>,
}

/// How strict a judgement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strictness {
    /// What a number proves that lost events could have changed.
    pub loss: Loss,
    /// What a number proves that began with an attach.
    pub attach: Attach,
}

/// What is done about lost events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// A number below its limit proves nothing.
    Matters,
    /// Numbers are taken as they are.
    Allowed,
}

/// What is done about memory from before an attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// It counts, and nothing is proven as long as it is not known.
    Matters,
    /// Limits are about what was allocated since then.
    SinceThen,
}

/// Whether a session keeps to a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It does.
    Pass,
    /// It does not.
    Fail,
    /// The session does not tell.
    Unknown,
}

impl Verdict {
    /// Its name in every view.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Pass => "pass",
            Verdict::Fail => "fail",
            Verdict::Unknown => "unknown",
        }
    }
}

/// A stack that explains a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopStack {
    /// Its part of the row's number.
    pub amount: u64,
    /// From the allocating function outwards; printable.
    pub frames: Vec<String>,
}

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Path of the file, printable.
    pub file: String,
    /// The line.
    pub line: u32,
}

/// The numbers of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// What they count.
    pub unit: Unit,
    /// How much there is, at least.
    pub actual: u64,
    /// How much is allowed; `None` if nothing tells.
    pub limit: Option<u64>,
    /// How much the baseline has, if the limit depends on it.
    pub baseline: Option<u64>,
}

/// What was found out about one limit, or about a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// `total`, `parse_* in libfoo*`, `command`; printable.
    pub subject: String,
    /// What of it was looked at; `None` for how it ended.
    pub metric: Option<Metric>,
    /// The numbers, if it is about numbers.
    pub numbers: Option<Numbers>,
    /// Whether it is as it should be.
    pub verdict: Verdict,
    /// What the reader must know; printable.
    pub notes: Vec<String>,
    /// What uses most; of rows that do not pass.
    pub stacks: Vec<TopStack>,
    /// Where the heaviest of the functions is.
    pub place: Option<Place>,
    /// Where the limit is set.
    pub source: Option<Place>,
}

impl Row {
    /// A row about how something ended that was run.
    pub fn of_end(subject: &str, verdict: Verdict, note: String) -> Row {
        Row {
            subject: subject.to_owned(),
            metric: None,
            numbers: None,
            verdict,
            notes: vec![note],
            stacks: Vec::new(),
            place: None,
            source: None,
        }
    }

    /// `peak`, `peak vs baseline`, `parse_* in libfoo*: peak`, `command`; no two rows have one.
    pub fn name(&self) -> String {
        let Some(metric) = self.metric else { return self.subject.clone() };
        let metric = metric.title();
        let grows = self.numbers.is_some_and(|numbers| numbers.baseline.is_some());
        let vs = if grows { " vs baseline" } else { "" };
        match self.subject.as_str() {
            "total" => format!("{metric}{vs}"),
            subject => format!("{subject}: {metric}{vs}"),
        }
    }
}

/// What was found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// In the order of the budget.
    pub rows: Vec<Row>,
}

impl Judgement {
    /// The worst verdict of all rows.
    pub fn verdict(&self) -> Verdict {
        let any = |verdict| self.rows.iter().any(|row| row.verdict == verdict);
        if any(Verdict::Fail) {
            Verdict::Fail
        } else if any(Verdict::Unknown) {
            Verdict::Unknown
        } else {
            Verdict::Pass
        }
    }

    /// How many rows have this verdict.
    pub fn count(&self, verdict: Verdict) -> u64 {
        self.rows.iter().filter(|row| row.verdict == verdict).count() as u64
    }
}

#[cfg(test)]
mod tests;
