//! What one allocation and its release cost in loops that do nothing else.
//!
//! ```text
//!   round   case 1: bare, floor, places, memtrace   case 2: bare, floor, places, memtrace   …
//! ```
//!
//! *Floor* is empty programs on the functions' entries and returns, each at the cheapest instruction:
//! the kernel's own price of watching calls. *Places* is empty programs where memtrace's are, which
//! may be inside a function and not at its return. They stand side by side in every round, so a
//! machine that slows down slows all of them alike, and a case's ratio is the median of its rounds'
//! ratios. The loop counts its operations, so memtrace's count is compared exactly.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{
    background::{self, PATIENCE},
    report::{Section, Table, factor, ns, verdict},
    stage::{Cost, FramePointers, Loops, Recorded, Stage},
    stats::{median, range},
};

/// Operations of a batch without probes, for every one with: a call takes nanoseconds, not microseconds.
const BARE_FACTOR: u64 = 20;

/// Batches per attach: attaching and detaching take seconds, a batch a tenth of one.
const BATCHES: u32 = 5;

/// How long a batch may take.
const BATCH_PATIENCE: Duration = Duration::from_secs(120);

/// Debian's jemalloc, as the loader finds it.
pub(super) const JEMALLOC: &str = "libjemalloc.so.2";

/// A loop under one allocator, at one depth.
pub(super) struct Case {
    pub(super) name: &'static str,
    loop_name: &'static str,
    preload: Option<&'static str>,
    depth: u32,
    pub(super) threads: u64,
    frame_pointers: FramePointers,
    /// Operations before the first batch, if they are to be more than usual.
    warm_up: u64,
    /// What memtrace may cost, in floors.
    target: f64,
}

/// The bound of every case that has none of its own.
const TARGET: f64 = 2.2;

const USUAL: Case = Case {
    name: "",
    loop_name: "malloc",
    preload: None,
    depth: 20,
    threads: 1,
    frame_pointers: FramePointers::Omitted,
    warm_up: 0,
    target: TARGET,
};

/// One thread, one call path.
pub(super) const CALLS: &[Case] = &[
    Case { name: "malloc, depth 0", depth: 0, ..USUAL },
    MALLOC,
    Case { name: "malloc, depth 60", depth: 60, target: 1.3, ..USUAL },
    Case { name: "malloc, depth 20, frame pointers", frame_pointers: FramePointers::Kept, ..USUAL },
    Case { name: "calloc", loop_name: "calloc", ..USUAL },
    Case { name: "realloc", loop_name: "realloc", ..USUAL },
    Case { name: "posix_memalign", loop_name: "posix_memalign", ..USUAL },
    Case { name: "operator new (libstdc++)", loop_name: "new", ..USUAL },
    Case { name: "jemalloc malloc", preload: Some(JEMALLOC), ..USUAL },
    Case { name: "jemalloc operator new", loop_name: "new", preload: Some(JEMALLOC), ..USUAL },
    Case { name: "jemalloc mallocx", loop_name: "mallocx", preload: Some(JEMALLOC), ..USUAL },
];

/// The case that stands for all where tools are compared.
pub(super) const MALLOC: Case = Case { name: "malloc, depth 20", target: 1.2, ..USUAL };

/// Several threads at once.
pub(super) const THREADS: &[Case] = &[
    Case { name: "2 threads", threads: 2, ..USUAL },
    Case { name: "8 threads", threads: 8, ..USUAL },
];

/// Stacks that change from call to call.
pub(super) const PATHS: &[Case] = &[
    Case { name: "1,000 call paths in turn", loop_name: "paths", depth: 10, ..USUAL },
    RECURSION,
    Case { name: "the same, each path seen before", warm_up: 65_536, ..RECURSION },
];

/// Most of its stacks come for the first time: the daemon has to learn each.
const RECURSION: Case =
    Case { name: "recursion, depth 10 to 50", loop_name: "recursion", depth: 0, ..USUAL };

impl Case {
    pub(super) fn start(&self, stage: &Stage) -> Result<Loops> {
        Loops::start(&stage.loops(self.frame_pointers), &self.arguments(), self.preload)
    }

    /// The loop program's arguments.
    pub(super) fn arguments(&self) -> [String; 3] {
        [self.loop_name.to_owned(), self.depth.to_string(), self.threads.to_string()]
    }

    /// The first calls fault in the heap, the probes' pages and the tracer's tables.
    fn warm_up(&self, target: &mut Loops, ops: u64) -> Result<()> {
        target.run(self.warm_up_ops(ops), BATCH_PATIENCE)?;
        Ok(())
    }

    /// How many those are, before batches of so many.
    fn warm_up_ops(&self, ops: u64) -> u64 {
        self.warm_up.max(ops.div_ceil(10))
    }

    /// How many operations [`Case::batches`] runs in one thread.
    pub(super) fn ops_in_all(&self, ops: u64) -> u64 {
        self.warm_up_ops(ops) + ops * u64::from(BATCHES)
    }

    /// Warms up, then runs the batches and takes the median.
    pub(super) fn batches(&self, target: &mut Loops, ops: u64) -> Result<Cost> {
        self.warm_up(target, ops)?;
        timed(target, ops)
    }
}

/// What one attach measured.
#[derive(Clone, Debug)]
pub(super) struct Traced {
    pub(super) cost: Cost,
    /// The daemon's CPU time for one operation.
    pub(super) daemon_ns: f64,
    pub(super) recorded: Recorded,
    /// The allocations that the loop made while it was traced.
    pub(super) made: u64,
}

struct Round {
    bare: Cost,
    floor: Cost,
    places: Cost,
    traced: Traced,
}

/// Measures cases in interleaved rounds.
pub(super) fn measure(
    stage: &Stage,
    title: &'static str,
    cases: &[&'static Case],
    rounds: u32,
    pairs: u64,
) -> Result<Section> {
    let mut measured: Vec<(&Case, Vec<Round>)> =
        cases.iter().map(|case| (*case, Vec::new())).collect();
    for number in 1..=rounds {
        for (case, rounds_of_case) in &mut measured {
            eprintln!("bench: {title}: round {number} of {rounds}: {}", case.name);
            let round = round(stage, case, pairs).with_context(|| case.name)?;
            rounds_of_case.push(round);
        }
    }
    Ok(section(title, &measured, pairs))
}

fn round(stage: &Stage, case: &Case, pairs: u64) -> Result<Round> {
    let ops = (pairs / case.threads).max(1);
    let mut target = case.start(stage)?;
    let bare = case.batches(&mut target, ops * BARE_FACTOR)?;
    target.finish()?;

    let empty = |options: &[&str]| -> Result<Cost> {
        let mut target = case.start(stage)?;
        let tracer = stage.attach(target.pid(), options)?;
        let cost = case.batches(&mut target, ops)?;
        target.finish()?;
        tracer.finish(PATIENCE)?;
        Ok(cost)
    };
    let floor = empty(&["--probe-cost", "empty", "--return-probes"])?;
    let places = empty(&["--probe-cost", "empty"])?;
    Ok(Round { bare, floor, places, traced: traced(stage, case, ops)? })
}

pub(super) fn traced(stage: &Stage, case: &Case, ops: u64) -> Result<Traced> {
    let mut target = case.start(stage)?;
    let tracer = stage.attach(target.pid(), &[])?;
    case.warm_up(&mut target, ops)?;
    let daemon = Stage::daemon(&tracer)?;
    let before_ns = background::settled_cpu_ns(daemon)?;
    let cost = timed(&mut target, ops)?;
    let daemon_ns = background::settled_cpu_ns(daemon)? - before_ns;
    target.finish()?;
    tracer.finish(PATIENCE)?;
    Ok(Traced {
        cost,
        daemon_ns: daemon_ns as f64 / (ops * case.threads * u64::from(BATCHES)) as f64,
        recorded: stage.recorded()?,
        made: case.ops_in_all(ops) * case.threads,
    })
}

fn timed(target: &mut Loops, ops: u64) -> Result<Cost> {
    let costs: Vec<Cost> =
        (0..BATCHES).map(|_| target.run(ops, BATCH_PATIENCE)).collect::<Result<_>>()?;
    Ok(Cost {
        cpu_ns: median(costs.iter().map(|cost| cost.cpu_ns)),
        wall_ns: median(costs.iter().map(|cost| cost.wall_ns)),
    })
}

/// A case's rounds, added up.
struct Summary {
    bare_ns: f64,
    floor_ns: f64,
    places_ns: f64,
    memtrace_ns: f64,
    ratio: f64,
    ratio_range: (f64, f64),
    places_ratio: f64,
    wall_ratio: f64,
    /// The daemon's CPU time in units of what memtrace adds to the target's.
    daemon_share: f64,
    walked_percent: f64,
    complete_percent: f64,
    lost_events: u64,
    ring_waits: u64,
    bytes_per_event: f64,
    made: u64,
    counted: u64,
}

fn summarize(rounds: &[Round]) -> Summary {
    let each = |value: &dyn Fn(&Round) -> f64| median(rounds.iter().map(value));
    let sum = |value: &dyn Fn(&Recorded) -> u64| -> u64 {
        rounds.iter().map(|round| value(&round.traced.recorded)).sum()
    };
    let ratios = || rounds.iter().map(|round| round.traced.cost.cpu_ns / round.floor.cpu_ns);
    let events = sum(&|recorded| recorded.events);
    let counted = sum(&|recorded| recorded.allocations);
    Summary {
        bare_ns: each(&|round| round.bare.cpu_ns),
        floor_ns: each(&|round| round.floor.cpu_ns),
        places_ns: each(&|round| round.places.cpu_ns),
        memtrace_ns: each(&|round| round.traced.cost.cpu_ns),
        ratio: median(ratios()),
        ratio_range: range(ratios()),
        places_ratio: each(&|round| round.traced.cost.cpu_ns / round.places.cpu_ns),
        wall_ratio: each(&|round| round.traced.cost.wall_ns / round.floor.wall_ns),
        daemon_share: each(&|round| {
            round.traced.daemon_ns / (round.traced.cost.cpu_ns - round.bare.cpu_ns)
        }),
        walked_percent: sum(&|recorded| recorded.counter("stack_walks")) as f64 * 100.0
            / counted as f64,
        complete_percent: each(&|round| round.traced.recorded.complete_percent()),
        lost_events: sum(&|recorded| recorded.lost_events),
        ring_waits: sum(&|recorded| recorded.counter("ring_waits")),
        bytes_per_event: sum(&|recorded| recorded.trace_bytes) as f64 / events as f64,
        made: rounds.iter().map(|round| round.traced.made).sum(),
        counted,
    }
}

fn section(title: &'static str, measured: &[(&Case, Vec<Round>)], pairs: u64) -> Section {
    let mut table = Table::new(&[
        "case",
        "bare ns",
        "floor ns",
        "places ns",
        "memtrace ns",
        "× floor",
        "rounds",
        "target",
        "× places",
        "daemon",
        "walked",
        "complete",
        "lost",
        "B/event",
        "count",
    ]);
    let mut cases = Vec::new();
    for (case, rounds) in measured {
        let summary = summarize(rounds);
        table.row([
            case.name.to_owned(),
            ns(summary.bare_ns),
            ns(summary.floor_ns),
            ns(summary.places_ns),
            ns(summary.memtrace_ns),
            factor(summary.ratio),
            format!("{:.2}–{:.2}", summary.ratio_range.0, summary.ratio_range.1),
            verdict(summary.ratio, summary.places_ratio, case.target),
            factor(summary.places_ratio),
            format!("{:.2}", summary.daemon_share),
            format!("{:.0} %", summary.walked_percent),
            format!("{:.1} %", summary.complete_percent),
            summary.lost_events.to_string(),
            format!("{:.1}", summary.bytes_per_event),
            count(summary.counted, summary.made),
        ]);
        cases.push(case_json(case, rounds, &summary));
    }
    let rounds = measured.first().map_or(0, |(_, rounds)| rounds.len());
    let notes = vec![format!(
        "Medians; {rounds} interleaved rounds, in each {BATCHES} batches of {pairs} operations."
    )];
    Section {
        title,
        table,
        notes,
        json: json!({ "pairs": pairs, "batches": BATCHES, "cases": cases }),
    }
}

/// `exact`, or both numbers.
pub(super) fn count(counted: u64, made: u64) -> String {
    if counted == made { "exact".to_owned() } else { format!("{counted} of {made}") }
}

fn case_json(case: &Case, rounds: &[Round], summary: &Summary) -> Value {
    let cost = |cost: &Cost| json!({ "cpu_ns": cost.cpu_ns, "wall_ns": cost.wall_ns });
    json!({
        "case": case.name,
        "depth": case.depth,
        "threads": case.threads,
        "frame_pointers": case.frame_pointers.name(),
        "preload": case.preload,
        "target": case.target,
        "ratio": summary.ratio,
        "places_ratio": summary.places_ratio,
        "wall_ratio": summary.wall_ratio,
        "daemon_share": summary.daemon_share,
        "walked_percent": summary.walked_percent,
        "complete_percent": summary.complete_percent,
        "lost_events": summary.lost_events,
        "ring_waits": summary.ring_waits,
        "bytes_per_event": summary.bytes_per_event,
        "allocations": summary.made,
        "allocations_counted": summary.counted,
        "rounds": rounds.iter().map(|Round { bare, floor, places, traced }| json!({
            "bare": cost(bare),
            "floor": cost(floor),
            "places": cost(places),
            "memtrace": cost(&traced.cost),
            "daemon_cpu_ns": traced.daemon_ns,
        })).collect::<Vec<_>>(),
    })
}
