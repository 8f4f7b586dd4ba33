//! Where the size that a function was asked for is, and its caller's `rbp`.
//!
//! `calloc`'s size is a product: its factors are followed until they are multiplied.
//!
//! A forward analysis: before each instruction, which registers and which words of the frame hold
//! the one and the other on all paths. Also what a core has returned, and the block that is given in
//! exchange, and whether that is NULL (see [`super`]).

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{Code, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register as Iced};
use memtrace_common::midway::{Register, STACK_WORDS, When};

use super::graph::{Flow, Graph, Node, ZF};
use super::places::{CALLER_SAVED, MAX_FRAME_WORDS, Place, Places, register};
use super::{Function, Size};
use crate::live::placement::{stack_change, writes};

/// What is known of the block that a function is given in exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Given {
    /// It is NULL.
    Null,
    /// It is a block.
    Block,
    /// It may be either.
    Unknown,
}

/// What is known before an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Values {
    /// Bytes from `rsp` to the return address.
    depth: u64,
    /// Bytes from `rbp` to the return address, if that points to the frame.
    frame: Option<u64>,
    size: Places,
    /// What the size is the product of, if it is one.
    factors: [Places; 2],
    rbp: Places,
    /// What the core has returned.
    block: Places,
    /// What is given in exchange.
    given: Places,
    given_is: Given,
    /// Whether the instruction before has tested that for NULL.
    is_tested: bool,
}

impl Values {
    fn on_entry(size_of: Size) -> Values {
        let first = Places::only(Register::Rdi);
        let (size, factors) = match size_of {
            Size::Argument => (first, [Places::NONE; 2]),
            Size::Second | Size::InExchange => (Places::only(Register::Rsi), [Places::NONE; 2]),
            Size::Product => (Places::NONE, [first, Places::only(Register::Rsi)]),
        };
        Values {
            depth: 0,
            frame: None,
            size,
            factors,
            rbp: Places::only(Register::Rbp),
            block: Places::NONE,
            given: if size_of == Size::InExchange { first } else { Places::NONE },
            given_is: Given::Unknown,
            is_tested: false,
        }
    }

    pub(super) fn depth(&self) -> u64 {
        self.depth
    }

    /// A register that holds the size.
    pub(super) fn size_register(&self) -> Option<Register> {
        self.size.register()
    }

    /// A register that holds what is given in exchange.
    pub(super) fn given_register(&self) -> Option<Register> {
        self.given.register()
    }

    /// What is known of that.
    pub(super) fn given_is(&self) -> Given {
        self.given_is
    }

    /// Whether this register holds the size.
    pub(super) fn has_size_in(&self, register: Register) -> bool {
        self.size.has(Place::Register(register))
    }

    /// Whether what the core has returned is there.
    pub(super) fn has_block_in(&self, place: Place) -> bool {
        self.block.has(place)
    }

    /// Which word from `rsp` on is the caller's `rbp`; `Some(None)` if `rbp` still is.
    pub(super) fn rbp_word(&self) -> Option<Option<u8>> {
        if self.rbp.has(Place::Register(Register::Rbp)) {
            return Some(None);
        }
        self.word_with_rbp().map(Some)
    }

    /// Which word from `rsp` on is the caller's `rbp`, wherever else that is.
    pub(super) fn word_with_rbp(&self) -> Option<u8> {
        let words = self.depth / 8;
        let word =
            (1..=words.min(MAX_FRAME_WORDS)).find(|word| self.rbp.has(Place::Word(*word)))?;
        let from_sp = words - word;
        (from_sp < STACK_WORDS as u64).then_some(from_sp as u8)
    }

    /// Whether another function could be entered here as this one was.
    pub(super) fn is_as_on_entry(&self, size: Size) -> bool {
        let entry = Values::on_entry(size);
        self.both(entry) == Some(entry)
    }

    /// Whether one place holds the one factor, and the other the other.
    fn are_factors(&self, a: Place, b: Place) -> bool {
        let [first, second] = self.factors;
        first.has(a) && second.has(b) || first.has(b) && second.has(a)
    }

    /// The register that an instruction leaves the size in, as the product of its factors.
    fn multiplied(&self, instruction: &Instruction) -> Option<Register> {
        let operand = |i| {
            (instruction.op_kind(i) == OpKind::Register)
                .then(|| register(instruction.op_register(i)))
                .flatten()
        };
        let (product, a, b) = match instruction.code() {
            Code::Mul_rm64 => (Register::Rax, Register::Rax, operand(0)?),
            Code::Imul_r64_rm64 => (operand(0)?, operand(0)?, operand(1)?),
            _ => return None,
        };
        self.are_factors(Place::Register(a), Place::Register(b)).then_some(product)
    }

    /// The word of the frame at `rsp + displacement`.
    fn word(&self, displacement: u64) -> Option<Place> {
        let below = self.depth.checked_sub(displacement)?;
        let word = below / 8;
        (below % 8 == 0 && (1..=MAX_FRAME_WORDS).contains(&word)).then_some(Place::Word(word))
    }

    /// How far above `rsp` a word is that lies at this distance from a register; `None` if that does
    /// not point to the frame.
    fn in_frame(&self, base: Iced, displacement: u64) -> Option<u64> {
        match (base, self.frame) {
            (Iced::RSP, _) => Some(displacement),
            (Iced::RBP, Some(frame)) => {
                Some(displacement.wrapping_add(self.depth).wrapping_sub(frame))
            }
            _ => None,
        }
    }

    /// Whether a register points to the frame.
    pub(super) fn points_to_frame(&self, register: Iced) -> bool {
        self.in_frame(register, 0).is_some()
    }

    fn both(self, other: Values) -> Option<Values> {
        (self.depth == other.depth && self.frame == other.frame).then_some(Values {
            depth: self.depth,
            frame: self.frame,
            size: self.size.both(other.size),
            factors: [
                self.factors[0].both(other.factors[0]),
                self.factors[1].both(other.factors[1]),
            ],
            rbp: self.rbp.both(other.rbp),
            block: self.block.both(other.block),
            given: self.given.both(other.given),
            given_is: if self.given_is == other.given_is { self.given_is } else { Given::Unknown },
            is_tested: self.is_tested && other.is_tested,
        })
    }

    /// The places of each value.
    fn all(&mut self) -> [&mut Places; 6] {
        let [first, second] = &mut self.factors;
        [&mut self.size, first, second, &mut self.rbp, &mut self.block, &mut self.given]
    }

    fn forget(&mut self, place: Place) {
        for places in self.all() {
            places.set(place, false);
        }
    }

    fn copy(&mut self, from: Place, to: Place) {
        for places in self.all() {
            places.set(to, places.has(from));
        }
    }

    /// What is known at `next` behind a node, where the way from there leads.
    fn on_way_to(mut self, next: u64, node: &Node) -> Values {
        if let Flow::Fork { next: stay, target, flags: Some(When { flags: ZF, any_set }) } =
            node.flow
            && stay != target
            && self.is_tested
        {
            let is_null = any_set == (next == target);
            self.given_is = if is_null { Given::Null } else { Given::Block };
        }
        self.is_tested = node.tests().is_some_and(|tested| self.given.has(Place::Register(tested)));
        self
    }

    /// What is known behind a node; `None` if it does what is not followed. `core` is where one is.
    pub(super) fn behind(mut self, node: &Node, core: Option<u64>) -> Option<Values> {
        match node.flow {
            Flow::Call { .. } => {
                for register in CALLER_SAVED {
                    self.forget(Place::Register(register));
                }
                if node.calls(core) {
                    self.block.set(Place::Register(Register::Rax), true);
                }
                Some(self)
            }
            Flow::Return if self.depth != 0 => None,
            Flow::Next { .. } => self.step(&node.instruction),
            Flow::Jump { .. }
            | Flow::Fork { .. }
            | Flow::Return
            | Flow::TailCall { .. }
            | Flow::End => Some(self),
        }
    }

    fn step(mut self, instruction: &Instruction) -> Option<Self> {
        if self.gives_away_frame_pointer(instruction) {
            return None;
        }
        match instruction.code() {
            Code::Push_r64 => {
                self.depth += 8;
                let to = self.word(0)?;
                self.copy(Place::Register(register(instruction.op0_register())?), to);
                return Some(self);
            }
            Code::Pop_r64 => return self.popped(register(instruction.op0_register())?),
            Code::Leaveq => {
                self.depth = self.frame?;
                return self.popped(Register::Rbp);
            }
            Code::Lea_r64_m if instruction.op0_register() == Iced::RSP => {
                self.depth = self.frame?.wrapping_sub(instruction.memory_displacement64());
                return (self.depth.is_multiple_of(8)).then_some(self);
            }
            _ if sets_frame_pointer(instruction) => {
                self.forget(Place::Register(Register::Rbp));
                self.frame = Some(self.depth);
                return Some(self);
            }
            _ => {}
        }
        if let Some(change) = stack_change(instruction) {
            self.depth = self.depth.checked_add_signed(change)?;
            return (self.depth.is_multiple_of(8)).then_some(self);
        }
        if let Some((from, to)) = self.moved(instruction) {
            self.copy(from, to);
            if to == Place::Register(Register::Rbp) {
                self.frame = None;
            }
            return Some(self);
        }
        let product = self.multiplied(instruction);
        let mut info = InstructionInfoFactory::new();
        let used = info.info(instruction);
        for used in used.used_registers() {
            let whole = used.register().full_register();
            if writes(used.access()) {
                if whole == Iced::RSP {
                    return None;
                }
                if whole == Iced::RBP {
                    self.frame = None;
                }
                if let Some(register) = register(whole) {
                    self.forget(Place::Register(register));
                }
            }
        }
        for used in used.used_memory() {
            if let Some(first) = self.in_frame(used.base(), used.displacement())
                && writes(used.access())
            {
                if used.index() != Iced::None {
                    return None;
                }
                // It may lie across two words, or be longer than one.
                let last = first.checked_add(used.memory_size().size() as u64)?.checked_sub(1)?;
                for displacement in (first & !7..=last).step_by(8) {
                    if let Some(word) = self.word(displacement) {
                        self.forget(word);
                    }
                }
            }
        }
        if let Some(product) = product {
            self.size.set(Place::Register(product), true);
        }
        Some(self)
    }

    /// What is known behind a `pop` of this register.
    fn popped(mut self, register: Register) -> Option<Self> {
        let from = self.word(0)?;
        self.copy(from, Place::Register(register));
        self.forget(from);
        self.depth -= 8;
        if register == Register::Rbp {
            self.frame = None;
        }
        Some(self)
    }

    /// Whether an instruction copies a frame pointer, so that the frame may be written to in other ways.
    fn gives_away_frame_pointer(&self, instruction: &Instruction) -> bool {
        let is_pointer = |register: Iced| register == Iced::RBP;
        self.frame.is_some()
            && match instruction.mnemonic() {
                Mnemonic::Pop => false,
                Mnemonic::Lea => {
                    is_pointer(instruction.memory_index())
                        || is_pointer(instruction.memory_base())
                            && instruction.op0_register() != Iced::RSP
                }
                _ => {
                    is_pointer(instruction.memory_index())
                        || (0..instruction.op_count()).any(|i| {
                            instruction.op_kind(i) == OpKind::Register
                                && instruction.op_register(i).full_register() == Iced::RBP
                        })
                }
            }
    }

    /// From where to where an instruction copies 64 bits.
    pub(super) fn moved(&self, instruction: &Instruction) -> Option<(Place, Place)> {
        let place = |operand| match instruction.op_kind(operand) {
            OpKind::Register => register(instruction.op_register(operand)).map(Place::Register),
            OpKind::Memory
                if instruction.memory_index() == Iced::None
                    && instruction.segment_prefix() == Iced::None =>
            {
                let base = instruction.memory_base();
                self.word(self.in_frame(base, instruction.memory_displacement64())?)
            }
            _ => None,
        };
        match instruction.code() {
            Code::Mov_r64_rm64 | Code::Mov_rm64_r64 => Some((place(1)?, place(0)?)),
            _ => None,
        }
    }
}

/// What is known before each instruction; `None` if the frame is not one that is followed.
///
/// Finds calls that do not return, and takes their way on out of the graph: where the code behind
/// one is reached in another way too, and `rsp` is elsewhere then.
pub(super) fn of(graph: &mut Graph, function: &Function) -> Option<BTreeMap<u64, Values>> {
    // Whoever takes the frame's address may write to its words later.
    if graph.nodes().any(|(_, node)| takes_stack_address(&node.instruction)) {
        return None;
    }
    let mut known = BTreeMap::from([(0, Values::on_entry(function.size))]);
    let mut pending = vec![0];
    // Calls come last, so that what is reached in other ways is known by then.
    let mut calls = BTreeSet::new();
    loop {
        let Some((at, is_call)) =
            pending.pop().map(|at| (at, false)).or_else(|| calls.pop_first().map(|at| (at, true)))
        else {
            return Some(known);
        };
        let node = graph.node(at)?;
        if !is_call && matches!(node.flow, Flow::Call { .. }) {
            calls.insert(at);
            continue;
        }
        let before = *known.get(&at)?;
        let after = before.behind(node, function.core)?;
        let successors: Vec<_> =
            node.successors().map(|next| (next, after.on_way_to(next, node))).collect();
        for (next, after) in successors {
            let merged = match known.get(&next).map(|other| after.both(*other)) {
                Some(Some(both)) => both,
                Some(None) if is_call => {
                    graph.end_at(at);
                    continue;
                }
                Some(None) => return None,
                None => after,
            };
            if known.insert(next, merged) != Some(merged) {
                pending.push(next);
            }
        }
    }
}

/// Whether an instruction is `mov rbp, rsp`.
fn sets_frame_pointer(instruction: &Instruction) -> bool {
    matches!(instruction.code(), Code::Mov_rm64_r64 | Code::Mov_r64_rm64)
        && instruction.op0_register() == Iced::RBP
        && instruction.op1_register() == Iced::RSP
}

fn takes_stack_address(instruction: &Instruction) -> bool {
    match instruction.mnemonic() {
        Mnemonic::Lea if instruction.op0_register() == Iced::RSP => {
            instruction.memory_base() != Iced::RBP || instruction.memory_index() != Iced::None
        }
        Mnemonic::Lea => {
            instruction.memory_base() == Iced::RSP || instruction.memory_index() == Iced::RSP
        }
        _ if stack_change(instruction).is_some() || sets_frame_pointer(instruction) => false,
        _ => (0..instruction.op_count()).any(|i| {
            instruction.op_kind(i) == OpKind::Register && instruction.op_register(i) == Iced::RSP
        }),
    }
}
