//! Spikes and leaks in the text report.

use std::fmt::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use super::Report;
use crate::pipeline::findings::{
    Class, Confidence, Level, Rate, Severity, Spike, ThreadGrowth, Verdict,
};
use crate::pipeline::snapshot::{Memory, Snapshot};
use crate::record::{LimitKind, Time};
use crate::views::findings::{Findings, LeakingFunction, NamedSpike, NamedVerdict, Suppressed};
use crate::views::frames::{Frame, SymbolizedStack};
use crate::views::label::{frame_labels, function_label};
use crate::views::layout::wrap;
use crate::views::printable::{printable, printable_str};
use crate::views::quantity::{bytes, counted, duration, share, sparkline};
use crate::views::summary::since_start;

/// Spikes that are shown: those that were told, the highest first.
const SPIKES: usize = 5;
/// Makers and threads of a spike that are shown.
const MAKERS: usize = 3;
/// Leaks that are shown.
const LEAKS: usize = 10;
/// Sites of each mild class that are shown.
const MILD: usize = 3;
/// Frames of a leak that are shown; all are in the table of stacks, if it holds much.
const FRAMES: usize = 4;

impl Report<'_> {
    pub(super) fn findings(&mut self, findings: &Findings) -> fmt::Result {
        self.spikes(&findings.spikes)?;
        self.leaks(findings)
    }

    fn spikes(&mut self, spikes: &[NamedSpike]) -> fmt::Result {
        if spikes.is_empty() {
            return Ok(());
        }
        let mut told: Vec<_> = spikes.iter().filter(|named| named.spike.alert).collect();
        told.sort_by_key(|named| std::cmp::Reverse(named.spike.height_bytes));
        self.heading("Spikes")?;
        for named in told.iter().take(SPIKES) {
            self.spike(named)?;
        }
        match spikes.len() - told.len().min(SPIKES) {
            0 => Ok(()),
            more => writeln!(self.out, "  … and {more} more, of the same origin or lower"),
        }
    }

    fn spike(&mut self, named: &NamedSpike) -> fmt::Result {
        let Spike { operation, memory, severity, start, end, height_bytes, measured_bytes, .. } =
            &named.spike;
        let kind = match memory {
            Memory::Heap => "heap",
            Memory::Mapped => "mapped",
        };
        let whose = match operation {
            Some(operation) => format!("{kind} of {}", printable_str(operation)),
            None => kind.to_owned(),
        };
        let head = format!(
            "{}  +{} {whose} from {} to {}, {}",
            match severity {
                Severity::Medium => "medium",
                Severity::High => "high",
                Severity::Critical => "critical",
            },
            bytes(*height_bytes),
            moment(*start),
            moment(*end),
            fate(&named.spike),
        );
        let lines = wrap(&head, self.options.width.saturating_sub(4));
        for (index, line) in lines.into_iter().enumerate() {
            let line = format!("  {}{line}", if index == 0 { "" } else { "  " });
            writeln!(self.out, "{}", self.options.style.warning(&line))?;
        }
        let room = self.options.width.saturating_sub(27);
        for (contributor, stack) in named.contributors().take(MAKERS) {
            let part = share(contributor.bytes, *measured_bytes);
            writeln!(
                self.out,
                "    {:>10} {part:>6}   {}",
                bytes(contributor.bytes),
                innermost(stack, room)
            )?;
        }
        let threads: Vec<String> = named.spike.threads.iter().take(MAKERS).map(thread).collect();
        if !threads.is_empty() {
            let text = format!("by {}", threads.join(", "));
            for line in wrap(&text, self.options.width.saturating_sub(4)) {
                writeln!(self.out, "    {line}")?;
            }
        }
        Ok(())
    }

    pub(super) fn leaks(&mut self, findings: &Findings) -> fmt::Result {
        let leaks: Vec<_> = findings.leaks().collect();
        let of = |class| -> Vec<&NamedVerdict> {
            findings.verdicts.iter().filter(|named| named.verdict.class == class).collect()
        };
        let (bounded, undetermined) = (of(Class::BoundedCache), of(Class::Undetermined));
        if leaks.is_empty()
            && bounded.is_empty()
            && undetermined.is_empty()
            && findings.suppressed.is_empty()
        {
            return Ok(());
        }
        self.heading("Leaks")?;
        if leaks.is_empty() {
            writeln!(self.out, "  none found")?;
        }
        for named in leaks.iter().take(LEAKS) {
            self.leak(named)?;
        }
        self.more(leaks.len(), LEAKS)?;
        self.leaks_by_function(findings)?;
        self.mild("levelled off, no leak", &bounded)?;
        let needed = Duration::from_nanos(self.snapshot.leaks.needed_ns);
        let title = if since_start(self.snapshot.now) < needed {
            format!("growing; {} are needed to tell a leak from a warm-up", duration(needed))
        } else {
            "growing, but too little or too irregularly to tell".to_owned()
        };
        self.mild(&title, &undetermined)?;
        for Suppressed { pattern, leaks, live_bytes } in &findings.suppressed {
            let text = format!(
                "suppressed by leak:{pattern}: {}, {} live",
                counted(*leaks, "leak"),
                bytes(*live_bytes)
            );
            for line in wrap(&text, self.options.width.saturating_sub(2)) {
                writeln!(self.out, "  {line}")?;
            }
        }
        Ok(())
    }

    fn leak(&mut self, named: &NamedVerdict) -> fmt::Result {
        let Verdict { level, rate, class, confidence, .. } = &named.verdict;
        let head = format!("  {}  {}, {}", rate_text(*rate), class_text(*class), sure(*confidence));
        let head = match level {
            Level::Alert => self.options.style.warning(&head),
            Level::Warning | Level::Healthy => head,
        };
        writeln!(self.out, "{head}")?;
        for line in frame_labels(&named.stack).iter().take(FRAMES) {
            for part in wrap(line, self.options.width.saturating_sub(6)) {
                writeln!(self.out, "      {part}")?;
            }
        }
        for line in
            wrap(&evidence(&named.verdict, self.snapshot), self.options.width.saturating_sub(6))
        {
            writeln!(self.out, "      {line}")?;
        }
        let live: Vec<u64> = named.verdict.cohorts.iter().map(|cohort| cohort.live_bytes).collect();
        writeln!(self.out, "      live by age, oldest first  {}", sparkline(&live, live.len()))
    }

    /// The leaks of functions that leak through several call paths, added up.
    fn leaks_by_function(&mut self, findings: &Findings) -> fmt::Result {
        let functions = findings.leaks_by_function();
        if functions.iter().all(|leaking| leaking.call_paths < 2) {
            return Ok(());
        }
        writeln!(self.out, "  by function:")?;
        let room = self.options.width.saturating_sub(36);
        for LeakingFunction { frame, call_paths, bytes_per_hour } in functions.iter().take(LEAKS) {
            writeln!(
                self.out,
                "    {:>12} in {:<16} {}",
                format!("+{}/h", bytes(*bytes_per_hour as u64)),
                counted(*call_paths, "call path"),
                label(frame, room),
            )?;
        }
        self.more(functions.len(), LEAKS)
    }

    fn mild(&mut self, title: &str, verdicts: &[&NamedVerdict]) -> fmt::Result {
        if verdicts.is_empty() {
            return Ok(());
        }
        for line in wrap(&format!("{title}:"), self.options.width.saturating_sub(2)) {
            writeln!(self.out, "  {line}")?;
        }
        let room = self.options.width.saturating_sub(34);
        for NamedVerdict { verdict, stack } in verdicts.iter().take(MILD) {
            writeln!(
                self.out,
                "    {:>10} in {:<14} {}",
                bytes(verdict.live_bytes),
                counted(verdict.live_blocks, "block"),
                innermost(stack, room),
            )?;
        }
        match verdicts.len().saturating_sub(MILD) {
            0 => Ok(()),
            more => writeln!(self.out, "    … and {more} more"),
        }
    }
}

/// `3.4 GiB/h ± 0.1 GiB/h`.
pub(crate) fn rate_text(rate: Rate) -> String {
    let Rate { bytes_per_hour, plus_minus } = rate;
    format!("+{}/h ± {}", bytes(bytes_per_hour.max(0.0) as u64), bytes(plus_minus as u64))
}

/// How people call a class.
pub(crate) fn class_text(class: Class) -> &'static str {
    match class {
        Class::LinearGrowth => "linear growth",
        Class::BufferLeak => "buffers kept",
        Class::ListenerLeak => "listeners or entries kept",
        Class::CacheGrowth => "cache that grows without bound",
        Class::BoundedCache => "bounded cache",
        Class::Fragmentation => "suspected fragmentation",
        Class::Undetermined => "growing",
    }
}

fn sure(confidence: Confidence) -> &'static str {
    match confidence {
        Confidence::Low => "low confidence",
        Confidence::Medium => "medium confidence",
        Confidence::High => "high confidence",
    }
}

/// What speaks for a verdict, in a sentence.
fn evidence(verdict: &Verdict, snapshot: &Snapshot) -> String {
    let Verdict { live_blocks, live_bytes, aged_bytes, oldest, cohorts, limit_in_ns, .. } = verdict;
    let age = Duration::from_nanos(snapshot.now.0.saturating_sub(oldest.0));
    let allocated: f64 = cohorts.iter().map(|cohort| cohort.allocated_blocks).sum();
    let mut text = format!(
        "{} in {}, {} of it older than a tenth of the session; {} of the blocks survived; \
         the oldest is {} old",
        bytes(*live_bytes),
        counted(*live_blocks, "block"),
        bytes(*aged_bytes),
        share(*live_blocks, (allocated as u64).max(*live_blocks)),
        duration(age),
    );
    if let (Some(ns), Some(limit)) = (limit_in_ns, snapshot.leaks.limit) {
        let who = match limit.kind {
            LimitKind::Machine => "machine's memory",
            LimitKind::Cgroup => "cgroup's limit",
        };
        let in_time = duration(Duration::from_nanos(*ns));
        text.push_str(&format!("; the {who} of {} in {in_time}", bytes(limit.limit_bytes)));
    }
    text
}

fn fate(spike: &Spike) -> String {
    match spike.returned {
        Some(time) => format!("back at {}", moment(time)),
        None => format!("{} not back", bytes(spike.left_bytes)),
    }
}

fn thread(growth: &ThreadGrowth) -> String {
    let ThreadGrowth { pid: _, tid, name, bytes: grown } = growth;
    format!("{} (thread {}) {}", printable(name), tid.0, bytes(*grown))
}

fn moment(time: Time) -> String {
    duration(since_start(time))
}

/// The allocating function, or what is known instead.
fn innermost(stack: &SymbolizedStack, room: usize) -> String {
    match stack.frames().next() {
        Some(frame) => label(frame, room),
        None => "unknown".to_owned(),
    }
}

fn label(frame: &Arc<Frame>, room: usize) -> String {
    function_label(&frame.function, frame.line, room)
}
