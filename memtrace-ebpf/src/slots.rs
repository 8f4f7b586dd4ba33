//! What each thread is doing, found without a hash table.
//!
//! A thread's slot stands where its id points, or a few places on if another thread has that one.
//! A hit on the first place costs a comparison, a tenth of a look-up in a hash map, and every probe
//! begins with it.
//!
//! ```text
//!   tid & mask ─┐
//!               ▼
//!   | … | 4711 | 4712 | 70248 | 0 | …      4712 + 65536 = 70248 found its place taken
//! ```
//!
//! Only its own thread uses a slot. It is made by that thread, or by its parent before it runs, and
//! given back when the thread ends.

use core::arch::asm;

use memtrace_common::config::MAX_THREADS;
use memtrace_common::counter::Counter;

use crate::maps::{SLOTS, Slot, count};

/// How many places a thread may use.
const PLACES: u32 = 8;

/// The slot of thread `tid`, if it has one.
#[inline(always)]
pub fn find(tid: u32) -> Option<*mut Slot> {
    let slot = place(tid, 0)?;
    // SAFETY: a map value, aligned.
    if unsafe { (*slot).tid } == tid as u64 {
        return Some(slot);
    }
    find_further(tid)
}

/// Looks where a thread goes whose first place was taken.
#[inline(never)]
fn find_further(tid: u32) -> Option<*mut Slot> {
    for i in 1..PLACES {
        let slot = place(tid, i)?;
        // SAFETY: a map value, aligned.
        if unsafe { (*slot).tid } == tid as u64 {
            return Some(slot);
        }
    }
    None
}

/// Makes a slot for thread `tid`, which has none; counts it if there is no room.
#[inline(never)]
pub fn make(tid: u32, process: u32, tgid: u32) -> Option<*mut Slot> {
    for i in 0..PLACES {
        let slot = place(tid, i)?;
        let mut holder = 0u64;
        // SAFETY: a map value, aligned.
        unsafe {
            asm!(
                "r0 = cmpxchg_64({0} + 0, r0, {1})",
                in(reg) slot,
                in(reg) tid as u64,
                inout("r0") holder,
                options(nostack),
            );
        }
        if holder == 0 {
            // SAFETY: just claimed; the thread itself is here, or does not run yet.
            unsafe { *slot = Slot::idle(tid, process, tgid) };
            return Some(slot);
        }
    }
    count(Counter::NoThreadSlot);
    None
}

/// Gives the slot of thread `tid` back, if it has one.
#[inline(always)]
pub fn give_back(tid: u32) {
    if let Some(slot) = find(tid) {
        // SAFETY: a map value, aligned; volatile, because others wait for it to be free.
        unsafe { core::ptr::write_volatile(&raw mut (*slot).tid, 0) };
    }
}

#[inline(always)]
fn place(tid: u32, i: u32) -> Option<*mut Slot> {
    SLOTS.get_ptr_mut(tid.wrapping_add(i) & (MAX_THREADS - 1))
}
