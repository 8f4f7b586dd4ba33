//! A range of a session: what was held before it, apart from what happened in it.
//!
//! ```text
//!   Pipeline::of_range ─ what was held, as records ─→ begin_range ─ the records of the range ─→
//! ```
//!
//! Blocks from before the range count for the peak, so that it is the highest level of the whole
//! heap; they are not live in the range's accounts and their release is no free there.

use memtrace_common::addr::Avma;
use memtrace_common::event::Api;

use super::account::{Change, Claim};
use super::anomalies::Anomalies;
use super::live_set::{ADDRESS_LIMIT, Birth, Block, SIZE_LIMIT};
use super::mappings::{Origin, Pages};
use super::snapshot::{Amount, Range, Scope};
use super::threads::Actor;
use super::timeline::Timeline;
use super::{Limits, Pipeline};
use crate::record::{Alignment, Pid, Tid, Time, WireStackId};

/// A block or a piece of a mapping, as a `Held` record tells it.
pub(super) struct Told {
    pub(super) api: Option<Api>,
    pub(super) start: Avma,
    pub(super) length: u64,
    pub(super) alignment: Alignment,
    pub(super) stack: WireStackId,
}

/// What becomes of `Held` records, and of what they told.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Before {
    /// They are all there is: it is live.
    #[default]
    Nothing,
    /// A heap snapshot has told them.
    Moment,
    /// They were held before the range, which begins at `from`; `left` is still held.
    Range { from: Time, at_start: Amount, left: Amount },
}

impl Before {
    /// Notes that something from before the range came or went.
    #[inline(always)]
    pub(super) fn apply(&mut self, change: Change, blocks: u64, bytes: u64) {
        let Before::Range { left, .. } = self else { return };
        match change {
            Change::Hold => {
                left.blocks = left.blocks.wrapping_add(blocks);
                left.bytes = left.bytes.wrapping_add(bytes);
            }
            Change::LetGo => {
                left.blocks = left.blocks.wrapping_sub(blocks);
                left.bytes = left.bytes.wrapping_sub(bytes);
            }
            Change::Acquire
            | Change::Release
            | Change::Reclaim
            | Change::Inherit
            | Change::Disinherit
            | Change::Abandon => {}
        }
    }

    /// When what is counted began.
    #[inline(always)]
    pub(super) fn began(&self) -> Time {
        match *self {
            Before::Nothing | Before::Moment => Time(0),
            Before::Range { from, .. } => from,
        }
    }

    pub(super) fn scope(&self) -> Scope {
        match *self {
            Before::Nothing => Scope::Run,
            Before::Moment => Scope::Moment,
            Before::Range { from, at_start, left } => {
                Scope::Range(Range { from, held_before: at_start, still_held: left })
            }
        }
    }
}

impl Pipeline {
    /// A pipeline for a range: what it is told before [`Pipeline::begin_range`] is the past.
    ///
    /// `only` names the processes that count, as in [`Pipeline::only`]; none for all.
    pub fn of_range(limits: Limits, only: &[Pid]) -> Pipeline {
        let mut pipeline = Pipeline::of(limits, only);
        let nothing = Amount::default();
        pipeline.before = Before::Range { from: Time(0), at_start: nothing, left: nothing };
        pipeline
    }

    /// Ends the past of a pipeline made by [`Pipeline::of_range`].
    ///
    /// `from` is where the range begins; records may begin later.
    pub fn begin_range(&mut self, from: Time) {
        let Before::Range { left, .. } = self.before else { return };
        self.before = Before::Range { from, at_start: left, left };
        self.now = self.now.max(from);
        self.events = 0;
        self.anomalies = Anomalies::default();
        self.stacks.paths.restart_counts();
        self.heap_peak.restart(self.now);
        self.mapped_peak.restart(self.now);
        self.peak_resident_bytes = self.resident_bytes;
        self.timeline = Timeline::starting(self.limits.timeline_points, self.now);
        self.timeline.observe(self.heap_peak.held_bytes());
        self.marks.restart(self.now, self.heap_peak.held_bytes());
        self.begin_detection();
    }

    pub(super) fn hold(&mut self, born: Time, pid: Pid, tid: Tid, told: Told) {
        let Told { api, start, length, alignment, stack } = told;
        let Some(process) = self.running(pid) else {
            return;
        };
        let (claim, change) = match self.before {
            Before::Range { .. } => (Claim::Earlier, Change::Hold),
            Before::Nothing | Before::Moment => {
                // A process that was attached to tells what it had reserved, and goes on.
                if api.is_some() {
                    self.before = Before::Moment;
                }
                (Claim::Own, Change::Acquire)
            }
        };
        let actor = self.threads.find(tid).or_else(|| self.start_thread(process, tid, &[]));
        let Some(Actor { thread, .. }) = actor else {
            self.anomalies.threads_beyond_limit += 1;
            return;
        };
        match api {
            Some(api) if api.acquires_block() => {
                if start == Avma(0) {
                    self.anomalies.allocations_at_null += 1;
                    return;
                }
                if start.0 >= ADDRESS_LIMIT || length >= SIZE_LIMIT {
                    self.anomalies.impossible_allocations += 1;
                    return;
                }
                if self.is_beyond_limit(process, start, length) {
                    return;
                }
                let site = self.stacks.site(stack, api, alignment);
                let born = Birth::at(born);
                let block = Block { size_bytes: length, born, site, thread, claim };
                let entry = self.put_block(process, start, block);
                self.post_block(entry, &block, change);
                // Of a moment, these are the blocks that there are.
                if change == Change::Acquire && self.is_shown(entry) {
                    self.collected.allocated(api, site, self.stacks.account(site), length);
                }
                // It is no growth, so it is no spike.
                self.heap_peak.settle(self.now);
            }
            Some(Api::Mmap | Api::Mremap | Api::Brk | Api::Mprotect) | None => {
                let Some(pages) = Pages::touched(start, length) else {
                    return;
                };
                let site = api.map(|api| self.stacks.site(stack, api, Alignment::NONE));
                let origin = site.map(|site| Origin { site, thread, born });
                let outcome =
                    self.change_mappings(process, |m, room| m.hold(pages, origin, claim, room));
                self.post_outcome(process, outcome);
            }
            Some(_) => self.anomalies.allocations_by_wrong_api += 1,
        }
    }
}
