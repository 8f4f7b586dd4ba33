//! A heap snapshot: what running processes hold at one moment, as a trace.
//!
//! It is complete in itself: a report of it, now or on another machine, finds the names by itself,
//! and everything that reads traces reads it. A keyframe of a trace is one too.

use crate::pipeline::{Pipeline, Purpose};
use crate::trace::{WriteError, Writer};

/// The most blocks and mappings of a snapshot: 160 MB while it is made.
pub const MAX_PIECES: usize = 1 << 22;

/// The bytes of a snapshot of what the pipeline holds.
pub fn encode(pipeline: &Pipeline, purpose: Purpose) -> Result<Vec<u8>, WriteError> {
    let mut writer = Writer::new(Vec::new())?;
    pipeline.held(purpose, &mut |record| writer.write(record))?;
    writer.finish()
}

/// A snapshot to show, or why there is none.
pub(crate) fn encode_within_limits(pipeline: &Pipeline) -> Result<Vec<u8>, String> {
    match pipeline.held_pieces() {
        0..=MAX_PIECES => encode(pipeline, Purpose::Show).map_err(|error| error.to_string()),
        pieces => Err(format!(
            "{pieces} blocks are held, and a snapshot has {MAX_PIECES} at most; use \
             `memtrace report --at` on the trace"
        )),
    }
}
