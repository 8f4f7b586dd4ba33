//! The pipeline's thread: batches of records to snapshots.
//!
//! What else asks for the state between two batches is answered here: keyframes, heap snapshots on
//! request or when their time has come, and the scan for lost blocks.

use std::sync::Arc;
use std::sync::mpsc::Receiver as RequestReceiver;
use std::time::Instant;

use tokio::sync::mpsc;

use super::scan::Desk;
use super::snapshots::Snapshots;
use super::{Apply, Updates, keyframes};
use crate::batches::Receiver;
use crate::control::Request;
use crate::heap_snapshot;
use crate::pipeline::Pipeline;
use crate::pipeline::snapshot::{Glance, Snapshot};
use crate::record::Record;

/// What the session tells at a moment.
pub(super) enum Update {
    Glance(Glance),
    Snapshot(Arc<Snapshot>),
}

/// Applies all batches; gives the last snapshot.
pub(super) fn count(
    batches: &Receiver,
    mut pipeline: Pipeline,
    apply: &mut Apply,
    updates: Updates,
    receiver: &mpsc::Sender<Update>,
    aside: &mut Aside,
) -> Arc<Snapshot> {
    let (Updates::Glances(interval) | Updates::Snapshots(interval)) = updates;
    let mut next = Instant::now() + interval;
    for batch in batches {
        apply(&mut pipeline, &batch);
        aside.look(&mut pipeline, &batch);
        if Instant::now() >= next {
            // A view that is still busy with the last one does not need this one.
            if let Ok(place) = receiver.try_reserve() {
                place.send(match updates {
                    Updates::Glances(_) => Update::Glance(pipeline.glance()),
                    Updates::Snapshots(_) => Update::Snapshot(pipeline.snapshot()),
                });
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
