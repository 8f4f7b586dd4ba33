//! Statistics in the text report: what blocks are like, and where resident memory goes.

use std::fmt::{self, Write};
use std::time::Duration;

use super::{Report, write_stack};
use crate::pipeline::snapshot::{ProcessUsage, Scope};
use crate::pipeline::statistics::{
    ALLOCATIONS_TO_BE_SHOWN, AlignedBlocks, Allocator, Bucket, FREES_BEFORE_LIFETIMES,
    FUNDAMENTAL_ALIGNMENT_BYTES, HeldMemory, Histogram, LIFETIME_UNIT_NS, Reallocations,
};
use crate::record::MemoryByKind;
use crate::views::frames::Function;
use crate::views::label::function_label;
use crate::views::layout::wrap;
use crate::views::quantity::{bytes, count, counted, duration, share, sparkline};
use crate::views::statistics::{
    Aligned, CallPath, FunctionStatistics, OfFunction, all_reallocations, all_sizes, over_aligned,
};
use crate::views::summary::since_start;

/// Functions that are shown as growing by small steps.
const GROWING: usize = 3;
/// Functions that are shown as asking for alignment.
const ALIGNING: usize = 3;
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
        if self.snapshot.scope == Scope::Moment {
            return Ok(());
        }
        self.histogram("lifetimes", &self.snapshot.statistics.lifetimes, lifetime)?;
        let churn = format!(
            "{}/s allocated in {} allocations/s, {}/s freed",
            bytes(self.snapshot.per_second(heap.allocated_bytes)),
            count(self.snapshot.per_second(heap.allocations)),
            bytes(self.snapshot.per_second(heap.freed_bytes)),
        );
        self.field("churn", &churn)?;
        self.aligned(of_functions)?;
        self.reallocations(of_functions)
    }

    /// What asks for more alignment than every block has.
    fn aligned(&mut self, of_functions: &FunctionStatistics) -> fmt::Result {
        let all = over_aligned(self.snapshot);
        let AlignedBlocks { allocations, smaller_allocations, extra_bytes, .. } = all;
        if allocations == 0 {
            return Ok(());
        }
        let extra = match (extra_bytes, self.snapshot.statistics.allocator) {
            (Some(_), Some(Allocator::Glibc)) => {
                "glibc gives back what it leaves in front of them".to_owned()
            }
            (Some(extra), Some(allocator)) => {
                format!(
                    "{} more for that, as {} rounds up (computed)",
                    bytes(extra),
                    allocator.name()
                )
            }
            (None, _) | (_, None) => "what that costs is not known".to_owned(),
        };
        let smaller = match smaller_allocations {
            0 => String::new(),
            smaller => format!(", {} of them smaller than their alignment", count(smaller)),
        };
        let text = format!(
            "{} to more than {}{smaller}; {extra}",
            counted(allocations, "block"),
            bytes(FUNDAMENTAL_ALIGNMENT_BYTES),
        );
        self.field("aligned", &text)?;
        let over = of_functions.aligned.iter().filter(|of| is_over_aligned(of));
        for OfFunction { function, line, sum: Aligned { alignment, blocks } } in over.take(ALIGNING)
        {
            let width = self.options.width.saturating_sub(4);
            let label = label(function.as_deref(), *line, width);
            let text = format!(
                "{label}: {} of {} on average to {}",
                counted(blocks.allocations, "block"),
                bytes(blocks.requested_bytes / blocks.allocations.max(1)),
                bytes(alignment.bytes()),
            );
            for line in wrap(&text, width) {
                writeln!(self.out, "    {line}")?;
            }
        }
        Ok(())
    }

    /// What sizes call paths allocate, how fast, and how long these blocks live.
    ///
    /// ```text
    /// Call paths by allocations
    ///   161.1k allocations of malloc, 8.1k/s, 3.9 MiB/s, 99.0% temporary
    ///     sizes      ▁▂▇█  16 B to 256 B, half of them below 128 B
    ///     lifetimes  █     0 µs to 10 µs, half of them below 10 µs
    ///       parse  parse.c:15
    /// ```
    pub(super) fn call_paths(&mut self, of_functions: &FunctionStatistics) -> fmt::Result {
        let Some(most) = self.options.histograms else {
            return Ok(());
        };
        self.heading("Call paths by allocations")?;
        let paths = &of_functions.call_paths;
        if paths.is_empty() {
            let text = format!("none has {ALLOCATIONS_TO_BE_SHOWN} allocations or more");
            return writeln!(self.out, "  {text}");
        }
        for CallPath { stack, api, usage, histograms } in paths.iter().take(most) {
            let text = format!(
                "{} of {}, {}/s, {}/s, {} temporary",
                counted(usage.allocations, "allocation"),
                api.name(),
                count(self.snapshot.per_second(usage.allocations)),
                bytes(self.snapshot.per_second(usage.allocated_bytes)),
                share(usage.temporary_allocations, usage.allocations),
            );
            let width = self.options.width.saturating_sub(2);
            for line in wrap(&text, width) {
                writeln!(self.out, "  {line}")?;
            }
            let sizes = ("sizes", histogram_text(&histograms.sizes, bytes));
            let lifetimes = ("lifetimes", histogram_text(&histograms.lifetimes, lifetime));
            for (label, text) in [sizes, lifetimes] {
                let unknown = || format!("known from the {}th free on", FREES_BEFORE_LIFETIMES + 1);
                let text = text.unwrap_or_else(unknown);
                for (index, line) in wrap(&text, width.saturating_sub(13)).iter().enumerate() {
                    let label = if index == 0 { label } else { "" };
                    writeln!(self.out, "    {label:<10} {line}")?;
                }
            }
            write_stack(&mut self.out, stack, self.options.width, self.options.style)?;
        }
        let rest = paths.len().saturating_sub(most);
        if rest > 0 {
            writeln!(self.out, "  … and {} more", count(rest as u64))?;
        }
        Ok(())
    }

    fn histogram(
        &mut self,
        label: &str,
        histogram: &Histogram,
        name: impl Fn(u64) -> String,
    ) -> fmt::Result {
        match histogram_text(histogram, name) {
            Some(text) => self.field(label, &text),
            None => Ok(()),
        }
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
            let label = label(function.as_deref(), *line, width);
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
            && let Some(allocator) = self.snapshot.statistics.allocator
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

fn is_over_aligned(of: &OfFunction<Aligned>) -> bool {
    of.sum.alignment.bytes() > FUNDAMENTAL_ALIGNMENT_BYTES
}

/// `▁▂▇█  16 B to 256 B, half of them below 128 B`; `None` if there are no values.
fn histogram_text(histogram: &Histogram, name: impl Fn(u64) -> String) -> Option<String> {
    let buckets = histogram.buckets();
    let (first, last) = (buckets.first()?, buckets.last()?);
    let median = histogram.quantile(500)?;
    let counts: Vec<u64> = buckets.iter().map(|bucket: &Bucket| bucket.count).collect();
    Some(format!(
        "{}  {} to {}, half of them below {}",
        sparkline(&counts, counts.len()),
        name(first.from),
        name(last.to),
        name(median.to),
    ))
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

/// What a function is called; not all are known.
fn label(function: Option<&Function>, line: Option<u32>, width: usize) -> String {
    match function {
        Some(function) => function_label(function, line, width),
        None => "an unknown function".to_owned(),
    }
}
