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

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use memtrace_common::counter::Counter;

use super::allocators::survey::Found;
use super::allocators::{Probe, Role};
use super::images::ImageId;
use super::loader::{LoadError, Program};
use super::probes::{Attached, Link, LinkKind, Place};
use super::process;
use super::tracer::{Tracer, TracerError};
use crate::record::{self, Pid, Record, Tid};

/// The probes of a process.
pub(super) struct Probed {
    /// The thread that links find the process by: the first one, as long as it lives.
    task: Tid,
    /// Whether the first thread has ended.
    first_thread_ended: bool,
    /// The number of this set of probes: the process may have had others, which are being closed.
    set: u8,
    /// The probes, by the file that they stand in; also files whose probes were refused.
    links: BTreeMap<ImageId, Vec<Link>>,
    /// The probes of functions that are not an allocator's, likewise, and by their role.
    others: BTreeMap<(ImageId, Role), Vec<Link>>,
}

impl Probed {
    /// No probes.
    pub(super) fn new(pid: Pid) -> Self {
        let task = Tid(pid.0);
        let (links, others) = (BTreeMap::new(), BTreeMap::new());
        Probed { task, first_thread_ended: false, set: 0, links, others }
    }

    /// The number of this set of probes.
    pub(super) fn set(&self) -> u8 {
        self.set
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.links.values().all(Vec::is_empty)
    }

    /// All of them.
    pub(super) fn into_links(self) -> Vec<Link> {
        self.links.into_values().chain(self.others.into_values()).flatten().collect()
    }

    /// Takes those that stand in files that are not `wanted` any more.
    fn take_unless(&mut self, wanted: impl Fn(ImageId) -> bool) -> Vec<Link> {
        let Probed { links, others, .. } = self;
        let taken = links.extract_if(.., |id, _| !wanted(*id)).map(|(_, links)| links);
        let others = others.extract_if(.., |(id, _), _| !wanted(*id)).map(|(_, links)| links);
        taken.chain(others).flatten().collect()
    }

    /// The process runs a new program. Gives the links that are to be closed once there are others.
    ///
    /// The probes stay, in the new program's mappings of the same files. But whichever thread runs
    /// the new program becomes the first one, and the links may have been found by the one before.
    pub(super) fn executed(&mut self, pid: Pid) -> Vec<Link> {
        if !self.first_thread_ended {
            return Vec::new();
        }
        let next = Probed { set: self.set.wrapping_add(1), ..Probed::new(pid) };
        std::mem::replace(self, next).into_links()
    }
}

impl Tracer {
    /// Places the probes of every file of `pid` that has none yet.
    pub(super) fn place_probes(&mut self, pid: Pid) -> Result<(), TracerError> {
        let Some(traced) = self.processes.get_mut(&pid) else { return Ok(()) };
        let probed = &mut traced.probed;
        let mapped: BTreeSet<ImageId> =
            traced.modules.values().map(|module| module.image).collect();
        // A file that was changed in place has probes where its functions were. They go before
        // others come: where both would stand, the kernel would go on with the instruction of old.
        drop(probed.take_unless(|id| mapped.contains(&id) || self.images.is_latest(id)));
        for id in mapped {
            let Some(image) = self.images.get(id) else { continue };
            let (Some(file), record::Image::File { path, .. }) = (&image.file, &image.image) else {
                continue;
            };
            if image.plan.probes.is_empty() {
                continue;
            }
            let Entry::Vacant(placed) = probed.links.entry(id) else { continue };
            let placed = placed.insert(Vec::new());
            let probes = image.plan.in_placing_order();
            for probes in probes.chunk_by(|a, b| a.target.role == b.target.role) {
                let place = Place { pid, task: probed.task, set: probed.set, file, probes };
                let role = probes[0].target.role;
                let Attached { links, outcomes } =
                    self.kernel.attach(self.options.program, role, &place);
                placed.extend(links);
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
        self.protect_exceptions(pid);
        self.watch_end(pid);
        Ok(())
    }

    /// Has exceptions find their way past probed functions, where there may be such.
    fn protect_exceptions(&mut self, pid: Pid) {
        let Some(traced) = self.processes.get(&pid) else { return };
        let may_throw = |id: &ImageId| self.images.get(*id).is_some_and(|i| i.plan.may_throw());
        if !traced.probed.links.keys().any(may_throw) {
            return;
        }
        let Some(error) = self.place_others(pid, Role::Unwind) else { return };
        tracing::debug!("no probe of the unwinder: {}", chain(&error));
        if !self.exceptions_unprotected {
            tracing::warn!(
                "should a probed function (an allocator's operator new, or one named with \
                 --probe) be left by an exception, the program ends: this kernel does not \
                 let memtrace put return addresses back (lockdown, Secure Boot)"
            );
        }
        self.exceptions_unprotected = true;
    }

    /// Has the process stop at its end, if it is to be read there.
    fn watch_end(&mut self, pid: Pid) {
        if self.endings.are_watched()
            && let Some(error) = self.place_others(pid, Role::End)
        {
            tracing::warn!("the process cannot be stopped at its end: {}", chain(&error));
        }
    }

    /// Places the probes of a role that is no allocator's; gives why one was refused.
    fn place_others(&mut self, pid: Pid, role: Role) -> Option<LoadError> {
        let traced = self.processes.get_mut(&pid)?;
        let probed = &mut traced.probed;
        let mapped: BTreeSet<ImageId> =
            traced.modules.values().map(|module| module.image).collect();
        let mut refused = None;
        for id in mapped {
            let Entry::Vacant(placed) = probed.others.entry((id, role)) else { continue };
            let Some(image) = self.images.get(id) else { continue };
            let Some(file) = &image.file else { continue };
            let probes: Vec<&Probe> = image.plan.others(role).iter().collect();
            if probes.is_empty() {
                continue;
            }
            let place = Place { pid, task: probed.task, set: probed.set, file, probes: &probes };
            let Attached { links, outcomes } =
                self.kernel.attach(self.options.program, role, &place);
            placed.insert(links);
            refused = outcomes.into_iter().find_map(Result::err).or(refused);
        }
        refused
    }

    /// The first thread has ended, perhaps not the last.
    ///
    /// The probes are placed anew through one of the threads that are left. The old ones, which the
    /// kernel finds for nobody any more, are removed behind.
    pub(super) fn leader_exited(&mut self, pid: Pid) -> Result<(), TracerError> {
        let Some(traced) = self.processes.get_mut(&pid) else { return Ok(()) };
        traced.probed.first_thread_ended = true;
        let left = process::threads(pid).unwrap_or_default();
        let Some(thread) = left.iter().find(|thread| thread.tid.0 != pid.0) else {
            return Ok(());
        };
        traced.probed.task = thread.tid;
        let outdated = traced.probed.take_unless(|_| false);
        traced.probed.set = traced.probed.set.wrapping_add(1);
        self.write_modules(pid)?;
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
        let mut files: HashMap<ImageId, Pid> = HashMap::new();
        for (pid, traced) in &self.processes {
            if !traced.probed.first_thread_ended {
                let Probed { links, others, .. } = &traced.probed;
                let others = others.keys().map(|(id, _)| id);
                files.extend(links.keys().chain(others).map(|id| (*id, *pid)));
            }
        }
        for (id, pid) in files {
            let Some(image) = self.images.get(id) else { continue };
            let Some(file) = &image.file else { continue };
            let probes: Vec<&Probe> = image.plan.all_probes().collect();
            let place = Place { pid, task: Tid(pid.0), set: 0, file, probes: &probes };
            // What is refused here was refused before, and counted.
            let Attached { links, outcomes: _ } =
                self.kernel.attach(Program::Empty, Role::Release, &place);
            self.closer.close(links);
        }
    }
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
