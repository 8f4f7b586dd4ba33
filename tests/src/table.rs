//! The tables in the sources of the test programs.
//!
//! A line is a comment, so that it stands beside the code it speaks of:
//!
//! ```text
//!   // expect: function=leak_blocks api=malloc allocations=1009 allocated_bytes=138233 …
//!   // expect: within=outer_caller api=malloc|calloc allocations=11 …
//!   // absent: function=fail_posix_memalign
//!   // totals: allocations=1741 … peak_live_bytes=222000
//!   // process: index=0 allocations=148 …
//!   // processes: 3
//! ```
//!
//! `function` is the function that allocates, `within` one that does so itself or through
//! others. `totals` are those of the whole report, so only programs that know every allocation in
//! their process have them. A name with spaces stands in quotes.

use anyhow::{Context, Result, bail};

/// One number of a row, by the name it has in the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Such as `allocated_bytes`.
    pub name: &'static str,
    /// What the report must say.
    pub expected: u64,
}

/// The functions that a row adds up.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// The stacks in which this function allocates.
    Function(String),
    /// The stacks in which this function stands anywhere.
    Within(String),
}

/// A row about a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Whose stacks.
    pub subject: Subject,
    /// Which APIs; more than one where the library gives one function several names.
    pub apis: Vec<String>,
    /// The numbers.
    pub columns: Vec<Column>,
    /// Fewest and most frames of the subject in one stack, if that is of interest.
    pub depth: Option<(u64, u64)>,
}

/// A row about a process, by its place in the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessRow {
    /// Place in `target.processes`.
    pub index: u64,
    /// The numbers of its heap.
    pub columns: Vec<Column>,
}

/// All that a source says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// About functions.
    pub rows: Vec<Row>,
    /// Functions that must not appear as allocating.
    pub absent: Vec<String>,
    /// About the whole report; may be empty.
    pub totals: Vec<Column>,
    /// About processes.
    pub processes: Vec<ProcessRow>,
    /// How many processes there are, if that is said.
    pub process_count: Option<u64>,
}

const COLUMNS: [&str; 9] = [
    "allocations",
    "allocated_bytes",
    "frees",
    "freed_bytes",
    "live_blocks",
    "live_bytes",
    "peak_live_bytes",
    "temporary_allocations",
    "mapped_bytes",
];

impl Table {
    /// Reads the comments of a source; an unknown word is an error, not a comment.
    pub fn parse(source: &str) -> Result<Table> {
        let mut table = Table::default();
        for (number, line) in source.lines().enumerate() {
            let Some(comment) = line.strip_prefix("// ") else {
                continue;
            };
            table.parse_line(comment).with_context(|| format!("line {}", number + 1))?;
        }
        Ok(table)
    }

    fn parse_line(&mut self, comment: &str) -> Result<()> {
        if let Some(rest) = comment.strip_prefix("expect: ") {
            self.rows.push(parse_row(fields(rest)?)?);
        } else if let Some(rest) = comment.strip_prefix("absent: ") {
            let [("function", name)] = &fields(rest)?[..] else {
                bail!("`absent` takes one `function`");
            };
            self.absent.push(name.clone());
        } else if let Some(rest) = comment.strip_prefix("totals: ") {
            self.totals = columns(fields(rest)?)?;
        } else if let Some(rest) = comment.strip_prefix("process: ") {
            let mut fields = fields(rest)?;
            let index = take(&mut fields, "index").context("`process` needs an `index`")?;
            self.processes.push(ProcessRow { index: index.parse()?, columns: columns(fields)? });
        } else if let Some(rest) = comment.strip_prefix("processes: ") {
            self.process_count = Some(rest.trim().parse()?);
        }
        Ok(())
    }
}

fn parse_row(mut fields: Vec<(&str, String)>) -> Result<Row> {
    let function = take(&mut fields, "function").map(Subject::Function);
    let within = take(&mut fields, "within").map(Subject::Within);
    let (Some(subject), None) = (function.clone().or(within.clone()), function.and(within)) else {
        bail!("a row needs either `function` or `within`");
    };
    let apis = take(&mut fields, "api").context("a row needs an `api`")?;
    let depth = match (take(&mut fields, "depth_min"), take(&mut fields, "depth_max")) {
        (Some(least), Some(most)) => Some((least.parse()?, most.parse()?)),
        (None, None) => None,
        _ => bail!("`depth_min` and `depth_max` come together"),
    };
    Ok(Row {
        subject,
        apis: apis.split('|').map(str::to_owned).collect(),
        columns: columns(fields)?,
        depth,
    })
}

fn columns(fields: Vec<(&str, String)>) -> Result<Vec<Column>> {
    let parsed = fields.into_iter().map(|(key, value)| {
        let name = COLUMNS.into_iter().find(|name| *name == key);
        let name = name.with_context(|| format!("unknown column `{key}`"))?;
        let expected = value.parse().with_context(|| format!("`{key}={value}`"))?;
        Ok(Column { name, expected })
    });
    parsed.collect()
}

fn take(fields: &mut Vec<(&str, String)>, key: &str) -> Option<String> {
    let place = fields.iter().position(|(name, _)| *name == key)?;
    Some(fields.remove(place).1)
}

/// Splits `key=value key="with spaces"`.
fn fields(mut text: &str) -> Result<Vec<(&str, String)>> {
    let mut fields = Vec::new();
    loop {
        text = text.trim_start();
        if text.is_empty() {
            return Ok(fields);
        }
        let (key, rest) = text.split_once('=').with_context(|| format!("no `=` in `{text}`"))?;
        let (value, rest) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').context("a quote is not closed")?,
            None => rest.split_once(' ').unwrap_or((rest, "")),
        };
        fields.push((key, value.to_owned()));
        text = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_of_a_source_is_read() -> Result<()> {
        let source = "\
// Prose: with=signs
//
// expect: function=\"A::A(int)\" api=malloc|calloc allocations=1 live_bytes=7
// expect: within=main api=malloc frees=2 depth_min=1 depth_max=3
// absent: function=nobody
// totals: peak_live_bytes=9
// process: index=1 allocations=4
// processes: 2
int main(void) {}
";

        let table = Table::parse(source)?;

        let column = |name, expected| Column { name, expected };
        let expected = Table {
            rows: vec![
                Row {
                    subject: Subject::Function("A::A(int)".to_owned()),
                    apis: vec!["malloc".to_owned(), "calloc".to_owned()],
                    columns: vec![column("allocations", 1), column("live_bytes", 7)],
                    depth: None,
                },
                Row {
                    subject: Subject::Within("main".to_owned()),
                    apis: vec!["malloc".to_owned()],
                    columns: vec![column("frees", 2)],
                    depth: Some((1, 3)),
                },
            ],
            absent: vec!["nobody".to_owned()],
            totals: vec![column("peak_live_bytes", 9)],
            processes: vec![ProcessRow { index: 1, columns: vec![column("allocations", 4)] }],
            process_count: Some(2),
        };
        assert_eq!(table, expected);
        Ok(())
    }

    #[test]
    fn misspelt_column_is_an_error() {
        let error = Table::parse("// totals: alocations=1").expect_err("it is misspelt");

        assert_eq!(format!("{error:#}"), "line 1: unknown column `alocations`");
    }
}
