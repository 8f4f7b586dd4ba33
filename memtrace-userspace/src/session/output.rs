//! The trace file of a session.
//!
//! In: batches of records. Out: blocks in the file, at least one a second. A file that was there
//! keeps what it holds until the session has started, so that a mistyped process id costs no trace.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::SessionError;
use super::keyframes::{self, Keyframe};
use crate::batches::Receiver;
use crate::trace::Writer;

/// How old a record may grow before it is in the file, where it survives memtrace.
const FLUSH: Duration = Duration::from_secs(1);

/// The trace file, open but untouched until the session has started.
pub(super) struct Output {
    path: PathBuf,
    file: File,
    origin: FileOrigin,
}

/// Where the trace file came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FileOrigin {
    /// It was there, and what it holds is worth keeping until there is something new.
    Found,
    /// This session made it.
    Made,
}

impl Output {
    pub(super) fn open(path: &Path) -> Result<Output, SessionError> {
        let failed = |source| SessionError::Create { path: path.to_owned(), source };
        let made = OpenOptions::new().write(true).create_new(true).open(path);
        let (file, origin) = match made {
            Ok(file) => (file, FileOrigin::Made),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let found = OpenOptions::new().write(true).create(true).truncate(false).open(path);
                (found.map_err(failed)?, FileOrigin::Found)
            }
            Err(error) => return Err(failed(error)),
        };
        Ok(Output { path: path.to_owned(), file, origin })
    }

    /// Forgets what a file that was there held; pipes and devices hold nothing.
    fn empty(&self) -> io::Result<()> {
        if self.file.metadata()?.is_file() { self.file.set_len(0) } else { Ok(()) }
    }

    /// Leaves everything as it was before a session that did not start.
    pub(super) fn discard(self) {
        if self.origin == FileOrigin::Made
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!("the empty file {} is left: {error}", self.path.display());
        }
    }

    /// The writer thread: gives the size of the file.
    pub(super) fn write(
        self,
        batches: &Receiver,
        keyframes: &keyframes::Taker,
    ) -> Result<u64, SessionError> {
        let path = self.path.clone();
        self.empty().map_err(|source| SessionError::Create { path: path.clone(), source })?;
        let failed = |source| SessionError::Write { path: path.clone(), source };
        let mut writer =
            Writer::new(BufWriter::with_capacity(1 << 18, self.file)).map_err(failed)?;
        let mut next_flush = Instant::now() + FLUSH;
        for batch in batches {
            writer.write_all(&batch).map_err(failed)?;
            if let Some(Keyframe { level, snapshot }) = keyframes.take(writer.bytes_written()) {
                writer.write_keyframe(&level, &snapshot).map_err(failed)?;
            }
            // Ticks come even from an idle target, so there is always a next batch.
            if Instant::now() >= next_flush {
                writer.flush_block().map_err(failed)?;
                next_flush = Instant::now() + FLUSH;
            }
        }
        for Keyframe { level, snapshot } in keyframes.rest() {
            writer.write_keyframe(&level, &snapshot).map_err(failed)?;
        }
        writer.finish().map_err(failed)?;
        Ok(std::fs::metadata(&path).map_or(0, |metadata| metadata.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batches::Sender;

    #[test]
    fn older_trace_survives_a_session_that_does_not_start() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("old.mtrace");
        std::fs::write(&path, "older").expect("temp file");

        Output::open(&path).expect("it can be written").discard();

        assert_eq!(std::fs::read(&path).expect("it is there"), b"older");
    }

    #[test]
    fn new_file_of_a_session_that_does_not_start_is_removed() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("new.mtrace");

        Output::open(&path).expect("it can be made").discard();

        assert!(!path.exists());
    }

    #[test]
    fn older_trace_is_replaced_by_a_session_that_starts() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("old.mtrace");
        std::fs::write(&path, vec![b'x'; 4096]).expect("temp file");
        let batches = Sender::new(1).subscribe();

        let (make, take) = keyframes::channel();
        drop(make);

        let bytes = Output::open(&path).expect("it can be written").write(&batches, &take);

        let bytes = bytes.expect("the disk has room");
        assert!(bytes < 100, "{bytes} bytes for no record");
    }
}
