//! What tracing a process would cost, from tracing it for a moment.
//!
//! The calls are counted by tracing them, so that the stacks are judged as well. What a call costs
//! is known from measurements (docs/benchmarks.md): the process's own time says nothing of it, since
//! the probes' time is in it. What is compared is seen between the attach and the detach: both take
//! time in which the process runs as ever.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use memtrace_userspace::live::allocators::spec::ProbeSpec;
use memtrace_userspace::pipeline::snapshot::Snapshot;
use memtrace_userspace::record::{Pid, ProbeCost};
use memtrace_userspace::session::{self, Progress, RecordOptions, Target};
use memtrace_userspace::views::{caveats, quantity};

/// A call that gives memory: entry 0.65 µs, return 0.55, the stack and the event 0.45.
const ACQUIRE_NS: u64 = 1650;
/// How much of that is saved by a probe inside the function.
const INSIDE_NS: u64 = 600;
/// A call that takes it: entry 0.65 µs, the event 0.2.
const RELEASE_NS: u64 = 850;
/// What a `realloc`, which does both, saves of the sum: an entry.
const BOTH_NS: u64 = 650;
/// What a frame of a stack takes that has to be walked: most are recognised.
const WALKED_FRAME_NS: u64 = 60;
/// How much a call may take more or less than said: caches differ, and busy neighbours slow it down.
const SPREAD: f64 = 0.15;
/// Less CPU time than this says nothing: it is counted in steps of 10 ms.
const ENOUGH_CPU: Duration = Duration::from_millis(200);
/// What a probe costs more that is stepped and not emulated, on a virtual machine.
const STEPPED_NS: u64 = 8600;

/// What was seen in a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    /// How long.
    pub(super) duration: Duration,
    /// Calls that gave memory.
    pub(super) acquired: u64,
    /// Calls that took it.
    pub(super) released: u64,
    /// Calls that gave memory through functions that are probed inside.
    pub(super) inside: u64,
    /// Calls that did both, which count as either.
    pub(super) both: u64,
    /// Calls through functions whose probe is stepped.
    pub(super) stepped: u64,
    /// Frames of stacks that were walked.
    pub(super) walked_frames: u64,
    /// Events that were lost.
    pub(super) lost: u64,
    /// Allocations whose stack does not reach its root.
    pub(super) truncated: u64,
    /// The process's CPU time meanwhile, that of the probes included.
    pub(super) cpu: Duration,
}

/// Traces `pid` for this long, with these probes as well. `inside` are the functions that are probed
/// inside.
pub(super) fn sample(
    pid: Pid,
    duration: Duration,
    probes: Vec<ProbeSpec>,
    inside: &HashSet<String>,
) -> Result<Sample> {
    let options = RecordOptions {
        duration: Some(duration),
        probes,
        ..RecordOptions::new(Target::Attach(vec![pid]))
    };
    let mut clock = None;
    let summary = session::run(options, |progress| {
        if let Progress::Started(_) = progress {
            let before = cpu_time(pid);
            // When the session's time is over, and not when everything is counted.
            let read = move || {
                thread::sleep(duration);
                cpu_time(pid).saturating_sub(before)
            };
            clock = thread::Builder::new().name("clock".to_owned()).spawn(read).ok();
        }
        ControlFlow::Continue(())
    })?;
    // Without it nothing is said of the CPU time.
    let cpu = clock.and_then(|clock| clock.join().ok()).unwrap_or_default();
    Ok(Sample { duration, cpu, ..counts(&summary.snapshot, inside) })
}

fn counts(snapshot: &Snapshot, inside: &HashSet<String>) -> Sample {
    let stepped: HashSet<&str> = snapshot
        .probes
        .iter()
        .filter(|probe| probe.cost == ProbeCost::Stepped)
        .map(|probe| probe.symbol.as_str())
        .collect();
    let counter = |name| {
        let found = snapshot.counters.iter().find(|(known, _)| known == name);
        found.map_or(0, |(_, value)| *value)
    };
    let heap = snapshot.totals.heap;
    let through = |is_meant: &dyn Fn(&str) -> bool| {
        let meant = snapshot.stacks.iter().filter(|stack| is_meant(stack.api.name()));
        meant.map(|stack| stack.usage.allocations).sum()
    };
    let frames: u64 = snapshot
        .stacks
        .iter()
        .map(|s| s.usage.allocations.saturating_mul(s.stack.frames.len() as u64))
        .fold(0, u64::saturating_add);
    Sample {
        duration: Duration::ZERO,
        acquired: heap.allocations,
        released: heap.frees + counter("orphan_frees"),
        inside: through(&|name| inside.contains(name)),
        both: through(&|name| name.starts_with("realloc")),
        stepped: through(&|name| stepped.contains(name)),
        walked_frames: counter("stack_walks").saturating_mul(frames / heap.allocations.max(1)),
        lost: snapshot.lost_events(),
        truncated: caveats::stack_quality(snapshot).truncated_allocations,
        cpu: Duration::ZERO,
    }
}

/// User and system time of a process; zero if it has ended.
fn cpu_time(pid: Pid) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.0)).unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = fields
        .split_ascii_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<u64>().ok())
        .sum();
    // USER_HZ is 100 on x86-64.
    Duration::from_millis(ticks * 10)
}

impl Sample {
    /// The time that tracing took from the process.
    fn cost(&self) -> Duration {
        let ns = (self.acquired * ACQUIRE_NS)
            .saturating_add(self.released * RELEASE_NS)
            .saturating_sub(self.inside * INSIDE_NS)
            .saturating_sub(self.both * BOTH_NS)
            .saturating_add(self.walked_frames.saturating_mul(WALKED_FRAME_NS));
        Duration::from_nanos(ns.saturating_add(self.stepped * STEPPED_NS))
    }

    /// How many times the process's CPU time is what it would be without the probes.
    ///
    /// What is left for the process itself is a difference, and uncertain where it is small.
    fn growth(&self) -> String {
        let cost = self.cost().as_secs_f64();
        let factor = |cost: f64| {
            let own = self.cpu.as_secs_f64() - cost;
            (own > 0.0).then(|| format!("{:.1}", self.cpu.as_secs_f64() / own))
        };
        let (least, most) = (factor(cost * (1.0 - SPREAD)), factor(cost * (1.0 + SPREAD)));
        match (least, most) {
            (Some(least), Some(most)) if least == most => {
                format!("its CPU time grows to about {least} times what it is without")
            }
            (Some(least), Some(most)) => {
                format!("its CPU time grows to {least} to {most} times what it is without")
            }
            (Some(least), None) => {
                format!("its CPU time grows to {least} times what it is without, or to more")
            }
            (None, _) => "nearly all of its CPU time is the probes': expect it to crawl".to_owned(),
        }
    }

    /// What it means, in lines.
    pub(super) fn lines(&self) -> Vec<String> {
        let seconds = self.duration.as_secs_f64().max(0.001);
        let per_second = |n: u64| quantity::count((n as f64 / seconds).round() as u64);
        let cost = self.cost();
        let share = cost.as_secs_f64() / seconds * 100.0;
        let mut lines = vec![
            format!(
                "seen in {}: {} allocations/s, {} frees/s, {} events lost",
                quantity::duration(self.duration),
                per_second(self.acquired),
                per_second(self.released),
                self.lost,
            ),
            format!("tracing takes about {share:.1} % of one core from the process at this rate"),
        ];
        if self.cpu >= ENOUGH_CPU {
            lines.push(self.growth());
        }
        if self.stepped > 0 {
            lines.push(format!(
                "{} of the allocations went through single-stepped probes",
                quantity::count(self.stepped)
            ));
        }
        let complete = self.acquired.saturating_sub(self.truncated);
        lines.push(match self.acquired {
            0 => "no allocation was seen: nothing is known of its stacks".to_owned(),
            _ => format!("complete stacks: {}", quantity::share(complete, self.acquired)),
        });
        lines
            .push("figures of a virtual machine (docs/benchmarks.md); bare metal is faster".into());
        lines
    }
}

#[cfg(test)]
mod tests {
    use memtrace_common::addr::Avma;
    use memtrace_common::event::Api;
    use memtrace_common::unwind::End;
    use memtrace_userspace::pipeline::{Limits, Pipeline};
    use memtrace_userspace::record::{Alignment, Record, Tid, Time, WireStackId};

    use super::*;

    const IDLE: Sample = Sample {
        duration: Duration::from_secs(2),
        acquired: 0,
        released: 0,
        inside: 0,
        both: 0,
        stepped: 0,
        walked_frames: 0,
        lost: 0,
        truncated: 0,
        cpu: Duration::ZERO,
    };

    #[test]
    fn rate_becomes_a_share_of_a_core() {
        let busy = Sample {
            acquired: 24_000,
            released: 24_000,
            truncated: 24,
            cpu: Duration::from_secs(1),
            ..IDLE
        };

        // 24,000 × 2.5 µs are 60 ms of 2 s; 1000 ms / 940 ms.
        assert_eq!(busy.cost(), Duration::from_millis(60));
        let lines = busy.lines();
        assert_eq!(lines[0], "seen in 2.0 s: 12,000 allocations/s, 12,000 frees/s, 0 events lost");
        assert_eq!(lines[1], "tracing takes about 3.0 % of one core from the process at this rate");
        assert_eq!(lines[2], "its CPU time grows to about 1.1 times what it is without");
        assert_eq!(lines[3], "complete stacks: 99.9%");
    }

    #[test]
    fn growth_is_a_range_where_little_is_left_for_the_process() {
        // 2.5 µs each: 400 ms, 800 ms and 960 ms of the second.
        let growth = |calls| {
            let cpu = Duration::from_secs(1);
            Sample { acquired: calls, released: calls, cpu, ..IDLE }.growth()
        };

        assert_eq!(growth(160_000), "its CPU time grows to 1.5 to 1.9 times what it is without");
        assert_eq!(growth(320_000), "its CPU time grows to 3.1 to 12.5 times what it is without");
        let most = "its CPU time grows to 5.4 times what it is without, or to more";
        assert_eq!(growth(384_000), most);
        assert!(growth(480_000).ends_with("expect it to crawl"));
    }

    #[test]
    fn idle_process_says_nothing_of_its_stacks() {
        assert!(IDLE.lines().iter().any(|line| line.starts_with("no allocation was seen")));
    }

    #[test]
    fn calls_that_are_probed_inside_cost_less() {
        let inside = Sample { acquired: 10, inside: 10, ..IDLE };

        assert_eq!(inside.cost(), Duration::from_nanos(10_500));
    }

    #[test]
    fn call_that_does_both_has_one_entry() {
        let both = Sample { acquired: 10, released: 10, both: 10, ..IDLE };

        // docs/benchmarks.md: a realloc takes 1.85 µs more than without.
        assert_eq!(both.cost(), Duration::from_nanos(18_500));
    }

    #[test]
    fn stacks_that_are_walked_cost_more() {
        let walked = Sample { acquired: 10, walked_frames: 300, ..IDLE };

        assert_eq!(walked.cost(), Duration::from_nanos(10 * ACQUIRE_NS + 300 * 60));
    }

    #[test]
    fn counts_are_those_of_the_snapshot() {
        let (time, tid, stack) = (Time(1), Tid(7), WireStackId(1));
        let frames = vec![Avma(1), Avma(2), Avma(3)];
        let alloc = |api, ptr| Record::Alloc {
            time,
            tid,
            api,
            ptr: Avma(ptr),
            size: 10,
            alignment: Alignment::NONE,
            stack,
        };
        let mut pipeline = Pipeline::new(Limits::default());
        pipeline.apply_all(&[
            Record::Thread { time, pid: Pid(7), tid, name: b"t".to_vec() },
            Record::Stack { id: stack, pid: Pid(7), end: End::Root, frames },
            alloc(Api::Malloc, 0x10),
            alloc(Api::Calloc, 0x20),
            Record::Retire { time, tid, ptr: Avma(0x20) },
            alloc(Api::Realloc, 0x30),
            Record::Free { time, tid, api: Api::Free, ptr: Avma(0x10) },
            Record::Free { time, tid, api: Api::Free, ptr: Avma(0x99) },
            Record::Counters(vec![("stack_walks".to_owned(), 2)]),
        ]);

        let sample = counts(&pipeline.snapshot(), &HashSet::from(["malloc".to_owned()]));

        let expected = Sample {
            duration: Duration::ZERO,
            acquired: 3,
            released: 3,
            inside: 1,
            both: 1,
            walked_frames: 2 * 3,
            ..IDLE
        };
        assert_eq!(sample, expected);
    }

    #[test]
    fn stepped_calls_cost_more() {
        let stepped = Sample { acquired: 10, stepped: 10, ..IDLE };

        assert_eq!(stepped.cost(), Duration::from_nanos(10 * (ACQUIRE_NS + STEPPED_NS)));
    }
}
