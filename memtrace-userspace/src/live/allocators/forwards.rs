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
//! When in doubt a function does not only forward, and is probed: a release that is then seen twice
//! is seen twice before the memory is gone, so that the second one finds no block and changes
//! nothing, while a release that is not seen would look like a leak.

use std::cell::{Cell, OnceCell};
use std::collections::{HashMap, HashSet};

use iced_x86::{
    Code, ConditionCode, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory,
    OpAccess, Register,
};
use memtrace_common::addr::Svma;
use object::ReadRef;

use super::elf::{Elf, Slot};
use super::names::Name;
use super::{Role, Target, names};
use crate::live::placement::branch_target;

/// The most instructions that are followed for one function; real forwarders have about ten.
const MAX_STEPS: usize = 4096;

/// The most functions that are followed in a row; mimalloc's deletes need two.
const MAX_DEPTH: usize = 4;

/// The addresses of those `candidates` that only forward to others of them, or through the GOT.
pub(super) fn find<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    candidates: &[(Name, Target)],
) -> HashSet<Svma> {
    // Few files define operators or the like, and only for those the relocations are read.
    if !candidates.iter().any(|(name, _)| name.may_forward()) {
        return HashSet::new();
    }
    let resolver = Resolver {
        elf,
        roles: candidates.iter().map(|(_, target)| (target.svma, target.role)).collect(),
        slots: elf.slots(),
        sizes: OnceCell::new(),
        steps: Cell::new(0),
    };
    candidates
        .iter()
        .filter(|(name, Target { svma, size, role, .. })| {
            resolver.steps.set(MAX_STEPS);
            let function = Function { entry: *svma, size: *size, role: *role, depth: MAX_DEPTH };
            name.may_forward() && resolver.only_forwards(function)
        })
        .map(|(_, target)| target.svma)
        .collect()
}

/// Knows what is probed in a file.
struct Resolver<'elf, 'data, R: ReadRef<'data>> {
    elf: &'elf Elf<'data, R>,
    roles: HashMap<Svma, Role>,
    slots: HashMap<Svma, Slot<'data>>,
    sizes: OnceCell<HashMap<Svma, u64>>,
    /// Instructions that may still be followed for the present candidate.
    steps: Cell<usize>,
}

/// How a function leaves.
#[derive(Clone, Copy)]
enum Exit {
    Return,
    Jump(Destination),
    Call(Destination),
}

/// Where a call or a jump leads.
#[derive(Clone, Copy)]
enum Destination {
    /// To this address.
    To(Svma),
    /// To the address that is in this word.
    Through(Svma),
    /// To a register's value.
    Unknown,
}

/// The function that a call or a jump reaches, behind the PLT.
enum Callee<'data> {
    Here(Svma),
    Elsewhere(&'data str),
    Unknown,
}

impl<'data, R: ReadRef<'data>> Resolver<'_, 'data, R> {
    /// Whether the function does nothing but call others of its own role that are probed.
    fn only_forwards(&self, function: Function) -> bool {
        let mut walk = Walk::new(self.elf.code(function.entry, function.size), function);
        let mut forwarded = false;
        while let Some((position, pointer)) = walk.pending.pop() {
            if !walk.seen.insert((position, pointer)) {
                continue;
            }
            let Some(steps) = self.steps.get().checked_sub(1) else { return false };
            self.steps.set(steps);
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
                let tests_null = walk.function.role == Role::Release && pointer == Pointer::Tested;
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
            FlowControl::IndirectBranch => self.leave(walk, Exit::Jump(indirect(&instruction))),
            FlowControl::Return => self.leave(walk, Exit::Return),
            FlowControl::Call | FlowControl::IndirectCall => {
                let to = branch_target(&instruction)
                    .map_or_else(|| indirect(&instruction), |to| Destination::To(Svma(to)));
                match self.leave(walk, Exit::Call(to)) {
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
        self.leave(walk, Exit::Jump(Destination::To(Svma(to))))
    }

    fn leave(&self, walk: &Walk<'_>, exit: Exit) -> Followed {
        let (Exit::Jump(destination) | Exit::Call(destination)) = exit else {
            return Followed::Escaped;
        };
        let is_covered = match self.callee(destination) {
            Callee::Here(entry) if entry == walk.function.entry => false,
            Callee::Here(entry) => {
                self.roles.get(&entry) == Some(&walk.function.role)
                    || matches!(exit, Exit::Jump(_)) && self.also_forwards(walk.function, entry)
            }
            // Whichever file defines it, a function of this name is probed there.
            Callee::Elsewhere(name) => {
                names::classify(name).is_some_and(|name| name.role() == walk.function.role)
            }
            Callee::Unknown => false,
        };
        if is_covered { Followed::Covered } else { Followed::Escaped }
    }

    /// Whether the function at `entry`, in which `from` ends, does nothing but forward either.
    ///
    /// mimalloc 2.0: `operator delete` jumps to `mi_free_size`, which jumps to `mi_free`.
    fn also_forwards(&self, from: Function, entry: Svma) -> bool {
        let Some(depth) = from.depth.checked_sub(1) else { return false };
        let sizes = self.sizes.get_or_init(|| {
            self.elf.defined_symbols().map(|symbol| (symbol.svma, symbol.size)).collect()
        });
        let Some(&size) = sizes.get(&entry) else { return false };
        self.only_forwards(Function { entry, size, depth, role: from.role })
    }

    fn callee(&self, destination: Destination) -> Callee<'data> {
        let word = match destination {
            Destination::To(entry) => match self.elf.plt_slot(entry) {
                Some(word) => word,
                None => return Callee::Here(entry),
            },
            Destination::Through(word) => word,
            Destination::Unknown => return Callee::Unknown,
        };
        match self.slots.get(&word) {
            Some(Slot::Defined(entry)) => Callee::Here(*entry),
            Some(Slot::Imported(name)) => Callee::Elsewhere(name),
            None => Callee::Unknown,
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
fn indirect(instruction: &Instruction) -> Destination {
    if instruction.is_ip_rel_memory_operand() {
        Destination::Through(Svma(instruction.ip_rel_memory_address()))
    } else {
        Destination::Unknown
    }
}

/// A function to walk over.
#[derive(Clone, Copy)]
struct Function {
    entry: Svma,
    size: u64,
    role: Role,
    /// How many functions behind it may be followed.
    depth: usize,
}

/// The state of a walk over one function. Positions are SVMAs.
struct Walk<'data> {
    function: Function,
    decoder: Decoder<'data>,
    pending: Vec<(u64, Pointer)>,
    seen: HashSet<(u64, Pointer)>,
}

impl<'data> Walk<'data> {
    fn new(code: &'data [u8], function: Function) -> Walk<'data> {
        let entry = function.entry.0;
        Walk {
            function,
            decoder: Decoder::with_ip(64, code, entry, DecoderOptions::NONE),
            pending: vec![(entry, Pointer::InRdi)],
            seen: HashSet::new(),
        }
    }

    fn contains(&self, position: u64) -> bool {
        position.wrapping_sub(self.function.entry.0) < self.function.size
    }

    /// The instruction at `position`, or `None` if it does not decode.
    fn decode(&mut self, position: u64) -> Option<Instruction> {
        let from_entry = position.wrapping_sub(self.function.entry.0);
        self.decoder.set_position(usize::try_from(from_entry).ok()?).ok()?;
        self.decoder.set_ip(position);
        let instruction = self.decoder.decode();
        (!instruction.is_invalid()).then_some(instruction)
    }
}
