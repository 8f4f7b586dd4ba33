//! What the detectors found: spikes and growing sites, each with its evidence.

use std::sync::Arc;

use memtrace_common::event::Api;

use super::snapshot::{Memory, Stack};
use crate::record::{LimitKind, Pid, Tid, Time};

/// How grave a spike is. The order is that of gravity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// At least the first threshold.
    Medium,
    /// At least the second.
    High,
    /// At least the third.
    Critical,
}

/// Memory that grew by more than a threshold within the window.
#[derive(Clone, Debug)]
pub struct Spike {
    /// The operation whose memory it is; `None` if it is that of all.
    pub operation: Option<Arc<str>>,
    /// Whose: the heap's or that of mappings.
    pub memory: Memory,
    /// The highest threshold that `window_bytes` reached.
    pub severity: Severity,
    /// When it began: the memory was at its lowest in the window then.
    pub start: Time,
    /// When 15/16 of the height were there.
    pub end: Time,
    /// Bytes held at the start.
    pub base_bytes: u64,
    /// Bytes held at the top, above the base.
    pub height_bytes: u64,
    /// The largest growth within one window.
    pub window_bytes: u64,
    /// When three quarters of the height were given back; `None` if they were not, so far.
    pub returned: Option<Time>,
    /// Of the height, bytes held when the report was made; 0 if it has returned.
    pub left_bytes: u64,
    /// Who grew, the largest first, at the moment when `measured_bytes` of the height were there.
    pub contributors: Vec<Contributor>,
    /// The growth of which the contributors are parts. Within 1/16 of the height.
    pub measured_bytes: u64,
    /// Threads whose blocks or mappings grew, the largest first.
    pub threads: Vec<ThreadGrowth>,
    /// Whether to tell somebody: not if it only repeats what was told a moment ago.
    pub alert: bool,
}

/// A call path that made a spike.
#[derive(Clone, Debug)]
pub struct Contributor {
    /// The call path.
    pub stack: Arc<Stack>,
    /// The function of the allocator or the system call.
    pub api: Api,
    /// By how much it grew.
    pub bytes: u64,
}

/// A thread that made a spike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadGrowth {
    /// Its process.
    pub pid: Pid,
    /// Its id.
    pub tid: Tid,
    /// Its name; the program's choice, not printable as it is.
    pub name: Vec<u8>,
    /// By how much it grew.
    pub bytes: u64,
}

/// What kind of growth a site shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Blocks are kept at a steady rate and never freed.
    LinearGrowth,
    /// Large blocks or mappings are kept at a steady rate.
    BufferLeak,
    /// Small blocks of one size are kept, one by one, and none is ever freed.
    ListenerLeak,
    /// Aged blocks are freed too, but fewer than come: it does not level off.
    CacheGrowth,
    /// It has levelled off.
    BoundedCache,
    /// The allocator takes ever more from the kernel, though what is live does not grow.
    Fragmentation,
    /// It grows; the time is too short, or the growth too irregular, to tell what it is.
    Undetermined,
}

impl Class {
    /// Whether this accuses: memory that will not come back by itself.
    pub fn is_leak(self) -> bool {
        match self {
            Class::LinearGrowth
            | Class::BufferLeak
            | Class::ListenerLeak
            | Class::CacheGrowth
            | Class::Fragmentation => true,
            Class::BoundedCache | Class::Undetermined => false,
        }
    }
}

/// How fast a leak is, by the thresholds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Below the lower threshold, or no leak.
    Healthy,
    /// Between both.
    Warning,
    /// Above the upper threshold.
    Alert,
}

/// How sure a verdict is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Confidence {
    /// Few blocks, or a short time.
    Low,
    /// Between.
    Medium,
    /// Many blocks, evenly spread over a long time.
    High,
}

/// Growth per hour, with its interval of 95%.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// The estimate.
    pub bytes_per_hour: f64,
    /// Half the width of the interval.
    pub plus_minus: f64,
}

/// Blocks allocated in a span of the site's time, and those of them that live.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cohort {
    /// End of the span.
    pub until: Time,
    /// Blocks allocated in it; between two steps of the history this is interpolated.
    pub allocated_blocks: f64,
    /// Of these, blocks that live.
    pub live_blocks: u64,
    /// Their bytes.
    pub live_bytes: u64,
}

/// The verdict on a site.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The call path.
    pub stack: Arc<Stack>,
    /// The function of the allocator or the system call.
    pub api: Api,
    /// What kind of growth it is.
    pub class: Class,
    /// How fast.
    pub level: Level,
    /// How sure.
    pub confidence: Confidence,
    /// The growth.
    pub rate: Rate,
    /// Blocks that live now.
    pub live_blocks: u64,
    /// Their bytes.
    pub live_bytes: u64,
    /// Of these, bytes older than the last tenth of the session.
    pub aged_bytes: u64,
    /// When the oldest live block was allocated.
    pub oldest: Time,
    /// When the site began to hold memory.
    pub since: Time,
    /// Survival by age, oldest first.
    pub cohorts: Vec<Cohort>,
    /// Until the memory limit is reached at this rate; `None` without a limit or growth.
    pub limit_in_ns: Option<u64>,
}

/// The verdicts, and what is to be known about them.
#[derive(Clone, Debug, Default)]
pub struct Leaks {
    /// Sites that grow or have grown; leaks first, the fastest first.
    pub verdicts: Vec<Verdict>,
    /// How long the session must be before anybody is accused.
    pub needed_ns: u64,
    /// Bytes an hour from which on growth is told.
    pub told_from_bytes_per_hour: f64,
    /// The limit against which `limit_in_ns` is reckoned.
    pub limit: Option<MemoryLimit>,
}

/// How much memory there is for a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLimit {
    /// Who sets it.
    pub kind: LimitKind,
    /// The limit.
    pub limit_bytes: u64,
    /// What is used of it, by all who share it.
    pub used_bytes: u64,
}
