//! Stacks that were walked to their root, so that they need not be walked again.
//!
//! ```text
//!   sp ──> | … | ret 0 | … … … | ret 1 | … | rbp | ret 2 | …        user stack, grows up here
//!            └─────────── one bulk copy: `span` ─────┘
//! ```
//!
//! The words that the walk depended on are compared with a fresh copy: equal words, same stack.
//!
//! Which remembered stack it may be is told by a key, to which words of the stack lead (`forks`).
//! The key only chooses the candidate, so a wrong one costs a walk and never an answer.
//!
//! A program that goes through more stacks than there is room for would have each forgotten before it
//! comes again. As long as few are recognised, only some of those that are walked are remembered
//! (bimodal insertion: Qureshi et al., "Adaptive insertion policies for high performance caching",
//! ISCA 2007).
//!
//! Others may write an entry at the same time: a claim keeps writers apart, and a version that is
//! odd meanwhile tells readers.

use core::arch::asm;
use core::ffi::c_void;

use aya_ebpf::helpers::generated;
use memtrace_common::config::{MAX_REMEMBERED_SLOTS, REMEMBERED_SETS, REMEMBERED_WAYS};

use crate::bounds::{bounded, eight, element, set_element};
use crate::forks::{self, Fork, key_of};
use crate::maps::{
    DIGESTS, Digests, REMEMBERED, Remembered, RememberedSet, SCRATCH, Scratch, release, try_claim,
};
use crate::sets::{any, position, set_index};

/// How many stacks a set holds.
const WAYS: u64 = REMEMBERED_WAYS as u64;

/// A stack that is recognised saves a walk, which takes so often the time of remembering one.
const GAIN: u64 = 3;

/// So many stacks have been remembered in vain when it is taken to be so for the next ones, too.
const FUTILE: u64 = 1024;

/// Of so many walked stacks one is remembered all the same: others may come.
const ONE_OF: u64 = 8;

/// Notes in a claimed scratch whether its stack was recognised.
#[inline(always)]
pub fn learn(s: &mut Scratch, is_recognised: bool) {
    s.futility =
        if is_recognised { s.futility.saturating_sub(GAIN) } else { (s.futility + 1).min(FUTILE) };
}

/// Whether to remember the stack that was walked in a scratch.
#[inline(always)]
pub fn is_worthwhile(s: &Scratch) -> bool {
    s.futility < FUTILE || s.walk as u64 % ONE_OF == 0
}

/// The id of the stack whose start stands in the scratch at `index`; 0 if it is not remembered.
///
/// Copies the stack into the scratch as far as the family's stacks reach. It is a global function,
/// and so is [`remember`], for the verifier's sake; see [`crate::unwind::capture_stack`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn recall(index: u64) -> u64 {
    let Some(scratch) = SCRATCH.get_ptr_mut(index as u32) else { return 0 };
    // SAFETY: claimed by the caller.
    let (family, has_one_member) = unsafe {
        let Some(family) = Fork::find((*scratch).family) else { return 0 };
        if !copy(&mut *scratch, family.span()) {
            return 0;
        }
        ((*scratch).family, family.telling() == 0)
    };
    // Most families have one member at a time: spare them the call.
    let key = if has_one_member { family } else { key_of(index, 0) };
    let Some(set) = set_of(key) else { return 0 };
    // SAFETY: a map value; torn reads are harmless.
    let way = position::<WAYS, _>(unsafe { &(*set).tags }, key);
    if way >= WAYS {
        return 0;
    }
    // SAFETY: the index was checked; versions guard against writers. The scratch is claimed.
    unsafe { compare(&*scratch, (*set).ways.get_unchecked(bounded::<7>(way) as usize)) }
}

/// Copies `span` bytes of the stack, of which some may be copied; false if they cannot all be read.
#[inline(always)]
fn copy(s: &mut Scratch, span: u32) -> bool {
    let (span, lead) = (span as u64, bounded::<0x1f>(s.lead) * 8);
    s.expected = span + lead;
    if s.copied >= span {
        return true;
    }
    // No more than what was read ahead.
    let copied = bounded::<0xfff>(s.copied);
    let rest = bounded::<0xffff>(span - copied);
    // SAFETY: the copy is larger than that.
    let failed = unsafe {
        let to = s.copy.as_mut_ptr().cast::<u8>().add((lead + copied) as usize);
        let from = s.base.wrapping_add(copied);
        generated::bpf_probe_read_user(to.cast(), rest as u32, from as *const c_void)
    };
    if failed == 0 {
        s.copied = span;
    }
    failed == 0
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
    let mut words = Words::NONE;
    let mut i = 0;
    while i < MAX_REMEMBERED_SLOTS {
        if i >= slot_count {
            break;
        }
        // Eight without a branch: slots behind the last one repeat it.
        let offsets: &[u16; 8] = eight::<0xf8, _, _>(&remembered.slot_offset_by_8, i as u64);
        let mut j = 0;
        while j < 8 {
            let even = s.word(offsets[j] as u64);
            let odd = s.word(offsets[j + 1] as u64);
            words = words.and(even, odd);
            j += 2;
        }
        i += 8;
    }
    let is_same = words.hash() == remembered.words;
    let unchanged = version_of(remembered) == version;
    if is_same && unchanged { id } else { 0 }
}

/// A hash of words, of which every second goes to the other half: two multiplications at a time.
///
/// As good as the ids of stacks, which are hashes of 64 bits themselves.
#[derive(Clone, Copy)]
struct Words {
    even: u64,
    odd: u64,
}

impl Words {
    const NONE: Words = Words { even: 0, odd: 0 };
    /// Odd, so that no two words give the same.
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

    #[inline(always)]
    fn and(self, even: u64, odd: u64) -> Words {
        Words {
            even: (self.even ^ even).wrapping_mul(Self::FACTOR),
            odd: (self.odd ^ odd).wrapping_mul(Self::FACTOR),
        }
    }

    #[inline(always)]
    fn hash(self) -> u64 {
        mix(self.even ^ mix(self.odd))
    }
}

/// What is left of a word in [`DIGESTS`].
#[inline(always)]
fn digest(word: u64) -> u16 {
    (word.wrapping_mul(Words::FACTOR) >> 48) as u16
}

/// Whether an entry starts where the stack in the scratch does.
#[inline(always)]
fn is_kin(remembered: &Remembered, s: &Scratch) -> bool {
    remembered.family == s.family && (remembered.fp_used == 0 || remembered.fp == s.start_fp)
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
    forks::reach(s.family, s.span);
    let mut key = key_of(index, forks::WALKED);
    let Some(mut place) = Place::of(key) else { return };
    if place.is_taken {
        let telling = first_difference(s, &place);
        if telling != 0 {
            forks::part(key, telling);
            key = key_of(index, forks::WALKED);
            let Some(new_place) = Place::of(key) else { return };
            place = new_place;
        }
    }
    // SAFETY: map values; the claim keeps other writers out, the version tells readers.
    unsafe {
        if !try_claim(&raw mut (*place.remembered).claimed) {
            return;
        }
        *place.tag = key;
        write(s, &place, id);
        release(&raw mut (*place.remembered).claimed);
    }
}

/// The set that a key falls to.
#[inline(always)]
fn set_of(key: u64) -> Option<*mut RememberedSet> {
    REMEMBERED.get_ptr_mut(set_index::<REMEMBERED_SETS>(key))
}

/// Where a stack is kept, or will be.
struct Place {
    tag: *mut u64,
    remembered: *mut Remembered,
    digests: *mut Digests,
    /// Whether a stack is kept there under the same key.
    is_taken: bool,
}

impl Place {
    /// The place of `key`, which may be another's so far.
    #[inline(always)]
    fn of(key: u64) -> Option<Place> {
        let set = set_of(key)?;
        // SAFETY: a map value; torn reads are harmless.
        let found = position::<WAYS, _>(unsafe { &(*set).tags }, key);
        let is_taken = found < WAYS;
        let way = bounded::<7>(if is_taken { found } else { any::<WAYS>() });
        if way >= WAYS {
            return None;
        }
        let digests = DIGESTS
            .get_ptr_mut(set_index::<REMEMBERED_SETS>(key) * REMEMBERED_WAYS + way as u32)?;
        // SAFETY: the index was checked.
        let (tag, remembered) = unsafe {
            let tags = (&raw mut (*set).tags).cast::<u64>();
            (tags.add(way as usize), (&raw mut (*set).ways).cast::<Remembered>().add(way as usize))
        };
        Some(Place { tag, remembered, digests, is_taken })
    }
}

/// Writes the walked stack into its place.
///
/// # Safety
/// The place must be one that the caller has claimed.
#[inline(always)]
unsafe fn write(s: &Scratch, place: &Place, id: u64) {
    let remembered = place.remembered;
    // SAFETY: by the caller's promise.
    let version = unsafe { version_of(&*remembered) };
    // SAFETY: as above.
    unsafe { set_version(remembered, version | 1) };
    let mut pair = Pair::of(s, place);
    // Whole groups of eight, as `compare` reads them.
    let pairs = ((s.slot_count + 7) & !7) / 2;
    // SAFETY: the callback has the signature that bpf_loop calls, and the context outlives it.
    unsafe { generated::bpf_loop(pairs, write_words as *mut c_void, (&raw mut pair).cast(), 0) };
    // SAFETY: as above.
    unsafe {
        (*remembered).slot_count = s.slot_count as u16;
        (*remembered).span = s.span;
        (*remembered).family = s.family;
        (*remembered).fp = s.start_fp;
        (*remembered).fp_used = s.fp_used as u16;
        (*remembered).words = pair.words.hash();
        (*remembered).id = id;
        set_version(remembered, (version | 1) + 1);
    }
}

/// A walked stack, and a place of another with which it is compared, or to which it is written.
///
/// Words go through `bpf_loop`, which is slower than a loop in the program, but does not make the
/// verifier follow each way of leaving it to the program's end.
struct Pair {
    s: *const Scratch,
    remembered: *mut Remembered,
    digests: *mut Digests,
    words: Words,
    first_difference: u64,
}

impl Pair {
    #[inline(always)]
    fn of(s: &Scratch, place: &Place) -> Pair {
        let &Place { remembered, digests, .. } = place;
        Pair { s, remembered, digests, words: Words::NONE, first_difference: 0 }
    }
}

/// Offset, in words, of the first word in which the walked stack differs from the one in `place`; 0
/// if none is found, or if it is of another family.
#[inline(always)]
fn first_difference(s: &Scratch, place: &Place) -> u32 {
    // SAFETY: a map value; torn reads are harmless.
    let other = unsafe { &*place.remembered };
    if !is_kin(other, s) {
        return 0;
    }
    let words = s.slot_count.min(other.slot_count as u32);
    let mut pair = Pair::of(s, place);
    // SAFETY: the callback has the signature that bpf_loop calls, and the context outlives it.
    unsafe { generated::bpf_loop(words, compare_word as *mut c_void, (&raw mut pair).cast(), 0) };
    pair.first_difference as u32
}

unsafe extern "C" fn write_words(i: u64, pair: *mut Pair) -> u64 {
    // SAFETY: `write` passes a pair whose place it has claimed.
    let pair = unsafe { &mut *pair };
    let even = write_word(pair, i * 2);
    let odd = write_word(pair, i * 2 + 1);
    pair.words = pair.words.and(even, odd);
    0
}

#[inline(always)]
fn write_word(pair: &Pair, i: u64) -> u64 {
    // SAFETY: `write_words` has the pair from `write`.
    let (s, remembered, digests) = unsafe { (&*pair.s, &mut *pair.remembered, &mut *pair.digests) };
    // Slots behind the last one repeat it.
    let from = i.min((s.slot_count as u64).wrapping_sub(1));
    let offset = element::<0xff, _, _>(&s.slot_offset_by_8, from);
    let word = element::<0xff, _, _>(&s.slot_value, from);
    set_element::<0xff, _, _>(&mut remembered.slot_offset_by_8, i, offset);
    set_element::<0xff, _, _>(digests, i, digest(word));
    word
}

unsafe extern "C" fn compare_word(i: u64, pair: *mut Pair) -> u64 {
    // SAFETY: `first_difference` passes a pair; torn reads are harmless.
    let (s, other, digests) = unsafe { (&*(*pair).s, &*(*pair).remembered, &*(*pair).digests) };
    let offset = element::<0xff, _, _>(&s.slot_offset_by_8, i);
    if offset != element::<0xff, _, _>(&other.slot_offset_by_8, i) {
        return 1;
    }
    let word = element::<0xff, _, _>(&s.slot_value, i);
    if digest(word) == element::<0xff, _, _>(digests, i) {
        return 0;
    }
    // SAFETY: as above.
    unsafe { (*pair).first_difference = offset as u64 };
    1
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
