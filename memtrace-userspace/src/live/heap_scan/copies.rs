//! Memory for copies of what a process holds, ready before it is stopped.
//!
//! ```text
//!   before the stop   get memory, in huge pages where there are some
//!   while it lasts    copy
//!   after             look through each copy, and give it back
//! ```
//!
//! To look for pointers while the process stands still, and to get memory for them from the kernel,
//! takes longer than to copy. A copy is of a group of ranges, one behind the other:
//!
//! ```text
//!   ranges   7f00_0000..7f00_3000   7f08_2000..7f08_4000
//!   copy     |----- 12 KiB -------|------ 8 KiB --------|  room
//! ```

use std::io;
use std::num::NonZero;
use std::thread;

use memmap2::{Advice, MmapMut};
use memtrace_common::addr::Avma;
use rayon::prelude::*;

use crate::reach::{Blocks, PIECE_BYTES, Piece, Room};

/// The most bytes of a copy: four huge pages.
pub(super) const GROUP_BYTES: usize = 8 << 20;

const PAGE_BYTES: usize = 4096;

/// Memory to copy to.
pub(super) struct Copies {
    /// What can be filled and kept.
    pub(super) free: Vec<Copy>,
    /// One for each thread that reads, for when that is used up.
    pub(super) own: Vec<Copy>,
}

/// A copy of some ranges of a process's memory.
pub(super) struct Copy {
    memory: MmapMut,
    parts: Vec<Part>,
    used: usize,
}

/// A range that was copied.
pub(super) struct Part {
    /// Where it lies in the process.
    pub(super) base: Avma,
    /// How long it is.
    pub(super) bytes: usize,
}

impl Copies {
    /// Memory for so many bytes, and for as many readers as there are processors.
    pub(super) fn new(bytes: u64) -> io::Result<Copies> {
        let readers = thread::available_parallelism().map_or(1, NonZero::get);
        let free = usize::try_from(bytes.div_ceil(GROUP_BYTES as u64)).unwrap_or(usize::MAX);
        let make = |count: usize| (0..count).into_par_iter().map(|_| Copy::new()).collect();
        let (free, own): (io::Result<Vec<Copy>>, io::Result<Vec<Copy>>) =
            (make(free), make(readers));
        Ok(Copies { free: free?, own: own? })
    }
}

impl Copy {
    fn new() -> io::Result<Copy> {
        let mut memory = MmapMut::map_anon(GROUP_BYTES)?;
        // Where there are none, small pages do as well.
        if let Err(error) = memory.advise(Advice::HugePage) {
            tracing::debug!("no huge pages to copy to: {error}");
        }
        memory.iter_mut().step_by(PAGE_BYTES).for_each(|byte| *byte = 1);
        Ok(Copy { memory, parts: Vec::new(), used: 0 })
    }

    /// Makes it a copy of nothing.
    pub(super) fn clear(&mut self) {
        self.parts.clear();
        self.used = 0;
    }

    /// Where the next range is copied to.
    pub(super) fn room(&mut self) -> &mut [u8] {
        &mut self.memory[self.used..]
    }

    /// A range was copied to the [`room`](Copy::room).
    pub(super) fn add(&mut self, part: Part) {
        self.used = self.memory.len().min(self.used + part.bytes);
        self.parts.push(part);
    }

    /// The words that may point to a block.
    pub(super) fn pieces(&self, blocks: &Blocks) -> Vec<Piece> {
        let mut room = Room::new();
        let mut pieces = Vec::new();
        let mut rest = &self.memory[..self.used];
        for Part { base, bytes } in &self.parts {
            let (part, behind) = rest.split_at(rest.len().min(*bytes));
            rest = behind;
            for (number, bytes) in part.chunks(PIECE_BYTES).enumerate() {
                let base = Avma(base.0 + (number * PIECE_BYTES) as u64);
                let piece = Piece::new(blocks, base, bytes, &mut room);
                pieces.extend((!piece.is_empty()).then_some(piece));
            }
        }
        pieces
    }
}
