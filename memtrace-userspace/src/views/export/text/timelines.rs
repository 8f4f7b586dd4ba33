//! Timelines in the text report: a line for each function and thread.

use std::fmt::{self, Write};

use super::Report;
use crate::pipeline::snapshot::ThreadUsage;
use crate::views::label::function_label;
use crate::views::layout::cut;
use crate::views::printable::printable;
use crate::views::quantity::{bytes, counted, duration, sparkline};
use crate::views::summary::since_start;
use crate::views::timelines::{Course, FunctionCourse, Others, ThreadCourse, Timelines};

/// What a line takes beside its two pictures and the name.
const NUMBERS: usize = 2 + 10 + 1 + 1 + 12 + 1 + 2;

impl Report<'_> {
    /// ```text
    /// Over time, from 0 ms to 20.0 s
    ///        live                            allocated        function
    ///    19.5 MiB ▁▁▂▂▃▃▄▄▄▅▅▅▆▆▆▇▇▇██    1.0 MiB/s ██████████  leak_session
    /// ```
    pub(super) fn timelines(&mut self, timelines: &Timelines) -> fmt::Result {
        let Timelines { start, ends, all, functions, other_functions, threads, other_threads } =
            timelines;
        let end = ends.last().copied().unwrap_or(*start);
        let step = timelines.lengths().next().unwrap_or(0);
        self.heading(&format!(
            "Over time, {} to {} in {} of {}; numbers are the highest",
            duration(since_start(*start)),
            duration(since_start(end)),
            counted(ends.len() as u64, "step"),
            duration(std::time::Duration::from_nanos(step)),
        ))?;
        let lengths: Vec<u64> = timelines.lengths().collect();
        let row = Row::new(self.options.width, &lengths);
        self.head(&row, "function")?;
        self.course(&row, all, "all")?;
        self.resident(&row)?;
        for FunctionCourse { function, line, course } in functions {
            self.course(&row, course, &function_label(function, *line, row.name))?;
        }
        self.others(&row, other_functions, "function")?;
        self.head(&row, "thread")?;
        for ThreadCourse { thread, course } in threads {
            let ThreadUsage { pid: _, tid, name, heap: _ } = thread;
            self.course(&row, course, &format!("{} {}", tid.0, printable(name)))?;
        }
        self.others(&row, other_threads, "thread")
    }

    fn head(&mut self, row: &Row, who: &str) -> fmt::Result {
        let Row { live, rate, .. } = *row;
        let head = format!("  {:>10} {:live$} {:>12} {:rate$}  {who}", "live", "", "rate", "");
        writeln!(self.out, "{}", self.options.style.faint(&head))
    }

    fn course(&mut self, row: &Row, course: &Course, name: &str) -> fmt::Result {
        let Row { live, rate, name: room, lengths } = *row;
        let rates = rates(&course.allocated_bytes, lengths);
        writeln!(
            self.out,
            "  {:>10} {:live$} {:>12} {:rate$}  {}",
            bytes(course.highest_bytes()),
            sparkline(&course.live_bytes, live),
            format!("{}/s", bytes(rates.iter().copied().max().unwrap_or(0))),
            sparkline(&rates, rate),
            cut(name, room),
        )
    }

    /// Resident memory is the processes': nobody knows it by function.
    fn resident(&mut self, row: &Row) -> fmt::Result {
        let resident: Vec<u64> =
            self.snapshot.timeline.iter().map(|point| point.resident_bytes).collect();
        let highest = resident.iter().copied().max().unwrap_or(0);
        if highest == 0 {
            return Ok(());
        }
        let Row { live, rate, .. } = *row;
        writeln!(
            self.out,
            "  {:>10} {:live$} {:>12} {:rate$}  resident (RSS)",
            bytes(highest),
            sparkline(&resident, live),
            "",
            "",
        )
    }

    fn others(&mut self, row: &Row, others: &Others, who: &str) -> fmt::Result {
        match others.count {
            0 => Ok(()),
            more => self.course(row, &others.course, &counted(more, &format!("other {who}"))),
        }
    }
}

/// The columns of a line.
struct Row<'t> {
    live: usize,
    rate: usize,
    name: usize,
    /// Of the steps, in nanoseconds.
    lengths: &'t [u64],
}

impl<'t> Row<'t> {
    fn new(width: usize, lengths: &'t [u64]) -> Row<'t> {
        let spare = width.saturating_sub(NUMBERS);
        // Names get more than the pictures: they were cut first.
        let live = (spare * 2 / 5).clamp(8, 60);
        let rate = (spare / 5).clamp(4, 30);
        Row { live, rate, name: spare.saturating_sub(live + rate).max(8), lengths }
    }
}

/// Bytes a second in each step; one that was cut short at the end is one with the step before it.
fn rates(bytes: &[u64], lengths: &[u64]) -> Vec<u64> {
    let whole = lengths.first().copied().unwrap_or(0);
    let (mut bytes, mut lengths) = (bytes.to_vec(), lengths.to_vec());
    if lengths.len() > 1
        && lengths.last().is_some_and(|last| *last < whole / 2)
        && let (Some(more), Some(longer)) = (bytes.pop(), lengths.pop())
        && let (Some(last), Some(length)) = (bytes.last_mut(), lengths.last_mut())
    {
        *last = last.saturating_add(more);
        *length = length.saturating_add(longer);
    }
    bytes.iter().zip(&lengths).map(|(bytes, ns)| per_second(*bytes, *ns)).collect()
}

fn per_second(bytes: u64, ns: u64) -> u64 {
    let per_second = u128::from(bytes) * 1_000_000_000 / u128::from(ns.max(1));
    u64::try_from(per_second).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn step_that_was_cut_short_has_no_rate_of_its_own() {
        let second = 1_000_000_000;

        assert_eq!(rates(&[10, 20, 6], &[second, second, second / 10]), [10, 23]);
        assert_eq!(rates(&[10, 20, 6], &[second, second, second]), [10, 20, 6]);
        assert_eq!(rates(&[6], &[1]), [6 * second]);
    }
}
