//! Spikes of a total: of the heap or of mappings, of an operation or of all.
//!
//! In: the total at every tick, and whenever it is above the alarm. Out: runs in which the growth
//! within the window is at least the lowest threshold, from the lowest total in the window at the
//! run's start to the highest in it:
//!
//! ```text
//!   total            ______ top
//!                   /      \
//!   alarm ---------/-        \____    returned: a quarter of the height is left
//!   ______________/ start
//!                  |window|
//! ```
//!
//! Where the total creeps up already, the start is the last tick at which an eighth of the growth
//! was there: what came before belongs to the creep.
//!
//! Without a run, the alarm is the lowest total of the window plus the threshold; in one, the
//! highest total so far. So an event costs one comparison unless it makes a spike higher.

use std::collections::VecDeque;
use std::sync::Arc;

use super::journal::{Base, Journal};
use super::options::SpikeOptions;
use crate::pipeline::findings::{Severity, Spike};
use crate::pipeline::snapshot::Memory;
use crate::pipeline::stacks::SiteId;
use crate::record::Time;

/// Spikes that are kept. Beyond, they are counted.
const SPIKES: usize = 256;
/// By which part of its growth a spike must have grown before its makers are measured anew.
const REMEASURED_PART: u64 = 16;
/// So many accounts are looked at in a tenth of a millisecond.
const FEW_HOLDERS: usize = 4096;
/// A spike has returned when this part of its height is left.
const RETURNED_PART: u64 = 4;
/// A spike goes on while the growth within the window is this part of the lowest threshold: a rise
/// that has just reached that may be below it again when the window has moved on by a tick.
const GOES_ON_PART: u64 = 2;
/// A spike has not begun while this part of the growth is there.
const CREEP_PART: u64 = 8;

/// A run under way.
#[derive(Debug)]
struct Run {
    start: Time,
    base_bytes: u64,
    top_bytes: u64,
    /// When it was last higher than before by a [`REMEASURED_PART`].
    end: Time,
    window_bytes: u64,
    /// What accounts held at the start.
    base: Base,
    /// Up to which entry of the journal `base` is complete.
    noted: u64,
    /// The total when the makers were measured.
    measured_bytes: u64,
    measure: Measure,
}

/// Who made a spike, as measured at one moment.
#[derive(Debug, Default)]
pub(super) struct Measure {
    pub(super) contributors: Vec<crate::pipeline::findings::Contributor>,
    pub(super) threads: Vec<crate::pipeline::findings::ThreadGrowth>,
    /// The site that grew most.
    pub(super) first: Option<SiteId>,
}

/// A spike that is over, or still rising.
#[derive(Clone, Debug)]
struct Past {
    spike: Spike,
    first: Option<SiteId>,
}

/// The spikes of one total.
#[derive(Debug)]
pub(super) struct Spikes {
    operation: Option<Arc<str>>,
    memory: Memory,
    options: SpikeOptions,
    /// The totals at the ends of the last ticks, the newest last.
    window: VecDeque<(Time, u64)>,
    window_ticks: usize,
    /// Above this, somebody has to look.
    alarm_bytes: u64,
    run: Option<Run>,
    past: Vec<Past>,
    /// How many spikes of the last one's origin came in a row, and the gravest that was told.
    in_a_row: u32,
    told: Option<Severity>,
    beyond_limit: u64,
    begun: u64,
}

/// What is to be done about a total above the alarm.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Nothing more.
    Done,
    /// Measure who grew since the start: what accounts held then is in [`Spikes::base`].
    Measure,
}

impl Spikes {
    /// Of the memory of an operation, or of all.
    pub(super) fn new(
        operation: Option<Arc<str>>,
        memory: Memory,
        options: SpikeOptions,
        window_ticks: usize,
    ) -> Spikes {
        let mut spikes = Spikes {
            operation,
            memory,
            options,
            window: VecDeque::from([(Time(0), 0)]),
            window_ticks,
            alarm_bytes: 0,
            run: None,
            past: Vec::new(),
            in_a_row: 0,
            told: None,
            beyond_limit: 0,
            begun: 0,
        };
        spikes.set_alarm();
        spikes
    }

    /// Whether a total needs a look.
    #[inline(always)]
    pub(super) fn is_rising(&self, total_bytes: u64) -> bool {
        total_bytes > self.alarm_bytes
    }

    /// The lowest total of the window.
    fn floor_bytes(&self) -> u64 {
        self.window.iter().map(|&(_, total)| total).min().unwrap_or(0)
    }

    /// Where growth to `total_bytes` began: when, at what total, and how many ticks ago.
    fn start(&self, total_bytes: u64) -> (Time, u64, usize) {
        let floor = self.floor_bytes();
        let creep = floor + total_bytes.saturating_sub(floor) / CREEP_PART;
        let newest_first = self.window.iter().rev().enumerate();
        let start = newest_first.into_iter().find(|&(_, &(_, total))| total <= creep);
        start.map_or((Time(0), 0, 0), |(ago, &(time, total))| (time, total, ago))
    }

    fn set_alarm(&mut self) {
        self.alarm_bytes = match &self.run {
            Some(run) => run.top_bytes,
            None => self.floor_bytes().saturating_add(self.options.medium_bytes).saturating_sub(1),
        };
    }

    /// Looks at a total above the alarm.
    pub(super) fn look(&mut self, now: Time, total_bytes: u64, journal: &Journal) -> Look {
        let floor_bytes = self.floor_bytes();
        let (start, base_bytes, ticks_ago) = self.start(total_bytes);
        self.begun += u64::from(self.run.is_none());
        let run = self.run.get_or_insert_with(|| Run {
            start,
            base_bytes,
            top_bytes: total_bytes,
            end: now,
            window_bytes: 0,
            base: Base::default(),
            noted: journal.start_of_tick(ticks_ago),
            measured_bytes: 0,
            measure: Measure::default(),
        });
        run.top_bytes = total_bytes;
        run.window_bytes = run.window_bytes.max(total_bytes.saturating_sub(floor_bytes));
        self.alarm_bytes = total_bytes;
        let grown = total_bytes.saturating_sub(run.measured_bytes);
        let height = total_bytes.saturating_sub(run.base_bytes);
        if run.measured_bytes == 0 || grown >= height / REMEASURED_PART {
            run.end = now;
            Look::Measure
        } else {
            Look::Done
        }
    }

    /// Ends a tick at `now`, the total standing at `total_bytes`. In a run, the total may want to
    /// be measured before the tick is ended: see [`Spikes::is_paused`].
    pub(super) fn tick(&mut self, now: Time, total_bytes: u64) {
        self.window.push_back((now, total_bytes));
        while self.window.len() > self.window_ticks {
            self.window.pop_front();
        }
        for Past { spike, .. } in &mut self.past {
            if spike.returned.is_none()
                && is_back(spike.base_bytes, spike.height_bytes, total_bytes)
            {
                spike.returned = Some(now);
            }
        }
        let floor_bytes = self.floor_bytes();
        let ended = self.run.as_ref().is_some_and(|run| {
            total_bytes.saturating_sub(floor_bytes) < self.options.medium_bytes / GOES_ON_PART
                || is_back(run.base_bytes, run.top_bytes - run.base_bytes, total_bytes)
        });
        if ended && let Some(run) = self.run.take() {
            let mut spike = self.past(run);
            if is_back(spike.spike.base_bytes, spike.spike.height_bytes, total_bytes) {
                spike.spike.returned = Some(now);
            }
            self.keep(spike);
            // What rose in this run is not to be counted again.
            self.window.drain(..self.window.len() - 1);
        }
        self.set_alarm();
    }

    /// Whether the run is at its top and its makers were not measured there. If they are many, it
    /// must have stood there for a tick: one that rises on is measured by [`REMEASURED_PART`].
    pub(super) fn is_paused(&self, total_bytes: u64) -> bool {
        let stood = self.window.back().is_some_and(|&(_, total)| total == total_bytes);
        self.run.as_ref().is_some_and(|run| {
            run.top_bytes == total_bytes
                && run.measured_bytes < total_bytes
                && (stood || run.base.len() <= FEW_HOLDERS)
        })
    }

    /// What accounts held at the start of the run, complete up to now.
    pub(super) fn base(&mut self, journal: &Journal) -> Option<(Time, &Base)> {
        let run = self.run.as_mut()?;
        run.noted = journal.complete(&mut run.base, run.noted);
        Some((run.start, &run.base))
    }

    /// Keeps the base of a run complete before the journal forgets.
    pub(super) fn follow(&mut self, journal: &Journal) {
        self.base(journal);
    }

    /// Takes in who made the run, measured while the total was `total_bytes`.
    pub(super) fn measured(&mut self, total_bytes: u64, measure: Measure) {
        if let Some(run) = &mut self.run {
            run.measured_bytes = total_bytes;
            run.measure = measure;
        }
    }

    fn past(&self, run: Run) -> Past {
        let Run {
            start, base_bytes, top_bytes, end, window_bytes, measured_bytes, measure, ..
        } = run;
        let Measure { contributors, threads, first } = measure;
        let SpikeOptions { high_bytes, critical_bytes, .. } = self.options;
        let severity = match window_bytes {
            bytes if bytes >= critical_bytes => Severity::Critical,
            bytes if bytes >= high_bytes => Severity::High,
            _ => Severity::Medium,
        };
        let repeats = self.past.last().is_some_and(|last| last.first == first);
        let alert = !repeats
            || self.told.is_none_or(|told| severity > told)
            || (self.in_a_row + 1).is_multiple_of(self.options.repeat.max(1));
        let spike = Spike {
            operation: self.operation.clone(),
            memory: self.memory,
            severity,
            start,
            end,
            base_bytes,
            height_bytes: top_bytes - base_bytes,
            window_bytes,
            returned: None,
            left_bytes: 0,
            contributors,
            measured_bytes: measured_bytes.saturating_sub(base_bytes),
            threads,
            alert,
        };
        Past { spike, first }
    }

    fn keep(&mut self, past: Past) {
        let repeats = self.past.last().is_some_and(|last| last.first == past.first);
        self.in_a_row = if repeats { self.in_a_row + 1 } else { 0 };
        let told = self.told.filter(|_| repeats);
        self.told = told.max(past.spike.alert.then_some(past.spike.severity));
        if self.past.len() < SPIKES {
            self.past.push(past);
        } else {
            self.beyond_limit += 1;
        }
    }

    /// All spikes so far, the total being `total_bytes` now.
    pub(super) fn all(&self, total_bytes: u64) -> Vec<Spike> {
        let rising = self.run.as_ref().map(|run| self.past(run.clone_without_base()));
        let mut spikes: Vec<Spike> =
            self.past.iter().cloned().chain(rising).map(|past| past.spike).collect();
        for spike in &mut spikes {
            let above = total_bytes.saturating_sub(spike.base_bytes);
            spike.left_bytes = match spike.returned {
                Some(_) => 0,
                None => above.min(spike.height_bytes),
            };
        }
        spikes
    }

    /// How many have begun.
    pub(super) fn begun(&self) -> u64 {
        self.begun
    }

    /// Spikes that are not kept.
    pub(super) fn beyond_limit(&self) -> u64 {
        self.beyond_limit
    }
}

impl Run {
    fn clone_without_base(&self) -> Run {
        let Run { start, base_bytes, top_bytes, end, window_bytes, noted, measured_bytes, .. } =
            *self;
        let Measure { contributors, threads, first } = &self.measure;
        let measure =
            Measure { contributors: contributors.clone(), threads: threads.clone(), first: *first };
        let base = Base::default();
        Run {
            start,
            base_bytes,
            top_bytes,
            end,
            window_bytes,
            base,
            noted,
            measured_bytes,
            measure,
        }
    }
}

/// Whether a total is back, but for a part of the height.
fn is_back(base_bytes: u64, height_bytes: u64, total_bytes: u64) -> bool {
    total_bytes <= base_bytes.saturating_add(height_bytes / RETURNED_PART)
}
