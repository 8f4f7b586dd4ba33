//! Lost blocks as JSON, as `docs/leaks.schema.json` describes it.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::value::RawValue;

use super::layout::OneEntryPerLine;
use super::stacks::text;
use crate::lost::{Amount, Losses, LostBlocks, NotJudged};
use crate::pipeline::snapshot::Snapshot;
use crate::reach::Cost;
use crate::views::lost::{SymbolizedLosses, caveats};
use crate::views::printable::printable;

/// The report's `version`.
pub const VERSION: u32 = 1;

#[derive(Serialize)]
struct Report {
    format: &'static str,
    version: u32,
    target: Target,
    scan: Scan,
    totals: Totals,
    stacks: Vec<Stack>,
    caveats: Vec<String>,
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
    judged_blocks: u64,
    judged_bytes: u64,
    contradictory_blocks: u64,
    out_of_reach_blocks: u64,
    changed_blocks: u64,
}

#[derive(Serialize)]
struct Totals {
    direct_blocks: u64,
    direct_bytes: u64,
    indirect_blocks: u64,
    indirect_bytes: u64,
}

#[derive(Serialize)]
struct Stack {
    api: &'static str,
    end: &'static str,
    direct_blocks: u64,
    direct_bytes: u64,
    held_blocks: u64,
    held_bytes: u64,
    indirect_blocks: u64,
    indirect_bytes: u64,
    frames: Vec<Box<RawValue>>,
}

/// Writes the losses; `stacks` are those of `lost`, in order, of which at most `top` are written.
pub fn write(
    out: impl Write,
    snapshot: &Snapshot,
    lost: &LostBlocks,
    stacks: &[SymbolizedLosses],
    top: Option<usize>,
) -> io::Result<()> {
    let NotJudged { contradictory, out_of_reach, changed } = lost.not_judged;
    let Cost { stopped, threads, read_bytes, unreadable_bytes } = lost.cost;
    let Losses { direct, held: _, indirect } = lost.total();
    let exe = snapshot.processes.iter().find(|process| process.pid == lost.pid);
    let report = Report {
        format: "memtrace-leaks",
        version: VERSION,
        target: Target {
            pid: lost.pid.0,
            exe: exe.map(|process| printable(&process.exe).into_owned()),
        },
        scan: Scan {
            observed_ns: snapshot.now.0,
            stopped_ns: stopped.map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)),
            threads,
            read_bytes,
            unreadable_bytes,
            judged_blocks: lost.judged.blocks,
            judged_bytes: lost.judged.bytes,
            contradictory_blocks: contradictory,
            out_of_reach_blocks: out_of_reach,
            changed_blocks: changed,
        },
        totals: Totals {
            direct_blocks: direct.blocks,
            direct_bytes: direct.bytes,
            indirect_blocks: indirect.blocks,
            indirect_bytes: indirect.bytes,
        },
        stacks: stacks
            .iter()
            .take(top.unwrap_or(usize::MAX))
            .map(stack)
            .collect::<io::Result<_>>()?,
        caveats: caveats(snapshot, lost),
    };
    let mut serializer = serde_json::Serializer::with_formatter(out, OneEntryPerLine::default());
    report.serialize(&mut serializer).map_err(io::Error::from)?;
    serializer.into_inner().write_all(b"\n")
}

fn stack(symbolized: &SymbolizedLosses) -> io::Result<Stack> {
    let SymbolizedLosses { stack, api, losses } = symbolized;
    let Losses { direct, held, indirect } = *losses;
    let Amount { bytes: direct_bytes, blocks: direct_blocks } = direct;
    let Amount { bytes: held_bytes, blocks: held_blocks } = held;
    let Amount { bytes: indirect_bytes, blocks: indirect_blocks } = indirect;
    Ok(Stack {
        api: api.name(),
        end: stack.end.name(),
        direct_blocks,
        direct_bytes,
        held_blocks,
        held_bytes,
        indirect_blocks,
        indirect_bytes,
        frames: stack.frames.iter().map(|frame| text(frame)).collect::<io::Result<_>>()?,
    })
}
