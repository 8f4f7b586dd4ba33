//! Keyframes: now and then, the pipeline's thread gives the writer what is held.
//!
//! ```text
//!   pipeline ── Keyframe ──→ writer      never waits while the session runs: one that finds the
//!            ←─ bytes written ──         writer busy is left out, and the next one comes soon
//! ```
//!
//! [`Spacing`] says when one is due.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use crate::heap_snapshot::{self, MAX_PIECES, Spacing};
use crate::pipeline::{Pipeline, Purpose};
use crate::record::Level;

/// A keyframe that is ready to be written.
#[derive(Debug)]
pub(super) struct Keyframe {
    pub(super) level: Level,
    /// Empty if too much is held.
    pub(super) snapshot: Vec<u8>,
}

/// The pipeline's end.
#[derive(Debug)]
pub(super) struct Maker {
    to_writer: SyncSender<Keyframe>,
    written: Arc<AtomicU64>,
    spacing: Spacing,
}

/// The writer's end.
#[derive(Debug)]
pub(super) struct Taker {
    from_pipeline: Receiver<Keyframe>,
    written: Arc<AtomicU64>,
}

pub(super) fn channel() -> (Maker, Taker) {
    let (to_writer, from_pipeline) = sync_channel(1);
    let written = Arc::new(AtomicU64::new(0));
    let maker = Maker { to_writer, written: Arc::clone(&written), spacing: Spacing::new() };
    (maker, Taker { from_pipeline, written })
}

impl Maker {
    /// Makes a keyframe if it is time for one.
    pub(super) fn look(&mut self, pipeline: &mut Pipeline) {
        let written = self.written.load(Ordering::Relaxed);
        if !self.spacing.is_due(written) {
            return;
        }
        let snapshot = match pipeline.held_pieces() {
            0..=MAX_PIECES => {
                heap_snapshot::encode(pipeline, Purpose::GoOn).unwrap_or_else(|error| {
                    tracing::debug!("no keyframe: {error}");
                    Vec::new()
                })
            }
            _ => Vec::new(),
        };
        self.spacing.made(written, snapshot.len());
        match self.to_writer.try_send(Keyframe { level: pipeline.level(), snapshot }) {
            Ok(()) => pipeline.restart_level(),
            // A writer that is gone says why itself.
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
        }
    }

    /// Tells the level at the end, when the writer waits for nothing else.
    pub(super) fn finish(self, pipeline: &Pipeline) {
        // A writer that is gone says why itself.
        let _ = self.to_writer.send(Keyframe { level: pipeline.level(), snapshot: Vec::new() });
    }
}

impl Taker {
    /// The keyframe that is ready, if one is; `written` is how many bytes the trace has.
    pub(super) fn take(&self, written: u64) -> Option<Keyframe> {
        self.written.store(written, Ordering::Relaxed);
        self.from_pipeline.try_recv().ok()
    }

    /// Those that still come, until the pipeline ends.
    pub(super) fn rest(&self) -> impl Iterator<Item = Keyframe> {
        self.from_pipeline.iter()
    }
}
