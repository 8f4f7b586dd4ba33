//! Where in a function a probe costs least.
//!
//! In: the code of one function and which argument registers the probe reads. Out: the [`Site`].
//! Pure: bytes in, an offset out. It opens nothing and knows nothing of ELF files.
//!
//! The kernel *emulates* a few instructions under a uprobe and single-steps all others out of
//! line, which costs fourteen times as much on a virtual machine (9.2 µs to 0.65 µs). So the
//! probe goes to the first emulated instruction at which the call still looks as it did on entry:
//!
//! ```text
//!   free+0   48 85 ff           test  rdi, rdi      single-stepped
//!   free+3   0f 84 bf 00 00 00  je    free+200      emulated: the site; rdi and rsp as on entry
//!   free+9   55                 push  rbp
//! ```
//!
//! A site must be passed exactly once by each call, so it must hold that
//! - only instructions that fall through stand before it;
//! - none of them writes an argument register, or `rsp`, which must still point at the return
//!   address (a return probe is set at the same offset, and replaces the word at `rsp`);
//! - no jump of the function goes to an address in `(entry, site]`.
//!
//! Every relative branch is itself emulated, so the walk never has to decide which way one goes.
//! If there is no such site, the probe goes to the entry, stepped.
//!
//! A function that gives memory needs a probe of its return besides, which costs as much as two, or
//! none of both but probes inside: see [`midway`].

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, OpAccess,
    OpKind, Register,
};

use crate::record::ProbeCost;

pub(super) mod midway;
#[cfg(test)]
mod tests;

/// Functions longer than this are not searched for jumps, and get their probe at the entry.
const MAX_CODE_BYTES: usize = 1 << 20;

/// The registers of the first integer arguments (System V ABI), in order.
const ARGUMENTS: [Register; 6] =
    [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];

/// What a probe reads at its site, apart from the return address at `rsp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Need {
    /// Which of the function's arguments: bit 0 is `rdi`, then `rsi, rdx, rcx, r8, r9`.
    pub arguments: u8,
}

impl Need {
    fn is_needed(self, register: Register) -> bool {
        let mut arguments = ARGUMENTS.iter().enumerate();
        register == Register::RSP
            || arguments.any(|(i, &argument)| argument == register && self.arguments >> i & 1 == 1)
    }
}

/// Where a probe goes, and what a hit costs there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// Bytes from the function's first instruction; always the start of an instruction.
    pub delta: u64,
    /// What a hit costs.
    pub cost: ProbeCost,
}

impl Site {
    const STEPPED_ENTRY: Site = Site { delta: 0, cost: ProbeCost::Stepped };

    /// A place at an instruction that the kernel emulates.
    pub(super) fn emulated(delta: u64) -> Site {
        Site { delta, cost: ProbeCost::Emulated }
    }
}

/// Chooses the site of a probe in the function whose whole code is `code`, loaded at `ip`.
///
/// `ip` may be any address space, as long as the function's own jumps are relative: only
/// differences count. Code that does not decode, or that jumps where `code` does not show, has its
/// site at the entry.
pub(super) fn place(code: &[u8], ip: u64, need: Need) -> Site {
    let Some(delta) = first_emulated(code, ip, need) else {
        return Site::STEPPED_ENTRY;
    };
    if delta != 0 && may_jump_into(code, ip, delta) {
        return Site::STEPPED_ENTRY;
    }
    Site::emulated(delta)
}

/// Offset of the first emulated instruction that is reached with everything `need` intact.
fn first_emulated(code: &[u8], ip: u64, need: Need) -> Option<u64> {
    let mut decoder = Decoder::with_ip(64, code, ip, DecoderOptions::NONE);
    let mut info = InstructionInfoFactory::new();
    let mut instruction = Instruction::default();
    while decoder.can_decode() {
        let start = decoder.position();
        decoder.decode_out(&mut instruction);
        if instruction.is_invalid() {
            return None;
        }
        if is_emulated(code.get(start..decoder.position())?) {
            return u64::try_from(start).ok();
        }
        if instruction.flow_control() != FlowControl::Next {
            return None;
        }
        let clobbers =
            info.info(&instruction).used_registers().iter().any(|used| {
                writes(used.access()) && need.is_needed(used.register().full_register())
            });
        if clobbers {
            return None;
        }
    }
    None
}

/// Whether an instruction may change what it uses in this way.
fn writes(access: OpAccess) -> bool {
    match access {
        OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite => {
            true
        }
        OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess => false,
    }
}

/// Whether every kernel that memtrace supports emulates this instruction under a uprobe.
///
/// From `branch_setup_xol_ops` and `push_setup_xol_ops` in `arch/x86/kernel/uprobes.c` of 6.1.
/// Later kernels emulate more, which is left out here because it is stepped, or worse, on 6.1:
/// `0f 1f` is emulated from 6.16 on, and a probe on `66 90` was refused before 6.2. A prefix is
/// never accepted: the kernel refuses probes on `2e`, `3e` (branch hints) and `66` branches, and
/// takes `41 90`, which is `xchg r8, rax`, for a `nop`.
fn is_emulated(instruction: &[u8]) -> bool {
    matches!(
        instruction,
        [0x50..=0x57]                      // push r64
            | [0x41, 0x50..=0x57]          // push r8..r15
            | [0x90]                       // nop
            | [0xe8 | 0xe9, _, _, _, _]    // call, jmp rel32
            | [0xeb | 0x70..=0x7f, _]      // jmp, jcc rel8
            | [0x0f, 0x80..=0x8f, _, _, _, _] // jcc rel32
    )
}

/// Whether a jump in `code` goes, or may go, to an address in `(ip, ip + delta]`.
///
/// A jump through a register may be a jump table's, so it may go anywhere. A jump through a fixed
/// memory word (`jmp [rip + x]`) is a tail call through the GOT.
fn may_jump_into(code: &[u8], ip: u64, delta: u64) -> bool {
    if code.len() > MAX_CODE_BYTES {
        return true;
    }
    let mut decoder = Decoder::with_ip(64, code, ip, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        if instruction.is_invalid() {
            return true;
        }
        match instruction.flow_control() {
            FlowControl::UnconditionalBranch
            | FlowControl::ConditionalBranch
            | FlowControl::Call
            | FlowControl::XbeginXabortXend => {
                let Some(target) = branch_target(&instruction) else { continue };
                let from_entry = target.wrapping_sub(ip);
                if from_entry != 0 && from_entry <= delta {
                    return true;
                }
            }
            FlowControl::IndirectBranch => {
                if !instruction.is_ip_rel_memory_operand() {
                    return true;
                }
            }
            FlowControl::Next
            | FlowControl::Return
            | FlowControl::IndirectCall
            | FlowControl::Interrupt
            | FlowControl::Exception => {}
        }
    }
    false
}

/// Whether the function whose whole code is `code` may return or go on elsewhere; one that ends the
/// program does neither, but for calls.
pub(super) fn may_return(code: &[u8]) -> bool {
    code.len() > MAX_CODE_BYTES
        || Decoder::with_ip(64, code, 0, DecoderOptions::NONE).iter().any(|instruction| {
            match instruction.flow_control() {
                FlowControl::Return | FlowControl::IndirectBranch => true,
                FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch => {
                    branch_target(&instruction).is_none_or(|to| to >= code.len() as u64)
                }
                _ => instruction.is_invalid(),
            }
        })
}

/// Where a relative branch goes; `None` for `syscall` and the like, which iced counts as calls.
pub(super) fn branch_target(instruction: &Instruction) -> Option<u64> {
    if instruction.code() == Code::INVALID || instruction.op_count() == 0 {
        return None;
    }
    match instruction.op0_kind() {
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
            Some(instruction.near_branch_target())
        }
        _ => None,
    }
}
