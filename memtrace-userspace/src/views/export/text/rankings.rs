//! The functions that hold most, and the stacks behind them.

use std::fmt::{self, Write};

use memtrace_common::unwind::End;

use super::Report;
use crate::views::counters::explain_end;
use crate::views::frames::SymbolizedStack;
use crate::views::label::{amount, frame_labels, function_label};
use crate::views::layout::{cut, wrap};
use crate::views::quantity::{bar, bytes, counted, share};
use crate::views::ranking::{FunctionUsage, Memory, SortKey, SymbolizedUsage};
use crate::views::style::Style;

/// How many functions are shown unless told otherwise.
const DEFAULT_FUNCTIONS: usize = 20;
/// How many stacks are shown unless told otherwise.
const DEFAULT_STACKS: usize = 10;
/// How many frames of a stack are shown at its inner and at its outer end.
const INNER_FRAMES: usize = 30;
const OUTER_FRAMES: usize = 5;

impl Report<'_> {
    /// ```text
    ///        self   share                  total    calls  function
    ///    12.0 MiB   85.7%  ████████     12.0 MiB   12,288  leak_per_request  server.c:41
    /// ```
    pub(super) fn functions(&mut self, functions: &[FunctionUsage], key: SortKey) -> fmt::Result {
        let whole = key.of(&self.snapshot.totals.heap);
        let shown: Vec<_> = functions
            .iter()
            .filter(|f| key.of(&f.heap.own) > 0)
            .take(self.options.top.unwrap_or(DEFAULT_FUNCTIONS))
            .collect();
        self.heading(&format!("Top functions by {}", key.title()))?;
        if shown.is_empty() {
            return writeln!(self.out, "  none");
        }
        // "  " self 10, " " share 6, " " bar, " " total 10, " " work 10, "  " name
        let spare = self.options.width.saturating_sub(2 + 10 + 1 + 6 + 1 + 1 + 10 + 1 + 10 + 2);
        let bar_width = (spare / 4).clamp(4, 20);
        let name_width = spare.saturating_sub(bar_width).max(12);
        let work = match key {
            SortKey::Live | SortKey::Peak | SortKey::Allocated | SortKey::Temporary => {
                SortKey::Allocations
            }
            SortKey::Allocations => SortKey::Allocated,
        };
        let work_title = match work {
            SortKey::Allocations | SortKey::Temporary => "calls",
            SortKey::Live | SortKey::Peak | SortKey::Allocated => "bytes",
        };
        let head = format!(
            "  {:>10} {:>6} {:bar_width$} {:>10} {:>10}  function",
            "self", "share", "", "total", work_title
        );
        writeln!(self.out, "{}", self.options.style.faint(&head))?;
        for function in &shown {
            let own = key.of(&function.heap.own);
            writeln!(
                self.out,
                "  {:>10} {:>6} {} {:>10} {:>10}  {}",
                amount(key, own),
                share(own, whole),
                bar(own, whole, bar_width),
                amount(key, key.of(&function.heap.total)),
                amount(work, work.of(&function.heap.own)),
                function_label(&function.function, function.line, name_width),
            )?;
        }
        Ok(())
    }

    pub(super) fn stacks(
        &mut self,
        stacks: &[SymbolizedUsage],
        memory: Memory,
        key: SortKey,
    ) -> fmt::Result {
        let shown: Vec<_> = stacks
            .iter()
            .filter(|s| Memory::of(s.api) == memory && key.of(&s.usage) > 0)
            .take(self.options.top.unwrap_or(DEFAULT_STACKS))
            .collect();
        if shown.is_empty() {
            return Ok(());
        }
        let (title, whole) = match memory {
            Memory::Heap => ("Top stacks", key.of(&self.snapshot.totals.heap)),
            Memory::Mapped => ("Top mappings", key.of(&self.snapshot.totals.mapped)),
        };
        self.heading(&format!("{title} by {}", key.title()))?;
        for (index, stack) in shown.into_iter().enumerate() {
            let usage = &stack.usage;
            let head = format!(
                "  {}. {} ({}) {}: {} live, {} at peak, {}",
                index + 1,
                amount(key, key.of(usage)),
                share(key.of(usage), whole),
                stack.api.name(),
                bytes(usage.live_bytes),
                bytes(usage.peak_bytes),
                counted(usage.allocations, "call"),
            );
            writeln!(self.out, "{}", cut(&head, self.options.width))?;
            write_stack(&mut self.out, &stack.stack, self.options.width, self.options.style)?;
        }
        Ok(())
    }
}

/// The frames of a stack, and why they end where they do.
///
/// Repeated frames of a recursion are one line, the middle of a deep stack is left out.
pub(in crate::views) fn write_stack(
    out: &mut String,
    stack: &SymbolizedStack,
    width: usize,
    style: Style,
) -> fmt::Result {
    let labels = frame_labels(stack);
    let hidden = labels.len().saturating_sub(INNER_FRAMES + OUTER_FRAMES);
    for (index, label) in labels.iter().enumerate() {
        if hidden > 0 && index == INNER_FRAMES {
            writeln!(out, "        … {hidden} more frames …")?;
        }
        if hidden > 0 && (INNER_FRAMES..INNER_FRAMES + hidden).contains(&index) {
            continue;
        }
        for (index, part) in wrap(label, width.saturating_sub(9)).into_iter().enumerate() {
            writeln!(out, "     {}  {part}", if index == 0 { " " } else { "  " })?;
        }
    }
    if stack.end != End::Root {
        let end = format!("cut off here: {}", explain_end(stack.end));
        writeln!(out, "        {}", style.warning(&end))?;
    }
    Ok(())
}
