//! The JSON form of a comparison, as `docs/diff.schema.json` describes it.
//!
//! The structs here are the wire format and nothing else uses them. Keys may be added; removing
//! one or changing its meaning raises [`VERSION`].

use std::io::{self, Write};

use serde::Serialize;

use super::{Comparison, FunctionChange, Side, Sides, StackChange, runs};
use crate::pipeline::snapshot;
use crate::record::Origin;
use crate::views::export::json::layout::OneEntryPerLine;
use crate::views::export::json::table::Table;
use crate::views::export::json::{Usage, usage};
use crate::views::export::list::List;
use crate::views::profile::{Coverage, FrameId, FunctionUsage, Profile, Vocabulary};
use crate::views::ranking::{Memory, SortKey};

/// The comparison's `version`.
pub const VERSION: u32 = 2;

#[derive(Serialize)]
struct Diff<'d, S> {
    format: &'static str,
    version: u32,
    sort: &'static str,
    per_second: bool,
    old: Session<'d>,
    new: Session<'d>,
    functions: Vec<Function<'d>>,
    stacks: S,
    /// Last, because the stacks refer to it.
    frames: &'d Frames<'d>,
}

#[derive(Serialize)]
struct Session<'d> {
    name: &'d str,
    target: &'d str,
    origin: Option<&'static str>,
    duration_ns: u64,
    losses: &'d [String],
    caveats: &'d [String],
    totals: Totals,
}

#[derive(Serialize)]
struct Totals {
    heap: Usage,
    peak_live_bytes: u64,
    temporary_allocations: u64,
    mapped: Usage,
    peak_resident_bytes: u64,
}

#[derive(Serialize)]
struct Function<'d> {
    function: Option<&'d str>,
    module: &'d str,
    file: Option<&'d str>,
    status: &'static str,
    change: i64,
    old: Option<Charge>,
    new: Option<Charge>,
}

#[derive(Serialize)]
struct Charge {
    line: Option<u32>,
    #[serde(rename = "self")]
    own: Usage,
    total: Usage,
}

#[derive(Serialize)]
struct Stack {
    memory: &'static str,
    status: &'static str,
    change: i64,
    old: Option<Usage>,
    new: Option<Usage>,
    frames: Vec<usize>,
}

/// The frames of the stacks, told apart by what they are on either side.
type Frames<'d> = Table<(Option<FrameId>, Option<FrameId>), Frame<'d>>;

#[derive(Serialize)]
struct Frame<'d> {
    function: Option<&'d str>,
    module: &'d str,
    file: Option<&'d str>,
    old_line: Option<u32>,
    new_line: Option<u32>,
}

/// Writes the comparison; at most `top` functions and stacks, if a limit is given.
pub fn write(
    out: impl Write,
    sides: &Sides<'_>,
    comparison: &Comparison,
    words: &Vocabulary,
    top: Option<usize>,
) -> io::Result<()> {
    let Comparison { key, functions, stacks } = comparison;
    let top = top.unwrap_or(usize::MAX);
    let listed = stacks.get(..top).unwrap_or(stacks);
    let frames = Frames::new();
    let diff = Diff {
        format: "memtrace-diff",
        version: VERSION,
        sort: match key {
            SortKey::Live => "live",
            SortKey::Peak => "peak",
            SortKey::Allocated => "allocated",
            SortKey::Allocations => "allocations",
            SortKey::Temporary => "temporary",
        },
        per_second: sides.per_second,
        old: session(&sides.old),
        new: session(&sides.new),
        functions: functions.iter().take(top).map(|f| function(f, *key, words)).collect(),
        stacks: List(|| listed.iter().map(|change| stack(change, *key, words, &frames))),
        frames: &frames,
    };
    let mut serializer = serde_json::Serializer::with_formatter(out, OneEntryPerLine::default());
    diff.serialize(&mut serializer).map_err(io::Error::from)?;
    serializer.into_inner().write_all(b"\n")
}

fn session<'d>(side: &Side<'d>) -> Session<'d> {
    let Profile { target, coverage, caveats, totals, stacks: _, growth: _ } = side.profile;
    let Coverage {
        duration,
        origin,
        is_whole_run: _,
        before_attach_bytes: _,
        has_allocator: _,
        losses,
    } = coverage;
    let snapshot::Totals {
        heap,
        peak_live_bytes,
        peak_at: _,
        mapped,
        temporary_allocations,
        peak_resident_bytes,
    } = totals;
    Session {
        name: side.name,
        target,
        origin: origin.map(|origin| match origin {
            Origin::Attached => "attached",
            Origin::Launched => "launched",
        }),
        duration_ns: u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX),
        losses,
        caveats,
        totals: Totals {
            heap: usage(heap),
            peak_live_bytes: *peak_live_bytes,
            temporary_allocations: *temporary_allocations,
            mapped: usage(mapped),
            peak_resident_bytes: *peak_resident_bytes,
        },
    }
}

fn function<'d>(change: &FunctionChange, key: SortKey, words: &'d Vocabulary) -> Function<'d> {
    let function = words.function(change.function);
    let newest = change.new.or(change.old);
    let charge = |side: FunctionUsage| Charge {
        line: words.frame(side.heaviest).line,
        own: usage(&side.charge.own),
        total: usage(&side.charge.total),
    };
    Function {
        function: function.name.as_deref(),
        module: &function.module,
        file: newest.and_then(|usage| words.frame(usage.heaviest).file.as_deref()),
        status: change.status(key).name(),
        change: difference(change.own(key)),
        old: change.old.map(charge),
        new: change.new.map(charge),
    }
}

fn stack<'d>(
    change: &StackChange,
    key: SortKey,
    words: &'d Vocabulary,
    frames: &Frames<'d>,
) -> Stack {
    let (old, new) = (runs(change.old.as_ref(), words), runs(change.new.as_ref(), words));
    let path = change.functions(words).enumerate().map(|(index, id)| {
        let [old, new] = [&old, &new].map(|side| side.get(index).map(|run| run.0));
        frames.index((old, new), || {
            let function = words.function(id);
            let [old, new] = [old, new].map(|frame| frame.map(|id| words.frame(id)));
            Frame {
                function: function.name.as_deref(),
                module: &function.module,
                file: new.or(old).and_then(|frame| frame.file.as_deref()),
                old_line: old.and_then(|frame| frame.line),
                new_line: new.and_then(|frame| frame.line),
            }
        })
    });
    Stack {
        memory: match change.memory {
            Memory::Heap => "heap",
            Memory::Mapped => "mapped",
        },
        status: change.status(key).name(),
        change: difference(change.amounts(key)),
        old: change.old.as_ref().map(|side| usage(&side.usage)),
        new: change.new.as_ref().map(|side| usage(&side.usage)),
        frames: path.collect(),
    }
}

/// By how much a number grew; negative if it shrank.
fn difference((old, new): (Option<u64>, Option<u64>)) -> i64 {
    let difference = i128::from(new.unwrap_or(0)) - i128::from(old.unwrap_or(0));
    i64::try_from(difference).unwrap_or(if difference < 0 { i64::MIN } else { i64::MAX })
}
