//! The table of real programs.

use serde_json::{Value, json};

use super::{
    peers::Entry,
    programs::{Measured, PeerOutcome, PeerRun, Traced, Usage},
    report::{Section, Table, factor, verdict},
    stats::median,
};

/// The tools that have a column.
const COLUMNS: [&str; 4] = ["memleak", "bpftrace", "heaptrack", "heaptrack -p"];

/// How far two tools' counts may differ and still be called the same.
const TOLERANCE: f64 = 0.01;

pub(super) fn section(
    title: &'static str,
    programs: &[Measured],
    mut notes: Vec<String>,
) -> Section {
    let header = [
        "program",
        "bare s",
        "floor",
        "memtrace",
        "× floor",
        "target",
        "wall",
        "daemon",
        "allocations",
        "lost",
        "complete",
        "B/event",
        "heaptrack counts",
    ];
    let mut table = Table::new(&[header.as_slice(), COLUMNS.as_slice()].concat());
    for program in programs {
        table.row(cells(program));
        notes.extend(program.peers.iter().filter_map(|run| failure(program.name, run)));
    }
    let rounds = programs.first().map_or(0, |program| program.bare.len());
    notes.insert(
        0,
        format!(
            "Slowdowns of the program's own CPU time (*wall*: of the time on the clock, with the \
             stops in which memtrace attaches), medians; {rounds} interleaved rounds, the other \
             tools one run each. *floor*: with empty programs where memtrace has its own, which is \
             what the kernel takes for the probes alone, so no target below it can be met. *daemon*: memtrace's CPU time in units of what it adds to the \
             program's. *complete*: allocations whose stack reaches the root. *heaptrack counts*: \
             allocations that heaptrack counted in the same run, against memtrace's."
        ),
    );
    let json = programs.iter().map(program_json).collect::<Vec<_>>();
    Section { title, table, notes, json: json!(json) }
}

fn cells(program: &Measured) -> Vec<String> {
    let slowdown = program.slowdown(|usage| usage.cpu_s);
    let each = |value: &dyn Fn(&Traced) -> f64| median(program.traced.iter().map(value));
    let allocations = each(&|run| run.recorded.allocations as f64);
    let lost: u64 = program.traced.iter().map(|run| run.recorded.lost_events).sum();
    let mut cells = vec![
        program.name.to_owned(),
        format!("{:.2}", program.bare_s()),
        factor(program.floor()),
        factor(slowdown),
        factor(slowdown / program.floor()),
        verdict(slowdown, slowdown, program.target),
        factor(program.slowdown(|usage| usage.wall_s)),
        format!("{:.2}", daemon_share(program)),
        format!("{allocations:.0}"),
        lost.to_string(),
        format!("{:.2} %", each(&|run| run.recorded.complete_percent())),
        format!("{:.1}", each(&|run| run.recorded.trace_bytes as f64 / run.recorded.events as f64)),
        agreement(program, allocations),
    ];
    cells.extend(COLUMNS.map(|tool| peer_cell(program, tool)));
    cells
}

/// The median of the rounds' daemon CPU times, in units of what memtrace added to the program's.
fn daemon_share(program: &Measured) -> f64 {
    let rounds = program.traced.iter().zip(&program.bare);
    median(rounds.map(|(traced, bare)| traced.daemon_s / (traced.usage.cpu_s - bare.cpu_s)))
}

fn peer_cell(program: &Measured, tool: &str) -> String {
    match program.peers.iter().find(|run| run.name == tool).map(|run| &run.outcome) {
        None => String::new(),
        Some(PeerOutcome::Ran { usage, .. }) => factor(usage.cpu_s / program.bare_s()),
        Some(PeerOutcome::CutOff { cpu_s }) => {
            format!("> {}", factor(cpu_s / program.bare_s()))
        }
        Some(PeerOutcome::Failed { .. }) => "failed".to_owned(),
    }
}

/// What heaptrack counted, where it came to the program as memtrace did.
fn agreement(program: &Measured, allocations: f64) -> String {
    let counted = |tool: &str| {
        program.peers.iter().filter(|run| run.name == tool).find_map(|run| match run.outcome {
            PeerOutcome::Ran { usage: _, counted } => counted,
            PeerOutcome::CutOff { .. } | PeerOutcome::Failed { .. } => None,
        })
    };
    let tool = match program.entry {
        Entry::Launches => "heaptrack",
        Entry::Attaches | Entry::Injects => "heaptrack -p",
    };
    let Some(counted) = counted(tool) else { return String::new() };
    let difference = (allocations - counted as f64) / counted as f64;
    if difference.abs() <= TOLERANCE {
        format!("{counted}: agrees")
    } else {
        format!("{counted}: {:+.1} %", difference * 100.0)
    }
}

fn failure(program: &str, run: &PeerRun) -> Option<String> {
    match &run.outcome {
        PeerOutcome::Ran { .. } => None,
        PeerOutcome::CutOff { .. } => {
            Some(format!("{program} under {} was cut off: it took too long.", run.name))
        }
        PeerOutcome::Failed { reason } => {
            Some(format!("{program} under {} failed: {reason}.", run.name))
        }
    }
}

fn program_json(program: &Measured) -> Value {
    let usage = |usage: &Usage| json!({ "cpu_s": usage.cpu_s, "wall_s": usage.wall_s });
    let traced = |run: &Traced| {
        json!({
            "cpu_s": run.usage.cpu_s,
            "wall_s": run.usage.wall_s,
            "daemon_cpu_s": run.daemon_s,
            "events": run.recorded.events,
            "allocations": run.recorded.allocations,
            "lost_events": run.recorded.lost_events,
            "complete_percent": run.recorded.complete_percent(),
            "trace_bytes": run.recorded.trace_bytes,
        })
    };
    let peer = |run: &PeerRun| match &run.outcome {
        PeerOutcome::Ran { usage, counted } => json!({
            "tool": run.name, "cpu_s": usage.cpu_s, "wall_s": usage.wall_s,
            "allocations_counted": counted,
        }),
        PeerOutcome::CutOff { cpu_s } => json!({ "tool": run.name, "cut_off_at_cpu_s": cpu_s }),
        PeerOutcome::Failed { reason } => json!({ "tool": run.name, "failure": reason }),
    };
    json!({
        "program": program.name,
        "target": program.target,
        "slowdown": program.slowdown(|usage| usage.cpu_s),
        "floor_slowdown": program.floor(),
        "wall_slowdown": program.slowdown(|usage| usage.wall_s),
        "daemon_share": daemon_share(program),
        "bare": program.bare.iter().map(usage).collect::<Vec<_>>(),
        "floor": program.floor.iter().map(usage).collect::<Vec<_>>(),
        "memtrace": program.traced.iter().map(traced).collect::<Vec<_>>(),
        "peers": program.peers.iter().map(peer).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(peers: Vec<PeerRun>) -> Measured {
        let bare = vec![Usage { cpu_s: 0.5, wall_s: 0.5 }];
        Measured {
            name: "sqlite3",
            entry: Entry::Launches,
            target: 9.0,
            bare,
            floor: Vec::new(),
            traced: Vec::new(),
            peers,
        }
    }

    #[test]
    fn tool_that_was_cut_off_was_slower_than_what_was_seen() {
        let outcome = PeerOutcome::CutOff { cpu_s: 90.0 };
        let program = program(vec![PeerRun { name: "memleak", outcome }]);

        assert_eq!(peer_cell(&program, "memleak"), "> 180×");
        assert_eq!(peer_cell(&program, "bpftrace"), "");
    }

    #[test]
    fn counts_that_differ_say_by_how_much() {
        let usage = Usage { cpu_s: 1.0, wall_s: 1.0 };
        let outcome = PeerOutcome::Ran { usage, counted: Some(1000) };
        let program = program(vec![PeerRun { name: "heaptrack", outcome }]);

        assert_eq!(agreement(&program, 1001.0), "1000: agrees");
        assert_eq!(agreement(&program, 950.0), "1000: -5.0 %");
        assert_eq!(peer_cell(&program, "heaptrack"), "2.00×");
    }
}
