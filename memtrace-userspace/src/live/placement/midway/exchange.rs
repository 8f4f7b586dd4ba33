//! Where a function that gives a block for another takes the one.
//!
//! On each path the first emulated instruction at which that is known to be a block, before the
//! function does anything with it. NULL is no block, and what takes it is like `malloc`: it has to be
//! left to a function with probes of its own. So has a block for which nothing is given.
//!
//! ```text
//!   realloc   test rsi, rsi      size 0: call free, return NULL     free's probe
//!             test rdi, rdi      NULL:   jmp malloc                 malloc's probes
//!             …
//!             jne  mapped        Retire
//! ```

use std::collections::{BTreeMap, BTreeSet};

use memtrace_common::midway::Midway;

use super::graph::{Flow, Node};
use super::values::Given;
use super::{Cut, Outcome, Taken, caller_word};
use crate::live::placement::branch_target;

impl Cut<'_> {
    /// Where the block is taken; `None` if that cannot be shown for every path that does so.
    pub(super) fn taken(&self) -> Option<Taken> {
        let (mut sites, mut behind) = (BTreeMap::new(), Vec::new());
        let mut before = BTreeSet::new();
        let mut pending = vec![0];
        while let Some(at) = pending.pop() {
            if !before.insert(at) {
                continue;
            }
            let (node, values) = (self.graph.node(at)?, self.values.get(&at)?);
            if self.is_left_to_another(node, values.given_is()) {
                continue;
            }
            match node.flow {
                Flow::End => {}
                Flow::Return | Flow::TailCall { .. } => return None,
                _ if node.is_emulated && values.given_is() == Given::Block => {
                    let (size, block) = (values.size_register()?, values.given_register()?);
                    let caller_word = caller_word(values)?;
                    sites.insert(at, Midway::Retire { size, block, caller_word });
                    behind.extend(node.successors());
                }
                _ => pending.extend(node.successors()),
            }
        }
        if sites.is_empty() { None } else { Some(Taken { sites, behind, before }) }
    }

    /// Whether a function with probes of its own does from here on what is to be told.
    ///
    /// What is given for NULL has to be left by a jump: a call would make this function its caller.
    fn is_left_to_another(&self, node: &Node, given: Given) -> bool {
        let target = branch_target(&node.instruction);
        if !target.is_some_and(|target| self.function.probed.contains(&target)) {
            return false;
        }
        match node.flow {
            Flow::TailCall { .. } => given == Given::Null,
            Flow::Call { next } => self.outcomes.get(&next) == Some(&Outcome::Null),
            _ => false,
        }
    }
}
