//! Rare records, one after the other.
//!
//! ```text
//!   | tag 1 | fields in the order of their declaration, without the time |
//! ```
//!
//! Numbers are varints, texts and lists a 32-bit length and what it counts. A length of its own
//! size keeps the memory a row can ask for within a small multiple of its bytes.

use memtrace_common::addr::{Avma, FileOffset};
use memtrace_common::unwind::End;

use crate::record::{
    BeforeAttach, EndReason, Image, LimitKind, MapKind, MemoryByKind, MemoryFigures, Module,
    Namespaces, Origin, Pid, Probe, ProbeCost, Process, Record, Session, Tid, Time, WireStackId,
};

use super::bytes::{Input, delta, put_bytes, put_varint, undelta};
use super::error::Damage;
use super::format::MAX_STACK_FRAMES;
use super::model::{MAX_SHARED_FRAMES, Model};

/// First byte of a row.
mod tag {
    pub(super) const SESSION: u8 = 0;
    pub(super) const PROBE: u8 = 1;
    pub(super) const PROCESS: u8 = 2;
    pub(super) const BEFORE_ATTACH: u8 = 3;
    pub(super) const MODULE: u8 = 4;
    pub(super) const MODULE_GONE: u8 = 5;
    pub(super) const THREAD: u8 = 6;
    pub(super) const THREAD_EXIT: u8 = 7;
    pub(super) const STACK: u8 = 8;
    pub(super) const FORK: u8 = 9;
    pub(super) const EXEC: u8 = 10;
    pub(super) const EXIT: u8 = 11;
    pub(super) const RESIDENT: u8 = 12;
    pub(super) const COUNTERS: u8 = 13;
    pub(super) const TICK: u8 = 14;
    pub(super) const END: u8 = 15;
    pub(super) const MARK: u8 = 16;
    pub(super) const JIT_SYMBOL: u8 = 17;
    pub(super) const NAMESPACES: u8 = 18;
    pub(super) const MEMORY_DETAIL: u8 = 19;
    pub(super) const MEMORY_LIMIT: u8 = 20;
}

/// Room for the numbers of any row: no variant has more than eight outside lists and texts.
const FIXED_BYTES: usize = 100;

/// An upper bound of the bytes that the row of a record takes; 0 if it goes into columns.
pub(super) fn bytes_bound(record: &Record) -> usize {
    let text = |text: &[u8]| text.len().saturating_add(4);
    let list =
        |list: &[Vec<u8>]| list.iter().fold(4, |sum: usize, item| sum.saturating_add(text(item)));
    let variable = match record {
        Record::Alloc { .. }
        | Record::Free { .. }
        | Record::Retire { .. }
        | Record::Restore { .. }
        | Record::Map { .. }
        | Record::Unmap { .. }
        | Record::UnmapFailed { .. }
        | Record::RemapStart { .. }
        | Record::Remap { .. }
        | Record::Break { .. }
        | Record::Commit { .. }
        | Record::Decommit { .. } => return 0,
        Record::Session(Session { tool_version, kernel, .. }) => {
            text(tool_version.as_bytes()).saturating_add(text(kernel.as_bytes()))
        }
        Record::Probe(Probe { symbol, module, .. }) => {
            text(symbol.as_bytes()).saturating_add(text(module))
        }
        Record::Process(Process { exe, command, .. }) | Record::Exec { exe, command, .. } => {
            text(exe).saturating_add(list(command))
        }
        Record::Module(Module { image: Image::File { path, build_id }, .. }) => {
            text(path).saturating_add(text(build_id))
        }
        Record::Module(Module { image: Image::Vdso | Image::Anonymous, .. }) => 0,
        Record::Mark { text: mark, .. } => text(mark.as_bytes()),
        Record::Namespaces(Namespaces { pid: _, inner_pids, cgroup, container }) => {
            let texts = [cgroup, container].into_iter().flatten();
            texts.fold(inner_pids.len().saturating_mul(5), |sum, t| sum.saturating_add(text(t)))
        }
        Record::Thread { name, .. } | Record::JitSymbol { name, .. } => text(name),
        Record::Stack { frames, .. } => frames.len().saturating_mul(10),
        Record::Counters(counters) => counters.iter().fold(4, |sum: usize, (name, _)| {
            sum.saturating_add(text(name.as_bytes())).saturating_add(10)
        }),
        // Five kinds of seven figures.
        Record::MemoryDetail { .. } => 5 * 7 * 10,
        Record::BeforeAttach(_)
        | Record::ModuleGone { .. }
        | Record::ThreadExit { .. }
        | Record::Fork { .. }
        | Record::Exit { .. }
        | Record::Resident { .. }
        | Record::Held { .. }
        | Record::MemoryLimit { .. }
        | Record::Tick { .. }
        | Record::End { .. } => 0,
    };
    variable.saturating_add(FIXED_BYTES)
}

fn put_list(out: &mut Vec<u8>, list: &[Vec<u8>]) {
    out.extend_from_slice(&(list.len() as u32).to_le_bytes());
    for item in list {
        put_bytes(out, item);
    }
}

fn put_pid(out: &mut Vec<u8>, pid: Pid) {
    put_varint(out, u64::from(pid.0));
}

pub(super) fn put_session(out: &mut Vec<u8>, session: &Session) {
    let Session { tool_version, kernel, started_unix_s, pid, origin } = session;
    out.push(tag::SESSION);
    put_bytes(out, tool_version.as_bytes());
    put_bytes(out, kernel.as_bytes());
    put_varint(out, *started_unix_s);
    put_pid(out, *pid);
    out.push(match origin {
        Origin::Attached => 0,
        Origin::Launched => 1,
    });
}

pub(super) fn put_probe(out: &mut Vec<u8>, probe: &Probe) {
    let Probe { symbol, module, offset, cost } = probe;
    out.push(tag::PROBE);
    put_bytes(out, symbol.as_bytes());
    put_bytes(out, module);
    put_varint(out, offset.0);
    out.push(match cost {
        ProbeCost::Emulated => 0,
        ProbeCost::Stepped => 1,
    });
}

pub(super) fn put_process(out: &mut Vec<u8>, process: &Process) {
    let Process { time: _, pid, parent, exe, command } = process;
    out.push(tag::PROCESS);
    put_pid(out, *pid);
    match parent {
        None => out.push(0),
        Some(parent) => {
            out.push(1);
            put_pid(out, *parent);
        }
    }
    put_bytes(out, exe);
    put_list(out, command);
}

pub(super) fn put_before_attach(out: &mut Vec<u8>, before: &BeforeAttach) {
    let BeforeAttach { pid, heap_bytes, anonymous_bytes, resident_bytes } = *before;
    out.push(tag::BEFORE_ATTACH);
    put_pid(out, pid);
    put_varint(out, heap_bytes);
    put_varint(out, anonymous_bytes);
    put_varint(out, resident_bytes);
}

pub(super) fn put_namespaces(out: &mut Vec<u8>, namespaces: &Namespaces) {
    let Namespaces { pid, inner_pids, cgroup, container } = namespaces;
    out.push(tag::NAMESPACES);
    put_pid(out, *pid);
    out.extend_from_slice(&(inner_pids.len() as u32).to_le_bytes());
    for inner in inner_pids {
        put_varint(out, u64::from(*inner));
    }
    put_optional(out, cgroup.as_deref());
    put_optional(out, container.as_deref());
}

fn put_optional(out: &mut Vec<u8>, text: Option<&[u8]>) {
    match text {
        None => out.push(0),
        Some(text) => {
            out.push(1);
            put_bytes(out, text);
        }
    }
}

pub(super) fn put_module(out: &mut Vec<u8>, module: &Module) {
    let Module { time: _, pid, start, end, offset, image } = module;
    out.push(tag::MODULE);
    put_pid(out, *pid);
    put_varint(out, start.0);
    put_varint(out, end.0.wrapping_sub(start.0));
    put_varint(out, offset.0);
    match image {
        Image::File { path, build_id } => {
            out.push(0);
            put_bytes(out, path);
            put_bytes(out, build_id);
        }
        Image::Vdso => out.push(1),
        Image::Anonymous => out.push(2),
    }
}

pub(super) fn put_module_gone(out: &mut Vec<u8>, pid: Pid, start: Avma) {
    out.push(tag::MODULE_GONE);
    put_pid(out, pid);
    put_varint(out, start.0);
}

pub(super) fn put_thread(out: &mut Vec<u8>, pid: Pid, tid: Tid, name: &[u8]) {
    out.push(tag::THREAD);
    put_pid(out, pid);
    put_varint(out, u64::from(tid.0));
    put_bytes(out, name);
}

pub(super) fn put_thread_exit(out: &mut Vec<u8>, tid: Tid) {
    out.push(tag::THREAD_EXIT);
    put_varint(out, u64::from(tid.0));
}

/// The id goes into the columns of stacks. Outer frames that the stack before had are counted.
pub(super) fn put_stack(out: &mut Vec<u8>, model: &mut Model, pid: Pid, end: End, frames: &[Avma]) {
    out.push(tag::STACK);
    put_pid(out, pid);
    put_varint(out, u64::from(end as u16));
    let outer = frames.iter().rev().zip(model.frames.iter().rev());
    let shared = outer.take_while(|(new, old)| new.0 == **old).take(MAX_SHARED_FRAMES).count();
    put_varint(out, shared as u64);
    let own = &frames[..frames.len() - shared];
    out.extend_from_slice(&(own.len() as u32).to_le_bytes());
    let mut last = model.frames.first().copied().unwrap_or(0);
    for frame in own {
        put_varint(out, delta(last, frame.0));
        last = frame.0;
    }
    model.frames.clear();
    model.frames.extend(frames.iter().map(|frame| frame.0));
}

pub(super) fn put_fork(out: &mut Vec<u8>, parent: Pid, child: Pid) {
    out.push(tag::FORK);
    put_pid(out, parent);
    put_pid(out, child);
}

pub(super) fn put_exec(out: &mut Vec<u8>, pid: Pid, exe: &[u8], command: &[Vec<u8>]) {
    out.push(tag::EXEC);
    put_pid(out, pid);
    put_bytes(out, exe);
    put_list(out, command);
}

pub(super) fn put_exit(out: &mut Vec<u8>, pid: Pid) {
    out.push(tag::EXIT);
    put_pid(out, pid);
}

pub(super) fn put_resident(out: &mut Vec<u8>, pid: Pid, rss_bytes: u64) {
    out.push(tag::RESIDENT);
    put_pid(out, pid);
    put_varint(out, rss_bytes);
}

pub(super) fn put_memory_detail(out: &mut Vec<u8>, pid: Pid, memory: &MemoryByKind) {
    out.push(tag::MEMORY_DETAIL);
    put_pid(out, pid);
    for figures in memory.all() {
        let MemoryFigures {
            size_bytes,
            reserved_bytes,
            resident_bytes,
            proportional_bytes,
            private_dirty_bytes,
            swapped_bytes,
            huge_bytes,
        } = figures;
        put_varint(out, size_bytes);
        put_varint(out, reserved_bytes);
        put_varint(out, resident_bytes);
        put_varint(out, proportional_bytes);
        put_varint(out, private_dirty_bytes);
        put_varint(out, swapped_bytes);
        put_varint(out, huge_bytes);
    }
}

pub(super) fn put_jit_symbol(out: &mut Vec<u8>, pid: Pid, start: Avma, size: u64, name: &[u8]) {
    out.push(tag::JIT_SYMBOL);
    put_pid(out, pid);
    put_varint(out, start.0);
    put_varint(out, size);
    put_bytes(out, name);
}

pub(super) fn put_memory_limit(
    out: &mut Vec<u8>,
    pid: Pid,
    kind: LimitKind,
    limit_bytes: u64,
    used_bytes: u64,
) {
    out.push(tag::MEMORY_LIMIT);
    put_pid(out, pid);
    out.push(match kind {
        LimitKind::Machine => 0,
        LimitKind::Cgroup => 1,
    });
    put_varint(out, limit_bytes);
    put_varint(out, used_bytes);
}

pub(super) fn put_counters(out: &mut Vec<u8>, counters: &[(String, u64)]) {
    out.push(tag::COUNTERS);
    out.extend_from_slice(&(counters.len() as u32).to_le_bytes());
    for (name, value) in counters {
        put_bytes(out, name.as_bytes());
        put_varint(out, *value);
    }
}

pub(super) fn put_mark(out: &mut Vec<u8>, text: &str) {
    out.push(tag::MARK);
    put_bytes(out, text.as_bytes());
}

/// The holder of something held has no tag: its operation says what it is.
pub(super) fn put_holder(out: &mut Vec<u8>, pid: Pid, tid: Tid) {
    put_pid(out, pid);
    put_varint(out, u64::from(tid.0));
}

pub(super) fn decode_holder(rows: &mut Input) -> Result<(Pid, Tid), Damage> {
    Ok((pid(rows)?, Tid(rows.varint_u32()?)))
}

pub(super) fn put_tick(out: &mut Vec<u8>) {
    out.push(tag::TICK);
}

pub(super) fn put_end(out: &mut Vec<u8>, reason: EndReason) {
    out.push(tag::END);
    out.push(match reason {
        EndReason::TargetExited => 0,
        EndReason::Interrupted => 1,
        EndReason::DurationOver => 2,
    });
}

/// The number of a [`MapKind`], which is a column's business to place.
pub(super) fn map_kind_number(kind: MapKind) -> u8 {
    match kind {
        MapKind::Anonymous => 0,
        MapKind::File => 1,
        MapKind::Shared => 2,
        MapKind::Reserved => 3,
    }
}

/// The twin of [`map_kind_number`].
pub(super) fn map_kind(number: u8) -> Result<MapKind, Damage> {
    match number {
        0 => Ok(MapKind::Anonymous),
        1 => Ok(MapKind::File),
        2 => Ok(MapKind::Shared),
        3 => Ok(MapKind::Reserved),
        _ => Err(unknown("the kind of a mapping", number)),
    }
}

fn unknown(what: &'static str, found: u8) -> Damage {
    Damage::UnknownValue { what, found: u64::from(found) }
}

fn pid(rows: &mut Input) -> Result<Pid, Damage> {
    rows.varint_u32().map(Pid)
}

fn count(rows: &mut Input) -> Result<u32, Damage> {
    rows.array().map(u32::from_le_bytes)
}

fn list(rows: &mut Input) -> Result<Vec<Vec<u8>>, Damage> {
    let count = count(rows)?;
    let mut list = Vec::with_capacity(rows.room_for(count, 4));
    for _ in 0..count {
        list.push(rows.bytes()?);
    }
    Ok(list)
}

fn optional(rows: &mut Input) -> Result<Option<Vec<u8>>, Damage> {
    match rows.byte()? {
        0 => Ok(None),
        1 => Ok(Some(rows.bytes()?)),
        other => Err(unknown("the mark of a text", other)),
    }
}

fn memory_figures(rows: &mut Input) -> Result<MemoryFigures, Damage> {
    Ok(MemoryFigures {
        size_bytes: rows.varint()?,
        reserved_bytes: rows.varint()?,
        resident_bytes: rows.varint()?,
        proportional_bytes: rows.varint()?,
        private_dirty_bytes: rows.varint()?,
        swapped_bytes: rows.varint()?,
        huge_bytes: rows.varint()?,
    })
}

fn decode_namespaces(rows: &mut Input) -> Result<Namespaces, Damage> {
    let pid = pid(rows)?;
    let count = count(rows)?;
    let mut inner_pids = Vec::with_capacity(rows.room_for(count, 1));
    for _ in 0..count {
        inner_pids.push(rows.varint_u32()?);
    }
    Ok(Namespaces { pid, inner_pids, cgroup: optional(rows)?, container: optional(rows)? })
}

/// Reads a row without a time. `stack_id` gives the id that belongs to a `Stack`.
pub(super) fn decode_untimed(
    rows: &mut Input,
    model: &mut Model,
    stack_id: impl FnOnce(&mut Model) -> Result<WireStackId, Damage>,
) -> Result<Record, Damage> {
    Ok(match rows.byte()? {
        tag::SESSION => Record::Session(Session {
            tool_version: rows.text()?,
            kernel: rows.text()?,
            started_unix_s: rows.varint()?,
            pid: pid(rows)?,
            origin: match rows.byte()? {
                0 => Origin::Attached,
                1 => Origin::Launched,
                other => return Err(unknown("a session's origin", other)),
            },
        }),
        tag::PROBE => Record::Probe(Probe {
            symbol: rows.text()?,
            module: rows.bytes()?,
            offset: FileOffset(rows.varint()?),
            cost: match rows.byte()? {
                0 => ProbeCost::Emulated,
                1 => ProbeCost::Stepped,
                other => return Err(unknown("a probe's cost", other)),
            },
        }),
        tag::BEFORE_ATTACH => Record::BeforeAttach(BeforeAttach {
            pid: pid(rows)?,
            heap_bytes: rows.varint()?,
            anonymous_bytes: rows.varint()?,
            resident_bytes: rows.varint()?,
        }),
        tag::NAMESPACES => Record::Namespaces(decode_namespaces(rows)?),
        tag::STACK => {
            let id = stack_id(model)?;
            decode_stack(rows, model, id)?
        }
        tag::COUNTERS => {
            let count = count(rows)?;
            let mut counters = Vec::with_capacity(rows.room_for(count, 5));
            for _ in 0..count {
                counters.push((rows.text()?, rows.varint()?));
            }
            Record::Counters(counters)
        }
        other => return Err(unknown("the tag of a row without a time", other)),
    })
}

fn decode_stack(rows: &mut Input, model: &mut Model, id: WireStackId) -> Result<Record, Damage> {
    let pid = pid(rows)?;
    let end = rows.varint()?;
    let end = u16::try_from(end)
        .ok()
        .and_then(End::from_wire)
        .ok_or(Damage::UnknownValue { what: "the end of a stack", found: end })?;
    let shared = rows.varint()?;
    let most = model.frames.len().min(MAX_SHARED_FRAMES) as u64;
    if shared > most {
        return Err(Damage::TooLarge {
            what: "the shared part of a stack",
            found: shared,
            limit: most,
        });
    }
    let mut last = model.frames.first().copied().unwrap_or(0);
    let own = count(rows)?;
    let frames = u64::from(own) + shared;
    if frames > MAX_STACK_FRAMES as u64 {
        let limit = MAX_STACK_FRAMES as u64;
        return Err(Damage::TooLarge { what: "the depth of a stack", found: frames, limit });
    }
    let mut frames = Vec::with_capacity(frames as usize);
    for _ in 0..own {
        last = undelta(last, rows.varint()?);
        frames.push(last);
    }
    let inner = model.frames.len() - shared as usize;
    frames.extend_from_slice(&model.frames[inner..]);
    let record =
        Record::Stack { id, pid, end, frames: frames.iter().map(|&frame| Avma(frame)).collect() };
    model.frames = frames;
    Ok(record)
}

/// Reads a row of something that happened at `time`.
pub(super) fn decode_timed(rows: &mut Input, time: Time) -> Result<Record, Damage> {
    Ok(match rows.byte()? {
        tag::PROCESS => Record::Process(Process {
            time,
            pid: pid(rows)?,
            parent: match rows.byte()? {
                0 => None,
                1 => Some(pid(rows)?),
                other => return Err(unknown("the mark of a parent", other)),
            },
            exe: rows.bytes()?,
            command: list(rows)?,
        }),
        tag::MODULE => {
            let pid = pid(rows)?;
            let start = rows.varint()?;
            Record::Module(Module {
                time,
                pid,
                start: Avma(start),
                end: Avma(start.wrapping_add(rows.varint()?)),
                offset: FileOffset(rows.varint()?),
                image: match rows.byte()? {
                    0 => Image::File { path: rows.bytes()?, build_id: rows.bytes()? },
                    1 => Image::Vdso,
                    2 => Image::Anonymous,
                    other => return Err(unknown("the kind of an image", other)),
                },
            })
        }
        tag::MODULE_GONE => {
            Record::ModuleGone { time, pid: pid(rows)?, start: Avma(rows.varint()?) }
        }
        tag::THREAD => Record::Thread {
            time,
            pid: pid(rows)?,
            tid: Tid(rows.varint_u32()?),
            name: rows.bytes()?,
        },
        tag::THREAD_EXIT => Record::ThreadExit { time, tid: Tid(rows.varint_u32()?) },
        tag::FORK => Record::Fork { time, parent: pid(rows)?, child: pid(rows)? },
        tag::EXEC => {
            Record::Exec { time, pid: pid(rows)?, exe: rows.bytes()?, command: list(rows)? }
        }
        tag::EXIT => Record::Exit { time, pid: pid(rows)? },
        tag::RESIDENT => Record::Resident { time, pid: pid(rows)?, rss_bytes: rows.varint()? },
        tag::MEMORY_DETAIL => Record::MemoryDetail {
            time,
            pid: pid(rows)?,
            memory: Box::new(MemoryByKind {
                heap: memory_figures(rows)?,
                anonymous: memory_figures(rows)?,
                file: memory_figures(rows)?,
                stack: memory_figures(rows)?,
                shared: memory_figures(rows)?,
            }),
        },
        tag::JIT_SYMBOL => Record::JitSymbol {
            time,
            pid: pid(rows)?,
            start: Avma(rows.varint()?),
            size: rows.varint()?,
            name: rows.bytes()?,
        },
        tag::MEMORY_LIMIT => Record::MemoryLimit {
            time,
            pid: pid(rows)?,
            kind: match rows.byte()? {
                0 => LimitKind::Machine,
                1 => LimitKind::Cgroup,
                other => return Err(unknown("the kind of a memory limit", other)),
            },
            limit_bytes: rows.varint()?,
            used_bytes: rows.varint()?,
        },
        tag::TICK => Record::Tick { time },
        tag::MARK => Record::Mark { time, text: rows.text()? },
        tag::END => Record::End {
            time,
            reason: match rows.byte()? {
                0 => EndReason::TargetExited,
                1 => EndReason::Interrupted,
                2 => EndReason::DurationOver,
                other => return Err(unknown("the reason of an end", other)),
            },
        },
        other => return Err(unknown("the tag of a row with a time", other)),
    })
}
