//! Asking a recording memtrace.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use thiserror::Error;

use super::{MAX_LINE_BYTES, MAX_MARK_BYTES, socket_of};
use crate::record::{Pid, Time};

/// How long the recorder may be silent.
const PATIENCE: Duration = Duration::from_secs(90);

/// The most bytes of a snapshot that are believed.
const MAX_SNAPSHOT_BYTES: u64 = 1 << 30;

/// Why a request failed.
#[derive(Debug, Error)]
pub enum ControlError {
    /// No memtrace listens for this process.
    #[error(
        "nobody records process {pid}; start `memtrace record -p {pid}` first, and name the \
         process that it was given or that it started"
    )]
    NotRecorded {
        /// The process.
        pid: u32,
    },
    /// The socket is another user's.
    #[error("may not ask the memtrace that records process {pid}; use sudo")]
    NotAllowed {
        /// The process.
        pid: u32,
    },
    /// The recorder said no.
    #[error("the recording memtrace refused: {0}")]
    Refused(String),
    /// It said nothing that makes sense, or stopped in the middle.
    #[error("the recording memtrace did not answer; see whether it still runs")]
    Io(#[source] io::Error),
    /// No mark.
    #[error("the text of a mark has 1 to {MAX_MARK_BYTES} bytes and no line breaks; shorten it")]
    Text,
}

/// Marks this moment in the trace of whoever records the process.
pub fn mark(pid: Pid, text: &str) -> Result<Time, ControlError> {
    if text.is_empty() || text.len() > MAX_MARK_BYTES || text.contains('\n') {
        return Err(ControlError::Text);
    }
    let (number, _) = ask(pid, &format!("mark {text}\n"))?;
    Ok(Time(number))
}

/// A heap snapshot of what whoever records the process has seen: a trace.
pub fn snapshot(pid: Pid) -> Result<Vec<u8>, ControlError> {
    let (length, answer) = ask(pid, "snapshot\n")?;
    let mut bytes = Vec::new();
    if length <= MAX_SNAPSHOT_BYTES {
        answer.take(length).read_to_end(&mut bytes).map_err(ControlError::Io)?;
    }
    if bytes.len() as u64 != length {
        return Err(ControlError::Io(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(bytes)
}

/// Sends a request; gives the number of the answer, and what follows.
fn ask(pid: Pid, request: &str) -> Result<(u64, impl Read), ControlError> {
    let mut stream = UnixStream::connect(socket_of(pid)).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ControlError::NotRecorded { pid: pid.0 }
        }
        io::ErrorKind::PermissionDenied => ControlError::NotAllowed { pid: pid.0 },
        _ => ControlError::Io(error),
    })?;
    let set = stream.set_read_timeout(Some(PATIENCE));
    set.and_then(|()| stream.write_all(request.as_bytes())).map_err(ControlError::Io)?;
    let mut answer = BufReader::new(stream);
    let mut line = String::new();
    let first = answer.by_ref().take(MAX_LINE_BYTES as u64).read_line(&mut line);
    first.map_err(ControlError::Io)?;
    let line = line.trim_end();
    match line.strip_prefix("ok ").map(str::parse) {
        Some(Ok(number)) => Ok((number, answer)),
        Some(Err(_)) => Err(ControlError::Io(io::ErrorKind::InvalidData.into())),
        None => match line.strip_prefix("error ") {
            Some(why) => Err(ControlError::Refused(why.to_owned())),
            None => Err(ControlError::Io(io::ErrorKind::InvalidData.into())),
        },
    }
}
