//! The stacks of the JSON report.
//!
//! Nearly all of a large report is frames, and nearly all of these are alike: five million that
//! are twenty thousand different ones, for a compiler. So the text of each is made once, and a
//! stack is put together only when it is written.

use std::collections::hash_map::Entry;
use std::io;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use serde::ser::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::layout::OneEntryPerLine;
use super::{Usage, usage};
use crate::views::frames;
use crate::views::label::address;
use crate::views::ranking::SymbolizedUsage;

/// The stacks, in their order.
pub(super) struct Stacks<'r> {
    stacks: &'r [SymbolizedUsage],
    /// The text of each frame. The stacks hold the frames, so a frame stays where it is.
    texts: FxHashMap<*const frames::Frame, Box<RawValue>>,
}

#[derive(serde::Serialize)]
struct Stack<'r> {
    api: &'static str,
    end: &'static str,
    #[serde(flatten)]
    usage: Usage,
    frames: Vec<&'r RawValue>,
}

#[derive(serde::Serialize)]
pub(super) struct Frame<'r> {
    function: Option<&'r str>,
    module: &'r str,
    file: Option<&'r str>,
    line: Option<u32>,
    inlined: bool,
    address: String,
}

impl<'r> Stacks<'r> {
    pub(super) fn new(stacks: &'r [SymbolizedUsage]) -> io::Result<Stacks<'r>> {
        let mut texts = FxHashMap::default();
        for frame in stacks.iter().flat_map(|usage| usage.stack.frames()) {
            if let Entry::Vacant(new) = texts.entry(Arc::as_ptr(frame)) {
                new.insert(text(frame)?);
            }
        }
        Ok(Stacks { stacks, texts })
    }

    fn stack(&self, symbolized: &SymbolizedUsage) -> Stack<'_> {
        let SymbolizedUsage { stack, api, usage: used } = symbolized;
        Stack {
            api: api.name(),
            end: stack.end.name(),
            usage: usage(used),
            frames: stack.frames().map(|frame| &*self.texts[&Arc::as_ptr(frame)]).collect(),
        }
    }
}

impl Serialize for Stacks<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.stacks.iter().map(|usage| self.stack(usage)))
    }
}

/// A frame as the report has it.
pub(super) fn frame(frame: &frames::Frame) -> Frame<'_> {
    let frames::Frame { function, line, inlined, place } = frame;
    Frame {
        function: function.name.as_deref(),
        module: &function.module,
        file: function.file.as_deref(),
        line: *line,
        inlined: *inlined,
        address: address(*place),
    }
}

/// The text of a frame.
pub(super) fn text(symbolized: &frames::Frame) -> io::Result<Box<RawValue>> {
    let mut serializer =
        serde_json::Serializer::with_formatter(Vec::new(), OneEntryPerLine::in_an_entry());
    frame(symbolized).serialize(&mut serializer)?;
    // JSON is UTF-8, and this is JSON: both checks cost little beside the names.
    let text = String::from_utf8(serializer.into_inner()).map_err(io::Error::other)?;
    Ok(RawValue::from_string(text)?)
}
