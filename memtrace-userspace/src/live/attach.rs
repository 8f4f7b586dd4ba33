//! Attaching to a process, and following what it becomes.
//!
//! The order matters: first the tables, then the kernel is told of the process, then the probes
//! are placed. So the first event that a probe sends has everything that its walk needs.

use std::collections::{BTreeMap, HashSet};

use memtrace_common::addr::{Avma, FileOffset, Svma};
use memtrace_common::config::{self, process_flag};
use memtrace_common::unwind::Row;

use super::allocators::survey::{Found, Verdict};
use super::clock::monotonic_ns;
use super::hazards;
use super::images::{self, ImageId, Images, Key, Reading};
use super::kernel_version::kernel_release;
use super::memory_samples::MemorySamples;
use super::perf_map::JitNames;
use super::pidfd::PidFd;
use super::probed::Probed;
use super::process::{self, Mapped, Mapping, ProcessError, ProcessInfo, ProgramId};
use super::tables::{self, NoRoom, Placed, Regions};
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
    flags: u32,
    /// How often it had made code executable when its mappings were read.
    code_changes: u64,
    /// The mappings of code that the kernel knows, by start.
    pub(super) modules: BTreeMap<Avma, Module>,
    pub(super) regions: Option<Regions>,
    /// Code that the thread's `munmap` took last; it comes back if the call fails.
    unmapped: Option<(Tid, Vec<(Avma, Module)>)>,
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

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Module {
    pub(super) end: Avma,
    offset: FileOffset,
    key: Key,
    pub(super) image: ImageId,
}

impl Module {
    /// Whether it is code that was made at run time.
    pub(super) fn is_anonymous(&self) -> bool {
        self.key == Key::Anonymous
    }

    /// Whether it still is what `mapping` shows at its start.
    fn is(&self, mapping: &Mapping) -> bool {
        self.end == mapping.end && self.offset == mapping.offset && self.key == Key::of(mapping)
    }
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

    /// The unwind row of the code at `pc`; `None` if `pid` has none there.
    pub(super) fn row_at(&self, pid: Pid, pc: Avma) -> Option<Row> {
        let (start, module) = self.processes.get(&pid)?.modules.range(..=pc).next_back()?;
        if pc >= module.end {
            return None;
        }
        let image = self.images.get(module.image)?;
        let row = image
            .load_bias(*start, module.offset)
            .zip(image.table.as_ref())
            .map(|(bias, table)| crate::cfi::lookup(table, Svma(pc.0.wrapping_sub(bias))));
        Some(row.unwrap_or(Row::NONE))
    }

    /// Code was mapped, or made executable.
    pub(super) fn code_changed(&mut self, pid: Pid) -> Result<(), TracerError> {
        if !self.processes.contains_key(&pid) {
            return Ok(());
        }
        let updated = self.update_code(pid);
        self.survive(updated)
    }

    /// A range is about to be unmapped.
    pub(super) fn code_unmapped(
        &mut self,
        pid: Pid,
        tid: Tid,
        start: Avma,
        length: u64,
    ) -> Result<(), TracerError> {
        let Some(traced) = self.processes.get_mut(&pid) else { return Ok(()) };
        // The thread goes on, so its last call has not failed.
        traced.unmapped.take_if(|(of, _)| *of == tid);
        if length == 0 {
            return Ok(());
        }
        let end = Avma(start.0.saturating_add(length));
        let gone: Vec<(Avma, Module)> = traced
            .modules
            .range(..end)
            .filter(|(_, module)| module.end > start)
            .map(|(start, module)| (*start, module.clone()))
            .collect();
        if gone.is_empty() {
            return Ok(());
        }
        let time = self.clock.last();
        for (start, _) in &gone {
            traced.modules.remove(start);
            self.out.push(Record::ModuleGone { time, pid, start: *start });
        }
        traced.unmapped = Some((tid, gone));
        self.write_modules(pid)
    }

    /// The thread's `munmap` or `mremap` has failed: what it took is still there.
    ///
    /// The process may have ended since, so its mappings cannot be read again.
    pub(super) fn unmap_failed(&mut self, pid: Pid, tid: Tid) -> Result<(), TracerError> {
        let Some(traced) = self.processes.get_mut(&pid) else { return Ok(()) };
        let Some((_, kept)) = traced.unmapped.take_if(|(of, _)| *of == tid) else {
            return Ok(());
        };
        let time = self.clock.last();
        for (start, module) in kept {
            let record = module_record(&self.images, time, pid, start, &module);
            self.out.push(Record::Module(record));
            traced.modules.insert(start, module);
        }
        self.write_modules(pid)
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

    /// Brings the kernel's view of the code of `pid` up to date.
    fn update_code(&mut self, pid: Pid) -> Result<(), TracerError> {
        // What comes after this look is ahead of the tables that are about to be written.
        let code_changes = self.kernel.code_changes(self.index_of(pid))?;
        // Fails if the process ends. Events that it sent before still need the names of its code.
        let mappings = process::mappings(pid)?;
        let time = self.clock.last();
        let code: Vec<&Mapping> = mappings.iter().filter(|mapping| mapping.is_code()).collect();
        let new: Vec<&Mapping> = code.iter().copied().filter(|m| !self.knows(pid, m)).collect();
        let new_images = self.images.read(pid, &new);
        if self.images.are_many() {
            self.forget_unused(&new_images);
        }
        for id in &new_images {
            self.place_table(*id, &new_images);
        }

        let Some(traced) = self.processes.get_mut(&pid) else { return Ok(()) };
        if traced.program_break.is_none() {
            traced.program_break = mappings
                .iter()
                .find(|mapping| mapping.mapped == Mapped::Heap)
                .map(|mapping| mapping.end);
        }
        let mut now: BTreeMap<Avma, Module> = new
            .iter()
            .zip(&new_images)
            .map(|(mapping, image)| {
                let Mapping { start, end, offset, .. } = **mapping;
                (start, Module { end, offset, key: Key::of(mapping), image: *image })
            })
            .collect();
        for mapping in &code {
            if let Some(module) = traced.modules.get(&mapping.start) {
                now.entry(mapping.start).or_insert_with(|| module.clone());
            }
        }
        let is_behind = traced.code_changes != code_changes;
        traced.code_changes = code_changes;
        if now != traced.modules {
            for start in traced.modules.keys().filter(|start| !now.contains_key(start)) {
                self.out.push(Record::ModuleGone { time, pid, start: *start });
            }
            for (start, module) in &now {
                if traced.modules.get(start) == Some(module) {
                    continue;
                }
                let record = module_record(&self.images, time, pid, *start, module);
                self.out.push(Record::Module(record));
            }
            if now.values().any(Module::is_anonymous) {
                traced.has_anonymous_code = true;
                traced.jit_names.expect();
            }
            traced.modules = now;
            self.write_modules(pid)?;
        } else if is_behind {
            self.write_modules(pid)?;
        }
        self.kernel.add_process(pid, self.index_of(pid))?;
        tracing::debug!("the tables of {} are written", pid.0);
        self.place_probes(pid)?;
        self.images.save(&new_images);
        Ok(())
    }

    /// Whether this mapping of `pid` is one of its modules.
    fn knows(&self, pid: Pid, mapping: &Mapping) -> bool {
        let traced = self.processes.get(&pid);
        let module = traced.and_then(|traced| traced.modules.get(&mapping.start));
        module.is_some_and(|module| module.is(mapping))
    }

    fn index_of(&self, pid: Pid) -> u32 {
        self.processes.get(&pid).map_or(0, |traced| traced.index)
    }

    /// Writes the unwind table of an image, unless it is there. `needed` is in use, or about to be.
    fn place_table(&mut self, id: ImageId, needed: &[ImageId]) {
        if self.placed.contains_key(&id) {
            return;
        }
        let Some(analysis) = self.images.get(id).cloned() else { return };
        self.anomalies.files_unreadable += u64::from(analysis.reading == Reading::Failed);
        let placed = match &analysis.table {
            None => Ok(Placed::NOTHING),
            Some(table) => self.tables.place(&mut self.kernel, table).or_else(|_| {
                self.forget_unused(needed);
                self.tables.place(&mut self.kernel, table)
            }),
        };
        match placed {
            Ok(_) => {}
            Err(NoRoom::Rows) => self.anomalies.tables_without_room_for_rows += 1,
            Err(NoRoom::Buckets) => self.anomalies.tables_without_room_for_text += 1,
        }
        self.placed.insert(id, placed.unwrap_or(Placed::NOTHING));
    }

    /// Forgets the images that no process maps and that are not `needed`, and takes back the room
    /// of their tables.
    fn forget_unused(&mut self, needed: &[ImageId]) {
        let mut used: HashSet<ImageId> = needed.iter().copied().collect();
        for traced in self.processes.values() {
            let unmapped = traced.unmapped.iter().flat_map(|(_, modules)| modules);
            let modules = traced.modules.values().chain(unmapped.map(|(_, module)| module));
            used.extend(modules.map(|module| module.image));
        }
        let forgotten = self.images.forget_unless(|id| used.contains(&id));
        tracing::debug!("forgot {} files that nobody maps any more", forgotten.len());
        for id in forgotten {
            if let Some(placed) = self.placed.remove(&id) {
                self.tables.remove(placed);
            }
        }
    }

    /// Gives the kernel the modules of `pid`, in a new generation.
    fn write_modules(&mut self, pid: Pid) -> Result<(), TracerError> {
        let Some(traced) = self.processes.get_mut(&pid) else { return Ok(()) };
        let modules: Vec<config::Module> = traced
            .modules
            .iter()
            .map(|(start, Module { end, offset, key: _, image: id })| {
                let image = self.images.get(*id);
                let bias = image.and_then(|image| image.load_bias(*start, *offset));
                let placed = self.placed.get(id).copied().unwrap_or(Placed::NOTHING);
                match bias {
                    Some(bias) => tables::module(*start, *end, bias, placed),
                    None => tables::module(*start, *end, 0, Placed::NOTHING),
                }
            })
            .collect();
        let (region, written) =
            self.tables.write_modules(&mut self.kernel, &mut traced.regions, &modules)?;
        self.anomalies.modules_without_room += (modules.len() - written) as u64;
        self.generation = self.generation.wrapping_add(1);
        let process = config::Process {
            generation: self.generation,
            modules: region.first,
            module_count: region.count,
            flags: traced.flags,
            code_changes: traced.code_changes,
        };
        self.kernel.set_process(traced.index, process)?;
        Ok(())
    }
}

/// What the trace says of a mapping of code.
fn module_record(
    images: &Images,
    time: Time,
    pid: Pid,
    start: Avma,
    module: &Module,
) -> record::Module {
    let Module { end, offset, key: _, image } = *module;
    let image =
        images.get(image).map_or(record::Image::Anonymous, |analysis| analysis.image.clone());
    record::Module { time, pid, start, end, offset, image }
}
