//! The blocks that are looked for, by address.
//!
//! A look-up is two loads that stay in the cache for a word that is no pointer, and two more and a
//! short search for one that is:
//!
//! ```text
//!   address   | top 13 bits | leaf 13 | page 9 | 12 |
//!   top    →  leaf  →  nothing here
//!                      one block covers all of these 2 MiB
//!                      pages: of each 4 KiB, the first block that does not end before it
//! ```

use memtrace_common::addr::Avma;

use super::ADDRESS_BITS;

const PAGE_BITS: u32 = 12;
const GRANULE_BITS: u32 = 21;
const LEAF_BITS: u32 = 13;
const PAGES: usize = 1 << (GRANULE_BITS - PAGE_BITS);
const GRANULES: usize = 1 << LEAF_BITS;
const LEAVES: usize = 1 << (ADDRESS_BITS - GRANULE_BITS - LEAF_BITS);

/// No block touches it.
const NOTHING: u32 = u32::MAX;
/// The leaf in which that is so everywhere: a look-up needs no condition.
const EMPTY_LEAF: u32 = 0;
/// Set in the entry of a granule that one block covers; the rest is the block.
const WHOLE: u32 = 1 << 31;

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First address.
    pub start: Avma,
    /// How many bytes; a block of none still has an address that points to it.
    pub size_bytes: u64,
}

/// A block in [`Blocks`]: its place in the order of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(u32);

impl BlockId {
    /// Its index in the spans that the blocks were made of.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Blocks that do not overlap.
#[derive(Debug)]
pub struct Blocks {
    starts: Vec<u64>,
    ends: Vec<u64>,
    /// Index of the leaf.
    top: Box<[u32; LEAVES]>,
    /// Entries of granules: [`NOTHING`], a block with [`WHOLE`], or an index of `pages`.
    leaves: Vec<[u32; GRANULES]>,
    /// Of each page of a granule, and of the page behind, the first block that ends behind its start.
    pages: Vec<[u32; PAGES + 1]>,
}

impl Blocks {
    /// How many blocks there may be.
    pub const LIMIT: usize = (WHOLE - 1) as usize;

    /// Whether a block can be looked for: it lies where programs have memory by default.
    pub fn is_possible(span: Span) -> bool {
        end_of(span).is_some_and(|end| span.start.0 != 0 && end <= 1 << ADDRESS_BITS)
    }

    /// Blocks that are in the order of their addresses, possible, and apart from one another.
    ///
    /// What does not fit is never found; it is the caller's mistake and does no other harm.
    pub fn new(spans: impl IntoIterator<Item = Span>) -> Blocks {
        let mut blocks = Blocks {
            starts: Vec::new(),
            ends: Vec::new(),
            top: Box::new([EMPTY_LEAF; LEAVES]),
            leaves: vec![[NOTHING; GRANULES]],
            pages: Vec::new(),
        };
        for span in spans.into_iter().take(Blocks::LIMIT) {
            blocks.starts.push(span.start.0);
            blocks.ends.push(end_of(span).unwrap_or(u64::MAX).min(1 << ADDRESS_BITS));
        }
        blocks.build_directory();
        blocks
    }

    fn build_directory(&mut self) {
        // The first block that ends behind the page that is looked at; it only moves forward.
        let mut first = 0;
        let mut next_granule = 0;
        for block in 0..self.starts.len() {
            let (start, end) = (self.starts[block], self.ends[block]);
            let last_granule = (end.saturating_sub(1)) >> GRANULE_BITS;
            for granule in (start >> GRANULE_BITS).max(next_granule)..=last_granule {
                let granule_start = granule << GRANULE_BITS;
                let granule_end = granule_start + (1 << GRANULE_BITS);
                let entry = if start <= granule_start && granule_end <= end {
                    WHOLE | block as u32
                } else {
                    self.add_pages(granule_start, &mut first)
                };
                *self.granule_mut(granule) = entry;
            }
            next_granule = next_granule.max(last_granule + 1);
        }
    }

    fn add_pages(&mut self, granule_start: u64, first: &mut usize) -> u32 {
        let mut pages = [0; PAGES + 1];
        let mut page_start = granule_start;
        for page in &mut pages {
            while self.ends.get(*first).is_some_and(|end| *end <= page_start) {
                *first += 1;
            }
            *page = *first as u32;
            page_start += 1 << PAGE_BITS;
        }
        // The granule behind begins where this one ends.
        self.pages.push(pages);
        (self.pages.len() - 1) as u32
    }

    fn granule_mut(&mut self, granule: u64) -> &mut u32 {
        let leaf = &mut self.top[(granule >> LEAF_BITS) as usize];
        if *leaf == EMPTY_LEAF {
            *leaf = self.leaves.len() as u32;
            self.leaves.push([NOTHING; GRANULES]);
        }
        &mut self.leaves[*leaf as usize][granule as usize & (GRANULES - 1)]
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// All of them, by address.
    pub fn ids(&self) -> impl Iterator<Item = BlockId> + use<> {
        (0..self.starts.len() as u32).map(BlockId)
    }

    /// Whether a block may lie within 2 MiB of this untagged address: a quick look.
    #[inline(always)]
    pub(super) fn may_hold(&self, address: u64) -> bool {
        self.granule(address) != NOTHING
    }

    #[inline(always)]
    fn granule(&self, address: u64) -> u32 {
        let granule = address >> GRANULE_BITS;
        let leaf = self.top[(granule >> LEAF_BITS) as usize & (LEAVES - 1)];
        self.leaves[leaf as usize][granule as usize & (GRANULES - 1)]
    }

    /// The block that this untagged address lies in.
    #[inline]
    pub(super) fn find(&self, address: u64) -> Option<BlockId> {
        let entry = self.granule(address);
        if entry == NOTHING {
            return None;
        }
        if entry & WHOLE != 0 {
            return Some(BlockId(entry & !WHOLE));
        }
        let pages = &self.pages[entry as usize];
        let page = (address >> PAGE_BITS) as usize & (PAGES - 1);
        let first = pages[page] as usize;
        let behind = (pages[page + 1] as usize + 1).min(self.starts.len());
        let candidates = self.starts.get(first..behind)?;
        let before = candidates.partition_point(|start| *start <= address);
        let block = first + before.checked_sub(1)?;
        (address < self.ends[block]).then_some(BlockId(block as u32))
    }
}

fn end_of(span: Span) -> Option<u64> {
    span.start.0.checked_add(span.size_bytes.max(1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn blocks(spans: &[(u64, u64)]) -> Blocks {
        let span = |&(start, size_bytes)| Span { start: Avma(start), size_bytes };
        Blocks::new(spans.iter().map(span))
    }

    fn found(blocks: &Blocks, address: u64) -> Option<usize> {
        blocks.find(address).map(BlockId::index)
    }

    #[test]
    fn every_byte_of_a_block_finds_it_and_its_neighbours_do_not() {
        let blocks = blocks(&[(0x1000, 24), (0x1020, 16)]);

        let addresses = [0xfff, 0x1000, 0x1017, 0x1018, 0x101f, 0x1020, 0x102f, 0x1030];
        let expected = [None, Some(0), Some(0), None, None, Some(1), Some(1), None];
        assert_eq!(addresses.map(|address| found(&blocks, address)), expected);
    }

    #[test]
    fn block_of_no_bytes_is_found_at_its_address() {
        let blocks = blocks(&[(0x1000, 0)]);

        assert_eq!((found(&blocks, 0x1000), found(&blocks, 0x1001)), (Some(0), None));
    }

    #[test]
    fn block_over_many_granules_is_found_everywhere_in_it() {
        let (start, size) = (0x7f00_0012_3010, 10 << GRANULE_BITS);
        let blocks = blocks(&[(start - 32, 16), (start, size), (start + size + 16, 16)]);

        for address in (start..start + size).step_by(4093).chain([start + size - 1]) {
            assert_eq!(found(&blocks, address), Some(1), "{address:#x}");
        }
        assert_eq!(found(&blocks, start - 1), None);
        assert_eq!(found(&blocks, start + size), None);
        assert_eq!(found(&blocks, start + size + 16), Some(2));
    }

    #[test]
    fn block_beyond_the_usual_addresses_is_not_possible() {
        let span = |start, size_bytes| Span { start: Avma(start), size_bytes };

        assert!(Blocks::is_possible(span((1 << ADDRESS_BITS) - 16, 16)));
        assert!(!Blocks::is_possible(span((1 << ADDRESS_BITS) - 16, 17)));
        assert!(!Blocks::is_possible(span(u64::MAX, 16)));
        assert!(!Blocks::is_possible(span(0, 16)));
    }

    proptest! {
        /// The twin looks at every block.
        #[test]
        fn find_equals_a_linear_search(
            steps in prop::collection::vec((0u64..0x30_0000, 0u64..0x5000, any::<bool>()), 1..60),
            base in prop::sample::select(vec![0x1000u64, 0x5555_5555_0000, 0x7fff_0000_0000]),
            addresses in prop::collection::vec(0u64..0x400_0000, 0..200),
        ) {
            let mut at = base;
            let mut spans = Vec::new();
            for (gap, size, large) in steps {
                at += gap / 8 * 8 + 8;
                let size = if large { size << 10 } else { size };
                spans.push((at, size));
                at += size.max(1);
            }
            let blocks = blocks(&spans);

            let edges = spans.iter().flat_map(|&(start, size)| [start, start + size.max(1)]);
            let edges = edges.flat_map(|edge| [edge - 1, edge, edge + 1]);
            for address in addresses.into_iter().map(|offset| base + offset).chain(edges) {
                let expected = spans
                    .iter()
                    .position(|&(start, size)| (start..start + size.max(1)).contains(&address));
                prop_assert_eq!(found(&blocks, address), expected, "{:#x}", address);
                prop_assert!(expected.is_none() || blocks.may_hold(address));
            }
        }
    }
}
