//! What the bench found: a table for the terminal, the same in markdown, and everything in JSON.
//!
//! A part of the bench makes one [`Section`]; this module knows nothing of what was measured.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::machine::Machine;

/// One part's results.
pub(super) struct Section {
    pub(super) title: &'static str,
    pub(super) table: Table,
    /// What the columns mean, and what is wrong or missing.
    pub(super) notes: Vec<String>,
    /// Every number, the single rounds included.
    pub(super) json: Value,
}

/// Rows of text. The first column is flush left, the others flush right.
pub(super) struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(header: &[&str]) -> Self {
        Self { header: header.iter().map(|&name| name.to_owned()).collect(), rows: Vec::new() }
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let row: Vec<String> = cells.into_iter().collect();
        debug_assert_eq!(row.len(), self.header.len(), "a row has a cell for every column");
        self.rows.push(row);
    }

    /// The columns of these names, in their order here.
    fn pick(&self, columns: &[&str]) -> Self {
        let kept: Vec<usize> = columns
            .iter()
            .filter_map(|name| self.header.iter().position(|column| column == name))
            .collect();
        let pick = |line: &Vec<String>| kept.iter().map(|&column| line[column].clone()).collect();
        Self { header: pick(&self.header), rows: self.rows.iter().map(pick).collect() }
    }

    /// Aligned columns, two spaces between them.
    fn text(&self) -> String {
        let lines = || std::iter::once(&self.header).chain(&self.rows);
        let widths: Vec<usize> = (0..self.header.len())
            .map(|column| lines().map(|line| line[column].chars().count()).max().unwrap_or(0))
            .collect();
        let mut text = String::new();
        for line in lines() {
            let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
                if column == 0 { format!("{cell:width$}") } else { format!("{cell:>width$}") }
            });
            let _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
        }
        text
    }

    fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let rule = self
            .header
            .iter()
            .enumerate()
            .map(|(column, _)| if column == 0 { "---" } else { "--:" });
        let mut text = line(&self.header);
        let _ = writeln!(text, "|{}|", rule.collect::<Vec<_>>().join("|"));
        self.rows.iter().for_each(|row| text.push_str(&line(row)));
        text
    }
}

/// For the terminal.
pub(super) fn text(machine: &Machine, sections: &[Section]) -> String {
    let mut text = format!("{}\n", machine.lines().join("\n"));
    for Section { title, table, notes, json: _ } in sections {
        let _ = write!(text, "\n{title}\n\n{}", table.text());
        for note in notes {
            let _ = write!(text, "\n{}", wrap(note));
        }
    }
    text
}

/// A document that stands alone.
pub(super) fn markdown(machine: &Machine, sections: &[Section]) -> String {
    let mut text = String::from(PREAMBLE);
    for line in machine.lines() {
        let _ = writeln!(text, "- {line}");
    }
    for Section { title, table, notes, json: _ } in sections {
        let _ = write!(text, "\n## {title}\n\n{}", table.markdown());
        for note in notes {
            let _ = write!(text, "\n{}", wrap(note));
        }
    }
    text
}

const PREAMBLE: &str = "\
# Benchmarks

Written by `cargo xtask bench`, which measures all of this anew on your machine. All figures of a
table are of one run, its variants interleaved. Compare ratios, not nanoseconds, with another
machine's.

In the tables of loops, *bare*, *floor*, *places* and *memtrace* are the CPU time of the target for
one allocation and its release. *floor* is empty programs on the functions' entries and returns, each
at the cheapest instruction: the kernel's own price of watching calls, which every tracer pays that
uses return probes. *places* is empty programs where memtrace has its own, for `malloc` inside the
function. (Where the kernel does not let its functions be watched, all of them contain the price of
its system-call tracepoints, which return probes pay from 6.11 on: 140 ns here.) *× floor* is the
median of the rounds' ratios, *rounds* the least and the greatest of them, *target* the bound that
memtrace sets itself, in floors.
*daemon* is memtrace's own CPU time in units of what it adds to the target's: 0.35 at most, except
while most stacks are new to the daemon, which has to learn each once (in the recursion, two of three
come for the first time). *walked*: allocations whose stack was walked anew; the others were
recognised. *complete*: allocations whose stack reaches the root. *B/event*: size of the trace.
*count*: what memtrace counted, against what the loop did.

";

/// Everything that was measured.
pub(super) fn json(machine: &Machine, sections: &[Section]) -> Result<String> {
    let parts: serde_json::Map<String, Value> =
        sections.iter().map(|section| (section.title.to_owned(), section.json.clone())).collect();
    let all = json!({
        "format": "memtrace-bench",
        "version": 1,
        "machine": machine.json(),
        "sections": parts,
    });
    serde_json::to_string_pretty(&all).context("the results as JSON")
}

/// The document with what stands between the bench's marks replaced; `None` without them.
pub(super) fn replace_between_marks(document: &str, text: &str) -> Option<String> {
    let (before, rest) = document.split_once(MARK_BEGIN)?;
    let (_, after) = rest.split_once(MARK_END)?;
    Some(format!("{before}{MARK_BEGIN}\n{text}{MARK_END}{after}"))
}

const MARK_BEGIN: &str = "<!-- written by cargo xtask bench -->";
const MARK_END: &str = "<!-- end of what cargo xtask bench wrote -->";

/// What README says: where and when, and some columns of some tables.
pub(super) fn excerpt(machine: &Machine, quotes: &[(&Section, &[&str])]) -> String {
    let mut text = wrap(&format!("{}.", machine.summary()));
    for (Section { title, table, notes: _, json: _ }, columns) in quotes {
        let _ = write!(text, "\n{title}:\n\n{}", table.pick(columns).markdown());
    }
    text.push('\n');
    text
}

/// Lines of at most 100 columns.
fn wrap(paragraph: &str) -> String {
    let mut text = String::new();
    let mut columns = 0;
    for word in paragraph.split_whitespace() {
        let width = word.chars().count();
        if columns > 0 && columns + 1 + width > 100 {
            text.push('\n');
            columns = 0;
        } else if columns > 0 {
            text.push(' ');
            columns += 1;
        }
        text.push_str(word);
        columns += width;
    }
    text.push('\n');
    text
}

/// `8.9`, `2469`: nanoseconds.
pub(super) fn ns(value: f64) -> String {
    if value < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

/// `1.27×`, `47×`.
pub(super) fn factor(value: f64) -> String {
    if !value.is_finite() {
        "?".to_owned()
    } else if value < 10.0 {
        format!("{value:.2}×")
    } else {
        format!("{value:.0}×")
    }
}

/// The bound, and whether it holds. What costs less than its `own` part, of which `own_ratio` is the
/// multiple, was measured wrongly.
pub(super) fn verdict(ratio: f64, own_ratio: f64, target: f64) -> String {
    let holds = if own_ratio < 1.0 {
        "implausible"
    } else if ratio <= target {
        "met"
    } else {
        "missed"
    };
    format!("≤ {target}: {holds}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&["case", "× floor"]);
        table.row(["malloc".to_owned(), factor(1.254)]);
        table.row(["jemalloc new".to_owned(), factor(12.6)]);
        table
    }

    #[test]
    fn text_is_aligned_by_characters() {
        let expected = "\
case          × floor
malloc          1.25×
jemalloc new      13×
";
        assert_eq!(table().text(), expected);
    }

    #[test]
    fn markdown_has_a_rule_under_its_header() {
        let expected = "\
| case | × floor |
|---|--:|
| malloc | 1.25× |
| jemalloc new | 13× |
";
        assert_eq!(table().markdown(), expected);
    }

    #[test]
    fn picked_columns_come_in_the_order_asked_for() {
        let picked = table().pick(&["× floor", "no such column", "case"]);

        assert_eq!(picked.header, ["× floor", "case"]);
        assert_eq!(picked.rows, [["1.25×", "malloc"], ["13×", "jemalloc new"]]);
    }

    #[test]
    fn verdict_distrusts_what_is_faster_than_its_own_part() {
        assert_eq!(verdict(0.9, 1.2, 1.2), "≤ 1.2: met");
        assert_eq!(verdict(1.21, 1.5, 1.2), "≤ 1.2: missed");
        assert_eq!(verdict(0.9, 0.99, 1.2), "≤ 1.2: implausible");
        assert_eq!(verdict(f64::NAN, f64::NAN, 1.2), "≤ 1.2: missed");
    }

    #[test]
    fn only_text_between_the_marks_is_replaced() {
        let document = format!("a\n{MARK_BEGIN}\nold\n{MARK_END}\nb\n");

        let replaced = replace_between_marks(&document, "new\n");

        assert_eq!(replaced, Some(format!("a\n{MARK_BEGIN}\nnew\n{MARK_END}\nb\n")));
        assert_eq!(replace_between_marks("no marks", "new"), None);
    }

    #[test]
    fn long_notes_are_wrapped() {
        let note = "word ".repeat(30);

        assert_eq!(
            wrap(&note),
            format!("{}\n{}\n", ["word"; 20].join(" "), ["word"; 10].join(" "))
        );
    }
}
