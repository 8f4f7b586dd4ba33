//! One step up the stack.
//!
//! [`step`] takes the unwind row that covers the program counter, the registers of a frame and a
//! way to read the stack, and gives the registers of the caller. It does no I/O: the kernel
//! program reads from its copy of the stack, the unit tests from an array.
//!
//! A [`Row`] is 8 bytes, compiled from `.eh_frame` in userspace:
//!
//! ```text
//!   0        4            6          7            8
//!   | pc u32 | cfa i16    | kind u8  | rbp/8 i8   |
//! ```
//!
//! `pc` is relative to the start of the module's text; a row holds until the next one. With the
//! canonical frame address (CFA, DWARF 5 section 6.4) of a row, the caller's registers are
//!
//! ```text
//!   (pc, sp, fp) = (*(cfa - 8), cfa, *(cfa + 8 * rbp))
//! ```
//!
//! It does not find rows, does not know modules, and does not decide what a stack is worth.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The registers of one frame: all that x86-64 unwinding needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Regs {
    /// Program counter (AVMA). A return address, unless `kind` says otherwise.
    pub pc: u64,
    /// Stack pointer (AVMA).
    pub sp: u64,
    /// The frame pointer register, `rbp`; holds anything in code built without frame pointers.
    pub fp: u64,
    /// How `pc` came about.
    pub pc_kind: PcKind,
}

/// How the program counter of a frame came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum PcKind {
    /// Pushed by a call: it points behind the call, perhaps behind the whole function.
    ReturnAddress = 0,
    /// The instruction about to run: the interrupted one, of a signal frame or a probe.
    Exact = 1,
}

impl Regs {
    /// The address to look up: inside the call instruction for a return address.
    ///
    /// The only place that knows the return-address − 1 rule.
    #[inline(always)]
    pub fn lookup_pc(&self) -> u64 {
        match self.pc_kind {
            PcKind::ReturnAddress => self.pc.wrapping_sub(1),
            PcKind::Exact => self.pc,
        }
    }
}

/// One line of the unwind table. See the module's picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Row {
    /// First program counter it covers, in bytes from the module's table base.
    pub pc: u32,
    /// Offset of the CFA in bytes from what `cfa_kind` names.
    pub cfa_offset: i16,
    /// How to compute the CFA: one of the [`cfa`] constants.
    pub cfa_kind: u8,
    /// Where the caller's `rbp` is, in words from the CFA; [`RBP_SAME`] if it was not saved.
    /// [`cfa::DEREF_RBP`] counts from `rbp` itself.
    pub rbp_offset_by_8: i8,
}

const _: () = assert!(size_of::<Row>() == 8);

impl Row {
    /// No unwind information: what lies between functions, and code that has no table.
    pub const NONE: Row =
        Row { pc: 0, cfa_offset: 0, cfa_kind: cfa::NONE, rbp_offset_by_8: RBP_SAME };

    /// Its eight bytes as one number.
    #[inline(always)]
    pub fn to_bits(self) -> u64 {
        zerocopy::transmute!(self)
    }

    /// The row whose eight bytes are `bits`.
    #[inline(always)]
    pub fn from_bits(bits: u64) -> Row {
        zerocopy::transmute!(bits)
    }
}

/// `rbp` still holds the caller's value.
pub const RBP_SAME: i8 = 0;

/// Values of [`Row::cfa_kind`].
pub mod cfa {
    /// No row: code without unwind information. Try the frame pointer.
    pub const NONE: u8 = 0;
    /// `CFA = rsp + cfa_offset`.
    pub const RSP: u8 = 1;
    /// `CFA = rbp + cfa_offset`.
    pub const RBP: u8 = 2;
    /// `CFA = rsp + 8 + 8 * ((pc & 15) >= cfa_offset)`: a lazily bound PLT stub.
    pub const PLT: u8 = 3;
    /// A signal frame: the registers stand in the `ucontext` at `rsp + cfa_offset`.
    pub const SIGNAL: u8 = 4;
    /// The return address is undefined: the root of the thread.
    pub const ROOT: u8 = 5;
    /// `CFA = *(rbp + cfa_offset)`: a function that realigned its stack (GCC's DRAP).
    ///
    /// The distance between `rbp` and the CFA is known at run time only, so the caller's `rbp` is
    /// at `rbp + 8 * rbp_offset_by_8`; it is always saved.
    pub const DEREF_RBP: u8 = 6;
    /// `CFA = *(rsp + cfa_offset)`, as in hand-written assembly that saved the stack pointer.
    pub const DEREF_RSP: u8 = 7;
    /// The rule does not fit into a row.
    pub const UNSUPPORTED: u8 = 8;
    /// This bit marks a frame of 32 KiB or more:
    /// `CFA = rsp + (cfa_kind & 0x7f) << 16 + (cfa_offset as u16)`, up to 8 MiB.
    ///
    /// Buffers on the stack are that large: Debian 12's redis-server has frames of 512 KiB and 1 MiB.
    pub const RSP_LARGE: u8 = 0x80;
}

/// Where in `ucontext_t` the kernel stores a register for a signal handler.
///
/// `uc_mcontext` starts at byte 40 (`arch/x86/include/uapi/asm/sigcontext.h`): r8 to r15, rdi,
/// rsi, rbp, rbx, rdx, rax, rcx, rsp, rip.
pub mod ucontext {
    /// `rbp`.
    pub const RBP: u64 = 40 + 10 * 8;
    /// `rsp`.
    pub const RSP: u64 = 40 + 15 * 8;
    /// `rip`.
    pub const RIP: u64 = 40 + 16 * 8;
}

/// Why a walk ended. [`End::Root`] is the only complete one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum End {
    /// The outermost frame of the thread.
    Root = 0,
    /// More frames than [`crate::config::MAX_FRAMES`].
    FrameLimit = 1,
    /// The program counter is in no mapping that memtrace knows.
    UnknownCode = 2,
    /// No unwind row, and the frame pointer leads nowhere.
    NoUnwindInfo = 3,
    /// A rule that does not fit into a row.
    UnsupportedRule = 4,
    /// A stack word could not be read.
    UnreadableStack = 5,
    /// The caller's frame is not above the callee's.
    NotAscending = 6,
    /// No scratch memory in the kernel, so no walk.
    NoScratch = 7,
    /// The frames were lost on the way to the daemon, or found no room there.
    Missing = 8,
}

impl End {
    /// Every reason.
    pub const ALL: &[End] = &[
        End::Root,
        End::FrameLimit,
        End::UnknownCode,
        End::NoUnwindInfo,
        End::UnsupportedRule,
        End::UnreadableStack,
        End::NotAscending,
        End::NoScratch,
        End::Missing,
    ];

    /// The reason with this number on the wire.
    pub fn from_wire(value: u16) -> Option<End> {
        End::ALL.get(usize::from(value)).copied()
    }

    /// The name under which reports count it.
    pub fn name(self) -> &'static str {
        match self {
            End::Root => "root",
            End::FrameLimit => "frame_limit",
            End::UnknownCode => "unknown_code",
            End::NoUnwindInfo => "no_unwind_info",
            End::UnsupportedRule => "unsupported_rule",
            End::UnreadableStack => "unreadable_stack",
            End::NotAscending => "not_ascending",
            End::NoScratch => "no_scratch",
            End::Missing => "missing",
        }
    }
}

/// The caller of a frame, or why there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The caller's registers, and where its `rbp` was read from, if it was.
    Caller {
        /// The caller's registers.
        regs: Regs,
        /// Stack address of the return address that `regs.pc` was read from.
        pc_slot: u64,
        /// Stack address that `regs.fp` was read from; 0 if `rbp` was not saved.
        fp_slot: u64,
    },
    /// The walk is over.
    End(End),
}

/// Computes the caller of the frame `regs`, whose program counter `row` covers.
///
/// `read_stack` reads the 8 bytes at an AVMA; `None` ends the walk as [`End::UnreadableStack`].
/// A program counter of 0 is the thread's root too: `_start` and `clone` push none, or zero.
#[inline(always)]
pub fn step(row: Row, regs: Regs, mut read_stack: impl FnMut(u64) -> Option<u64>) -> Step {
    let offset = row.cfa_offset as i64 as u64;
    let cfa = match row.cfa_kind {
        cfa::RSP => regs.sp.wrapping_add(offset),
        cfa::RBP => regs.fp.wrapping_add(offset),
        cfa::PLT => {
            let pushed = if (regs.pc & 15) >= offset { 8 } else { 0 };
            regs.sp.wrapping_add(8 + pushed)
        }
        cfa::DEREF_RBP => match read_stack(regs.fp.wrapping_add(offset)) {
            Some(cfa) => cfa,
            None => return Step::End(End::UnreadableStack),
        },
        cfa::DEREF_RSP => match read_stack(regs.sp.wrapping_add(offset)) {
            Some(cfa) => cfa,
            None => return Step::End(End::UnreadableStack),
        },
        cfa::SIGNAL => return step_signal(regs.sp.wrapping_add(offset), read_stack),
        cfa::ROOT => return Step::End(End::Root),
        cfa::NONE => return step_frame_pointer(regs, read_stack),
        kind if kind & cfa::RSP_LARGE != 0 => {
            let high = u64::from(kind & !cfa::RSP_LARGE) << 16;
            regs.sp.wrapping_add(high | u64::from(row.cfa_offset as u16))
        }
        _ => return Step::End(End::UnsupportedRule),
    };
    if cfa <= regs.sp {
        return Step::End(End::NotAscending);
    }
    let pc_slot = cfa.wrapping_sub(8);
    let Some(pc) = read_stack(pc_slot) else {
        return Step::End(End::UnreadableStack);
    };
    if pc == 0 {
        return Step::End(End::Root);
    }
    let counts_from = if row.cfa_kind == cfa::DEREF_RBP { regs.fp } else { cfa };
    let (fp, fp_slot) = if row.cfa_kind != cfa::DEREF_RBP && row.rbp_offset_by_8 == RBP_SAME {
        (regs.fp, 0)
    } else {
        let slot = counts_from.wrapping_add((row.rbp_offset_by_8 as i64 * 8) as u64);
        match read_stack(slot) {
            Some(fp) => (fp, slot),
            None => return Step::End(End::UnreadableStack),
        }
    };
    Step::Caller {
        regs: Regs { pc, sp: cfa, fp, pc_kind: PcKind::ReturnAddress },
        pc_slot,
        fp_slot,
    }
}

/// `(pc, sp, fp) = (*(fp + 8), fp + 16, *fp)`, for code without unwind information.
///
/// A null `rbp` marks the outermost frame (x86-64 psABI, section 3.4.1). The start code of glibc's
/// `ld.so`, from which all constructors are called, has no unwind information and runs with that.
#[inline(always)]
fn step_frame_pointer(regs: Regs, mut read_stack: impl FnMut(u64) -> Option<u64>) -> Step {
    if regs.fp == 0 {
        return Step::End(End::Root);
    }
    if regs.fp < regs.sp || regs.fp & 7 != 0 {
        return Step::End(End::NoUnwindInfo);
    }
    let pc_slot = regs.fp.wrapping_add(8);
    let (Some(pc), Some(fp)) = (read_stack(pc_slot), read_stack(regs.fp)) else {
        return Step::End(End::NoUnwindInfo);
    };
    if pc == 0 {
        return Step::End(End::Root);
    }
    Step::Caller {
        regs: Regs { pc, sp: regs.fp.wrapping_add(16), fp, pc_kind: PcKind::ReturnAddress },
        pc_slot,
        fp_slot: regs.fp,
    }
}

/// The interrupted frame, from the `ucontext_t` at `context`.
///
/// A handler may run on its own stack (`sigaltstack`), so the caller need not be above.
#[inline(always)]
fn step_signal(context: u64, mut read_stack: impl FnMut(u64) -> Option<u64>) -> Step {
    let pc_slot = context.wrapping_add(ucontext::RIP);
    let fp_slot = context.wrapping_add(ucontext::RBP);
    let (Some(pc), Some(sp), Some(fp)) =
        (read_stack(pc_slot), read_stack(context.wrapping_add(ucontext::RSP)), read_stack(fp_slot))
    else {
        return Step::End(End::UnreadableStack);
    };
    if pc == 0 {
        return Step::End(End::Root);
    }
    Step::Caller { regs: Regs { pc, sp, fp, pc_kind: PcKind::Exact }, pc_slot, fp_slot }
}

#[cfg(test)]
mod tests;
