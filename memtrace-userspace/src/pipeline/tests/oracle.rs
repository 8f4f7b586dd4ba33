//! The stupid twin of the pipeline: it keeps everything and adds up at the end.
//!
//! Blocks are never forgotten, a mapping is a set of pages, code is an array of bytes, and at
//! each new peak all that is held is written down. It has no limits.

mod life;
mod sums;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use memtrace_common::event::Api;
use memtrace_common::unwind::End;

use super::super::snapshot::Usage;
use crate::record::{Image, MapKind, Pid, Record, Tid};

/// Code addresses lie below this.
pub(super) const CODE_BYTES: usize = 64;

/// A frame, without reference to a table.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Where {
    File(String, u64),
    Anonymous(u32, u64),
    Unknown(u32, u64),
}

/// How a stack ended, and its frames.
pub(super) type Path = (End, Vec<Where>);

/// What an event is charged to: frames, or a stack id whose frames may still come.
#[derive(Clone, Debug, PartialEq)]
enum Key {
    Path(Path),
    Awaited(usize),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Held,
    Released,
    /// Held when its program ended.
    Abandoned,
}

struct Block {
    process: usize,
    program: usize,
    address: u64,
    size: u64,
    key: Key,
    api: Api,
    thread: usize,
    inherited: bool,
    state: State,
    temporary: bool,
}

struct Mapping {
    process: usize,
    program: usize,
    key: Key,
    api: Api,
    counted: bool,
    inherited: bool,
    size: u64,
    pages: BTreeSet<u64>,
    abandoned: bool,
}

#[derive(Clone, Debug, PartialEq)]
struct Code {
    module: usize,
    image: Option<String>,
    offset: u64,
}

pub(super) struct OracleProcess {
    pub(super) pid: u32,
    pub(super) parent: Option<u32>,
    pub(super) exe: Vec<u8>,
    pub(super) started: u64,
    pub(super) ended: Option<u64>,
    pub(super) resident: Option<u64>,
    /// Changes with each exec.
    program: usize,
    code: Vec<Option<Code>>,
}

pub(super) struct OracleThread {
    pub(super) tid: u32,
    pub(super) pid: u32,
    pub(super) name: Vec<u8>,
    process: usize,
    alive: bool,
    /// The last blocks it allocated.
    newest: Vec<u64>,
    /// Process, program, address, block.
    retired: Option<(usize, usize, u64, Option<usize>)>,
    released: Option<Taken>,
}

/// What a `munmap` or `mremap` took: mappings and pages.
struct Taken {
    process: usize,
    program: usize,
    range: Range<u64>,
    from: Vec<(usize, u64)>,
}

/// The state after one record.
struct Moment {
    time: u64,
    live: u64,
    mapped: u64,
    resident: u64,
    allocated: Option<u64>,
}

#[derive(Default)]
pub(super) struct Oracle {
    session: Option<u32>,
    pub(super) now: u64,
    pub(super) events: u64,
    pub(super) processes: Vec<OracleProcess>,
    pub(super) threads: Vec<OracleThread>,
    blocks: Vec<Block>,
    mappings: Vec<Mapping>,
    ids: HashMap<u64, Key>,
    /// The frames of [`Key::Awaited`], once they have come.
    arrived: Vec<Option<Path>>,
    /// Every path that has arrived, and the operation that it belonged to then.
    paths: HashMap<Path, Option<String>>,
    /// The operation of each byte of a file.
    operations: BTreeMap<(String, u64), String>,
    /// Their names, in order.
    pub(super) operation_names: BTreeSet<String>,
    pub(super) peak: (u64, u64),
    at_peak: HashMap<usize, u64>,
    mapped_peak: u64,
    mapped_at_peak: HashMap<usize, u64>,
    moments: Vec<Moment>,
    counters: BTreeMap<String, u64>,
    programs: usize,
    modules: usize,
}

impl Oracle {
    pub(super) fn apply(&mut self, record: &Record) {
        let mut allocated = None;
        match record.clone() {
            Record::Session(session) => self.session = Some(session.pid.0),
            Record::Process(process) => {
                self.pass(process.time.0);
                let p = self.process(process.pid.0);
                self.processes[p].exe = process.exe;
                if let Some(Pid(parent)) = process.parent {
                    self.processes[p].parent = Some(parent);
                }
            }
            Record::Thread { time, pid, tid, name } => {
                self.pass(time.0);
                let p = self.process(pid.0);
                match self.alive(tid.0) {
                    Some(t) if self.threads[t].process == p => self.threads[t].name = name,
                    Some(t) => {
                        self.count("missed_thread_exits");
                        self.threads[t].alive = false;
                        self.start_thread(p, tid.0, name);
                    }
                    None => {
                        self.start_thread(p, tid.0, name);
                    }
                }
            }
            Record::ThreadExit { time, tid } => {
                self.pass(time.0);
                if let Some(t) = self.alive(tid.0) {
                    self.threads[t].alive = false;
                }
            }
            Record::Module(module) => {
                self.pass(module.time.0);
                let p = self.process(module.pid.0);
                self.modules += 1;
                for address in module.start.0..module.end.0 {
                    let image = match &module.image {
                        Image::File { path, .. } => Some(format!("{path:?}")),
                        Image::Vdso => Some("vdso".to_owned()),
                        Image::Anonymous => None,
                    };
                    let offset = module.offset.0 + address - module.start.0;
                    self.processes[p].code[address as usize] =
                        Some(Code { module: self.modules, image, offset });
                }
            }
            Record::Operation { pid, start, length, class } => {
                if let Some(p) = self.running(pid.0)
                    && let Some(Code { image: Some(image), offset, .. }) =
                        self.processes[p].code[start.0 as usize].clone()
                {
                    self.operation_names.insert(class.clone());
                    for byte in offset..offset + length {
                        let place = (image.clone(), byte);
                        self.operations.entry(place).or_insert_with(|| class.clone());
                    }
                }
            }
            Record::ModuleGone { time, pid, start } => {
                self.pass(time.0);
                self.module_gone(pid.0, start.0 as usize);
            }
            Record::Stack { id, pid, end, frames } => {
                let frames = frames.iter().map(|frame| self.locate(pid.0, frame.0)).collect();
                let path = (end, frames);
                let operation = self.innermost_operation(&path);
                self.paths.entry(path.clone()).or_insert(operation);
                if let Some(Key::Awaited(n)) = self.ids.get(&id.0) {
                    self.arrived[*n] = Some(path.clone());
                }
                self.ids.insert(id.0, Key::Path(path));
            }
            Record::Alloc { time, tid, api, ptr, size, alignment: _, stack } => {
                self.event(time.0);
                if let Some(thread) = self.actor(tid) {
                    self.threads[thread].retired = None;
                    let newest = &mut self.threads[thread].newest;
                    newest.push(ptr.0);
                    // One allocation may lie between.
                    let old = newest.len().saturating_sub(2);
                    newest.drain(..old);
                    let process = self.threads[thread].process;
                    if let Some(old) = self.block_at(process, ptr.0) {
                        self.count("address_reuses");
                        self.blocks[old].state = State::Released;
                    }
                    let (key, program) = (self.key(stack.0), self.processes[process].program);
                    self.blocks.push(Block {
                        process,
                        program,
                        address: ptr.0,
                        size,
                        key,
                        api,
                        thread,
                        inherited: false,
                        state: State::Held,
                        temporary: false,
                    });
                    allocated = Some(size);
                }
            }
            Record::Free { time, tid, api: _, ptr } => {
                self.event(time.0);
                if let Some(thread) = self.actor(tid) {
                    let state = &mut self.threads[thread];
                    state.retired = None;
                    match self.block_at(self.threads[thread].process, ptr.0) {
                        Some(block) => {
                            self.blocks[block].state = State::Released;
                            let newest = &mut self.threads[thread].newest;
                            // Of a copy, the child did not allocate what it releases.
                            if self.blocks[block].thread == thread
                                && !self.blocks[block].inherited
                                && let Some(place) = newest.iter().position(|at| *at == ptr.0)
                            {
                                // Its place stays taken.
                                newest[place] = 0;
                                self.blocks[block].temporary = true;
                            }
                        }
                        None => self.count("orphan_frees"),
                    }
                }
            }
            Record::Retire { time, tid, ptr } => {
                self.event(time.0);
                if let Some(thread) = self.actor(tid) {
                    let process = self.threads[thread].process;
                    let block = self.block_at(process, ptr.0);
                    match block {
                        Some(block) => self.blocks[block].state = State::Released,
                        None => self.count("orphan_frees"),
                    }
                    let program = self.processes[process].program;
                    self.threads[thread].retired = Some((process, program, ptr.0, block));
                }
            }
            Record::Restore { time, tid, ptr } => {
                self.event(time.0);
                if let Some(thread) = self.actor(tid) {
                    let process = self.threads[thread].process;
                    let program = self.processes[process].program;
                    match self.threads[thread].retired.take() {
                        Some((p, g, at, block)) if (p, g, at) == (process, program, ptr.0) => {
                            match block {
                                Some(block) => {
                                    if let Some(other) = self.block_at(process, ptr.0) {
                                        self.count("address_reuses");
                                        self.blocks[other].state = State::Released;
                                    }
                                    self.blocks[block].state = State::Held;
                                }
                                None => *self.counter("orphan_frees") -= 1,
                            }
                        }
                        _ => self.count("orphan_restores"),
                    }
                }
            }
            Record::Map { time, tid, start, length, kind, stack } => {
                self.event(time.0);
                if let Some(thread) = self.actor(tid) {
                    self.threads[thread].released = None;
                    if length > 0 {
                        let counted = kind != MapKind::Reserved;
                        // An id is awaited only once something is charged to it.
                        let key = if counted { self.key(stack.0) } else { missing() };
                        let pages = pages(start.0, length);
                        self.map(thread, pages, key, Api::Mmap, counted);
                    }
                }
            }
            Record::Unmap { time, tid, start, length }
            | Record::RemapStart { time, tid, start, length } => {
                self.event(time.0);
                if let Some(thread) = self.actor(tid) {
                    let process = self.threads[thread].process;
                    let range = pages(start.0, length);
                    let from = self.unmap(process, range.clone());
                    if from.is_empty() && length > 0 {
                        self.count("orphan_unmaps");
                    }
                    let program = self.processes[process].program;
                    self.threads[thread].released = Some(Taken { process, program, range, from });
                }
            }
            Record::UnmapFailed { time, tid } => {
                self.event(time.0);
                if let Some(thread) = self.actor(tid) {
                    match self.released(thread) {
                        Some(Taken { process, range, from, .. }) => {
                            if from.is_empty() && !range.is_empty() {
                                *self.counter("orphan_unmaps") -= 1;
                            }
                            for (mapping, page) in from {
                                if self.mapping_at(process, page).is_none() {
                                    self.mappings[mapping].pages.insert(page);
                                }
                            }
                        }
                        None => self.count("orphan_unmap_failures"),
                    }
                }
            }
            Record::Remap { time, tid, start, length, stack } => {
                self.event(time.0);
                if let Some(thread) = self.actor(tid) {
                    let released = self.released(thread);
                    if released.is_none() {
                        self.count("orphan_remaps");
                    }
                    let (old, from) =
                        released.map(|taken| (taken.range, taken.from)).unwrap_or_default();
                    let new = pages(start.0, length);
                    if length > 0 {
                        let key = self.key(stack.0);
                        self.unmap(self.threads[thread].process, new.clone());
                        for &(mapping, page) in &from {
                            let moved = page - old.start + new.start;
                            if new.contains(&moved) {
                                self.mappings[mapping].pages.insert(moved);
                            }
                        }
                        let last = from.last();
                        let counted = last.is_none_or(|&(m, _)| self.mappings[m].counted);
                        let growth = new.start + (old.end - old.start)..new.end;
                        if !growth.is_empty() {
                            self.map(thread, growth, key, Api::Mremap, counted);
                        }
                    }
                }
            }
            Record::Break { time, tid, old, new, stack } => {
                self.event(time.0);
                if let Some(thread) = self.actor(tid) {
                    self.threads[thread].released = None;
                    let (from, to) = (old.0.div_ceil(4096), new.0.div_ceil(4096));
                    if old.0 != 0 && from < to {
                        let key = self.key(stack.0);
                        self.map(thread, from..to, key, Api::Brk, true);
                    } else if old.0 != 0 && to < from {
                        self.unmap(self.threads[thread].process, to..from);
                    }
                }
            }
            Record::Commit { time, tid, start, length, stack } => {
                self.event(time.0);
                if let Some(thread) = self.actor(tid) {
                    self.threads[thread].released = None;
                    let reserved = self.those(thread, pages(start.0, length), false);
                    if !reserved.is_empty() {
                        let key = self.key(stack.0);
                        self.map(thread, reserved, key, Api::Mprotect, true);
                    }
                }
            }
            Record::Decommit { time, tid, start, length } => {
                self.event(time.0);
                if let Some(thread) = self.actor(tid) {
                    self.threads[thread].released = None;
                    let memory = self.those(thread, pages(start.0, length), true);
                    self.map(thread, memory, missing(), Api::Mprotect, false);
                }
            }
            Record::Fork { time, parent, child } => {
                self.pass(time.0);
                self.fork(parent.0, child.0);
            }
            Record::Exec { time, pid, exe, command: _ } => {
                self.pass(time.0);
                let p = self.process(pid.0);
                self.end_program(p);
                for thread in &mut self.threads {
                    if thread.process == p && thread.tid != pid.0 {
                        thread.alive = false;
                    }
                }
                self.programs += 1;
                let process = &mut self.processes[p];
                process.program = self.programs;
                process.exe = exe;
                process.code = vec![None; CODE_BYTES];
            }
            Record::Exit { time, pid } => {
                self.pass(time.0);
                if let Some(p) = self.running(pid.0) {
                    self.exit(p);
                }
            }
            Record::Resident { time, pid, rss_bytes } => {
                self.pass(time.0);
                if let Some(p) = self.running(pid.0) {
                    self.processes[p].resident = Some(rss_bytes);
                }
            }
            Record::Counters(counters) => self.counters.extend(counters),
            // Names have no influence on numbers.
            Record::JitSymbol { time, .. } => self.pass(time.0),
            Record::Tick { time } | Record::End { time, reason: _ } => self.pass(time.0),
            Record::Mark { time, text: _ } => self.pass(time.0),
            Record::Held { .. } => unreachable!("a session does not begin in the middle"),
            Record::Probe(_)
            | Record::BeforeAttach(_)
            | Record::Namespaces(_)
            | Record::MemoryDetail { .. }
            | Record::MemoryLimit { .. } => {}
        }
        self.settle(allocated);
    }

    fn innermost_operation(&self, (_, frames): &Path) -> Option<String> {
        frames.iter().find_map(|frame| match frame {
            Where::File(image, offset) => self.operations.get(&(image.clone(), *offset)).cloned(),
            Where::Anonymous(..) | Where::Unknown(..) => None,
        })
    }

    /// The operation of a path.
    pub(super) fn operation(&self, path: &Path) -> Option<String> {
        self.paths.get(path).cloned().flatten()
    }

    fn event(&mut self, time: u64) {
        self.events += 1;
        self.pass(time);
    }

    fn pass(&mut self, time: u64) {
        self.now = self.now.max(time);
    }

    fn counter(&mut self, name: &str) -> &mut u64 {
        self.counters.entry(name.to_owned()).or_default()
    }

    fn count(&mut self, name: &str) {
        *self.counter(name) += 1;
    }

    fn key(&mut self, id: u64) -> Key {
        if id == 0 {
            return Key::Path((End::NoScratch, vec![]));
        }
        let next = self.arrived.len();
        let key = self.ids.entry(id).or_insert(Key::Awaited(next)).clone();
        if key == Key::Awaited(next) {
            self.arrived.push(None);
        }
        key
    }

    fn block_at(&self, process: usize, address: u64) -> Option<usize> {
        let program = self.processes[process].program;
        self.blocks.iter().position(|b| {
            b.program == program
                && b.process == process
                && b.address == address
                && b.state == State::Held
        })
    }

    fn mapping_at(&self, process: usize, page: u64) -> Option<usize> {
        let program = self.processes[process].program;
        self.mappings
            .iter()
            .position(|m| m.process == process && m.program == program && m.pages.contains(&page))
    }

    /// Those pages that are in mappings which count, or in others.
    fn those(&self, thread: usize, range: Range<u64>, counted: bool) -> BTreeSet<u64> {
        let process = self.threads[thread].process;
        let counts = |page: &u64| {
            self.mapping_at(process, *page).is_some_and(|m| self.mappings[m].counted == counted)
        };
        range.filter(counts).collect()
    }

    fn map(
        &mut self,
        thread: usize,
        pages: impl IntoIterator<Item = u64>,
        key: Key,
        api: Api,
        counted: bool,
    ) {
        let process = self.threads[thread].process;
        let pages: BTreeSet<u64> = pages.into_iter().collect();
        self.unmap(process, pages.iter().copied());
        self.mappings.push(Mapping {
            process,
            program: self.processes[process].program,
            key,
            api,
            counted,
            inherited: false,
            size: pages.len() as u64,
            pages,
            abandoned: false,
        });
    }

    fn unmap(&mut self, process: usize, pages: impl IntoIterator<Item = u64>) -> Vec<(usize, u64)> {
        let mut taken = vec![];
        for page in pages {
            if let Some(mapping) = self.mapping_at(process, page) {
                self.mappings[mapping].pages.remove(&page);
                taken.push((mapping, page));
            }
        }
        taken
    }

    /// What the thread's call took, if its program still runs.
    fn released(&mut self, thread: usize) -> Option<Taken> {
        let process = self.threads[thread].process;
        let taken = self.threads[thread].released.take()?;
        let current = (process, self.processes[process].program);
        ((taken.process, taken.program) == current).then_some(taken)
    }
}

fn missing() -> Key {
    Key::Path((End::Missing, vec![]))
}

fn pages(start: u64, length: u64) -> Range<u64> {
    start / 4096..if length == 0 { start / 4096 } else { (start + length).div_ceil(4096) }
}
