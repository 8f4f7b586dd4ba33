//! What part of a session a report shows, the user's marks, and what happened between them.

use serde::Serialize;

use crate::pipeline::snapshot::{self, Scope, Snapshot};
use crate::views::printable::printable_str;

#[derive(Serialize)]
pub(super) struct Part {
    kind: &'static str,
    from_ns: u64,
    to_ns: u64,
    held_before: Option<Amount>,
    still_held: Option<Amount>,
}

#[derive(Serialize)]
pub(super) struct Mark {
    time_ns: u64,
    text: String,
}

#[derive(Serialize)]
pub(super) struct Phase {
    begins_with: Option<String>,
    from_ns: u64,
    to_ns: u64,
    allocated: Amount,
    freed: Amount,
    live_bytes_before: u64,
    live_bytes_after: u64,
    peak_live_bytes: u64,
    peak_at_ns: u64,
}

#[derive(Serialize)]
struct Amount {
    blocks: u64,
    bytes: u64,
}

pub(super) fn part(snapshot: &Snapshot) -> Part {
    let to_ns = snapshot.now.0;
    let whole = Part { kind: "run", from_ns: 0, to_ns, held_before: None, still_held: None };
    match snapshot.scope {
        Scope::Run => whole,
        Scope::Moment => Part { kind: "moment", from_ns: to_ns, ..whole },
        Scope::Range(range) => Part {
            kind: "range",
            from_ns: range.from.0,
            held_before: Some(amount(range.held_before)),
            still_held: Some(amount(range.still_held)),
            ..whole
        },
    }
}

pub(super) fn mark(mark: &snapshot::Mark) -> Mark {
    let snapshot::Mark { time, text } = mark;
    Mark { time_ns: time.0, text: printable_str(text).into_owned() }
}

pub(super) fn phase(phase: &snapshot::Phase) -> Phase {
    let snapshot::Phase {
        begins_with,
        from,
        to,
        allocated,
        freed,
        live_bytes_before,
        live_bytes_after,
        peak_live_bytes,
        peak_at,
    } = phase;
    Phase {
        begins_with: begins_with.as_ref().map(|text| printable_str(text).into_owned()),
        from_ns: from.0,
        to_ns: to.0,
        allocated: amount(*allocated),
        freed: amount(*freed),
        live_bytes_before: *live_bytes_before,
        live_bytes_after: *live_bytes_after,
        peak_live_bytes: *peak_live_bytes,
        peak_at_ns: peak_at.0,
    }
}

fn amount(amount: snapshot::Amount) -> Amount {
    let snapshot::Amount { blocks, bytes } = amount;
    Amount { blocks, bytes }
}
