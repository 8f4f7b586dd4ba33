//! Marking, over memory that is made of a few words.

use std::collections::BTreeSet;

use memtrace_common::addr::Avma;
use proptest::prelude::*;

use super::{BlockId, Blocks, Lost, Piece, Room, Span, judge};

/// Blocks of 32 bytes lie here, 64 bytes apart.
const HEAP: u64 = 0x5555_0000_0000;
/// Memory that belongs to no block.
const GLOBALS: u64 = 0x1000;
/// 64 bytes that were a block.
const FREED: u64 = 0x2000;

fn at(block: u64) -> u64 {
    HEAP + 64 * block
}

/// What is lost of `blocks` blocks, as (block, holder), if `memory` holds words at places.
fn lost(blocks: u64, memory: &[(u64, u64)], registers: &[u64]) -> Vec<(usize, usize)> {
    lost_but(blocks, memory, registers, |_| true)
}

fn lost_but(
    blocks: u64,
    memory: &[(u64, u64)],
    registers: &[u64],
    judged: impl Fn(BlockId) -> bool + Sync,
) -> Vec<(usize, usize)> {
    let spans = (0..blocks).map(|block| Span { start: Avma(at(block)), size_bytes: 32 });
    let blocks = Blocks::new(spans);
    let freed = Blocks::new([Span { start: Avma(FREED), size_bytes: 64 }]);
    let mut room = Room::new();
    let mut piece = |&(place, word): &(u64, u64)| {
        Piece::new(&blocks, Avma(place), &word.to_le_bytes(), &mut room)
    };
    let pieces = memory.iter().map(&mut piece).collect();
    let mut lost: Vec<_> = judge(&blocks, &freed, registers, pieces, judged)
        .into_iter()
        .map(|Lost { block, holder }| (block.index(), holder.index()))
        .collect();
    lost.sort_unstable();
    lost
}

#[test]
fn block_without_a_pointer_is_lost_and_others_are_not() {
    let memory = [(GLOBALS, at(0)), (at(0) + 8, at(1))];

    assert_eq!(lost(4, &memory, &[at(2)]), [(3, 3)]);
}

#[test]
fn pointer_into_the_middle_and_tagged_pointers_reach_a_block() {
    let memory = [(GLOBALS, at(0) + 31), (GLOBALS, at(1) | 7), (GLOBALS, at(2) | 0xfff8 << 48)];

    assert_eq!(lost(4, &memory, &[]), [(3, 3)]);
}

#[test]
fn pointer_behind_the_end_reaches_nothing() {
    assert_eq!(lost(1, &[(GLOBALS, at(0) + 32)], &[]), [(0, 0)]);
}

#[test]
fn list_that_lost_its_head_is_one_direct_loss() {
    let memory = [(at(2), at(1)), (at(1), at(0)), (at(0), 0)];

    assert_eq!(lost(3, &memory, &[]), [(0, 2), (1, 2), (2, 2)]);
}

#[test]
fn cycle_is_one_direct_loss_with_what_it_holds() {
    let memory = [(at(1), at(2)), (at(2), at(1)), (at(2) + 8, at(0))];

    assert_eq!(lost(3, &memory, &[]), [(0, 1), (1, 1), (2, 1)]);
}

#[test]
fn block_that_points_to_itself_is_lost() {
    assert_eq!(lost(1, &[(at(0), at(0))], &[]), [(0, 0)]);
}

#[test]
fn block_that_two_lost_ones_hold_counts_once() {
    let memory = [(at(1), at(0)), (at(2), at(0))];

    let lost = lost(3, &memory, &[]);

    assert_eq!(lost.len(), 3);
    assert!(lost.contains(&(1, 1)) && lost.contains(&(2, 2)), "{lost:?}");
}

#[test]
fn block_that_is_not_judged_is_a_root_and_never_lost() {
    let memory = [(at(0), at(1))];

    assert_eq!(lost_but(3, &memory, &[], |block| block.index() != 0), [(2, 2)]);
}

#[test]
fn pointer_that_is_left_over_in_freed_memory_reaches_nothing() {
    let memory = [(FREED + 8, at(0)), (FREED + 64, at(1))];

    assert_eq!(lost(2, &memory, &[]), [(0, 0)]);
}

/// What the twin finds: the lost blocks and those that no other lost one leads to, by sets alone.
fn naive(
    blocks: u64,
    memory: &[(u64, u64)],
    registers: &[u64],
) -> (BTreeSet<usize>, Vec<Vec<bool>>) {
    let count = blocks as usize;
    let block_at =
        |address: u64| (0..count).find(|&b| (at(b as u64)..at(b as u64) + 32).contains(&address));
    let mut reaches = vec![vec![false; count]; count];
    let mut reached = vec![false; count];
    for &(place, word) in memory {
        match (block_at(place), block_at(word)) {
            (Some(source), Some(target)) => reaches[source][target] = true,
            (None, Some(target)) => reached[target] = true,
            (_, None) => {}
        }
    }
    registers.iter().filter_map(|word| block_at(*word)).for_each(|target| reached[target] = true);
    for through in 0..count {
        for from in 0..count {
            for to in 0..count {
                reaches[from][to] |= reaches[from][through] && reaches[through][to];
            }
        }
    }
    let lost = (0..count)
        .filter(|&b| !reached[b] && !(0..count).any(|from| reached[from] && reaches[from][b]))
        .collect();
    (lost, reaches)
}

proptest! {
    #[test]
    fn judge_equals_its_twin(
        words in prop::collection::vec((0u64..22, 0u64..4, 0u64..24, 0u64..32), 0..40),
        registers in prop::collection::vec(0u64..60, 0..2),
    ) {
        let memory: Vec<_> = words
            .into_iter()
            .map(|(source, word, target, inside)| {
                let place = if source < 20 { at(source) + 8 * word } else { GLOBALS + 8 * word };
                (place, at(target) + inside)
            })
            .collect();
        let registers: Vec<_> = registers.into_iter().map(at).collect();

        let found = lost(20, &memory, &registers);

        let (expected, reaches) = naive(20, &memory, &registers);
        prop_assert_eq!(found.iter().map(|&(block, _)| block).collect::<BTreeSet<_>>(), expected.clone());
        prop_assert_eq!(found.len(), expected.len());
        let direct: BTreeSet<_> = found.iter().map(|&(_, holder)| holder).collect();
        for &(block, holder) in &found {
            prop_assert!(block == holder || reaches[holder][block]);
            prop_assert_eq!(direct.contains(&block), block == holder);
        }
        for &one in &direct {
            // Nobody lost leads to it, but for those of its own cycle; and each cycle has one.
            for &other in &expected {
                prop_assert!(!reaches[other][one] || reaches[one][other] || other == one);
                prop_assert!(!direct.contains(&other) || other == one || !reaches[other][one]);
            }
        }
    }
}
