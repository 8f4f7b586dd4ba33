//! The control socket of a recording memtrace: marks and heap snapshots on request.
//!
//! ```text
//!   /run/memtrace/4711.sock      one for each process that the session was started for
//!
//!   mark after warm-up\n     →   ok 12340000000\n             time of the mark, nanoseconds
//!   snapshot\n               →   ok 81234\n and so many bytes  a trace of what is held
//!   anything else\n          →   error WHAT TO DO\n
//! ```
//!
//! One request for each connection. The directory and the sockets are root's alone: who may trace
//! may ask. A socket that nobody listens on was left by a memtrace that was killed; the next one
//! takes its place.

pub mod client;
mod server;

pub(crate) use server::{Control, Request, Requests};

use std::path::{Path, PathBuf};

use crate::record::Pid;

/// Where the sockets are.
const DIRECTORY: &str = "/run/memtrace";

/// The longest line of a request or an answer.
pub const MAX_LINE_BYTES: usize = 4096;

/// The longest text of a mark.
pub const MAX_MARK_BYTES: usize = 1024;

fn socket_of(pid: Pid) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{}.sock", pid.0))
}
