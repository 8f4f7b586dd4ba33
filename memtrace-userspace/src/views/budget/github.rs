//! A judgement as workflow commands of GitHub Actions, which annotate files of a change.
//!
//! ```text
//!   ::error file=src/parse.c,line=15,title=memtrace: parse_*: peak::12.0 MiB, 10.0 MiB allowed
//! ```
//!
//! A row about a function stands at the function, any other at its line of the budget.

use std::io::{self, Write};
use std::path::Path;

use super::{Judgement, Place, Row, Verdict};

/// Writes a command for each row that does not pass. Paths below `root` are made relative to it.
pub fn write(mut out: impl Write, judgement: &Judgement, root: Option<&Path>) -> io::Result<()> {
    for row in &judgement.rows {
        match row.verdict {
            Verdict::Pass => {}
            Verdict::Fail | Verdict::Unknown => writeln!(out, "{}", command(row, root))?,
        }
    }
    Ok(())
}

fn command(row: &Row, root: Option<&Path>) -> String {
    let mut properties = String::new();
    if let Some(Place { file, line }) = row.place.as_ref().or(row.source.as_ref()) {
        let relative = root.and_then(|root| Path::new(file).strip_prefix(root).ok());
        let file = relative.and_then(Path::to_str).unwrap_or(file);
        properties = format!("file={},line={line},", property(file));
    }
    let title = property(&format!("memtrace: {}", row.name()));
    format!("::error {properties}title={title}::{}", data(&message(row)))
}

/// What happened, a line each.
pub(super) fn message(row: &Row) -> String {
    let mut lines = Vec::new();
    if let Some(numbers) = row.numbers {
        let actual = numbers.unit.amount(numbers.actual);
        lines.push(match numbers.limit {
            Some(limit) => format!("{actual}, {} allowed", numbers.unit.amount(limit)),
            None => actual,
        });
    }
    if row.verdict == Verdict::Unknown {
        lines.push("the session does not prove that this holds".to_owned());
    }
    lines.extend(row.notes.iter().cloned());
    for stack in &row.stacks {
        if let Some(numbers) = row.numbers {
            lines.push(format!("{} through", numbers.unit.amount(stack.amount)));
        }
        lines.extend(stack.frames.iter().take(8).map(|frame| format!("    {frame}")));
    }
    lines.join("\n")
}

/// Escapes text behind the last `::`.
fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// Escapes the value of a property.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}
