//! The detectors: sudden growth (spikes) and growth that does not end (leaks).
//!
//! ```text
//!   accounts ──first change in a tick──→ journal ──who grew since when──→ spikes
//!            ──what a site held─────────→ histories ─┐
//!   live blocks ──births, when asked──→ survey ──────┴→ judge ──────────→ verdicts
//! ```
//!
//! In: the totals, ticks, and each account's first change in a tick. Out: [`Spike`]s and
//! [`Verdict`]s with their evidence. An event costs a comparison with the alarm; the rest is done
//! once a tick for what has changed in it, or when somebody asks for a snapshot.

mod history;
mod journal;
mod judge;
mod options;
mod spikes;
mod statistics;
mod survey;
mod watched;

use std::cmp::Reverse;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use self::history::{Course, Histories};
pub(super) use self::journal::Holder;
use self::journal::{Base, Journal};
use self::judge::{Evidence, judge, judge_allocator};
use self::options::usual_threshold;
pub use self::options::{DetectorOptions, LeakOptions, SpikeOptions};
use self::spikes::{Look, Measure, Spikes};
use self::survey::{SPANS, Survivors, survey};
pub(super) use self::watched::Total;
use self::watched::Watched;
use super::findings::{Class, Contributor, Leaks, MemoryLimit, Spike, ThreadGrowth, Verdict};
use super::operations::OperationId;
use super::snapshot::Memory;
use super::stacks::SiteId;
use super::threads::ThreadId;
use super::{Limits, Pipeline};
use crate::record::{Pid, Time};

/// Ticks in the window of spikes, unless the window is long.
const WINDOW_TICKS: u64 = 16;
const LONGEST_TICK_NS: u64 = 100_000_000;
const SHORTEST_TICK_NS: u64 = 1_000_000;

/// Makers of a spike that are kept.
const CONTRIBUTORS: usize = 8;
/// Sites that are judged for one snapshot; those that hold most.
const CANDIDATES: usize = 4096;
/// Verdicts that do not accuse and are kept.
const MILD_VERDICTS: usize = 64;

/// What both detectors keep.
#[derive(Debug)]
pub(super) struct Detectors {
    options: DetectorOptions,
    tick_ns: u64,
    /// End of the tick under way; the last one never ends.
    due_ns: u64,
    window_ticks: usize,
    journal: Journal,
    all: Watched,
    /// By [`OperationId::index`].
    operations: Vec<Watched>,
    histories: Histories,
    /// What there is for the process that the session is about.
    limit: Option<MemoryLimit>,
}

impl Detectors {
    pub(super) fn new(limits: &Limits) -> Detectors {
        let options = limits.detectors;
        let window_ns = u64::try_from(options.spikes.window.as_nanos()).unwrap_or(u64::MAX);
        let tick_ns = (window_ns / WINDOW_TICKS).clamp(SHORTEST_TICK_NS, LONGEST_TICK_NS);
        let window_ticks = window_ns.div_ceil(tick_ns).clamp(1, 1 << 16) as usize;
        Detectors {
            options,
            tick_ns,
            due_ns: tick_ns,
            window_ticks,
            journal: Journal::new(window_ticks, limits.spike_changes),
            all: Watched::new(None, options.spikes, window_ticks),
            operations: Vec::new(),
            histories: Histories::new(tick_ns, limits.history_points),
            limit: None,
        }
    }

    /// Whether the tick under way is over.
    #[inline(always)]
    pub(super) fn is_due(&self, now: Time) -> bool {
        now.0 >= self.due_ns
    }

    /// Takes in what an account held before its first change in a tick.
    #[cold]
    pub(super) fn first_change(&mut self, holder: Holder, held_bytes: u64) {
        self.journal.note(holder, held_bytes);
        if let Holder::Site(site) = holder {
            self.histories.note(site);
        }
    }

    /// Whether a total makes a spike.
    #[inline(always)]
    pub(super) fn is_rising(&self, of: Total, total_bytes: u64) -> bool {
        self.watched(of.operation).of(of.memory).is_rising(total_bytes)
    }

    /// Watches one operation more.
    pub(super) fn watch(&mut self, name: &Arc<str>, limits: &Limits) {
        let general = self.options.spikes;
        let given = limits.operation_thresholds.get(&**name).copied();
        let options = match given.or_else(|| usual_threshold(name)) {
            Some(medium_bytes) => general.beginning_at(medium_bytes),
            None => general,
        };
        self.operations.push(Watched::new(Some(name), options, self.window_ticks));
    }

    #[inline(always)]
    fn watched(&self, operation: Option<OperationId>) -> &Watched {
        operation.map_or(&self.all, |operation| &self.operations[operation.index()])
    }

    /// The spikes of a total, and what accounts held before.
    fn of_mut(&mut self, Total { operation, memory }: Total) -> (&mut Spikes, &mut Journal) {
        let watched = match operation {
            Some(operation) => &mut self.operations[operation.index()],
            None => &mut self.all,
        };
        (watched.of_mut(memory), &mut self.journal)
    }

    fn all_spikes(&self) -> impl Iterator<Item = &Spikes> {
        let watched = std::iter::once(&self.all).chain(&self.operations);
        watched.flat_map(|Watched { heap, mapped }| [heap, mapped])
    }

    /// What found no room, by name.
    pub(super) fn counters(&self) -> [(&'static str, u64); 3] {
        [
            ("spikes_beyond_limit", self.all_spikes().map(Spikes::beyond_limit).sum()),
            ("spike_changes_beyond_limit", self.journal.beyond_limit()),
            ("history_points_beyond_limit", self.histories.beyond_limit()),
        ]
    }
}

impl Pipeline {
    /// Takes in how much memory there is, for the process that the session is about.
    pub(super) fn memory_limit(&mut self, pid: Pid, limit: MemoryLimit) {
        if self.session.as_ref().is_none_or(|session| session.pid == pid) {
            self.detectors.limit = Some(limit);
        }
    }

    /// Forgets what was seen so far: what is held now has always been held.
    pub(super) fn begin_detection(&mut self) {
        let limit = self.detectors.limit;
        self.detectors = Detectors { limit, ..Detectors::new(&self.limits) };
        for name in self.operations.names() {
            self.detectors.watch(name, &self.limits);
        }
        let totals = self.watched_totals();
        let detectors = &mut self.detectors;
        for _ in 0..detectors.window_ticks {
            for &(total, total_bytes) in &totals {
                detectors.of_mut(total).0.tick(self.now, total_bytes);
            }
            detectors.journal.tick();
        }
        self.detectors.due_ns = self.now.0.saturating_add(self.detectors.tick_ns);
        self.detectors.histories.advance(self.now, &self.stacks);
        self.heap_peak.tick();
        self.mapped_peak.tick();
    }

    /// How much memory there is, for the process that the session is about.
    pub(super) fn known_memory_limit(&self) -> Option<MemoryLimit> {
        self.detectors.limit
    }

    /// How many spikes have begun, of the heap and of mappings, of operations among them.
    pub fn spikes_begun(&self) -> u64 {
        self.detectors.all_spikes().map(Spikes::begun).fold(0, u64::saturating_add)
    }

    fn total(&self, Total { operation, memory }: Total) -> u64 {
        match (operation, memory) {
            (None, Memory::Heap) => self.heap_peak.held_bytes(),
            (None, Memory::Mapped) => self.mapped_peak.held_bytes(),
            (Some(operation), memory) => self.operations.held_bytes(operation, memory),
        }
    }

    /// Everything that is watched, and what it is now.
    fn watched_totals(&self) -> Vec<(Total, u64)> {
        let of_memory =
            |operation| [Memory::Heap, Memory::Mapped].map(|memory| Total { operation, memory });
        let operations = self.operations.ids().map(Some);
        let totals = std::iter::once(None).chain(operations).flat_map(of_memory);
        totals.map(|total| (total, self.total(total))).collect()
    }

    /// Ends the ticks that are over by `now`, the totals standing as they are all the while.
    #[cold]
    pub(super) fn tick(&mut self, now: Time) {
        let totals = self.watched_totals();
        for &(total, total_bytes) in &totals {
            if self.detectors.of_mut(total).0.is_paused(total_bytes) {
                self.measure(total, total_bytes);
            }
        }
        let detectors = &mut self.detectors;
        let over = (now.0 - detectors.due_ns) / detectors.tick_ns + 1;
        let last = over - 1;
        // After a window in which nothing happens, only the last tick tells anything new.
        let first = last.min(detectors.window_ticks as u64);
        for tick in (0..first).chain([last]) {
            let end = Time(detectors.due_ns + tick * detectors.tick_ns);
            for &(total, total_bytes) in &totals {
                let (spikes, journal) = detectors.of_mut(total);
                spikes.follow(journal);
                spikes.tick(end, total_bytes);
            }
            detectors.journal.tick();
        }
        detectors.due_ns =
            (detectors.due_ns + last * detectors.tick_ns).saturating_add(detectors.tick_ns);
        detectors.histories.advance(now, &self.stacks);
        self.heap_peak.tick();
        self.mapped_peak.tick();
    }

    /// Looks at a total that makes a spike.
    #[cold]
    pub(super) fn measure_spike(&mut self, total: Total) {
        let total_bytes = self.total(total);
        let (spikes, journal) = self.detectors.of_mut(total);
        if spikes.look(self.now, total_bytes, journal) == Look::Measure {
            self.measure(total, total_bytes);
        }
    }

    /// Finds out who has grown since a spike began.
    fn measure(&mut self, total: Total, total_bytes: u64) {
        let (spikes, journal) = self.detectors.of_mut(total);
        let Some((start, base)) = spikes.base(journal) else { return };
        let mut sites = Vec::new();
        let mut threads: Vec<(ThreadId, u64)> = Vec::new();
        grown(base, |holder| match holder {
            Holder::Site(site) => self.stacks.account(site).held_bytes(),
            Holder::Thread(thread) => self.threads.held_bytes(thread),
            Holder::ThreadIn(operation, thread) => {
                self.operations.held_by_thread(operation, thread)
            }
        })
        .for_each(|(holder, bytes)| match holder {
            Holder::Site(site) if total.has(site, &self.stacks) => sites.push((site, bytes)),
            Holder::Thread(thread) if total == Total::all(Memory::Heap) => {
                threads.push((thread, bytes));
            }
            Holder::ThreadIn(operation, thread)
                if total == (Total { operation: Some(operation), memory: Memory::Heap }) =>
            {
                threads.push((thread, bytes));
            }
            Holder::Site(_) | Holder::Thread(_) | Holder::ThreadIn(..) => {}
        });
        if total.memory == Memory::Mapped {
            threads = self.threads_that_mapped(start, total);
        }
        largest(&mut sites, |site| site.index() as u64);
        largest(&mut threads, |thread| u64::from(thread.to_bits()));
        let contributors = sites.iter().map(|&(site, bytes)| Contributor {
            stack: self.stacks.shown_stack(site),
            api: self.stacks.api(site),
            bytes,
        });
        let measure = Measure {
            contributors: contributors.collect(),
            threads: self.thread_growth(&threads),
            first: sites.first().map(|&(site, _)| site),
        };
        self.detectors.of_mut(total).0.measured(total_bytes, measure);
    }

    fn thread_growth(&self, threads: &[(ThreadId, u64)]) -> Vec<ThreadGrowth> {
        threads.iter().map(|&(thread, bytes)| self.threads.growth(thread, bytes)).collect()
    }

    /// What each thread has mapped since `start` that is still mapped and part of `total`.
    fn threads_that_mapped(&self, start: Time, total: Total) -> Vec<(ThreadId, u64)> {
        let mut threads: FxHashMap<u32, u64> = FxHashMap::default();
        let pieces = self.processes.all_running().flat_map(|process| process.mappings.pieces());
        let pieces = pieces.filter(|piece| piece.origin.born >= start);
        for piece in pieces.filter(|piece| total.has(piece.origin.site, &self.stacks)) {
            let bytes = threads.entry(piece.origin.thread.to_bits()).or_default();
            *bytes = bytes.saturating_add(piece.end - piece.start);
        }
        threads.into_iter().map(|(bits, bytes)| (ThreadId::from_bits(bits), bytes)).collect()
    }

    /// The spikes so far, in order of time.
    pub(super) fn spikes(&self) -> Vec<Spike> {
        let operations = self.operations.by_name().into_iter().map(Some);
        let watched = std::iter::once(None).chain(operations);
        let mut spikes: Vec<_> = watched.flat_map(|operation| self.spikes_of(operation)).collect();
        // A stable sort: of those that begin together, all memory's come first.
        spikes.sort_by_key(|spike| spike.start);
        spikes
    }

    /// The spikes of an operation, or of all memory.
    fn spikes_of(&self, operation: Option<OperationId>) -> Vec<Spike> {
        let Watched { heap, mapped } = self.detectors.watched(operation);
        let total = |memory| self.total(Total { operation, memory });
        let heap = heap.all(total(Memory::Heap));
        let window_ns = self.detectors.window_ticks as u64 * self.detectors.tick_ns;
        // The allocator maps what it hands out: that is no second spike.
        let is_allocators = |mapped: &Spike| {
            heap.iter().any(|heap| {
                heap.start.0 <= mapped.end.0.saturating_add(window_ns)
                    && mapped.start.0 <= heap.end.0.saturating_add(window_ns)
                    && mapped.height_bytes / 5 <= heap.height_bytes / 4
            })
        };
        let mapped = mapped.all(total(Memory::Mapped));
        let mut spikes: Vec<_> =
            mapped.into_iter().filter(|mapped| !is_allocators(mapped)).collect();
        spikes.extend(heap);
        spikes
    }

    /// The verdicts: of now, or of when the last process ended.
    pub(super) fn leaks(&self) -> Leaks {
        match self.processes.all_running().next() {
            Some(_) => self.find_leaks(),
            None => self.last_leaks.clone(),
        }
    }

    /// The verdicts on all sites that hold enough to be worth one.
    pub(super) fn find_leaks(&self) -> Leaks {
        let Detectors { options, histories, limit, .. } = &self.detectors;
        let options = &options.leaks;
        let needed_ns = u64::try_from(options.after.as_nanos()).unwrap_or(u64::MAX);
        let mut candidates: Vec<(&Course, u64)> = histories
            .courses()
            .iter()
            .map(|course| (course, self.stacks.account(course.site).held_bytes()))
            .filter(|&(course, held_bytes)| {
                let hours = hours(self.now.0.saturating_sub(histories.start(course).0));
                held_bytes as f64 >= options.healthy_bytes_per_hour * hours / 2.0
            })
            .collect();
        candidates.sort_by_key(|&(course, held)| (Reverse(held), course.site.index()));
        candidates.truncate(CANDIDATES);
        let mut survivors: FxHashMap<SiteId, Survivors> = candidates
            .iter()
            .map(|(course, _)| (course.site, Survivors::new(histories.start(course), self.now)))
            .collect();
        survey(&self.processes, &self.stacks, &mut survivors);
        let mut verdicts = Vec::new();
        for (course, held_bytes) in candidates {
            let site = course.site;
            let evidence = self.evidence(course, &survivors[&site]);
            let judgement = if evidence.is_allocators(self.stacks.api(site)) {
                judge_allocator(&evidence, &self.heap_at_bounds(evidence.survivors), options)
            } else {
                judge(&evidence, options)
            };
            let Some(judgement) = judgement else { continue };
            verdicts.push(Verdict {
                stack: self.stacks.shown_stack(site),
                api: self.stacks.api(site),
                class: judgement.class,
                level: judgement.level,
                confidence: judgement.confidence,
                rate: judgement.rate,
                live_blocks: evidence.survivors.held_blocks,
                live_bytes: held_bytes,
                aged_bytes: evidence.aged_bytes(),
                oldest: evidence.survivors.oldest,
                since: evidence.survivors.since,
                cohorts: evidence.cohorts(),
                limit_in_ns: limit
                    .filter(|_| judgement.class.is_leak())
                    .and_then(|limit| time_to(limit, judgement.rate.bytes_per_hour)),
            });
        }
        tell_buffers_from_objects(&mut verdicts);
        // A stable sort: equal ones keep the order of their sites.
        verdicts.sort_by(|a: &Verdict, b: &Verdict| {
            let key = |v: &Verdict| (v.class.is_leak(), v.level, v.rate.bytes_per_hour);
            let ((a_leak, a_level, a_rate), (b_leak, b_level, b_rate)) = (key(a), key(b));
            (b_leak, b_level).cmp(&(a_leak, a_level)).then(b_rate.total_cmp(&a_rate))
        });
        let leaks = verdicts.iter().filter(|verdict| verdict.class.is_leak()).count();
        verdicts.truncate(leaks + MILD_VERDICTS);
        let told_from_bytes_per_hour = options.healthy_bytes_per_hour;
        Leaks { verdicts, needed_ns, told_from_bytes_per_hour, limit: *limit }
    }

    /// Live bytes of the heap at the bounds of a site's spans.
    fn heap_at_bounds(&self, survivors: &Survivors) -> [f64; SPANS + 1] {
        let points = self.timeline.points(self.now, self.current_level());
        let length = u128::from(survivors.until.0.saturating_sub(survivors.since.0));
        std::array::from_fn(|bound| {
            let time = survivors.since.0 + (length * bound as u128 / SPANS as u128) as u64;
            let after = points.partition_point(|point| point.time.0 <= time);
            let before = after.checked_sub(1).and_then(|index| points.get(index));
            before.map_or(0.0, |point| point.live_bytes as f64)
        })
    }

    fn evidence<'e>(&self, course: &Course, survivors: &'e Survivors) -> Evidence<'e> {
        let histories = &self.detectors.histories;
        let since = histories.start(course);
        let end = (self.now, histories.now(course.site, &self.stacks));
        let mut held = [0.0; SPANS + 1];
        let mut allocations = [0.0; SPANS + 1];
        let length = u128::from(self.now.0.saturating_sub(since.0));
        for (index, (held, allocations)) in held.iter_mut().zip(&mut allocations).enumerate() {
            let time = Time(since.0 + (length * index as u128 / SPANS as u128) as u64);
            (*held, *allocations) = if index == SPANS {
                (end.1.held_bytes as f64, end.1.allocations as f64)
            } else {
                histories.at(course, time, end)
            };
        }
        Evidence {
            watched_ns: self.now.0.saturating_sub(self.began().0),
            memory: Memory::of(self.stacks.api(course.site)),
            earlier_life_ns: histories.longest_life_ns(course),
            held,
            allocations,
            survivors,
        }
    }
}

/// Who holds more than at the base, and how much more.
fn grown<'b>(
    base: &'b Base,
    held_now: impl Fn(Holder) -> u64 + 'b,
) -> impl Iterator<Item = (Holder, u64)> + 'b {
    base.iter()
        .map(move |(&holder, &before)| (holder, held_now(holder).saturating_sub(before)))
        .filter(|&(_, bytes)| bytes > 0)
}

/// Keeps the largest, the largest first; equal ones by number.
fn largest<T: Copy>(parts: &mut Vec<(T, u64)>, number: impl Fn(T) -> u64) {
    parts.sort_by_key(|&(part, bytes)| (Reverse(bytes), number(part)));
    parts.truncate(CONTRIBUTORS);
}

fn hours(ns: u64) -> f64 {
    ns as f64 / 3.6e12
}

/// Leaves the class of buffers to large blocks that grow while small ones do not.
///
/// Where small blocks leak, too, and half as many at least, it is objects that are kept, and their
/// buffers with them.
fn tell_buffers_from_objects(verdicts: &mut [Verdict]) {
    let is_of_objects = |class| match class {
        Class::LinearGrowth | Class::ListenerLeak | Class::CacheGrowth => true,
        Class::BufferLeak | Class::Fragmentation | Class::BoundedCache | Class::Undetermined => {
            false
        }
    };
    let objects = verdicts.iter().filter(|verdict| is_of_objects(verdict.class));
    let Some(objects) = objects.map(|verdict| verdict.live_blocks).max() else { return };
    for verdict in verdicts {
        if verdict.class == Class::BufferLeak && objects >= verdict.live_blocks.div_ceil(2) {
            verdict.class = Class::LinearGrowth;
        }
    }
}

/// How long until a limit is reached.
fn time_to(limit: MemoryLimit, bytes_per_hour: f64) -> Option<u64> {
    let left = limit.limit_bytes.saturating_sub(limit.used_bytes) as f64;
    let ns = left / bytes_per_hour * 3.6e12;
    (bytes_per_hour > 0.0 && ns < u64::MAX as f64).then_some(ns as u64)
}
