//! What tracing a process would cost, from tracing it for a moment.
//!
//! The calls are counted by tracing them, so that the stacks are judged as well. What a call costs
//! is known from measurements (docs/benchmarks.md): the process's own time says nothing of it, since
//! the probes' time is in it.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::Result;
use memtrace_userspace::live::allocators::spec::ProbeSpec;
use memtrace_userspace::pipeline::snapshot::Snapshot;
use memtrace_userspace::record::{Pid, ProbeCost};
use memtrace_userspace::session::{self, RecordOptions, Target};
use memtrace_userspace::views::{caveats, quantity};

/// A call that gives memory: entry 0.65 µs, return 0.55, the stack and the event 0.45.
const ACQUIRE_NS: u64 = 1650;
/// How much of that is saved by a probe inside the function.
const INSIDE_NS: u64 = 600;
/// A call that takes it: entry 0.65 µs, the event 0.2.
const RELEASE_NS: u64 = 850;
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
    /// Calls through functions whose probe is stepped.
    pub(super) stepped: u64,
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
    let before = cpu_time(pid);
    let options = RecordOptions {
        duration: Some(duration),
        probes,
        ..RecordOptions::new(Target::Attach(vec![pid]))
    };
    let snapshot = session::run(options, |_| ControlFlow::Continue(()))?.snapshot;
    let cpu = cpu_time(pid).saturating_sub(before);
    Ok(Sample { duration, cpu, ..counts(&snapshot, inside) })
}

fn counts(snapshot: &Snapshot, inside: &HashSet<String>) -> Sample {
    let stepped: HashSet<&str> = snapshot
        .probes
        .iter()
        .filter(|probe| probe.cost == ProbeCost::Stepped)
        .map(|probe| probe.symbol.as_str())
        .collect();
    let orphans = snapshot.counters.iter().find(|(name, _)| name == "orphan_frees");
    let heap = snapshot.totals.heap;
    let through = |is_meant: &dyn Fn(&str) -> bool| {
        let meant = snapshot.stacks.iter().filter(|stack| is_meant(stack.api.name()));
        meant.map(|stack| stack.usage.allocations).sum()
    };
    Sample {
        duration: Duration::ZERO,
        acquired: heap.allocations,
        released: heap.frees + orphans.map_or(0, |(_, frees)| *frees),
        inside: through(&|name| inside.contains(name)),
        stepped: through(&|name| stepped.contains(name)),
        lost: caveats::lost_events(snapshot),
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
            .saturating_sub(self.inside * INSIDE_NS)
            .saturating_add(self.released * RELEASE_NS);
        Duration::from_nanos(ns.saturating_add(self.stepped * STEPPED_NS))
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
        let own = self.cpu.saturating_sub(cost);
        if self.cpu >= Duration::from_millis(200) && own > Duration::ZERO {
            let factor = self.cpu.as_secs_f64() / own.as_secs_f64();
            lines.push(format!("its CPU time grows to about {factor:.1} times what it is without"));
        } else if self.cpu >= Duration::from_millis(200) {
            lines.push("nearly all of its CPU time is the probes': expect it to crawl".to_owned());
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
    use super::*;

    const IDLE: Sample = Sample {
        duration: Duration::from_secs(2),
        acquired: 0,
        released: 0,
        inside: 0,
        stepped: 0,
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
    fn idle_process_says_nothing_of_its_stacks() {
        assert!(IDLE.lines().iter().any(|line| line.starts_with("no allocation was seen")));
    }

    #[test]
    fn calls_that_are_probed_inside_cost_less() {
        let inside = Sample { acquired: 10, inside: 10, ..IDLE };

        assert_eq!(inside.cost(), Duration::from_nanos(10_500));
    }

    #[test]
    fn stepped_calls_cost_more() {
        let stepped = Sample { acquired: 10, stepped: 10, ..IDLE };

        assert_eq!(stepped.cost(), Duration::from_nanos(10 * (ACQUIRE_NS + STEPPED_NS)));
    }
}
