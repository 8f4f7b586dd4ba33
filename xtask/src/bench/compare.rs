//! One loop under every tool: what a pair costs, and whether the tool saw all of them.

use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{
    background, micro,
    peers::{self, Entry, Peer},
    programs::one_line,
    report::{Section, Table, factor, ns},
    stage::{Cost, FramePointers, Loops, Stage},
    stats::median,
};

/// The rounds of one variant.
struct Variant {
    name: &'static str,
    tool: Tool,
    runs: Vec<Run>,
    /// Why it could not be measured.
    failure: Option<String>,
}

enum Tool {
    Bare,
    Memtrace,
    Peer(Peer),
}

struct Run {
    cost: Cost,
    /// CPU time of the tool's own process for one pair.
    daemon_ns: Option<f64>,
    made: u64,
    counted: Option<u64>,
}

pub(super) fn measure(
    stage: &Stage,
    title: &'static str,
    rounds: u32,
    pairs: u64,
) -> Result<Section> {
    let (found, mut notes) = peers::find();
    notes.extend(found.iter().map(|peer| format!("{}.", peer.version())));
    let variant = |name, tool| Variant { name, tool, runs: Vec::new(), failure: None };
    let mut variants = vec![variant("bare", Tool::Bare), variant("memtrace", Tool::Memtrace)];
    variants.extend(found.into_iter().map(|peer| variant(peer.name, Tool::Peer(peer))));
    for number in 1..=rounds {
        for variant in &mut variants {
            if variant.failure.is_some() {
                continue;
            }
            eprintln!("bench: {title}: round {number} of {rounds}: {}", variant.name);
            match run(stage, &variant.tool, pairs) {
                Ok(run) => variant.runs.push(run),
                Err(error) if matches!(variant.tool, Tool::Peer(_)) => {
                    let reason = one_line(&error);
                    eprintln!("bench: {}: {reason}", variant.name);
                    variant.failure = Some(reason);
                }
                Err(error) => return Err(error).context(variant.name),
            }
        }
    }
    Ok(section(title, &variants, notes))
}

fn run(stage: &Stage, tool: &Tool, pairs: u64) -> Result<Run> {
    let case = &micro::MALLOC;
    match tool {
        Tool::Bare => {
            let mut target = case.start(stage)?;
            let cost = case.batches(&mut target, pairs)?;
            target.finish()?;
            Ok(Run { cost, daemon_ns: None, made: 0, counted: None })
        }
        Tool::Memtrace => {
            let micro::Traced { cost, daemon_ns, recorded, made } =
                micro::traced(stage, case, pairs)?;
            let counted = Some(recorded.allocations);
            Ok(Run { cost, daemon_ns: Some(daemon_ns), made, counted })
        }
        Tool::Peer(peer) => run_peer(stage, peer, pairs),
    }
}

fn run_peer(stage: &Stage, peer: &Peer, pairs: u64) -> Result<Run> {
    let case = &micro::MALLOC;
    let loops = stage.loops(FramePointers::Omitted);
    let made = case.ops_in_all(pairs);
    // A tool that launches is the loops' parent; their end is its end.
    let (mut target, session) = if peer.entry() == Entry::Launches {
        let mut command: Command = peer.launch(stage, &loops)?;
        command.args(case.arguments());
        (Loops::from_command(command, case.threads)?, None)
    } else {
        let target = case.start(stage)?;
        let session = peer.attach(stage, target.pid(), &peers::allocator(target.pid())?)?;
        (target, Some(session))
    };
    let daemon = peer.daemon(session.as_ref().unwrap_or(target.background()));
    let before_ns = daemon.map(background::cpu_ns).transpose()?;
    let cost = case.batches(&mut target, pairs)?;
    let daemon_ns = match (daemon, before_ns) {
        (Some(daemon), Some(before_ns)) => {
            Some((background::settled_cpu_ns(daemon)? - before_ns) as f64 / made as f64)
        }
        _ => None,
    };
    let said = match session {
        None => target.finish()?,
        Some(session) => {
            target.finish()?;
            peer.finish(session)?
        }
    };
    Ok(Run { cost, daemon_ns, made, counted: peer.count(stage, &said)? })
}

fn section(title: &'static str, variants: &[Variant], mut notes: Vec<String>) -> Section {
    let mut table = Table::new(&["tool", "ns", "added ns", "slowdown", "daemon", "count"]);
    let cpu_ns = |variant: &Variant| median(variant.runs.iter().map(|run| run.cost.cpu_ns));
    let bare_ns = variants.first().map_or(f64::NAN, cpu_ns);
    let mut results = Vec::new();
    for variant in variants {
        let Variant { name, tool: _, runs, failure } = variant;
        if let Some(reason) = failure {
            notes.push(format!("{name} does not work here: {reason}."));
            let cells = [name, "does not work", "", "", "", ""];
            table.row(cells.map(str::to_owned));
            results.push(json!({ "tool": name, "failure": reason }));
            continue;
        }
        let cost_ns = cpu_ns(variant);
        let daemon_ns = median(runs.iter().filter_map(|run| run.daemon_ns));
        let share = daemon_ns / (cost_ns - bare_ns);
        table.row([
            (*name).to_owned(),
            ns(cost_ns),
            ns(cost_ns - bare_ns),
            factor(cost_ns / bare_ns),
            if share.is_nan() { String::new() } else { format!("{share:.2}") },
            counted(runs),
        ]);
        results.push(variant_json(name, runs));
    }
    notes.insert(
        0,
        "The loop is built without frame pointers. memleak and bpftrace follow frame pointers, so \
         their stacks end after a frame or two here; memtrace's and heaptrack's reach `main`. \
         heaptrack works inside the process, which is cheaper than any probe, and counts the \
         program's start as well where it launches it. *daemon*: CPU time of the tool's own \
         process in units of what it adds to the target's. *count*: allocations that the tool \
         counted, against what the loop did."
            .to_owned(),
    );
    Section { title, table, notes, json: json!(results) }
}

/// What the tool counted in all rounds.
fn counted(runs: &[Run]) -> String {
    let made: u64 = runs.iter().map(|run| run.made).sum();
    if made == 0 {
        return String::new();
    }
    let counted: Option<u64> = runs.iter().map(|run| run.counted).sum();
    counted.map_or("none".to_owned(), |counted| micro::count(counted, made))
}

fn variant_json(name: &str, runs: &[Run]) -> Value {
    let runs = runs.iter().map(|Run { cost, daemon_ns, made, counted }| {
        json!({
            "cpu_ns": cost.cpu_ns,
            "wall_ns": cost.wall_ns,
            "daemon_cpu_ns": daemon_ns,
            "allocations": made,
            "allocations_counted": counted,
        })
    });
    json!({ "tool": name, "rounds": runs.collect::<Vec<_>>() })
}
