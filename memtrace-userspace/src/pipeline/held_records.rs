//! What the running processes hold at one moment, as records.
//!
//! In: the state of a pipeline. Out: records from which another pipeline learns the same memory,
//! stacks, threads and files, but none of the work that led there: a heap snapshot.
//!
//! ```text
//!   Session, Probe…, Counters │ Process… │ Module…, Stack…, ModuleGone… │ Module…
//!   │ Thread, Held…, ThreadExit │ … │ Thread… │ Held… │ Tick
//! ```

mod stacks;

use std::collections::{BTreeSet, HashSet};

use memtrace_common::addr::{Avma, FileOffset};

use self::stacks::StackNames;
use super::Pipeline;
use super::findings::MemoryLimit;
use super::live_set::Block;
use super::mappings::Origin;
use super::processes::Running;
use super::stacks::SiteId;
use super::threads::ThreadId;
use crate::modules::Backing;
use crate::record::{Alignment, Image, Module, Pid, Process, Record, Tid, Time, WireStackId};

/// What the records are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To show what is held: only the stacks and threads that hold something.
    Show,
    /// To go on with the records that follow: everything that they may refer to as well.
    GoOn,
}

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
