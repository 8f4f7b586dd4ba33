//! Heap snapshots that a session writes by itself, in numbered files beside its trace.
//!
//! ```text
//!   api.mtrace          the trace
//!   api.0001.mtrace     at equal distances of time
//!   api.spike.0001.mtrace   when a spike has begun: the heap is rising then
//! ```

use std::path::PathBuf;
use std::time::Duration;

use crate::heap_snapshot;
use crate::pipeline::Pipeline;
use crate::record::Time;

/// The most files of a session at equal distances.
const MAX_PERIODIC: u32 = 9999;
/// The most files of a session about spikes.
const MAX_SPIKES: u32 = 100;
/// Spikes that follow each other faster have one file: the heap's and that of its mappings do.
const BETWEEN_SPIKES_NS: u64 = 1_000_000_000;

/// When and where to write them.
#[derive(Clone, Debug)]
pub struct SnapshotFiles {
    /// Time of the session between two.
    pub every: Option<Duration>,
    /// Whether spikes have one, too.
    pub on_spike: bool,
    /// The trace beside which they lie.
    pub beside: PathBuf,
}

/// The files so far.
pub(super) struct Snapshots {
    options: SnapshotFiles,
    next: Time,
    periodic: u32,
    spikes: u32,
    spikes_begun: u64,
    next_spike: Time,
}

impl Snapshots {
    pub(super) fn new(options: SnapshotFiles) -> Snapshots {
        let mut snapshots = Snapshots {
            options,
            next: Time(0),
            periodic: 0,
            spikes: 0,
            spikes_begun: 0,
            next_spike: Time(0),
        };
        snapshots.wait_from(Time(0));
        snapshots
    }

    fn wait_from(&mut self, now: Time) {
        let every = self.options.every.map_or(u128::MAX, |every| every.as_nanos());
        let every = u64::try_from(every).unwrap_or(u64::MAX).max(1);
        self.next = Time((now.0 / every).saturating_add(1).saturating_mul(every));
    }

    /// Writes snapshots if there is reason to; what goes wrong is told, and the session goes on.
    pub(super) fn look(&mut self, pipeline: &Pipeline) {
        let now = pipeline.now();
        if now >= self.next && self.periodic < MAX_PERIODIC {
            self.wait_from(now);
            self.periodic += 1;
            self.write(pipeline, &format!("{:04}.mtrace", self.periodic));
        }
        let begun = pipeline.spikes_begun();
        let is_new = begun > std::mem::replace(&mut self.spikes_begun, begun);
        if self.options.on_spike && is_new && now >= self.next_spike && self.spikes < MAX_SPIKES {
            self.next_spike = Time(now.0.saturating_add(BETWEEN_SPIKES_NS));
            self.spikes += 1;
            self.write(pipeline, &format!("spike.{:04}.mtrace", self.spikes));
        }
    }

    fn write(&self, pipeline: &Pipeline, extension: &str) {
        let path = self.options.beside.with_extension(extension);
        let written = heap_snapshot::encode_within_limits(pipeline)
            .and_then(|bytes| std::fs::write(&path, bytes).map_err(|error| error.to_string()));
        match written {
            Ok(()) => tracing::info!("wrote the heap snapshot {}", path.display()),
            Err(error) => tracing::warn!("no heap snapshot in {}: {error}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use memtrace_common::addr::Avma;
    use memtrace_common::event::Api;

    use super::*;
    use crate::pipeline::Limits;
    use crate::record::{Alignment, Pid, Record, Tid, WireStackId};

    fn names(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).expect("it is there");
        let mut names: Vec<_> = entries
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn file_is_written_whenever_the_time_is_over() {
        let dir = tempfile::tempdir().expect("temp dir");
        let beside = dir.path().join("api.mtrace");
        let every = Some(Duration::from_secs(1));
        let mut snapshots = Snapshots::new(SnapshotFiles { every, on_spike: false, beside });
        let mut pipeline = Pipeline::new(Limits::default());

        // Two are missed in between: they would show nothing new.
        for ms in [0, 999, 1000, 1500, 4100, 4900, 5000] {
            pipeline.apply(&Record::Tick { time: Time(ms * 1_000_000) });
            snapshots.look(&pipeline);
        }

        let expected = ["api.0001.mtrace", "api.0002.mtrace", "api.0003.mtrace"];
        assert_eq!(names(dir.path()), expected);
    }

    /// A block of 30 MB, which is a spike.
    fn large(ms: u64) -> Record {
        Record::Alloc {
            time: Time(ms * 1_000_000),
            tid: Tid(1),
            api: Api::Malloc,
            ptr: Avma(ms << 32),
            size: 30_000_000,
            alignment: Alignment::NONE,
            stack: WireStackId(0),
        }
    }

    #[test]
    fn spike_has_one_file_when_it_begins_and_rises_apart_have_another() {
        let dir = tempfile::tempdir().expect("temp dir");
        let beside = dir.path().join("api.mtrace");
        let mut snapshots = Snapshots::new(SnapshotFiles { every: None, on_spike: true, beside });
        let mut pipeline = Pipeline::new(Limits::default());

        let start = Time(0);
        pipeline.apply(&Record::Thread { time: start, pid: Pid(1), tid: Tid(1), name: vec![] });
        // The one at 2.01 s is more of the same rise.
        for ms in [2000, 2010, 9000] {
            pipeline.apply(&large(ms));
            snapshots.look(&pipeline);
        }
        pipeline.apply(&Record::Tick { time: Time(20_000_000_000) });
        snapshots.look(&pipeline);

        assert_eq!(names(dir.path()), ["api.spike.0001.mtrace", "api.spike.0002.mtrace"]);
    }
}
