//! What the kernel half tells: each event becomes records, and some ask for more.
//!
//! ```text
//!   allocations, frees, stacks   Event ─→ Record
//!   mappings, threads            Event ─→ Record, and what the tracer knows of code and threads
//!   fork, exec, exit, stops      Event ─→ attach, new tables, detach, continue
//! ```

use memtrace_common::addr::Avma;
use memtrace_common::event::{Kind, Mapping, Task, flag};

use super::decode::{Event, RawStack};
use super::finish::finish;
use super::guardian::continue_process;
use super::process::PAGE_BYTES;
use super::tracer::{Tracer, TracerError};
use crate::record::{MapKind, Pid, Record, Tid, WireStackId};

impl Tracer {
    /// Makes records of an event, and does what it asks for.
    pub(super) fn handle(&mut self, event: Event) -> Result<(), TracerError> {
        match event {
            Event::Alloc(api, alignment, alloc) => {
                let time = self.clock.at(alloc.header.time_ns);
                self.out.push(Record::Alloc {
                    time,
                    tid: Tid(alloc.header.tid),
                    api,
                    ptr: Avma(alloc.ptr),
                    size: alloc.size,
                    alignment,
                    stack: WireStackId(alloc.stack),
                });
            }
            Event::Free(kind, api, free) => {
                let time = self.clock.at(free.header.time_ns);
                let (tid, ptr) = (Tid(free.header.tid), Avma(free.ptr));
                self.out.push(match kind {
                    Kind::Retire => Record::Retire { time, tid, ptr },
                    Kind::Restore => Record::Restore { time, tid, ptr },
                    _ => Record::Free { time, tid, api, ptr },
                });
            }
            Event::Stack(stack, end, frames) => {
                self.clock.at(stack.header.time_ns);
                self.note_jit_frames(Pid(stack.pid), &frames);
                self.out.push(Record::Stack {
                    id: WireStackId(stack.id),
                    pid: Pid(stack.pid),
                    end,
                    frames,
                });
            }
            Event::RawStack(mut raw) => {
                self.clock.at(raw.stack.header.time_ns);
                let (id, pid) = (WireStackId(raw.stack.id), Pid(raw.stack.pid));
                let end = finish(&mut raw, |pc| self.row_at(pid, pc));
                let RawStack { frames, .. } = *raw;
                self.note_jit_frames(pid, &frames);
                self.out.push(Record::Stack { id, pid, end, frames });
            }
            Event::Mapping(kind, mapping) => self.handle_mapping(kind, mapping)?,
            Event::Task(kind, task) => self.handle_task(kind, task)?,
        }
        Ok(())
    }

    fn handle_mapping(&mut self, kind: Kind, mapping: Mapping) -> Result<(), TracerError> {
        let Mapping { header, address, length, old_address, old_length, stack } = mapping;
        let time = self.clock.at(header.time_ns);
        let (tid, stack) = (Tid(header.tid), WireStackId(stack));
        let (start, length) = (Avma(address), pages(length));
        let pid = self.threads.get(&tid).copied();
        match kind {
            Kind::Map => {
                let map_kind = map_kind(header.flags);
                self.out.push(Record::Map { time, tid, start, length, kind: map_kind, stack });
                if header.flags & flag::EXECUTABLE != 0
                    && let Some(pid) = pid
                {
                    self.code_changed(pid)?;
                }
            }
            Kind::Unmap => {
                if let Some(pid) = pid {
                    self.code_unmapped(pid, tid, start, length)?;
                }
                self.out.push(Record::Unmap { time, tid, start, length });
            }
            Kind::UnmapFailed => {
                self.out.push(Record::UnmapFailed { time, tid });
                if let Some(pid) = pid {
                    self.unmap_failed(pid, tid)?;
                }
            }
            Kind::RemapStart => {
                let (start, length) = (Avma(old_address), pages(old_length));
                if let Some(pid) = pid {
                    self.code_unmapped(pid, tid, start, 0)?;
                }
                self.out.push(Record::RemapStart { time, tid, start, length });
            }
            Kind::Remap => self.out.push(Record::Remap { time, tid, start, length, stack }),
            Kind::Commit => self.out.push(Record::Commit { time, tid, start, length, stack }),
            Kind::Decommit => self.out.push(Record::Decommit { time, tid, start, length }),
            Kind::Break => {
                let Some(traced) = pid.and_then(|pid| self.processes.get_mut(&pid)) else {
                    return Ok(());
                };
                let old = traced.program_break.replace(start).unwrap_or(start);
                if old != start {
                    self.out.push(Record::Break { time, tid, old, new: start, stack });
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn handle_task(&mut self, kind: Kind, task: Task) -> Result<(), TracerError> {
        let Task { header, pid, parent_pid, comm } = task;
        let time = self.clock.at(header.time_ns);
        let (pid, tid) = (Pid(pid), Tid(header.tid));
        let name = comm.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
        match kind {
            Kind::ThreadStart | Kind::ThreadName => {
                self.threads.insert(tid, pid);
                self.out.push(Record::Thread { time, pid, tid, name });
            }
            Kind::ThreadExit => {
                self.threads.remove(&tid);
                self.out.push(Record::ThreadExit { time, tid });
                if tid.0 == pid.0 {
                    self.leader_exited(pid)?;
                }
            }
            Kind::Fork => {
                let parent = Pid(parent_pid);
                self.out.push(Record::Fork { time, parent, child: pid });
                self.threads.insert(tid, pid);
                self.out.push(Record::Thread { time, pid, tid, name });
                self.watch(pid);
                self.children.insert(pid, parent);
            }
            Kind::Exec => {
                self.expected.remove(&pid);
                self.children.remove(&pid);
                self.executed(pid, time)?;
            }
            Kind::ProcessExit => self.exited(pid, time),
            Kind::CodeChanged => self.code_changed(pid)?,
            Kind::Stopped => {
                if let Some(parent) = self.children.remove(&pid) {
                    self.attach_child(pid, parent)?;
                    if !self.processes.contains_key(&pid) {
                        self.forget_child(pid, time);
                    }
                }
                continue_process(pid);
            }
            Kind::Ending => self.endings.reached(pid),
            _ => {}
        }
        Ok(())
    }
}

fn pages(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(PAGE_BYTES).unwrap_or(bytes)
}

fn map_kind(flags: u16) -> MapKind {
    if flags & flag::RESERVED != 0 {
        MapKind::Reserved
    } else if flags & flag::FILE != 0 {
        MapKind::File
    } else if flags & flag::SHARED != 0 {
        MapKind::Shared
    } else {
        MapKind::Anonymous
    }
}
