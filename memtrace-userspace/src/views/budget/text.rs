//! A judgement as a table, and what explains the rows that do not pass.

use std::fmt::{self, Write};

use super::{Judgement, Numbers, Row, TopStack, Verdict};
use crate::record::Origin;
use crate::views::layout::{cut, wrap};
use crate::views::profile::{Coverage, Profile};
use crate::views::quantity::{self, count, share};
use crate::views::style::Style;

/// How many frames of a stack are shown at its inner end.
const FRAMES: usize = 8;

/// How the text looks.
#[derive(Clone, Debug)]
pub struct Options {
    /// Cells per line.
    pub width: usize,
    /// Colour, or none.
    pub style: Style,
}

/// The judgement as text.
pub fn render(judgement: &Judgement, profile: &Profile, options: &Options) -> String {
    let mut text = Text { out: String::new(), options };
    text.write(judgement, profile).expect("writing to a String cannot fail");
    text.out
}

struct Text<'t> {
    out: String,
    options: &'t Options,
}

impl Text<'_> {
    fn write(&mut self, judgement: &Judgement, profile: &Profile) -> fmt::Result {
        let Profile { target, coverage: Coverage { duration, origin, .. }, .. } = profile;
        let origin = match origin {
            Some(Origin::Attached) => ", attached while running",
            Some(Origin::Launched) => ", traced from its start",
            None => "",
        };
        let title = format!("memtrace check: {target}, {}{origin}", quantity::duration(*duration));
        let title = cut(&title, self.options.width);
        writeln!(self.out, "{}\n", self.options.style.heading(&title))?;
        let head = format!("  {:<7} {:>10} {:>10} {:>10}  what", "", "actual", "limit", "headroom");
        writeln!(self.out, "{}", self.options.style.faint(&head))?;
        for row in &judgement.rows {
            self.row(row)?;
        }
        let mut explained = Vec::new();
        for row in judgement.rows.iter().filter(|row| !row.stacks.is_empty()) {
            // Two limits of one number have one explanation.
            if !explained.contains(&(&row.subject, row.metric)) {
                explained.push((&row.subject, row.metric));
                self.stacks(row)?;
            }
        }
        let verdicts: Vec<String> =
            [(Verdict::Pass, "passed"), (Verdict::Fail, "failed"), (Verdict::Unknown, "unknown")]
                .into_iter()
                .map(|(verdict, word)| (judgement.count(verdict), word))
                .filter(|&(number, _)| number > 0)
                .map(|(number, word)| format!("{} {word}", count(number)))
                .collect();
        let line = format!(
            "{}: {}",
            quantity::counted(judgement.rows.len() as u64, "check"),
            verdicts.join(", ")
        );
        writeln!(self.out, "\n{}", self.coloured(judgement.verdict(), &line))
    }

    fn coloured(&self, verdict: Verdict, text: &str) -> String {
        match verdict {
            Verdict::Pass => self.options.style.better(text),
            Verdict::Fail => self.options.style.worse(text),
            Verdict::Unknown => self.options.style.warning(text),
        }
    }

    fn row(&mut self, row: &Row) -> fmt::Result {
        let (actual, limit, headroom) = match &row.numbers {
            None => (String::new(), String::new(), String::new()),
            Some(Numbers { unit, actual, limit, baseline: _ }) => {
                let headroom = limit.map(|limit| {
                    let sign = if *actual > limit { "-" } else { "" };
                    format!("{sign}{}", unit.amount(limit.abs_diff(*actual)))
                });
                let limit = limit.map(|limit| unit.amount(limit));
                (unit.amount(*actual), limit.unwrap_or_default(), headroom.unwrap_or_default())
            }
        };
        let word = match row.verdict {
            Verdict::Pass => "pass",
            Verdict::Fail => "FAIL",
            Verdict::Unknown => "unknown",
        };
        // "  " verdict 7, " " actual 10, " " limit 10, " " headroom 10, "  " name
        let indent = 2 + 7 + 1 + 10 + 1 + 10 + 1 + 10 + 2;
        let cells = self.options.width.saturating_sub(indent).max(20);
        let name = row.name();
        for (index, part) in wrap(&name, cells).into_iter().enumerate() {
            if index == 0 {
                let verdict = self.coloured(row.verdict, &format!("{word:<7}"));
                writeln!(self.out, "  {verdict} {actual:>10} {limit:>10} {headroom:>10}  {part}")?;
            } else {
                writeln!(self.out, "{:indent$}{part}", "")?;
            }
        }
        let mark = if row.verdict == Verdict::Pass { "-" } else { "!" };
        for note in &row.notes {
            let lines = wrap(note, self.options.width.saturating_sub(12));
            for (index, line) in lines.into_iter().enumerate() {
                let mark = if index == 0 { mark } else { " " };
                let line = format!("{mark} {line}");
                let line = match row.verdict {
                    Verdict::Pass => self.options.style.faint(&line),
                    Verdict::Fail | Verdict::Unknown => self.options.style.warning(&line),
                };
                writeln!(self.out, "          {line}")?;
            }
        }
        Ok(())
    }

    fn stacks(&mut self, row: &Row) -> fmt::Result {
        let Some(Numbers { unit, actual, limit: _, baseline: _ }) = row.numbers else {
            return Ok(());
        };
        let source = match &row.source {
            Some(source) => format!("  ({}:{})", source.file, source.line),
            None => String::new(),
        };
        let heading = format!("{}{source}", row.name());
        writeln!(self.out, "\n{}", self.options.style.heading(&heading))?;
        for TopStack { amount, frames } in &row.stacks {
            writeln!(self.out, "  {} ({})", unit.amount(*amount), share(*amount, actual))?;
            for frame in frames.iter().take(FRAMES) {
                let parts = wrap(frame, self.options.width.saturating_sub(10));
                for (index, part) in parts.into_iter().enumerate() {
                    writeln!(self.out, "      {}{part}", if index == 0 { "" } else { "  " })?;
                }
            }
            if let Some(hidden) = frames.len().checked_sub(FRAMES).filter(|&hidden| hidden > 0) {
                writeln!(self.out, "      … {hidden} more frames")?;
            }
        }
        Ok(())
    }
}
