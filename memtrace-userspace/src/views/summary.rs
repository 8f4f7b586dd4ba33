//! The lines that open every text view: what is traced, how long, how completely.

use std::time::Duration;

use crate::pipeline::snapshot::{Glance, Phase, ProcessUsage, Scope, Snapshot};
use crate::record::{EndReason, Origin, ProbeCost, Session, Time};
use crate::views::frames::base_name;
use crate::views::layout::cut;
use crate::views::printable::{printable, printable_str};
use crate::views::{caveats, quantity};

/// So much of a mark's words is shown where there is one line for it.
const PHASE_CELLS: usize = 30;

/// A session time as a duration.
pub fn since_start(time: Time) -> Duration {
    Duration::from_nanos(time.0)
}

/// The process that was named or started, else the first one.
pub fn main_process(snapshot: &Snapshot) -> Option<&ProcessUsage> {
    main_of(snapshot.session.as_deref(), &snapshot.processes)
}

fn main_of<'p>(
    session: Option<&Session>,
    processes: &'p [ProcessUsage],
) -> Option<&'p ProcessUsage> {
    let pid = session.map(|session| session.pid);
    processes.iter().find(|process| Some(process.pid) == pid).or(processes.first())
}

/// `server (pid 4242)`, `server (pid 4242) and 3 more processes`.
pub fn target(snapshot: &Snapshot) -> String {
    name_of_target(snapshot.session.as_deref(), &snapshot.processes)
}

/// The same at a glance.
pub fn glanced_target(glance: &Glance) -> String {
    name_of_target(glance.session.as_deref(), &glance.processes)
}

fn name_of_target(session: Option<&Session>, processes: &[ProcessUsage]) -> String {
    let pid = session.map(|session| session.pid);
    let name = match main_of(session, processes) {
        Some(process) => {
            let exe = printable(&process.exe);
            let inner = match process.inner_pid() {
                Some(inner) => format!(", {inner} in its namespace"),
                None => String::new(),
            };
            format!("{} (pid {}{inner})", base_name(&exe), process.pid.0)
        }
        None => match pid {
            Some(pid) => format!("pid {}", pid.0),
            None => "unknown target".to_owned(),
        },
    };
    match processes.len() {
        0 | 1 => name,
        2 => format!("{name} and 1 more process"),
        more => format!("{name} and {} more processes", more - 1),
    }
}

/// The command line of the main process, its arguments separated by blanks.
pub fn command(snapshot: &Snapshot) -> Option<String> {
    let main = main_process(snapshot)?;
    let arguments: Vec<_> = main.command.iter().map(|argument| printable(argument)).collect();
    Some(arguments.join(" "))
}

/// `phase "after warm-up" for 12.3 s: +2.0 MiB, peak 54.0 MiB`, since the last mark.
pub fn phase(snapshot: &Snapshot) -> Option<String> {
    let Phase {
        begins_with, from, to, live_bytes_before, live_bytes_after, peak_live_bytes, ..
    } = snapshot.phases.last()?;
    let name = printable_str(begins_with.as_ref()?);
    let (before, after) = (*live_bytes_before, *live_bytes_after);
    Some(format!(
        "phase \"{}\" for {}: {}{}, peak {}",
        cut(&name, PHASE_CELLS),
        quantity::duration(Duration::from_nanos(to.0.saturating_sub(from.0))),
        if after < before { "-" } else { "+" },
        quantity::bytes(after.abs_diff(before)),
        quantity::bytes(*peak_live_bytes),
    ))
}

/// `12.3 s, attached, full mode, kernel 6.18.44, ended: duration over`.
pub fn capture(snapshot: &Snapshot) -> String {
    let mut parts = vec![quantity::duration(since_start(snapshot.now))];
    if let Some(session) = &snapshot.session {
        let origin = match session.origin {
            Origin::Attached => "attached while running",
            Origin::Launched => "traced from its start",
        };
        parts.push(origin.to_owned());
        parts.push("full mode".to_owned());
        parts.push(format!("kernel {}", printable(session.kernel.as_bytes())));
    }
    if let Some(end) = snapshot.end {
        let end = match end {
            EndReason::TargetExited => "target exited",
            EndReason::Interrupted => "interrupted",
            EndReason::DurationOver => "duration over",
        };
        parts.push(format!("ended: {end}"));
    }
    parts.join(", ")
}

/// `10.0 s to 25.0 s, of 30 s`: the part that is shown; `None` if it is all.
pub fn part(snapshot: &Snapshot) -> Option<String> {
    let time = |time| quantity::duration(since_start(time));
    match snapshot.scope {
        Scope::Run => None,
        Scope::Range(range) => {
            Some(format!("what happened from {} to {}", time(range.from), time(snapshot.now)))
        }
        Scope::Moment => Some(format!("what was held after {}", time(snapshot.now))),
    }
}

/// `9 (7 emulated, 2 single-stepped)`.
pub fn probes(snapshot: &Snapshot) -> String {
    let all = snapshot.probes.len();
    let stepped = snapshot.probes.iter().filter(|p| p.cost == ProbeCost::Stepped).count();
    match (all, stepped) {
        (0, _) => "none".to_owned(),
        (_, 0) => format!("{all}, all emulated"),
        _ => format!("{all} ({} emulated, {stepped} single-stepped)", all - stepped),
    }
}

/// `2.5M events, 5 lost, 5 stacks, 1 truncated`.
pub fn loss(snapshot: &Snapshot) -> String {
    let quality = caveats::stack_quality(snapshot);
    format!(
        "{} recorded, {} lost; {} stacks, {} truncated",
        quantity::count(snapshot.events),
        quantity::count(snapshot.lost_events()),
        quantity::count(quality.stacks),
        quantity::count(quality.truncated_stacks),
    )
}
