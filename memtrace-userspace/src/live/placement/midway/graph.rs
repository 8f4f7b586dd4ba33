//! The instructions of a function that can be reached from its entry.

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{Code, ConditionCode, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic};
use memtrace_common::midway::{Register, When};

use super::places::register;
use super::{Calls, Function};
use crate::live::placement::{branch_target, is_emulated};

/// Longer functions are not looked at.
const MAX_CODE_BYTES: usize = 1 << 16;

/// Bits of `rflags`.
const CF: u8 = 1;
const PF: u8 = 1 << 2;
pub(super) const ZF: u8 = 1 << 6;
const SF: u8 = 1 << 7;

/// Where the processor goes from an instruction. Places are bytes from the function's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// To the next one.
    Next { next: u64 },
    /// Through a function, to the next one.
    Call { next: u64 },
    /// Somewhere else in the function.
    Jump { target: u64 },
    /// One of two ways; `flags`: when the jump is taken, if a few flags decide it.
    Fork { next: u64, target: u64, flags: Option<When> },
    /// Back to the caller.
    Return,
    /// To another function, which returns to the caller.
    TailCall {
        /// It returns its first argument, as `memset` does.
        fills: bool,
    },
    /// Nowhere: the program ends.
    End,
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) instruction: Instruction,
    pub(super) flow: Flow,
    pub(super) is_emulated: bool,
}

impl Node {
    pub(super) fn successors(&self) -> impl Iterator<Item = u64> + use<> {
        let (first, second) = match self.flow {
            Flow::Next { next } | Flow::Call { next } => (Some(next), None),
            Flow::Jump { target } => (Some(target), None),
            Flow::Fork { next, target, .. } => (Some(next), Some(target)),
            Flow::Return | Flow::TailCall { .. } | Flow::End => (None, None),
        };
        first.into_iter().chain(second)
    }

    /// The register that it tests for zero.
    pub(super) fn tests(&self) -> Option<Register> {
        let [a, b] = [self.instruction.op0_register(), self.instruction.op1_register()];
        (self.instruction.code() == Code::Test_rm64_r64 && a == b).then(|| register(a))?
    }

    /// Whether it is a call of what is there.
    pub(super) fn calls(&self, there: Option<u64>) -> bool {
        let is_call = matches!(self.flow, Flow::Call { .. });
        is_call && there.is_some() && branch_target(&self.instruction) == there
    }
}

/// The instructions by their place.
pub(super) struct Graph {
    nodes: BTreeMap<u64, Node>,
    predecessors: BTreeMap<u64, BTreeSet<u64>>,
}

impl Graph {
    /// `None` if it cannot be told what the function does.
    pub(super) fn of(code: &[u8], function: &Function) -> Option<Graph> {
        if code.len() > MAX_CODE_BYTES {
            return None;
        }
        let jumps = jumps_by_target(code);
        let mut nodes = BTreeMap::new();
        let mut predecessors: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
        let mut pending = vec![0];
        while let Some(at) = pending.pop() {
            if nodes.contains_key(&at) {
                continue;
            }
            let node = node(code, at, function, &jumps)?;
            for next in node.successors() {
                predecessors.entry(next).or_default().insert(at);
                pending.push(next);
            }
            nodes.insert(at, node);
        }
        if overlap(&nodes) {
            return None;
        }
        Some(Graph { nodes, predecessors })
    }

    /// The instruction at `at` is a call that does not return.
    pub(super) fn end_at(&mut self, at: u64) {
        let Some(node) = self.nodes.get_mut(&at) else { return };
        for next in node.successors() {
            if let Some(predecessors) = self.predecessors.get_mut(&next) {
                predecessors.remove(&at);
            }
        }
        node.flow = Flow::End;
    }

    pub(super) fn node(&self, at: u64) -> Option<&Node> {
        self.nodes.get(&at)
    }

    pub(super) fn nodes(&self) -> impl DoubleEndedIterator<Item = (u64, &Node)> {
        self.nodes.iter().map(|(at, node)| (*at, node))
    }

    /// The instructions that lead to `at`.
    pub(super) fn predecessors(&self, at: u64) -> impl Iterator<Item = u64> {
        self.predecessors.get(&at).into_iter().flatten().copied()
    }

    /// The instruction at `at`, and all from which a path leads there.
    pub(super) fn all_before(&self, at: u64) -> BTreeSet<u64> {
        let mut all = BTreeSet::new();
        let mut pending = vec![at];
        while let Some(at) = pending.pop() {
            if all.insert(at) {
                pending.extend(self.predecessors(at));
            }
        }
        all
    }
}

fn node(
    code: &[u8],
    at: u64,
    function: &Function,
    jumps: &BTreeMap<u64, Vec<u64>>,
) -> Option<Node> {
    let start = usize::try_from(at).ok()?;
    let bytes = code.get(start..)?;
    let mut decoder = Decoder::with_ip(64, bytes, at, DecoderOptions::NONE);
    if !decoder.can_decode() {
        return None;
    }
    let instruction = decoder.decode();
    let next = at + decoder.position() as u64;
    let is_inside = |target: u64| target < code.len() as u64;
    let flow = match instruction.flow_control() {
        FlowControl::Next => Flow::Next { next },
        FlowControl::UnconditionalBranch => match branch_target(&instruction)? {
            target if is_inside(target) => Flow::Jump { target },
            target => Flow::TailCall { fills: function.fills.contains(&target) },
        },
        FlowControl::ConditionalBranch => match branch_target(&instruction)? {
            target if is_inside(target) => {
                Flow::Fork { next, target, flags: taken_when(&instruction) }
            }
            _ => return None,
        },
        // `ret` without an operand.
        FlowControl::Return if instruction.op_count() == 0 => Flow::Return,
        FlowControl::Call => {
            let target = branch_target(&instruction)?;
            if function.calls == Calls::Unknown {
                return None;
            }
            let ends = function.ends.contains(&target) || does_not_return(code, at, next, jumps);
            if ends { Flow::End } else { Flow::Call { next } }
        }
        FlowControl::Exception | FlowControl::Interrupt => Flow::End,
        FlowControl::Return
        | FlowControl::IndirectBranch
        | FlowControl::IndirectCall
        | FlowControl::XbeginXabortXend => return None,
    };
    let is_emulated = is_emulated(bytes.get(..decoder.position())?);
    Some(Node { instruction, flow, is_emulated })
}

/// Whether a call at `at`, behind which the code goes on at `next`, ends the program.
///
/// Compilers write nothing behind it that could run: the function ends, or the next code is aligned
/// because it is reached by jumps only (GCC's `-falign-jumps`). They also align the start of a loop,
/// which may be reached from above; a jump from further down leads to that.
fn does_not_return(code: &[u8], at: u64, next: u64, jumps: &BTreeMap<u64, Vec<u64>>) -> bool {
    let mut behind = next;
    loop {
        let rest = usize::try_from(behind).ok().and_then(|behind| code.get(behind..));
        let Some(rest) = rest.filter(|rest| !rest.is_empty()) else { return true };
        let mut decoder = Decoder::with_ip(64, rest, behind, DecoderOptions::NONE);
        let instruction = decoder.decode();
        if instruction.mnemonic() != Mnemonic::Nop {
            break;
        }
        behind += decoder.position() as u64;
    }
    if behind == next {
        return false;
    }
    let jumps = jumps.get(&behind).map(Vec::as_slice).unwrap_or_default();
    !jumps.is_empty() && jumps.iter().all(|from| *from < at)
}

/// The jumps of the whole code, reached or not, by where they go.
fn jumps_by_target(code: &[u8]) -> BTreeMap<u64, Vec<u64>> {
    let mut jumps: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for instruction in &mut Decoder::with_ip(64, code, 0, DecoderOptions::NONE) {
        let is_jump = matches!(
            instruction.flow_control(),
            FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch
        );
        if is_jump && let Some(target) = branch_target(&instruction) {
            jumps.entry(target).or_default().push(instruction.ip());
        }
    }
    jumps
}

/// When a conditional jump is taken, if any of a few flags decides.
fn taken_when(instruction: &Instruction) -> Option<When> {
    let (flags, any_set) = match instruction.condition_code() {
        ConditionCode::b => (CF, true),
        ConditionCode::ae => (CF, false),
        ConditionCode::e => (ZF, true),
        ConditionCode::ne => (ZF, false),
        ConditionCode::be => (CF | ZF, true),
        ConditionCode::a => (CF | ZF, false),
        ConditionCode::s => (SF, true),
        ConditionCode::ns => (SF, false),
        ConditionCode::p => (PF, true),
        ConditionCode::np => (PF, false),
        ConditionCode::None
        | ConditionCode::o
        | ConditionCode::no
        | ConditionCode::l
        | ConditionCode::ge
        | ConditionCode::le
        | ConditionCode::g => return None,
    };
    Some(When { flags, any_set })
}

/// Whether one instruction begins inside another, unless it is the same without a `lock` prefix, over
/// which glibc jumps in programs with one thread.
fn overlap(nodes: &BTreeMap<u64, Node>) -> bool {
    nodes.iter().zip(nodes.keys().skip(1)).any(|((at, node), next)| {
        let overlaps = at + node.instruction.len() as u64 > *next;
        overlaps && !(node.instruction.has_lock_prefix() && *next == at + 1)
    })
}
