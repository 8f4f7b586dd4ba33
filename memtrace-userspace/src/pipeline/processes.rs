//! Processes: what was seen of each, and the memory of those that run.
//!
//! A process that ends leaves its entry; its memory goes. Process ids are used again, so a pid
//! leads to a running process only.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::account::{Account, Epoch};
use super::live_set::LiveSet;
use super::mappings::Mappings;
use super::snapshot::ProcessUsage;
use super::statistics::HeldMemory;
use super::threads::ThreadId;
use crate::hash::Seed;
use crate::modules::Modules;
use crate::record::{BeforeAttach, Namespaces, Pid, Tid, Time};

/// A running process. Valid until it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RunningId(u32);

/// A process seen, running or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct EntryId(u32);

/// One program in one process: `exec` begins another. Never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Incarnation(u64);

/// What was seen of a process, or of all those beyond the limit.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) pid: Pid,
    /// Whether anything of it is counted.
    pub(super) is_shown: bool,
    pub(super) parent: Option<Pid>,
    pub(super) exe: Vec<u8>,
    pub(super) command: Vec<Vec<u8>>,
    pub(super) started: Time,
    pub(super) ended: Option<Time>,
    pub(super) heap: Account,
    pub(super) mapped: Account,
    pub(super) before_attach: Option<Arc<BeforeAttach>>,
    pub(super) namespaces: Option<Arc<Namespaces>>,
    pub(super) resident_bytes: Option<u64>,
    pub(super) memory: Option<Arc<HeldMemory>>,
    /// The entry of its threads beyond the limit.
    pub(super) other_threads: Option<ThreadId>,
}

/// The memory of a running process.
pub(super) struct Running {
    pub(super) pid: Pid,
    pub(super) entry: EntryId,
    pub(super) incarnation: Incarnation,
    pub(super) heap: LiveSet,
    pub(super) mappings: Mappings,
    /// Shared with its parent until one of them changes it.
    pub(super) modules: Arc<Modules>,
    pub(super) threads: HashSet<Tid, Seed>,
    pub(super) resident_bytes: u64,
    /// Of its heap blocks, as far as it is computed.
    pub(super) usable_bytes: u64,
}

impl Running {
    /// Begins another program: returns what the old one had, and has nothing then.
    ///
    /// The samples of resident memory go on with the process.
    pub(super) fn exec(&mut self, incarnation: Incarnation) -> Running {
        let seed = *self.threads.hasher();
        let new = Running {
            pid: self.pid,
            entry: self.entry,
            incarnation,
            heap: LiveSet::new(seed),
            mappings: Mappings::default(),
            modules: Arc::default(),
            threads: HashSet::with_hasher(seed),
            resident_bytes: self.resident_bytes,
            usable_bytes: 0,
        };
        std::mem::replace(self, new)
    }

    /// Whether it holds no memory that is known.
    pub(super) fn is_bare(&self) -> bool {
        self.heap.len() == 0 && self.mappings.is_empty()
    }
}

/// Which processes are counted. The memory of all is followed: children inherit it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// Every one.
    All,
    /// Those with one of these ids, at whatever time.
    Only(Vec<Pid>),
}

impl Shown {
    pub(super) fn contains(&self, pid: Pid) -> bool {
        match self {
            Shown::All => true,
            Shown::Only(pids) => pids.contains(&pid),
        }
    }
}

/// All processes of a session.
pub(super) struct Processes {
    entries: Vec<Entry>,
    running: Vec<Option<Running>>,
    vacant: Vec<RunningId>,
    by_pid: HashMap<Pid, RunningId, Seed>,
    incarnations: u64,
    limit: usize,
    running_limit: usize,
    /// The entry of the processes beyond the limit.
    others: Option<EntryId>,
    shown: Shown,
    seed: Seed,
}

impl Processes {
    pub(super) fn new(limit: usize, running_limit: usize, seed: Seed) -> Processes {
        Processes {
            entries: Vec::new(),
            running: Vec::new(),
            vacant: Vec::new(),
            by_pid: HashMap::with_hasher(seed),
            incarnations: 0,
            limit: limit.min(u32::MAX as usize - 1),
            running_limit: running_limit.min(u32::MAX as usize),
            others: None,
            shown: Shown::All,
            seed,
        }
    }

    /// Has only some processes counted. None was seen yet.
    pub(super) fn show_only(&mut self, pids: Vec<Pid>) {
        self.shown = Shown::Only(pids);
    }

    pub(super) fn shown(&self) -> &Shown {
        &self.shown
    }

    /// The running process with this id.
    pub(super) fn find(&self, pid: Pid) -> Option<RunningId> {
        self.by_pid.get(&pid).copied()
    }

    /// The only running process, if there is one and no other.
    pub(super) fn only(&self) -> Option<RunningId> {
        let mut running = self.by_pid.values();
        running.next().copied().filter(|_| running.next().is_none())
    }

    /// Whether any process was ever seen.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Lets a process run, with no memory yet. `None` if too many do.
    ///
    /// The caller has made sure that none with this pid runs.
    pub(super) fn start(&mut self, pid: Pid, now: Time) -> Option<RunningId> {
        if self.by_pid.len() >= self.running_limit {
            return None;
        }
        let entry = self.add_entry(pid, now);
        let running = Running {
            pid,
            entry,
            incarnation: self.next_incarnation(),
            heap: LiveSet::new(self.seed),
            mappings: Mappings::default(),
            modules: Arc::default(),
            threads: HashSet::with_hasher(self.seed),
            resident_bytes: 0,
            usable_bytes: 0,
        };
        let id = self.vacant.pop().unwrap_or(RunningId(self.running.len() as u32));
        match self.running.get_mut(id.0 as usize) {
            Some(slot) => *slot = Some(running),
            None => self.running.push(Some(running)),
        }
        self.by_pid.insert(pid, id);
        Some(id)
    }

    fn add_entry(&mut self, pid: Pid, now: Time) -> EntryId {
        let beyond = self.entries.len() >= self.limit;
        if beyond && let Some(others) = self.others {
            return others;
        }
        let id = EntryId(self.entries.len() as u32);
        let pid = if beyond { Pid(0) } else { pid };
        self.entries.push(Entry {
            pid,
            is_shown: self.shown.contains(pid),
            parent: None,
            exe: Vec::new(),
            command: Vec::new(),
            started: now,
            ended: None,
            heap: Account::default(),
            mapped: Account::default(),
            before_attach: None,
            namespaces: None,
            resident_bytes: None,
            memory: None,
            other_threads: None,
        });
        if beyond {
            self.others = Some(id);
        }
        id
    }

    /// A number for a program that begins.
    pub(super) fn next_incarnation(&mut self) -> Incarnation {
        self.incarnations += 1;
        Incarnation(self.incarnations)
    }

    /// Ends a process; what it held is for the caller to write off.
    pub(super) fn end(&mut self, id: RunningId, now: Time) -> Running {
        let running =
            self.running[id.0 as usize].take().expect("a RunningId is valid until its end");
        self.vacant.push(id);
        self.by_pid.remove(&running.pid);
        if !self.stands_for_many(running.entry) {
            self.entry_mut(running.entry).ended = Some(now);
        }
        running
    }

    /// Whether an entry is that of the processes beyond the limit.
    pub(super) fn stands_for_many(&self, entry: EntryId) -> bool {
        self.others == Some(entry)
    }

    /// Every process that runs.
    pub(super) fn all_running(&self) -> impl Iterator<Item = &Running> {
        self.running.iter().flatten()
    }

    #[inline(always)]
    pub(super) fn running(&self, id: RunningId) -> &Running {
        self.running[id.0 as usize].as_ref().expect("a RunningId is valid until its end")
    }

    #[inline(always)]
    pub(super) fn running_mut(&mut self, id: RunningId) -> &mut Running {
        self.running[id.0 as usize].as_mut().expect("a RunningId is valid until its end")
    }

    #[inline(always)]
    pub(super) fn entry_mut(&mut self, id: EntryId) -> &mut Entry {
        &mut self.entries[id.0 as usize]
    }

    #[inline(always)]
    pub(super) fn entry(&self, id: EntryId) -> &Entry {
        &self.entries[id.0 as usize]
    }

    /// The ids of all entries, each once.
    pub(super) fn pids(&self) -> Vec<Pid> {
        let ids: BTreeSet<Pid> = self.entries.iter().map(|entry| entry.pid).collect();
        ids.into_iter().collect()
    }

    /// How many processes were seen that are not shown.
    pub(super) fn left_out(&self) -> usize {
        self.entries.iter().filter(|entry| !entry.is_shown).count()
    }

    /// Every process that is shown, in order of appearance.
    pub(super) fn usage(&self, heap: Epoch, mapped: Epoch) -> Vec<ProcessUsage> {
        let usage = |entry: &Entry| ProcessUsage {
            pid: entry.pid,
            parent: entry.parent,
            exe: entry.exe.clone(),
            command: entry.command.clone(),
            started: entry.started,
            ended: entry.ended,
            heap: entry.heap.usage(heap),
            mapped: entry.mapped.usage(mapped),
            before_attach: entry.before_attach.clone(),
            namespaces: entry.namespaces.clone(),
            resident_bytes: entry.resident_bytes,
            memory: entry.memory.clone(),
        };
        self.entries.iter().filter(|entry| entry.is_shown).map(usage).collect()
    }
}
