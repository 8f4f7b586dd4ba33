//! What the tracer writes down every second: the memory of processes, and counters.
//!
//! Counters are those of the kernel half and those of the daemon, [`Anomalies`], under names that the
//! views explain.

use super::clock::monotonic_ns;
use super::perf_map::Unread;
use super::process::{self, memory_limit};
use super::tracer::{Tracer, TracerError};
use crate::record::{GO_PROGRAMS, Pid, Record, Time};

/// What went wrong in the daemon without ending the session.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Anomalies {
    /// Children or programs that could not be attached to.
    pub attach_failures: u64,
    /// Mapped files that could not be read: no probes, and no table.
    pub files_unreadable: u64,
    /// Files whose unwind table has too many rows for what room is left.
    pub tables_without_room_for_rows: u64,
    /// Files whose unwind table covers too much text for what room is left.
    pub tables_without_room_for_text: u64,
    /// Mappings of code that had no room.
    pub modules_without_room: u64,
    /// Probes that the kernel refused.
    pub probes_refused: u64,
    /// What could not be read of the names of programs that have ended.
    pub jit_names_unread: Unread,
}

/// When a process's memory is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// If it is due.
    Due,
    /// Whether or not.
    Now,
}

impl Tracer {
    /// Looks at the memory of processes in detail.
    pub(super) fn sample_memory(&mut self, time: Time, when: When) {
        let now_ns = monotonic_ns();
        let mut due: Vec<_> = self
            .processes
            .iter_mut()
            .filter(|(_, traced)| when == When::Now || traced.memory_samples.is_due(now_ns))
            .collect();
        due.sort_by_key(|(pid, _)| **pid);
        let records =
            due.into_iter().filter_map(|(pid, traced)| traced.memory_samples.look(*pid, time));
        self.out.extend(records);
    }

    /// Writes resident memory, limits of memory and counters, and memory in detail where it is due.
    pub(super) fn sample(&mut self, time: Time) -> Result<(), TracerError> {
        let mut pids: Vec<Pid> = self.processes.keys().copied().collect();
        pids.sort();
        for pid in pids {
            if let Some(rss_bytes) = process::resident_bytes(pid) {
                self.out.push(Record::Resident { time, pid, rss_bytes });
            }
            self.out.extend(memory_limit::sample(pid, time));
        }
        self.sample_memory(time, When::Due);
        let Anomalies {
            attach_failures,
            files_unreadable,
            tables_without_room_for_rows,
            tables_without_room_for_text,
            modules_without_room,
            probes_refused,
            jit_names_unread,
        } = self.anomalies;
        let unread = self.processes.values().fold(jit_names_unread, |sum, traced| {
            let Unread { lines, addresses, files } = traced.jit_names.unread;
            Unread {
                lines: sum.lines + lines,
                addresses: sum.addresses + addresses,
                files: sum.files + files,
            }
        });
        let kernel = self.kernel.counters()?;
        self.clean_up_forks(&kernel);
        let mut counters: Vec<(String, u64)> =
            kernel.into_iter().map(|(counter, value)| (counter.name().to_owned(), value)).collect();
        counters.extend([
            ("ring_peak_bytes".to_owned(), self.meter.peak_bytes()),
            ("attach_failures".to_owned(), attach_failures),
            ("code_files_unreadable".to_owned(), files_unreadable),
            ("unwind_tables_without_room_for_rows".to_owned(), tables_without_room_for_rows),
            ("unwind_tables_without_room_for_text".to_owned(), tables_without_room_for_text),
            ("code_mappings_without_room".to_owned(), modules_without_room),
            ("probes_refused".to_owned(), probes_refused),
            ("perf_map_lines_unread".to_owned(), unread.lines),
            ("perf_map_addresses_unread".to_owned(), unread.addresses),
            ("perf_maps_unreadable".to_owned(), unread.files),
            (GO_PROGRAMS.to_owned(), self.images.go_programs()),
        ]);
        self.out.push(Record::Counters(counters));
        Ok(())
    }
}
