//! How a probed function gives or takes memory: what the attach cookie of its probes says.
//!
//! ```text
//!   bit       0      8      12      16      20       24       27          32      48
//!   | Api 8   | size 4 | times 4 | block 4 | result 4 | action 3 | alignment 4 | depth 16 |
//!
//!   calloc(n, s)             Acquire, size 1, times 2         result 0: the returned value
//!   realloc(p, s)            Acquire, size 2, block 1
//!   posix_memalign(o, a, s)  Acquire, size 3, alignment 2     result 1: the word at `o`
//!   mallocx(s, f)            Acquire, size 1, alignment 8 + 2: in the low bits of `f`
//!   valloc(s)                Acquire, size 1, alignment 7: a page
//!   xallocx(p, s, e, f)      Resize,  size 2, block 1         result 3: the most it may add
//!   free(p)                  Release, block 1
//! ```
//!
//! An argument is written as its number + 1, so that 0 is none. The daemon makes cookies from
//! [`Call`]s; the kernel reads fields of them and never makes a `Call`.

use crate::event::Api;

/// An integer argument in a register, by the System V calling convention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Argument(u8);

impl Argument {
    /// How many there are: `rdi`, `rsi`, `rdx`, `rcx`, `r8`, `r9`.
    pub const COUNT: u8 = 6;

    /// The argument with this number, counted from 0; `None` if it is on the stack.
    pub const fn new(number: u8) -> Option<Argument> {
        if number < Argument::COUNT { Some(Argument(number)) } else { None }
    }

    /// Its number, counted from 0.
    pub const fn number(self) -> u8 {
        self.0
    }

    const fn field(self) -> u32 {
        self.0 as u32 + 1
    }
}

/// Where a call leaves the address of the memory that it gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Given {
    /// It returns it; NULL if it failed.
    Returned,
    /// In the word that this argument points to, and it returns an `int` that is 0 if all went well.
    Through(Argument),
    /// Where the block was: it returns how large that is now, less than asked for if it failed, and
    /// may have added up to this argument to what was asked for.
    InPlace(Argument),
}

/// Where a call says to what its block is to be aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Aligned {
    /// In this argument, in bytes.
    Bytes(Argument),
    /// In the low six bits of this argument, as a power of two; 0 asks for none.
    LowBits(Argument),
    /// Nowhere: to a page.
    ToPage,
}

impl Aligned {
    const fn field(self) -> u32 {
        match self {
            Aligned::Bytes(argument) => argument.field(),
            Aligned::LowBits(argument) => alignment::LOW_BITS | argument.field(),
            Aligned::ToPage => alignment::PAGE,
        }
    }

    const fn argument(self) -> Option<Argument> {
        match self {
            Aligned::Bytes(argument) | Aligned::LowBits(argument) => Some(argument),
            Aligned::ToPage => None,
        }
    }
}

/// What a probed function does with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// It gives a block of `size`, or `size` × `times`, bytes.
    Acquire {
        /// As what it is counted.
        api: Api,
        /// How many bytes.
        size: Argument,
        /// How many times as many.
        times: Option<Argument>,
        /// The block that it takes back for it, as `realloc` does.
        block: Option<Argument>,
        /// Where its address is.
        given: Given,
        /// To what it is aligned, if that is asked for.
        alignment: Option<Aligned>,
    },
    /// It takes a block back.
    Release {
        /// As what it is counted.
        api: Api,
        /// The block.
        block: Argument,
    },
    /// Neither, and what it does inside through other functions does not count.
    Ignore,
}

impl Call {
    /// As what its blocks are counted, if it has any.
    pub const fn api(self) -> Option<Api> {
        match self {
            Call::Acquire { api, .. } | Call::Release { api, .. } => Some(api),
            Call::Ignore => None,
        }
    }

    /// Whether it gives memory.
    pub const fn acquires(self) -> bool {
        matches!(self, Call::Acquire { .. })
    }

    /// The arguments that are read at its entry, as bits by their number.
    pub const fn arguments(self) -> u8 {
        match self {
            Call::Acquire { api: _, size, times, block, given, alignment } => {
                let alignment = match alignment {
                    Some(alignment) => bit(alignment.argument()),
                    None => 0,
                };
                let given = match given {
                    Given::Returned => 0,
                    Given::Through(argument) | Given::InPlace(argument) => bit(Some(argument)),
                };
                bit(Some(size)) | bit(times) | bit(block) | given | alignment
            }
            Call::Release { api: _, block } => bit(Some(block)),
            Call::Ignore => 0,
        }
    }

    /// What the kernel is told of it where `rsp` is `depth` bytes lower than at the entry; never 0.
    pub const fn cookie_at(self, depth: u16) -> u64 {
        self.cookie() | (depth as u64) << DEPTH
    }

    /// What the kernel is told of it; never 0.
    pub const fn cookie(self) -> u64 {
        let cookie = match self {
            Call::Acquire { api, size, times, block, given, alignment } => {
                let alignment = match alignment {
                    Some(alignment) => alignment.field(),
                    None => 0,
                };
                let (given, action) = match given {
                    Given::Returned => (0, action::ACQUIRE),
                    Given::Through(argument) => (argument.field(), action::ACQUIRE),
                    Given::InPlace(extra) => (extra.field(), action::RESIZE),
                };
                api as u32
                    | size.field() << SIZE
                    | field(times) << TIMES
                    | field(block) << BLOCK
                    | given << GIVEN
                    | action << ACTION
                    | alignment << ALIGNMENT
            }
            Call::Release { api, block } => {
                api as u32 | block.field() << BLOCK | action::RELEASE << ACTION
            }
            Call::Ignore => action::IGNORE << ACTION,
        };
        cookie as u64
    }
}

const fn bit(argument: Option<Argument>) -> u8 {
    match argument {
        Some(Argument(number)) => 1 << number,
        None => 0,
    }
}

const fn field(argument: Option<Argument>) -> u32 {
    match argument {
        Some(argument) => argument.field(),
        None => 0,
    }
}

const SIZE: u32 = 8;
const TIMES: u32 = 12;
const BLOCK: u32 = 16;
const GIVEN: u32 = 20;
const ACTION: u32 = 24;
const ALIGNMENT: u32 = 27;
const DEPTH: u32 = 32;

/// What [`Cookie::action`] gives.
pub mod action {
    /// [`super::Call::Acquire`], unless it is [`RESIZE`].
    pub const ACQUIRE: u32 = 1;
    /// [`super::Call::Release`].
    pub const RELEASE: u32 = 2;
    /// [`super::Call::Ignore`].
    pub const IGNORE: u32 = 3;
    /// [`super::Call::Acquire`] that is [`super::Given::InPlace`].
    pub const RESIZE: u32 = 4;
}

/// What [`Cookie::alignment`] gives, beside the number of an argument.
pub mod alignment {
    /// No argument: to a page.
    pub const PAGE: u32 = 7;
    /// Beside the number of an argument: it has the alignment in its low bits.
    pub const LOW_BITS: u32 = 8;
}

/// How much lower `rsp` is, in bytes, than at the function's entry, by the whole attach cookie.
#[inline(always)]
pub fn depth(cookie: u64) -> u64 {
    cookie >> DEPTH & 0xffff
}

/// The lower half of an attach cookie, as the kernel reads it. Its arguments are numbers + 1, or 0
/// for none.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Cookie(pub u32);

impl Cookie {
    /// An [`Api`], or 0.
    #[inline(always)]
    pub fn api(self) -> u8 {
        self.0 as u8
    }

    /// The argument that holds the size.
    #[inline(always)]
    pub fn size(self) -> u32 {
        self.0 >> SIZE & 15
    }

    /// The argument that the size is multiplied with.
    #[inline(always)]
    pub fn times(self) -> u32 {
        self.0 >> TIMES & 15
    }

    /// The argument that points to the block that is taken back.
    #[inline(always)]
    pub fn block(self) -> u32 {
        self.0 >> BLOCK & 15
    }

    /// The argument that points to where the address of the memory goes; of a resize, the one that
    /// says how much may be added.
    #[inline(always)]
    pub fn given(self) -> u32 {
        self.0 >> GIVEN & 15
    }

    /// One of [`action`].
    #[inline(always)]
    pub fn action(self) -> u32 {
        self.0 >> ACTION & 7
    }

    /// Where the alignment is: an argument or one of [`alignment`], or 0.
    #[inline(always)]
    pub fn alignment(self) -> u32 {
        self.0 >> ALIGNMENT & 15
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn argument(number: u8) -> Argument {
        Argument::new(number).unwrap()
    }

    #[test]
    fn cookie_gives_back_what_went_in() {
        let call = Call::Acquire {
            api: Api::Reallocarray,
            size: argument(1),
            times: Some(argument(5)),
            block: Some(argument(0)),
            given: Given::Through(argument(3)),
            alignment: Some(Aligned::LowBits(argument(4))),
        };

        let cookie = Cookie(call.cookie() as u32);

        let fields = [cookie.size(), cookie.times(), cookie.block(), cookie.given()];
        assert_eq!(fields, [2, 6, 1, 4]);
        assert_eq!((cookie.api(), cookie.action()), (Api::Reallocarray as u8, action::ACQUIRE));
        assert_eq!(cookie.alignment(), alignment::LOW_BITS | 5);
        assert_eq!(call.arguments(), 0b111011);
    }

    #[test]
    fn cookie_of_a_resize_says_what_may_be_added() {
        let call = Call::Acquire {
            api: Api::Realloc,
            size: argument(1),
            times: None,
            block: Some(argument(0)),
            given: Given::InPlace(argument(2)),
            alignment: None,
        };

        let cookie = Cookie(call.cookie() as u32);

        assert_eq!((cookie.action(), cookie.given()), (action::RESIZE, 3));
        assert_eq!(call.arguments(), 0b111);
    }

    #[test]
    fn cookie_of_any_call_is_not_zero() {
        assert_eq!(Call::Ignore.cookie(), u64::from(action::IGNORE << ACTION));
        let release = Call::Release { api: Api::Free, block: argument(0) };
        assert_eq!(Cookie(release.cookie() as u32).action(), action::RELEASE);
    }

    #[test]
    fn arguments_on_the_stack_are_none() {
        assert_eq!(Argument::new(5).map(Argument::number), Some(5));
        assert_eq!(Argument::new(6), None);
    }
}
