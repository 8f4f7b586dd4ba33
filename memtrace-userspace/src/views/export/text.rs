//! The text report: what a person reads first.
//!
//! Header, caveats, totals, the functions that hold most, the stacks behind them, threads, and
//! every counter that is not zero with a word about what it means. Tables fit the given width;
//! names of frames are never cut, they are broken over lines.

mod findings;
mod operations;
mod processes;
mod rankings;
mod statistics;
mod timelines;

use std::fmt::{self, Write};

pub(super) use self::rankings::write_stack;
use crate::pipeline::snapshot::{Amount, Range, Scope, Snapshot, Usage};
use crate::views::counters::{self, Weight};
use crate::views::findings::Findings;
use crate::views::frames::{Miss, Naming};
use crate::views::layout::{cut, wrap};
use crate::views::printable::{printable, printable_str};
use crate::views::quantity::{bytes, count, counted, share, sparkline};
use crate::views::ranking::{Memory, Ranking, SortKey};
use crate::views::style::Style;
use crate::views::{caveats, quantity, summary};

/// How many threads are shown; a program may have had thousands.
const THREADS: usize = 20;
/// How many phases are shown; JSON has all.
const PHASES: usize = 30;

/// How a text report looks.
#[derive(Clone, Debug)]
pub struct Options {
    /// Cells per line.
    pub width: usize,
    /// Colour, or none.
    pub style: Style,
    /// The order; without one, there is a table by live bytes and one by bytes at the peak.
    pub sort: Option<SortKey>,
    /// The most functions and stacks to show.
    pub top: Option<usize>,
    /// Of how many call paths sizes and lifetimes are shown, if of any.
    pub histograms: Option<usize>,
}

/// The report as text. Leaves the ranking in the order of the last table.
pub fn render(snapshot: &Snapshot, ranking: &mut Ranking, options: &Options) -> String {
    let mut report = Report { out: String::new(), snapshot, options };
    report.write(ranking).expect("writing to a String cannot fail");
    report.out
}

/// What grows without end, as far as it was observed.
pub(super) fn write_growth(
    out: &mut String,
    snapshot: &Snapshot,
    findings: &Findings,
    options: &Options,
) -> fmt::Result {
    let mut report = Report { out: std::mem::take(out), snapshot, options };
    let written = report.leaks(findings);
    *out = report.out;
    written
}

struct Report<'r> {
    out: String,
    snapshot: &'r Snapshot,
    options: &'r Options,
}

impl Report<'_> {
    fn write(&mut self, ranking: &mut Ranking) -> fmt::Result {
        self.header()?;
        self.caveats()?;
        self.totals()?;
        self.blocks(&ranking.statistics)?;
        self.memory()?;
        self.findings(&ranking.findings)?;
        self.operations()?;
        if let Some(timelines) = &ranking.timelines {
            self.timelines(timelines)?;
        }
        let (tables, by_stack): (&[SortKey], SortKey) = match &self.options.sort {
            Some(key) => (std::slice::from_ref(key), *key),
            None if self.snapshot.scope == Scope::Moment => (&[SortKey::Live], SortKey::Live),
            None => (&[SortKey::Peak, SortKey::Live], SortKey::Live),
        };
        for &key in tables {
            ranking.sort(key);
            self.functions(&ranking.functions, key)?;
        }
        self.stacks(&ranking.stacks, Memory::Heap, by_stack)?;
        self.stacks(&ranking.stacks, Memory::Mapped, by_stack)?;
        self.call_paths(&ranking.statistics)?;
        self.phases()?;
        self.processes()?;
        self.threads()?;
        self.nameless_modules(&ranking.naming)?;
        self.counters(&ranking.naming)
    }

    fn heading(&mut self, text: &str) -> fmt::Result {
        writeln!(self.out, "\n{}", self.options.style.heading(text))
    }

    fn field(&mut self, label: &str, text: &str) -> fmt::Result {
        write_field(&mut self.out, label, text, self.options.width)
    }

    fn header(&mut self) -> fmt::Result {
        let title = format!("memtrace report: {}", summary::target(self.snapshot));
        let title = cut(&title, self.options.width);
        writeln!(self.out, "{}", self.options.style.heading(&title))?;
        if let Some(command) = summary::command(self.snapshot) {
            self.field("command", &cut(&command, 4 * self.options.width))?;
        }
        self.field("captured", &summary::capture(self.snapshot))?;
        if let Some(part) = summary::part(self.snapshot) {
            self.field("part", &part)?;
        }
        if self.snapshot.scope != Scope::Moment {
            self.field("events", &summary::loss(self.snapshot))?;
        }
        self.field("probes", &summary::probes(self.snapshot))
    }

    fn caveats(&mut self) -> fmt::Result {
        let caveats = caveats::caveats(self.snapshot);
        if caveats.is_empty() {
            return Ok(());
        }
        self.heading("Caveats")?;
        write_caveats(&mut self.out, &caveats, self.options.width, self.options.style)
    }

    fn totals(&mut self) -> fmt::Result {
        let totals = &self.snapshot.totals;
        let Usage { live_blocks, live_bytes, inherited_blocks, inherited_bytes, .. } = totals.heap;
        self.heading("Totals")?;
        self.field("live", &format!("{} in {}", bytes(live_bytes), counted(live_blocks, "block")))?;
        if self.snapshot.scope != Scope::Moment {
            self.work()?;
        }
        if let Scope::Range(range) = self.snapshot.scope {
            self.field("before", &held_before(&range))?;
        }
        if inherited_blocks > 0 {
            let text = format!(
                "{} in {}, copies that children hold since their fork",
                bytes(inherited_bytes),
                counted(inherited_blocks, "block")
            );
            self.field("inherited", &text)?;
        }
        self.field(
            "mapped",
            &format!(
                "{} in {} (mmap and brk, the allocator's own among them)",
                bytes(totals.mapped.live_bytes),
                counted(totals.mapped.live_blocks, "mapping")
            ),
        )?;
        let live: Vec<u64> = self.snapshot.timeline.iter().map(|p| p.peak_live_bytes).collect();
        if live.len() > 1 {
            let width = self.options.width.saturating_sub(13);
            self.field("over time", &sparkline(&live, width))?;
        }
        Ok(())
    }

    /// What was done up to the end, and the peak on the way.
    fn work(&mut self) -> fmt::Result {
        let totals = &self.snapshot.totals;
        let Usage { allocations, allocated_bytes, frees, freed_bytes, .. } = totals.heap;
        self.field(
            "peak",
            &format!(
                "{} after {}",
                bytes(totals.peak_live_bytes),
                quantity::duration(summary::since_start(totals.peak_at))
            ),
        )?;
        self.field(
            "allocated",
            &format!(
                "{} in {}, {} of them temporary ({})",
                bytes(allocated_bytes),
                counted(allocations, "allocation"),
                count(totals.temporary_allocations),
                share(totals.temporary_allocations, allocations),
            ),
        )?;
        self.field("freed", &format!("{} in {}", bytes(freed_bytes), counted(frees, "free")))
    }

    /// ```text
    ///         from   allocated      freed     growth       peak  phase
    ///        1.2 s    12.0 MiB    2.0 MiB  +10.0 MiB   54.0 MiB  after warm-up
    /// ```
    fn phases(&mut self) -> fmt::Result {
        if self.snapshot.phases.is_empty() {
            return Ok(());
        }
        self.heading("Phases between marks")?;
        let head = format!(
            "  {:>9} {:>10} {:>10} {:>11} {:>10}  phase",
            "from", "allocated", "freed", "growth", "peak"
        );
        writeln!(self.out, "{}", self.options.style.faint(&head))?;
        let name_width = self.options.width.saturating_sub(59).max(12);
        for phase in self.snapshot.phases.iter().take(PHASES) {
            let (before, after) = (phase.live_bytes_before, phase.live_bytes_after);
            let sign = if after < before { "-" } else { "+" };
            let name = match &phase.begins_with {
                Some(text) => printable_str(text),
                None => "(start)".into(),
            };
            writeln!(
                self.out,
                "  {:>9} {:>10} {:>10} {:>11} {:>10}  {}",
                quantity::duration(summary::since_start(phase.from)),
                bytes(phase.allocated.bytes),
                bytes(phase.freed.bytes),
                format!("{sign}{}", bytes(after.abs_diff(before))),
                bytes(phase.peak_live_bytes),
                cut(&name, name_width),
            )?;
        }
        self.more(self.snapshot.phases.len(), PHASES)
    }

    fn processes(&mut self) -> fmt::Result {
        if self.snapshot.processes.len() < 2 {
            return Ok(());
        }
        self.heading("Processes by allocated bytes")?;
        let lines = processes::table(&self.snapshot.processes, THREADS, self.options.width);
        for (index, line) in lines.iter().enumerate() {
            let line = if index == 0 { self.options.style.faint(line) } else { line.into() };
            writeln!(self.out, "{line}")?;
        }
        self.more(self.snapshot.processes.len(), THREADS)
    }

    fn threads(&mut self) -> fmt::Result {
        let mut threads: Vec<_> =
            self.snapshot.threads.iter().filter(|t| t.heap.allocations > 0).collect();
        if threads.is_empty() {
            return Ok(());
        }
        threads.sort_by_key(|t| std::cmp::Reverse(t.heap.allocated_bytes));
        self.heading("Threads by allocated bytes")?;
        let head =
            format!("  {:>10} {:>10} {:>7} {:>8}  name", "allocated", "live", "calls", "tid");
        writeln!(self.out, "{}", self.options.style.faint(&head))?;
        let name_width = self.options.width.saturating_sub(43).max(12);
        for thread in threads.iter().take(THREADS) {
            writeln!(
                self.out,
                "  {:>10} {:>10} {:>7} {:>8}  {}",
                bytes(thread.heap.allocated_bytes),
                bytes(thread.heap.live_bytes),
                count(thread.heap.allocations),
                thread.tid.0,
                cut(&printable(&thread.name), name_width),
            )?;
        }
        self.more(threads.len(), THREADS)
    }

    fn more(&mut self, all: usize, shown: usize) -> fmt::Result {
        match all.saturating_sub(shown) {
            0 => Ok(()),
            more => writeln!(self.out, "  … and {more} more"),
        }
    }

    fn nameless_modules(&mut self, naming: &Naming) -> fmt::Result {
        if naming.misses.is_empty() {
            return Ok(());
        }
        self.heading("Without names")?;
        for (module, Miss { addresses, reason }) in &naming.misses {
            let text = format!("{} in {module}: {reason}", counted(*addresses, "place"));
            for line in wrap(&text, self.options.width.saturating_sub(2)) {
                writeln!(self.out, "  {line}")?;
            }
        }
        Ok(())
    }

    fn counters(&mut self, naming: &Naming) -> fmt::Result {
        let counters = counters::counters(self.snapshot, naming);
        if counters.is_empty() {
            return Ok(());
        }
        self.heading("Counters")?;
        for (name, value) in &counters {
            let (weight, meaning) = counters::explain(name);
            let text = if meaning.is_empty() { name.clone() } else { format!("{name}: {meaning}") };
            let lines = wrap(&text, self.options.width.saturating_sub(14));
            for (index, line) in lines.into_iter().enumerate() {
                let value = if index == 0 { count(*value) } else { String::new() };
                let indent = if index == 0 { "" } else { "  " };
                let line = format!("  {value:>8}  {indent}{line}");
                match weight {
                    Weight::Loss => writeln!(self.out, "{}", self.options.style.warning(&line))?,
                    Weight::Notice | Weight::Work => writeln!(self.out, "{line}")?,
                }
            }
        }
        Ok(())
    }
}

/// `2.0 MiB in 5 blocks were held at the start, 1.0 MiB in 2 blocks of them still are`.
fn held_before(range: &Range) -> String {
    let amount =
        |amount: Amount| format!("{} in {}", bytes(amount.bytes), counted(amount.blocks, "block"));
    format!(
        "{} held at its start, {} of it at its end; not in the lines above, but in the peak",
        amount(range.held_before),
        amount(range.still_held),
    )
}

/// A line of `label` and text, broken where it is too wide.
pub(super) fn write_field(out: &mut String, label: &str, text: &str, width: usize) -> fmt::Result {
    for (index, line) in wrap(text, width.saturating_sub(13)).into_iter().enumerate() {
        let label = if index == 0 { label } else { "" };
        writeln!(out, "  {label:<10} {line}")?;
    }
    Ok(())
}

/// What the numbers cannot see, a paragraph each.
pub(super) fn write_caveats(
    out: &mut String,
    caveats: &[String],
    width: usize,
    style: Style,
) -> fmt::Result {
    for caveat in caveats {
        for (index, line) in wrap(caveat, width.saturating_sub(4)).into_iter().enumerate() {
            let mark = if index == 0 { "!" } else { " " };
            writeln!(out, "  {}", style.warning(&format!("{mark} {line}")))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::views::fixture;
    use crate::views::layout::width;
    use crate::views::ranking::rank;

    fn text(snapshot: &Snapshot, options: &Options) -> String {
        let mut names = fixture::names();
        let mut ranking = rank(snapshot, &mut names, SortKey::Live);
        render(snapshot, &mut ranking, options)
    }

    fn plain(width: usize) -> Options {
        Options { width, style: Style::Plain, sort: None, top: None, histograms: None }
    }

    #[test]
    fn report_at_80_columns() {
        insta::assert_snapshot!(text(&fixture::snapshot(), &plain(80)));
    }

    #[test]
    fn report_at_120_columns() {
        insta::assert_snapshot!(text(&fixture::snapshot(), &plain(120)));
    }

    #[test]
    fn report_with_histograms_of_call_paths() {
        let options = Options { top: Some(1), histograms: Some(5), ..plain(80) };

        insta::assert_snapshot!(text(&fixture::snapshot(), &options));
    }

    #[test]
    fn report_sorted_by_allocations() {
        let options = Options { sort: Some(SortKey::Allocations), top: Some(2), ..plain(80) };

        insta::assert_snapshot!(text(&fixture::snapshot(), &options));
    }

    /// The section of a report that is about functions and threads over time.
    fn timelines(width: usize) -> String {
        let snapshot = fixture::snapshot();
        let mut ranking = rank(&snapshot, &mut fixture::names(), SortKey::Live);
        ranking.timelines = Some(fixture::timelines(&ranking, &snapshot));
        let text = render(&snapshot, &mut ranking, &plain(width));
        let start = text.find("Over time").expect("it is there");
        text[start..].split("\n\n").next().expect("the first").to_owned()
    }

    #[test]
    fn timelines_at_80_columns() {
        insta::assert_snapshot!(timelines(80));
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        for columns in [70, 80, 100, 200] {
            let text = text(&fixture::snapshot(), &plain(columns)) + &timelines(columns);
            for line in text.lines() {
                assert!(width(line) <= columns, "{columns}: {line}");
            }
        }
    }

    #[test]
    fn plain_report_has_no_escapes() {
        assert!(!text(&fixture::snapshot(), &plain(80)).contains('\x1b'));
    }

    #[test]
    fn report_of_nothing_says_none() {
        let mut snapshot = fixture::snapshot();
        snapshot.stacks.clear();
        snapshot.counters.clear();
        snapshot.totals = Default::default();

        let text = text(&snapshot, &plain(80));

        assert!(text.contains("Top functions by live bytes\n  none\n"), "{text}");
    }

    #[test]
    fn recursion_is_one_line() {
        let mut snapshot = fixture::snapshot();
        let stack = std::sync::Arc::make_mut(&mut snapshot.stacks[0].stack);
        stack.frames = [vec![stack.frames[0]; 200], vec![stack.frames[2]]].concat();

        let text = text(&snapshot, &plain(80));

        assert!(text.contains("leak_per_request  src/server.c:41 × 200\n"), "{text}");
    }

    #[test]
    fn middle_of_a_deep_stack_is_left_out() {
        let mut snapshot = fixture::snapshot();
        let stack = std::sync::Arc::make_mut(&mut snapshot.stacks[0].stack);
        stack.frames =
            [[stack.frames[0], stack.frames[1]].repeat(100), vec![stack.frames[2]]].concat();

        let text = text(&snapshot, &plain(80));

        assert!(text.contains("… 166 more frames …\n"), "{text}");
    }
}
