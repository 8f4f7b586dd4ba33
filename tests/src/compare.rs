//! Compares a report with the table of a program.
//!
//! Every difference is collected, so that one failure shows the whole picture:
//!
//! ```text
//!   subject                            number            expected      found
//!   stacks: leak_blocks (malloc)       allocations           1009       1008
//!   functions: leak_blocks             allocations           1009       1008
//!   capture                            lost_events              0          1
//! ```

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Result, bail};
use serde_json::Value;

use crate::report::{Report, Stack, is_mapping_api};
use crate::table::{Column, Row, Subject, Table};

/// What is asked of the stacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stacks {
    /// Every stack of the session reaches the root of its thread.
    Complete,
    /// Every stack of a heap block does. A C library without unwind information makes mappings.
    HeapComplete,
    /// They may end early: the C library has no unwind information, or code switches stacks.
    MayEndEarly,
}

/// One thing that is not as it should be.
struct Difference {
    subject: String,
    number: String,
    expected: String,
    found: String,
}

/// Compares every number of the table with the report.
pub fn compare(table: &Table, report: &Report, stacks: Stacks) -> Result<()> {
    let mut differences = Differences::default();
    if table.rows.is_empty() {
        bail!("the table has no rows");
    }
    for row in &table.rows {
        compare_row(row, report, stacks, &mut differences);
    }
    compare_functions(table, report, &mut differences);
    for name in &table.absent {
        for stack in report.stacks.iter().filter(|stack| allocates(stack, name)) {
            differences.push("absent", name, "no stack", &stack.path());
        }
    }
    compare_columns("totals", &table.totals, &report.json["totals"], &mut differences);
    compare_processes(table, report, &mut differences);
    let capture = &report.json["capture"];
    compare_number("capture", "lost_events", 0, capture, &mut differences);
    if stacks == Stacks::Complete {
        compare_number("capture", "truncated_stacks", 0, capture, &mut differences);
    }
    differences.into_result(report)
}

#[derive(Default)]
struct Differences(Vec<Difference>);

impl Differences {
    fn push(&mut self, subject: &str, number: &str, expected: &str, found: &str) {
        self.0.push(Difference {
            subject: subject.to_owned(),
            number: number.to_owned(),
            expected: expected.to_owned(),
            found: found.to_owned(),
        });
    }

    fn into_result(self, report: &Report) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let heading = Difference {
            subject: "subject".to_owned(),
            number: "number".to_owned(),
            expected: "expected".to_owned(),
            found: "found".to_owned(),
        };
        let width = self.0.iter().map(|d| d.subject.len()).max().unwrap_or(0).max(20);
        let mut text = String::from("the report differs from the table:\n");
        for Difference { subject, number, expected, found } in
            std::iter::once(&heading).chain(&self.0)
        {
            let _ = writeln!(text, "{subject:width$}  {number:21} {expected:>12} {found:>12}");
        }
        let _ = writeln!(text, "\nallocating functions in the report:");
        for ((api, function), (allocations, bytes)) in allocating_functions(report) {
            let _ = writeln!(text, "{api:14} {function:40} {allocations:>9} {bytes:>14}");
        }
        let _ = writeln!(text, "\ncounters: {}", report.json["counters"]);
        bail!(text)
    }
}

fn compare_row(row: &Row, report: &Report, stacks: Stacks, differences: &mut Differences) {
    let (subject, name) = match &row.subject {
        Subject::Function(name) => (format!("stacks: {name} ({})", row.apis.join("|")), name),
        Subject::Within(name) => (format!("stacks: …{name}… ({})", row.apis.join("|")), name),
    };
    let selected: Vec<&Stack> = report
        .stacks
        .iter()
        .filter(|stack| row.apis.contains(&stack.api))
        .filter(|stack| match &row.subject {
            Subject::Function(name) => allocates(stack, name),
            Subject::Within(name) => stack.frames.iter().any(|frame| frame.is(name)),
        })
        .collect();
    for &Column { name, expected } in &row.columns {
        let found: u64 = selected.iter().filter_map(|stack| stack.json[name].as_u64()).sum();
        if found != expected {
            differences.push(&subject, name, &expected.to_string(), &found.to_string());
        }
    }
    if let Some((least, most)) = row.depth {
        let frames_of = |stack: &&Stack| {
            stack.frames.iter().filter(|frame| !frame.inlined && frame.is(name)).count()
        };
        let found = (
            selected.iter().map(frames_of).min().unwrap_or(0) as u64,
            selected.iter().map(frames_of).max().unwrap_or(0) as u64,
        );
        if found != (least, most) {
            let [expected, found] =
                [(least, most), found].map(|(least, most)| format!("{least}..={most}"));
            differences.push(&subject, "frames", &expected, &found);
        }
    }
    if stacks != Stacks::MayEndEarly {
        for stack in selected {
            if stack.end != "root" || !stack.root().is_some_and(|root| root.is_thread_root()) {
                differences.push(
                    &subject,
                    "end",
                    "root",
                    &format!("{}: {}", stack.end, stack.path()),
                );
            }
        }
    }
}

/// Whether the function itself is the one that allocates.
fn allocates(stack: &Stack, name: &str) -> bool {
    stack.frames.first().is_some_and(|frame| frame.is(name))
}

/// `functions` must say the same as the stacks: `self` for a function, `total` for what is within.
fn compare_functions(table: &Table, report: &Report, differences: &mut Differences) {
    let mut expected: BTreeMap<(&str, &str, bool, &str), u64> = BTreeMap::new();
    for row in &table.rows {
        let (scope, name) = match &row.subject {
            Subject::Function(name) => ("self", name),
            Subject::Within(name) => ("total", name),
        };
        let mapped = row.apis.iter().any(|api| is_mapping_api(api));
        for column in &row.columns {
            *expected.entry((name, scope, mapped, column.name)).or_default() += column.expected;
        }
    }
    let functions = report.json["functions"].as_array().map_or(&[][..], Vec::as_slice);
    for ((name, scope, mapped, column), expected) in expected {
        let found: u64 = functions
            .iter()
            .filter(|function| {
                let frame = crate::report::Frame {
                    function: function["function"].as_str().map(str::to_owned),
                    module: String::new(),
                    file: None,
                    line: None,
                    inlined: false,
                };
                frame.is(name)
            })
            .map(|function| if mapped { &function["mapped"] } else { function })
            .filter_map(|usages| usages[scope][column].as_u64())
            .sum();
        if found != expected {
            let place = if mapped { format!("mapped.{scope}") } else { scope.to_owned() };
            differences.push(
                &format!("functions: {name} .{place}"),
                column,
                &expected.to_string(),
                &found.to_string(),
            );
        }
    }
}

fn compare_processes(table: &Table, report: &Report, differences: &mut Differences) {
    let processes = report.json["target"]["processes"].as_array().map_or(&[][..], Vec::as_slice);
    if let Some(expected) = table.process_count
        && processes.len() as u64 != expected
    {
        let found = processes.len().to_string();
        differences.push("target", "processes", &expected.to_string(), &found);
    }
    for row in &table.processes {
        let process = processes.get(row.index as usize).unwrap_or(&Value::Null);
        let subject = format!("process {}", row.index);
        compare_columns(&subject, &row.columns, &process["heap"], differences);
    }
}

fn compare_columns(
    subject: &str,
    columns: &[Column],
    object: &Value,
    differences: &mut Differences,
) {
    for &Column { name, expected } in columns {
        compare_number(subject, name, expected, object, differences);
    }
}

fn compare_number(
    subject: &str,
    name: &str,
    expected: u64,
    object: &Value,
    differences: &mut Differences,
) {
    if object[name].as_u64() != Some(expected) {
        differences.push(subject, name, &expected.to_string(), &object[name].to_string());
    }
}

/// What allocated how much, for the reader of a failure.
fn allocating_functions(report: &Report) -> BTreeMap<(String, String), (u64, u64)> {
    let mut sums: BTreeMap<_, (u64, u64)> = BTreeMap::new();
    for stack in &report.stacks {
        let frame = stack.frames.first();
        let function = frame.and_then(|frame| frame.function.clone());
        let function = function.unwrap_or_else(|| "??".to_owned());
        let sum = sums.entry((stack.api.clone(), function)).or_default();
        sum.0 += stack.json["allocations"].as_u64().unwrap_or(0);
        sum.1 += stack.json["allocated_bytes"].as_u64().unwrap_or(0);
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "// expect: function=leak api=malloc allocations=2 live_bytes=14\n\
                         // absent: function=nobody\n";

    fn report(allocations: u64, function: &str, root: &str) -> Result<Report> {
        let usage = serde_json::json!({"allocations": allocations, "live_bytes": 14});
        let places = [function, "main", root]
            .map(|name| serde_json::json!({"module": "/a", "frames": [{"function": name}]}));
        let report = serde_json::json!({
            "format": "memtrace-report",
            "version": 2,
            "capture": {"lost_events": 0, "truncated_stacks": 0},
            "functions": [{"function": "leak", "self": usage}],
            "stacks": [{
                "api": "malloc", "end": "root", "places": [0, 1, 2],
                "allocations": allocations, "live_bytes": 14,
            }],
            "places": places,
        });
        Report::parse(&report.to_string())
    }

    fn differences(report: &Report) -> Result<Vec<String>> {
        let table = Table::parse(TABLE)?;
        let text = match compare(&table, report, Stacks::Complete) {
            Ok(()) => return Ok(Vec::new()),
            Err(error) => error.to_string(),
        };
        let lines = text.lines().skip(2).take_while(|line| !line.is_empty());
        Ok(lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect())
    }

    #[test]
    fn report_that_agrees_passes() -> Result<()> {
        assert_eq!(differences(&report(2, "leak", "_start")?)?, [""; 0]);
        Ok(())
    }

    #[test]
    fn wrong_number_is_shown_wherever_it_stands() -> Result<()> {
        let found = differences(&report(3, "leak", "_start")?)?;

        let expected =
            ["stacks: leak (malloc) allocations 2 3", "functions: leak .self allocations 2 3"];
        assert_eq!(found, expected);
        Ok(())
    }

    #[test]
    fn stack_that_ends_in_the_middle_is_shown() -> Result<()> {
        let found = differences(&report(2, "leak", "middle")?)?;

        assert_eq!(found, ["stacks: leak (malloc) end root root: leak < main < middle"]);
        Ok(())
    }

    #[test]
    fn function_that_must_be_absent_is_shown() -> Result<()> {
        let found = differences(&report(2, "nobody", "_start")?)?;

        assert!(found.contains(&"absent nobody no stack nobody < main < _start".to_owned()));
        Ok(())
    }
}
