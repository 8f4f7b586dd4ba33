//! The operator's log on stderr, which keeps quiet while a screen is shown.
//!
//! A line on stderr in the middle of a full screen would destroy both. So while a [`Held`] lives,
//! lines are kept in memory, the newest left out if there are too many, and written when the
//! screen is gone.

use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing_subscriber::EnvFilter;

use super::terminal;

/// Bytes of log that are kept while a screen is shown.
const HELD_BYTES: usize = 1 << 16;

/// Lines that wait for the screen to go; `None` while there is none.
static WAITING: Mutex<Option<Vec<u8>>> = Mutex::new(None);

/// Starts the log; `verbose` is how often the user asked for more.
pub(crate) fn start(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        2.. => "debug",
    };
    let filter = EnvFilter::try_from_env("MEMTRACE_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| Log)
        .with_ansi(terminal::colour(&io::stderr()))
        .with_target(false)
        .init();
}

/// Keeps the log off the terminal while it lives.
pub(crate) struct Held(());

/// Begins to keep the log.
pub(crate) fn hold() -> Held {
    *waiting() = Some(Vec::new());
    Held(())
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(lines) = waiting().take() {
            // Nowhere is left to say that stderr is closed.
            let _ = io::stderr().write_all(&lines);
        }
    }
}

/// Where the log goes now.
struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut *waiting() {
            Some(lines) => {
                if lines.len() + bytes.len() <= HELD_BYTES {
                    lines.extend_from_slice(bytes);
                }
                Ok(bytes.len())
            }
            None => io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn waiting() -> MutexGuard<'static, Option<Vec<u8>>> {
    WAITING.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_waits_while_it_is_held_and_is_bounded() {
        let held = hold();

        Log.write_all(b"a line\n").expect("memory");
        assert_eq!(waiting().as_deref(), Some(&b"a line\n"[..]));
        Log.write_all(&[b'x'; HELD_BYTES]).expect("left out");
        assert_eq!(waiting().as_deref(), Some(&b"a line\n"[..]));

        drop(held);
        assert_eq!(*waiting(), None);
    }
}
