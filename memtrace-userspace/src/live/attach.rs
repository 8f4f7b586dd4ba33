//! Attaching to a process, and following what it becomes.
//!
//! The order matters: first the tables, then the kernel is told of the process, then the probes
//! are placed. So the first event that a probe sends has everything that its walk needs.

use std::collections::BTreeMap;

use memtrace_common::addr::Avma;
use memtrace_common::config::process_flag;

use super::allocators::survey::{Found, Verdict};
use super::clock::monotonic_ns;
use super::code::Module;
use super::hazards;
use super::images;
use super::kernel_version::kernel_release;
use super::memory_samples::MemorySamples;
use super::perf_map::JitNames;
use super::pidfd::PidFd;
use super::probed::Probed;
use super::process::{self, ProcessError, ProcessInfo, ProgramId};
use super::tables::Regions;
use super::tracer::{Children, NewCode, Tracer, TracerError};
use crate::record::{self, Pid, Record, Tid, Time};

/// A process that is traced.
pub(super) struct Traced {
    pub(super) handle: PidFd,
    /// Whether it had ended at the last sample.
    pub(super) had_ended: bool,
    /// Which program it was last seen to begin.
    pub(super) program: ProgramId,
    /// The one that it ran at the last sample, if that was another.
    pub(super) other_program: Option<ProgramId>,
    /// Its place in the kernel's table of processes.
    pub(super) index: u32,
    pub(super) flags: u32,
    /// How often it had made code executable when its mappings were read.
    pub(super) code_changes: u64,
    /// The mappings of code that the kernel knows, by start.
    pub(super) modules: BTreeMap<Avma, Module>,
    pub(super) regions: Option<Regions>,
    /// Code that the thread's `munmap` took last; it comes back if the call fails.
    pub(super) unmapped: Option<(Tid, Vec<(Avma, Module)>)>,
    /// Its probes.
    pub(super) probed: Probed,
    /// Where its program break is, if that is known.
    pub(super) program_break: Option<Avma>,
    /// Whether any of its modules lies in no file.
    pub(super) has_anonymous_code: bool,
    /// Names of its code that lies in no file.
    pub(super) jit_names: JitNames,
    /// When its memory is looked at in detail.
    pub(super) memory_samples: MemorySamples,
}

/// How a process comes under observation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arrival {
    /// It was running.
    Running,
    /// It was forked from a traced process.
    Forked(Pid),
    /// It is about to run its first instruction of a new program.
    Started,
}

impl Tracer {
    /// Attaches to a running process.
    ///
    /// Refuses one without an allocator, unless it is Go's: with a runtime of its own it is worth
    /// to follow the mappings alone.
    pub fn attach(&mut self, pid: Pid) -> Result<Verdict, TracerError> {
        let info = process::inspect(pid)?;
        hazards::check(&info, &kernel_release())?;
        self.watch(pid);
        let before = self.out.len();
        let attached = self.attach_running(pid, &info);
        if attached.is_err() {
            self.let_go(pid);
            self.out.truncate(before);
        }
        attached
    }

    fn attach_running(&mut self, pid: Pid, info: &ProcessInfo) -> Result<Verdict, TracerError> {
        self.begin(info, Arrival::Running)?;
        let Some(traced) = self.processes.get(&pid) else {
            return Err(TracerError::TooManyProcesses { pid: pid.0 });
        };
        let found = if traced.probed.is_empty() { Found::None } else { Found::Some };
        let analyses = traced.modules.values().filter_map(|module| self.images.get(module.image));
        match Verdict::of(found, images::runtime(analyses)) {
            Verdict::NoAllocator => {
                let exe = String::from_utf8_lossy(&info.exe).into_owned();
                Err(TracerError::NoAllocator { pid: pid.0, exe })
            }
            verdict @ (Verdict::Traceable | Verdict::GoWithC | Verdict::Go) => Ok(verdict),
        }
    }

    /// Attaches to a child that waits at its first instruction.
    pub(super) fn attach_child(&mut self, pid: Pid, parent: Pid) -> Result<(), TracerError> {
        let begun = process::inspect(pid).map_err(TracerError::from).and_then(|info| {
            hazards::check(&info, &kernel_release())?;
            self.begin(&info, Arrival::Forked(parent))
        });
        self.survive(begun)
    }

    /// A process runs a new program.
    pub(super) fn executed(&mut self, pid: Pid, time: Time) -> Result<(), TracerError> {
        let info = match process::inspect(pid) {
            Ok(info) => info,
            Err(error) => return self.survive(Err(error.into())),
        };
        if let Err(hazard) = hazards::check(&info, &kernel_release()) {
            // Its probes would stay, and it waits at its first instruction: they go before it runs.
            self.leave(pid, time);
            return self.survive(Err(hazard));
        }
        let begun = if let Some(traced) = self.processes.get_mut(&pid) {
            let outdated = traced.probed.executed(pid);
            let mut jit_names = std::mem::replace(&mut traced.jit_names, JitNames::new(&info));
            traced.has_anonymous_code = false;
            traced.modules.clear();
            traced.unmapped = None;
            traced.program_break = None;
            traced.program = info.program;
            traced.other_program = None;
            // Nobody has seen the new program run; it may wait while its libraries are read.
            traced.flags |= process_flag::STOP_FOR_CODE;
            // A runtime moves a process into its container before it runs the program.
            let namespaces = process::namespaces(&info);
            let ProcessInfo { exe, command, .. } = info;
            self.end_jit_names(pid, &mut jit_names, time);
            self.out.push(Record::Exec { time, pid, exe, command });
            self.out.push(Record::Namespaces(namespaces));
            let updated = self.update_code(pid);
            self.closer.close(outdated);
            updated
        } else {
            self.watch(pid);
            self.begin(&info, Arrival::Started)
        };
        self.survive(begun)
    }

    /// What happens to one process does not end the session; the kernel half failing does.
    pub(super) fn survive(&mut self, result: Result<(), TracerError>) -> Result<(), TracerError> {
        match result {
            Err(TracerError::Process(error)) => {
                tracing::debug!("{error}");
                if !matches!(
                    error,
                    ProcessError::NoSuchProcess { .. } | ProcessError::Zombie { .. }
                ) {
                    self.anomalies.attach_failures += 1;
                }
                Ok(())
            }
            Err(error @ (TracerError::Seccomp { .. } | TracerError::ShadowStack { .. })) => {
                tracing::warn!("left out: {error}");
                self.anomalies.attach_failures += 1;
                Ok(())
            }
            other => other,
        }
    }

    fn begin(&mut self, info: &ProcessInfo, arrival: Arrival) -> Result<(), TracerError> {
        let pid = info.identity.pid;
        let time = match arrival {
            Arrival::Running => self.clock.now(),
            Arrival::Forked(_) | Arrival::Started => self.clock.last(),
        };
        let handle = PidFd::open(pid)?;
        let Some(index) = self.free_indices.pop() else {
            self.anomalies.attach_failures += 1;
            return Ok(());
        };
        let parent = match arrival {
            Arrival::Forked(parent) => Some(parent),
            Arrival::Running | Arrival::Started => {
                Some(info.parent).filter(|parent| self.processes.contains_key(parent))
            }
        };
        self.out.push(Record::Process(record::Process {
            time,
            pid,
            parent,
            exe: info.exe.clone(),
            command: info.command.clone(),
        }));
        self.out.push(Record::Namespaces(process::namespaces(info)));
        if arrival == Arrival::Running {
            self.out.push(Record::BeforeAttach(process::before_attach(pid)?));
        }
        let mut flags = 0;
        if self.options.children == Children::Follow {
            flags |= process_flag::FOLLOW_CHILDREN;
        }
        if arrival == Arrival::Running && self.options.new_code == NewCode::Stop {
            flags |= process_flag::STOP_FOR_CODE;
        }
        let parent_flags = parent
            .and_then(|parent| self.processes.get(&parent))
            .map_or(process_flag::STOP_FOR_CODE, |parent| parent.flags);
        if arrival != Arrival::Running {
            // A program that memtrace started may be stopped whenever it maps code; one that was
            // running may not, and its children are like it.
            flags |= parent_flags & process_flag::STOP_FOR_CODE;
        }
        self.processes.insert(
            pid,
            Traced {
                handle,
                had_ended: false,
                memory_samples: MemorySamples::new(monotonic_ns()),
                program: info.program,
                other_program: None,
                index,
                flags,
                code_changes: 0,
                modules: BTreeMap::new(),
                regions: None,
                unmapped: None,
                probed: Probed::new(pid),
                program_break: None,
                has_anonymous_code: false,
                jit_names: JitNames::new(info),
            },
        );
        let mut begun = self.update_code(pid).and_then(|()| self.note_threads(pid, time));
        if arrival == Arrival::Running {
            begun = begun.and_then(|()| self.note_reserved(pid, time));
        }
        if begun.is_err() {
            self.exited(pid, time);
        }
        begun
    }

    /// Tells of the threads, and looks once more for code that came meanwhile.
    fn note_threads(&mut self, pid: Pid, time: Time) -> Result<(), TracerError> {
        for process::Thread { tid, name } in process::threads(pid)? {
            self.threads.insert(tid, pid);
            self.out.push(Record::Thread { time, pid, tid, name });
        }
        self.update_code(pid)
    }
}
