//! Looking for lost blocks at the end of a session, or of each process of a command, while probes are
//! still in place.
//!
//! ```text
//!   scanner    blocks? ─→ index ─→ stop, read, let go ─→ what changed? ─→ judge ─→ call paths?
//!   pipeline      └→ held, log begins ··················· log up to the look ┘
//!   tracer     drains all the while; after the look, says which batch holds what came before
//! ```
//!
//! The blocks are taken and put in order while the process runs on: that can take a second, and a
//! process should stand still for no longer than its memory is read. A block that is released,
//! allocated or moved between that and the look is not judged. For that the pipeline's thread keeps
//! a log, which is complete once every event from before the look has been applied.
//!
//! One process is looked at after the other: those that stand still at their end first, then, when
//! the session is to end, those that run.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;

use memtrace_common::addr::Avma;
use memtrace_common::event::Api;
use thiserror::Error;

use crate::hash::Seed;
use crate::live::heap_scan::{self, Stop};
use crate::live::process;
use crate::live::tracer::Tracer;
use crate::lost::{
    Amount, Losses, LostBlocks, LostStack, NotRead, ProcessLosses, by_site, judgeable, span,
};
use crate::pipeline::snapshot::Stack;
use crate::pipeline::{FreedRanges, HeldBlock, Pipeline, SiteId};
use crate::reach::{Blocks, Cost, Span, judge};
use crate::record::{EndReason, Pid, Record};

/// The most addresses that a log keeps: some 500 MB.
const LOG_LIMIT: usize = 1 << 24;

/// What to look at, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanOptions {
    /// Whether the process stands still meanwhile.
    pub stop: Stop,
}

/// Why nothing is known of lost blocks.
#[derive(Debug, Error)]
pub enum ScanError {
    /// The process cannot be looked at.
    #[error(transparent)]
    Look(#[from] heap_scan::ScanError),
    /// It was replaced or ended in the wrong moment.
    #[error("process {pid} ended or ran a new program before its memory was read; attach earlier")]
    Ended {
        /// The process.
        pid: u32,
    },
    /// It does too much at a time.
    #[error(
        "process {pid} allocated and released more than {LOG_LIMIT} blocks while its blocks were \
         put in order; try again when it does less"
    )]
    TooBusy {
        /// The process.
        pid: u32,
    },
    /// The session has ended for another reason, which is told elsewhere.
    #[error("the session ended before the memory of process {pid} was judged")]
    SessionEnded {
        /// The process.
        pid: u32,
    },
}

/// Where the blocks of a process go; `None` if it does not run.
type HeldSender = Sender<Option<Vec<HeldBlock>>>;

/// What the scanner wants to know from the pipeline.
pub(super) enum Question {
    /// The blocks of a process, once so many batches have been applied. The log begins.
    Held(Pid, u64, HeldSender),
    /// The log, once so many batches have been applied.
    Changed(u64, Sender<Changes>),
    /// The call paths of these sites.
    CallPaths(Vec<SiteId>, Sender<Vec<(Arc<Stack>, Api)>>),
}

/// What happened since the blocks were taken.
pub(super) struct Changes {
    addresses: HashSet<Avma, Seed>,
    is_full: bool,
    /// What was released before and is not used since; nothing if events were lost.
    freed: FreedRanges,
    /// Whether the process ended or began a new program.
    has_ended: bool,
}

/// The scanner's place in the pipeline's thread.
pub(super) struct Desk {
    questions: Receiver<Question>,
    batches: u64,
    log: Option<(Pid, Changes)>,
    /// Who waits for the blocks of a process, and for how many batches.
    wants_held: Option<(Pid, u64, HeldSender)>,
    /// Who waits for the log, and for how many batches.
    waiting: Option<(u64, Sender<Changes>)>,
}

impl Desk {
    /// A place for the questions that are asked through the other end.
    pub(super) fn new() -> (Sender<Question>, Desk) {
        let (sender, questions) = mpsc::channel();
        (sender, Desk { questions, batches: 0, log: None, wants_held: None, waiting: None })
    }

    /// Writes the log and answers questions, after the pipeline has applied a batch.
    pub(super) fn applied(&mut self, pipeline: &Pipeline, batch: &[Record]) {
        self.batches += 1;
        if let Some((pid, changes)) = &mut self.log {
            batch.iter().for_each(|record| changes.note(*pid, record, pipeline));
        }
        // A scanner that is gone wants no answers.
        while let Ok(question) = self.questions.try_recv() {
            match question {
                Question::Held(pid, batches, answer) => {
                    self.wants_held = Some((pid, batches, answer));
                }
                Question::Changed(batches, answer) => self.waiting = Some((batches, answer)),
                Question::CallPaths(sites, answer) => {
                    let paths = sites.into_iter().map(|site| pipeline.call_path(site));
                    let _ = answer.send(paths.collect());
                }
            }
        }
        if let Some((pid, _, answer)) =
            self.wants_held.take_if(|(_, batches, _)| *batches <= self.batches)
        {
            self.log = Some((pid, Changes::since(pipeline.freed_ranges(pid))));
            let _ = answer.send(pipeline.held_blocks(pid));
        }
        if let Some((_, answer)) = self.waiting.take_if(|(batches, _)| *batches <= self.batches)
            && let Some((_, mut changes)) = self.log.take()
        {
            // What was released may have been used again, unseen.
            if pipeline.lost_events() > 0 {
                changes.freed = FreedRanges::default();
            }
            let _ = answer.send(changes);
        }
    }
}

impl Changes {
    fn since(freed: FreedRanges) -> Changes {
        let addresses = HashSet::with_hasher(Seed::random());
        Changes { addresses, is_full: false, freed, has_ended: false }
    }

    /// Notes what a record of the process changes. Where a thread has ended by now, nobody knows
    /// whose it was: a block too many is left out then.
    fn note(&mut self, pid: Pid, record: &Record, pipeline: &Pipeline) {
        let of = record.tid().and_then(|tid| pipeline.process_of(tid));
        if of.is_some_and(|of| of != pid) {
            return;
        }
        self.freed.note_use(record);
        match record {
            Record::Alloc { ptr, .. }
            | Record::Free { ptr, .. }
            | Record::Retire { ptr, .. }
            | Record::Restore { ptr, .. } => {
                if self.addresses.len() < LOG_LIMIT {
                    self.addresses.insert(*ptr);
                } else {
                    self.is_full |= !self.addresses.contains(ptr);
                }
            }
            Record::Exec { pid: of, .. } | Record::Exit { pid: of, .. } => {
                self.has_ended |= *of == pid;
            }
            _ => {}
        }
    }
}

/// What is lost of one process, by call path.
struct Found {
    losses: ProcessLosses,
    sites: BTreeMap<SiteId, LostStack>,
}

/// The tracer's side of the scans of a session.
pub(super) struct Scans {
    pid: Pid,
    options: ScanOptions,
    questions: Sender<Question>,
    running: Option<Running>,
    /// What was found so far.
    lost: LostBlocks,
    sites: BTreeMap<SiteId, LostStack>,
    /// Why the process that was named or started was not read.
    failed: Option<ScanError>,
    /// Whether it ended before it could be.
    is_missed: bool,
}

/// A scan under way.
struct Running {
    pid: Pid,
    thread: JoinHandle<Result<Found, ScanError>>,
    has_looked: Arc<AtomicBool>,
    /// How far the ring was written by then: what came before is in there.
    looked_at: Option<u64>,
    /// Where the log goes; taken when it is asked for.
    changes: Option<Sender<Changes>>,
}

/// How far the scans are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// A process is being scanned.
    Scans,
    /// There is nothing to scan now.
    Idle,
}

impl Scans {
    pub(super) fn new(pid: Pid, options: ScanOptions, questions: Sender<Question>) -> Scans {
        Scans {
            pid,
            options,
            questions,
            running: None,
            lost: LostBlocks::new(pid),
            sites: BTreeMap::new(),
            failed: None,
            is_missed: false,
        }
    }

    /// Notes how far the ring is written, if the scanner has looked. To be called before the ring is
    /// drained.
    pub(super) fn note_look(&mut self, tracer: &Tracer) {
        if let Some(running) = &mut self.running
            && running.looked_at.is_none()
            && running.has_looked.load(Ordering::Acquire)
        {
            running.looked_at = Some(tracer.written());
        }
    }

    /// Whether the records that are ready should be sent, however few they are.
    pub(super) fn wants_records(&self, tracer: &Tracer) -> bool {
        tracer.is_any_at_end()
            || self.running.as_ref().is_some_and(|running| running.looked_at.is_some())
    }

    /// Takes the next step, after so many batches; `reason` says whether the session is to end.
    pub(super) fn go_on(
        &mut self,
        tracer: &mut Tracer,
        batches: u64,
        reason: Option<EndReason>,
    ) -> std::io::Result<Progress> {
        if let Some(running) = &mut self.running
            && running.looked_at.is_some_and(|written| tracer.has_read(written))
            && let Some(sender) = running.changes.take()
        {
            // A pipeline that is gone has failed, and says why itself.
            let _ = self.questions.send(Question::Changed(batches, sender));
        }
        if let Some(running) = self.running.take_if(|running| running.thread.is_finished()) {
            let found = super::join(running.thread);
            self.take(running.pid, found);
            tracer.end_reading();
        }
        for pid in tracer.missed() {
            self.is_missed |= pid == self.pid;
            let reason = "ended unread, by a signal or not through its C library's exit";
            self.lost.add_not_read(NotRead { pid, reason: reason.to_owned() });
        }
        if self.running.is_none() {
            let running = || reason.and_then(|_| tracer.next_unread());
            if let Some(pid) = tracer.next_at_end().or_else(running) {
                tracer.begin_to_read(pid);
                self.running = Some(self.begin(pid, batches)?);
            }
        }
        Ok(if self.running.is_some() { Progress::Scans } else { Progress::Idle })
    }

    /// Begins with the blocks that are held after so many batches.
    fn begin(&self, pid: Pid, batches: u64) -> std::io::Result<Running> {
        let has_looked = Arc::new(AtomicBool::new(false));
        let (sender, changes) = mpsc::channel();
        let (options, questions) = (self.options, self.questions.clone());
        let thread = {
            let has_looked = Arc::clone(&has_looked);
            std::thread::Builder::new()
                .name("scanner".to_owned())
                .spawn(move || scan(pid, options, batches, &questions, &has_looked, &changes))?
        };
        Ok(Running { pid, thread, has_looked, looked_at: None, changes: Some(sender) })
    }

    fn take(&mut self, pid: Pid, found: Result<Found, ScanError>) {
        match found {
            Ok(Found { losses, sites }) => {
                self.lost.add(losses);
                for (site, of_process) in sites {
                    let losses = of_process.losses;
                    let of_all = self.sites.entry(site);
                    of_all
                        .and_modify(|lost| lost.losses = lost.losses.plus(losses))
                        .or_insert(of_process);
                }
            }
            Err(error) if pid == self.pid => self.failed = Some(error),
            Err(error) => self.lost.add_not_read(NotRead { pid, reason: error.to_string() }),
        }
    }

    /// What was found; `None` if the process that was named or started was not read.
    pub(super) fn finish(mut self) -> Option<Result<LostBlocks, ScanError>> {
        if let Some(error) = self.failed {
            return Some(Err(error));
        }
        self.lost.stacks = self.sites.into_values().collect();
        (self.lost.read() > 0 && !self.is_missed).then_some(Ok(self.lost))
    }
}

/// The scanner thread.
fn scan(
    pid: Pid,
    ScanOptions { stop }: ScanOptions,
    batches: u64,
    questions: &Sender<Question>,
    has_looked: &AtomicBool,
    changes: &Receiver<Changes>,
) -> Result<Found, ScanError> {
    let held = ask(questions, pid, |answer| Question::Held(pid, batches, answer))?;
    let held = held.ok_or(ScanError::Ended { pid: pid.0 })?;
    let (held, mut not_judged) = judgeable(held);
    let blocks = Blocks::new(held.iter().map(span));
    let seen = heap_scan::look(pid, &blocks, stop);
    has_looked.store(true, Ordering::Release);
    let seen = seen?;
    let changes = changes.recv().map_err(|_| ScanError::SessionEnded { pid: pid.0 })?;
    if changes.has_ended {
        return Err(ScanError::Ended { pid: pid.0 });
    }
    if changes.is_full {
        return Err(ScanError::TooBusy { pid: pid.0 });
    }
    let is_judged = |block: &HeldBlock| !changes.addresses.contains(&block.address);
    let mut judged = Amount::default();
    for block in &held {
        if is_judged(block) {
            judged.add(block);
        } else {
            not_judged.changed += 1;
        }
    }
    let freed = changes
        .freed
        .iter()
        .map(|range| Span { start: range.start, size_bytes: range.end.0 - range.start.0 });
    let freed = Blocks::new(freed.filter(|span| Blocks::is_possible(*span)));
    let lost = judge(&blocks, &freed, &seen.loose, seen.pieces, |id| is_judged(&held[id.index()]));
    let sites = by_site(&held, &lost);
    let asked = sites.keys().copied().collect();
    let paths = ask(questions, pid, |answer| Question::CallPaths(asked, answer))?;
    let sum = |amount: fn(&Losses) -> Amount| {
        sites.values().map(amount).fold(Amount::default(), Amount::plus)
    };
    let (direct, indirect) = (sum(|losses| losses.direct), sum(|losses| losses.held));
    let sites = paths
        .into_iter()
        .zip(sites)
        .map(|((stack, api), (site, losses))| (site, LostStack { stack, api, losses }))
        .collect();
    let own_peak_bytes = process::peak_resident_bytes(Pid(std::process::id())).unwrap_or(0);
    let cost = Cost { own_peak_bytes, ..seen.cost };
    let losses = ProcessLosses { pid, direct, indirect, judged, not_judged, cost };
    Ok(Found { losses, sites })
}

fn ask<T>(
    questions: &Sender<Question>,
    pid: Pid,
    question: impl FnOnce(Sender<T>) -> Question,
) -> Result<T, ScanError> {
    let (sender, answer) = mpsc::channel();
    // A pipeline that is gone drops the question, and the sender in it.
    let _ = questions.send(question(sender));
    answer.recv().map_err(|_| ScanError::SessionEnded { pid: pid.0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::Limits;
    use crate::record::{Alignment, Process, Tid, Time, WireStackId};

    const PID: Pid = Pid(7);

    fn process() -> Record {
        let (exe, command) = (Vec::new(), Vec::new());
        Record::Process(Process { time: Time(0), pid: PID, parent: None, exe, command })
    }

    fn alloc(ptr: u64) -> Record {
        Record::Alloc {
            time: Time(0),
            tid: Tid(7),
            api: Api::Malloc,
            ptr: Avma(ptr),
            size: 16,
            alignment: Alignment::NONE,
            stack: WireStackId(0),
        }
    }

    fn free(ptr: u64) -> Record {
        Record::Free { time: Time(0), tid: Tid(7), api: Api::Free, ptr: Avma(ptr) }
    }

    #[test]
    fn log_has_what_changed_after_the_blocks_were_taken_and_up_to_the_batch() {
        let (questions, mut desk) = Desk::new();
        let mut pipeline = Pipeline::new(Limits::default());
        let mut apply = |desk: &mut Desk, batch: &[Record]| {
            pipeline.apply_all(batch);
            desk.applied(&pipeline, batch);
        };
        let (held_sender, held) = mpsc::channel();
        let (changed_sender, changed) = mpsc::channel();

        questions.send(Question::Held(PID, 1, held_sender)).expect("the desk is there");
        apply(&mut desk, &[process(), alloc(0x10), alloc(0x20), free(0x10)]);
        questions.send(Question::Changed(3, changed_sender)).expect("the desk is there");
        apply(&mut desk, &[alloc(0x30)]);
        assert!(changed.try_recv().is_err(), "the third batch has not come");
        apply(&mut desk, &[free(0x20)]);

        let held = held.try_recv().expect("an answer").expect("the process runs");
        assert_eq!(held.iter().map(|block| block.address).collect::<Vec<_>>(), [Avma(0x20)]);
        let changes = changed.try_recv().expect("the log");
        let mut addresses: Vec<_> = changes.addresses.iter().copied().collect();
        addresses.sort();
        assert_eq!(addresses, [Avma(0x20), Avma(0x30)]);
        assert!(!changes.is_full && !changes.has_ended);
    }

    #[test]
    fn blocks_are_taken_when_everything_before_was_counted() {
        let (questions, mut desk) = Desk::new();
        let mut pipeline = Pipeline::new(Limits::default());
        let (held_sender, held) = mpsc::channel();
        questions.send(Question::Held(PID, 2, held_sender)).expect("the desk is there");

        for batch in [vec![process()], vec![alloc(0x10)]] {
            assert!(held.try_recv().is_err(), "the second batch has not come");
            pipeline.apply_all(&batch);
            desk.applied(&pipeline, &batch);
        }

        let held = held.try_recv().expect("an answer").expect("the process runs");
        assert_eq!(held.iter().map(|block| block.address).collect::<Vec<_>>(), [Avma(0x10)]);
    }

    #[test]
    fn process_that_ends_meanwhile_is_noticed() {
        let (questions, mut desk) = Desk::new();
        let mut pipeline = Pipeline::new(Limits::default());
        let (held_sender, _held) = mpsc::channel();
        let (changed_sender, changed) = mpsc::channel();
        questions.send(Question::Held(PID, 1, held_sender)).expect("the desk is there");
        questions.send(Question::Changed(2, changed_sender)).expect("the desk is there");

        for batch in [[process()], [Record::Exit { time: Time(1), pid: PID }]] {
            pipeline.apply_all(&batch);
            desk.applied(&pipeline, &batch);
        }

        assert!(changed.try_recv().expect("the log").has_ended);
    }
}
