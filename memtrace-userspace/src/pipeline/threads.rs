//! Threads: which process a thread id belongs to, and what each thread allocated.
//!
//! Thread ids are used again, so a thread has an entry of its own, [`ThreadId`], from its start
//! on; blocks refer to that.

use std::collections::HashMap;

use memtrace_common::addr::Avma;

use super::account::{Account, Epoch};
use super::findings::ThreadGrowth;
use super::live_set::Block;
use super::mappings::Released;
use super::processes::{Incarnation, RunningId};
use super::snapshot::ThreadUsage;
use super::statistics::Newest;
use crate::hash::Seed;
use crate::record::{Pid, Tid};

/// A thread seen in a session.
///
/// Default: the first one seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct ThreadId(u32);

impl ThreadId {
    /// One more than the highest number: 22 bits are enough.
    pub(super) const LIMIT: usize = 1 << 22;

    /// Its number: they are counted from 0 as they appear.
    #[inline(always)]
    pub fn index(self) -> usize {
        self.0 as usize
    }

    pub(super) fn to_bits(self) -> u32 {
        self.0
    }

    pub(super) fn from_bits(bits: u32) -> ThreadId {
        ThreadId(bits)
    }
}

/// Who did something: a thread, in a process that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Actor {
    pub(super) thread: ThreadId,
    pub(super) process: RunningId,
}

/// A block that `realloc` took and may give back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retired {
    pub(super) address: Avma,
    /// `None` if nothing was known at the address.
    pub(super) block: Option<Block>,
    /// Whose memory it was in.
    pub(super) incarnation: Incarnation,
}

/// A thread, or all those of a process beyond the limit.
#[derive(Debug)]
pub(super) struct Thread {
    pid: Pid,
    tid: Tid,
    name: Vec<u8>,
    /// The blocks it allocated, whoever freed them.
    pub(super) heap: Account,
    /// The blocks it allocated last: they can still turn out to be temporary.
    pub(super) newest: Newest,
    /// The block that its `realloc` under way took.
    pub(super) retired: Option<Retired>,
    /// The mappings that its `munmap` or `mremap` under way took.
    pub(super) released: Option<Box<Released>>,
}

/// All threads of a session.
#[derive(Debug)]
pub(super) struct Threads {
    all: Vec<Thread>,
    running: HashMap<Tid, Actor, Seed>,
    /// The last one asked for: events come in runs.
    recent: Option<(Tid, Actor)>,
    running_limit: usize,
}

impl Threads {
    pub(super) fn new(running_limit: usize, seed: Seed) -> Threads {
        Threads {
            all: Vec::new(),
            running: HashMap::with_hasher(seed),
            recent: None,
            running_limit,
        }
    }

    /// How many entries there are.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Makes an entry; it has no thread id yet that leads to it.
    pub(super) fn add(&mut self, pid: Pid, tid: Tid, name: Vec<u8>) -> ThreadId {
        let id = ThreadId(self.all.len() as u32);
        self.all.push(Thread {
            pid,
            tid,
            name,
            heap: Account::default(),
            newest: Newest::default(),
            retired: None,
            released: None,
        });
        id
    }

    /// Whether another thread may run.
    pub(super) fn has_room(&self) -> bool {
        self.running.len() < self.running_limit
    }

    /// Lets `tid` mean `actor`, until it ends.
    pub(super) fn start(&mut self, tid: Tid, actor: Actor) {
        self.recent = None;
        self.running.insert(tid, actor);
    }

    /// Lets `tid` mean nothing; returns what it meant.
    pub(super) fn end(&mut self, tid: Tid) -> Option<Actor> {
        self.recent = None;
        self.running.remove(&tid)
    }

    /// The thread that has this id now.
    #[inline(always)]
    pub(super) fn find(&mut self, tid: Tid) -> Option<Actor> {
        if let Some((recent, actor)) = self.recent
            && recent == tid
        {
            return Some(actor);
        }
        let &actor = self.running.get(&tid)?;
        self.recent = Some((tid, actor));
        Some(actor)
    }

    /// As [`Threads::find`], but leaves no trace.
    #[inline(always)]
    pub(super) fn peek(&self, tid: Tid) -> Option<Actor> {
        match self.recent {
            Some((recent, actor)) if recent == tid => Some(actor),
            _ => self.running.get(&tid).copied(),
        }
    }

    /// A thread that grew by so many bytes.
    pub(super) fn growth(&self, id: ThreadId, bytes: u64) -> ThreadGrowth {
        let thread = &self.all[id.index()];
        ThreadGrowth { pid: thread.pid, tid: thread.tid, name: thread.name.clone(), bytes }
    }

    /// What is held of the blocks that a thread allocated.
    pub(super) fn held_bytes(&self, id: ThreadId) -> u64 {
        self.all[id.index()].heap.held_bytes()
    }

    #[inline(always)]
    pub(super) fn get_mut(&mut self, id: ThreadId) -> &mut Thread {
        &mut self.all[id.index()]
    }

    #[inline(always)]
    pub(super) fn get(&self, id: ThreadId) -> &Thread {
        &self.all[id.index()]
    }

    /// The process, id and name of a thread.
    pub(super) fn name(&self, id: ThreadId) -> (Pid, Tid, &[u8]) {
        let Thread { pid, tid, name, .. } = self.get(id);
        (*pid, *tid, name)
    }

    /// The process and id of each thread.
    pub(super) fn ids(&self) -> impl ExactSizeIterator<Item = (Pid, Tid)> {
        self.all.iter().map(|thread| (thread.pid, thread.tid))
    }

    /// The process and id of one of them.
    #[inline(always)]
    pub(super) fn id(&self, id: ThreadId) -> (Pid, Tid) {
        let thread = &self.all[id.index()];
        (thread.pid, thread.tid)
    }

    /// The threads that run, and the ids that lead to them.
    pub(super) fn all_running(&self) -> HashMap<ThreadId, Tid> {
        self.running.iter().map(|(tid, actor)| (actor.thread, *tid)).collect()
    }

    /// The process that a thread runs in.
    pub(super) fn process_of(&self, id: ThreadId) -> Option<RunningId> {
        let actor = self.running.get(&self.get(id).tid)?;
        (actor.thread == id).then_some(actor.process)
    }

    /// Gives a thread its name, unless the entry stands for many.
    pub(super) fn rename(&mut self, id: ThreadId, name: Vec<u8>) {
        let thread = self.get_mut(id);
        if thread.tid != Tid(0) {
            thread.name = name;
        }
    }

    /// All threads by pid and tid, those of one id in order of appearance.
    pub(super) fn usage(&self, epoch: Epoch) -> Vec<ThreadUsage> {
        let usage = |thread: &Thread| ThreadUsage {
            pid: thread.pid,
            tid: thread.tid,
            name: thread.name.clone(),
            heap: thread.heap.usage(epoch),
        };
        let mut threads: Vec<_> = self.all.iter().map(usage).collect();
        threads.sort_by_key(|thread| (thread.pid, thread.tid));
        threads
    }
}
