//! Stacks that were walked to their root, so that they need not be walked again.
//!
//! ```text
//!   sp ──> | … | ret 0 | … … … | ret 1 | … | rbp | ret 2 | …        user stack, grows up here
//!            └─────────── one bulk copy: `span` ─────┘
//! ```
//!
//! The words that the walk depended on are compared with a fresh copy. Others may write an entry
//! at the same time: a claim keeps writers apart, and a version that is odd meanwhile tells readers.

use core::arch::asm;
use core::ffi::c_void;

use aya_ebpf::helpers::generated;
use memtrace_common::config::MAX_REMEMBERED_SLOTS;
use memtrace_common::unwind::Regs;

use crate::bounds::{bounded, element, set_element};
use crate::maps::{REMEMBERED, Remembered, Scratch, release, try_claim};

/// The id of `remembered` if the stack is the one it stands for; 0 if not.
#[inline(always)]
pub fn recall(s: &mut Scratch, remembered: &Remembered, owner: u64, regs: Regs) -> u64 {
    let version = version_of(remembered);
    let slot_count = remembered.slot_count as usize;
    let id = remembered.id;
    if remembered.sp != regs.sp
        || remembered.pc != regs.pc
        || remembered.process != owner
        || (remembered.fp_used != 0 && remembered.fp != regs.fp)
        || version & 1 != 0
    {
        return 0;
    }
    let span = bounded::<0xffff>(remembered.span as u64);
    // SAFETY: the copy is larger than the largest span.
    let failed = unsafe {
        generated::bpf_probe_read_user(
            s.copy.as_mut_ptr().cast(),
            span as u32,
            regs.sp as *const c_void,
        )
    };
    if failed != 0 {
        return 0;
    }
    let mut difference = 0;
    let mut i = 0;
    while i < MAX_REMEMBERED_SLOTS {
        if i >= slot_count {
            break;
        }
        // Eight without a branch: slots behind the last one repeat it.
        let mut j = 0;
        while j < 8 {
            let offset_by_8 =
                element::<0xff, _, _>(&remembered.slot_offset_by_8, (i + j) as u64) as u64;
            let word = element::<0x1fff, _, _>(&s.copy, offset_by_8);
            difference |= word ^ element::<0xff, _, _>(&remembered.slot_value, (i + j) as u64);
            j += 1;
        }
        i += 8;
    }
    let unchanged = version_of(remembered) == version;
    if difference == 0 && unchanged { id } else { 0 }
}

/// Writes the walked stack over what was remembered at `place`.
#[inline(always)]
pub fn remember(s: &Scratch, place: u32, owner: u64, regs: Regs, id: u64) {
    let slot_count = s.slot_count as usize;
    if slot_count == 0 || slot_count > MAX_REMEMBERED_SLOTS {
        return;
    }
    let Some(remembered) = REMEMBERED.get_ptr_mut(place) else { return };
    // SAFETY: a map value; the claim keeps other writers out, the version tells readers.
    let remembered = unsafe { &mut *remembered };
    // SAFETY: a map value.
    if !unsafe { try_claim(&raw mut remembered.claimed) } {
        return;
    }
    let version = version_of(remembered);
    set_version(remembered, version | 1);
    let mut span = 0;
    let mut last_offset = 0;
    let mut last_value = 0;
    let mut i = 0;
    while i < MAX_REMEMBERED_SLOTS {
        if i >= slot_count && i & 7 == 0 {
            break;
        }
        if i < slot_count {
            last_offset = element::<0xff, _, _>(&s.slot_offset_by_8, i as u64);
            last_value = element::<0xff, _, _>(&s.slot_value, i as u64);
            let end = (last_offset as u32 + 1) * 8;
            if end > span {
                span = end;
            }
        }
        set_element::<0xff, _, _>(&mut remembered.slot_offset_by_8, i as u64, last_offset);
        set_element::<0xff, _, _>(&mut remembered.slot_value, i as u64, last_value);
        i += 1;
    }
    remembered.slot_count = slot_count as u64;
    remembered.span = span;
    remembered.pc = regs.pc;
    remembered.sp = regs.sp;
    remembered.fp = regs.fp;
    remembered.fp_used = s.fp_used;
    remembered.process = owner;
    remembered.id = id;
    set_version(remembered, (version | 1) + 1);
    // SAFETY: claimed above.
    unsafe { release(&raw mut remembered.claimed) };
}

/// The version, read between what stands before and after it; the CPU keeps loads in order.
#[inline(always)]
fn version_of(remembered: &Remembered) -> u64 {
    compiler_barrier();
    // SAFETY: a map value, aligned; volatile, because writers change it.
    let version = unsafe { core::ptr::read_volatile(&raw const remembered.version) };
    compiler_barrier();
    version
}

/// Writes the version after what stands before; the CPU keeps stores in order.
#[inline(always)]
fn set_version(remembered: &mut Remembered, version: u64) {
    compiler_barrier();
    // SAFETY: a map value, aligned.
    unsafe { core::ptr::write_volatile(&raw mut remembered.version, version) };
    compiler_barrier();
}

/// Keeps the compiler from moving memory accesses across; `compiler_fence` has no BPF code.
#[inline(always)]
fn compiler_barrier() {
    // SAFETY: no instruction.
    unsafe { asm!("", options(nostack)) };
}
