//! The tracer's thread: the ring to batches of records, until the end.
//!
//! Besides, marks take their place among the records, processes that match are attached to, and those
//! that come to their end are scanned for lost blocks.

use std::sync::mpsc::Receiver as RequestReceiver;
use std::time::{Duration, Instant};

use super::SessionError;
use super::scan::{Progress, ScanError, Scans};
use super::stop::Stop;
use crate::batches::{BATCH_RECORDS, ReceiverGone, Sender};
use crate::control::Request;
use crate::live::allocators::survey::Verdict;
use crate::live::selection::Selection;
use crate::live::tracer::{Drained, Tracer};
use crate::lost::LostBlocks;
use crate::operations::Finder;
use crate::record::EndReason;

/// How long the tracer sleeps when the ring is empty: less costs the daemon more, more saves hardly
/// anything.
pub(super) const IDLE: Duration = Duration::from_millis(40);

/// The same while a process that is at its end waits for a scan.
const SCANNING: Duration = Duration::from_millis(2);

/// How often time passes for an idle target, and the daemon shows the kernel that it lives.
const TICK: Duration = Duration::from_millis(100);

/// How long a mark waits for a ring that never gets empty.
const MARK_PATIENCE: Duration = Duration::from_millis(200);

/// How often processes are looked for that match.
const FOLLOW: Duration = Duration::from_secs(1);

/// Traces until there is a reason to stop; gives what could be traced, and what scans found.
pub(super) fn trace(
    mut tracer: Tracer,
    follow: Option<Selection>,
    mut operations: Option<Finder>,
    stop: &Stop,
    mut batches: Sender,
    marks: &RequestReceiver<Request>,
    mut scans: Option<Scans>,
) -> Result<(Verdict, Option<Result<LostBlocks, ScanError>>), SessionError> {
    let mut next_tick = Instant::now();
    let mut mark = None;
    let mut next_look = Instant::now() + FOLLOW;
    let reason = loop {
        if let Some(scans) = &mut scans {
            scans.note_look(&tracer);
        }
        let drained = tracer.drain(BATCH_RECORDS)?;
        if Instant::now() >= next_tick {
            tracer.tick()?;
            next_tick = Instant::now() + TICK;
        }
        if mark.is_none() {
            mark = marks.try_recv().ok().map(|request| (request, Instant::now()));
        }
        // What is in the ring came before the mark.
        let is_next = |(_, asked): &mut (_, Instant)| {
            drained == Drained::All || asked.elapsed() > MARK_PATIENCE
        };
        if let Some((Request::Mark(text, answer), _)) = mark.take_if(is_next) {
            let time = tracer.mark(text);
            // A client that is gone needs no answer.
            let _ = answer.send(time);
        }
        if let Some(selection) = &follow
            && Instant::now() >= next_look
        {
            tracer.attach_to_matching(selection)?;
            next_look = Instant::now() + FOLLOW;
        }
        let is_wanted = scans.as_ref().is_some_and(|scans| scans.wants_records(&tracer));
        let ready = tracer.records();
        let reason = stop.reason();
        let is_batch = drained == Drained::Some || ready.len() > 1 || is_wanted;
        if let Some(operations) = operations.as_mut().filter(|_| is_batch) {
            operations.insert(ready);
        }
        if !ready.is_empty()
            && is_batch
            && let Err(ReceiverGone) = batches.send(ready)
        {
            break EndReason::Interrupted;
        }
        let scanning = match &mut scans {
            Some(scans) => {
                scans.go_on(&mut tracer, batches.sent(), reason).map_err(SessionError::Thread)?
            }
            None => Progress::Idle,
        };
        if scanning == Progress::Idle {
            if tracer.is_done() && follow.is_none() {
                break EndReason::TargetExited;
            }
            if let Some(reason) = reason {
                break reason;
            }
        }
        if drained == Drained::All {
            tracer.wait(match scanning {
                Progress::Idle => IDLE,
                Progress::Scans => SCANNING,
            });
        }
    };
    let (mut records, verdict) = tracer.finish(reason)?;
    if let Some(operations) = &mut operations {
        operations.insert(&mut records);
    }
    // A receiver that is gone has failed, and says why itself.
    let _ = batches.send(&mut records);
    Ok((verdict, scans.and_then(Scans::finish)))
}
