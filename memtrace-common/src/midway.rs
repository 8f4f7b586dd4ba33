//! Probes inside a function that gives memory, where it has the block and still knows its size.
//!
//! One of them does what a probe at the entry and another at the return do together, and no return
//! address is replaced. Where a path loses the size before the block is there, a probe before that
//! notes it.
//!
//! ```text
//!   malloc(size)  …  mov rbx, rdi  …  call _int_malloc    Note: the size is in rsi
//!                                     test rax, rax
//!                                     je   no_memory      Known unless ZF: the block is in rax
//!                 …  test al, 15
//!                    jne  corrupted                       Known unless ZF … and the size in rbx
//! ```
//!
//! A function that gives a block for another, such as `realloc`, has a probe where it takes the old one,
//! and another where it knows whether there is a new one.
//!
//! ```text
//!   realloc(block, size)  …  test rbx, rbx
//!                            je   malloc            NULL is left to malloc's probes
//!                         …  jne  mapped            Retire: the block is in rbx, the size in rbp
//!                         …  test rax, rax
//!                            je   no_memory         Replaced unless ZF: the new one is in rax
//! ```
//!
//! The daemon finds such places (`live::placement::midway`) and makes [`Cookie`]s of them.
//!
//! ```text
//!   bit       0      8      12        16      24     28      32       40      48      56
//!   | Api 8   | size 4 | block 4 | flags 8 | when 4 | action 4 | caller 8 | rbp 8 | set 8 |
//! ```
//!
//! Several functions may leave the search to one, the *core*, in which a place serves all of them,
//! its *fronts*. The return address tells which of them has called it.
//!
//! ```text
//!   malloc(size)       ─┐
//!                       ├─> _int_malloc(arena, size)  …  jne  perturb     Core: the block is in rcx
//!   calloc(n, size)    ─┘                                                 and the size in r12
//! ```

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A general register except `rsp`, by its place in the kernel's `pt_regs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "they are called what they are")]
pub enum Register {
    R15,
    R14,
    R13,
    R12,
    Rbp,
    Rbx,
    R11,
    R10,
    R9,
    R8,
    Rax,
    Rcx,
    Rdx,
    Rsi,
    Rdi,
}

/// Stands for no register.
pub const NO_REGISTER: u32 = 15;

/// Stands for the register itself, where a word of the stack could be meant.
pub const IN_REGISTER: u32 = 0xff;

/// How many words of the stack a probe may refer to: from `rsp` on, in a core from its return address
/// on.
pub const STACK_WORDS: usize = 16;

/// The most fronts that a core may have: `malloc` and `calloc`.
pub const MAX_FRONTS: usize = 2;

/// How many sets of fronts the kernel keeps, by the number in a [`Cookie`].
pub const FRONT_SETS: u32 = 256;

/// A function that leaves the search for memory to a core, seen from a place in that.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Front {
    /// Where it begins: so many bytes behind the place, less than none if in front of it.
    pub from_place: i32,
    /// How long it is, in bytes; 0 if there is no such front.
    pub length: u32,
    /// As what its blocks are counted: an [`Api`](crate::event::Api).
    pub api: u8,
    /// Where its return address is: so many words above the core's, less than [`STACK_WORDS`].
    pub caller_word: u8,
    /// Where its caller's `rbp` is, likewise.
    pub rbp_word: u8,
    /// 0.
    pub unused: u8,
}

/// The fronts of a core, seen from one place.
pub type Fronts = [Front; MAX_FRONTS];

/// On which way out of a conditional jump the block is known, by the flags before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct When {
    /// Bits of `rflags`, of the lowest eight.
    pub flags: u8,
    /// Whether one of them is set.
    pub any_set: bool,
}

impl When {
    /// Either way.
    pub const ALWAYS: When = When { flags: 0, any_set: false };
    /// Neither way.
    pub const NEVER: When = When { flags: 0, any_set: true };

    /// In all other cases.
    pub const fn not(self) -> When {
        When { any_set: !self.any_set, ..self }
    }
}

/// What a probe inside a function does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Midway {
    /// Notes the size, until the block is there.
    Note {
        /// Where it is.
        size: Register,
        /// As [`Midway::Known`] has it.
        caller_word: u8,
    },
    /// The block is there.
    Known {
        /// Where the size is; `None` if it was noted.
        size: Option<Register>,
        /// Where the block's address is.
        block: Register,
        /// Whether it is, or the function goes on to look for one.
        when: When,
        /// Where the function's return address is: so many words above `rsp`, less than
        /// [`STACK_WORDS`].
        caller_word: u8,
        /// Where the caller's `rbp` is, likewise; `None` if still in `rbp`.
        rbp_word: Option<u8>,
    },
    /// A block is taken, for which there may be another.
    Retire {
        /// Where the size is that is asked for.
        size: Register,
        /// Where the block's address is, which is not NULL.
        block: Register,
        /// Where the function's return address is: so many words above `rsp`, less than
        /// [`STACK_WORDS`].
        caller_word: u8,
    },
    /// There is another, or the one that was taken stays.
    Replaced {
        /// Where the new block's address is; NULL if the old one stays.
        block: Register,
        /// Whether it is.
        when: When,
        /// Whether the old one stays otherwise; else that is not known yet.
        or_stays: bool,
        /// As [`Midway::Known`] has it.
        caller_word: u8,
        /// Likewise.
        rbp_word: Option<u8>,
    },
    /// The block is there, in a core.
    Core {
        /// Where the size is.
        size: Register,
        /// Where the block's address is.
        block: Register,
        /// Whether it is.
        when: When,
        /// Where the core's return address is: so many words above `rsp`.
        caller_word: u8,
        /// Who may have called it; other calls do not count.
        fronts: Fronts,
    },
}

impl Midway {
    /// Who may have called a core.
    pub const fn fronts(&self) -> Option<&Fronts> {
        match self {
            Midway::Core { fronts, .. } => Some(fronts),
            Midway::Note { .. }
            | Midway::Known { .. }
            | Midway::Retire { .. }
            | Midway::Replaced { .. } => None,
        }
    }

    /// What the kernel is told of it; never 0. The blocks are counted as those of `api`; a core has
    /// the number of its fronts there. `set` is that of the process's probes.
    pub const fn cookie(self, api: u8, set: u8) -> u64 {
        let cookie = match self {
            Midway::Note { size, caller_word } => {
                in_common(action::NOTE, size as u32, Register::Rax, When::ALWAYS, caller_word)
            }
            Midway::Known { size, block, when, caller_word, rbp_word } => {
                let size = match size {
                    Some(register) => register as u32,
                    None => NO_REGISTER,
                };
                in_common(action::KNOWN, size, block, when, caller_word) | rbp(rbp_word)
            }
            Midway::Retire { size, block, caller_word } => {
                in_common(action::RETIRE, size as u32, block, When::ALWAYS, caller_word)
            }
            Midway::Replaced { block, when, or_stays, caller_word, rbp_word } => {
                let action = if or_stays { action::REPLACED_OR_NOT } else { action::REPLACED };
                in_common(action, NO_REGISTER, block, when, caller_word) | rbp(rbp_word)
            }
            Midway::Core { size, block, when, caller_word, fronts: _ } => {
                in_common(action::CORE, size as u32, block, when, caller_word)
            }
        };
        cookie | INSIDE | (set as u64) << SET | api as u64
    }
}

/// What cookies have in common.
const fn in_common(action: u32, size: u32, block: Register, when: When, caller_word: u8) -> u64 {
    (size as u64) << SIZE
        | (block as u64) << BLOCK
        | (when.flags as u64) << FLAGS
        | (when.any_set as u64) << ANY_SET
        | (action as u64) << ACTION
        | (caller_word as u64) << CALLER
}

const fn rbp(word: Option<u8>) -> u64 {
    let word = match word {
        Some(word) => word as u32,
        None => IN_REGISTER,
    };
    (word as u64) << RBP
}

const SIZE: u32 = 8;
const BLOCK: u32 = 12;
const FLAGS: u32 = 16;
const ANY_SET: u32 = 24;
const ACTION: u32 = 28;
const CALLER: u32 = 32;
const RBP: u32 = 40;
const SET: u32 = 48;

/// Set in these cookies, and in those of whole calls not ([`crate::call`]).
const INSIDE: u64 = 1 << 63;

/// What [`Cookie::action`] gives.
pub mod action {
    /// [`super::Midway::Note`].
    pub const NOTE: u32 = 1;
    /// [`super::Midway::Known`].
    pub const KNOWN: u32 = 2;
    /// [`super::Midway::Core`].
    pub const CORE: u32 = 3;
    /// [`super::Midway::Retire`].
    pub const RETIRE: u32 = 4;
    /// [`super::Midway::Replaced`].
    pub const REPLACED: u32 = 5;
    /// [`super::Midway::Replaced`], or the old block stays.
    pub const REPLACED_OR_NOT: u32 = 6;
}

/// An attach cookie, as the kernel reads it.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Cookie(pub u64);

impl Cookie {
    /// Whether it is one, or that of a whole call ([`crate::call::Cookie`]).
    #[inline(always)]
    pub fn is_inside(self) -> bool {
        self.0 & INSIDE != 0
    }

    /// An [`Api`](crate::event::Api).
    #[inline(always)]
    pub fn api(self) -> u8 {
        self.0 as u8
    }

    /// The number of a core's fronts.
    #[inline(always)]
    pub fn fronts(self) -> u32 {
        self.0 as u32 & (FRONT_SETS - 1)
    }

    /// The register that holds the size, or [`NO_REGISTER`].
    #[inline(always)]
    pub fn size(self) -> u32 {
        (self.0 >> SIZE) as u32 & 15
    }

    /// The register that holds the block's address.
    #[inline(always)]
    pub fn block(self) -> u32 {
        (self.0 >> BLOCK) as u32 & 15
    }

    /// Whether the block is known where the flags are these.
    #[inline(always)]
    pub fn holds(self, rflags: u64) -> bool {
        let any_set = rflags & (self.0 >> FLAGS & 0xff) != 0;
        any_set as u64 == self.0 >> ANY_SET & 1
    }

    /// The number of the set of probes that it belongs to; see
    /// [`probe_set`](crate::config::process_flag::probe_set).
    #[inline(always)]
    pub fn set(self) -> u32 {
        (self.0 >> SET) as u32 & 0xff
    }

    /// One of [`action`].
    #[inline(always)]
    pub fn action(self) -> u32 {
        (self.0 >> ACTION) as u32 & 15
    }

    /// Which word of the stack is the return address.
    #[inline(always)]
    pub fn caller_word(self) -> u32 {
        (self.0 >> CALLER) as u32 & 0xff
    }

    /// Which word of the stack is the caller's `rbp`, or [`IN_REGISTER`].
    #[inline(always)]
    pub fn rbp_word(self) -> u32 {
        (self.0 >> RBP) as u32 & 0xff
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Api;

    const ZF: u64 = 1 << 6;

    #[test]
    fn cookie_gives_back_what_went_in() {
        let known = Midway::Known {
            size: Some(Register::Rbx),
            block: Register::Rax,
            when: When { flags: ZF as u8, any_set: false },
            caller_word: 5,
            rbp_word: Some(3),
        };

        let cookie = Cookie(known.cookie(Api::Malloc as u8, 0));

        assert_eq!((cookie.api(), cookie.action()), (Api::Malloc as u8, action::KNOWN));
        assert_eq!((cookie.size(), cookie.block()), (Register::Rbx as u32, Register::Rax as u32));
        assert_eq!((cookie.caller_word(), cookie.rbp_word()), (5, 3));
        assert!(cookie.holds(0x202) && !cookie.holds(0x202 | ZF));
    }

    #[test]
    fn what_is_not_there_is_told_from_the_first_register_and_word() {
        let known = Midway::Known {
            size: None,
            block: Register::R15,
            when: When::ALWAYS,
            caller_word: 0,
            rbp_word: None,
        };

        let cookie = Cookie(known.cookie(Api::New as u8, 0));

        assert_eq!((cookie.size(), cookie.block()), (NO_REGISTER, 0));
        assert_eq!((cookie.caller_word(), cookie.rbp_word()), (0, IN_REGISTER));
        assert!(cookie.holds(0) && cookie.holds(u64::MAX));
    }

    #[test]
    fn note_says_where_the_size_is() {
        let note = Midway::Note { size: Register::Rsi, caller_word: 4 };
        let cookie = Cookie(note.cookie(Api::Malloc as u8, 0));

        assert_eq!((cookie.action(), cookie.size()), (action::NOTE, Register::Rsi as u32));
        assert_eq!(cookie.caller_word(), 4);
    }

    #[test]
    fn core_has_the_number_of_its_fronts() {
        let core = Midway::Core {
            size: Register::R12,
            block: Register::Rcx,
            when: When { flags: ZF as u8, any_set: true },
            caller_word: 11,
            fronts: Fronts::default(),
        };

        let cookie = Cookie(core.cookie(201, 7));

        assert_eq!((cookie.fronts(), cookie.action(), cookie.set()), (201, action::CORE, 7));
        assert_eq!((cookie.size(), cookie.block()), (Register::R12 as u32, Register::Rcx as u32));
        assert_eq!(cookie.caller_word(), 11);
        assert!(cookie.holds(ZF) && !cookie.holds(0));
    }

    #[test]
    fn exchange_says_where_both_blocks_are() {
        let (block, caller_word) = (Register::R12, 11);
        let retire = Midway::Retire { size: Register::Rbp, block, caller_word };
        let when = When { flags: ZF as u8, any_set: false };
        let replaced =
            |or_stays| Midway::Replaced { block, when, or_stays, caller_word, rbp_word: Some(6) };

        let [retire, replaced, or_not] = [retire, replaced(false), replaced(true)]
            .map(|midway| Cookie(midway.cookie(Api::Realloc as u8, 3)));

        assert_eq!((retire.action(), retire.size()), (action::RETIRE, Register::Rbp as u32));
        assert_eq!((replaced.action(), replaced.rbp_word()), (action::REPLACED, 6));
        assert_eq!((or_not.action(), or_not.rbp_word()), (action::REPLACED_OR_NOT, 6));
        assert!(replaced.holds(0) && !replaced.holds(ZF));
        for cookie in [retire, replaced, or_not] {
            assert_eq!((cookie.block(), cookie.caller_word()), (Register::R12 as u32, 11));
            assert_eq!((cookie.api(), cookie.set()), (Api::Realloc as u8, 3));
        }
    }

    #[test]
    fn never_and_always_do_not_look_at_the_flags() {
        let holds = |when| {
            let block = Register::Rax;
            let (or_stays, caller_word, rbp_word) = (true, 0, None);
            let replaced = Midway::Replaced { block, when, or_stays, caller_word, rbp_word };
            [0, ZF, u64::MAX].map(|flags| Cookie(replaced.cookie(0, 0)).holds(flags))
        };

        assert_eq!(holds(When::ALWAYS), [true; 3]);
        assert_eq!(holds(When::NEVER), [false; 3]);
    }

    #[test]
    fn cookie_of_a_place_is_told_from_that_of_a_call() {
        let note =
            Midway::Note { size: Register::Rsi, caller_word: 0 }.cookie(Api::Malloc as u8, 0);

        assert!(Cookie(note).is_inside());
        assert!(!Cookie(crate::call::Call::Ignore.cookie_at(u16::MAX)).is_inside());
    }

    #[test]
    fn flags_that_must_be_set_hold_with_any_of_them() {
        let known = Midway::Known {
            size: None,
            block: Register::Rax,
            when: When { flags: 0b100_0001, any_set: true },
            caller_word: 0,
            rbp_word: None,
        };
        let cookie = Cookie(known.cookie(Api::Malloc as u8, 0));

        let held = [0, 1, ZF, 1 | ZF, 2].map(|flags| cookie.holds(flags));

        assert_eq!(held, [false, true, true, true, false]);
    }
}
