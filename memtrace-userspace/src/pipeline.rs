//! Records in, snapshots out: who allocated, freed and holds how much.
//!
//! ```text
//!   Record ─→ actor: which thread of which process?
//!          ─→ memory: live_set (heap blocks), mappings (address space)
//!          ─→ accounts of the site (call path and API), the thread, the process; the peak
//!          ─→ timeline, detectors                             publish ─→ Arc<Snapshot>
//! ```
//!
//! An event costs the same however much is known: one look-up each for the thread, the stack id
//! and the block, and a few additions. Everything is bounded by [`Limits`]; what is left out, and
//! every contradiction in the records, is a counter in the snapshot.
//!
//! The rules, where the records leave a choice:
//!
//! * A block whose address is allocated again was freed, and the free was lost.
//! * `exec` and `exit` end a program. What it allocated and holds then stays live in the accounts
//!   and no longer counts for the peak.
//! * A child of `fork` holds a copy of what its parent holds. Copies count for the peak and as
//!   live, charged to the call paths and threads that made the originals, but nobody allocated
//!   them. They are gone when the child releases them or ends.
//! * An event of a thread that never started belongs to the process with that id or to the only
//!   process there is; otherwise it is left out.
//! * Time never goes back: events of two rings may be a little out of order.
//!
//! The pipeline opens no file and asks no clock; the same records give the same snapshot.

mod account;
mod address_space;
mod anomalies;
mod call_paths;
mod detect;
pub mod findings;
mod freed;
mod heap;
mod held;
mod held_records;
mod jit_names;
mod lifecycle;
mod limits;
mod live_set;
mod load;
mod mappings;
mod marks;
mod operations;
mod pair_accounts;
mod process_sites;
mod processes;
mod publish;
mod range;
pub mod snapshot;
mod stacks;
pub mod statistics;
#[cfg(test)]
mod tests;
mod threads;
mod timeline;
mod wire_ids;

use std::collections::BTreeMap;
use std::sync::Arc;

use memtrace_common::addr::Avma;
use memtrace_common::event::Api;
use memtrace_common::unwind::End;

pub(crate) use self::account::add_usage;
pub use self::account::{Change, Posting};
pub use self::detect::{DetectorOptions, LeakOptions, SpikeOptions};
pub use self::freed::FreedRanges;
pub use self::held::HeldBlock;
pub use self::held_records::Purpose;
pub use self::limits::Limits;
pub(crate) use self::pair_accounts::PairAccounts;
pub use self::stacks::SiteId;
pub use self::threads::ThreadId;

use self::account::Peak;
use self::anomalies::Anomalies;
use self::detect::Detectors;
use self::findings::{Leaks, MemoryLimit};
use self::freed::Freed;
use self::jit_names::JitNames;
use self::marks::Marks;
use self::operations::Operations;
use self::process_sites::ProcessSites;
use self::processes::{EntryId, Processes};
use self::range::{Before, Told};
use self::snapshot::{Place, Snapshot, Stack};
use self::stacks::Stacks;
use self::statistics::{Collected, LiveBlocks};
use self::threads::Threads;
use self::timeline::{Level, Timeline};
use crate::hash::Seed;
use crate::modules::{Backing, Images, Modules};
use crate::record::{self, EndReason, Image, Pid, Probe, Record, Session, Tid, Time, WireStackId};

/// The state of a session, built up record by record.
pub struct Pipeline {
    limits: Limits,
    session: Option<Arc<Session>>,
    now: Time,
    /// How many records were applied, those before the state that it began with among them.
    records: u64,
    end: Option<EndReason>,
    events: u64,
    heap_peak: Peak,
    mapped_peak: Peak,
    resident_bytes: u64,
    /// The most that ever was.
    peak_resident_bytes: u64,
    /// Live blocks of all running processes.
    live_blocks: usize,
    /// Pieces of mappings of all running processes.
    mapping_pieces: usize,
    /// Executable mappings of all running processes.
    modules: usize,
    processes: Processes,
    threads: Threads,
    stacks: Stacks,
    process_sites: ProcessSites,
    images: Images<Seed>,
    operations: Operations,
    jit_names: JitNames,
    timeline: Timeline,
    marks: Marks,
    stretch: Stretch,
    before: Before,
    detectors: Detectors,
    /// The verdicts when the last process that ran ended.
    last_leaks: Leaks,
    probes: Vec<Arc<Probe>>,
    /// Counters that records brought.
    counters: BTreeMap<String, u64>,
    anomalies: Anomalies,
    collected: Collected,
    /// What the record under way changed, if somebody wants to know.
    journal: Option<Vec<Posting>>,
    /// Only while somebody wants to know.
    freed: Option<Freed>,
}

/// The highest level since a moment, and where it was first reached.
#[derive(Clone, Copy, Debug, Default)]
struct Stretch {
    bytes: u64,
    records: u64,
    at: Time,
}

impl Pipeline {
    /// A pipeline that has seen nothing.
    pub fn new(limits: Limits) -> Pipeline {
        let seed = Seed::random();
        Pipeline {
            session: None,
            now: Time(0),
            records: 0,
            end: None,
            events: 0,
            heap_peak: Peak::default(),
            mapped_peak: Peak::default(),
            resident_bytes: 0,
            peak_resident_bytes: 0,
            live_blocks: 0,
            mapping_pieces: 0,
            modules: 0,
            processes: Processes::new(limits.processes, limits.running_processes, seed),
            threads: Threads::new(limits.running_threads, seed),
            stacks: Stacks::new(&limits, seed),
            process_sites: ProcessSites::new(limits.process_sites),
            images: Images::new(limits.images, seed),
            operations: Operations::new(&limits),
            jit_names: JitNames::new(&limits),
            timeline: Timeline::new(limits.timeline_points),
            marks: Marks::new(limits.marks),
            stretch: Stretch::default(),
            before: Before::Nothing,
            detectors: Detectors::new(&limits),
            last_leaks: Leaks::default(),
            probes: Vec::new(),
            counters: BTreeMap::new(),
            anomalies: Anomalies::default(),
            collected: Collected::new(&limits, seed),
            journal: None,
            freed: None,
            limits,
        }
    }

    /// A pipeline that counts what these processes do, and nothing else.
    ///
    /// It follows the memory of all, because children inherit it. Numbers of events, and what was
    /// lost or unusual, are those of the whole session: few of these belong to one process.
    pub fn only(limits: Limits, pids: Vec<Pid>) -> Pipeline {
        let mut pipeline = Pipeline::new(limits);
        pipeline.processes.show_only(pids);
        pipeline
    }

    /// [`Pipeline::only`] of `pids`, or of all processes if there are none.
    pub fn of(limits: Limits, pids: &[Pid]) -> Pipeline {
        match pids {
            [] => Pipeline::new(limits),
            pids => Pipeline::only(limits, pids.to_vec()),
        }
    }

    #[inline(always)]
    fn is_shown(&mut self, entry: EntryId) -> bool {
        self.processes.entry_mut(entry).is_shown
    }

    /// Takes in the next record.
    pub fn apply(&mut self, record: &Record) {
        self.records += 1;
        match record {
            &Record::Alloc { time, tid, api, ptr, size, alignment, stack } => {
                self.event(time);
                self.alloc(tid, api, ptr, size, alignment, stack);
            }
            &Record::Free { time, tid, api: _, ptr } => {
                self.event(time);
                self.free(tid, ptr);
            }
            &Record::Retire { time, tid, ptr } => {
                self.event(time);
                self.retire(tid, ptr);
            }
            &Record::Restore { time, tid, ptr } => {
                self.event(time);
                self.restore(tid, ptr);
            }
            &Record::Map { time, tid, start, length, kind, stack } => {
                self.event(time);
                self.map(tid, start, length, kind, stack);
            }
            &Record::Unmap { time, tid, start, length }
            | &Record::RemapStart { time, tid, start, length } => {
                self.event(time);
                self.release(tid, start, length);
            }
            &Record::UnmapFailed { time, tid } => {
                self.event(time);
                self.unmap_failed(tid);
            }
            &Record::Remap { time, tid, start, length, stack } => {
                self.event(time);
                self.remap(tid, start, length, stack);
            }
            &Record::Break { time, tid, old, new, stack } => {
                self.event(time);
                self.move_break(tid, old, new, stack);
            }
            &Record::Commit { time, tid, start, length, stack } => {
                self.event(time);
                self.commit(tid, start, length, stack);
            }
            &Record::Decommit { time, tid, start, length } => {
                self.event(time);
                self.decommit(tid, start, length);
            }
            Record::Session(session) => self.session = Some(Arc::new(session.clone())),
            Record::Probe(probe) => self.probe(probe),
            Record::Process(process) => {
                self.advance(process.time);
                self.process(process);
            }
            Record::BeforeAttach(before) => self.before_attach(before),
            Record::Namespaces(namespaces) => self.namespaces(namespaces),
            Record::Module(module) => {
                self.advance(module.time);
                self.module(module);
            }
            Record::Operation { pid, start, length, class } => {
                self.operation(*pid, *start, *length, class);
            }
            &Record::ModuleGone { time, pid, start } => {
                self.advance(time);
                self.module_gone(pid, start);
            }
            Record::Thread { time, pid, tid, name } => {
                self.advance(*time);
                self.thread(*pid, *tid, name);
            }
            &Record::ThreadExit { time, tid } => {
                self.advance(time);
                self.end_thread(tid);
            }
            Record::Stack { id, pid, end, frames } => self.stack(*id, *pid, *end, frames),
            &Record::Fork { time, parent, child } => {
                self.advance(time);
                self.fork(parent, child);
            }
            Record::Exec { time, pid, exe, command } => {
                self.advance(*time);
                self.exec(*pid, exe, command);
            }
            &Record::Exit { time, pid } => {
                self.advance(time);
                self.exit(pid);
            }
            &Record::Resident { time, pid, rss_bytes } => {
                self.advance(time);
                self.resident(pid, rss_bytes);
            }
            Record::JitSymbol { time, pid, start, size, name } => {
                self.advance(*time);
                let name = self.cut_text(name);
                self.jit_names.symbol(*pid, *start, *size, name);
            }
            &Record::MemoryDetail { time, pid, ref memory } => {
                self.advance(time);
                self.memory_detail(pid, memory);
            }
            &Record::MemoryLimit { time, pid, kind, limit_bytes, used_bytes } => {
                self.advance(time);
                self.memory_limit(pid, MemoryLimit { kind, limit_bytes, used_bytes });
            }
            Record::Counters(counters) => self.counters(counters),
            Record::Mark { time, text } => {
                self.advance(*time);
                self.mark(text);
            }
            &Record::Held { born, pid, tid, api, start, length, alignment, stack } => {
                self.hold(born, pid, tid, Told { api, start, length, alignment, stack });
            }
            &Record::Tick { time } => self.advance(time),
            &Record::End { time, reason } => {
                self.advance(time);
                self.end = Some(reason);
            }
        }
        self.note_use(record);
    }

    /// Every process seen, counted or not, each id once, in ascending order.
    pub fn pids(&self) -> Vec<Pid> {
        self.processes.pids()
    }

    /// Time of the last record.
    pub fn now(&self) -> Time {
        self.now
    }

    /// How many records were applied.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// What it has learned so far comes from `records` records of a trace.
    pub fn go_on_from(&mut self, records: u64) {
        self.records = records;
        self.restart_level();
    }

    /// The level now and the highest since the last [`Pipeline::restart_level`].
    pub fn level(&self) -> record::Level {
        record::Level {
            records: self.records,
            time: self.now,
            live_bytes: self.heap_peak.held_bytes(),
            mapped_bytes: self.mapped_peak.held_bytes(),
            peak_live_bytes: self.stretch.bytes,
            peak_records: self.stretch.records,
            peak_at: self.stretch.at,
        }
    }

    /// Begins another stretch for [`Pipeline::level`].
    pub fn restart_level(&mut self) {
        let bytes = self.heap_peak.held_bytes();
        self.stretch = Stretch { bytes, records: self.records, at: self.now };
    }

    /// Takes in the next record, and puts what it changed in place of what `postings` holds.
    pub fn apply_with(&mut self, record: &Record, postings: &mut Vec<Posting>) {
        postings.clear();
        self.journal = Some(std::mem::take(postings));
        self.apply(record);
        *postings = self.journal.take().unwrap_or_default();
    }

    /// The API and the call path of a site; without the latter while its frames are awaited.
    pub fn known_call_path(&self, site: SiteId) -> (Api, Option<&Arc<Stack>>) {
        self.stacks.known_call_path(site)
    }

    /// The process and id of every thread seen, in order of appearance: by [`ThreadId::index`].
    pub fn thread_ids(&self) -> impl ExactSizeIterator<Item = (Pid, Tid)> {
        self.threads.ids()
    }

    /// The process and id of a thread.
    pub fn thread_id(&self, thread: ThreadId) -> (Pid, Tid) {
        self.threads.id(thread)
    }

    /// When what is counted began: 0, or the start of the range.
    pub fn began(&self) -> Time {
        self.before.began()
    }

    /// Blocks so far that turned out to be temporary.
    pub fn temporary_allocations(&self) -> u64 {
        self.collected.temporary_allocations
    }

    /// The files seen so far; [`Place::InFile`] points here.
    pub fn images(&self) -> &[Arc<Image>] {
        self.images.all()
    }

    /// The names so far of code that lies in no file.
    pub fn jit_names(&self) -> Arc<snapshot::JitNames> {
        self.jit_names.named()
    }

    /// The process of a thread that runs.
    pub fn process_of(&self, tid: Tid) -> Option<Pid> {
        self.threads.peek(tid).map(|actor| self.processes.running(actor.process).pid)
    }

    /// The state now. It costs a copy of what it shows.
    pub fn snapshot(&mut self) -> Arc<Snapshot> {
        Arc::new(self.publish())
    }

    /// Begins a record that came from the target's memory calls.
    #[inline(always)]
    fn event(&mut self, time: Time) {
        self.events += 1;
        self.advance(time);
    }

    #[inline(always)]
    fn advance(&mut self, time: Time) {
        if time > self.now {
            self.now = time;
            let (heap, mapped) = (self.heap_peak.held_bytes(), self.mapped_peak.held_bytes());
            let resident_bytes = self.resident_bytes;
            self.timeline.advance(time, || Level {
                live_bytes: heap,
                mapped_bytes: mapped,
                resident_bytes,
            });
            if self.detectors.is_due(time) {
                self.tick(time);
            }
        }
    }

    fn current_level(&self) -> Level {
        Level {
            live_bytes: self.heap_peak.held_bytes(),
            mapped_bytes: self.mapped_peak.held_bytes(),
            resident_bytes: self.resident_bytes,
        }
    }

    fn mark(&mut self, text: &str) {
        if !self.marks.has_room() {
            self.anomalies.marks_beyond_limit += 1;
            return;
        }
        let text = match text.char_indices().nth(self.limits.text_bytes / 4) {
            Some((end, _)) => {
                self.anomalies.texts_cut += 1;
                &text[..end]
            }
            None => text,
        };
        self.marks.mark(self.now, text.to_owned(), self.sums());
    }

    fn probe(&mut self, probe: &Probe) {
        let live = if self.live_blocks > 0 { LiveBlocks::Some } else { LiveBlocks::None };
        self.collected.allocator.note(&probe.module, &probe.symbol, live);
        if self.probes.len() >= self.limits.probes {
            self.anomalies.probes_beyond_limit += 1;
            return;
        }
        self.probes.push(Arc::new(probe.clone()));
    }

    fn counters(&mut self, counters: &[(String, u64)]) {
        for (name, value) in counters {
            if let Some(known) = self.counters.get_mut(name) {
                *known = *value;
            } else if self.counters.len() < self.limits.counters
                && name.len() <= self.limits.text_bytes
            {
                self.counters.insert(name.clone(), *value);
            } else {
                self.anomalies.counters_beyond_limit += 1;
            }
        }
    }

    /// Learns the frames of a stack; where they lie is decided by what is mapped now.
    fn stack(&mut self, id: WireStackId, pid: Pid, end: End, frames: &[Avma]) {
        let place = |(&address, backing): (&Avma, Option<Backing>)| match backing {
            Some(Backing::Image(image, offset)) => Place::InFile { image: image.index(), offset },
            Some(Backing::Anonymous) => Place::Anonymous { pid, address },
            None => Place::Unknown { pid, address },
        };
        let nothing = Modules::default();
        let process = self.processes.find(pid).map(|id| self.processes.running(id));
        let modules = process.map_or(&nothing, |process| &process.modules);
        let frames: Vec<Place> =
            frames.iter().zip(modules.locate_each(frames)).map(place).collect();
        for frame in &frames {
            if let &Place::Anonymous { pid, address } = frame {
                self.jit_names.saw(pid, address);
            }
        }
        let operation = self.operations.of_frames(&frames);
        self.stacks.define(id, Stack { end, frames }, operation);
    }
}
