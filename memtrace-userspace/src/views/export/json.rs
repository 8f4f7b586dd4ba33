//! The JSON report, as `docs/report.schema.json` describes it.
//!
//! The structs here are the wire format and nothing else uses them. Keys may be added; removing
//! one or changing its meaning raises [`VERSION`]. Equal snapshots give equal bytes.
//!
//! The lists are written with one entry per line, so that a report can be read with `grep` and
//! compared with `diff`.

mod findings;
pub(in crate::views) mod layout;
pub mod lost;
mod named;
pub(in crate::views) mod places;
mod statistics;
pub(in crate::views) mod table;
#[cfg(test)]
mod tests;
mod time;
mod timelines;

use std::io::{self, Write};

use serde::Serialize;

use self::layout::OneEntryPerLine;
use self::named::{Named, name};
use self::places::{Places, stack};
use self::time::{Mark, Part, Phase};

use crate::pipeline::snapshot::{
    OperationUsage, ProcessUsage, Snapshot, ThreadUsage, TimelinePoint,
};
use crate::record::{EndReason, Origin, ProbeCost};
use crate::views::export::list::List;
use crate::views::printable::{printable, printable_str};
use crate::views::ranking::{self, FunctionUsage, Ranking};
use crate::views::{caveats, counters};

/// The report's `version`.
pub const VERSION: u32 = 2;

/// Writes the report; at most `top` functions and stacks, if a limit is given.
///
/// Totals and counters always cover everything.
pub fn write(
    out: impl Write,
    snapshot: &Snapshot,
    ranking: &Ranking,
    top: Option<usize>,
) -> io::Result<()> {
    let places = Places::new();
    let report = report(snapshot, ranking, top.unwrap_or(usize::MAX), &places);
    let mut serializer = serde_json::Serializer::with_formatter(out, OneEntryPerLine::default());
    report.serialize(&mut serializer).map_err(io::Error::from)?;
    serializer.into_inner().write_all(b"\n")
}

#[derive(Serialize)]
pub(super) struct Report<'r, S> {
    format: &'static str,
    version: u32,
    target: Target,
    capture: Capture<'r>,
    totals: Totals,
    functions: Vec<Function<'r>>,
    stacks: S,
    operations: Vec<Operation>,
    threads: Vec<Thread>,
    timeline: Vec<TimelineStep>,
    part: Part,
    marks: Vec<Mark>,
    phases: Vec<Phase>,
    spikes: Vec<findings::Spike<'r>>,
    leaks: Vec<findings::Leak<'r>>,
    leak_detection: findings::LeakDetection<'r>,
    statistics: statistics::Statistics<'r>,
    modules_without_names: Vec<NamelessModule<'r>>,
    counters: serde_json::Map<String, serde_json::Value>,
    caveats: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timelines: Option<timelines::Timelines<'r>>,
    /// Last, because all that goes before refers to it.
    places: &'r Places<'r>,
}

#[derive(Serialize)]
struct Target {
    pid: Option<u32>,
    exe: Option<String>,
    command: Vec<String>,
    processes: Vec<Process>,
    left_out_processes: usize,
}

#[derive(Serialize)]
struct Process {
    pid: u32,
    parent: Option<u32>,
    namespace_pid: Option<u32>,
    cgroup: Option<String>,
    container: Option<String>,
    exe: String,
    command: Vec<String>,
    started_ns: u64,
    ended_ns: Option<u64>,
    heap: Usage,
    mapped: Usage,
    before_attach: Option<BeforeAttach>,
    resident_bytes: Option<u64>,
    memory: Option<statistics::Memory>,
}

#[derive(Serialize)]
struct BeforeAttach {
    heap_bytes: u64,
    anonymous_bytes: u64,
    resident_bytes: u64,
}

#[derive(Serialize)]
struct Capture<'r> {
    mode: &'static str,
    origin: Option<&'static str>,
    end: Option<&'static str>,
    tool_version: Option<&'r str>,
    started_unix_s: Option<u64>,
    duration_ns: u64,
    events: u64,
    lost_events: u64,
    stacks: u64,
    truncated_stacks: u64,
    truncated_allocations: u64,
    kernel: Option<&'r str>,
    probes: Vec<Probe>,
}

#[derive(Serialize)]
struct Probe {
    symbol: String,
    module: String,
    offset: u64,
    kind: &'static str,
}

#[derive(Serialize)]
struct Totals {
    allocations: u64,
    allocated_bytes: u64,
    frees: u64,
    freed_bytes: u64,
    live_blocks: u64,
    live_bytes: u64,
    inherited_blocks: u64,
    inherited_bytes: u64,
    peak_live_bytes: u64,
    peak_at_ns: u64,
    mapped_bytes: u64,
    temporary_allocations: u64,
    peak_resident_bytes: u64,
    mapped: Usage,
}

/// What a stack, a function, a thread or everything used.
#[derive(Clone, Copy, Serialize)]
pub(in crate::views) struct Usage {
    allocations: u64,
    allocated_bytes: u64,
    frees: u64,
    freed_bytes: u64,
    live_blocks: u64,
    live_bytes: u64,
    inherited_blocks: u64,
    inherited_bytes: u64,
    peak_bytes: u64,
    temporary_allocations: u64,
}

#[derive(Serialize)]
struct Function<'r> {
    #[serde(flatten)]
    named: Named<'r>,
    #[serde(rename = "self")]
    own: Usage,
    total: Usage,
    #[serde(skip_serializing_if = "Option::is_none")]
    mapped: Option<Charge>,
}

#[derive(Serialize)]
struct Charge {
    #[serde(rename = "self")]
    own: Usage,
    total: Usage,
}

#[derive(Serialize)]
struct Thread {
    pid: u32,
    tid: u32,
    name: String,
    #[serde(flatten)]
    heap: Usage,
}

#[derive(Serialize)]
struct Operation {
    name: String,
    heap: Usage,
    mapped: Usage,
    spikes: u64,
}

#[derive(Serialize)]
struct TimelineStep {
    time_ns: u64,
    live_bytes: u64,
    peak_live_bytes: u64,
    mapped_bytes: u64,
    allocated_bytes: u64,
    allocations: u64,
    resident_bytes: u64,
}

#[derive(Serialize)]
struct NamelessModule<'r> {
    module: &'r str,
    addresses: u64,
    reason: &'r str,
}

/// The report, with at most `top` functions and stacks.
pub(super) fn report<'r>(
    snapshot: &'r Snapshot,
    ranking: &'r Ranking,
    top: usize,
    places: &'r Places<'r>,
) -> Report<'r, impl Serialize + use<'r>> {
    let stacks = ranking.stacks.get(..top).unwrap_or(&ranking.stacks);
    Report {
        format: "memtrace-report",
        version: VERSION,
        target: target(snapshot),
        capture: capture(snapshot),
        totals: totals(&snapshot.totals),
        functions: ranking.functions.iter().take(top).map(function).collect(),
        stacks: List(move || stacks.iter().map(move |usage| stack(usage, places))),
        operations: operations(snapshot),
        threads: snapshot.threads.iter().map(thread).collect(),
        timeline: snapshot.timeline.iter().map(timeline_step).collect(),
        part: time::part(snapshot),
        marks: snapshot.marks.iter().map(time::mark).collect(),
        phases: snapshot.phases.iter().map(time::phase).collect(),
        spikes: findings::spikes(&ranking.findings, places),
        leaks: findings::leaks(&ranking.findings, places),
        leak_detection: findings::leak_detection(snapshot, &ranking.findings),
        statistics: statistics::statistics(snapshot, ranking, top, places),
        modules_without_names: ranking
            .naming
            .misses
            .iter()
            .map(|(module, miss)| NamelessModule {
                module,
                addresses: miss.addresses,
                reason: &miss.reason,
            })
            .collect(),
        counters: counters::counters(snapshot, &ranking.naming)
            .into_iter()
            .map(|(name, value)| (name, value.into()))
            .collect(),
        caveats: caveats::caveats(snapshot),
        timelines: ranking.timelines.as_ref().map(timelines::timelines),
        places,
    }
}

fn target(snapshot: &Snapshot) -> Target {
    let pid = snapshot.session.as_ref().map(|session| session.pid);
    let processes = &snapshot.processes;
    let main = processes.iter().find(|p| Some(p.pid) == pid).or(processes.first());
    Target {
        // The process that was named may be left out.
        pid: main.map(|process| process.pid).or(pid).map(|pid| pid.0),
        exe: main.map(|process| printable(&process.exe).into_owned()),
        command: main.map(|process| command(&process.command)).unwrap_or_default(),
        processes: processes.iter().map(process).collect(),
        left_out_processes: snapshot.left_out_processes,
    }
}

fn process(process: &ProcessUsage) -> Process {
    let ProcessUsage {
        pid,
        parent,
        exe,
        command: arguments,
        started,
        ended,
        heap,
        mapped,
        before_attach,
        namespaces,
        resident_bytes,
        memory,
    } = process;
    let namespaces = namespaces.as_deref();
    let text = |text: &Vec<u8>| printable(text).into_owned();
    Process {
        pid: pid.0,
        parent: parent.map(|parent| parent.0),
        namespace_pid: process.inner_pid(),
        cgroup: namespaces.and_then(|n| n.cgroup.as_ref()).map(text),
        container: namespaces.and_then(|n| n.container.as_ref()).map(text),
        exe: printable(exe).into_owned(),
        command: command(arguments),
        started_ns: started.0,
        ended_ns: ended.map(|ended| ended.0),
        heap: usage(heap),
        mapped: usage(mapped),
        before_attach: before_attach.as_ref().map(|before| BeforeAttach {
            heap_bytes: before.heap_bytes,
            anonymous_bytes: before.anonymous_bytes,
            resident_bytes: before.resident_bytes,
        }),
        resident_bytes: *resident_bytes,
        memory: memory.as_deref().map(statistics::memory),
    }
}

fn operations(snapshot: &Snapshot) -> Vec<Operation> {
    let operation = |OperationUsage { name, heap, mapped }: &OperationUsage| Operation {
        name: printable_str(name).into_owned(),
        heap: usage(heap),
        mapped: usage(mapped),
        spikes: snapshot.spikes_of(name),
    };
    snapshot.operations.iter().map(operation).collect()
}

fn command(arguments: &[Vec<u8>]) -> Vec<String> {
    arguments.iter().map(|argument| printable(argument).into_owned()).collect()
}

fn capture(snapshot: &Snapshot) -> Capture<'_> {
    let session = snapshot.session.as_deref();
    let quality = caveats::stack_quality(snapshot);
    Capture {
        mode: "full",
        origin: session.map(|session| match session.origin {
            Origin::Attached => "attached",
            Origin::Launched => "launched",
        }),
        end: snapshot.end.map(|end| match end {
            EndReason::TargetExited => "target_exited",
            EndReason::Interrupted => "interrupted",
            EndReason::DurationOver => "duration_over",
        }),
        tool_version: session.map(|session| session.tool_version.as_str()),
        started_unix_s: session.map(|session| session.started_unix_s),
        duration_ns: snapshot.now.0,
        events: snapshot.events,
        lost_events: snapshot.lost_events(),
        stacks: quality.stacks,
        truncated_stacks: quality.truncated_stacks,
        truncated_allocations: quality.truncated_allocations,
        kernel: session.map(|session| session.kernel.as_str()),
        probes: snapshot
            .probes
            .iter()
            .map(|probe| Probe {
                symbol: printable(probe.symbol.as_bytes()).into_owned(),
                module: printable(&probe.module).into_owned(),
                offset: probe.offset.0,
                kind: match probe.cost {
                    ProbeCost::Emulated => "emulated",
                    ProbeCost::Stepped => "stepped",
                },
            })
            .collect(),
    }
}

fn totals(totals: &crate::pipeline::snapshot::Totals) -> Totals {
    let crate::pipeline::snapshot::Totals {
        heap,
        peak_live_bytes,
        peak_at,
        mapped,
        temporary_allocations,
        peak_resident_bytes,
    } = totals;
    Totals {
        allocations: heap.allocations,
        allocated_bytes: heap.allocated_bytes,
        frees: heap.frees,
        freed_bytes: heap.freed_bytes,
        live_blocks: heap.live_blocks,
        live_bytes: heap.live_bytes,
        inherited_blocks: heap.inherited_blocks,
        inherited_bytes: heap.inherited_bytes,
        peak_live_bytes: *peak_live_bytes,
        peak_at_ns: peak_at.0,
        mapped_bytes: mapped.live_bytes,
        temporary_allocations: *temporary_allocations,
        peak_resident_bytes: *peak_resident_bytes,
        mapped: usage(mapped),
    }
}

pub(in crate::views) fn usage(usage: &crate::pipeline::snapshot::Usage) -> Usage {
    let crate::pipeline::snapshot::Usage {
        allocations,
        allocated_bytes,
        frees,
        freed_bytes,
        live_blocks,
        live_bytes,
        inherited_blocks,
        inherited_bytes,
        peak_bytes,
        temporary_allocations,
    } = *usage;
    Usage {
        allocations,
        allocated_bytes,
        frees,
        freed_bytes,
        live_blocks,
        live_bytes,
        inherited_blocks,
        inherited_bytes,
        peak_bytes,
        temporary_allocations,
    }
}

fn charge(charge: &ranking::Charge) -> Charge {
    Charge { own: usage(&charge.own), total: usage(&charge.total) }
}

fn function(charged: &FunctionUsage) -> Function<'_> {
    let Charge { own, total } = charge(&charged.heap);
    Function {
        named: name(Some(&charged.function), charged.line),
        own,
        total,
        mapped: (charged.mapped != ranking::Charge::default()).then(|| charge(&charged.mapped)),
    }
}

fn thread(thread: &ThreadUsage) -> Thread {
    let ThreadUsage { pid, tid, name, heap } = thread;
    Thread { pid: pid.0, tid: tid.0, name: printable(name).into_owned(), heap: usage(heap) }
}

fn timeline_step(point: &TimelinePoint) -> TimelineStep {
    let TimelinePoint {
        time,
        live_bytes,
        peak_live_bytes,
        mapped_bytes,
        allocated_bytes,
        allocations,
        resident_bytes,
    } = *point;
    TimelineStep {
        time_ns: time.0,
        live_bytes,
        peak_live_bytes,
        mapped_bytes,
        allocated_bytes,
        allocations,
        resident_bytes,
    }
}
