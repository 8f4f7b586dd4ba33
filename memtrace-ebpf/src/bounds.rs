//! Indices that the verifier can follow.
//!
//! The compiler drops a mask that it can prove to be needless; the verifier, which forgets what it
//! knew of a register that was spilled, then refuses the program. So the mask is written in
//! assembly.

use core::arch::asm;

/// `value & MASK`, in a way that the compiler cannot reason away: the verifier must see it.
#[inline(always)]
pub fn bounded<const MASK: u32>(value: u64) -> u64 {
    let mut value = value;
    // SAFETY: pure arithmetic.
    unsafe { asm!("{0} &= {1}", inout(reg) value, const MASK, options(pure, nomem, nostack)) };
    value
}

/// `value`, of which the compiler knows nothing any more: it cannot make a branch of arithmetic.
#[inline(always)]
pub fn opaque(value: u64) -> u64 {
    let mut value = value;
    // SAFETY: moves a register to itself.
    unsafe { asm!("{0} = {0}", inout(reg) value, options(pure, nomem, nostack)) };
    value
}

/// The element of `array` at `index & MASK`; the mask is less than the length.
#[inline(always)]
pub fn element<const MASK: u32, T: Copy, const N: usize>(array: &[T; N], index: u64) -> T {
    const { assert!((MASK as usize) < N) };
    // SAFETY: the mask keeps the index in the array.
    unsafe { *array.get_unchecked(bounded::<MASK>(index) as usize) }
}

/// Sets the element of `array` at `index & MASK`; the mask is less than the length.
#[inline(always)]
pub fn set_element<const MASK: u32, T, const N: usize>(array: &mut [T; N], index: u64, value: T) {
    const { assert!((MASK as usize) < N) };
    // SAFETY: the mask keeps the index in the array.
    unsafe { *array.get_unchecked_mut(bounded::<MASK>(index) as usize) = value };
}
