//! The stupid twin of the pipeline: it keeps everything and adds up at the end.
//!
//! Blocks are never forgotten, a mapping is a set of pages, code is an array of bytes, and at
//! each new peak all that is held is written down. It has no limits.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

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
    newest: Option<u64>,
    /// Process, program, address, block.
    retired: Option<(usize, usize, u64, Option<usize>)>,
    /// Process, program, first page, pages, what was taken from which mapping.
    released: Option<(usize, usize, u64, u64, Vec<(usize, u64)>)>,
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
    pub(super) temporary: u64,
    pub(super) processes: Vec<OracleProcess>,
    pub(super) threads: Vec<OracleThread>,
    blocks: Vec<Block>,
    mappings: Vec<Mapping>,
    ids: HashMap<u64, Key>,
    /// The frames of [`Key::Awaited`], once they have come.
    arrived: Vec<Option<Path>>,
    paths: HashSet<Path>,
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
            Record::ModuleGone { time, pid, start } => {
                self.pass(time.0);
                self.module_gone(pid.0, start.0 as usize);
            }
            Record::Stack { id, pid, end, frames } => {
                let frames = frames.iter().map(|frame| self.locate(pid.0, frame.0)).collect();
                let path = (end, frames);
                self.paths.insert(path.clone());
                if let Some(Key::Awaited(n)) = self.ids.get(&id.0) {
                    self.arrived[*n] = Some(path.clone());
                }
                self.ids.insert(id.0, Key::Path(path));
            }
            Record::Alloc { time, tid, api, ptr, size, stack } => {
                self.event(time.0);
                if let Some(thread) = self.actor(tid) {
                    self.threads[thread].retired = None;
                    self.threads[thread].newest = Some(ptr.0);
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
                    });
                    allocated = Some(size);
                }
            }
            Record::Free { time, tid, api: _, ptr } => {
                self.event(time.0);
                if let Some(thread) = self.actor(tid) {
                    let state = &mut self.threads[thread];
                    state.retired = None;
                    let newest = state.newest == Some(ptr.0);
                    if newest {
                        state.newest = None;
                    }
                    match self.block_at(self.threads[thread].process, ptr.0) {
                        Some(block) => {
                            self.blocks[block].state = State::Released;
                            if newest && self.blocks[block].thread == thread {
                                self.temporary += 1;
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
                    let taken = self.unmap(process, range.clone());
                    if taken.is_empty() && length > 0 {
                        self.count("orphan_unmaps");
                    }
                    let program = self.processes[process].program;
                    let count = range.end - range.start;
                    self.threads[thread].released =
                        Some((process, program, range.start, count, taken));
                }
            }
            Record::UnmapFailed { time, tid } => {
                self.event(time.0);
                if let Some(thread) = self.actor(tid) {
                    match self.released(thread) {
                        Some((_, count, taken)) => {
                            if taken.is_empty() && count > 0 {
                                *self.counter("orphan_unmaps") -= 1;
                            }
                            let process = self.threads[thread].process;
                            for (mapping, page) in taken {
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
                    let (old, kept, taken) = released.unwrap_or_default();
                    let new = pages(start.0, length);
                    if length > 0 {
                        let key = self.key(stack.0);
                        self.unmap(self.threads[thread].process, new.clone());
                        for &(mapping, page) in &taken {
                            let moved = page - old + new.start;
                            if new.contains(&moved) {
                                self.mappings[mapping].pages.insert(moved);
                            }
                        }
                        let counted =
                            taken.last().is_none_or(|&(mapping, _)| self.mappings[mapping].counted);
                        if new.start + kept < new.end {
                            let growth = new.start + kept..new.end;
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
            Record::Tick { time } | Record::End { time, reason: _ } => self.pass(time.0),
            Record::Probe(_) | Record::BeforeAttach(_) => {}
        }
        self.settle(allocated);
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

    fn running(&self, pid: u32) -> Option<usize> {
        self.processes.iter().position(|p| p.pid == pid && p.ended.is_none())
    }

    fn process(&mut self, pid: u32) -> usize {
        self.running(pid).unwrap_or_else(|| {
            self.programs += 1;
            self.processes.push(OracleProcess {
                pid,
                parent: None,
                exe: vec![],
                started: self.now,
                ended: None,
                resident: None,
                program: self.programs,
                code: vec![None; CODE_BYTES],
            });
            self.processes.len() - 1
        })
    }

    fn alive(&self, tid: u32) -> Option<usize> {
        self.threads.iter().position(|thread| thread.tid == tid && thread.alive)
    }

    fn start_thread(&mut self, process: usize, tid: u32, name: Vec<u8>) -> usize {
        let pid = self.processes[process].pid;
        self.threads.push(OracleThread {
            tid,
            pid,
            name,
            process,
            alive: true,
            newest: None,
            retired: None,
            released: None,
        });
        self.threads.len() - 1
    }

    fn actor(&mut self, Tid(tid): Tid) -> Option<usize> {
        if let Some(thread) = self.alive(tid) {
            return Some(thread);
        }
        if let Some(process) = self.running(tid) {
            return Some(self.start_thread(process, tid, vec![]));
        }
        if self.processes.is_empty()
            && let Some(pid) = self.session
        {
            self.process(pid);
        }
        let running: Vec<_> =
            (0..self.processes.len()).filter(|&p| self.processes[p].ended.is_none()).collect();
        if let [process] = running[..] {
            self.count("threads_without_start");
            return Some(self.start_thread(process, tid, vec![]));
        }
        self.count("events_of_unknown_threads");
        None
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

    fn map(
        &mut self,
        thread: usize,
        range: std::ops::Range<u64>,
        key: Key,
        api: Api,
        counted: bool,
    ) {
        let process = self.threads[thread].process;
        self.unmap(process, range.clone());
        self.mappings.push(Mapping {
            process,
            program: self.processes[process].program,
            key,
            api,
            counted,
            inherited: false,
            size: range.end - range.start,
            pages: range.collect(),
            abandoned: false,
        });
    }

    fn unmap(&mut self, process: usize, range: std::ops::Range<u64>) -> Vec<(usize, u64)> {
        let mut taken = vec![];
        for page in range {
            if let Some(mapping) = self.mapping_at(process, page) {
                self.mappings[mapping].pages.remove(&page);
                taken.push((mapping, page));
            }
        }
        taken
    }

    /// What the thread's call took, if its program still runs.
    fn released(&mut self, thread: usize) -> Option<(u64, u64, Vec<(usize, u64)>)> {
        let process = self.threads[thread].process;
        let (p, program, start, count, taken) = self.threads[thread].released.take()?;
        let current = (process, self.processes[process].program);
        ((p, program) == current).then_some((start, count, taken))
    }

    fn module_gone(&mut self, pid: u32, start: usize) {
        if let Some(p) = self.running(pid) {
            let code = &mut self.processes[p].code;
            let module = |code: &Vec<Option<Code>>, at: usize| {
                code.get(at).and_then(|code| code.as_ref()).map(|code| code.module)
            };
            let gone = module(code, start);
            if gone.is_some() && (start == 0 || module(code, start - 1) != gone) {
                for at in start..CODE_BYTES {
                    if module(code, at) != gone {
                        break;
                    }
                    code[at] = None;
                }
                return;
            }
        }
        self.count("orphan_module_ends");
    }

    fn locate(&self, pid: u32, address: u64) -> Where {
        let code = self.running(pid).and_then(|p| self.processes[p].code.get(address as usize));
        match code {
            Some(Some(Code { image: Some(image), offset, .. })) => {
                Where::File(image.clone(), *offset)
            }
            Some(Some(Code { image: None, .. })) => Where::Anonymous(pid, address),
            _ => Where::Unknown(pid, address),
        }
    }

    fn fork(&mut self, parent: u32, child: u32) {
        if let Some(c) = self.running(child) {
            let blocks = self.blocks.iter().any(|b| b.process == c && b.state == State::Held);
            let program = self.processes[c].program;
            let mapped = self
                .mappings
                .iter()
                .any(|m| m.process == c && m.program == program && !m.pages.is_empty());
            if blocks || mapped {
                self.count("missed_process_exits");
                self.exit(c);
            }
        }
        let c = self.process(child);
        self.processes[c].parent = Some(parent);
        let Some(p) = self.running(parent).filter(|&p| p != c) else {
            self.count("orphan_forks");
            return;
        };
        if self.processes[c].code.iter().all(Option::is_none) {
            self.processes[c].code = self.processes[p].code.clone();
        }
        let program = self.processes[c].program;
        for i in 0..self.blocks.len() {
            let Block { process, state, address, size, ref key, api, thread, .. } = self.blocks[i];
            if process == p && state == State::Held {
                let key = key.clone();
                self.blocks.push(Block {
                    process: c,
                    program,
                    address,
                    size,
                    key,
                    api,
                    thread,
                    inherited: true,
                    state: State::Held,
                });
            }
        }
        for i in 0..self.mappings.len() {
            let Mapping { process, ref key, api, counted, ref pages, abandoned, .. } =
                self.mappings[i];
            if process == p && !abandoned && !pages.is_empty() {
                let (key, pages) = (key.clone(), pages.clone());
                self.mappings.push(Mapping {
                    process: c,
                    program,
                    key,
                    api,
                    counted,
                    inherited: true,
                    size: pages.len() as u64,
                    pages,
                    abandoned: false,
                });
            }
        }
    }

    fn end_program(&mut self, process: usize) {
        for block in &mut self.blocks {
            if block.process == process && block.state == State::Held {
                block.state = State::Abandoned;
            }
        }
        for mapping in &mut self.mappings {
            mapping.abandoned |= mapping.process == process;
        }
    }

    fn exit(&mut self, process: usize) {
        self.end_program(process);
        self.processes[process].ended = Some(self.now);
        for thread in &mut self.threads {
            thread.alive &= thread.process != process;
        }
    }

    fn settle(&mut self, allocated: Option<u64>) {
        let held = self.blocks.iter().enumerate().filter(|(_, b)| b.state == State::Held);
        let held: HashMap<_, _> = held.map(|(i, block)| (i, block.size)).collect();
        let live = held.values().sum();
        if live > self.peak.0 {
            self.peak = (live, self.now);
            self.at_peak = held;
        }
        let held = self.mappings.iter().enumerate().filter(|(_, m)| m.counted && !m.abandoned);
        let held: HashMap<_, _> = held.map(|(i, m)| (i, m.pages.len() as u64 * 4096)).collect();
        let mapped = held.values().sum();
        if mapped > self.mapped_peak {
            self.mapped_peak = mapped;
            self.mapped_at_peak = held;
        }
        let running = self.processes.iter().filter(|process| process.ended.is_none());
        let resident = running.filter_map(|process| process.resident).sum();
        self.moments.push(Moment { time: self.now, live, mapped, resident, allocated });
    }

    fn path(&self, key: &Key) -> Path {
        match key {
            Key::Path(path) => path.clone(),
            Key::Awaited(n) => self.arrived[*n].clone().unwrap_or((End::Missing, vec![])),
        }
    }

    /// Usage of the heap by whatever `of` makes of a path, API, process and thread.
    pub(super) fn heap<K: Ord>(
        &self,
        of: impl Fn(Path, Api, usize, usize) -> K,
    ) -> BTreeMap<K, Usage> {
        let mut sums: BTreeMap<K, Usage> = BTreeMap::new();
        for (i, block) in self.blocks.iter().enumerate() {
            let group = of(self.path(&block.key), block.api, block.process, block.thread);
            let sum = sums.entry(group).or_default();
            let (released, held) = (block.state == State::Released, block.state == State::Held);
            if block.inherited {
                sum.live_blocks += u64::from(held);
                sum.live_bytes += u64::from(held) * block.size;
                sum.inherited_blocks += u64::from(held);
                sum.inherited_bytes += u64::from(held) * block.size;
            } else {
                sum.allocations += 1;
                sum.allocated_bytes += block.size;
                sum.frees += u64::from(released);
                sum.freed_bytes += u64::from(released) * block.size;
                sum.live_blocks += u64::from(!released);
                sum.live_bytes += u64::from(!released) * block.size;
            }
            sum.peak_bytes += self.at_peak.get(&i).copied().unwrap_or(0);
        }
        sums
    }

    /// Usage of mappings by whatever `of` makes of a path, API and process.
    pub(super) fn mapped<K: Ord>(&self, of: impl Fn(Path, Api, usize) -> K) -> BTreeMap<K, Usage> {
        let mut sums: BTreeMap<K, Usage> = BTreeMap::new();
        for (i, mapping) in self.mappings.iter().enumerate().filter(|(_, m)| m.counted) {
            let sum =
                sums.entry(of(self.path(&mapping.key), mapping.api, mapping.process)).or_default();
            let (size, left) = (mapping.size * 4096, mapping.pages.len() as u64 * 4096);
            let blocks = u64::from(left > 0);
            if mapping.inherited {
                let held = u64::from(!mapping.abandoned);
                sum.live_blocks += held * blocks;
                sum.live_bytes += held * left;
                sum.inherited_blocks += held * blocks;
                sum.inherited_bytes += held * left;
            } else {
                sum.allocations += 1;
                sum.allocated_bytes += size;
                sum.frees += 1 - blocks;
                sum.freed_bytes += size - left;
                sum.live_blocks += blocks;
                sum.live_bytes += left;
            }
            sum.peak_bytes += self.mapped_at_peak.get(&i).copied().unwrap_or(0);
        }
        sums
    }

    /// All counters that are not zero.
    pub(super) fn counters(&self) -> Vec<(String, u64)> {
        let mut counters = self.counters.clone();
        let awaited = self.arrived.iter().filter(|path| path.is_none()).count();
        counters.insert("unknown_stacks".to_owned(), awaited as u64);
        for (end, _) in &self.paths {
            *counters.entry(format!("stacks_ended_{}", end.name())).or_default() += 1;
        }
        let heap = self.heap(|path, _, _, _| path.0);
        for (end, usage) in heap.into_iter().chain(self.mapped(|path, _, _| path.0)) {
            let name = format!("allocations_with_stack_ended_{}", end.name());
            *counters.entry(name).or_default() += usage.allocations;
        }
        counters.retain(|name, value| *value > 0 && !name.ends_with("_ended_root"));
        counters.into_iter().collect()
    }

    /// End, live, peak, mapped, allocated bytes, allocations and resident bytes of each step.
    pub(super) fn timeline(&self, points: u64) -> Vec<[u64; 7]> {
        let mut step = 1_000_000;
        while self.now / step >= points {
            step *= 2;
        }
        let mut rows = vec![];
        let (mut live, mut mapped, mut resident) = (0, 0, 0);
        for n in 0..=self.now / step {
            let (start, end) = (n * step, (n + 1) * step);
            let (mut peak, mut allocated, mut allocations) = (live, 0, 0);
            for moment in self.moments.iter().filter(|m| m.time >= start && m.time < end) {
                (live, mapped, resident) = (moment.live, moment.mapped, moment.resident);
                peak = peak.max(live);
                allocated += moment.allocated.unwrap_or(0);
                allocations += u64::from(moment.allocated.is_some());
            }
            rows.push([end.min(self.now), live, peak, mapped, allocated, allocations, resident]);
        }
        rows
    }
}

fn missing() -> Key {
    Key::Path((End::Missing, vec![]))
}

fn pages(start: u64, length: u64) -> std::ops::Range<u64> {
    start / 4096..if length == 0 { start / 4096 } else { (start + length).div_ceil(4096) }
}
