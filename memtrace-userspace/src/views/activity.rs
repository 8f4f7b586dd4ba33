//! What each call path and each thread did, step by step, noted while a trace is read.
//!
//! In: the postings of every event. Out: for each step of the session the sites and threads that
//! changed in it, with what they allocated and what they hold at its end. One that did nothing in a
//! step takes no room in it. When steps or cells are used up, each two neighbours become one and the
//! steps twice as long, as in the pipeline's timeline:
//!
//! ```text
//!   4 steps of 1 ms, full    | a | b | c | d |
//!   4 steps of 2 ms          |  ab   |  cd   |       |       |
//! ```
//!
//! Of a range, the first step has everything that was held before it.

use std::collections::VecDeque;
use std::sync::Arc;

use memtrace_common::event::Api;

use rustc_hash::FxHashMap;

use super::call_paths::CallPaths;
use crate::pipeline::snapshot::{Memory, Snapshot, Stack};
use crate::pipeline::{Change, Pipeline, Posting};
use crate::record::{Pid, Record, Tid, Time};

/// Length of the steps at the start.
const FIRST_STEP_NS: u64 = 1_000_000;
/// The most steps; an even number.
const STEPS: usize = 256;
/// Cells that may be kept, about: 160 MB. Never more than this and two for each site and thread.
const CELLS: usize = 1 << 22;

/// Which bytes are told at the end of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Those of [`Usage::live_bytes`](crate::pipeline::snapshot::Usage): what a program held when it
    /// ended stays live, and what was held before a range is not.
    Live,
    /// Those that running processes hold, as
    /// [`TimelinePoint::live_bytes`](crate::pipeline::snapshot::TimelinePoint).
    Held,
}

/// What a site or a thread did in a step in which it changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::views) struct Cell {
    /// That of the site or the thread.
    pub(in crate::views) number: u32,
    pub(in crate::views) allocations: u64,
    pub(in crate::views) allocated_bytes: u64,
    pub(in crate::views) temporary: u64,
    /// At the end of the step.
    pub(in crate::views) level_bytes: u64,
}

/// What a site or a thread has done in the step under way.
#[derive(Default)]
struct Sums {
    is_touched: bool,
    allocations: u64,
    allocated_bytes: u64,
    temporary: u64,
    level_bytes: u64,
}

/// All sites, or all threads.
#[derive(Default)]
struct Series {
    /// By number.
    sums: Vec<Sums>,
    /// Those that changed in the step under way.
    touched: Vec<u32>,
    steps: Vec<Vec<Cell>>,
    cells: usize,
}

/// The steps so far.
pub struct Activity {
    level: Level,
    start: Time,
    step_ns: u64,
    /// End of the step under way; `None` if it lies beyond the end of time.
    end_ns: Option<u64>,
    sites: Series,
    threads: Series,
    call_paths: CallPaths,
    /// Process and id of the threads by number, up to the last one that ever changed.
    thread_ids: Vec<(Pid, Tid)>,
    temporary_allocations: u64,
}

/// The steps of a session that is over.
#[derive(Default)]
pub(in crate::views) struct Finished {
    /// When the first step begins.
    pub(in crate::views) start: Time,
    /// When each step ends.
    pub(in crate::views) ends: Vec<Time>,
    /// The sites that changed in each step, in order; heap and mappings.
    pub(in crate::views) of_sites: Vec<Vec<Cell>>,
    /// The threads whose heap blocks changed in each step, in order.
    pub(in crate::views) of_threads: Vec<Vec<Cell>>,
    /// Call path and API, by the number of a site.
    pub(in crate::views) sites: Vec<(Arc<Stack>, Api)>,
    /// Places in [`Snapshot::threads`], by the number of a thread.
    pub(in crate::views) threads: Vec<Option<usize>>,
}

impl Series {
    fn touch(&mut self, number: u32) -> &mut Sums {
        let index = number as usize;
        if self.sums.len() <= index {
            self.sums.resize_with(index + 1, Sums::default);
        }
        let sums = &mut self.sums[index];
        if !std::mem::replace(&mut sums.is_touched, true) {
            self.touched.push(number);
        }
        sums
    }

    fn close_step(&mut self) {
        self.touched.sort_unstable();
        let mut cells = Vec::with_capacity(self.touched.len());
        for number in self.touched.drain(..) {
            let sums = &mut self.sums[number as usize];
            cells.push(Cell {
                number,
                allocations: std::mem::take(&mut sums.allocations),
                allocated_bytes: std::mem::take(&mut sums.allocated_bytes),
                temporary: std::mem::take(&mut sums.temporary),
                level_bytes: sums.level_bytes,
            });
            sums.is_touched = false;
        }
        self.cells += cells.len();
        self.steps.push(cells);
    }

    fn halve(&mut self) {
        let steps = std::mem::take(&mut self.steps);
        let mut steps = steps.into_iter();
        while let Some(first) = steps.next() {
            let merged = match steps.next() {
                Some(second) => merge(&first, &second),
                None => first,
            };
            self.steps.push(merged);
        }
        self.cells = self.steps.iter().map(Vec::len).sum();
    }

    /// Forgets the steps, and keeps what is held: all of it has changed in the step that begins.
    fn restart(&mut self) {
        self.steps.clear();
        self.cells = 0;
        self.touched.clear();
        for (number, sums) in (0..).zip(&mut self.sums) {
            let is_touched = sums.level_bytes > 0;
            *sums = Sums { is_touched, level_bytes: sums.level_bytes, ..Sums::default() };
            if is_touched {
                self.touched.push(number);
            }
        }
    }
}

impl Sums {
    #[inline(always)]
    fn post(&mut self, level: Level, posting: &Posting) {
        let &Posting { pid: _, site: _, thread: _, change, blocks, bytes } = posting;
        if change == Change::Acquire {
            self.allocations += blocks;
            self.allocated_bytes = self.allocated_bytes.wrapping_add(bytes);
        }
        let is_counted = level == Level::Held || change.changes_usage();
        if is_counted && change.adds() {
            self.level_bytes = self.level_bytes.wrapping_add(bytes);
        } else if is_counted {
            self.level_bytes = self.level_bytes.wrapping_sub(bytes);
        }
    }
}

impl Activity {
    /// Nothing has happened yet.
    pub fn new(level: Level) -> Activity {
        Activity {
            level,
            start: Time(0),
            step_ns: FIRST_STEP_NS,
            end_ns: Some(FIRST_STEP_NS),
            sites: Series::default(),
            threads: Series::default(),
            call_paths: CallPaths::default(),
            thread_ids: Vec::new(),
            temporary_allocations: 0,
        }
    }

    /// Takes in what a record changed.
    pub fn event(&mut self, record: &Record, postings: &[Posting], pipeline: &Pipeline) {
        self.call_paths.event(record, pipeline);
        if pipeline.began() != self.start {
            self.restart(pipeline.began());
        }
        if postings.is_empty() {
            return;
        }
        if self.end_ns.is_some_and(|end| pipeline.now().0 >= end) {
            self.call_paths.find_awaited(pipeline);
            self.advance(pipeline.now());
        }
        for posting in postings {
            self.post(posting, pipeline);
        }
        let temporary = pipeline.temporary_allocations();
        if temporary != self.temporary_allocations {
            // A free, and so one posting.
            let more = temporary - self.temporary_allocations;
            self.sites.sums[postings[0].site.index()].temporary += more;
            self.threads.sums[postings[0].thread.index()].temporary += more;
            self.temporary_allocations = temporary;
        }
    }

    fn post(&mut self, posting: &Posting, pipeline: &Pipeline) {
        let id = posting.site;
        let api = self.call_paths.meet(id, pipeline);
        // Fit: both have a number of 32 bits.
        self.sites.touch(id.index() as u32).post(self.level, posting);
        if Memory::of(api) == Memory::Heap {
            let index = posting.thread.index();
            self.threads.touch(index as u32).post(self.level, posting);
            if self.thread_ids.len() <= index {
                self.thread_ids.extend(pipeline.thread_ids().skip(self.thread_ids.len()));
            }
        }
    }

    fn advance(&mut self, now: Time) {
        while self.end_ns.is_some_and(|end| now.0 >= end) {
            self.close_step();
            let steps = self.sites.steps.len();
            let cells = self.sites.cells + self.threads.cells;
            if steps >= STEPS || (steps.is_multiple_of(2) && cells > CELLS) {
                self.halve();
            }
        }
    }

    fn close_step(&mut self) {
        self.sites.close_step();
        self.threads.close_step();
        self.find_end();
    }

    fn halve(&mut self) {
        self.sites.halve();
        self.threads.halve();
        self.step_ns = self.step_ns.saturating_mul(2);
        self.find_end();
    }

    fn find_end(&mut self) {
        let steps = self.sites.steps.len() as u64 + 1;
        let length = self.step_ns.checked_mul(steps);
        self.end_ns = length.and_then(|length| length.checked_add(self.start.0));
    }

    /// What came before `start` is the past of a range.
    fn restart(&mut self, start: Time) {
        self.start = start;
        self.step_ns = FIRST_STEP_NS;
        self.sites.restart();
        self.threads.restart();
        self.find_end();
    }

    /// Ends the last step with the session.
    pub(in crate::views) fn finish(mut self, snapshot: &Snapshot) -> Finished {
        let (began, now) = (snapshot.began(), snapshot.now);
        if began != self.start {
            // Nothing has happened since.
            self.restart(began);
        }
        self.advance(now);
        if !self.sites.touched.is_empty() || self.sites.steps.is_empty() {
            self.close_step();
        }
        let end = |step: u64| self.start.0.saturating_add(self.step_ns.saturating_mul(step));
        let steps = 1..=self.sites.steps.len() as u64;
        let mut ends: Vec<Time> = steps.map(|step| Time(end(step).min(now.0))).collect();
        if let Some(last) = ends.last_mut() {
            *last = now;
        }
        Finished {
            start: self.start,
            ends,
            sites: self.call_paths.finish(),
            threads: places_of_threads(&self.thread_ids, snapshot),
            of_sites: self.sites.steps,
            of_threads: self.threads.steps,
        }
    }
}

/// Where in the snapshot each thread is. Of one id, threads come in order of appearance in both.
fn places_of_threads(ids: &[(Pid, Tid)], snapshot: &Snapshot) -> Vec<Option<usize>> {
    let mut places: FxHashMap<(Pid, Tid), VecDeque<usize>> = FxHashMap::default();
    for (place, thread) in snapshot.threads.iter().enumerate() {
        places.entry((thread.pid, thread.tid)).or_default().push_back(place);
    }
    ids.iter().map(|id| places.get_mut(id)?.pop_front()).collect()
}

/// Two steps as one: the work of both, the state at the end of the second.
fn merge(first: &[Cell], second: &[Cell]) -> Vec<Cell> {
    let mut merged = Vec::with_capacity(first.len().max(second.len()));
    let mut second = second.iter().copied().peekable();
    for &cell in first {
        while let Some(other) = second.next_if(|other| other.number < cell.number) {
            merged.push(other);
        }
        let same = second.next_if(|other| other.number == cell.number);
        merged.push(same.map_or(cell, |later| Cell {
            number: cell.number,
            allocations: cell.allocations + later.allocations,
            allocated_bytes: cell.allocated_bytes.wrapping_add(later.allocated_bytes),
            temporary: cell.temporary + later.temporary,
            level_bytes: later.level_bytes,
        }));
    }
    merged.extend(second);
    merged
}

#[cfg(test)]
mod tests {
    use memtrace_common::addr::Avma;
    use memtrace_common::unwind::End;

    use super::*;
    use crate::pipeline::Limits;
    use crate::record::{Alignment, Pid, Process, Tid, WireStackId};

    const PID: Pid = Pid(1);
    const TID: Tid = Tid(1);

    fn process() -> Record {
        let (exe, command) = (Vec::new(), Vec::new());
        Record::Process(Process { time: Time(0), pid: PID, parent: None, exe, command })
    }

    fn stack(id: u64) -> Record {
        Record::Stack { id: WireStackId(id), pid: PID, end: End::Root, frames: vec![Avma(id)] }
    }

    fn alloc(ms: u64, stack: u64, ptr: u64, size: u64) -> Record {
        let (time, ptr, stack) = (Time(ms * 1_000_000), Avma(ptr), WireStackId(stack));
        Record::Alloc {
            time,
            tid: TID,
            api: Api::Malloc,
            ptr,
            size,
            alignment: Alignment::NONE,
            stack,
        }
    }

    fn free(ms: u64, ptr: u64) -> Record {
        let time = Time(ms * 1_000_000);
        Record::Free { time, tid: TID, api: Api::Free, ptr: Avma(ptr) }
    }

    fn finished(records: &[Record]) -> Finished {
        let mut pipeline = Pipeline::new(Limits::default());
        let (mut activity, mut postings) = (Activity::new(Level::Live), Vec::new());
        for record in records {
            pipeline.apply_with(record, &mut postings);
            activity.event(record, &postings, &pipeline);
        }
        activity.finish(&pipeline.snapshot())
    }

    /// Step, place of the only frame, allocations, bytes, temporary, live.
    fn cells(finished: &Finished) -> Vec<(usize, usize, u64, u64, u64, u64)> {
        let mut cells = Vec::new();
        for (step, each) in finished.of_sites.iter().enumerate() {
            for cell in each {
                let &Cell { number, allocations, allocated_bytes, temporary, level_bytes } = cell;
                let frames = finished.sites[number as usize].0.frames.len();
                cells.push((step, frames, allocations, allocated_bytes, temporary, level_bytes));
            }
        }
        cells
    }

    #[test]
    fn step_holds_the_sites_that_changed_in_it() {
        let records = [
            process(),
            stack(7),
            alloc(0, 7, 0x100, 10),
            alloc(0, 7, 0x200, 5),
            free(0, 0x200),
            free(3, 0x100),
            Record::Tick { time: Time(4_500_000) },
        ];

        let finished = finished(&records);

        assert_eq!(cells(&finished), [(0, 1, 2, 15, 1, 10), (3, 1, 0, 0, 1, 0)]);
        let ms = |ends: &[Time]| ends.iter().map(|end| end.0 / 1_000).collect::<Vec<_>>();
        assert_eq!(ms(&finished.ends), [1_000, 2_000, 3_000, 4_500]);
    }

    #[test]
    fn site_whose_frames_come_late_has_them_at_the_end() {
        let records = [process(), alloc(0, 7, 0x100, 10), stack(7)];

        let finished = finished(&records);

        assert_eq!(cells(&finished), [(0, 1, 1, 10, 0, 10)]);
    }

    #[test]
    fn long_session_has_few_steps_and_loses_nothing() {
        let mut records = vec![process(), stack(7), stack(8)];
        for n in 0..10_000 {
            records.push(alloc(n * 7, 7 + n % 2, 0x1000 + n * 64, 3));
        }

        let finished = finished(&records);

        assert!(finished.of_sites.len() <= STEPS && finished.of_sites.len() >= STEPS / 2);
        assert_eq!(finished.of_sites.len(), finished.ends.len());
        assert_eq!(finished.ends.last(), Some(&Time(9_999 * 7 * 1_000_000)));
        let cells = cells(&finished);
        assert_eq!(cells.iter().map(|cell| cell.2).sum::<u64>(), 10_000);
        assert_eq!(cells.iter().map(|cell| cell.3).sum::<u64>(), 30_000);
        assert_eq!(cells.iter().rev().take(2).map(|cell| cell.5).sum::<u64>(), 30_000);
    }
}
