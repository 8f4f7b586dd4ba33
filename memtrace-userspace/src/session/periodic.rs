//! Heap snapshots at equal distances of time, in numbered files.

use std::path::PathBuf;
use std::time::Duration;

use crate::heap_snapshot;
use crate::pipeline::Pipeline;
use crate::record::Time;

/// The most files of a session.
const MAX_FILES: u32 = 9999;

/// When and where to write them.
#[derive(Clone, Debug)]
pub struct PeriodicSnapshots {
    /// Time of the session between two.
    pub every: Duration,
    /// The trace beside which they lie: `api.mtrace` gives `api.0001.mtrace`, `api.0002.mtrace`, …
    pub beside: PathBuf,
}

/// The files so far.
pub(super) struct Periodic {
    options: PeriodicSnapshots,
    next: Time,
    number: u32,
}

impl Periodic {
    pub(super) fn new(options: PeriodicSnapshots) -> Periodic {
        let mut periodic = Periodic { options, next: Time(0), number: 0 };
        periodic.wait_from(Time(0));
        periodic
    }

    fn wait_from(&mut self, now: Time) {
        let every = u64::try_from(self.options.every.as_nanos()).unwrap_or(u64::MAX).max(1);
        self.next = Time((now.0 / every).saturating_add(1).saturating_mul(every));
    }

    /// Writes a snapshot if it is time for one; what goes wrong is told, and the session goes on.
    pub(super) fn look(&mut self, pipeline: &Pipeline) {
        if pipeline.now() < self.next || self.number >= MAX_FILES {
            return;
        }
        self.wait_from(pipeline.now());
        self.number += 1;
        let path = self.options.beside.with_extension(format!("{:04}.mtrace", self.number));
        let written = heap_snapshot::encode_within_limits(pipeline)
            .and_then(|bytes| std::fs::write(&path, bytes).map_err(|error| error.to_string()));
        if let Err(error) = written {
            tracing::warn!("no heap snapshot in {}: {error}", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::Limits;
    use crate::record::Record;

    #[test]
    fn file_is_written_whenever_the_time_is_over() {
        let dir = tempfile::tempdir().expect("temp dir");
        let beside = dir.path().join("api.mtrace");
        let mut periodic =
            Periodic::new(PeriodicSnapshots { every: Duration::from_secs(1), beside });
        let mut pipeline = Pipeline::new(Limits::default());

        // Two are missed in between: they would show nothing new.
        for ms in [0, 999, 1000, 1500, 4100, 4900, 5000] {
            pipeline.apply(&Record::Tick { time: Time(ms * 1_000_000) });
            periodic.look(&pipeline);
        }

        let mut names: Vec<_> = std::fs::read_dir(dir.path())
            .expect("it is there")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["api.0001.mtrace", "api.0002.mtrace", "api.0003.mtrace"]);
    }
}
