//! Blocks that the program asked to be aligned.
//!
//! ```text
//!   aligned        the call says to what: `posix_memalign`, `operator new(size, align_val_t)`, …
//!   over-aligned   to more than 16 bytes, which every block of an allocator is aligned to
//!   cost           usable(size, alignment) − usable(size), where the allocator is computed
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use memtrace_common::addr::Avma;
use memtrace_common::event::Api;

use super::{Allocator, Collected};
use crate::pipeline::snapshot::Stack;
use crate::pipeline::stacks::{SiteId, Stacks};
use crate::record::Alignment;

/// The alignment of `max_align_t` on x86-64, which `malloc` gives without being asked (C11, 7.22.3;
/// System V ABI, 3.1.2): more than that is what C and C++ call an extended alignment.
pub const FUNDAMENTAL_ALIGNMENT_BYTES: u64 = 16;

/// Blocks of one call path, API and alignment.
#[derive(Clone, Debug)]
pub struct SiteAligned {
    /// The call path.
    pub stack: Arc<Stack>,
    /// The API.
    pub api: Api,
    /// To what they are aligned.
    pub alignment: Alignment,
    /// How many, and what that costs.
    pub blocks: AlignedBlocks,
}

/// Sums over blocks that were asked to be aligned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AlignedBlocks {
    /// How many were allocated.
    pub allocations: u64,
    /// The bytes that were asked for.
    pub requested_bytes: u64,
    /// Those that are smaller than their alignment.
    pub smaller_allocations: u64,
    /// How much larger their blocks are than ones without alignment; `None` if that is not known.
    pub extra_bytes: Option<u64>,
}

impl AlignedBlocks {
    /// Adds what others sum up to. Sums wrap around, as those of accounts do.
    pub fn add(&mut self, more: &AlignedBlocks) {
        let AlignedBlocks { allocations, requested_bytes, smaller_allocations, extra_bytes } = self;
        let is_first = *allocations == 0;
        *allocations = allocations.wrapping_add(more.allocations);
        *requested_bytes = requested_bytes.wrapping_add(more.requested_bytes);
        *smaller_allocations = smaller_allocations.wrapping_add(more.smaller_allocations);
        *extra_bytes = match (is_first, *extra_bytes, more.extra_bytes) {
            (true, _, more) => more,
            (false, Some(extra), Some(more)) => Some(extra.wrapping_add(more)),
            (false, ..) => None,
        };
    }
}

impl Collected {
    /// A block was allocated that was asked to be aligned.
    #[cold]
    pub(in crate::pipeline) fn aligned(
        &mut self,
        site: SiteId,
        alignment: Alignment,
        address: Avma,
        size_bytes: u64,
    ) {
        let usable = |to| self.allocator.usable_bytes(address, size_bytes, to);
        let extra_bytes = usable(alignment).zip(usable(Alignment::NONE));
        let extra_bytes = extra_bytes.map(|(aligned, plain)| aligned.saturating_sub(plain));
        self.aligned.entry(site).or_default().add(&AlignedBlocks {
            allocations: 1,
            requested_bytes: size_bytes,
            smaller_allocations: u64::from(size_bytes < alignment.bytes()),
            extra_bytes,
        });
    }

    pub(super) fn aligned_by_site(
        &self,
        stacks: &Stacks,
        computed: Option<Allocator>,
    ) -> Vec<SiteAligned> {
        let mut shown: BTreeMap<(SiteId, Alignment), AlignedBlocks> = BTreeMap::new();
        for (site, blocks) in &self.aligned {
            let key = (stacks.shown_as(*site), stacks.alignment(*site));
            shown.entry(key).or_default().add(blocks);
        }
        let site = |((site, alignment), blocks): (_, AlignedBlocks)| SiteAligned {
            stack: stacks.shown_stack(site),
            api: stacks.api(site),
            alignment,
            blocks: AlignedBlocks {
                extra_bytes: blocks.extra_bytes.filter(|_| computed.is_some()),
                ..blocks
            },
        };
        shown.into_iter().map(site).collect()
    }
}
