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
//!   free+3   0f 84 bf 00 00 00  je    free+200      emulated; rdi and rsp as on entry
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
//! A call that takes back NULL takes nothing back. So where that is what the first branch asks, the
//! probe goes to the next one behind it, which such calls do not reach (programs free NULL often: one
//! time in ten in git). There `rsp` may be lower than on entry, by what the site says.
//!
//! ```text
//!   free+9   55                 push  rbp           emulated, but writes to memory: 0.15 µs more
//!     …
//!   free+35  75 5b              jne   free+128      the site
//! ```
//!
//! A function that gives memory needs a probe of its return besides, which costs as much as two, or
//! none of both but probes inside: see [`midway`].

use iced_x86::{
    Code, ConditionCode, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory,
    Mnemonic, OpAccess, OpKind, Register,
};
use memtrace_common::call::Argument;

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
    /// The argument with the block, of a function that only takes one back and whose return is not
    /// probed.
    pub released: Option<Argument>,
}

impl Need {
    /// Whether an instruction writes to one of the arguments.
    fn is_lost_in(self, instruction: &Instruction) -> bool {
        let is_argument = |register: Register| {
            let mut arguments = ARGUMENTS.iter().enumerate();
            arguments.any(|(i, &argument)| argument == register && self.arguments >> i & 1 == 1)
        };
        writes_to(instruction, is_argument)
    }
}

/// Where a probe goes, and what a hit costs there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// Bytes from the function's first instruction; always the start of an instruction.
    pub delta: u64,
    /// How much lower `rsp` is there, in bytes, where that does not follow from what else is known.
    pub depth: u16,
    /// What a hit costs.
    pub cost: ProbeCost,
}

impl Site {
    const STEPPED_ENTRY: Site = Site { delta: 0, depth: 0, cost: ProbeCost::Stepped };

    /// A place at an instruction that the kernel emulates.
    pub(super) fn emulated(delta: u64) -> Site {
        Site { delta, depth: 0, cost: ProbeCost::Emulated }
    }
}

/// Chooses the site of a probe in the function whose whole code is `code`, loaded at `ip`.
///
/// `ip` may be any address space, as long as the function's own jumps are relative: only
/// differences count. Code that does not decode, or that jumps where `code` does not show, has its
/// site at the entry.
pub(super) fn place(code: &[u8], ip: u64, need: Need) -> Site {
    let Some(first) = first_emulated(code, ip, need) else {
        return Site::STEPPED_ENTRY;
    };
    if let Some(site) = behind_test_for_null(code, ip, need, first)
        && !may_jump_into(code, ip, site.delta)
    {
        return site;
    }
    if first != 0 && may_jump_into(code, ip, first) {
        return Site::STEPPED_ENTRY;
    }
    Site::emulated(first)
}

/// Offset of the first emulated instruction that is reached with everything `need` intact.
fn first_emulated(code: &[u8], ip: u64, need: Need) -> Option<u64> {
    let mut decoder = Decoder::with_ip(64, code, ip, DecoderOptions::NONE);
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
        if instruction.flow_control() != FlowControl::Next
            || need.is_lost_in(&instruction)
            || writes_to(&instruction, |register| register == Register::RSP)
        {
            return None;
        }
    }
    None
}

/// The next branch behind the one at `first`, if that leaves where a block that is taken back is NULL.
fn behind_test_for_null(code: &[u8], ip: u64, need: Need, first: u64) -> Option<Site> {
    let block = ARGUMENTS[usize::from(need.released?.number())];
    let mut decoder = Decoder::with_ip(64, code, ip, DecoderOptions::NONE);
    let mut before = Instruction::default();
    let mut depth = 0i64;
    while decoder.can_decode() {
        let start = decoder.position();
        let at = u64::try_from(start).ok()?;
        let instruction = decoder.decode();
        let flow = instruction.flow_control();
        if at == first {
            let is_test = before.code() == Code::Test_rm64_r64
                && [before.op0_register(), before.op1_register()] == [block; 2];
            if !is_test || instruction.condition_code() != ConditionCode::e {
                return None;
            }
        } else if at > first {
            let branches =
                matches!(flow, FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch);
            if branches && is_emulated(code.get(start..decoder.position())?) {
                let depth = u16::try_from(depth).ok()?;
                return Some(Site { depth, ..Site::emulated(at) });
            }
            if flow != FlowControl::Next || need.is_lost_in(&instruction) {
                return None;
            }
            depth += match stack_change(&instruction) {
                Some(change) => change,
                None if writes_to(&instruction, |register| register == Register::RSP) => {
                    return None;
                }
                None => 0,
            };
        }
        before = instruction;
    }
    None
}

/// Whether an instruction writes to a register, or a part of it, that `is_wanted`.
fn writes_to(instruction: &Instruction, is_wanted: impl Fn(Register) -> bool) -> bool {
    let mut info = InstructionInfoFactory::new();
    let used = info.info(instruction);
    used.used_registers()
        .iter()
        .any(|used| writes(used.access()) && is_wanted(used.register().full_register()))
}

/// How much lower the stack pointer is behind `push`, `sub rsp, n` and `add rsp, n`.
fn stack_change(instruction: &Instruction) -> Option<i64> {
    if instruction.code() == Code::Push_r64 {
        return Some(8);
    }
    if instruction.op_count() != 2
        || instruction.op0_kind() != OpKind::Register
        || instruction.op0_register() != Register::RSP
    {
        return None;
    }
    let amount = i64::from(instruction.try_immediate(1).ok()? as i32);
    match instruction.mnemonic() {
        Mnemonic::Sub => Some(amount),
        Mnemonic::Add => Some(-amount),
        _ => None,
    }
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
