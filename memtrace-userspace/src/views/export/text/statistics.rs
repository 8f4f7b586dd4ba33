//! Statistics in the text report: what blocks are like, and where resident memory goes.

use std::fmt::{self, Write};
use std::time::Duration;

use super::Report;
use crate::pipeline::snapshot::ProcessUsage;
use crate::pipeline::statistics::{Bucket, HeldMemory, Histogram, LIFETIME_UNIT_NS, Reallocations};
use crate::record::MemoryByKind;
use crate::views::label::function_label;
use crate::views::layout::wrap;
use crate::views::quantity::{bytes, count, counted, duration, share, sparkline};
use crate::views::statistics::{FunctionStatistics, OfFunction, all_reallocations, all_sizes};
use crate::views::summary::since_start;

/// Functions that are shown as growing by small steps.
const GROWING: usize = 3;
/// Processes whose memory is shown: those with most.
const PROCESSES: usize = 3;

impl Report<'_> {
    /// ```text
    /// Blocks
    ///   sizes      ▁▂▇█▃▁▁▁▁▂  8 B to 64.0 KiB, half of them below 128 B
    ///   lifetimes  █▅▂▁▁▁▁▁▃▁  below 10 µs to 20.0 s, half of them below 40 µs
    /// ```
    pub(super) fn blocks(&mut self, of_functions: &FunctionStatistics) -> fmt::Result {
        let heap = &self.snapshot.totals.heap;
        let sizes = all_sizes(self.snapshot);
        if sizes.count() == 0 {
            return Ok(());
        }
        self.heading("Blocks")?;
        self.histogram("sizes", &sizes, bytes)?;
        self.histogram("lifetimes", &self.snapshot.statistics.lifetimes, lifetime)?;
        let churn = format!(
            "{}/s allocated, {}/s freed",
            bytes(self.snapshot.per_second(heap.allocated_bytes)),
            bytes(self.snapshot.per_second(heap.freed_bytes)),
        );
        self.field("churn", &churn)?;
        self.reallocations(of_functions)
    }

    fn histogram(
        &mut self,
        label: &str,
        histogram: &Histogram,
        name: impl Fn(u64) -> String,
    ) -> fmt::Result {
        let buckets = histogram.buckets();
        let (Some(first), Some(last), Some(median)) =
            (buckets.first(), buckets.last(), histogram.quantile(500))
        else {
            return Ok(());
        };
        let counts: Vec<u64> = buckets.iter().map(|bucket: &Bucket| bucket.count).collect();
        let text = format!(
            "{}  {} to {}, half of them below {}",
            sparkline(&counts, counts.len()),
            name(first.from),
            name(last.to),
            name(median.to),
        );
        self.field(label, &text)
    }

    fn reallocations(&mut self, of_functions: &FunctionStatistics) -> fmt::Result {
        let all = all_reallocations(self.snapshot);
        if all.calls == 0 {
            return Ok(());
        }
        let text = format!(
            "{}, {} moved their block and copied {} at most",
            counted(all.calls, "call"),
            share(all.moved, all.calls),
            bytes(all.copied_bytes),
        );
        self.field("realloc", &text)?;
        for of in of_functions.growing_by_small_steps().take(GROWING) {
            let OfFunction { function, line, sum } = of;
            let Reallocations { grown, growth_bytes, .. } = sum;
            let width = self.options.width.saturating_sub(4);
            let label = match function {
                Some(function) => function_label(function, *line, width),
                None => "an unknown function".to_owned(),
            };
            let text = format!(
                "{label} lets blocks grow {} times by {} on average: reserve, or double them",
                count(*grown),
                bytes(growth_bytes / grown),
            );
            for line in wrap(&text, width) {
                writeln!(self.out, "    {line}")?;
            }
        }
        Ok(())
    }

    /// ```text
    /// Memory after 19.8 s
    ///       size   resident      dirty    swapped
    ///  132.0 KiB  128.0 KiB  128.0 KiB        0 B  [heap]
    /// ```
    pub(super) fn memory(&mut self) -> fmt::Result {
        let snapshot = self.snapshot;
        let mut sampled: Vec<(&ProcessUsage, &HeldMemory)> = snapshot
            .processes
            .iter()
            .filter_map(|process| Some((process, process.memory.as_deref()?)))
            .collect();
        sampled.sort_by_key(|(_, memory)| std::cmp::Reverse(memory.kinds.resident_bytes()));
        let is_one_of_many = snapshot.processes.len() > 1;
        for (process, memory) in sampled.iter().take(PROCESSES) {
            let after = duration(since_start(memory.time));
            let of = match is_one_of_many {
                true => format!("Memory of process {} after {after}", process.pid.0),
                false => format!("Memory after {after}"),
            };
            self.heading(&of)?;
            self.kinds(memory)?;
            self.gap(memory)?;
        }
        Ok(())
    }

    fn kinds(&mut self, memory: &HeldMemory) -> fmt::Result {
        let head =
            format!("  {:>10} {:>10} {:>10} {:>10}", "mapped", "resident", "dirty", "swapped");
        writeln!(self.out, "{}", self.options.style.faint(&head))?;
        let MemoryByKind { heap, anonymous, file, stack, shared } = &memory.kinds;
        let named = [
            ("[heap]", heap),
            ("anonymous", anonymous),
            ("files", file),
            ("stacks", stack),
            ("shared", shared),
        ];
        for (name, figures) in named.into_iter().filter(|(_, figures)| figures.size_bytes > 0) {
            writeln!(
                self.out,
                "  {:>10} {:>10} {:>10} {:>10}  {name}",
                bytes(figures.size_bytes),
                bytes(figures.resident_bytes),
                bytes(figures.private_dirty_bytes),
                bytes(figures.swapped_bytes),
            )?;
        }
        Ok(())
    }

    /// What the heap and anonymous memory consist of.
    fn gap(&mut self, memory: &HeldMemory) -> fmt::Result {
        let requested = format!(
            "asked for, in {} that are live and known",
            counted(memory.live_blocks, "block")
        );
        self.amount(memory.requested_bytes, &requested)?;
        if let Some(usable_bytes) = memory.usable_bytes
            && let Some(allocator) = self.snapshot.statistics.allocator.allocator()
        {
            let more = usable_bytes.saturating_sub(memory.requested_bytes);
            let text =
                format!("more that these have, as {} rounds up (computed)", allocator.name());
            self.amount(more, &text)?;
        }
        match memory.filled_bytes().checked_sub(memory.known_bytes()) {
            Some(rest) => self.amount(
                rest,
                "filled and in none of them: free blocks that the allocator keeps, fragmentation, \
                 its bookkeeping, the program's own mappings, and what is older than the trace",
            )?,
            None => self.amount(
                memory.known_bytes() - memory.filled_bytes(),
                "of them, at least, never touched by the program",
            )?,
        }
        self.amount(
            memory.untouched_bytes(),
            "of [heap] and anonymous memory mapped and not filled: never touched, or given back",
        )
    }

    fn amount(&mut self, amount: u64, text: &str) -> fmt::Result {
        for (index, line) in wrap(text, self.options.width.saturating_sub(14)).iter().enumerate() {
            let amount = if index == 0 { bytes(amount) } else { String::new() };
            writeln!(self.out, "  {amount:>10}  {line}")?;
        }
        Ok(())
    }
}

/// A lifetime in units: `10 µs`, `1.3 ms`, `12.3 s`.
fn lifetime(units: u64) -> String {
    let ns = units.saturating_mul(LIFETIME_UNIT_NS);
    match ns {
        0..1_000_000 => format!("{} µs", ns / 1000),
        1_000_000..100_000_000 => format!("{}.{} ms", ns / 1_000_000, ns / 100_000 % 10),
        _ => duration(Duration::from_nanos(ns)),
    }
}
