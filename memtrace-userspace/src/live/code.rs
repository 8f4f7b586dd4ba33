//! What code each process has, for the kernel's walk and for the trace.
//!
//! Mappings are read whenever a process maps code. The tables of new ones are written first, then the
//! process's modules, in a new generation, and then the probes are placed.

use std::collections::{BTreeMap, HashSet};

use memtrace_common::addr::{Avma, FileOffset, Svma};
use memtrace_common::config::{self, process_flag};
use memtrace_common::unwind::Row;

use super::images::{ImageId, Images, Key, Reading};
use super::process::{self, Mapped, Mapping};
use super::tables::{self, NoRoom, Placed};
use super::tracer::{Tracer, TracerError};
use crate::record::{self, Pid, Record, Tid, Time};

/// A mapping of code.
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

impl Tracer {
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

    /// Brings the kernel's view of the code of `pid` up to date.
    pub(super) fn update_code(&mut self, pid: Pid) -> Result<(), TracerError> {
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
    pub(super) fn write_modules(&mut self, pid: Pid) -> Result<(), TracerError> {
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
            flags: traced.flags | process_flag::probe_set(traced.probed.set()),
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
