//! What the page's script reads: its wire format, which nothing else uses.
//!
//! Texts, functions, calls and nodes are tables of columns that refer to each other by number, so
//! that each is written once. Numbers are plain; what differs little from its neighbour is written
//! as the difference, because deflate then finds the same bytes again and again.

use std::sync::Arc;

use memtrace_common::unwind::End;
use rustc_hash::FxHashMap;
use serde::Serialize;

use super::rows::{Call, Change, Node, ROOT, Row, Rows};
use crate::pipeline::snapshot::{Snapshot, Usage};
use crate::views::export::json::{self, places::Places};
use crate::views::export::weights::Node as Label;
use crate::views::ranking::Ranking;
use crate::views::summary;

/// Everything.
#[derive(Serialize)]
pub(super) struct Page<'r, R> {
    /// The JSON report without functions and stacks.
    report: R,
    target: String,
    command: Option<String>,
    capture: String,
    loss: String,
    probes: String,
    texts: Vec<&'r str>,
    functions: Functions,
    calls: Calls,
    nodes: Nodes,
    rows: Vec<PageRow>,
    /// The changes of each of the report's threads, as those of a row.
    threads: Vec<Vec<i64>>,
    /// Ends of the steps in nanoseconds.
    ends: Vec<u64>,
    folded_stacks: u64,
}

/// Indices into `texts`; −1 for none.
#[derive(Default, Serialize)]
struct Functions {
    name: Vec<i64>,
    module: Vec<i64>,
    file: Vec<i64>,
}

/// Lines of functions.
#[derive(Default, Serialize)]
struct Calls {
    function: Vec<u32>,
    /// 0 if it is not known.
    line: Vec<u32>,
    inlined: Vec<u8>,
}

#[derive(Default, Serialize)]
struct Nodes {
    /// How many nodes before this one its caller is; 0 for none.
    parent: Vec<u32>,
    call: Vec<u32>,
}

#[derive(Serialize)]
struct PageRow {
    node: u32,
    api: &'static str,
    mapped: bool,
    stacks: u64,
    /// Allocations, allocated bytes, live blocks, live bytes, bytes at the peak, temporary
    /// allocations, leaked bytes.
    usage: [u64; 7],
    /// Of each step in which it changed: steps since the one before, growth in bytes, allocations,
    /// allocated bytes, temporary allocations.
    changes: Vec<i64>,
}

/// The texts, each once.
#[derive(Default)]
struct Texts<'r> {
    ids: FxHashMap<&'r str, i64>,
    all: Vec<&'r str>,
}

impl<'r> Texts<'r> {
    fn id(&mut self, text: &'r str) -> i64 {
        let all = &mut self.all;
        *self.ids.entry(text).or_insert_with(|| {
            all.push(text);
            all.len() as i64 - 1
        })
    }

    fn id_or_none(&mut self, text: Option<&'r Arc<str>>) -> i64 {
        text.map_or(-1, |text| self.id(text))
    }
}

/// What the script needs to know of a session.
pub(super) fn page<'r>(
    snapshot: &'r Snapshot,
    ranking: &'r Ranking,
    rows: &'r Rows,
    labels: &'r Labels,
    places: &'r Places<'r>,
) -> Page<'r, impl Serialize + use<'r>> {
    let mut texts = Texts::default();
    let mut functions = Functions::default();
    for function in &rows.functions {
        functions.name.push(texts.id_or_none(function.name.as_ref()));
        functions.module.push(texts.id(&function.module));
        functions.file.push(texts.id_or_none(function.file.as_ref()));
    }
    let mut calls = Calls::default();
    for (call, label) in rows.calls.iter().zip(&labels.0) {
        let (function, line, inlined) = match *call {
            Call::Line { function, line, inlined } => (function, line.unwrap_or(0), inlined),
            Call::Cut(_) | Call::Others => {
                functions.name.push(texts.id(label));
                functions.module.push(-1);
                functions.file.push(-1);
                (functions.name.len() as u32 - 1, 0, false)
            }
        };
        calls.function.push(function);
        calls.line.push(line);
        calls.inlined.push(inlined.into());
    }
    let mut nodes = Nodes::default();
    for (index, &Node { parent, call }) in (0..).zip(&rows.nodes) {
        nodes.parent.push(if parent == ROOT { 0 } else { index - parent });
        nodes.call.push(call);
    }
    Page {
        report: json::report(snapshot, ranking, 0, places),
        target: summary::target(snapshot),
        command: summary::command(snapshot),
        capture: summary::capture(snapshot),
        loss: summary::loss(snapshot),
        probes: summary::probes(snapshot),
        texts: texts.all,
        functions,
        calls,
        nodes,
        rows: rows.rows.iter().map(page_row).collect(),
        threads: rows.threads.iter().map(|changes| page_changes(changes)).collect(),
        ends: rows.ends.iter().map(|end| end.0).collect(),
        folded_stacks: rows.folded_stacks,
    }
}

/// Names of calls that are no functions, in the order of [`Rows::calls`]; empty for functions.
pub(super) struct Labels(Vec<String>);

impl Labels {
    pub(super) fn new(rows: &Rows) -> Labels {
        let label = |call: &Call| match *call {
            Call::Line { .. } => String::new(),
            Call::Cut(end) => cut(end),
            Call::Others => "[other stacks]".to_owned(),
        };
        Labels(rows.calls.iter().map(label).collect())
    }
}

fn cut(end: End) -> String {
    Label::Cut(end).name()
}

fn page_row(row: &Row) -> PageRow {
    let Row { node, api, stacks, usage, temporary, leaked_bytes, changes } = row;
    let Usage {
        allocations,
        allocated_bytes,
        frees: _, // follow from the others
        freed_bytes: _,
        live_blocks,
        live_bytes,
        inherited_blocks: _, // live too
        inherited_bytes: _,
        peak_bytes,
        temporary_allocations: _, // `temporary` is the same, of the part that is shown
    } = *usage;
    PageRow {
        node: *node,
        api: api.name(),
        mapped: !api.acquires_block(),
        stacks: *stacks,
        usage: [
            allocations,
            allocated_bytes,
            live_blocks,
            live_bytes,
            peak_bytes,
            *temporary,
            *leaked_bytes,
        ],
        changes: page_changes(changes),
    }
}

fn page_changes(changes: &[Change]) -> Vec<i64> {
    let mut before = 0;
    let numbers = changes.iter().flat_map(|change| {
        let Change { step, allocations, allocated_bytes, temporary, grown_bytes } = *change;
        let steps = step - std::mem::replace(&mut before, step);
        // Growth modulo 2^64 is a signed number; the others are far below 2^63 in any real session.
        [
            i64::from(steps),
            grown_bytes.cast_signed(),
            allocations.cast_signed(),
            allocated_bytes.cast_signed(),
            temporary.cast_signed(),
        ]
    });
    numbers.collect()
}
