//! Lost blocks as JSON, as `docs/leaks.schema.json` describes it.

use std::io::{self, Write};

use serde::Serialize;

use super::findings;
use super::layout::OneEntryPerLine;
use super::places::{Path, Places};
use crate::lost::{Amount, Losses, LostBlocks, NotJudged, NotRead, ProcessLosses};
use crate::pipeline::snapshot::Snapshot;
use crate::reach::Cost;
use crate::record::Pid;
use crate::views;
use crate::views::export::list::List;
use crate::views::findings::Findings;
use crate::views::lost::{Ranking, SymbolizedLosses, caveats};
use crate::views::printable::{printable, printable_str};

/// The report's `version`.
pub const VERSION: u32 = 2;

#[derive(Serialize)]
struct Report<'r, S> {
    format: &'static str,
    version: u32,
    target: Target,
    scan: Scan,
    processes: Vec<Process>,
    totals: Totals,
    stacks: S,
    leaks: Option<Vec<findings::Leak<'r>>>,
    leak_detection: Option<findings::LeakDetection<'r>>,
    caveats: Vec<String>,
    /// Last, because all that goes before refers to it.
    places: &'r Places<'r>,
}

#[derive(Serialize)]
struct Target {
    pid: u32,
    exe: Option<String>,
}

#[derive(Serialize)]
struct Scan {
    observed_ns: u64,
    stopped_ns: Option<u64>,
    threads: u64,
    read_bytes: u64,
    unreadable_bytes: u64,
    uncopied_bytes: u64,
    own_peak_bytes: u64,
    judged_blocks: u64,
    judged_bytes: u64,
    contradictory_blocks: u64,
    out_of_reach_blocks: u64,
    changed_blocks: u64,
    inherited_blocks: u64,
}

#[derive(Serialize)]
struct Process {
    pid: u32,
    exe: Option<String>,
    /// `None` if it was not read.
    scan: Option<Scan>,
    not_read: Option<String>,
    direct_blocks: u64,
    direct_bytes: u64,
    indirect_blocks: u64,
    indirect_bytes: u64,
}

#[derive(Serialize)]
struct Totals {
    direct_blocks: u64,
    direct_bytes: u64,
    indirect_blocks: u64,
    indirect_bytes: u64,
    suppressed_blocks: u64,
    suppressed_bytes: u64,
}

#[derive(Serialize)]
struct Stack<'r> {
    api: &'static str,
    end: &'static str,
    direct_blocks: u64,
    direct_bytes: u64,
    first_born_ns: Option<u64>,
    last_born_ns: Option<u64>,
    held_blocks: u64,
    held_bytes: u64,
    indirect_blocks: u64,
    indirect_bytes: u64,
    places: Path<'r>,
}

/// Writes the losses, of the call paths at most `top`, and what grows, if that is wanted.
pub fn write(
    out: impl Write,
    snapshot: &Snapshot,
    lost: &LostBlocks,
    ranking: &Ranking,
    growth: Option<&Findings>,
    top: Option<usize>,
) -> io::Result<()> {
    let Ranking { stacks, functions: _, born: _, direct, indirect, suppressed } = ranking;
    let listed = top.and_then(|top| stacks.get(..top)).unwrap_or(stacks);
    let places = Places::new();
    let report = Report {
        format: "memtrace-leaks",
        version: VERSION,
        target: Target { pid: lost.pid.0, exe: exe(snapshot, lost.pid) },
        scan: scan(snapshot, lost.judged, lost.not_judged, lost.cost),
        processes: processes(snapshot, lost),
        totals: Totals {
            direct_blocks: direct.blocks,
            direct_bytes: direct.bytes,
            indirect_blocks: indirect.blocks,
            indirect_bytes: indirect.bytes,
            suppressed_blocks: suppressed.blocks,
            suppressed_bytes: suppressed.bytes,
        },
        stacks: List(|| listed.iter().map(|losses| stack(losses, &places))),
        leaks: growth.map(|growth| findings::leaks(growth, &places)),
        leak_detection: growth.map(|growth| findings::leak_detection(snapshot, growth)),
        caveats: caveats(snapshot, lost),
        places: &places,
    };
    let mut serializer = serde_json::Serializer::with_formatter(out, OneEntryPerLine::default());
    report.serialize(&mut serializer).map_err(io::Error::from)?;
    serializer.into_inner().write_all(b"\n")
}

fn exe(snapshot: &Snapshot, pid: Pid) -> Option<String> {
    views::lost::exe(snapshot, pid).map(|exe| printable(exe).into_owned())
}

fn scan(snapshot: &Snapshot, judged: Amount, not_judged: NotJudged, cost: Cost) -> Scan {
    let NotJudged { contradictory, out_of_reach, changed, inherited } = not_judged;
    let Cost { stopped, threads, read_bytes, unreadable_bytes, uncopied_bytes, own_peak_bytes } =
        cost;
    Scan {
        observed_ns: snapshot.now.0,
        stopped_ns: stopped.map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)),
        threads,
        read_bytes,
        unreadable_bytes,
        uncopied_bytes,
        own_peak_bytes,
        judged_blocks: judged.blocks,
        judged_bytes: judged.bytes,
        contradictory_blocks: contradictory,
        out_of_reach_blocks: out_of_reach,
        changed_blocks: changed,
        inherited_blocks: inherited,
    }
}

/// Those that were read, in the order of the looks, and behind them those that were not.
fn processes(snapshot: &Snapshot, lost: &LostBlocks) -> Vec<Process> {
    let read = lost.processes.iter().map(|process| {
        let &ProcessLosses { pid, direct, indirect, judged, not_judged, cost } = process;
        Process {
            pid: pid.0,
            exe: exe(snapshot, pid),
            scan: Some(scan(snapshot, judged, not_judged, cost)),
            not_read: None,
            direct_blocks: direct.blocks,
            direct_bytes: direct.bytes,
            indirect_blocks: indirect.blocks,
            indirect_bytes: indirect.bytes,
        }
    });
    let not_read = lost.not_read.iter().map(|NotRead { pid, reason }| Process {
        pid: pid.0,
        exe: exe(snapshot, *pid),
        scan: None,
        not_read: Some(printable_str(reason).into_owned()),
        direct_blocks: 0,
        direct_bytes: 0,
        indirect_blocks: 0,
        indirect_bytes: 0,
    });
    read.chain(not_read).collect()
}

fn stack<'r>(symbolized: &'r SymbolizedLosses, places: &'r Places<'r>) -> Stack<'r> {
    let SymbolizedLosses { stack, api, losses } = symbolized;
    let Losses { direct, born, held, indirect } = *losses;
    let Amount { bytes: direct_bytes, blocks: direct_blocks } = direct;
    let Amount { bytes: held_bytes, blocks: held_blocks } = held;
    let Amount { bytes: indirect_bytes, blocks: indirect_blocks } = indirect;
    Stack {
        api: api.name(),
        end: stack.end.name(),
        direct_blocks,
        direct_bytes,
        first_born_ns: born.map(|births| births.first.0),
        last_born_ns: born.map(|births| births.last.0),
        held_blocks,
        held_bytes,
        indirect_blocks,
        indirect_bytes,
        places: places.path(stack),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::views::fixture;
    use crate::views::lost::rank;
    use crate::views::suppressions::Suppressions;

    fn json(lost: &LostBlocks, top: Option<usize>) -> Value {
        let snapshot = fixture::snapshot();
        let ranking = rank(&snapshot, lost, &mut fixture::names(), &Suppressions::default());
        let mut out = Vec::new();
        write(&mut out, &snapshot, lost, &ranking, None, top).expect("a Vec takes all");
        serde_json::from_slice(&out).expect("the report is JSON")
    }

    fn is_valid(report: &Value) -> bool {
        let schema = include_str!("../../../../../docs/leaks.schema.json");
        let schema = serde_json::from_str(schema).expect("the schema is JSON");
        jsonschema::is_valid(&schema, report)
    }

    #[test]
    fn report_is_valid_and_every_number_is_in_its_place() {
        let report = json(&fixture::lost(), None);

        assert!(is_valid(&report), "{report:#}");
        let totals = serde_json::json!({
            "direct_blocks": 12_291, "direct_bytes": (12 << 20) + 100,
            "indirect_blocks": 24, "indirect_bytes": 3 << 10,
            "suppressed_blocks": 0, "suppressed_bytes": 0,
        });
        assert_eq!(report["totals"], totals);
        let scan = serde_json::json!({
            "observed_ns": 12_345_000_000u64, "stopped_ns": 12_000_000, "threads": 2,
            "read_bytes": 88 << 20, "unreadable_bytes": 4096,
            "uncopied_bytes": 0, "own_peak_bytes": 200 << 20,
            "judged_blocks": 12_323, "judged_bytes": 14 << 20,
            "contradictory_blocks": 0, "out_of_reach_blocks": 0, "changed_blocks": 7,
            "inherited_blocks": 0,
        });
        assert_eq!(report["scan"], scan);
        let first = report["stacks"][0]["places"][0].as_u64().expect("an index") as usize;
        assert_eq!(report["places"][first]["frames"][0]["function"], "leak_per_request");
        assert_eq!(report["stacks"][0]["held_blocks"], 24);
        assert_eq!(report["stacks"][0]["first_born_ns"], 1_000_000_000u64);
        assert_eq!(report["stacks"][0]["last_born_ns"], 7_143_500_000u64);
    }

    #[test]
    fn every_process_has_its_numbers_or_why_it_was_not_read() {
        let report = json(&fixture::lost_of_family(), None);

        assert!(is_valid(&report), "{report:#}");
        let processes = report["processes"].as_array().expect("processes");
        let pids: Vec<_> = processes.iter().map(|process| &process["pid"]).collect();
        assert_eq!(pids, [4242, 4250, 4251]);
        assert_eq!(processes[0]["direct_blocks"], 12_291);
        assert_eq!(processes[1]["scan"]["inherited_blocks"], 31);
        assert_eq!(processes[2]["scan"], Value::Null);
        assert_eq!(processes[2]["not_read"], "a signal\\x1b ended it");
        assert_eq!(report["scan"]["stopped_ns"], 12_000_000, "the longest stop");
        assert_eq!(report["scan"]["judged_blocks"], 12_325);
    }

    #[test]
    fn top_limits_stacks_and_not_totals() {
        let report = json(&fixture::lost(), Some(1));

        assert!(is_valid(&report), "{report:#}");
        assert_eq!(report["stacks"].as_array().map(Vec::len), Some(1));
        assert_eq!(report["totals"]["direct_blocks"], 12_291);
    }

    #[test]
    fn what_grows_is_there_if_it_is_wanted() {
        let (snapshot, lost) = (fixture::snapshot(), fixture::lost());
        let mut names = fixture::names();
        let ranking = rank(&snapshot, &lost, &mut names, &Suppressions::default());
        let growth = Findings::new(&snapshot, &mut names);
        let mut out = Vec::new();

        write(&mut out, &snapshot, &lost, &ranking, Some(&growth), None).expect("a Vec takes all");

        let report: Value = serde_json::from_slice(&out).expect("the report is JSON");
        assert!(is_valid(&report), "{report:#}");
        assert_eq!(report["leaks"][0]["function"], "leak_per_request");
        assert_eq!(report["leak_detection"]["needed_ns"], 30_000_000_000u64);
        assert_eq!(json(&lost, None)["leaks"], Value::Null);
    }

    #[test]
    fn report_with_a_key_of_another_type_is_invalid() {
        let mut report = json(&fixture::lost(), None);
        report["scan"]["threads"] = "2".into();

        assert!(!is_valid(&report));
    }
}
