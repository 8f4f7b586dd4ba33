//! The keys under which walked stacks are remembered.
//!
//! All stacks of one process, `sp` and `pc` are a family. A thousand call paths may lead to the same
//! `malloc` at the same depth, so a family is a tree: whenever two stacks would be kept under one
//! key, that key becomes a fork, at the first word in which they differ, and the word becomes part
//! of the key.
//!
//! ```text
//!   (process, sp, pc) ─> family {span} ─copy─> fork at word 6 ─> fork at word 31 ─> key
//! ```
//!
//! All stacks below a fork have what is in front of its word in common, and so the same frames: for
//! each of them the word is one that its walk depended on. A stack that comes there with other
//! frames shows that the fork is wrong, which is then forgotten and made anew, nearer to the top of
//! the stack.
//!
//! Forks are read and written by many at a time without a claim: a torn one gives a wrong key, which
//! costs a walk.

use memtrace_common::config::{FORK_SETS, FORK_WAYS, MAX_FORKS_OF_A_STACK};

use crate::bounds::{element, set_element};
use crate::maps::{FORKS, ForkSet, SCRATCH};
use crate::remember::mix;
use crate::sets::{any, position, set_index};

/// A fork that was found, or a family, which is one as soon as it has two members.
pub struct Fork {
    set: *mut ForkSet,
    way: u64,
}

impl Fork {
    /// The fork at `key`.
    #[inline(always)]
    pub fn find(key: u64) -> Option<Fork> {
        let set = set_of(key)?;
        // SAFETY: a map value; torn reads are harmless.
        let way = position::<WAYS, _>(unsafe { &(*set).tags }, key);
        if way < WAYS { Some(Fork { set, way }) } else { None }
    }

    /// The fork at `key`, made in the place of another if there was none.
    #[inline(always)]
    fn make(key: u64) -> Option<Fork> {
        if let Some(fork) = Fork::find(key) {
            return Some(fork);
        }
        let fork = Fork { set: set_of(key)?, way: any::<WAYS>() };
        fork.set_telling(0);
        // SAFETY: a map value; torn writes are harmless.
        unsafe {
            set_element::<3, _, _>(&mut (*fork.set).span, fork.way, 0);
            set_element::<3, _, _>(&mut (*fork.set).tags, fork.way, key);
        }
        Some(fork)
    }

    /// How many bytes from `sp` cover all slots of all members of a family.
    #[inline(always)]
    pub fn span(&self) -> u32 {
        // SAFETY: a map value; torn reads are harmless.
        unsafe { element::<3, _, _>(&(*self.set).span, self.way) }
    }

    /// Offset from `sp`, in words, of the word that the way goes on with; 0 if it ends here.
    #[inline(always)]
    pub fn telling(&self) -> u32 {
        // SAFETY: a map value; torn reads are harmless.
        unsafe { element::<3, _, _>(&(*self.set).telling, self.way) }
    }

    #[inline(always)]
    fn set_telling(&self, telling: u32) {
        // SAFETY: a map value; torn writes are harmless.
        unsafe { set_element::<3, _, _>(&mut (*self.set).telling, self.way, telling) }
    }
}

/// Notes that a stack of the family reaches `span` bytes from `sp`.
#[inline(always)]
pub fn reach(family: u64, span: u32) {
    let Some(family) = Fork::make(family) else { return };
    // SAFETY: a map value; torn writes are harmless.
    unsafe {
        let span = family.span().max(span);
        set_element::<3, _, _>(&mut (*family.set).span, family.way, span);
    }
}

/// Notes that stacks which are kept under `key` differ first in the word at `telling`.
#[inline(always)]
pub fn part(key: u64, telling: u32) {
    if let Some(fork) = Fork::make(key) {
        fork.set_telling(telling);
    }
}

/// [`key_of`] a stack that was walked, so that it is known on which of its words that depended; 0 of
/// another.
pub const WALKED: u64 = 1;

/// What the stack in the scratch at `index` is kept under: where its words lead from fork to fork.
///
/// A global function, for the verifier's sake; see [`crate::unwind::capture_stack`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn key_of(index: u64, walked: u64) -> u64 {
    let Some(scratch) = SCRATCH.get_ptr(index as u32) else { return 0 };
    // SAFETY: claimed by the caller.
    let s = unsafe { &*scratch };
    let mut key = s.family;
    for _ in 0..MAX_FORKS_OF_A_STACK {
        let Some(fork) = Fork::find(key) else { break };
        let telling = fork.telling() as u64;
        if telling == 0 || telling * 8 + 8 > s.copied {
            break;
        }
        // Without a branch on `walked`: the verifier would follow both to the end.
        let last_walk = element::<0x1fff, _, _>(&s.last_walk, telling * walked);
        if (last_walk ^ s.walk) as u64 * walked != 0 {
            // The next stack of those below that is walked finds where this one leaves them.
            fork.set_telling(0);
            break;
        }
        key = mix(key ^ s.word(telling));
    }
    key
}

/// How many forks a set holds.
const WAYS: u64 = FORK_WAYS as u64;

/// The set that a key falls to.
#[inline(always)]
fn set_of(key: u64) -> Option<*mut ForkSet> {
    FORKS.get_ptr_mut(set_index::<FORK_SETS>(key))
}
