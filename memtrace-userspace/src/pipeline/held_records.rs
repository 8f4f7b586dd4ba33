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
use crate::record::{Alignment, Image, Module, Pid, Process, Record, Tid, Time, WireStackId};

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
    /// Any thread: it is not charged to one.
    tid: Tid,
    start: Avma,
    length: u64,
    origin: Option<Origin>,
}

impl Pipeline {
    /// How many heap blocks and pieces of mappings [`Pipeline::tell_held`] would tell of.
    pub fn held_pieces(&self) -> usize {
        self.live_blocks + self.mapping_pieces
    }

    /// Tells what is held now. It takes 40 bytes a block meanwhile.
    pub fn tell_held<E>(
        &self,
        purpose: Purpose,
        emit: &mut impl FnMut(&Record) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut running: Vec<&Running> = self.processes.all_running().collect();
        // In order of appearance; times may be equal.
        running.sort_by_key(|running| running.entry);
        let blocks = held_blocks(&running);
        let pieces = held_pieces(&running);

        self.tell_session(emit)?;
        self.tell_processes(&running, emit)?;
        if running.is_empty() && !self.processes.is_empty() {
            // That there was one decides what an unknown thread means.
            let (time, pid) = (self.now, self.session_pid());
            emit(&Record::Process(Process {
                time,
                pid,
                parent: None,
                exe: vec![],
                command: vec![],
            }))?;
            emit(&Record::Exit { time, pid })?;
        }
        let sites = blocks.iter().map(|block| block.site);
        let sites =
            sites.chain(pieces.iter().filter_map(|piece| Some(piece.origin?.site))).collect();
        let stacks = StackNames::new(self, purpose, &sites);
        self.tell_stacks(&running, &stacks, emit)?;
        for (pid, start, size, name) in self.jit_names.symbols() {
            let (time, name) = (self.now, name.to_vec());
            emit(&Record::JitSymbol { time, pid, start, size, name })?;
        }
        if purpose == Purpose::GoOn {
            for running in &running {
                self.tell_modules(running, emit)?;
            }
        }
        self.tell_blocks(purpose, &blocks, &stacks, emit)?;
        if purpose == Purpose::GoOn {
            self.tell_releases_under_way(&stacks, emit)?;
        }
        for piece in &pieces {
            emit(&self.held_piece(piece, &stacks))?;
        }
        emit(&Record::Tick { time: self.now })
    }

    fn session_pid(&self) -> Pid {
        self.session.as_ref().map_or(Pid(0), |session| session.pid)
    }

    fn tell_session<E>(&self, emit: &mut impl FnMut(&Record) -> Result<(), E>) -> Result<(), E> {
        if let Some(session) = &self.session {
            emit(&Record::Session((**session).clone()))?;
        }
        for probe in &self.probes {
            emit(&Record::Probe((**probe).clone()))?;
        }
        if let Some(MemoryLimit { kind, limit_bytes, used_bytes }) = self.known_memory_limit() {
            let (time, pid) = (Time(0), self.session_pid());
            emit(&Record::MemoryLimit { time, pid, kind, limit_bytes, used_bytes })?;
        }
        let counters = self.counters.iter().map(|(name, value)| (name.clone(), *value));
        emit(&Record::Counters(counters.collect()))
    }

    fn tell_processes<E>(
        &self,
        running: &[&Running],
        emit: &mut impl FnMut(&Record) -> Result<(), E>,
    ) -> Result<(), E> {
        for Running { pid, entry, resident_bytes, .. } in running {
            let entry = self.processes.entry(*entry);
            emit(&Record::Process(Process {
                time: entry.started,
                pid: *pid,
                parent: entry.parent,
                exe: entry.exe.clone(),
                command: entry.command.clone(),
            }))?;
            if let Some(namespaces) = &entry.namespaces {
                emit(&Record::Namespaces((**namespaces).clone()))?;
            }
            if let Some(before) = &entry.before_attach {
                emit(&Record::BeforeAttach((**before).clone()))?;
            }
            if entry.resident_bytes.is_some() {
                let (time, rss_bytes) = (entry.started, *resident_bytes);
                emit(&Record::Resident { time, pid: *pid, rss_bytes })?;
            }
        }
        Ok(())
    }

    /// Tells the stacks, those of each process together.
    fn tell_stacks<E>(
        &self,
        running: &[&Running],
        stacks: &StackNames,
        emit: &mut impl FnMut(&Record) -> Result<(), E>,
    ) -> Result<(), E> {
        let any = running.first().map_or_else(|| self.session_pid(), |running| running.pid);
        let mut by_process: BTreeMap<Pid, NamedStacks<'_>> = BTreeMap::new();
        for (id, stack) in &stacks.told {
            let pid = stack.frames.iter().find_map(|place| match place {
                Place::InFile { .. } => None,
                Place::Anonymous { pid, .. } | Place::Unknown { pid, .. } => Some(*pid),
            });
            by_process.entry(pid.unwrap_or(any)).or_default().push((*id, stack));
        }
        for (pid, mut stacks) in by_process {
            let is_running = self.processes.find(pid).is_some();
            while !stacks.is_empty() {
                let (together, others) = compatible(stacks);
                let layout = self.lay_out(pid, &together);
                for module in &layout {
                    emit(&Record::Module(module.clone()))?;
                    if module.image != Image::Anonymous {
                        let image = ((module.start.0 - FILES) >> FILE_BITS) as u32;
                        self.tell_operations(module, image, emit)?;
                    }
                }
                for (id, stack) in together {
                    let frames = stack.frames.iter().map(address_of).collect();
                    emit(&Record::Stack { id, pid, end: stack.end, frames })?;
                }
                for Module { time, pid, start, .. } in layout {
                    emit(&Record::ModuleGone { time, pid, start })?;
                }
                stacks = others;
            }
            if !is_running {
                emit(&Record::Exit { time: self.now, pid })?;
            }
        }
        Ok(())
    }

    /// The mappings that make the addresses of these stacks mean their places.
    fn lay_out(&self, pid: Pid, stacks: &[(WireStackId, &Stack)]) -> Vec<Module> {
        let mut files = BTreeSet::new();
        let mut others: BTreeMap<Avma, bool> = BTreeMap::new();
        for place in stacks.iter().flat_map(|(_, stack)| &stack.frames) {
            match *place {
                Place::InFile { image, .. } => {
                    files.insert(image);
                }
                Place::Anonymous { address, .. } => {
                    others.insert(address, true);
                }
                Place::Unknown { address, .. } => {
                    others.entry(address).or_insert(false);
                }
            }
        }
        let module = |start, end, image| Module {
            time: self.now,
            pid,
            start: Avma(start),
            end: Avma(end),
            offset: FileOffset(0),
            image,
        };
        let files = files.into_iter().map(|index| {
            let start = FILES + (u64::from(index) << FILE_BITS);
            let image = Image::clone(&self.images.all()[index as usize]);
            module(start, start + (1 << FILE_BITS), image)
        });
        let mut layout: Vec<Module> = files.collect();
        // Anonymous code reaches from its first address to its last, if none of unknown code lies
        // between them.
        let mut span: Option<(u64, u64)> = None;
        for (Avma(address), is_anonymous) in others {
            let end = address.saturating_add(1);
            span = match (span, is_anonymous) {
                (Some((start, _)), true) => Some((start, end)),
                (None, true) => Some((address, end)),
                (Some((start, end)), false) => {
                    layout.push(module(start, end, Image::Anonymous));
                    None
                }
                (None, false) => None,
            };
        }
        layout.extend(span.map(|(start, end)| module(start, end, Image::Anonymous)));
        layout
    }

    fn tell_modules<E>(
        &self,
        running: &Running,
        emit: &mut impl FnMut(&Record) -> Result<(), E>,
    ) -> Result<(), E> {
        for (start, end, backing) in running.modules.all() {
            let (image, offset) = match backing {
                Backing::Anonymous => (Image::Anonymous, FileOffset(0)),
                Backing::Image(image, offset) => {
                    (Image::clone(&self.images.all()[image.index() as usize]), offset)
                }
            };
            let (time, pid) = (self.now, running.pid);
            let module = Module { time, pid, start, end, offset, image };
            emit(&Record::Module(module.clone()))?;
            if let Backing::Image(image, _) = backing {
                self.tell_operations(&module, image.index(), emit)?;
            }
        }
        Ok(())
    }

    /// Tells to which operations the code of a mapping of an image belongs.
    fn tell_operations<E>(
        &self,
        module: &Module,
        image: u32,
        emit: &mut impl FnMut(&Record) -> Result<(), E>,
    ) -> Result<(), E> {
        let &Module { pid, start: Avma(base), end: Avma(end), offset: from, .. } = module;
        let to = FileOffset(from.0.saturating_add(end - base));
        for (start, end, class) in self.operations.code_of(image, from, to) {
            let (start, length) = (Avma(base + (start.0 - from.0)), end.0 - start.0);
            emit(&Record::Operation { pid, start, length, class: class.to_owned() })?;
        }
        Ok(())
    }

    /// Tells threads and blocks: first of threads that have ended, whose ids may be used again.
    ///
    /// What a `realloc` under way took comes before a block that lies in its place now.
    fn tell_blocks<E>(
        &self,
        purpose: Purpose,
        blocks: &[ToldBlock],
        stacks: &StackNames,
        emit: &mut impl FnMut(&Record) -> Result<(), E>,
    ) -> Result<(), E> {
        let time = self.now;
        let running = self.threads.all_running();
        let mut threads: Vec<ThreadId> = match purpose {
            Purpose::GoOn => running.keys().copied().collect(),
            Purpose::Show => {
                let threads: BTreeSet<u32> = blocks.iter().map(|block| block.thread).collect();
                let threads = threads.into_iter().map(ThreadId::from_bits);
                threads.filter(|thread| running.contains_key(thread)).collect()
            }
        };
        threads.sort_by_key(|thread| thread.to_bits());
        let retired: Vec<_> = match purpose {
            Purpose::GoOn => {
                let of_thread = |thread: &ThreadId| {
                    self.retired_under_way(*thread).map(|retired| (*thread, retired))
                };
                threads.iter().filter_map(of_thread).collect()
            }
            Purpose::Show => Vec::new(),
        };
        let places: BTreeSet<_> = retired.iter().map(|(_, (pid, ptr, _))| (*pid, *ptr)).collect();
        let is_in_place = |block: &ToldBlock| places.contains(&(block.pid, block.ptr));
        let (retiring, others): (Vec<ThreadId>, Vec<ThreadId>) = threads
            .into_iter()
            .partition(|thread| retired.iter().any(|(retiring, _)| retiring == thread));
        let retiring_tids: HashSet<Tid> = retiring.iter().map(|thread| running[thread]).collect();

        let (mut late_threads, mut late_blocks) = (Vec::new(), Vec::new());
        for blocks in blocks.chunk_by(|a, b| a.thread == b.thread) {
            let Some(thread) = blocks.first().map(|block| ThreadId::from_bits(block.thread)) else {
                continue;
            };
            if running.contains_key(&thread) {
                continue;
            }
            let (_, tid, _) = self.threads.name(thread);
            match blocks.iter().any(is_in_place) {
                true if !retiring_tids.contains(&tid) => late_threads.push((thread, blocks)),
                true => {
                    let (late, early): (Vec<_>, Vec<_>) =
                        blocks.iter().copied().partition(is_in_place);
                    self.tell_ended_thread(thread, &early, stacks, emit)?;
                    // For the thread that has its id now: a rare thing thrice over.
                    late_blocks.extend(late.into_iter().map(|block| (tid, block)));
                }
                false => self.tell_ended_thread(thread, blocks, stacks, emit)?,
            }
        }
        let started = |thread: &ThreadId| {
            let (pid, _, name) = self.threads.name(*thread);
            Record::Thread { time, pid, tid: running[thread], name: name.to_vec() }
        };
        for thread in &retiring {
            emit(&started(thread))?;
        }
        for (thread, (pid, ptr, block)) in retired {
            let tid = running[&thread];
            if let Some(block) = block {
                let owner = running.get(&block.thread).copied().unwrap_or(tid);
                emit(&self.held(&ToldBlock::new(pid, ptr, &block), owner, stacks))?;
            }
            emit(&Record::Retire { time, tid, ptr })?;
        }
        for (thread, blocks) in late_threads {
            self.tell_ended_thread(thread, blocks, stacks, emit)?;
        }
        // Their ids may be those of threads that have ended.
        for thread in &others {
            emit(&started(thread))?;
        }
        for (tid, block) in late_blocks {
            emit(&self.held(&block, tid, stacks))?;
        }
        for block in blocks {
            if let Some(tid) = running.get(&ThreadId::from_bits(block.thread)) {
                emit(&self.held(block, *tid, stacks))?;
            }
        }
        Ok(())
    }

    /// Tells a thread that has ended, and what it allocated that is held.
    fn tell_ended_thread<E>(
        &self,
        thread: ThreadId,
        blocks: &[ToldBlock],
        stacks: &StackNames,
        emit: &mut impl FnMut(&Record) -> Result<(), E>,
    ) -> Result<(), E> {
        let time = self.now;
        let (pid, tid, name) = self.threads.name(thread);
        emit(&Record::Thread { time, pid, tid, name: name.to_vec() })?;
        for block in blocks {
            emit(&self.held(block, tid, stacks))?;
        }
        emit(&Record::ThreadExit { time, tid })?;
        match self.processes.find(pid) {
            Some(_) => Ok(()),
            None => emit(&Record::Exit { time, pid }),
        }
    }

    fn held_piece(&self, piece: &ToldPiece, stacks: &StackNames) -> Record {
        let &ToldPiece { pid, tid, start, length, origin } = piece;
        let born = origin.map_or(Time(0), |origin| origin.born);
        let (stack, api) = match origin {
            Some(origin) => {
                let (stack, api) = stacks.of_site(self, origin.site);
                (stack, Some(api))
            }
            None => (WireStackId(0), None),
        };
        Record::Held { born, pid, tid, api, start, length, alignment: Alignment::NONE, stack }
    }

    fn held(&self, block: &ToldBlock, tid: Tid, stacks: &StackNames) -> Record {
        let &ToldBlock { thread: _, pid, ptr, size_bytes, site, born } = block;
        let (stack, api) = stacks.of_site(self, site);
        let alignment = self.stacks.alignment(site);
        let (api, start, length) = (Some(api), ptr, size_bytes);
        Record::Held { born, pid, tid, api, start, length, alignment, stack }
    }

    /// Tells what `munmap` and `mremap` under way took, which may come back.
    fn tell_releases_under_way<E>(
        &self,
        stacks: &StackNames,
        emit: &mut impl FnMut(&Record) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut threads: Vec<_> = self.threads.all_running().into_iter().collect();
        threads.sort_by_key(|(thread, _)| thread.to_bits());
        for (thread, tid) in threads {
            let Some((running, released)) = self.released_under_way(thread) else { continue };
            let Some((start, length)) = released.range() else { continue };
            let (pid, any_tid) = (running.pid, any_thread(running));
            for (start, length, origin) in running.mappings.cuts(released) {
                let piece = ToldPiece { pid, tid: any_tid, start, length, origin };
                emit(&self.held_piece(&piece, stacks))?;
            }
            emit(&Record::Unmap { time: self.now, tid, start, length })?;
        }
        Ok(())
    }
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
        // Where something is held, 0 stands for no stack; the kernel gives it to none.
        for (id, stack) in all.iter().filter(|(id, _)| *id != WireStackId(0)) {
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
