//! Whether a function does nothing but call another one that is probed.
//!
//! A function *only forwards* if every way from its entry to a return leads through a call of, or
//! a jump to, a function that is probed or itself forwards. Calls are followed through the PLT and
//! the GOT by decoding the stub and asking the relocations what its slot will hold.
//!
//! ```text
//!   _ZdlPv   jmp free@plt                           only forwards
//!   _Znwm    mov rdi, rbx; call malloc@plt; …       only forwards
//!   _ZdlPvm  test rdi, rdi; je ret; jmp free@plt    only forwards: NULL releases nothing
//!   _Znwm    cmp rdi, 4096; ja slow; … ret          jemalloc's fast path returns by itself
//! ```
//!
//! When in doubt a function does not only forward, and is probed.

use std::collections::{HashMap, HashSet};

use iced_x86::{
    Code, ConditionCode, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory,
    OpAccess, Register,
};
use memtrace_common::addr::Svma;

use super::elf::{Elf, Slot};
use super::names::Name;
use super::{Role, Target, names};
use crate::live::placement::branch_target;

/// The most instructions of one function that are followed; real forwarders have about ten.
const MAX_STEPS: usize = 4096;

/// The longest PLT stub: `endbr64; bnd jmp [rip + x]`, padded.
const PLT_STUB_BYTES: u64 = 16;

/// The addresses of those `candidates` that only forward to others of them, or through the GOT.
pub(super) fn find(elf: &Elf<'_>, candidates: &[(Name, Target)]) -> HashSet<Svma> {
    // Few files define operators or the like, and only for those the relocations are read.
    if !candidates.iter().any(|(name, _)| name.may_forward()) {
        return HashSet::new();
    }
    let roles = candidates.iter().map(|(_, target)| (target.svma, target.role)).collect();
    let resolver = Resolver { elf, roles, slots: elf.slots() };
    candidates
        .iter()
        .filter(|(name, target)| name.may_forward() && resolver.only_forwards(target))
        .map(|(_, target)| target.svma)
        .collect()
}

/// Knows what is probed in a file, by address and by name.
struct Resolver<'elf, 'data> {
    elf: &'elf Elf<'data>,
    roles: HashMap<Svma, Role>,
    slots: HashMap<Svma, Slot<'data>>,
}

/// What a function leaves for.
enum Exit {
    /// A return.
    Return,
    /// A function at this address.
    Function(Svma),
    /// The function whose address is in this word.
    Through(Svma),
    /// A register's value, or something that does not decode.
    Unknown,
}

impl<'data> Resolver<'_, 'data> {
    /// Whether `target` does nothing but call functions of its own role that are probed.
    fn only_forwards(&self, target: &Target) -> bool {
        let code = self.elf.code(target.svma, target.size);
        let mut walk = Walk::new(code, target);
        let mut forwarded = false;
        while let Some((position, pointer)) = walk.pending.pop() {
            if walk.seen.len() > MAX_STEPS {
                return false;
            }
            if !walk.seen.insert((position, pointer)) {
                continue;
            }
            match self.follow(&mut walk, position, pointer) {
                Followed::Inside => {}
                Followed::Covered => forwarded = true,
                Followed::Escaped => return false,
            }
        }
        forwarded
    }

    /// Decodes one instruction, and notes where it leads inside the function.
    fn follow(&self, walk: &mut Walk<'data>, position: u64, pointer: Pointer) -> Followed {
        if !walk.contains(position) {
            // Behind a call that does not return, such as of `abort`.
            return Followed::Inside;
        }
        let Some(instruction) = walk.decode(position) else { return Followed::Escaped };
        let next = instruction.next_ip();
        let pointer_after = pointer.after(&instruction);
        match instruction.flow_control() {
            FlowControl::Next => {
                walk.pending.push((next, pointer_after));
                Followed::Inside
            }
            FlowControl::ConditionalBranch => {
                // A NULL releases nothing, so the way that only a NULL takes does not count.
                let tests_null = walk.role == Role::Release && pointer == Pointer::Tested;
                let condition = instruction.condition_code();
                if !(tests_null && condition == ConditionCode::ne) {
                    walk.pending.push((next, pointer_after));
                }
                match branch_target(&instruction) {
                    Some(_) if tests_null && condition == ConditionCode::e => Followed::Inside,
                    Some(to) => self.jump(walk, to, pointer_after),
                    None => Followed::Escaped,
                }
            }
            FlowControl::UnconditionalBranch => match branch_target(&instruction) {
                Some(to) => self.jump(walk, to, pointer_after),
                None => Followed::Escaped,
            },
            FlowControl::IndirectBranch => self.leave(walk, indirect(&instruction)),
            FlowControl::Return => self.leave(walk, Exit::Return),
            FlowControl::Call | FlowControl::IndirectCall => {
                let exit = branch_target(&instruction)
                    .map_or_else(|| indirect(&instruction), |to| Exit::Function(Svma(to)));
                match self.leave(walk, exit) {
                    Followed::Covered => Followed::Covered,
                    Followed::Inside | Followed::Escaped => {
                        walk.pending.push((next, Pointer::Gone));
                        Followed::Inside
                    }
                }
            }
            FlowControl::Interrupt | FlowControl::Exception => Followed::Inside,
            FlowControl::XbeginXabortXend => Followed::Escaped,
        }
    }

    fn jump(&self, walk: &mut Walk<'data>, to: u64, pointer: Pointer) -> Followed {
        if walk.contains(to) {
            walk.pending.push((to, pointer));
            return Followed::Inside;
        }
        self.leave(walk, Exit::Function(Svma(to)))
    }

    fn leave(&self, walk: &Walk<'_>, exit: Exit) -> Followed {
        let covered = match exit {
            Exit::Return | Exit::Unknown => false,
            Exit::Through(word) => self.is_probed_slot(walk, word),
            Exit::Function(to) => {
                self.is_probed(walk, to)
                    || self.plt_slot(to).is_some_and(|word| self.is_probed_slot(walk, word))
            }
        };
        if covered { Followed::Covered } else { Followed::Escaped }
    }

    /// Whether at `to` there is another function of the same role that is probed or forwards.
    fn is_probed(&self, walk: &Walk<'_>, to: Svma) -> bool {
        to.0 != walk.entry && self.roles.get(&to) == Some(&walk.role)
    }

    fn is_probed_slot(&self, walk: &Walk<'_>, word: Svma) -> bool {
        match self.slots.get(&word) {
            // Whichever file defines it, a function of this name is probed there.
            Some(Slot::Symbol(name)) => {
                *name != walk.symbol
                    && names::classify(name).is_some_and(|name| name.role() == walk.role)
            }
            Some(Slot::Address(to)) => self.is_probed(walk, *to),
            None => false,
        }
    }

    /// The word through which the PLT stub at `stub` jumps, if there is a stub.
    fn plt_slot(&self, stub: Svma) -> Option<Svma> {
        let code = self.elf.code(stub, PLT_STUB_BYTES);
        let mut decoder = Decoder::with_ip(64, code, stub.0, DecoderOptions::NONE);
        let mut instruction = decoder.decode();
        if instruction.code() == Code::Endbr64 {
            instruction = decoder.decode();
        }
        match (instruction.flow_control(), indirect(&instruction)) {
            (FlowControl::IndirectBranch, Exit::Through(word)) => Some(word),
            _ => None,
        }
    }
}

enum Followed {
    /// The way goes on inside the function, or ends without a return.
    Inside,
    /// The way leads through a probed function.
    Covered,
    /// The way leaves the function without one.
    Escaped,
}

/// What is known of the first argument, the pointer that a release is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Pointer {
    /// `rdi` still holds it.
    InRdi,
    /// The flags tell whether it is NULL: `test rdi, rdi` has just run.
    Tested,
    /// `rdi` may hold anything.
    Gone,
}

impl Pointer {
    fn after(self, instruction: &Instruction) -> Pointer {
        if self == Pointer::Gone {
            return Pointer::Gone;
        }
        let is_test = instruction.code() == Code::Test_rm64_r64
            && instruction.op0_register() == Register::RDI
            && instruction.op1_register() == Register::RDI;
        if is_test {
            return Pointer::Tested;
        }
        let mut info = InstructionInfoFactory::new();
        let writes_rdi = info.info(instruction).used_registers().iter().any(|used| {
            used.register().full_register() == Register::RDI && used.access() != OpAccess::Read
        });
        if writes_rdi { Pointer::Gone } else { Pointer::InRdi }
    }
}

/// The target of an indirect call or jump.
fn indirect(instruction: &Instruction) -> Exit {
    if instruction.is_ip_rel_memory_operand() {
        Exit::Through(Svma(instruction.ip_rel_memory_address()))
    } else {
        Exit::Unknown
    }
}

/// The state of a walk over one function. Addresses are SVMAs.
struct Walk<'data> {
    symbol: String,
    decoder: Decoder<'data>,
    entry: u64,
    size: u64,
    role: Role,
    pending: Vec<(u64, Pointer)>,
    seen: HashSet<(u64, Pointer)>,
}

impl<'data> Walk<'data> {
    fn new(code: &'data [u8], target: &Target) -> Walk<'data> {
        let entry = target.svma.0;
        Walk {
            symbol: target.symbol.clone(),
            decoder: Decoder::with_ip(64, code, entry, DecoderOptions::NONE),
            entry,
            size: target.size,
            role: target.role,
            pending: vec![(entry, Pointer::InRdi)],
            seen: HashSet::new(),
        }
    }

    fn contains(&self, svma: u64) -> bool {
        svma.wrapping_sub(self.entry) < self.size
    }

    /// The instruction at `svma`, or `None` if it does not decode.
    fn decode(&mut self, svma: u64) -> Option<Instruction> {
        let position = usize::try_from(svma.wrapping_sub(self.entry)).ok()?;
        self.decoder.set_position(position).ok()?;
        self.decoder.set_ip(svma);
        let instruction = self.decoder.decode();
        (!instruction.is_invalid()).then_some(instruction)
    }
}
