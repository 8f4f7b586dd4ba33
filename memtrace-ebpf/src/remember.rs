//! Stacks that were walked to their root, so that they need not be walked again.
//!
//! ```text
//!   sp ──> | … | ret 0 | … … … | ret 1 | … | rbp | ret 2 | …        user stack, grows up here
//!            └─────────── one bulk copy: `span` ─────┘
//! ```
//!
//! The words that the walk depended on are compared with a fresh copy: equal words, same stack.
//!
//! All stacks of one process, `sp` and `pc` are a family. A thousand call paths may lead to the same
//! `malloc` at the same depth, so a family learns which words tell its members apart: whenever two
//! would be kept under one key, the first word in which they differ becomes part of the key.
//!
//! ```text
//!   (process, sp, pc) ─> family {span, telling words} ─copy─> key ─> one candidate ─compare─> id
//! ```
//!
//! A key only chooses the candidate, so a wrong or torn family costs a walk and never an answer.
//! Others may write an entry at the same time: a claim keeps writers apart, and a version that is
//! odd meanwhile tells readers.

use core::arch::asm;
use core::ffi::c_void;

use aya_ebpf::helpers::generated;
use memtrace_common::config::{
    FAMILIES, MAX_REMEMBERED_SLOTS, REMEMBERED_SETS, REMEMBERED_WAYS, TELLING_WORDS,
};

use crate::bounds::{bounded, element, opaque, set_element};
use crate::maps::{
    FAMILY, Family, REMEMBERED, Remembered, RememberedSet, SCRATCH, Scratch, release, try_claim,
};

/// The id of the stack whose start stands in the scratch at `index`; 0 if it is not remembered.
///
/// Copies the stack into the scratch as far as the family's stacks reach. It is a global function,
/// and so is [`remember`], for the verifier's sake; see [`crate::unwind::capture_stack`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn recall(index: u64) -> u64 {
    let Some(scratch) = SCRATCH.get_ptr_mut(index as u32) else { return 0 };
    // SAFETY: claimed by the caller.
    let Some(family) = copy_family(unsafe { &mut *scratch }) else { return 0 };
    // SAFETY: map values; torn reads are harmless.
    let key = unsafe {
        // Most families have one member at a time: spare them the call.
        if (*family).telling_count == 0 { (*scratch).family | 1 } else { key_of(index) }
    };
    let Some(set) = set_of(key) else { return 0 };
    // SAFETY: a map value; versions guard against writers.
    let set = unsafe { &*set };
    let way = way_of(set, key);
    if way == NO_WAY {
        return 0;
    }
    // SAFETY: the index is masked.
    let remembered = unsafe { set.ways.get_unchecked(bounded::<7>(way) as usize) };
    // SAFETY: claimed by the caller.
    compare(unsafe { &*scratch }, remembered)
}

/// Copies the stack as far as those of its family reach. `None`: no family, or the copy failed.
#[inline(always)]
fn copy_family(s: &mut Scratch) -> Option<*const Family> {
    s.copied = 0;
    let family = family_of(s)?;
    // SAFETY: a map value; torn reads are harmless.
    let (tag, span) = unsafe { ((*family).tag, (*family).span) };
    if tag != s.family {
        return None;
    }
    let span = bounded::<0xffff>(span as u64);
    // SAFETY: the copy is larger than the largest span.
    let failed = unsafe {
        generated::bpf_probe_read_user(
            s.copy.as_mut_ptr().cast(),
            span as u32,
            s.base as *const c_void,
        )
    };
    if failed != 0 {
        return None;
    }
    s.copied = span;
    Some(family)
}

/// The id of `remembered` if the copied stack is the one it stands for; 0 if not.
#[inline(always)]
fn compare(s: &Scratch, remembered: &Remembered) -> u64 {
    let version = version_of(remembered);
    let slot_count = remembered.slot_count as usize;
    let id = remembered.id;
    if !is_kin(remembered, s) || remembered.span as u64 > s.copied || version & 1 != 0 {
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

/// Whether an entry starts where the stack in the scratch does.
#[inline(always)]
fn is_kin(remembered: &Remembered, s: &Scratch) -> bool {
    remembered.sp == s.base
        && remembered.pc == s.start_pc
        && remembered.owner == s.owner
        && (remembered.fp_used == 0 || remembered.fp == s.start_fp)
}

/// Keeps the stack that was walked in the scratch at `index`, and what tells it from others.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn remember(index: u64, id: u64) -> u64 {
    let Some(scratch) = SCRATCH.get_ptr(index as u32) else { return 0 };
    // SAFETY: claimed by the caller.
    keep(unsafe { &*scratch }, index, id);
    0
}

#[inline(always)]
fn keep(s: &Scratch, index: u64, id: u64) {
    let slot_count = s.slot_count;
    if slot_count == 0 || slot_count > MAX_REMEMBERED_SLOTS as u32 {
        return;
    }
    let Some(family) = family_of(s) else { return };
    // SAFETY: a map value; torn writes cost a walk.
    unsafe {
        if (*family).tag != s.family {
            (*family).tag = s.family;
            (*family).telling_count = 0;
            (*family).span = 0;
        }
        if s.span > (*family).span {
            (*family).span = s.span;
        }
    }
    let mut key = key_of(index);
    let Some(mut set) = set_of(key) else { return };
    // SAFETY: a map value.
    let mut way = way_of(unsafe { &*set }, key);
    if way != NO_WAY {
        let other = way_in(set, way);
        let telling = first_difference(s, other);
        // SAFETY: map values.
        unsafe {
            let count = (*family).telling_count;
            if telling != 0 && is_kin(&*other, s) && count < TELLING_WORDS as u32 {
                set_element::<7, _, _>(&mut (*family).telling, count as u64, telling);
                (*family).telling_count = count + 1;
                key = key_of(index);
                let Some(new_set) = set_of(key) else { return };
                set = new_set;
                way = way_of(&*set, key);
            }
        }
    }
    if way == NO_WAY {
        way = (id >> 32) & (REMEMBERED_WAYS as u64 - 1);
    }
    let remembered = way_in(set, way);
    // SAFETY: a map value; the claim keeps other writers out, the version tells readers.
    unsafe {
        if !try_claim(&raw mut (*remembered).claimed) {
            return;
        }
        set_element::<7, _, _>(&mut (*set).tags, way, key);
        write(s, remembered, id);
        release(&raw mut (*remembered).claimed);
    }
}

/// The entry of `set` at `way`.
#[inline(always)]
fn way_in(set: *mut RememberedSet, way: u64) -> *mut Remembered {
    // SAFETY: the index is masked.
    unsafe { (&raw mut (*set).ways).cast::<Remembered>().add(bounded::<7>(way) as usize) }
}

/// Writes the walked stack into an entry.
///
/// # Safety
/// `remembered` must point to an entry that the caller has claimed.
#[inline(always)]
unsafe fn write(s: &Scratch, remembered: *mut Remembered, id: u64) {
    // SAFETY: by the caller's promise.
    let version = unsafe { version_of(&*remembered) };
    // SAFETY: as above.
    unsafe { set_version(remembered, version | 1) };
    let mut pair = Pair { s, remembered, first_difference: 0 };
    // Whole groups of eight, as `compare` reads them.
    let words = (s.slot_count + 7) & !7;
    // SAFETY: the callback has the signature that bpf_loop calls, and the context outlives it.
    unsafe { generated::bpf_loop(words, write_word as *mut c_void, (&raw mut pair).cast(), 0) };
    // SAFETY: as above.
    unsafe {
        (*remembered).slot_count = s.slot_count as u16;
        (*remembered).span = s.span;
        (*remembered).pc = s.start_pc;
        (*remembered).sp = s.base;
        (*remembered).fp = s.start_fp;
        (*remembered).fp_used = s.fp_used as u16;
        (*remembered).owner = s.owner;
        (*remembered).id = id;
        set_version(remembered, (version | 1) + 1);
    }
}

/// A walked stack, and an entry that it is compared with or written to, word by word.
///
/// Words go through `bpf_loop`, which is slower than a loop in the program, but does not make the
/// verifier follow each way of leaving it to the program's end.
struct Pair {
    s: *const Scratch,
    remembered: *mut Remembered,
    first_difference: u64,
}

/// Offset, in words, of the first word in which the walked stack differs from `other`; 0 if none.
#[inline(always)]
fn first_difference(s: &Scratch, other: *mut Remembered) -> u16 {
    // SAFETY: a map value; torn reads are harmless.
    let words = s.slot_count.min(unsafe { (*other).slot_count } as u32);
    let mut pair = Pair { s, remembered: other, first_difference: 0 };
    // SAFETY: the callback has the signature that bpf_loop calls, and the context outlives it.
    unsafe { generated::bpf_loop(words, compare_word as *mut c_void, (&raw mut pair).cast(), 0) };
    pair.first_difference as u16
}

unsafe extern "C" fn write_word(i: u64, pair: *mut Pair) -> u64 {
    // SAFETY: `write` passes a pair whose entry it has claimed.
    let (s, remembered) = unsafe { (&*(*pair).s, &mut *(*pair).remembered) };
    // Slots behind the last one repeat it.
    let from = i.min((s.slot_count as u64).wrapping_sub(1));
    let offset = element::<0xff, _, _>(&s.slot_offset_by_8, from);
    let value = element::<0xff, _, _>(&s.slot_value, from);
    set_element::<0xff, _, _>(&mut remembered.slot_offset_by_8, i, offset);
    set_element::<0xff, _, _>(&mut remembered.slot_value, i, value);
    0
}

unsafe extern "C" fn compare_word(i: u64, pair: *mut Pair) -> u64 {
    // SAFETY: `first_difference` passes a pair; torn reads are harmless.
    let (s, other) = unsafe { (&*(*pair).s, &*(*pair).remembered) };
    let offset = element::<0xff, _, _>(&s.slot_offset_by_8, i);
    if offset != element::<0xff, _, _>(&other.slot_offset_by_8, i) {
        return 1;
    }
    if element::<0xff, _, _>(&s.slot_value, i) == element::<0xff, _, _>(&other.slot_value, i) {
        return 0;
    }
    // SAFETY: as above.
    unsafe { (*pair).first_difference = offset as u64 };
    1
}

/// What the stack in the scratch at `index` is kept under: its family and the telling words.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn key_of(index: u64) -> u64 {
    let Some(scratch) = SCRATCH.get_ptr(index as u32) else { return 0 };
    // SAFETY: claimed by the caller.
    let s = unsafe { &*scratch };
    let Some(family) = family_of(s) else { return 0 };
    // SAFETY: a map value; torn reads are harmless.
    let family = unsafe { &*family };
    let mut key = s.family;
    let mut i = 0;
    while i < TELLING_WORDS {
        if i as u32 >= family.telling_count {
            break;
        }
        let offset_by_8 = element::<7, _, _>(&family.telling, i as u64) as u64;
        // A stack that ends before the word is told by that.
        if offset_by_8 * 8 + 8 <= s.copied {
            key = mix(key ^ element::<0x1fff, _, _>(&s.copy, offset_by_8));
        }
        i += 1;
    }
    key | 1
}

#[inline(always)]
fn family_of(s: &Scratch) -> Option<*mut Family> {
    FAMILY.get_ptr_mut(s.family as u32 & (FAMILIES - 1))
}

#[inline(always)]
fn set_of(key: u64) -> Option<*mut RememberedSet> {
    REMEMBERED.get_ptr_mut((key >> 8) as u32 & (REMEMBERED_SETS - 1))
}

/// What [`way_of`] gives if the key is not there.
const NO_WAY: u64 = REMEMBERED_WAYS as u64;

/// Where the set keeps `key`.
///
/// Without a branch: the verifier would follow each way of leaving the loop to the program's end.
#[inline(always)]
fn way_of(set: &RememberedSet, key: u64) -> u64 {
    let mut found = NO_WAY;
    let mut way = 0;
    while way < REMEMBERED_WAYS as u64 {
        let difference = element::<7, _, _>(&set.tags, way) ^ key;
        let is_other = opaque(difference | difference.wrapping_neg()) >> 63;
        found -= (NO_WAY - way) * opaque(1 - is_other);
        way += 1;
    }
    found
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
///
/// # Safety
/// `remembered` must point to an entry that the caller has claimed.
#[inline(always)]
unsafe fn set_version(remembered: *mut Remembered, version: u64) {
    compiler_barrier();
    // SAFETY: by the caller's promise; aligned.
    unsafe { core::ptr::write_volatile(&raw mut (*remembered).version, version) };
    compiler_barrier();
}

/// Keeps the compiler from moving memory accesses across; `compiler_fence` has no BPF code.
#[inline(always)]
fn compiler_barrier() {
    // SAFETY: no instruction.
    unsafe { asm!("", options(nostack)) };
}

/// Spreads the bits of `value` (the finalizer of MurmurHash3).
#[inline(always)]
pub fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let value = (value ^ (value >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    value ^ (value >> 33)
}
