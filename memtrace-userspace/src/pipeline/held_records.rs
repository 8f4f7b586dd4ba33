//! What the running processes hold at one moment, as records.
//!
//! In: the state of a pipeline. Out: records from which another pipeline learns the same memory,
//! stacks, threads and files, but none of the work that led there: a heap snapshot.
//!
//! ```text
//!   Session, Probe…, Counters │ Process… │ Module…, Stack…, ModuleGone… │ Module…
//!   │ Thread, Held…, ThreadExit │ … │ Thread… │ Held… │ Tick
//! ```
//!
//! The pipeline keeps frames as places in files, and a `Stack` record has addresses. So the files
//! are laid out one after the other in address space that no process has, for as long as the
//! stacks are told:
//!
//! ```text
//!   image i, offset o  ↔  FILES + (i << FILE_BITS) + o
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use memtrace_common::addr::{Avma, FileOffset};
use memtrace_common::event::Api;

use super::Pipeline;
use super::findings::MemoryLimit;
use super::live_set::Block;
use super::mappings::Origin;
use super::processes::Running;
use super::snapshot::{Place, Stack};
use super::stacks::{SiteId, StackId};
use super::threads::ThreadId;
use crate::modules::Backing;
use crate::record::{Image, Module, Pid, Process, Record, Tid, Time, WireStackId};

/// Where the first file is laid out: one past the highest address of a program.
const FILES: u64 = 1 << 47;

/// Every file has a terabyte.
const FILE_BITS: u32 = 40;

/// What the records are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To show what is held: only the stacks and threads that hold something.
    Show,
    /// To go on with the records that follow: everything that they may refer to as well.
    GoOn,
}

/// Stacks and the ids under which they are told.
type NamedStacks<'s> = Vec<(WireStackId, &'s Stack)>;

/// A heap block, in the order in which blocks are told.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct ToldBlock {
    thread: u32,
    pid: Pid,
    ptr: Avma,
    size_bytes: u64,
    site: SiteId,
    born: Time,
}

impl ToldBlock {
    fn new(pid: Pid, ptr: Avma, block: &Block) -> ToldBlock {
        let &Block { size_bytes, born, site, thread, claim: _ } = block;
        ToldBlock { thread: thread.to_bits(), pid, ptr, size_bytes, site, born: born.time() }
    }
}

/// A piece of a mapping; without a site, address space only.
struct ToldPiece {
    pid: Pid,
    tid: Tid,
    start: Avma,
    length: u64,
    origin: Option<Origin>,
}

impl Pipeline {
    /// How many heap blocks and pieces of mappings [`Pipeline::tell_held`] would tell of.
    pub fn held_pieces(running: &[&Running]) -> Vec<ToldPiece> {
    let mut pieces = Vec::new();
    for running in running {
        let (pid, tid) = (running.pid, any_thread(running));
        let told = |(start, length, origin)| ToldPiece { pid, tid, start, length, origin };
        pieces.extend(running.mappings.all().map(told));
    }
    pieces
}

/// A thread of a process, for what is not charged to one.
fn any_thread(running: &Running) -> Tid {
    running.threads.iter().min().copied().unwrap_or(Tid(running.pid.0))
}

/// The first stack and those for which every address means the same, and the others.
///
/// Code may have come and gone at an address, so it can be anonymous for one and unknown for
/// another; few are.
fn compatible(stacks: NamedStacks<'_>) -> (NamedStacks<'_>, NamedStacks<'_>) {
    let mut is_anonymous: HashMap<Avma, bool> = HashMap::new();
    stacks.into_iter().partition(|(_, stack)| {
        let known = |place: &Place| match *place {
            Place::InFile { .. } => None,
            Place::Anonymous { address, .. } => Some((address, true)),
            Place::Unknown { address, .. } => Some((address, false)),
        };
        let mut places = stack.frames.iter().filter_map(known);
        let fits = places.all(|(address, anonymous)| {
            is_anonymous.get(&address).is_none_or(|known| *known == anonymous)
        });
        if fits {
            is_anonymous.extend(stack.frames.iter().filter_map(known));
        }
        fits
    })
}

fn held_blocks(running: &[&Running]) -> Vec<ToldBlock> {
    let mut blocks = Vec::with_capacity(running.iter().map(|running| running.heap.len()).sum());
    for running in running {
        let told = |(ptr, block)| ToldBlock::new(running.pid, ptr, &block);
        blocks.extend(running.heap.blocks_at().map(told));
    }
    blocks.sort_unstable();
    blocks
}

fn held_pieces(running: &[&Running]) -> Vec<ToldPiece> {
    let mut pieces = Vec::new();
    for Running { pid, mappings, .. } in running {
        let of_process = |(start, length, origin)| ToldPiece { pid: *pid, start, length, origin };
        pieces.extend(mappings.all().map(of_process));
    }
    pieces
}

/// Where a place lies in the layout of its process's stacks.
fn address_of(place: &Place) -> Avma {
    match *place {
        Place::InFile { image, offset: FileOffset(offset) } => {
            // A file of more than a terabyte is forged.
            let offset = offset.min((1 << FILE_BITS) - 1);
            Avma(FILES + (u64::from(image) << FILE_BITS) + offset)
        }
        Place::Anonymous { address, .. } | Place::Unknown { address, .. } => address,
    }
}

/// The stack ids under which the records speak.
struct StackNames {
    ids: HashMap<StackId, WireStackId>,
    /// Those whose frames must be told.
    told: Vec<(WireStackId, Arc<Stack>)>,
}

impl StackNames {
    /// Names for the stacks of `sites`, and for all others if the records are to go on.
    ///
    /// The kernel's ids stay; a stack whose id was forgotten gets one that is free.
    fn new(pipeline: &Pipeline, purpose: Purpose, sites: &HashSet<SiteId>) -> StackNames {
        let stacks = &pipeline.stacks;
        let all = stacks.ids();
        let mut ids = HashMap::new();
        for (id, stack) in &all {
            ids.entry(*stack).and_modify(|known| *known = (*id).min(*known)).or_insert(*id);
        }
        let taken: HashSet<WireStackId> = all.iter().map(|(id, _)| *id).collect();
        let mut free = (1..u64::MAX).rev().map(WireStackId).filter(|id| !taken.contains(id));
        let mut told = Vec::new();
        let mut used: Vec<StackId> = sites.iter().map(|site| stacks.stack_of(*site)).collect();
        used.sort_unstable();
        used.dedup();
        for stack in used {
            let is_new = !ids.contains_key(&stack);
            if is_new && let Some(id) = free.next() {
                ids.insert(stack, id);
            }
            if let Some(frames) = stacks.frames(stack)
                && (is_new || purpose == Purpose::Show)
            {
                told.push((ids[&stack], Arc::clone(frames)));
            }
        }
        if purpose == Purpose::GoOn {
            let known = all.iter().filter_map(|(id, stack)| Some((*id, stacks.frames(*stack)?)));
            told.extend(known.map(|(id, stack)| (id, Arc::clone(stack))));
        }
        told.sort_unstable_by_key(|(id, _)| *id);
        StackNames { ids, told }
    }

    fn of_site(&self, pipeline: &Pipeline, site: SiteId) -> (WireStackId, Api) {
        let stack = pipeline.stacks.stack_of(site);
        let id = if stack == StackId::NONE { None } else { self.ids.get(&stack) };
        (id.copied().unwrap_or(WireStackId(0)), pipeline.stacks.api_of(site))
    }
}
