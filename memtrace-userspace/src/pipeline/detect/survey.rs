//! The live blocks of the sites in question, by age: one pass over everything that lives.
//!
//! Birth times are kept with the blocks, so survival costs nothing until somebody asks.

use memtrace_common::event::Api;
use rustc_hash::FxHashMap;

use crate::pipeline::account::Claim;
use crate::pipeline::processes::Processes;
use crate::pipeline::stacks::{SiteId, Stacks};
use crate::record::Time;

/// In how many spans a site's time is cut.
pub(super) const SPANS: usize = 20;

/// Blocks from this size on are checked one by one for lying in a mapping in question.
const LARGE_BYTES: u64 = 64 << 10;
/// Of the smaller ones, those at one of so many addresses.
const SAMPLED: u64 = 8;

/// What lives of a site.
#[derive(Clone, Debug)]
pub(super) struct Survivors {
    /// The time that is cut into [`SPANS`].
    pub(super) since: Time,
    pub(super) until: Time,
    /// Of those that were allocated in it.
    pub(super) blocks: [u64; SPANS],
    pub(super) bytes: [u64; SPANS],
    /// All of them: copies, and what was held before a range, too.
    pub(super) held_blocks: u64,
    pub(super) oldest: Time,
    pub(super) smallest_bytes: u64,
    pub(super) largest_bytes: u64,
    /// Bytes of mappings in which heap blocks lie: the allocator's own.
    pub(super) allocator_bytes: u64,
}

impl Survivors {
    pub(super) fn new(since: Time, until: Time) -> Survivors {
        Survivors {
            since,
            until,
            blocks: [0; SPANS],
            bytes: [0; SPANS],
            held_blocks: 0,
            oldest: until,
            smallest_bytes: u64::MAX,
            largest_bytes: 0,
            allocator_bytes: 0,
        }
    }

    fn add(&mut self, born: Time, bytes: u64) {
        let length = self.until.0.saturating_sub(self.since.0).max(1);
        let age = u128::from(born.0.saturating_sub(self.since.0));
        let span = (age * SPANS as u128 / u128::from(length)) as usize;
        let span = span.min(SPANS - 1);
        self.blocks[span] += 1;
        self.bytes[span] = self.bytes[span].saturating_add(bytes);
        self.oldest = self.oldest.min(born);
        self.smallest_bytes = self.smallest_bytes.min(bytes);
        self.largest_bytes = self.largest_bytes.max(bytes);
    }
}

/// Counts what lives of each site in `survivors`. Copies that `fork` made are their originals'.
pub(super) fn survey(
    processes: &Processes,
    stacks: &Stacks,
    survivors: &mut FxHashMap<SiteId, Survivors>,
) {
    if survivors.is_empty() {
        return;
    }
    let highest = survivors.keys().map(|site| site.index()).max().unwrap_or(0);
    let mut wanted = vec![false; highest + 1];
    survivors.keys().for_each(|site| wanted[site.index()] = true);
    let is_wanted = |site: SiteId| wanted.get(site.index()).copied().unwrap_or(false);
    for process in processes.all_running() {
        let pieces: Vec<_> =
            process.mappings.pieces().filter(|piece| is_wanted(piece.origin.site)).collect();
        let mut is_allocators = vec![false; pieces.len()];
        for (address, block) in process.heap.blocks_at() {
            if is_wanted(block.site)
                && let Some(survivors) = survivors.get_mut(&block.site)
            {
                survivors.held_blocks += 1;
                if block.claim == Claim::Own {
                    survivors.add(block.born.time(), block.size_bytes);
                }
            }
            if !pieces.is_empty()
                && (block.size_bytes >= LARGE_BYTES || (address.0 / 16).is_multiple_of(SAMPLED))
            {
                let after = pieces.partition_point(|piece| piece.start <= address.0);
                if let Some(index) = after.checked_sub(1)
                    && address.0 < pieces[index].end
                {
                    is_allocators[index] = true;
                }
            }
        }
        // An allocator that grows a reservation page by page has no sampled block in most pieces.
        spread(&mut is_allocators, |before, after| {
            let (before, after) = (&pieces[before], &pieces[after]);
            before.end == after.start
                && [before, after].iter().all(|it| stacks.api(it.origin.site) == Api::Mprotect)
        });
        for (piece, is_allocators) in pieces.iter().zip(is_allocators) {
            let bytes = piece.end - piece.start;
            if let Some(survivors) = survivors.get_mut(&piece.origin.site) {
                survivors.held_blocks += 1;
                survivors.add(piece.origin.born, bytes);
                if is_allocators {
                    survivors.allocator_bytes = survivors.allocator_bytes.saturating_add(bytes);
                }
            }
        }
    }
}

/// Marks every neighbour of a marked place, and its neighbours, in both directions.
fn spread(marks: &mut [bool], are_neighbours: impl Fn(usize, usize) -> bool) {
    let mut start = 0;
    for end in 1..=marks.len() {
        if end == marks.len() || !are_neighbours(end - 1, end) {
            let run = &mut marks[start..end];
            let is_marked = run.contains(&true);
            run.fill(is_marked);
            start = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mark_spreads_over_its_run_and_no_further() {
        let mut marks = [false, false, true, false, false, false];

        spread(&mut marks, |_, after| after != 1 && after != 4);

        assert_eq!(marks, [false, true, true, true, false, false]);
    }
}
