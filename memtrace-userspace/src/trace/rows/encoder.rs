//! Records to rows.

use memtrace_common::addr::Avma;
use memtrace_common::unwind::End;

use super::tag;
use crate::record::{
    BeforeAttach, EndReason, Image, LimitKind, MemoryByKind, MemoryFigures, Module, Namespaces,
    Origin, Pid, Probe, ProbeCost, Process, Record, Session, Tid,
};
use crate::trace::bytes::{delta, put_bytes, put_varint};
use crate::trace::model::{MAX_SHARED_FRAMES, Model};

/// Room for the numbers of any row: no variant has more than eight outside lists and texts.
const FIXED_BYTES: usize = 100;

/// An upper bound of the bytes that the row of a record takes; 0 if it goes into columns.
pub(in crate::trace) fn bytes_bound(record: &Record) -> usize {
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
        Record::Operation { class, .. } => text(class.as_bytes()),
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

/// Writes a record that goes into no column but that of its time, if it has one.
pub(in crate::trace) fn put(out: &mut Vec<u8>, record: &Record) {
    match record {
        Record::Session(session) => put_session(out, session),
        Record::Probe(probe) => put_probe(out, probe),
        Record::Process(process) => put_process(out, process),
        Record::BeforeAttach(before) => put_before_attach(out, before),
        Record::Namespaces(namespaces) => put_namespaces(out, namespaces),
        Record::Module(module) => put_module(out, module),
        Record::Operation { pid, start, length, class } => {
            put_process_row(out, tag::OPERATION, *pid);
            put_varint(out, start.0);
            put_varint(out, *length);
            put_bytes(out, class.as_bytes());
        }
        Record::ModuleGone { time: _, pid, start } => {
            put_process_row(out, tag::MODULE_GONE, *pid);
            put_varint(out, start.0);
        }
        Record::Thread { time: _, pid, tid, name } => {
            put_process_row(out, tag::THREAD, *pid);
            put_varint(out, u64::from(tid.0));
            put_bytes(out, name);
        }
        Record::ThreadExit { time: _, tid } => {
            out.push(tag::THREAD_EXIT);
            put_varint(out, u64::from(tid.0));
        }
        Record::Fork { time: _, parent, child } => {
            put_process_row(out, tag::FORK, *parent);
            put_pid(out, *child);
        }
        Record::Exec { time: _, pid, exe, command } => {
            put_process_row(out, tag::EXEC, *pid);
            put_bytes(out, exe);
            put_list(out, command);
        }
        Record::Exit { time: _, pid } => put_process_row(out, tag::EXIT, *pid),
        Record::Resident { time: _, pid, rss_bytes } => {
            put_process_row(out, tag::RESIDENT, *pid);
            put_varint(out, *rss_bytes);
        }
        Record::MemoryDetail { time: _, pid, memory } => {
            put_process_row(out, tag::MEMORY_DETAIL, *pid);
            put_memory(out, memory);
        }
        Record::JitSymbol { time: _, pid, start, size, name } => {
            put_process_row(out, tag::JIT_SYMBOL, *pid);
            put_varint(out, start.0);
            put_varint(out, *size);
            put_bytes(out, name);
        }
        Record::MemoryLimit { time: _, pid, kind, limit_bytes, used_bytes } => {
            put_process_row(out, tag::MEMORY_LIMIT, *pid);
            out.push(match kind {
                LimitKind::Machine => 0,
                LimitKind::Cgroup => 1,
            });
            put_varint(out, *limit_bytes);
            put_varint(out, *used_bytes);
        }
        Record::Counters(counters) => put_counters(out, counters),
        Record::Mark { time: _, text } => {
            out.push(tag::MARK);
            put_bytes(out, text.as_bytes());
        }
        Record::Tick { time: _ } => out.push(tag::TICK),
        Record::End { time: _, reason } => {
            out.push(tag::END);
            out.push(match reason {
                EndReason::TargetExited => 0,
                EndReason::Interrupted => 1,
                EndReason::DurationOver => 2,
            });
        }
        // These are columns, with `put_stack` or `put_holder` for what is left of some.
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
        | Record::Decommit { .. }
        | Record::Held { .. }
        | Record::Stack { .. } => {}
    }
}

/// The id goes into the columns of stacks. Outer frames that the stack before had are counted.
pub(in crate::trace) fn put_stack(
    out: &mut Vec<u8>,
    model: &mut Model,
    pid: Pid,
    end: End,
    frames: &[Avma],
) {
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

/// The holder of something held has no tag: its operation says what it is.
pub(in crate::trace) fn put_holder(out: &mut Vec<u8>, pid: Pid, tid: Tid) {
    put_pid(out, pid);
    put_varint(out, u64::from(tid.0));
}

fn put_session(out: &mut Vec<u8>, session: &Session) {
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

fn put_probe(out: &mut Vec<u8>, probe: &Probe) {
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

fn put_process(out: &mut Vec<u8>, process: &Process) {
    let Process { time: _, pid, parent, exe, command } = process;
    put_process_row(out, tag::PROCESS, *pid);
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

fn put_before_attach(out: &mut Vec<u8>, before: &BeforeAttach) {
    let BeforeAttach { pid, heap_bytes, anonymous_bytes, resident_bytes } = *before;
    put_process_row(out, tag::BEFORE_ATTACH, pid);
    put_varint(out, heap_bytes);
    put_varint(out, anonymous_bytes);
    put_varint(out, resident_bytes);
}

fn put_namespaces(out: &mut Vec<u8>, namespaces: &Namespaces) {
    let Namespaces { pid, inner_pids, cgroup, container } = namespaces;
    put_process_row(out, tag::NAMESPACES, *pid);
    out.extend_from_slice(&(inner_pids.len() as u32).to_le_bytes());
    for inner in inner_pids {
        put_varint(out, u64::from(*inner));
    }
    put_optional(out, cgroup.as_deref());
    put_optional(out, container.as_deref());
}

fn put_module(out: &mut Vec<u8>, module: &Module) {
    let Module { time: _, pid, start, end, offset, image } = module;
    put_process_row(out, tag::MODULE, *pid);
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

fn put_memory(out: &mut Vec<u8>, memory: &MemoryByKind) {
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

fn put_counters(out: &mut Vec<u8>, counters: &[(String, u64)]) {
    out.push(tag::COUNTERS);
    out.extend_from_slice(&(counters.len() as u32).to_le_bytes());
    for (name, value) in counters {
        put_bytes(out, name.as_bytes());
        put_varint(out, *value);
    }
}

/// What most rows begin with.
fn put_process_row(out: &mut Vec<u8>, tag: u8, pid: Pid) {
    out.push(tag);
    put_pid(out, pid);
}

fn put_pid(out: &mut Vec<u8>, pid: Pid) {
    put_varint(out, u64::from(pid.0));
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

fn put_list(out: &mut Vec<u8>, list: &[Vec<u8>]) {
    out.extend_from_slice(&(list.len() as u32).to_le_bytes());
    for item in list {
        put_bytes(out, item);
    }
}
