//! Call paths, each kept once and known by a number.
//!
//! A number may be given before the frames have come. It then gets them, or turns out to be another
//! name of a call path that is known already.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash, Hasher};
use std::sync::Arc;

use memtrace_common::event::Api;
use memtrace_common::unwind::End;

use super::limits::Limits;
use super::operations::OperationId;
use super::snapshot::Stack;
use crate::hash::Seed;

/// A call path in [`CallPaths`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct StackId(u32);

impl StackId {
    /// The one that stands for all whose frames are not known.
    pub(super) const MISSING: StackId = StackId(0);
    /// The one of [`crate::record::WireStackId`] 0.
    pub(super) const NONE: StackId = StackId(1);
}

/// What is known of a stack.
#[derive(Debug)]
enum Entry {
    /// Its frames, and the operation that they belong to.
    Known(Arc<Stack>, Option<OperationId>),
    /// Its record has not come yet.
    Awaited,
    /// It was awaited, and turned out to be one that is known already.
    Duplicate,
}

/// A call path and its hash: a table that grows would read the frames of all it has for them.
#[derive(Debug)]
struct Hashed {
    hash: u64,
    stack: Arc<Stack>,
}

impl Hash for Hashed {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl PartialEq for Hashed {
    fn eq(&self, other: &Hashed) -> bool {
        self.hash == other.hash && self.stack == other.stack
    }
}

impl Eq for Hashed {}

/// All call paths of a session.
#[derive(Debug)]
pub(super) struct CallPaths {
    entries: Vec<Entry>,
    ids: HashMap<Hashed, StackId, Seed>,
    seed: Seed,
    frames: usize,
    limit: usize,
    frame_limit: usize,
    awaited: u64,
    beyond_limit: u64,
    /// How many have arrived, by their [`End`].
    arrived: [u64; End::ALL.len()],
}

impl CallPaths {
    /// [`StackId::MISSING`] and [`StackId::NONE`] alone.
    pub(super) fn new(limits: &Limits, seed: Seed) -> CallPaths {
        let mut paths = CallPaths {
            entries: Vec::new(),
            ids: HashMap::with_hasher(seed),
            seed,
            frames: 0,
            // Each may have a site for each API, and those are numbered by 32 bits as well.
            limit: limits.stacks.clamp(2, u32::MAX as usize / 2 / Api::ALL.len()),
            frame_limit: limits.stack_frames,
            awaited: 0,
            beyond_limit: 0,
            arrived: [0; End::ALL.len()],
        };
        for end in [End::Missing, End::NoScratch] {
            paths.intern(Stack { end, frames: Vec::new() }, None);
        }
        paths.restart_counts();
        paths
    }

    /// The number of a stack whose frames are awaited; [`StackId::MISSING`] if there is no room.
    pub(super) fn await_frames(&mut self) -> StackId {
        if self.entries.len() >= self.limit {
            self.beyond_limit += 1;
            return StackId::MISSING;
        }
        self.awaited += 1;
        self.push(Entry::Awaited)
    }

    /// The number of a stack, which belongs to `operation` if it is new; [`StackId::MISSING`] if there
    /// is no room.
    pub(super) fn intern(&mut self, stack: Stack, operation: Option<OperationId>) -> StackId {
        let stack = self.hashed(stack);
        if let Some(&id) = self.ids.get(&stack) {
            return id;
        }
        if self.entries.len() >= self.limit || !self.has_room_for(&stack) {
            self.beyond_limit += 1;
            return StackId::MISSING;
        }
        self.add(stack, operation)
    }

    /// The frames of an awaited stack have come: the number under which they are known from now on.
    /// `None` if there is no room for them, and they are awaited as before.
    pub(super) fn arrive(
        &mut self,
        id: StackId,
        stack: Stack,
        operation: Option<OperationId>,
    ) -> Option<StackId> {
        let stack = self.hashed(stack);
        let known = self.ids.get(&stack).copied();
        if known.is_none() && !self.has_room_for(&stack) {
            self.beyond_limit += 1;
            return None;
        }
        self.awaited -= 1;
        // What was charged to `id` is in no operation; what comes from now on is.
        let has_other_number =
            known.is_some() || operation.is_some() && self.entries.len() < self.limit;
        if !has_other_number {
            self.fill(id, stack, operation);
            return Some(id);
        }
        self.entries[id.0 as usize] = Entry::Duplicate;
        Some(known.unwrap_or_else(|| self.add(stack, operation)))
    }

    fn add(&mut self, stack: Hashed, operation: Option<OperationId>) -> StackId {
        let id = self.push(Entry::Awaited);
        self.fill(id, stack, operation);
        id
    }

    fn push(&mut self, entry: Entry) -> StackId {
        let id = StackId(self.entries.len() as u32);
        self.entries.push(entry);
        id
    }

    fn hashed(&self, stack: Stack) -> Hashed {
        Hashed { hash: self.seed.hash_one(&stack), stack: Arc::new(stack) }
    }

    fn has_room_for(&self, Hashed { stack, .. }: &Hashed) -> bool {
        self.frames + stack.frames.len() <= self.frame_limit
    }

    fn fill(&mut self, id: StackId, stack: Hashed, operation: Option<OperationId>) {
        self.frames += stack.stack.frames.len();
        self.arrived[stack.stack.end as usize] += 1;
        self.entries[id.0 as usize] = Entry::Known(Arc::clone(&stack.stack), operation);
        self.ids.insert(stack, id);
    }

    /// Whether the frames of a stack have not come yet.
    pub(super) fn is_awaited(&self, id: StackId) -> bool {
        matches!(self.entries[id.0 as usize], Entry::Awaited)
    }

    /// Whether the frames of a stack came, and are known under another number.
    pub(super) fn is_duplicate(&self, id: StackId) -> bool {
        matches!(self.entries[id.0 as usize], Entry::Duplicate)
    }

    /// What is known of a stack; of [`StackId::MISSING`] and [`StackId::NONE`], that there are no
    /// frames.
    pub(super) fn known(&self, id: StackId) -> Option<&Arc<Stack>> {
        match &self.entries[id.0 as usize] {
            Entry::Known(stack, _) => Some(stack),
            Entry::Awaited | Entry::Duplicate => None,
        }
    }

    /// The frames of a stack; `None` if they are not known.
    pub(super) fn frames(&self, id: StackId) -> Option<&Arc<Stack>> {
        self.known(id).filter(|_| id != StackId::MISSING && id != StackId::NONE)
    }

    /// The operation of a stack, if its frames are known.
    pub(super) fn operation(&self, id: StackId) -> Option<OperationId> {
        match self.entries[id.0 as usize] {
            Entry::Known(_, operation) => operation,
            Entry::Awaited | Entry::Duplicate => None,
        }
    }

    /// Counts arrivals from now on.
    pub(super) fn restart_counts(&mut self) {
        self.arrived = [0; End::ALL.len()];
    }

    /// How many distinct stacks have arrived that ended like this.
    pub(super) fn arrived(&self, end: End) -> u64 {
        self.arrived[end as usize]
    }

    /// How many are awaited.
    pub(super) fn awaited(&self) -> u64 {
        self.awaited
    }

    /// Times a stack found no room.
    pub(super) fn beyond_limit(&self) -> u64 {
        self.beyond_limit
    }
}
