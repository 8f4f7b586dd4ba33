//! What each call path did, step by step, noted while a trace is read.
//!
//! In: the postings of every event. Out: for each step of the session the sites that changed in it,
//! with what they allocated and what they hold at its end. A site that did nothing in a step takes
//! no room in it. When steps or cells are used up, each two neighbours become one and the steps
//! twice as long, as in the pipeline's timeline:
//!
//! ```text
//!   4 steps of 1 ms, full    | a | b | c | d |
//!   4 steps of 2 ms          |  ab   |  cd   |       |       |
//! ```
//!
//! Live bytes are those of [`Usage::live_bytes`](crate::pipeline::snapshot::Usage): what a program
//! held when it ended stays live.

use std::sync::Arc;

use memtrace_common::event::Api;
use memtrace_common::unwind::End;

use crate::pipeline::snapshot::Stack;
use crate::pipeline::{Change, Pipeline, Posting, SiteId};
use crate::record::{Record, Time};

/// Length of the steps at the start.
const FIRST_STEP_NS: u64 = 1_000_000;
/// The most steps; an even number.
const STEPS: usize = 256;
/// Cells that may be kept, about: 160 MB. Never more than this and two for each site.
const CELLS: usize = 1 << 22;
/// So many sites without frames are looked at whenever a stack arrives, and all after each step.
const AWAITED_AT_ONCE: usize = 64;

/// What a site did in a step in which it changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    /// Its number is its place in [`Finished::sites`].
    pub(super) site: SiteId,
    pub(super) allocations: u64,
    pub(super) allocated_bytes: u64,
    pub(super) temporary: u64,
    /// At the end of the step.
    pub(super) live_bytes: u64,
}

/// A call path and an API, and what it has done in the step under way.
#[derive(Default)]
struct Site {
    stack: Option<Arc<Stack>>,
    api: Option<Api>,
    is_touched: bool,
    allocations: u64,
    allocated_bytes: u64,
    temporary: u64,
    live_bytes: u64,
}

/// The steps so far.
pub struct Activity {
    steps: Vec<Vec<Cell>>,
    cells: usize,
    step_ns: u64,
    /// End of the step under way; `None` if it lies beyond the end of time.
    end_ns: Option<u64>,
    sites: Vec<Site>,
    /// The sites that changed in the step under way.
    touched: Vec<SiteId>,
    /// The sites whose frames have not come yet.
    awaited: Vec<SiteId>,
    temporary_allocations: u64,
}

/// The steps of a session that is over.
pub(super) struct Finished {
    /// When each step ends.
    pub(super) ends: Vec<Time>,
    /// The sites that changed in each step, in order.
    pub(super) steps: Vec<Vec<Cell>>,
    /// Call path and API, by the cells' `site`.
    pub(super) sites: Vec<(Arc<Stack>, Api)>,
}

impl Default for Activity {
    fn default() -> Activity {
        Activity {
            steps: Vec::new(),
            cells: 0,
            step_ns: FIRST_STEP_NS,
            end_ns: Some(FIRST_STEP_NS),
            sites: Vec::new(),
            touched: Vec::new(),
            awaited: Vec::new(),
            temporary_allocations: 0,
        }
    }
}

impl Activity {
    /// Takes in what a record changed.
    pub fn event(&mut self, record: &Record, postings: &[Posting], pipeline: &Pipeline) {
        if let Record::Stack { .. } | Record::End { .. } = record
            && (self.awaited.len() <= AWAITED_AT_ONCE || matches!(record, Record::End { .. }))
        {
            self.find_awaited(pipeline);
        }
        if postings.is_empty() {
            return;
        }
        if self.end_ns.is_some_and(|end| pipeline.now().0 >= end) {
            self.find_awaited(pipeline);
            self.advance(pipeline.now());
        }
        for posting in postings {
            self.post(posting, pipeline);
        }
        let temporary = pipeline.temporary_allocations();
        if temporary != self.temporary_allocations {
            // A free, and so one posting.
            let site = postings[0].site.index();
            self.sites[site].temporary += temporary - self.temporary_allocations;
            self.temporary_allocations = temporary;
        }
    }

    fn post(&mut self, posting: &Posting, pipeline: &Pipeline) {
        let &Posting { site: id, change, blocks, bytes } = posting;
        let index = id.index();
        if self.sites.len() <= index {
            self.sites.resize_with(index + 1, Site::default);
        }
        let site = &mut self.sites[index];
        if !site.is_touched {
            site.is_touched = true;
            self.touched.push(id);
            if site.api.is_none() {
                let (api, stack) = pipeline.known_call_path(id);
                site.api = Some(api);
                site.stack = stack.map(Arc::clone);
                if site.stack.is_none() {
                    self.awaited.push(id);
                }
            }
        }
        match change {
            Change::Acquire => {
                site.allocations += blocks;
                site.allocated_bytes = site.allocated_bytes.wrapping_add(bytes);
                site.live_bytes = site.live_bytes.wrapping_add(bytes);
            }
            Change::Reclaim | Change::Inherit => {
                site.live_bytes = site.live_bytes.wrapping_add(bytes);
            }
            Change::Release | Change::Disinherit => {
                site.live_bytes = site.live_bytes.wrapping_sub(bytes);
            }
            // The last two are of ranges only.
            Change::Abandon | Change::Hold | Change::LetGo => {}
        }
    }

    fn advance(&mut self, now: Time) {
        while self.end_ns.is_some_and(|end| now.0 >= end) {
            self.close_step();
            let is_even = self.steps.len().is_multiple_of(2);
            if self.steps.len() >= STEPS || (is_even && self.cells > CELLS) {
                self.halve();
            }
        }
    }

    fn close_step(&mut self) {
        self.touched.sort_unstable();
        let mut cells = Vec::with_capacity(self.touched.len());
        for id in self.touched.drain(..) {
            let site = &mut self.sites[id.index()];
            cells.push(Cell {
                site: id,
                allocations: std::mem::take(&mut site.allocations),
                allocated_bytes: std::mem::take(&mut site.allocated_bytes),
                temporary: std::mem::take(&mut site.temporary),
                live_bytes: site.live_bytes,
            });
            site.is_touched = false;
        }
        self.cells += cells.len();
        self.steps.push(cells);
        self.end_ns = self.step_ns.checked_mul(self.steps.len() as u64 + 1);
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
        self.step_ns = self.step_ns.saturating_mul(2);
        self.end_ns = self.step_ns.checked_mul(self.steps.len() as u64 + 1);
    }

    fn find_awaited(&mut self, pipeline: &Pipeline) {
        let sites = &mut self.sites;
        self.awaited.retain(|&id| {
            let site = &mut sites[id.index()];
            site.stack = pipeline.known_call_path(id).1.map(Arc::clone);
            site.stack.is_none()
        });
    }

    /// Ends the last step at `now`.
    pub(super) fn finish(mut self, now: Time) -> Finished {
        self.advance(now);
        if !self.touched.is_empty() || self.steps.is_empty() {
            self.close_step();
        }
        let ends = (1..=self.steps.len() as u64).map(|step| self.step_ns.saturating_mul(step));
        let mut ends: Vec<Time> = ends.map(|end| Time(end.min(now.0))).collect();
        if let Some(last) = ends.last_mut() {
            *last = now;
        }
        let missing = Arc::new(Stack { end: End::Missing, frames: Vec::new() });
        let sites = self.sites.into_iter().map(|site| {
            // A site that never changed has no cell, so that its API does not matter.
            let api = site.api.unwrap_or(Api::Malloc);
            (site.stack.unwrap_or_else(|| Arc::clone(&missing)), api)
        });
        Finished { ends, sites: sites.collect(), steps: self.steps }
    }
}

/// Two steps as one: the work of both, the state at the end of the second.
fn merge(first: &[Cell], second: &[Cell]) -> Vec<Cell> {
    let mut merged = Vec::with_capacity(first.len().max(second.len()));
    let mut second = second.iter().copied().peekable();
    for &cell in first {
        while let Some(other) = second.next_if(|other| other.site < cell.site) {
            merged.push(other);
        }
        let same = second.next_if(|other| other.site == cell.site);
        merged.push(same.map_or(cell, |later| Cell {
            site: cell.site,
            allocations: cell.allocations + later.allocations,
            allocated_bytes: cell.allocated_bytes.wrapping_add(later.allocated_bytes),
            temporary: cell.temporary + later.temporary,
            live_bytes: later.live_bytes,
        }));
    }
    merged.extend(second);
    merged
}

#[cfg(test)]
mod tests {
    use memtrace_common::addr::Avma;

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
        let (mut activity, mut postings) = (Activity::default(), Vec::new());
        for record in records {
            pipeline.apply_with(record, &mut postings);
            activity.event(record, &postings, &pipeline);
        }
        activity.finish(pipeline.now())
    }

    /// Step, place of the only frame, allocations, bytes, temporary, live.
    fn cells(finished: &Finished) -> Vec<(usize, usize, u64, u64, u64, u64)> {
        let mut cells = Vec::new();
        for (step, each) in finished.steps.iter().enumerate() {
            for cell in each {
                let &Cell { site, allocations, allocated_bytes, temporary, live_bytes } = cell;
                let frames = finished.sites[site.index()].0.frames.len();
                cells.push((step, frames, allocations, allocated_bytes, temporary, live_bytes));
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

        assert!(finished.steps.len() <= STEPS && finished.steps.len() >= STEPS / 2);
        assert_eq!(finished.steps.len(), finished.ends.len());
        assert_eq!(finished.ends.last(), Some(&Time(9_999 * 7 * 1_000_000)));
        let cells = cells(&finished);
        assert_eq!(cells.iter().map(|cell| cell.2).sum::<u64>(), 10_000);
        assert_eq!(cells.iter().map(|cell| cell.3).sum::<u64>(), 30_000);
        assert_eq!(cells.iter().rev().take(2).map(|cell| cell.5).sum::<u64>(), 30_000);
    }
}
