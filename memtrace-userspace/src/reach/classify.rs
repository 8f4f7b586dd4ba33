//! From words to lost blocks.
//!
//! ```text
//!   roots ──→ a ──→ b            reached
//!             c ──→ d ──→ e      c is lost directly; d and e indirectly, held by c
//!             f ⇄ g ──→ h        a cycle: f, the first of it, stands for all and is lost directly
//! ```
//!
//! The lost blocks that nobody lost points to are lost directly, and so is one of each cycle that
//! only itself points to. Everything else that is lost is held by one of these: to fix them is to
//! fix all, and the parts add up.

use rayon::prelude::*;

use super::blocks::{BlockId, Blocks};
use super::sightings::Piece;
use super::untagged;

/// A block that nothing points to, but for other lost blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Which one.
    pub block: BlockId,
    /// The directly lost block through which it could be reached; itself, if it is one.
    pub holder: BlockId,
}

/// The blocks that are lost, by groups, each of which begins with its holder.
///
/// `registers` are words of no place: roots. What lies in `freed` memory is left over and means
/// nothing, unless a block that is judged or not has it by now. A block that is not `judged` is memory that may be
/// anything, so what lies in it is a root too, and it is never lost.
pub fn judge(
    blocks: &Blocks,
    freed: &Blocks,
    registers: &[u64],
    pieces: Vec<Piece>,
    judged: impl Fn(BlockId) -> bool + Sync,
) -> Vec<Lost> {
    let found: Vec<Found> =
        pieces.into_par_iter().map(|piece| resolve(blocks, freed, &piece, &judged)).collect();
    let edges = Edges::new(blocks, &found);
    let mut seen = Marks::new(blocks);
    let held = registers.iter().filter_map(|word| blocks.find(untagged(*word)));
    for root in found.iter().flat_map(|found| &found.roots).copied().chain(held) {
        edges.flood(root, &mut seen, |_| {});
    }
    drop(found);
    let lost = blocks.ids().filter(|id| !seen.has(*id) && judged(*id));
    let lost: Vec<BlockId> = lost.collect();
    group(&edges, &seen, &lost)
}

/// Puts the lost blocks into groups.
///
/// A depth-first search leaves whatever reaches a block later than the block. So in the reverse
/// order of leaving, the first block that no group has is reached by none that is left but, in a
/// cycle, by those that it reaches too.
fn group(edges: &Edges, reached: &Marks, lost: &[BlockId]) -> Vec<Lost> {
    let mut order = Vec::with_capacity(lost.len());
    let mut seen = reached.clone();
    let mut path: Vec<(BlockId, usize)> = Vec::new();
    for &start in lost {
        if seen.set(start) {
            continue;
        }
        path.push((start, 0));
        while let Some((block, next)) = path.last_mut() {
            match edges.of(*block).get(*next) {
                Some(&target) => {
                    *next += 1;
                    if !seen.set(target) {
                        path.push((target, 0));
                    }
                }
                None => {
                    order.push(*block);
                    path.pop();
                }
            }
        }
    }
    let mut seen = reached.clone();
    let mut groups = Vec::with_capacity(lost.len());
    for &holder in order.iter().rev() {
        edges.flood(holder, &mut seen, |block| groups.push(Lost { block, holder }));
    }
    groups
}

/// A bit for each block.
#[derive(Clone)]
struct Marks(Vec<u64>);

impl Marks {
    fn new(blocks: &Blocks) -> Marks {
        Marks(vec![0; blocks.len().div_ceil(64)])
    }

    fn has(&self, block: BlockId) -> bool {
        self.0[block.index() / 64] >> (block.index() % 64) & 1 != 0
    }

    /// Sets it; tells whether it was set.
    fn set(&mut self, block: BlockId) -> bool {
        let (word, bit) = (&mut self.0[block.index() / 64], 1 << (block.index() % 64));
        let was = *word & bit != 0;
        *word |= bit;
        was
    }
}

/// What a piece of memory points to.
#[derive(Default)]
struct Found {
    roots: Vec<BlockId>,
    edges: Vec<(BlockId, BlockId)>,
}

fn resolve(
    blocks: &Blocks,
    freed: &Blocks,
    piece: &Piece,
    judged: &impl Fn(BlockId) -> bool,
) -> Found {
    let mut found = Found::default();
    for (place, address) in piece.words() {
        let Some(target) = blocks.find(address) else { continue };
        match blocks.find(untagged(place)) {
            Some(source) if source == target => {}
            None if freed.find(untagged(place)).is_some() => {}
            Some(source) if judged(source) => found.edges.push((source, target)),
            Some(_) | None => found.roots.push(target),
        }
    }
    found
}

/// What each block points to.
struct Edges {
    /// Where the targets of a block begin; those of the next one begin where they end.
    firsts: Vec<usize>,
    targets: Vec<BlockId>,
}

impl Edges {
    fn new(blocks: &Blocks, found: &[Found]) -> Edges {
        let edges = || found.iter().flat_map(|found| &found.edges).copied();
        let mut firsts = vec![0; blocks.len() + 1];
        for (source, _) in edges() {
            firsts[source.index() + 1] += 1;
        }
        for index in 1..firsts.len() {
            firsts[index] += firsts[index - 1];
        }
        let Some((_, any)) = edges().next() else { return Edges { firsts, targets: Vec::new() } };
        let mut targets = vec![any; firsts[blocks.len()]];
        let mut next = firsts.clone();
        for (source, target) in edges() {
            targets[next[source.index()]] = target;
            next[source.index()] += 1;
        }
        Edges { firsts, targets }
    }

    fn of(&self, block: BlockId) -> &[BlockId] {
        &self.targets[self.firsts[block.index()]..self.firsts[block.index() + 1]]
    }

    /// Marks what can be reached from `start` and is not marked, itself included.
    fn flood(&self, start: BlockId, seen: &mut Marks, mut visit: impl FnMut(BlockId)) {
        if seen.set(start) {
            return;
        }
        let mut open = vec![start];
        while let Some(block) = open.pop() {
            visit(block);
            open.extend(self.of(block).iter().filter(|target| !seen.set(**target)));
        }
    }
}
