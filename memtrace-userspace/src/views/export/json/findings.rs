//! Spikes and leaks in the JSON report.

use serde::Serialize;

use super::places::{Path, Places};
use crate::pipeline::findings::{
    self, Class, Cohort, Confidence, Level, Rate, Severity, ThreadGrowth, Verdict,
};
use crate::pipeline::snapshot::{Memory, Snapshot};
use crate::record::LimitKind;
use crate::views::findings::{Findings, NamedSpike, NamedVerdict};
use crate::views::frames::SymbolizedStack;
use crate::views::printable::{printable, printable_str};

#[derive(Serialize)]
pub(super) struct Spike<'r> {
    operation: Option<String>,
    memory: &'static str,
    severity: &'static str,
    start_ns: u64,
    end_ns: u64,
    base_bytes: u64,
    height_bytes: u64,
    window_bytes: u64,
    returned_ns: Option<u64>,
    left_bytes: u64,
    alert: bool,
    measured_bytes: u64,
    contributors: Vec<Contributor<'r>>,
    threads: Vec<Thread>,
}

#[derive(Serialize)]
struct Contributor<'r> {
    function: Option<&'r str>,
    module: Option<&'r str>,
    api: &'static str,
    bytes: u64,
    share: f64,
    places: Path<'r>,
}

#[derive(Serialize)]
struct Thread {
    pid: u32,
    tid: u32,
    name: String,
    bytes: u64,
}

pub(super) fn spikes<'r>(findings: &'r Findings, places: &'r Places<'r>) -> Vec<Spike<'r>> {
    findings.spikes.iter().map(|named| spike(named, places)).collect()
}

fn spike<'r>(named: &'r NamedSpike, places: &'r Places<'r>) -> Spike<'r> {
    let findings::Spike {
        operation,
        memory,
        severity,
        start,
        end,
        base_bytes,
        height_bytes,
        window_bytes,
        returned,
        left_bytes,
        contributors: _, // with their stacks below
        measured_bytes,
        threads,
        alert,
    } = &named.spike;
    let contributors = named.contributors().map(|(contributor, stack)| Contributor {
        function: allocating_function(stack),
        module: allocating_module(stack),
        api: contributor.api.name(),
        bytes: contributor.bytes,
        share: rounded(contributor.bytes as f64 / (*measured_bytes).max(1) as f64, 1e4),
        places: places.path(stack),
    });
    Spike {
        operation: operation.as_deref().map(|name| printable_str(name).into_owned()),
        memory: match memory {
            Memory::Heap => "heap",
            Memory::Mapped => "mapped",
        },
        severity: match severity {
            Severity::Medium => "medium",
            Severity::High => "high",
            Severity::Critical => "critical",
        },
        start_ns: start.0,
        end_ns: end.0,
        base_bytes: *base_bytes,
        height_bytes: *height_bytes,
        window_bytes: *window_bytes,
        returned_ns: returned.map(|time| time.0),
        left_bytes: *left_bytes,
        alert: *alert,
        measured_bytes: *measured_bytes,
        contributors: contributors.collect(),
        threads: threads.iter().map(thread).collect(),
    }
}

fn thread(thread: &ThreadGrowth) -> Thread {
    let ThreadGrowth { pid, tid, name, bytes } = thread;
    Thread { pid: pid.0, tid: tid.0, name: printable(name).into_owned(), bytes: *bytes }
}

#[derive(Serialize)]
pub(super) struct Leak<'r> {
    class: &'static str,
    is_leak: bool,
    level: &'static str,
    confidence: &'static str,
    function: Option<&'r str>,
    module: Option<&'r str>,
    api: &'static str,
    bytes_per_hour: i64,
    bytes_per_hour_plus_minus: i64,
    live_blocks: u64,
    live_bytes: u64,
    aged_bytes: u64,
    since_ns: u64,
    oldest_ns: u64,
    limit_in_ns: Option<u64>,
    survival: Vec<Survival>,
    end: &'static str,
    places: Path<'r>,
}

#[derive(Serialize)]
struct Survival {
    until_ns: u64,
    allocated_blocks: u64,
    live_blocks: u64,
    live_bytes: u64,
}

#[derive(Serialize)]
pub(super) struct LeakDetection<'r> {
    needed_ns: u64,
    told_from_bytes_per_hour: u64,
    memory_limit: Option<Limit>,
    suppressed: Vec<Suppressed<'r>>,
}

#[derive(Serialize)]
struct Limit {
    kind: &'static str,
    limit_bytes: u64,
    used_bytes: u64,
}

#[derive(Serialize)]
struct Suppressed<'r> {
    pattern: &'r str,
    leaks: u64,
    live_bytes: u64,
}

pub(super) fn leaks<'r>(findings: &'r Findings, places: &'r Places<'r>) -> Vec<Leak<'r>> {
    findings.verdicts.iter().map(|named| leak(named, places)).collect()
}

fn leak<'r>(named: &'r NamedVerdict, places: &'r Places<'r>) -> Leak<'r> {
    let Verdict {
        stack: _, // symbolized below
        api,
        class,
        level,
        confidence,
        rate: Rate { bytes_per_hour, plus_minus },
        live_blocks,
        live_bytes,
        aged_bytes,
        oldest,
        since,
        cohorts,
        limit_in_ns,
    } = &named.verdict;
    Leak {
        class: class_name(*class),
        is_leak: class.is_leak(),
        level: match level {
            Level::Healthy => "healthy",
            Level::Warning => "warning",
            Level::Alert => "alert",
        },
        confidence: match confidence {
            Confidence::Low => "low",
            Confidence::Medium => "medium",
            Confidence::High => "high",
        },
        function: allocating_function(&named.stack),
        module: allocating_module(&named.stack),
        api: api.name(),
        bytes_per_hour: bytes_per_hour.round() as i64,
        bytes_per_hour_plus_minus: plus_minus.round() as i64,
        live_blocks: *live_blocks,
        live_bytes: *live_bytes,
        aged_bytes: *aged_bytes,
        since_ns: since.0,
        oldest_ns: oldest.0,
        limit_in_ns: *limit_in_ns,
        survival: cohorts.iter().map(survival).collect(),
        end: named.stack.end.name(),
        places: places.path(&named.stack),
    }
}

fn class_name(class: Class) -> &'static str {
    match class {
        Class::LinearGrowth => "linear_growth",
        Class::BufferLeak => "buffer_leak",
        Class::ListenerLeak => "listener_leak",
        Class::CacheGrowth => "cache_growth",
        Class::BoundedCache => "bounded_cache",
        Class::Fragmentation => "fragmentation",
        Class::Undetermined => "undetermined",
    }
}

fn survival(cohort: &Cohort) -> Survival {
    let Cohort { until, allocated_blocks, live_blocks, live_bytes } = *cohort;
    let allocated = allocated_blocks.round() as u64;
    Survival {
        until_ns: until.0,
        allocated_blocks: allocated.max(live_blocks),
        live_blocks,
        live_bytes,
    }
}

pub(super) fn leak_detection<'r>(snapshot: &Snapshot, findings: &'r Findings) -> LeakDetection<'r> {
    let findings::Leaks { verdicts: _, needed_ns, told_from_bytes_per_hour, limit } =
        &snapshot.leaks;
    LeakDetection {
        needed_ns: *needed_ns,
        // Rounded up: what is between is not told.
        told_from_bytes_per_hour: told_from_bytes_per_hour.max(0.0).ceil() as u64,
        memory_limit: limit.map(|limit| Limit {
            kind: match limit.kind {
                LimitKind::Machine => "machine",
                LimitKind::Cgroup => "cgroup",
            },
            limit_bytes: limit.limit_bytes,
            used_bytes: limit.used_bytes,
        }),
        suppressed: findings
            .suppressed
            .iter()
            .map(|suppressed| Suppressed {
                pattern: &suppressed.pattern,
                leaks: suppressed.leaks,
                live_bytes: suppressed.live_bytes,
            })
            .collect(),
    }
}

fn allocating_function(stack: &SymbolizedStack) -> Option<&str> {
    stack.frames().next().and_then(|frame| frame.function.name.as_deref())
}

fn allocating_module(stack: &SymbolizedStack) -> Option<&str> {
    stack.frames().next().map(|frame| &*frame.function.module)
}

/// Rounded, so that reports do not differ in the last bits.
fn rounded(value: f64, steps: f64) -> f64 {
    (value * steps).round() / steps
}
