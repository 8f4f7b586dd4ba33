//! Ranges of whole pages, as the kernel makes them of what a call names.

use memtrace_common::addr::Avma;

const PAGE_BYTES: u64 = 4096;

/// Whole pages: `start < end`, both multiples of the page size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pipeline) struct Pages {
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Pages {
    /// The pages that `length` bytes from `start` on touch; `None` if there are none.
    ///
    /// A range beyond the end of the address space is cut there; the call that named it fails.
    pub(in crate::pipeline) fn touched(start: Avma, length: u64) -> Option<Pages> {
        let start = start.0 - start.0 % PAGE_BYTES;
        let end = page_up(start.saturating_add(length));
        (start < end).then_some(Pages { start, end })
    }

    /// The pages that the program break gains when it moves up from `old` to `new`.
    pub(in crate::pipeline) fn between(old: Avma, new: Avma) -> Option<Pages> {
        let (start, end) = (page_up(old.0), page_up(new.0));
        (start < end).then_some(Pages { start, end })
    }

    pub(super) fn bytes(self) -> u64 {
        self.end - self.start
    }
}

/// The first page boundary not below `address`, or the last one there is.
fn page_up(address: u64) -> u64 {
    let last = u64::MAX - (PAGE_BYTES - 1);
    address.checked_next_multiple_of(PAGE_BYTES).unwrap_or(last)
}
