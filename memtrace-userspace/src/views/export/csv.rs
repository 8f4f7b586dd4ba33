//! A table for spreadsheets: one line for each call path and API, with all its numbers.
//!
//! The stack is one field, from the root outwards and joined as in folded stacks, so that a pivot
//! over `function` or `module` needs no other file. RFC 4180, with a header line.

use std::io::{self, Write};

use super::folded::folded_name;
use super::weights::Node;
use crate::pipeline::snapshot::Usage;
use crate::views::frames::SymbolizedStack;
use crate::views::ranking::{Ranking, SymbolizedUsage};

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

/// Writes the table, in the order of the ranking; at most `top` lines, if a limit is given.
pub fn write(out: impl Write, ranking: &Ranking, top: Option<usize>) -> io::Result<()> {
    let mut table = csv::Writer::from_writer(out);
    table.write_record(COLUMNS)?;
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
        table.write_record(
            fields.into_iter().chain(numbers.map(|number| number.to_string())).chain(ends),
        )?;
    }
    table.flush()
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
    fn table_is_unchanged() {
        let ranking = rank(&fixture::snapshot(), &mut fixture::names(), SortKey::Live);
        let mut out = Vec::new();

        write(&mut out, &ranking, None).expect("a Vec takes all");

        insta::assert_snapshot!(String::from_utf8(out).expect("UTF-8"));
    }
}
