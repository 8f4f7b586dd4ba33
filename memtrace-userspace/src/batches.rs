//! Records on their way from one thread to others, many at a time.
//!
//! ```text
//!   Sender ─→ Batch, Batch, … ─┬→ Receiver        as many receivers as subscribe
//!      ↑                       └→ Receiver
//!      └── empty vectors ←── a batch that everybody is done with
//! ```
//!
//! Channels are bounded, so a sender waits for its slowest receiver. Vectors are used again:
//! giving a megabyte back to the kernel and asking for it anew costs more than filling it.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender, sync_channel};

use crate::record::Record;

/// Records that are handed on together, about: as many as a busy target makes while the tracer sleeps.
///
/// A thread that gets its turn finds the processor's cache full of others' data, so turns are to be
/// long.
pub const BATCH_RECORDS: usize = 16_384;

/// Of so many records, what they need of the memory is loaded together, by those who apply or write
/// them: then they wait for it once.
pub(crate) const RECORDS_LOADED_TOGETHER: usize = 16;

/// Vectors that have grown beyond this are not kept.
const KEPT_RECORDS: usize = 4 * BATCH_RECORDS;

/// Where batches come out, in the order in which they went in; ends when the sender is gone.
pub type Receiver = mpsc::Receiver<Batch>;

/// A batch of records, shared by all receivers.
#[derive(Clone, Debug)]
pub struct Batch(Arc<Records>);

#[derive(Debug)]
struct Records {
    records: Vec<Record>,
    used: SyncSender<Vec<Record>>,
}

impl Deref for Batch {
    type Target = [Record];

    fn deref(&self) -> &[Record] {
        &self.0.records
    }
}

impl Drop for Records {
    fn drop(&mut self) {
        if self.records.capacity() <= KEPT_RECORDS {
            self.records.clear();
            // If there are enough already, or the sender is gone, this one is freed.
            let _ = self.used.try_send(std::mem::take(&mut self.records));
        }
    }
}

/// Where batches go in.
#[derive(Debug)]
pub struct Sender {
    /// How many batches may wait for one receiver.
    waiting: usize,
    receivers: Vec<SyncSender<Batch>>,
    used: SyncSender<Vec<Record>>,
    empty: mpsc::Receiver<Vec<Record>>,
    sent: u64,
}

/// A receiver has gone before the end. It says itself why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiverGone;

impl Sender {
    /// A sender that nobody listens to yet, with room for `waiting` batches before each receiver.
    pub fn new(waiting: usize) -> Sender {
        // Besides those that wait, one is at each end.
        let (used, empty) = sync_channel(waiting + 2);
        Sender { waiting, receivers: Vec::new(), used, empty, sent: 0 }
    }

    /// A receiver of all batches that are sent from now on.
    pub fn subscribe(&mut self) -> Receiver {
        let (sender, receiver) = sync_channel(self.waiting);
        self.receivers.push(sender);
        receiver
    }

    /// How many batches were sent.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Sends the records and leaves an empty vector with room for a batch in their place.
    pub fn send(&mut self, records: &mut Vec<Record>) -> Result<(), ReceiverGone> {
        let empty = self.empty.try_recv().unwrap_or_default();
        let records = std::mem::replace(records, empty);
        let batch = Batch(Arc::new(Records { records, used: self.used.clone() }));
        self.sent += 1;
        let sent = self.receivers.iter().try_for_each(|to| to.send(batch.clone()));
        sent.map_err(|_| ReceiverGone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Time;

    fn ticks(times: impl IntoIterator<Item = u64>) -> Vec<Record> {
        times.into_iter().map(|time| Record::Tick { time: Time(time) }).collect()
    }

    #[test]
    fn every_receiver_gets_every_batch_in_order() {
        let mut sender = Sender::new(2);
        let receivers = [sender.subscribe(), sender.subscribe()];

        sender.send(&mut ticks([1, 2])).expect("both listen");
        sender.send(&mut ticks([3])).expect("both listen");
        drop(sender);

        for receiver in receivers {
            let got: Vec<Record> = receiver.iter().flat_map(|batch| batch.to_vec()).collect();
            assert_eq!(got, ticks([1, 2, 3]));
        }
    }

    #[test]
    fn vector_of_a_batch_comes_back_when_the_last_receiver_is_done() {
        let mut sender = Sender::new(1);
        let receivers = [sender.subscribe(), sender.subscribe()];
        let mut records = Vec::with_capacity(100);
        records.append(&mut ticks([1]));

        sender.send(&mut records).expect("both listen");
        assert_eq!(records.capacity(), 0);
        drop(receivers[0].recv());
        drop(receivers[1].recv());
        sender.send(&mut records).expect("both listen");

        assert_eq!((records.len(), records.capacity()), (0, 100));
    }

    #[test]
    fn vector_that_has_grown_large_is_not_kept() {
        let mut sender = Sender::new(1);
        let receiver = sender.subscribe();
        let mut records = Vec::with_capacity(KEPT_RECORDS + 1);

        sender.send(&mut records).expect("it listens");
        drop(receiver.recv());
        sender.send(&mut records).expect("it listens");

        assert_eq!(records.capacity(), 0);
    }

    #[test]
    fn sender_learns_that_a_receiver_is_gone() {
        let mut sender = Sender::new(1);
        let _listens = sender.subscribe();
        drop(sender.subscribe());

        assert_eq!(sender.send(&mut ticks([1])), Err(ReceiverGone));
    }
}
