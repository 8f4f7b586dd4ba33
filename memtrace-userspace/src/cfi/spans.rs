//! Functions put in order: from the rows of each FDE to one table for all text.
//!
//! ```text
//!   spans    |#### a ####|    |### b ###|             sorted by start
//!                   |## c ##|                         overlaps a: a ends where c starts
//!   rows     a……… c………      - b……… - …                "-" is a row of kind NONE
//! ```

use memtrace_common::config::BUCKET_SHIFT;
use memtrace_common::unwind::Row;

/// What lies between functions.
pub(super) const GAP: Row = Row::NONE;

/// A function's range of text and where its rows are. Program counters count from the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// First program counter.
    pub(super) start: u32,
    /// One past the last program counter.
    pub(super) end: u32,
    /// Index of its first row.
    pub(super) first_row: u32,
    /// How many rows it has.
    pub(super) rows: u32,
}

/// Functions and their rows, in any order.
#[derive(Debug, Default)]
pub(super) struct Functions {
    /// The functions.
    pub(super) spans: Vec<Span>,
    /// Their rows; those of one function lie together, sorted, the first one at its start.
    pub(super) rows: Vec<Row>,
}

impl Functions {
    /// Adds `other`.
    pub(super) fn append(&mut self, mut other: Functions) {
        let shift = self.rows.len() as u32;
        self.rows.append(&mut other.rows);
        self.spans.extend(
            other.spans.iter().map(|span| Span { first_row: span.first_row + shift, ..*span }),
        );
    }

    /// Sorts the functions and makes them disjoint; gives the number of those that overlapped.
    ///
    /// At each address the function wins that starts last, as in a search of `.eh_frame_hdr`; of
    /// two with the same start, the first in the section.
    pub(super) fn resolve_overlaps(&mut self) -> u64 {
        let before = self.spans.len();
        self.spans.sort_by_key(|span| span.start);
        self.spans.dedup_by_key(|span| span.start);
        let mut overlaps = (before - self.spans.len()) as u64;
        let mut next_start = u32::MAX;
        for span in self.spans.iter_mut().rev() {
            if span.end > next_start {
                span.end = next_start;
                overlaps += 1;
            }
            next_start = span.start;
        }
        overlaps
    }
}

/// Fills the gaps of `functions` with pieces of `others`. Both are disjoint and sorted.
pub(super) fn fill_gaps(functions: &mut Functions, others: Functions) {
    let mut filled = Vec::with_capacity(functions.spans.len() + others.spans.len());
    let shift = functions.rows.len() as u32;
    let mut taken = functions.spans.iter().copied().peekable();
    let mut covered = 0;
    for other in &others.spans {
        let first_row = other.first_row + shift;
        let mut rest = Span { start: other.start.max(covered), first_row, ..*other };
        while let Some(span) = taken.next_if(|span| span.start < rest.end) {
            if rest.start < span.start {
                filled.push(Span { end: span.start, ..rest });
            }
            covered = span.end;
            rest.start = rest.start.max(covered);
            filled.push(span);
        }
        if rest.start < rest.end {
            filled.push(rest);
        }
    }
    filled.extend(taken);
    functions.spans = filled;
    functions.rows.extend(others.rows);
}

/// The rows of the whole text, which is `text_bytes` long. `functions` are disjoint and sorted.
pub(super) fn flatten(functions: &Functions, text_bytes: u32) -> Vec<Row> {
    let mut rows = Vec::with_capacity(functions.rows.len() + functions.spans.len() + 1);
    let mut covered = 0;
    for span in &functions.spans {
        if covered < span.start {
            push(&mut rows, Row { pc: covered, ..GAP });
        }
        let first = span.first_row as usize;
        let own = &functions.rows[first..first + span.rows as usize];
        // A piece of a function starts in the middle of a row and ends in the middle of another.
        let skipped = own.partition_point(|row| row.pc <= span.start).saturating_sub(1);
        for row in own[skipped..].iter().take_while(|row| row.pc < span.end) {
            push(&mut rows, Row { pc: row.pc.max(span.start), ..*row });
        }
        covered = span.end;
    }
    // Nothing covers the rest of the last bucket.
    if covered < text_bytes.next_multiple_of(1 << BUCKET_SHIFT) {
        push(&mut rows, Row { pc: covered, ..GAP });
    }
    rows.shrink_to_fit();
    rows
}

/// Adds `row` unless it says the same as the last one.
pub(super) fn push(rows: &mut Vec<Row>, row: Row) {
    if rows.last().is_none_or(|last| Row { pc: row.pc, ..*last } != row) {
        rows.push(row);
    }
}

/// For each bucket of text, the index of the last row that starts at or before it; one more.
///
/// ```text
///   pc     0      256     512     768 (end)
///   rows   |0  |1     |2            |3 …
///   index  0      1       2       2|3                rows[index[i]..=index[i + 1]]
/// ```
pub(super) fn index(rows: &[Row], text_bytes: u32) -> Vec<u32> {
    let buckets = text_bytes.div_ceil(1 << BUCKET_SHIFT);
    let mut last = 0;
    let mut index = Vec::with_capacity(buckets as usize + 1);
    for bucket in 0..=u64::from(buckets) {
        let start = bucket << BUCKET_SHIFT;
        while rows.get(last + 1).is_some_and(|next| u64::from(next.pc) <= start) {
            last += 1;
        }
        index.push(last as u32);
    }
    index
}
