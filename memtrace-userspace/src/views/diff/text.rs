//! The text form of a comparison: what a person reads first.
//!
//! What is compared, what the numbers miss, totals, the functions that changed most, and the
//! stacks behind them. A stack that only one side has shows where it parts from the other side's:
//!
//! ```text
//!   1. +5.6 MiB (new)
//!      + leak_session  src/server.rs:110
//!      + serve  src/server.rs:103
//!        main  src/server.rs:20 → 22            both sides have stacks through here
//! ```

use std::fmt::{self, Write};
use std::time::Duration;

use super::{Comparison, FunctionChange, Side, Sides, StackChange, StackSide, Status, moved, runs};
use crate::record::Origin;
use crate::views::label::amount;
use crate::views::layout::{cut, wrap};
use crate::views::profile::{Coverage, FrameId, Profile, Vocabulary, label};
use crate::views::quantity::{self, bar, bytes, count};
use crate::views::ranking::Memory;
use crate::views::style::Style;

/// How many functions are shown unless told otherwise.
const DEFAULT_FUNCTIONS: usize = 20;
/// How many stacks are shown unless told otherwise.
const DEFAULT_STACKS: usize = 10;
/// The same of mappings, most of which are the allocator's own.
const DEFAULT_MAPPINGS: usize = 3;
/// How many frames of a stack are shown at its inner and at its outer end.
const INNER_FRAMES: usize = 20;
const OUTER_FRAMES: usize = 5;
/// Cells of a bar; there are bars on a terminal only.
const BAR_CELLS: usize = 6;

/// How the text looks.
#[derive(Clone, Debug)]
pub struct Options {
    /// Cells per line.
    pub width: usize,
    /// Colour and bars, or none.
    pub style: Style,
    /// The most functions and stacks to show.
    pub top: Option<usize>,
}

/// The comparison as text.
pub fn render(
    sides: &Sides<'_>,
    comparison: &Comparison,
    words: &Vocabulary,
    options: &Options,
) -> String {
    let mut text = Text { out: String::new(), sides, comparison, words, options };
    text.write().expect("writing to a String cannot fail");
    text.out
}

struct Text<'d> {
    out: String,
    sides: &'d Sides<'d>,
    comparison: &'d Comparison,
    words: &'d Vocabulary,
    options: &'d Options,
}

impl Text<'_> {
    fn write(&mut self) -> fmt::Result {
        let title = format!("memtrace diff by {}", self.comparison.key.title());
        writeln!(self.out, "{}", self.options.style.heading(&title))?;
        let Sides { old, new, per_second: _ } = self.sides;
        self.session("old", old)?;
        self.session("new", new)?;
        self.caveats()?;
        self.totals()?;
        self.functions()?;
        self.stacks(Memory::Heap)?;
        self.stacks(Memory::Mapped)
    }

    fn heading(&mut self, text: &str) -> fmt::Result {
        writeln!(self.out, "\n{}", self.options.style.heading(text))
    }

    fn session(&mut self, label: &str, side: &Side<'_>) -> fmt::Result {
        let Profile { target, coverage: Coverage { duration, origin, .. }, .. } = side.profile;
        let mut parts = vec![target.clone(), quantity::duration(*duration)];
        parts.extend(origin.map(|origin| {
            match origin {
                Origin::Attached => "attached while running",
                Origin::Launched => "traced from its start",
            }
            .to_owned()
        }));
        let text = format!("{}: {}", side.name, parts.join(", "));
        for (index, line) in
            wrap(&text, self.options.width.saturating_sub(8)).into_iter().enumerate()
        {
            writeln!(self.out, "  {:<5} {line}", if index == 0 { label } else { "" })?;
        }
        Ok(())
    }

    fn caveats(&mut self) -> fmt::Result {
        let Sides { old, new, per_second } = self.sides;
        let mut lines = Vec::new();
        let durations = (old.profile.coverage.duration, new.profile.coverage.duration);
        let whole_runs = old.profile.coverage.is_whole_run && new.profile.coverage.is_whole_run;
        if !per_second && !whole_runs && differ_much(durations) {
            lines.push(format!(
                "they last {} and {}: --per-second compares what was allocated in a second",
                quantity::duration(durations.0),
                quantity::duration(durations.1)
            ));
        }
        for (label, side) in [("old", old), ("new", new)] {
            let Profile { caveats, coverage, .. } = side.profile;
            lines.extend(caveats.iter().map(|caveat| format!("{label}: {caveat}")));
            // Caveats tell of everything else that is lost.
            let partial = coverage.losses.iter().filter(|loss| loss.starts_with("the report"));
            lines.extend(partial.map(|loss| format!("{label}: {loss}")));
        }
        let nameless = self.nameless();
        if nameless > 0 {
            lines.push(format!(
                "{} of the new side were allocated by code without names, which is one function \
                 for each module here",
                amount(self.comparison.key, nameless)
            ));
        }
        if lines.is_empty() {
            return Ok(());
        }
        self.heading("Caveats")?;
        for line in lines {
            let lines = wrap(&line, self.options.width.saturating_sub(4));
            for (index, line) in lines.into_iter().enumerate() {
                let mark = if index == 0 { "!" } else { " " };
                writeln!(self.out, "  {}", self.options.style.warning(&format!("{mark} {line}")))?;
            }
        }
        Ok(())
    }

    /// The key's number of what nameless code of the new side allocated.
    fn nameless(&self) -> u64 {
        let key = self.comparison.key;
        let nameless =
            |change: &&FunctionChange| self.words.function(change.function).name.is_none();
        let new = |change: &FunctionChange| change.own(key).1.unwrap_or(0);
        self.comparison.functions.iter().filter(nameless).map(new).fold(0, u64::saturating_add)
    }

    fn totals(&mut self) -> fmt::Result {
        let Sides { old, new, per_second } = self.sides;
        let (old, new) = (&old.profile, &new.profile);
        let (a, b) = (&old.totals, &new.totals);
        let per_second = if *per_second { " (work per second)" } else { "" };
        self.heading(&format!("Totals{per_second}"))?;
        let head = format!("  {:<12} {:>10} {:>10} {:>11} {:>8}", "", "old", "new", "change", "");
        writeln!(self.out, "{}", self.options.style.faint(head.trim_end()))?;
        self.total("live", a.heap.live_bytes, b.heap.live_bytes, bytes)?;
        self.total("live blocks", a.heap.live_blocks, b.heap.live_blocks, count)?;
        self.total("peak", a.peak_live_bytes, b.peak_live_bytes, bytes)?;
        self.total("allocated", a.heap.allocated_bytes, b.heap.allocated_bytes, bytes)?;
        self.total("allocations", a.heap.allocations, b.heap.allocations, count)?;
        self.total("temporary", a.temporary_allocations, b.temporary_allocations, count)?;
        self.total("mapped", a.mapped.live_bytes, b.mapped.live_bytes, bytes)?;
        if a.peak_resident_bytes > 0 && b.peak_resident_bytes > 0 {
            self.total("rss, peak", a.peak_resident_bytes, b.peak_resident_bytes, bytes)?;
        }
        Ok(())
    }

    fn total(&mut self, label: &str, old: u64, new: u64, amount: fn(u64) -> String) -> fmt::Result {
        let change = format!("{:>11} {:>8}", signed(old, new, amount), relative(old, new));
        let line = format!(
            "  {label:<12} {:>10} {:>10} {}",
            amount(old),
            amount(new),
            self.coloured(old, new, &change)
        );
        writeln!(self.out, "{line}")
    }

    /// Growth is red, the contrary green.
    fn coloured(&self, old: u64, new: u64, text: &str) -> String {
        match old.cmp(&new) {
            std::cmp::Ordering::Less => self.options.style.worse(text),
            std::cmp::Ordering::Equal => text.to_owned(),
            std::cmp::Ordering::Greater => self.options.style.better(text),
        }
    }

    fn functions(&mut self) -> fmt::Result {
        let key = self.comparison.key;
        let amounts = |change: &FunctionChange| {
            let (old, new) = change.own(key);
            (old.unwrap_or(0), new.unwrap_or(0))
        };
        let involved: Vec<_> =
            self.comparison.functions.iter().filter(|change| amounts(change) != (0, 0)).collect();
        self.heading(&format!("Functions by change of {}", key.title()))?;
        let tally: Vec<String> = Status::ALL
            .iter()
            .filter_map(|&status| {
                let number = involved.iter().filter(|change| change.status(key) == status).count();
                (number > 0).then(|| format!("{} {}", count(number as u64), status.name()))
            })
            .collect();
        if tally.is_empty() {
            return writeln!(self.out, "  none");
        }
        writeln!(self.out, "  {}", tally.join(", "))?;
        let changed: Vec<_> =
            involved.into_iter().filter(|change| moved(change.own(key)) > 0).collect();
        if changed.is_empty() {
            return Ok(());
        }
        let shown = changed.len().min(self.options.top.unwrap_or(DEFAULT_FUNCTIONS));
        let bars = match self.options.style {
            Style::Plain => 0,
            Style::Ansi => BAR_CELLS + 1,
        };
        // "  " change 11, " " relative 8, " " old 10, " " new 10, "  " bar and name
        let name_cells =
            self.options.width.saturating_sub(2 + 11 + 1 + 8 + 1 + 10 + 1 + 10 + 2 + bars).max(12);
        let head = format!(
            "  {:>11} {:>8} {:>10} {:>10}  {:bars$}function",
            "change", "", "old", "new", ""
        );
        writeln!(self.out, "{}", self.options.style.faint(&head))?;
        let most = changed.iter().map(|change| moved(change.own(key))).max().unwrap_or(0);
        for change in &changed[..shown] {
            let (old, new) = amounts(change);
            let relative = match change.status(key) {
                status @ (Status::New | Status::Gone) => status.name().to_owned(),
                Status::Grown | Status::Shrunk | Status::Same => relative(old, new),
            };
            let delta = format!("{:>11} {relative:>8}", signed(old, new, |n| amount(key, n)));
            let bar = match self.options.style {
                Style::Plain => String::new(),
                Style::Ansi => format!("{} ", bar(old.abs_diff(new), most, BAR_CELLS)),
            };
            writeln!(
                self.out,
                "  {} {:>10} {:>10}  {}{}",
                self.coloured(old, new, &delta),
                amount(key, old),
                amount(key, new),
                self.coloured(old, new, &bar),
                cut(&self.function(change), name_cells),
            )?;
        }
        self.more(changed.len() - shown)
    }

    /// `parse  parse.c:15 → 18`.
    fn function(&self, change: &FunctionChange) -> String {
        let frame = |side: Option<crate::views::profile::FunctionUsage>| side.map(|u| u.heaviest);
        label::short(self.words, frame(change.old), frame(change.new))
    }

    fn more(&mut self, more: usize) -> fmt::Result {
        match more {
            0 => Ok(()),
            more => writeln!(self.out, "  … and {} more", count(more as u64)),
        }
    }

    fn stacks(&mut self, memory: Memory) -> fmt::Result {
        let key = self.comparison.key;
        let changed: Vec<_> = self
            .comparison
            .stacks
            .iter()
            .filter(|change| change.memory == memory && moved(change.amounts(key)) > 0)
            .collect();
        if changed.is_empty() {
            return Ok(());
        }
        let (title, most) = match memory {
            Memory::Heap => ("Stacks", DEFAULT_STACKS),
            Memory::Mapped => ("Mappings", DEFAULT_MAPPINGS),
        };
        self.heading(&format!("{title} by change of {}", key.title()))?;
        let shown = changed.len().min(self.options.top.unwrap_or(most));
        for (index, change) in changed[..shown].iter().enumerate() {
            self.stack(index + 1, change)?;
        }
        self.more(changed.len() - shown)
    }

    fn stack(&mut self, number: usize, change: &StackChange) -> fmt::Result {
        let key = self.comparison.key;
        let (old, new) = change.amounts(key);
        let (old, new) = (old.unwrap_or(0), new.unwrap_or(0));
        let what = match change.status(key) {
            status @ (Status::New | Status::Gone) => status.name().to_owned(),
            Status::Grown | Status::Shrunk | Status::Same => {
                format!("{} → {}, {}", amount(key, old), amount(key, new), relative(old, new))
            }
        };
        let delta = signed(old, new, |n| amount(key, n));
        let delta = self.coloured(old, new, &delta);
        writeln!(self.out, "  {number}. {delta} ({what})")?;
        let lines = self.frames(change);
        let (mark, own) = match (&change.old, &change.new) {
            (Some(_), Some(_)) => (' ', 0),
            (None, _) => ('+', lines.len() - self.shared(change, |other| &other.old)),
            (_, None) => ('-', lines.len() - self.shared(change, |other| &other.new)),
        };
        let hidden = lines.len().saturating_sub(INNER_FRAMES + OUTER_FRAMES);
        for (index, line) in lines.iter().enumerate() {
            if hidden > 0 && index == INNER_FRAMES {
                writeln!(self.out, "        … {hidden} more frames …")?;
            }
            if hidden > 0 && (INNER_FRAMES..INNER_FRAMES + hidden).contains(&index) {
                continue;
            }
            let mark = if index < own { mark } else { ' ' };
            let parts = wrap(line, self.options.width.saturating_sub(10));
            for (part_number, part) in parts.into_iter().enumerate() {
                let (mark, indent) = if part_number == 0 { (mark, "") } else { (' ', "  ") };
                writeln!(self.out, "      {mark} {indent}{part}")?;
            }
        }
        Ok(())
    }

    /// How many outer functions the stack shares with one of the other side.
    fn shared(
        &self,
        change: &StackChange,
        side: impl Fn(&StackChange) -> &Option<StackSide>,
    ) -> usize {
        let functions: Vec<_> = change.functions_from_root(self.words).collect();
        let stacks = self.comparison.stacks.iter();
        stacks
            .filter(|other| other.memory == change.memory && side(other).is_some())
            .map(|other| {
                let outer = functions.iter().copied().zip(other.functions_from_root(self.words));
                outer.take_while(|(a, b)| a == b).count()
            })
            .max()
            .unwrap_or(0)
    }

    /// A line for each function of the path.
    fn frames(&self, change: &StackChange) -> Vec<String> {
        let (old, new) =
            (runs(change.old.as_ref(), self.words), runs(change.new.as_ref(), self.words));
        // As many on either side, if both have it.
        (0..old.len().max(new.len()))
            .map(|index| {
                let (old, new) = (old.get(index), new.get(index));
                let frame = |run: Option<&(FrameId, usize)>| run.map(|&(frame, _)| frame);
                let mut line = label::long(self.words, frame(old), frame(new));
                let times = new.or(old).map_or(1, |&(_, times)| times);
                if times > 1 {
                    line.push_str(&format!(" × {times}"));
                }
                line
            })
            .collect()
    }
}

/// Whether one of them is more than a quarter longer.
fn differ_much((a, b): (Duration, Duration)) -> bool {
    a.max(b) > a.min(b) + a.min(b) / 4
}

/// `+1.0 MiB`, `-3`, `0 B`.
fn signed(old: u64, new: u64, amount: impl Fn(u64) -> String) -> String {
    let sign = match old.cmp(&new) {
        std::cmp::Ordering::Less => "+",
        std::cmp::Ordering::Equal => "",
        std::cmp::Ordering::Greater => "-",
    };
    format!("{sign}{}", amount(old.abs_diff(new)))
}

/// `+12.5%`, `-100.0%`, `from 0`.
fn relative(old: u64, new: u64) -> String {
    const MOST: u64 = 99_999;
    match (old, new) {
        _ if old == new => "0.0%".to_owned(),
        (0, _) => "from 0".to_owned(),
        _ => {
            let permille = u128::from(old.abs_diff(new)) * 1_000 / u128::from(old);
            let sign = if new > old { '+' } else { '-' };
            match u64::try_from(permille) {
                Ok(permille @ ..=MOST) => format!("{sign}{}.{}%", permille / 10, permille % 10),
                Ok(_) | Err(_) => ">9999%".to_owned(),
            }
        }
    }
}
