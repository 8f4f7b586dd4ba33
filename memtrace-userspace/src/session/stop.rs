//! The end of a session: what asks for it, and the thread of the caller that waits for it.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::pipeline::Update;
use super::{Progress, RecordOptions, Target};
use crate::record::EndReason;

/// How long a launched program has after Ctrl-C, which it gets too, to end by itself.
const GRACE: Duration = Duration::from_secs(2);

/// The signals that end a session.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    pub(super) fn listen() -> std::io::Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }
}

/// What asks the tracer to end.
#[derive(Debug, Default)]
pub(super) struct Stop {
    pub(super) interrupted: AtomicBool,
    duration_over: AtomicBool,
}

impl Stop {
    pub(super) fn reason(&self) -> Option<EndReason> {
        if self.interrupted.load(Ordering::Relaxed) {
            Some(EndReason::Interrupted)
        } else if self.duration_over.load(Ordering::Relaxed) {
            Some(EndReason::DurationOver)
        } else {
            None
        }
    }
}

/// Waits for the end of the session, for signals and for time, and hands snapshots on.
pub(super) async fn attend(
    options: &RecordOptions,
    stop: &Stop,
    signals: &mut Signals,
    updates: &mut mpsc::Receiver<Update>,
    on_progress: &mut impl FnMut(Progress<'_>) -> ControlFlow<()>,
) {
    let Signals { interrupt, terminate, hang_up } = signals;
    let far = Duration::from_secs(u32::MAX.into());
    let duration = tokio::time::sleep(options.duration.unwrap_or(far));
    tokio::pin!(duration);
    let grace = tokio::time::sleep(far);
    tokio::pin!(grace);
    loop {
        tokio::select! {
            update = updates.recv() => {
                let progress = match &update {
                    Some(Update::Glance(glance)) => Progress::Glance(glance),
                    Some(Update::Snapshot(snapshot)) => Progress::Snapshot(snapshot),
                    None => return,
                };
                if on_progress(progress).is_break() {
                    stop.interrupted.store(true, Ordering::Relaxed);
                }
            },
            _ = interrupt.recv() => match options.target {
                // The command has got the signal too.
                Target::Launch(_) if !grace_is_running(&grace, far) => {
                    grace.as_mut().reset(tokio::time::Instant::now() + GRACE);
                }
                Target::Launch(_) | Target::Attach(_) => {
                    stop.interrupted.store(true, Ordering::Relaxed);
                }
            },
            _ = terminate.recv() => stop.interrupted.store(true, Ordering::Relaxed),
            _ = hang_up.recv() => stop.interrupted.store(true, Ordering::Relaxed),
            () = &mut grace, if !grace.is_elapsed() => {
                stop.interrupted.store(true, Ordering::Relaxed);
            }
            () = &mut duration, if !duration.is_elapsed() => {
                stop.duration_over.store(true, Ordering::Relaxed);
            }
        }
    }
}

fn grace_is_running(grace: &tokio::time::Sleep, far: Duration) -> bool {
    grace.deadline() < tokio::time::Instant::now() + far / 2
}
