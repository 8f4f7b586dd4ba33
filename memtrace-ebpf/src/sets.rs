//! Tables in sets: a key falls to one of them, and stands in any of its ways.

use aya_ebpf::helpers::generated;

use crate::bounds::{bounded, opaque};

/// Index of the set that a key falls to; `SETS` is a power of two.
#[inline(always)]
pub fn set_index<const SETS: u32>(key: u64) -> u32 {
    (key >> 8) as u32 & (SETS - 1)
}

/// One of `WAYS`, whose content makes room: not always the same one for a key, or two keys that are in
/// use would drive each other out for ever.
#[inline(always)]
pub fn any<const WAYS: u64>() -> u64 {
    // SAFETY: a helper without preconditions.
    let number = unsafe { generated::bpf_get_prandom_u32() };
    (number as u64 * WAYS) >> 32
}

/// Which of the first `WAYS` tags is `key`; `WAYS` if none is.
///
/// Without a branch: the verifier would follow each way of leaving the loop to the program's end.
#[inline(always)]
pub fn position<const WAYS: u64, const N: usize>(tags: &[u64; N], key: u64) -> u64 {
    const { assert!(WAYS as usize <= N && WAYS <= 8) };
    let mut found = WAYS;
    let mut way = 0;
    while way < WAYS {
        // SAFETY: the loop ends at the array's length.
        let difference = unsafe { *tags.get_unchecked(bounded::<7>(way) as usize) } ^ key;
        let is_other = opaque(difference | difference.wrapping_neg()) >> 63;
        found -= (WAYS - way) * opaque(1 - is_other);
        way += 1;
    }
    found
}
