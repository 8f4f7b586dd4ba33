//! The probes of the traced processes: placed, placed anew, and taken out of children.
//!
//! A breakpoint is a change of a process's memory. The kernel makes and unmakes it by asking every
//! link of the file whether it wants that memory:
//!
//! ```text
//!   a file is mapped                      placed if a link wants it      so exec keeps its probes
//!   a link of the same file is closed     removed if none wants it
//!   fork                                  copied; nobody is asked
//! ```
//!
//! Two things follow. A link wants the memory of the thread that it was found by, and once that has
//! ended it wants none: [`Tracer::leader_exited`]. And a forked child that is not traced hits
//! breakpoints in vain until some link is closed: [`Tracer::clean_up_forks`].

use std::collections::{HashMap, HashSet};

use memtrace_common::counter::Counter;

use super::allocators::survey::Found;
use super::allocators::{Probe, Role};
use super::images::Key;
use super::loader::{LoadError, Program};
use super::probes::{Attached, Link, LinkKind, Place, Point};
use super::process;
use super::tracer::{Tracer, TracerError};
use crate::record::{self, Pid, Record, Tid};

/// The probes of a process.
pub(super) struct Probed {
    /// The files that have some.
    files: HashSet<Key>,
    /// The thread that links find the process by: the first one, as long as it lives.
    task: Tid,
    /// Whether the first thread has ended.
    first_thread_ended: bool,
    /// The probes.
    pub(super) links: Vec<Link>,
}

impl Probed {
    /// No probes.
    pub(super) fn new(pid: Pid) -> Self {
        let task = Tid(pid.0);
        Probed { files: HashSet::new(), task, first_thread_ended: false, links: Vec::new() }
    }

    /// The process runs a new program. Gives the links that are to be closed once there are others.
    ///
    /// The probes stay, in the new program's mappings of the same files. But whichever thread runs
    /// the new program becomes the first one, and the links may have been found by the one before.
    pub(super) fn executed(&mut self, pid: Pid) -> Vec<Link> {
        if !self.first_thread_ended {
            return Vec::new();
        }
        std::mem::replace(self, Probed::new(pid)).links
    }
}

impl Tracer {
    /// Places the probes of every file of `pid` that has none yet.
    pub(super) fn place_probes(&mut self, pid: Pid) -> Result<(), TracerError> {
        let Some(traced) = self.processes.get_mut(&pid) else { return Ok(()) };
        let probed = &mut traced.probed;
        for key in traced.modules.values().map(|module| &module.key) {
            let Some(image) = self.images.get(key) else { continue };
            let (Some(file), record::Image::File { path, .. }) = (&image.file, &image.image) else {
                continue;
            };
            if image.plan.probes.is_empty() || !probed.files.insert(key.clone()) {
                continue;
            }
            let probes = image.plan.in_placing_order();
            for probes in probes.chunk_by(|a, b| a.target.role == b.target.role) {
                let points: Vec<Point> = probes.iter().copied().map(point).collect();
                let place = Place { pid, task: probed.task, file, points: &points };
                let role = probes[0].target.role;
                let Attached { links, outcomes } =
                    self.kernel.attach(self.options.program, role, &place);
                probed.links.extend(links);
                for (probe, outcome) in probes.iter().zip(outcomes) {
                    let Err(error) = outcome else {
                        self.found = Found::Some;
                        self.out.push(Record::Probe(probe.record(path)));
                        continue;
                    };
                    // The process may have ended meanwhile.
                    process::inspect(pid)?;
                    tracing::warn!(
                        "no probe at {} in {}: {}",
                        probe.target.symbol,
                        String::from_utf8_lossy(path),
                        chain(&error),
                    );
                    self.anomalies.probes_refused += 1;
                }
            }
        }
        Ok(())
    }

    /// The first thread has ended, perhaps not the last.
    ///
    /// The probes are placed anew through one of the threads that are left, before the old ones are
    /// removed: a call that hits both counts once.
    pub(super) fn leader_exited(&mut self, pid: Pid) -> Result<(), TracerError> {
        let Some(traced) = self.processes.get_mut(&pid) else { return Ok(()) };
        traced.probed.first_thread_ended = true;
        let left = process::threads(pid).unwrap_or_default();
        let Some(thread) = left.iter().find(|thread| thread.tid.0 != pid.0) else {
            return Ok(());
        };
        traced.probed.task = thread.tid;
        traced.probed.files.clear();
        let outdated = std::mem::take(&mut traced.probed.links);
        let placed = self.place_probes(pid);
        self.closer.close(outdated);
        self.survive(placed)
    }

    /// Takes the breakpoints out of children that were forked since the last look and not traced.
    ///
    /// The first hit of a perf link does so. Multi links leave them in, and each hit costs the child
    /// what an empty program costs. Closing any link makes the kernel look for memory that no link
    /// wants; one on every probe is made for it.
    pub(super) fn clean_up_forks(&mut self, counters: &[(Counter, u64)]) {
        let forks = counters.iter().find(|(counter, _)| *counter == Counter::ForksNotTraced);
        let forks = forks.map_or(0, |(_, forks)| *forks);
        let before = std::mem::replace(&mut self.forks_not_traced, forks);
        if forks == before || self.kernel.link_kind() == LinkKind::Perf {
            return;
        }
        let mut files: HashMap<&Key, Pid> = HashMap::new();
        for (pid, traced) in &self.processes {
            if !traced.probed.first_thread_ended {
                files.extend(traced.probed.files.iter().map(|key| (key, *pid)));
            }
        }
        for (key, pid) in files {
            let Some(image) = self.images.get(key) else { continue };
            let Some(file) = &image.file else { continue };
            let points: Vec<Point> = image.plan.probes.iter().map(point).collect();
            let place = Place { pid, task: Tid(pid.0), file, points: &points };
            // What is refused here was refused before, and counted.
            let Attached { links, outcomes: _ } =
                self.kernel.attach(Program::Empty, Role::Release, &place);
            self.closer.close(links);
        }
    }
}

fn point(probe: &Probe) -> Point {
    Point { offset: probe.offset(), api: probe.target.api }
}

fn chain(error: &LoadError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
