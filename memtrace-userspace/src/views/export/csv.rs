//! A table for spreadsheets: one line for each call path and API, with all its numbers.
//!
//! The stack is one field, from the root outwards and joined as in folded stacks, so that a pivot
//! over `function` or `module` needs no other file. RFC 4180, with a header line.

use std::io::{self, Write};

use super::folded::folded_name;
use super::weights::Node;
use crate::pipeline::snapshot::{ThreadUsage, Usage};
use crate::views::frames::SymbolizedStack;
use crate::views::printable::printable;
use crate::views::ranking::{Ranking, SymbolizedUsage};
use crate::views::timelines::{Course, FunctionCourse, ThreadCourse, Timelines};

/// The names of the columns.
const COLUMNS: &[&str] = &[
    "function",
    "module",
    "file",
    "line",
    "api",
    "allocations",
    "allocated_bytes",
    "frees",
    "freed_bytes",
    "live_blocks",
    "live_bytes",
    "inherited_blocks",
    "inherited_bytes",
    "peak_bytes",
    "temporary_allocations",
    "end",
    "stack",
];

/// Names of the columns of timelines: a line for each step of each function and thread.
const TIMELINE_COLUMNS: &[&str] = &[
    "kind",
    "function",
    "module",
    "pid",
    "tid",
    "thread",
    "from_ns",
    "to_ns",
    "live_bytes",
    "allocated_bytes",
    "allocations",
];

/// Writes the timelines instead, functions first, and each step in order.
///
/// `kind` is `all`, `function`, `other_functions`, `thread` or `other_threads`.
pub fn write_timelines(out: impl Write, timelines: &Timelines) -> io::Result<()> {
    let mut table = csv::Writer::from_writer(out);
    table.write_record(TIMELINE_COLUMNS).map_err(io_error)?;
    let Timelines { start, ends, all, functions, other_functions, threads, other_threads } =
        timelines;
    let mut write = |kind: &str, who: [&str; 5], course: &Course| -> io::Result<()> {
        let mut from = start.0;
        let Course { live_bytes, allocated_bytes, allocations } = course;
        for (((to, live), allocated), calls) in
            ends.iter().zip(live_bytes).zip(allocated_bytes).zip(allocations)
        {
            let numbers = [from, to.0, *live, *allocated, *calls].map(|number| number.to_string());
            let who = who.iter().copied();
            let line = std::iter::once(kind).chain(who).chain(numbers.iter().map(String::as_str));
            table.write_record(line).map_err(io_error)?;
            from = to.0;
        }
        Ok(())
    };
    write("all", [""; 5], all)?;
    for FunctionCourse { function, line: _, course } in functions {
        let name = function.name.as_deref().unwrap_or_default();
        write("function", [name, &function.module, "", "", ""], course)?;
    }
    write("other_functions", [""; 5], &other_functions.course)?;
    for ThreadCourse { thread, course } in threads {
        let ThreadUsage { pid, tid, name, heap: _ } = thread;
        let (pid, tid) = (pid.0.to_string(), tid.0.to_string());
        write("thread", ["", "", &pid, &tid, &printable(name)], course)?;
    }
    write("other_threads", [""; 5], &other_threads.course)?;
    table.flush()
}

/// Writes the table, in the order of the ranking; at most `top` lines, if a limit is given.
pub fn write(out: impl Write, ranking: &Ranking, top: Option<usize>) -> io::Result<()> {
    let mut table = csv::Writer::from_writer(out);
    table.write_record(COLUMNS).map_err(io_error)?;
    for SymbolizedUsage { stack, api, usage } in
        ranking.stacks.iter().take(top.unwrap_or(usize::MAX))
    {
        let frame = stack.frames().next();
        let function = frame.map(|frame| &frame.function);
        let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
        let &Usage {
            allocations,
            allocated_bytes,
            frees,
            freed_bytes,
            live_blocks,
            live_bytes,
            inherited_blocks,
            inherited_bytes,
            peak_bytes,
            temporary_allocations,
        } = usage;
        let numbers = [
            allocations,
            allocated_bytes,
            frees,
            freed_bytes,
            live_blocks,
            live_bytes,
            inherited_blocks,
            inherited_bytes,
            peak_bytes,
            temporary_allocations,
        ];
        let fields = [
            text(function.and_then(|function| function.name.as_deref())),
            text(function.map(|function| &*function.module)),
            text(function.and_then(|function| function.file.as_deref())),
            frame.and_then(|frame| frame.line).map_or_else(String::new, |line| line.to_string()),
            api.name().to_owned(),
        ];
        let ends = [stack.end.name().to_owned(), folded(stack)];
        table
            .write_record(
                fields.into_iter().chain(numbers.map(|number| number.to_string())).chain(ends),
            )
            .map_err(io_error)?;
    }
    table.flush()
}

/// What went wrong, as whoever writes knows it: a closed pipe is one.
fn io_error(error: csv::Error) -> io::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        other => io::Error::other(format!("{other:?}")),
    }
}

/// The names of the functions from the root outwards.
fn folded(stack: &SymbolizedStack) -> String {
    let names: Vec<String> =
        stack.frames().rev().map(|frame| folded_name(&Node::Frame(frame).name())).collect();
    names.join(";")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::views::fixture;
    use crate::views::ranking::{SortKey, rank};

    #[test]
    fn pipe_that_is_closed_stays_one() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut ranking = rank(&fixture::snapshot(), &mut fixture::names(), SortKey::Live);
        // More than what is written at once.
        ranking.stacks = (0..10_000).map(|_| ranking.stacks[0].clone()).collect();

        let error = write(Closed, &ranking, None).expect_err("nobody reads");

        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn timelines_have_a_line_for_each_step() {
        let snapshot = fixture::snapshot();
        let ranking = rank(&snapshot, &mut fixture::names(), SortKey::Live);
        let mut out = Vec::new();

        write_timelines(&mut out, &fixture::timelines(&ranking, &snapshot)).expect("a Vec");

        let text = String::from_utf8(out).expect("UTF-8");
        let lines: Vec<&str> = text.lines().collect();
        // There are no other threads.
        assert_eq!(lines.len(), 1 + 4 * 3);
        assert_eq!(lines[1], "all,,,,,,0,1000000000,4194304,4194304,16");
        let second =
            "function,leak_per_request,/srv/app/server,,,,1000000000,2000000000,8388608,4194304,16";
        assert_eq!(lines[5], second);
    }

    #[test]
    fn table_is_unchanged() {
        let ranking = rank(&fixture::snapshot(), &mut fixture::names(), SortKey::Live);
        let mut out = Vec::new();

        write(&mut out, &ranking, None).expect("a Vec takes all");

        insta::assert_snapshot!(String::from_utf8(out).expect("UTF-8"));
    }
}
