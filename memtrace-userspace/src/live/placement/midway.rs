//! Where inside a function its block and its size are both known.
//!
//! In: the code of a function that returns the address of a block. Out: [`Sites`] of which each
//! call that gives memory passes exactly one, or `None` if that cannot be shown. Pure.
//!
//! A return probe costs as much as two probes: the kernel replaces the return address at the entry,
//! and the return traps. But `malloc` knows the block before it returns, and nearly always at an
//! instruction that the kernel emulates, behind the test whether there is one:
//!
//! ```text
//!   forward    from the entry: where the size and the caller's rbp are      ([`values`])
//!   backward   from the returns: where the block is, once it is known       ([`outcome`])
//!   cut        from the entry, the first emulated instruction on each path at which it is known
//! ```
//!
//! What the cut needs to be right: the whole function is decoded, no jump of it goes through a
//! register, and no function that it calls has probes of its own, since such a call would be one
//! of its own. A path that ends in a jump to another function gets a probe at the entry and at the
//! return after all, at that jump. A path that returns NULL or ends the program gets none.
//!
//! A function that gives a block for another, as `realloc` does, has a place where it takes the one,
//! on each path on which that is not NULL ([`exchange`]), and goes on from there with the cut.
//!
//! Where a path loses the size before the block is there, two places are needed. If it does so in a
//! call of a function that finds the block, as glibc's `_int_malloc`, that one is a *core*: a place in
//! it knows both, for all functions that call it.

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{Decoder, DecoderOptions, FlowControl};
use memtrace_common::midway::{Fronts, Midway, Register, STACK_WORDS, When};

mod exchange;
mod graph;
mod outcome;
mod places;
#[cfg(test)]
mod tests;
mod values;

use graph::{Flow, Graph};
use outcome::Outcome;
use values::Values;

use super::branch_target;

/// The most instructions in front of a place that are searched for one where the size is known.
const MAX_NOTE_DISTANCE: usize = 8;

/// What a function's calls may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Calls {
    /// They have no probes: those of glibc's `malloc` and `calloc`, which stay inside the library.
    Inner,
    /// Anything, an allocator's function among them.
    Unknown,
}

/// How a size is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    /// `malloc(size)`.
    Argument,
    /// `_int_malloc(arena, size)`.
    Second,
    /// `calloc(count, size)`.
    Product,
    /// `realloc(block, size)`.
    InExchange,
}

/// What is known of a function besides its code.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    /// How it is asked for a size.
    pub size: Size,
    /// What its calls may be.
    pub calls: Calls,
    /// Where `memset` is, in bytes from the function's start: it returns its first argument, and
    /// `calloc` may end in a jump to it.
    pub fills: Vec<u64>,
    /// Which functions that it calls do not return, likewise; more are told by what stands behind.
    pub ends: Vec<u64>,
    /// Where the core is that has places of its own, likewise.
    pub core: Option<u64>,
    /// Where the functions are that have probes of their own, likewise. One that gives a block for
    /// another may call them.
    pub probed: Vec<u64>,
}

/// Where to probe. All of it is emulated by the kernel; places are bytes from the function's start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sites {
    /// Inside the function.
    pub midway: Vec<(u64, Midway)>,
    /// Jumps to another function, at which everything is as on entry: for a probe of that and one
    /// of the return.
    pub tail_calls: Vec<u64>,
    /// What the frame is where it calls the core, if it does.
    pub frame: Option<Frame>,
}

/// What is where in the frame of a function that calls a core, in words above the core's return
/// address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// The function's return address.
    pub caller_word: u8,
    /// Its caller's `rbp`.
    pub rbp_word: u8,
}

/// Finds the sites of the function whose whole code is `code`.
pub(crate) fn find(code: &[u8], function: &Function) -> Option<Sites> {
    let mut graph = Graph::of(code, function)?;
    let values = values::of(&mut graph, function)?;
    let outcomes = outcome::of(&graph, &values);
    let cut = Cut { function, graph: &graph, values: &values, outcomes: &outcomes };
    match function.size {
        Size::InExchange => cut.make_behind(cut.taken()?),
        Size::Argument | Size::Second | Size::Product => cut.make_behind(Taken::nothing()),
    }
}

/// The function that is called where `sites` note a size, in bytes from the start of the one whose
/// code is `code`; `None` if they note none.
pub(crate) fn core(code: &[u8], sites: &Sites) -> Option<u64> {
    let is_note = |(_, midway): &&(u64, Midway)| matches!(midway, Midway::Note { .. });
    let (at, _) = sites.midway.iter().find(is_note)?;
    let code = code.get(usize::try_from(*at).ok()?..)?;
    let call = Decoder::with_ip(64, code, *at, DecoderOptions::NONE).decode();
    (call.flow_control() == FlowControl::Call).then(|| branch_target(&call))?
}

/// The sites in a core, whose whole code is `code`: `ends` are the functions that it calls and that
/// do not return, in bytes from its start, and `fronts` gives those of a place.
pub(crate) fn find_in_core(
    code: &[u8],
    ends: Vec<u64>,
    fronts: impl Fn(u64) -> Option<Fronts>,
) -> Option<Vec<(u64, Midway)>> {
    let (size, calls) = (Size::Second, Calls::Inner);
    let (fills, probed) = (Vec::new(), Vec::new());
    let core = Function { size, calls, fills, ends, core: None, probed };
    let Sites { midway, tail_calls, frame: _ } = find(code, &core)?;
    if !tail_calls.is_empty() {
        return None;
    }
    let in_core = |(at, midway)| match midway {
        Midway::Known { size: Some(size), block, when, caller_word, rbp_word: _ } => {
            Some((at, Midway::Core { size, block, when, caller_word, fronts: fronts(at)? }))
        }
        _ => None,
    };
    midway.into_iter().map(in_core).collect()
}

struct Cut<'a> {
    function: &'a Function,
    graph: &'a Graph,
    values: &'a BTreeMap<u64, Values>,
    outcomes: &'a BTreeMap<u64, Outcome>,
}

/// Where a function takes a block, before it gives another.
struct Taken {
    /// The sites.
    sites: BTreeMap<u64, Midway>,
    /// Where the ways go on that have passed one.
    behind: Vec<u64>,
    /// What is in front of them, and on ways that take no block.
    before: BTreeSet<u64>,
}

impl Taken {
    /// Nowhere: it takes none.
    fn nothing() -> Taken {
        Taken { sites: BTreeMap::new(), behind: vec![0], before: BTreeSet::new() }
    }
}

/// What can be told of a call: where its block is, or that there is none.
type Answer = Option<Register>;

/// What is told at a place.
#[derive(Clone, Copy)]
struct Told {
    answer: Answer,
    when: When,
    /// Whether there is no block otherwise; else that is told later.
    or_none: bool,
}

impl Cut<'_> {
    /// The sites behind those at which a block is taken, and these.
    fn make_behind(&self, taken: Taken) -> Option<Sites> {
        let mut late = BTreeSet::new();
        loop {
            match self.attempt(&taken, &late)? {
                Ok(sites) => return Some(sites),
                Err(at) => {
                    let before = late.len();
                    late.extend(self.graph.all_before(at));
                    if late.len() == before {
                        return None;
                    }
                }
            }
        }
    }

    /// The sites, none of which may tell of a block at a way to one of the `late` instructions; or one
    /// at which it is told on some paths and not on others, so that it has to be told behind.
    fn attempt(&self, taken: &Taken, late: &BTreeSet<u64>) -> Option<Result<Sites, u64>> {
        let answer_at = |at| if late.contains(&at) { None } else { self.answer_at(at) };
        let mut sites = taken.sites.clone();
        let mut tail_calls = Vec::new();
        let mut frame = None;
        // Whether the block is known and told by then, which must be so on all paths or on none.
        let mut told = BTreeMap::new();
        let mut pending: Vec<(u64, bool)> = taken.behind.iter().map(|at| (*at, false)).collect();
        while let Some((at, is_told)) = pending.pop() {
            if taken.before.contains(&at) {
                return None;
            }
            let is_told = is_told || self.has_nothing_to_tell(at);
            match told.insert(at, is_told) {
                Some(before) if before != is_told => return Some(Err(at)),
                Some(_) => continue,
                None => {}
            }
            let node = self.graph.node(at)?;
            if node.calls(self.function.core) {
                let here = self.frame_at(at)?;
                if *frame.get_or_insert(here) != here || !self.returns_block_of_core(at) {
                    return None;
                }
                pending.extend(node.successors().map(|next| (next, true)));
                continue;
            }
            if is_told {
                pending.extend(node.successors().map(|next| (next, true)));
                continue;
            }
            match node.flow {
                Flow::Return => return None,
                Flow::TailCall { .. } => {
                    if !node.is_emulated
                        || !self.values.get(&at)?.is_as_on_entry(self.function.size)
                    {
                        return None;
                    }
                    tail_calls.push(at);
                }
                Flow::Fork { next, target, flags } if node.is_emulated => {
                    let (stay, jump) = (answer_at(next), answer_at(target));
                    let told = told_at_fork(stay, jump, flags);
                    if let Some(told) = told {
                        self.tell(&mut sites, at, told)?;
                    }
                    pending.push((next, told.is_some() && stay.is_some()));
                    pending.push((target, told.is_some() && jump.is_some()));
                }
                Flow::Jump { target: next } | Flow::Next { next } if node.is_emulated => {
                    let answer = answer_at(next);
                    if let Some(answer) = answer {
                        self.tell(&mut sites, at, Told::always(answer))?;
                    }
                    pending.push((next, answer.is_some()));
                }
                _ => pending.extend(node.successors().map(|next| (next, false))),
            }
        }
        if sites.is_empty() && frame.is_none() {
            return None;
        }
        Some(Ok(Sites { midway: sites.into_iter().collect(), tail_calls, frame }))
    }

    /// Whether the function gives a block for another: then it is to be told, too, that there is none.
    fn exchanges(&self) -> bool {
        self.function.size == Size::InExchange
    }

    /// The frame at a call of the core that is asked for the size.
    fn frame_at(&self, call: u64) -> Option<Frame> {
        let values = self.values.get(&call)?;
        if !values.has_size_in(Register::Rsi) {
            return None;
        }
        // The call pushes a return address.
        let caller_word = u8::try_from(values.depth() / 8).ok()?.checked_add(1)?;
        let rbp_word = values.word_with_rbp()?.checked_add(1)?;
        (usize::from(caller_word) < STACK_WORDS).then_some(Frame { caller_word, rbp_word })
    }

    /// Whether the function returns what this call of the core does, or NULL, or calls it again.
    fn returns_block_of_core(&self, call: u64) -> bool {
        let mut pending = vec![call];
        let mut seen = BTreeSet::new();
        while let Some(at) = pending.pop() {
            if !seen.insert(at) {
                continue;
            }
            let (Some(node), Some(values)) = (self.graph.node(at), self.values.get(&at)) else {
                return false;
            };
            if matches!(node.flow, Flow::Return | Flow::TailCall { .. }) {
                return false;
            }
            let Some(behind) = values.behind(node, self.function.core) else { return false };
            // By what is known on this path: others, of other blocks, may come together with it.
            let is_open = |next: &u64| match self.outcomes.get(next) {
                Some(Outcome::Nothing | Outcome::Null) => false,
                Some(Outcome::In(place)) => !behind.has_block_in(*place),
                Some(Outcome::Unknown) | None => {
                    !self.graph.node(*next).is_some_and(|node| node.calls(self.function.core))
                }
            };
            pending.extend(node.successors().filter(is_open));
        }
        true
    }

    /// Whether every path from here ends the program, or returns NULL where that need not be told.
    fn has_nothing_to_tell(&self, at: u64) -> bool {
        match self.outcomes.get(&at) {
            Some(Outcome::Nothing) => true,
            Some(Outcome::Null) => !self.exchanges(),
            Some(Outcome::In(_) | Outcome::Unknown) | None => false,
        }
    }

    /// What is returned, if it is known there and to be told.
    fn answer_at(&self, at: u64) -> Option<Answer> {
        match self.outcomes.get(&at)? {
            Outcome::In(place) => place.register().map(Some),
            Outcome::Null if self.exchanges() => Some(None),
            Outcome::Nothing | Outcome::Null | Outcome::Unknown => None,
        }
    }

    fn tell(
        &self,
        sites: &mut BTreeMap<u64, Midway>,
        at: u64,
        Told { answer, when, or_none }: Told,
    ) -> Option<()> {
        let values = self.values.get(&at)?;
        let caller_word = caller_word(values)?;
        let rbp_word = values.rbp_word()?;
        if self.exchanges() {
            // Where there is none, no register is looked at.
            let block = answer.unwrap_or(Register::Rax);
            sites.insert(
                at,
                Midway::Replaced { block, when, or_stays: or_none, caller_word, rbp_word },
            );
            return Some(());
        }
        let block = answer?;
        let size = values.size_register();
        if size.is_none() {
            let (note, size) = self.note(at)?;
            sites.insert(note, Midway::Note { size, caller_word });
        }
        sites.insert(at, Midway::Known { size, block, when, caller_word, rbp_word });
        Some(())
    }

    /// The last place in front of `at` from which each path leads there, and where the size is
    /// known and `rsp` the same.
    fn note(&self, at: u64) -> Option<(u64, Register)> {
        let depth = self.values.get(&at)?.depth();
        let mut at = at;
        for _ in 0..MAX_NOTE_DISTANCE {
            let mut before = self.graph.predecessors(at);
            let (Some(only), None) = (before.next(), before.next()) else { return None };
            let node = self.graph.node(only)?;
            if node.successors().count() != 1 {
                return None;
            }
            at = only;
            let values = self.values.get(&at)?;
            if node.is_emulated && values.depth() == depth {
                return values.size_register().map(|size| (at, size));
            }
        }
        None
    }
}

impl Told {
    /// On all ways.
    fn always(answer: Answer) -> Told {
        let when = if answer.is_some() { When::ALWAYS } else { When::NEVER };
        Told { answer, when, or_none: answer.is_none() }
    }
}

/// What is told at a fork, behind which the ways have these answers; `taken` is when it jumps.
fn told_at_fork(stay: Option<Answer>, jump: Option<Answer>, taken: Option<When>) -> Option<Told> {
    let told = |answer, when, or_none| Some(Told { answer, when, or_none });
    match (stay, jump, taken) {
        (Some(a), Some(b), _) if a == b => Some(Told::always(a)),
        (Some(a @ Some(_)), Some(None), Some(taken)) => told(a, taken.not(), true),
        (Some(None), Some(b @ Some(_)), Some(taken)) => told(b, taken, true),
        (Some(a @ Some(_)), None, Some(taken)) => told(a, taken.not(), false),
        (None, Some(b @ Some(_)), Some(taken)) => told(b, taken, false),
        _ => None,
    }
}

/// Where the return address is, in words above `rsp`, if a probe can refer to it.
fn caller_word(values: &Values) -> Option<u8> {
    let word = u8::try_from(values.depth() / 8).ok()?;
    (usize::from(word) < STACK_WORDS).then_some(word)
}
