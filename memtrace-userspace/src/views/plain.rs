//! The live view where there is no terminal: a block of lines for each snapshot.
//!
//! ```text
//!   00:00:12  live 14.0 MiB  peak 54.0 MiB  mapped 32.0 MiB  1.2M calls
//!     > leak: leak_per_request +3.3 GiB/h
//!     ! 5 events were lost: the numbers are incomplete
//!         live       peak  allocated      calls  function
//!     12.0 MiB    6.0 MiB   12.0 MiB     12,288  leak_per_request  server.c:41
//! ```

use std::io::{self, Write};

use crate::pipeline::snapshot::Snapshot;
use crate::views::label::function_label;
use crate::views::quantity::{bytes, clock, count, counted};
use crate::views::ranking::{Ranking, SortKey};
use crate::views::{caveats, summary};

/// Writes one block; the functions are those that come first in the ranking.
pub fn write_block(
    out: &mut impl Write,
    snapshot: &Snapshot,
    ranking: &Ranking,
    key: SortKey,
    top: usize,
    width: usize,
) -> io::Result<()> {
    let totals = &snapshot.totals;
    let head = format!(
        "{}  live {}  peak {}  mapped {}  {}",
        clock(summary::since_start(snapshot.now)),
        bytes(totals.heap.live_bytes),
        bytes(totals.peak_live_bytes),
        bytes(totals.mapped.live_bytes),
        counted(totals.heap.allocations, "call"),
    );
    writeln!(out, "{head}")?;
    if let Some(phase) = summary::phase(snapshot) {
        writeln!(out, "  | {phase}")?;
    }
    for line in ranking.findings.headlines() {
        writeln!(out, "  > {line}")?;
    }
    for caveat in caveats::caveats(snapshot) {
        writeln!(out, "  ! {caveat}")?;
    }
    let shown: Vec<_> =
        ranking.functions.iter().filter(|f| key.of(&f.heap.own) > 0).take(top).collect();
    if !shown.is_empty() {
        writeln!(
            out,
            "  {:>10} {:>10} {:>10} {:>10}  function",
            "live", "peak", "allocated", "calls"
        )?;
    }
    for function in shown {
        let own = &function.heap.own;
        writeln!(
            out,
            "  {:>10} {:>10} {:>10} {:>10}  {}",
            bytes(own.live_bytes),
            bytes(own.peak_bytes),
            bytes(own.allocated_bytes),
            count(own.allocations),
            function_label(&function.function, function.line, width.saturating_sub(47).max(12)),
        )?;
    }
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::views::fixture;
    use crate::views::ranking::rank;

    #[test]
    fn block_at_80_columns() {
        let snapshot = fixture::snapshot();
        let ranking = rank(&snapshot, &mut fixture::names(), SortKey::Allocated);
        let mut out = Vec::new();

        write_block(&mut out, &snapshot, &ranking, SortKey::Allocated, 2, 80).expect("a Vec");

        insta::assert_snapshot!(String::from_utf8(out).expect("UTF-8"));
    }

    #[test]
    fn block_says_what_happened_since_the_last_mark() {
        let mut snapshot = fixture::snapshot();
        snapshot.phases = fixture::phases();
        let ranking = rank(&snapshot, &mut fixture::names(), SortKey::Allocated);
        let mut out = Vec::new();

        write_block(&mut out, &snapshot, &ranking, SortKey::Allocated, 2, 80).expect("a Vec");

        let text = String::from_utf8(out).expect("UTF-8");
        let expected = "\n  | phase \"load\\x1b\" for 2.0 s: -1.0 MiB, peak 54.0 MiB\n";
        assert!(text.contains(expected), "{text}");
    }
}
