//! Call paths in JSON.
//!
//! Frames would be nearly all of a report, and nearly all of them alike: five million that are
//! twenty thousand different ones, for a compiler. So each place stands once, in a table, with the
//! functions that are inlined there, and a call path is a list of indices into it:
//!
//! ```text
//!   stacks   {…, "places": [0, 1]}, {…, "places": [0, 2]}
//!   places   0: build, inlined into fill     1: main     2: worker
//! ```

use std::sync::Arc;

use serde::ser::{Serialize, Serializer};

use super::table::Table;
use super::{Usage, usage};
use crate::views::frames::{Frame, SymbolizedStack};
use crate::views::label::address;
use crate::views::ranking::SymbolizedUsage;

/// The places of the paths that were written so far.
///
/// They are told apart by where their frames are kept, which all stacks that go through them share.
pub(in crate::views) struct Places<'r>(Table<*const Arc<Frame>, Place<'r>>);

/// A call path, as the indices of its places from the allocating function outwards.
#[derive(Clone, Copy)]
pub(super) struct Path<'r> {
    stack: &'r SymbolizedStack,
    places: &'r Places<'r>,
}

/// An entry of the report's `stacks`.
#[derive(serde::Serialize)]
pub(super) struct Stack<'r> {
    api: &'static str,
    end: &'static str,
    #[serde(flatten)]
    usage: Usage,
    places: Path<'r>,
}

struct Place<'r>(&'r [Arc<Frame>]);

#[derive(serde::Serialize)]
struct PlaceEntry<'r> {
    module: &'r str,
    address: String,
    frames: Vec<FrameEntry<'r>>,
}

#[derive(serde::Serialize)]
struct FrameEntry<'r> {
    function: Option<&'r str>,
    file: Option<&'r str>,
    line: Option<u32>,
}

impl<'r> Places<'r> {
    pub(in crate::views) fn new() -> Places<'r> {
        Places(Table::new())
    }

    /// The path of a stack, which refers to this table.
    pub(super) fn path(&'r self, stack: &'r SymbolizedStack) -> Path<'r> {
        Path { stack, places: self }
    }
}

impl Serialize for Path<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Path { stack, places: Places(table) } = self;
        let indices = stack.places().map(|place| table.index(place.as_ptr(), || Place(place)));
        serializer.collect_seq(indices)
    }
}

impl Serialize for Places<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl Serialize for Place<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // What is inlined at an address is of the same file as the address.
        let first = self.0.first().expect("a place has a frame, if a nameless one");
        let entry = PlaceEntry {
            module: &first.function.module,
            address: address(first.place),
            frames: self.0.iter().map(|frame| frame_entry(frame)).collect(),
        };
        entry.serialize(serializer)
    }
}

pub(super) fn stack<'r>(symbolized: &'r SymbolizedUsage, places: &'r Places<'r>) -> Stack<'r> {
    let SymbolizedUsage { stack, api, usage: used } = symbolized;
    Stack { api: api.name(), end: stack.end.name(), usage: usage(used), places: places.path(stack) }
}

fn frame_entry(frame: &Frame) -> FrameEntry<'_> {
    // Whether it is inlined: all are but the last.
    let Frame { function, line, inlined: _, place: _ } = frame;
    FrameEntry { function: function.name.as_deref(), file: function.file.as_deref(), line: *line }
}
