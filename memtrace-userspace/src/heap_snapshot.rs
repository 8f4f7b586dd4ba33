//! A heap snapshot: what running processes hold at one moment, as a trace.
//!
//! It is complete in itself: a report of it, now or on another machine, finds the names by itself,
//! and everything that reads traces reads it. A keyframe of a trace is one too.

use crate::pipeline::{Pipeline, Purpose};
use crate::trace::{WriteError, Writer};

/// The most blocks and mappings of a snapshot: 160 MB while it is made.
pub const MAX_PIECES: usize = 1 << 22;

/// Bytes of trace between two keyframes, at least: 2 to 6 million events.
const SPACING_BYTES: u64 = 4 << 20;

/// Bytes of trace for each byte of keyframe, at least.
const SPACING_FACTOR: u64 = 4;

/// When a trace needs a keyframe.
///
/// So often that little is read before a range, and so seldom that keyframes are a fifth of the
/// trace at most.
#[derive(Debug)]
pub struct Spacing {
    next_at: u64,
}

impl Spacing {
    /// Nothing is written yet.
    #[expect(clippy::new_without_default, reason = "a spacing is of a trace that begins")]
    pub fn new() -> Spacing {
        Spacing { next_at: SPACING_BYTES }
    }

    /// Whether one is due when the trace has `written` bytes.
    pub fn is_due(&self, written: u64) -> bool {
        written >= self.next_at
    }

    /// Notes that one of `bytes` was made.
    pub fn made(&mut self, written: u64, bytes: usize) {
        let cost = SPACING_FACTOR.saturating_mul(bytes as u64);
        self.next_at = written.saturating_add(cost.max(SPACING_BYTES));
    }
}

/// The bytes of a snapshot of what the pipeline holds.
pub fn encode(pipeline: &Pipeline, purpose: Purpose) -> Result<Vec<u8>, WriteError> {
    let mut writer = Writer::new(Vec::new())?;
    pipeline.tell_held(purpose, &mut |record| writer.write(record))?;
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
