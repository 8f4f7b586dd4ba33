//! A live session: from a target to a trace file and snapshots.

use std::ffi::OsString;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::pipeline::snapshot::Snapshot;
use crate::record::Pid;

/// What to trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Running processes.
    Attach(Vec<Pid>),
    /// A command, from its first instruction, and its children.
    Launch(Vec<OsString>),
}

/// How to trace it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordOptions {
    /// What to trace.
    pub target: Target,
    /// The trace file, if there is to be one.
    pub output: Option<PathBuf>,
    /// When to stop; without it, at the target's end or on Ctrl-C.
    pub duration: Option<Duration>,
    /// Size of the ring buffers together, in bytes.
    pub ring_bytes: u64,
    /// Time between two snapshots.
    pub snapshot_interval: Duration,
}

/// What a session did.
#[derive(Clone, Debug)]
pub struct SessionSummary {}

/// Why a session cannot start or go on.
#[derive(Debug, Error)]
pub enum SessionError {
    /// Placeholder.
    #[error("this build cannot attach to processes")]
    Unsupported,
}

/// Traces until the end, the duration is over, Ctrl-C, or `on_snapshot` breaks off.
pub fn run(
    options: RecordOptions,
    on_snapshot: impl FnMut(&Arc<Snapshot>) -> ControlFlow<()>,
) -> Result<SessionSummary, SessionError> {
    let _ = (options, on_snapshot);
    Err(SessionError::Unsupported)
}
