//! The pipeline's thread: batches of records to snapshots.
//!
//! What else asks for the state between two batches is answered here: keyframes, heap snapshots on
//! request or when their time has come, and the scan for lost blocks.

use std::sync::Arc;
use std::sync::mpsc::Receiver as RequestReceiver;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::scan::Desk;
use super::snapshots::Snapshots;
use super::{Apply, keyframes};
use crate::batches::Receiver;
use crate::control::Request;
use crate::heap_snapshot;
use crate::pipeline::Pipeline;
use crate::pipeline::snapshot::Snapshot;
use crate::record::Record;

/// Applies all batches; gives the last snapshot.
pub(super) fn count(
    batches: &Receiver,
    mut pipeline: Pipeline,
    apply: &mut Apply,
    interval: Duration,
    snapshots: &mpsc::Sender<Arc<Snapshot>>,
    aside: &mut Aside,
) -> Arc<Snapshot> {
    let mut next = Instant::now() + interval;
    for batch in batches {
        apply(&mut pipeline, &batch);
        aside.look(&mut pipeline, &batch);
        if Instant::now() >= next {
            // A view that is still busy with the last one does not need this one.
            if snapshots.try_reserve().is_ok_and(|place| {
                place.send(pipeline.snapshot());
                true
            }) {
                next = Instant::now() + interval;
            }
        }
    }
    if let Some(keyframes) = aside.keyframes.take() {
        keyframes.finish(&pipeline);
    }
    pipeline.snapshot()
}

/// What the pipeline's thread does besides.
pub(super) struct Aside {
    pub(super) keyframes: Option<keyframes::Maker>,
    pub(super) requests: RequestReceiver<Request>,
    pub(super) snapshots: Option<Snapshots>,
    pub(super) desk: Desk,
}

impl Aside {
    fn look(&mut self, pipeline: &mut Pipeline, batch: &[Record]) {
        self.desk.applied(pipeline, batch);
        if let Some(keyframes) = &mut self.keyframes {
            keyframes.look(pipeline);
        }
        if let Some(snapshots) = &mut self.snapshots {
            snapshots.look(pipeline);
        }
        if let Ok(Request::Snapshot(answer)) = self.requests.try_recv() {
            // A client that is gone needs no answer.
            let _ = answer.send(heap_snapshot::encode_within_limits(pipeline));
        }
    }
}
