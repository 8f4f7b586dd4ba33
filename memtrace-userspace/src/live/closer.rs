//! Closing links without waiting for it.
//!
//! Each link waits for the kernel's grace period, and the kernel closes one after the other under
//! one lock: about 80 ms each. So one thread closes them all, and the tracer goes on.

use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use super::probes::Link;

/// The thread that closes links, and the way to it.
pub(super) struct Closer {
    /// `None` once all are closed.
    running: Option<(Sender<Vec<Link>>, JoinHandle<()>)>,
}

impl Closer {
    /// Starts the thread.
    pub(super) fn start() -> Self {
        let (links, received) = channel();
        let thread = std::thread::spawn(move || received.into_iter().for_each(drop));
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
