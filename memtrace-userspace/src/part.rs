//! A part of a trace: a range, or one moment.
//!
//! ```text
//!   start ───── keyframe ──────── from ─────────── to ───── end
//!                  └ go on from here │                             range: what happened here,
//!                                    └── what was held: the past   peak of the whole heap
//! ```
//!
//! The state at the beginning comes from the last keyframe before it, so that little of a long
//! trace is read; without one, from everything before. Either way gives the same snapshot.
//!
//! A range has the records whose time is not before its start and not after its end. A moment
//! comes after the records with its time. A mark is a place among the records: a range from it
//! begins with the record after it, one up to it ends with it. So does the peak.

use std::io::{Read, Seek};
use std::sync::Arc;

use thiserror::Error;

use crate::batches::BATCH_RECORDS;
use crate::heap_snapshot;
use crate::operations::Finder;
use crate::pipeline::snapshot::Snapshot;
use crate::pipeline::{Limits, Pipeline, Posting, Purpose};
use crate::record::{Pid, Record, Time};
use crate::trace::{Index, Keyframe, Reader, TraceError, Truncation, WriteError, read_snapshot};

/// A place in a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Its first record.
    Start,
    /// A time since its start.
    At(Time),
    /// A mark of the user; the first one with these words.
    Mark(String),
    /// Where the live heap bytes were highest.
    Peak,
    /// Its last record.
    End,
}

/// What part of a trace to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// What happened between two places.
    Range {
        /// Where it begins.
        from: Place,
        /// Where it ends.
        to: Place,
    },
    /// What was held at a place.
    Moment(Place),
}

/// Why a part cannot be shown.
#[derive(Debug, Error)]
pub enum PartError {
    /// The trace cannot be read.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The snapshot cannot be made.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// No mark has these words.
    #[error("the trace has no mark \"{text}\"; {known}")]
    NoMark {
        /// The words.
        text: String,
        /// The marks there are, in words.
        known: String,
    },
    /// The range begins after the trace ends.
    #[error(
        "the trace ends after {} s, before what is asked for; choose an earlier --from or --at",
        seconds(*.end)
    )]
    AfterEnd {
        /// The last time in the trace.
        end: Time,
    },
    /// The range ends before it begins.
    #[error("the range ends before it begins; swap --from and --to")]
    Backwards,
}

/// Seconds with as many digits as the clock has.
fn seconds(Time(ns): Time) -> f64 {
    ns as f64 / 1e9
}

/// A part of a trace, and where the trace stops if it was cut.
#[derive(Clone, Debug)]
pub struct Excerpt {
    /// The part.
    pub snapshot: Arc<Snapshot>,
    /// The processes that were there, counted or not.
    pub pids: Vec<Pid>,
    /// Known only if the trace was read to its end.
    pub truncation: Option<Truncation>,
}

/// Where to stop before the next record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// So many records were applied.
    Records(u64),
    /// The next one is not before this time.
    Before(Time),
    /// The next one is after this time.
    After(Time),
    /// There is none.
    Never,
}

/// Reads a part of a trace. `progress` learns how many bytes of the file have been passed.
///
/// `only` names the processes that count; none for all. `operations` finds those that the trace
/// does not have. `watch` sees every record that is counted; of a range, first those that tell what
/// was held at its start.
pub fn read_part<R: Read + Seek>(
    file: R,
    limits: Limits,
    only: &[Pid],
    part: &Part,
    operations: Option<&mut Finder>,
    watch: Option<&mut Watch>,
    progress: &mut dyn FnMut(u64),
) -> Result<Excerpt, PartError> {
    let mut source = Source::open(file, limits, only, progress)?;
    let mut pipeline = match part {
        Part::Moment(at) => source.moment(at, operations, watch)?,
        Part::Range { from, to } => source.range(from, to, operations, watch)?,
    };
    Ok(Excerpt {
        snapshot: pipeline.snapshot(),
        pids: pipeline.pids(),
        truncation: source.reader.truncation(),
    })
}

/// Reads what was held at a place, as a heap snapshot: a trace of its own.
pub fn read_held<R: Read + Seek>(
    file: R,
    at: &Place,
    progress: &mut dyn FnMut(u64),
) -> Result<Vec<u8>, PartError> {
    let mut source = Source::open(file, Limits::default(), &[], progress)?;
    let cursor = source.run_to_moment(at, None)?;
    Ok(heap_snapshot::encode(&cursor.pipeline, Purpose::Show)?)
}

/// Who sees records of a part, what each changed, and the state after it.
pub type Watch<'w> = dyn FnMut(&Record, &[Posting], &Pipeline) + 'w;

/// A watcher, and where to put what it is shown.
struct Watched<'w, 'f> {
    watch: Option<&'w mut Watch<'f>>,
    postings: Vec<Posting>,
}

impl<'w, 'f> Watched<'w, 'f> {
    fn by(watch: Option<&'w mut Watch<'f>>) -> Self {
        Watched { watch, postings: Vec::new() }
    }

    fn apply(&mut self, pipeline: &mut Pipeline, records: &[Record]) {
        let Some(watch) = &mut self.watch else {
            return pipeline.apply_all(records);
        };
        for record in records {
            pipeline.apply_with(record, &mut self.postings);
            watch(record, &self.postings, pipeline);
        }
    }
}

fn is_backwards(start: Time, position: u64, to: Stop) -> bool {
    match to {
        Stop::Records(records) => records < position,
        Stop::Before(time) | Stop::After(time) => time < start,
        Stop::Never => false,
    }
}

/// Lets `to` know what `from` holds.
fn tell(from: &Pipeline, purpose: Purpose, to: &mut Pipeline, watched: &mut Watched) {
    let told = from.tell_held(purpose, &mut |record| {
        watched.apply(to, std::slice::from_ref(record));
        Ok::<(), std::convert::Infallible>(())
    });
    match told {
        Ok(()) => {}
        Err(never) => match never {},
    }
}

/// A trace with its index.
struct Source<'p, R: Read + Seek> {
    reader: Reader<R>,
    index: Index,
    /// For what is shown; the state before it keeps to the usual ones.
    limits: Limits,
    only: &'p [Pid],
    progress: &'p mut dyn FnMut(u64),
}

impl<'p, R: Read + Seek> Source<'p, R> {
    fn open(
        file: R,
        limits: Limits,
        only: &'p [Pid],
        progress: &'p mut dyn FnMut(u64),
    ) -> Result<Source<'p, R>, TraceError> {
        // The header first: it tells a trace from another file.
        let mut reader = Reader::new(file)?;
        let index = Index::read(reader.input())?;
        reader.seek(&index, 0)?;
        Ok(Source { reader, index, limits, only, progress })
    }

    fn moment(
        &mut self,
        at: &Place,
        operations: Option<&mut Finder>,
        watch: Option<&mut Watch>,
    ) -> Result<Pipeline, PartError> {
        let mut moment = Pipeline::of(self.limits.clone(), self.only);
        let cursor = self.run_to_moment(at, operations)?;
        tell(&cursor.pipeline, Purpose::Show, &mut moment, &mut Watched::by(watch));
        Ok(moment)
    }

    fn run_to_moment<'s>(
        &'s mut self,
        at: &Place,
        operations: Option<&'s mut Finder>,
    ) -> Result<Cursor<'s, R>, PartError> {
        let stop = self.find(at, Stop::After)?;
        let mut cursor = self.cursor(stop, operations)?;
        let reached = cursor.run_to(stop)?;
        if let Stop::After(time) = stop {
            cursor.require(reached, time)?;
            cursor.pipeline.apply(&Record::Tick { time });
        }
        Ok(cursor)
    }

    fn range(
        &mut self,
        from: &Place,
        to: &Place,
        operations: Option<&mut Finder>,
        watch: Option<&mut Watch>,
    ) -> Result<Pipeline, PartError> {
        let mut watched = Watched::by(watch);
        let from = self.find(from, Stop::Before)?;
        let to = self.find(to, Stop::After)?;
        let mut range = Pipeline::of_range(self.limits.clone(), self.only);
        let mut cursor = self.cursor(from, operations)?;
        let reached = cursor.run_to(from)?;
        let start = match from {
            Stop::Before(time) => {
                cursor.require(reached, time)?;
                time
            }
            Stop::After(_) | Stop::Records(_) | Stop::Never => cursor.pipeline.now(),
        };
        if is_backwards(start, cursor.position, to) {
            return Err(PartError::Backwards);
        }
        tell(&cursor.pipeline, Purpose::GoOn, &mut range, &mut watched);
        range.go_on_from(cursor.position);
        range.begin_range(start);
        cursor.pipeline = range;
        let reached = cursor.run_watched(to, &mut watched)?;
        if let Stop::After(time) = to
            && reached
        {
            watched.apply(&mut cursor.pipeline, &[Record::Tick { time }]);
        }
        Ok(cursor.pipeline)
    }

    /// Where to stop for a place; `at_time` says on which side of the records with a time.
    fn find(&mut self, place: &Place, at_time: fn(Time) -> Stop) -> Result<Stop, PartError> {
        Ok(match place {
            Place::Start => Stop::Records(0),
            Place::At(time) => at_time(*time),
            Place::Mark(text) => Stop::Records(self.find_mark(text)?),
            Place::Peak => Stop::Records(self.find_peak()?),
            Place::End => Stop::Never,
        })
    }

    fn find_mark(&mut self, text: &str) -> Result<u64, PartError> {
        let mut texts: Vec<String> = Vec::new();
        if let Some(marks) = self.index.marks() {
            if let Some(mark) = marks.iter().find(|mark| mark.text == text) {
                return Ok(mark.records);
            }
            texts.extend(marks.iter().map(|mark| mark.text.clone()));
        } else {
            self.reader.seek(&self.index, 0)?;
            let mut records = Vec::new();
            while self.reader.read(&mut records, BATCH_RECORDS)? > 0 {
                (self.progress)(self.reader.bytes_read());
                let first = self.reader.position() - records.len() as u64;
                for (record, number) in records.drain(..).zip(first + 1..) {
                    match record {
                        Record::Mark { text: found, .. } if found == text => return Ok(number),
                        Record::Mark { text, .. } if texts.len() < LISTED_MARKS => texts.push(text),
                        _ => {}
                    }
                }
            }
        }
        let known = match texts.as_slice() {
            [] => "it has no marks at all, which `memtrace mark` makes while it is recorded"
                .to_owned(),
            texts => {
                let listed: Vec<_> =
                    texts.iter().take(LISTED_MARKS).map(|text| format!("\"{text}\"")).collect();
                format!("it has {}", listed.join(", "))
            }
        };
        Err(PartError::NoMark { text: text.to_owned(), known })
    }

    /// After how many records the peak was reached.
    fn find_peak(&mut self) -> Result<u64, PartError> {
        if !self.only.is_empty() {
            // Keyframes know the peak of all processes.
            let pipeline = Pipeline::of(Limits::default(), self.only);
            self.reader.seek(&self.index, 0)?;
            let mut cursor = self.cursor_at(pipeline, 0, None);
            cursor.run_to(Stop::Never)?;
            return Ok(cursor.pipeline.level().peak_records);
        }
        let mut peak = (0, 0);
        for keyframe in self.index.keyframes() {
            if keyframe.level.peak_live_bytes > peak.0 {
                peak = (keyframe.level.peak_live_bytes, keyframe.level.peak_records);
            }
        }
        let told = self.index.keyframes().last().map(|keyframe| keyframe.level.records);
        if told.is_none() || told != self.index.records() {
            let from = Stop::Records(told.unwrap_or(0));
            let mut cursor = self.cursor(from, None)?;
            cursor.run_to(Stop::Never)?;
            let rest = cursor.pipeline.level();
            if rest.peak_live_bytes > peak.0 {
                peak = (rest.peak_live_bytes, rest.peak_records);
            }
        }
        Ok(peak.1)
    }

    /// A cursor somewhere before `stop`, with the state there.
    fn cursor<'s>(
        &'s mut self,
        stop: Stop,
        mut operations: Option<&'s mut Finder>,
    ) -> Result<Cursor<'s, R>, PartError> {
        let is_before = |keyframe: &&Keyframe| match stop {
            Stop::Records(records) => keyframe.level.records <= records,
            Stop::Before(time) => keyframe.level.time < time,
            Stop::After(time) => keyframe.level.time <= time,
            Stop::Never => true,
        };
        let usable = self.index.keyframes().iter().filter(|keyframe| keyframe.has_snapshot());
        let mut pipeline = Pipeline::new(Limits::default());
        let mut position = 0;
        if let Some(keyframe) = usable.rev().find(is_before) {
            let snapshot = read_snapshot(self.reader.input(), keyframe)?;
            let mut reader = Reader::new(snapshot.as_slice())?;
            let mut records = Vec::new();
            pipeline = Pipeline::of_range(Limits::default(), &[]);
            while reader.read(&mut records, BATCH_RECORDS)? > 0 {
                if let Some(operations) = &mut operations {
                    operations.insert(&mut records);
                }
                pipeline.apply_all(&records);
                records.clear();
            }
            pipeline.begin_range(keyframe.level.time);
            position = keyframe.level.records;
        }
        pipeline.go_on_from(position);
        self.reader.seek(&self.index, position)?;
        Ok(self.cursor_at(pipeline, position, operations))
    }

    fn cursor_at<'s>(
        &'s mut self,
        pipeline: Pipeline,
        position: u64,
        operations: Option<&'s mut Finder>,
    ) -> Cursor<'s, R> {
        Cursor {
            reader: &mut self.reader,
            progress: self.progress,
            operations,
            pipeline,
            pending: Vec::new(),
            position,
        }
    }
}

/// How many marks a message lists.
const LISTED_MARKS: usize = 10;

/// A place in a trace, and the state there.
struct Cursor<'r, R: Read> {
    reader: &'r mut Reader<R>,
    progress: &'r mut dyn FnMut(u64),
    /// Finds operations that the trace does not have. Its places count the trace's records alone, so
    /// it is not for a pipeline that is asked for one.
    operations: Option<&'r mut Finder>,
    pipeline: Pipeline,
    /// Records that were read and not applied.
    pending: Vec<Record>,
    /// Records before the first of them to apply.
    position: u64,
}

impl<R: Read> Cursor<'_, R> {
    /// Fails if the trace ends before `time`.
    fn require(&self, reached: bool, time: Time) -> Result<(), PartError> {
        let end = self.pipeline.now();
        if reached || time <= end { Ok(()) } else { Err(PartError::AfterEnd { end }) }
    }

    /// Applies records up to `stop`; false if the trace ends before.
    fn run_to(&mut self, stop: Stop) -> Result<bool, TraceError> {
        self.run_watched(stop, &mut Watched::by(None))
    }

    fn run_watched(&mut self, stop: Stop, watched: &mut Watched) -> Result<bool, TraceError> {
        loop {
            if self.pending.is_empty() {
                let first = self.reader.position();
                if self.reader.read(&mut self.pending, BATCH_RECORDS)? == 0 {
                    return Ok(stop == Stop::Never);
                }
                (self.progress)(self.reader.bytes_read());
                // A segment begins before its keyframe.
                let known = self.position.saturating_sub(first).min(self.pending.len() as u64);
                self.pending.drain(..known as usize);
            }
            let count = self.count_before(stop);
            let is_there = count < self.pending.len();
            match &mut self.operations {
                Some(operations) => {
                    let mut records: Vec<Record> = self.pending.drain(..count).collect();
                    operations.insert(&mut records);
                    watched.apply(&mut self.pipeline, &records);
                }
                None => {
                    watched.apply(&mut self.pipeline, &self.pending[..count]);
                    self.pending.drain(..count);
                }
            }
            self.position += count as u64;
            if is_there {
                return Ok(true);
            }
        }
    }

    /// How many of the pending records come before `stop`.
    fn count_before(&self, stop: Stop) -> usize {
        let all = self.pending.len();
        let first = |is_after: &dyn Fn(Time) -> bool| {
            let at = |record: &Record| record.time().is_some_and(is_after);
            self.pending.iter().position(at).unwrap_or(all)
        };
        match stop {
            Stop::Never => all,
            Stop::Records(records) => {
                usize::try_from(records.saturating_sub(self.position)).map_or(all, |n| n.min(all))
            }
            Stop::Before(time) => first(&|of_record| of_record >= time),
            Stop::After(time) => first(&|of_record| of_record > time),
        }
    }
}

#[cfg(test)]
mod tests;
