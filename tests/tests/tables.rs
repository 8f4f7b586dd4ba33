//! The tables themselves, checked by valgrind's DHAT, which knows nothing of memtrace.
//!
//! DHAT counts blocks and bytes by call stack. It counts no zero-sized blocks as such, joins a
//! realloc to the block's first allocation, knows no pvalloc, and refuses impossible sizes, so
//! the programs that need those are not among these.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use memtrace_tests::program::{self, FramePointers, Program};
use memtrace_tests::recording::run;
use memtrace_tests::scratch_directory;
use memtrace_tests::table::Subject;
use serde_json::Value;

const CHECKED: [Program; 9] = [
    program::CROSS_THREAD,
    program::CALLOC_BLOCKS,
    program::RECURSION,
    program::LONGJMP,
    program::CXX_OBJECTS,
    program::THREAD_CHURN,
    program::RUST_PROGRAM,
    program::DLOPEN_PLUGINS,
    program::LEAK,
];

/// Blocks and bytes, all and those left at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    allocations: u64,
    allocated_bytes: u64,
    live_blocks: u64,
    live_bytes: u64,
}

/// What DHAT says of the functions that the table names.
fn measure(program: Program, output: &Path) -> Result<BTreeMap<Subject, Sum>> {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=dhat", "--num-callers=500", "--keep-debuginfo=yes"]);
    valgrind.arg(format!("--dhat-out-file={}", output.display()));
    run(valgrind.arg(program.build(FramePointers::Omitted)?))?.require_success("valgrind")?;
    let text = std::fs::read_to_string(output).context("read DHAT's output")?;
    let profile: Value = serde_json::from_str(&text).context("DHAT's output")?;
    let number = |point: &Value, key: &str| point[key].as_u64().context("a number of DHAT");
    let subjects: BTreeSet<Subject> =
        program.table()?.rows.into_iter().map(|row| row.subject).collect();
    let mut sums: BTreeMap<Subject, Sum> = BTreeMap::new();
    for point in profile["pps"].as_array().context("DHAT's points")? {
        let frames = point["fs"].as_array().context("DHAT's frames")?;
        let names = frames.iter().filter_map(Value::as_u64);
        let names = names.filter_map(|index| profile["ftbl"][index as usize].as_str());
        let names: Vec<&str> = names.filter_map(function_name).collect();
        let within: BTreeSet<Subject> =
            names.iter().map(|name| Subject::Within((*name).to_owned())).collect();
        let mut functions = names.iter().map(|name| Subject::Function((*name).to_owned()));
        let function = functions.find(|function| subjects.contains(function));
        for subject in within.into_iter().chain(function) {
            let sum = sums.entry(subject).or_default();
            sum.allocations += number(point, "tbk")?;
            sum.allocated_bytes += number(point, "tb")?;
            sum.live_blocks += number(point, "ebk")?;
            sum.live_bytes += number(point, "eb")?;
        }
    }
    Ok(sums)
}

/// `0x1234: leak_blocks (leak.c:17)` is `leak_blocks`.
fn function_name(frame: &str) -> Option<&str> {
    let (_, name) = frame.split_once(": ")?;
    Some(name.rsplit_once(" (")?.0)
}

/// What the table says of its functions, all APIs together.
fn expected(program: Program) -> Result<BTreeMap<Subject, Sum>> {
    let mut sums: BTreeMap<Subject, Sum> = BTreeMap::new();
    for row in program.table()?.rows {
        let sum = sums.entry(row.subject).or_default();
        for column in &row.columns {
            let number = match column.name {
                "allocations" => &mut sum.allocations,
                "allocated_bytes" => &mut sum.allocated_bytes,
                "live_blocks" => &mut sum.live_blocks,
                "live_bytes" => &mut sum.live_bytes,
                _ => continue,
            };
            *number += column.expected;
        }
    }
    Ok(sums)
}

#[test]
fn tables_agree_with_dhat() -> Result<()> {
    let scratch = scratch_directory("dhat")?;
    let mut differences = Vec::new();
    for program in CHECKED {
        let measured = measure(program, &scratch.join(format!("{}.json", program.name)))?;
        for (subject, expected) in expected(program)? {
            let found = measured.get(&subject).copied().unwrap_or_default();
            if found != expected {
                differences.push(format!("{} {subject:?}: {expected:?}, {found:?}", program.name));
            }
        }
    }
    ensure!(differences.is_empty(), "table, then DHAT:\n{}", differences.join("\n"));
    Ok(())
}

#[test]
fn rows_of_a_table_add_up() -> Result<()> {
    for program in ALL {
        let table = program.table()?;
        for row in &table.rows {
            let column = |name| {
                let column = row.columns.iter().find(|column| column.name == name);
                column.map(|column| column.expected).with_context(|| format!("{row:?}: {name}"))
            };
            let bytes = column("allocated_bytes")? - column("freed_bytes")?;
            let blocks = column("allocations")? - column("frees")?;
            ensure!(bytes == column("live_bytes")?, "{}: {row:?}", program.name);
            ensure!(blocks == column("live_blocks")?, "{}: {row:?}", program.name);
        }
        for total in table.totals.iter().filter(|total| !ALONE.contains(&total.name)) {
            let rows = table.rows.iter().filter(|row| matches!(row.subject, Subject::Function(_)));
            let columns = rows.flat_map(|row| &row.columns);
            let sum: u64 = columns
                .filter(|column| column.name == total.name)
                .map(|column| column.expected)
                .sum();
            ensure!(sum == total.expected, "{}: {total:?}, {sum}", program.name);
        }
    }
    Ok(())
}

/// Totals that no rows add up to.
const ALONE: [&str; 2] = ["peak_live_bytes", "temporary_allocations"];

const ALL: [Program; 21] = [
    program::LEAK,
    program::CROSS_THREAD,
    program::REALLOC_CHAIN,
    program::CALLOC_BLOCKS,
    program::ALIGNED,
    program::RECURSION,
    program::SIGNAL_HANDLER,
    program::LONGJMP,
    program::OWN_ALLOCATOR,
    program::FORK_BOTH,
    program::THREAD_CHURN,
    program::MAPPINGS,
    program::BIG_MAPPING,
    program::BEFORE_ATTACH,
    program::CXX_OBJECTS,
    program::CXX_EXCEPTION,
    program::RUST_PROGRAM,
    program::CGO_PROGRAM,
    program::EXEC_AGAIN,
    program::DLOPEN_PLUGINS,
    program::LEAK_STATIC,
];
