//! The table of operations, if the user has named any.
//!
//! ```text
//!         live    at peak  share  allocated      calls spikes  operation
//!      2.0 MiB   48.0 MiB  78.2%   64.0 MiB        256      1  upload
//! ```

use std::fmt::{self, Write};

use super::Report;
use crate::pipeline::snapshot::OperationUsage;
use crate::views::layout::cut;
use crate::views::printable::printable_str;
use crate::views::quantity::{bytes, count, share};

impl Report<'_> {
    /// What each class did on the heap, those first that held most at the peak.
    pub(super) fn operations(&mut self) -> fmt::Result {
        if self.snapshot.operations.is_empty() {
            return Ok(());
        }
        self.heading("Operations by bytes at the peak")?;
        let head = format!(
            "  {:>10} {:>10} {:>6} {:>10} {:>10} {:>6}  operation",
            "live", "at peak", "share", "allocated", "calls", "spikes"
        );
        writeln!(self.out, "{}", self.options.style.faint(&head))?;
        let name_width = self.options.width.saturating_sub(61).max(8);
        let mut operations: Vec<&OperationUsage> = self.snapshot.operations.iter().collect();
        // Stable: those that held the same stay in the order of their names.
        operations.sort_by_key(|operation| std::cmp::Reverse(operation.heap.peak_bytes));
        for OperationUsage { name, heap, mapped: _ } in operations {
            writeln!(
                self.out,
                "  {:>10} {:>10} {:>6} {:>10} {:>10} {:>6}  {}",
                bytes(heap.live_bytes),
                bytes(heap.peak_bytes),
                share(heap.peak_bytes, self.snapshot.totals.heap.peak_bytes),
                bytes(heap.allocated_bytes),
                count(heap.allocations),
                count(self.snapshot.spikes_of(name)),
                cut(&printable_str(name), name_width),
            )?;
        }
        Ok(())
    }
}
