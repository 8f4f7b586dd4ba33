//! What a function will return, and where that is.
//!
//! A backward analysis from the returns: before each instruction, the one place whose value is
//! returned on all paths from there.

use std::collections::BTreeMap;

use iced_x86::{InstructionInfoFactory, Mnemonic, OpKind};
use memtrace_common::midway::Register;

use super::graph::{Flow, Graph, Node};
use super::places::{CALLER_SAVED, Place, register};
use super::values::Values;
use crate::live::placement::writes;

/// What comes of a call, seen from an instruction of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It does not return.
    Nothing,
    /// It returns NULL.
    Null,
    /// It returns what is there.
    In(Place),
    /// It is not decided yet.
    Unknown,
}

impl Outcome {
    /// On two paths.
    fn and(self, other: Outcome) -> Outcome {
        match (self, other) {
            (Outcome::Nothing, outcome) | (outcome, Outcome::Nothing) => outcome,
            (a, b) if a == b => a,
            _ => Outcome::Unknown,
        }
    }
}

/// The outcome before each instruction.
pub(super) fn of(graph: &Graph, values: &BTreeMap<u64, Values>) -> BTreeMap<u64, Outcome> {
    let mut info = InstructionInfoFactory::new();
    let mut outcomes: BTreeMap<u64, Outcome> = BTreeMap::new();
    let mut pending: Vec<u64> = graph.nodes().map(|(at, _)| at).collect();
    while let Some(at) = pending.pop() {
        let (Some(node), Some(values)) = (graph.node(at), values.get(&at)) else { continue };
        let behind = match node.flow {
            Flow::Return => Outcome::In(Place::Register(Register::Rax)),
            Flow::TailCall { fills: true } => Outcome::In(Place::Register(Register::Rdi)),
            Flow::TailCall { fills: false } => Outcome::Unknown,
            _ => node
                .successors()
                .map(|next| outcomes.get(&next).copied().unwrap_or(Outcome::Nothing))
                .fold(Outcome::Nothing, Outcome::and),
        };
        let before = match behind {
            Outcome::In(place) => before(node, values, place, &mut info),
            other => other,
        };
        if outcomes.insert(at, before) != Some(before) {
            pending.extend(graph.predecessors(at));
        }
    }
    outcomes
}

/// The outcome before an instruction behind which `place` holds what is returned.
fn before(
    node: &Node,
    values: &Values,
    place: Place,
    info: &mut InstructionInfoFactory,
) -> Outcome {
    let instruction = &node.instruction;
    match node.flow {
        Flow::Call { .. } => {
            return match place.register().is_some_and(|held| CALLER_SAVED.contains(&held)) {
                true => Outcome::Unknown,
                false => Outcome::In(place),
            };
        }
        Flow::Next { .. } => {}
        _ => return Outcome::In(place),
    }
    if let Some((from, to)) = values.moved(instruction)
        && to == place
    {
        return Outcome::In(from);
    }
    if clears(instruction).is_some_and(|cleared| place.register() == Some(cleared)) {
        return Outcome::Null;
    }
    let is_written = match place {
        Place::Register(held) => info.info(instruction).used_registers().iter().any(|used| {
            writes(used.access()) && register(used.register().full_register()) == Some(held)
        }),
        // Words are written by copies, which were looked at, and by what is not followed here.
        Place::Word(_) => {
            let pushes = matches!(instruction.mnemonic(), Mnemonic::Push | Mnemonic::Pop);
            pushes
                || info
                    .info(instruction)
                    .used_memory()
                    .iter()
                    .any(|used| values.points_to_frame(used.base()) && writes(used.access()))
        }
    };
    if is_written { Outcome::Unknown } else { Outcome::In(place) }
}

/// The register that `xor r, r` sets to zero.
fn clears(instruction: &iced_x86::Instruction) -> Option<Register> {
    let is_cleared = instruction.mnemonic() == Mnemonic::Xor
        && instruction.op1_kind() == OpKind::Register
        && instruction.op0_register() == instruction.op1_register()
        && instruction.op0_register().size() >= 4;
    if is_cleared { register(instruction.op0_register().full_register()) } else { None }
}
