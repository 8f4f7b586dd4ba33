//! Closing links without waiting for it.
//!
//! Whoever closes a link waits for a grace period of the kernel, some 50 ms. Links that are closed
//! at the same time share one:
//!
//! ```text
//!   tracer    close ·· close, close ·· goes on
//!   closer    ├ batch ────────┤├ batch ────────┤
//! ```
//!
//! So it does not matter how many links come while a batch is under way. Only perf links do not
//! share: the kernel closes them one after the other under one mutex, for which attaching waits
//! too. They are closed one by one, so that an attach gets its turn.

use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use super::probes::Link;

/// Links that are closed at the same time, each by a thread.
const AT_ONCE: usize = 64;

/// The thread that closes links, and the way to it.
pub(super) struct Closer {
    /// `None` once all are closed.
    running: Option<(Sender<Vec<Link>>, JoinHandle<()>)>,
}

impl Closer {
    /// Starts the thread.
    pub(super) fn start() -> Self {
        let (links, received) = channel::<Vec<Link>>();
        let thread = std::thread::spawn(move || {
            while let Ok(first) = received.recv() {
                close_all(received.try_iter().fold(first, |mut batch, links| {
                    batch.extend(links);
                    batch
                }));
            }
        });
        Closer { running: Some((links, thread)) }
    }

    /// Closes `links` soon.
    pub(super) fn close(&self, links: Vec<Link>) {
        if let Some((sender, _)) = &self.running {
            // The thread ends after the sender; were it gone, `links` would be closed here.
            let _ = sender.send(links);
        }
    }

    /// Waits until all links are closed.
    pub(super) fn finish(&mut self) {
        if let Some((sender, thread)) = self.running.take() {
            drop(sender);
            // It only drops links; it has nothing to say.
            let _ = thread.join();
        }
    }
}

fn close_all(mut links: Vec<Link>) {
    while !links.is_empty() {
        let some = links.split_off(links.len().saturating_sub(AT_ONCE));
        std::thread::scope(|threads| {
            for link in some {
                match link {
                    Link::Multi(_) => {
                        threads.spawn(move || drop(link));
                    }
                    Link::Perf(_) => drop(link),
                }
            }
        });
    }
}
