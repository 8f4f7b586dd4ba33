//! Which blocks a thread allocated last: those that can still turn out to be temporary.

use memtrace_common::addr::Avma;

/// The most allocations that may lie between the allocation and the release of a temporary block.
pub const MOST_BETWEEN: usize = 15;

/// The last blocks that a thread allocated, in a ring.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::pipeline) struct Newest {
    /// Address 0 is no block's.
    blocks: [Avma; MOST_BETWEEN + 1],
    next: u8,
}

impl Newest {
    /// The thread has allocated `block`, or one that is not known: address 0.
    #[inline(always)]
    pub(in crate::pipeline) fn push(&mut self, block: Avma, between: usize) {
        let last = between.min(MOST_BETWEEN);
        let place = usize::from(self.next).min(last);
        self.blocks[place] = block;
        self.next = if place == last { 0 } else { place as u8 + 1 };
    }

    /// Whether the thread allocated `block` with at most `between` allocations since.
    ///
    /// It does not know whether that block is still the one at this address.
    #[inline(always)]
    pub(in crate::pipeline) fn take(&mut self, block: Avma, between: usize) -> bool {
        let blocks = &mut self.blocks[..=between.min(MOST_BETWEEN)];
        let found = blocks.iter_mut().find(|newest| **newest == block);
        found.map(|newest| *newest = Avma(0)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_is_known_until_too_many_have_come_after_it() {
        for between in [0, 1, 2, MOST_BETWEEN, MOST_BETWEEN + 7] {
            let kept = between.min(MOST_BETWEEN) as u64 + 1;
            for came_after in 0..2 * kept {
                let mut newest = Newest::default();
                for block in 1..=1 + came_after {
                    newest.push(Avma(block), between);
                }

                assert_eq!(newest.take(Avma(1), between), came_after < kept, "{between}");
                assert!(!newest.take(Avma(1), between));
            }
        }
    }
}
