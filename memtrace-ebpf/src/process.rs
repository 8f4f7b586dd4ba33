//! The life of processes and threads, and stopping a process until the daemon has attached.
//!
//! A process is stopped only where that disturbs it least: a new child before its first
//! instruction, a new program before its first instruction, and (for programs that memtrace
//! started) a call that maps code, before it returns; there, other threads' system calls may end
//! early (`EINTR`, signal(7)). A program that is to be read at its end is stopped there. Nobody is
//! stopped unless the daemon has shown a moment ago that it lives and the ring has room to tell it,
//! and a guardian continues what a dead daemon left stopped.

use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_probe_read_kernel_str, bpf_send_signal};
use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid};
use aya_ebpf::programs::{BtfTracePointContext, ProbeContext};
use memtrace_common::config::process_flag;
use memtrace_common::counter::Counter;
use memtrace_common::event::{Header, Kind, Task};

use crate::emit::{self, Context, Urgency, header, tell};
use crate::maps::{PENDING, PROCESS_INDEX, PROCESSES, count, setting, shared, shared_value};
use crate::slots;
use crate::task::kernel_word;

const SIGSTOP: u32 = 19;

/// A daemon that was silent for longer is taken for dead.
const HEARTBEAT_LIMIT_NS: u64 = 10_000_000_000;

/// Values of [`PENDING`].
pub mod pending {
    /// Stop it at its first return to user space.
    pub const FORKED: u32 = 1;
    /// It borrows its parent's memory until it runs a program: stop it then.
    pub const VFORKED: u32 = 2;
}

/// The current thread has made another.
#[inline(always)]
pub fn forked(ctx: &BtfTracePointContext) -> Option<()> {
    let parent_tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // SAFETY: a map value, written before the key is visible.
    let process = PROCESS_INDEX.get_ptr(parent_tgid).map(|index| unsafe { *index })?;
    let parent: u64 = ctx.arg(0);
    let child: u64 = ctx.arg(1);
    let child_tid = kernel_word(child, setting!(offsets.task_pid)) as u32;
    let child_tgid = kernel_word(child, setting!(offsets.task_tgid)) as u32;
    // A slot that an earlier thread of this id left behind must not be taken for its.
    slots::give_back(child_tid);
    let shares_memory = kernel_word(parent, setting!(offsets.task_mm))
        == kernel_word(child, setting!(offsets.task_mm));
    if shares_memory {
        // A thread; or a child of vfork, which uses its parent's memory like one until it runs a
        // program.
        let event = Task {
            header: Header { tid: child_tid, ..header(Kind::ThreadStart, 0, 0) },
            pid: parent_tgid,
            parent_pid: 0,
            comm: bpf_get_current_comm().unwrap_or_default(),
        };
        emit::send(event, Counter::LostLifecycle, Urgency::Normal, Context::Tracepoint);
    }
    if child_tgid == parent_tgid {
        return Some(());
    }
    if shares_memory {
        count(Counter::VforkChildren);
        // Counted where it finds no room.
        let _ = slots::make(child_tid, process, parent_tgid);
    }
    if PROCESSES.get(process)?.flags & process_flag::FOLLOW_CHILDREN == 0 {
        if !shares_memory {
            count(Counter::ForksNotTraced);
        }
        return None;
    }
    let how = if shares_memory { pending::VFORKED } else { pending::FORKED };
    tell!(ctx, "process {} has the child {}, which comes {}", parent_tgid, child_tgid, how);
    if PENDING.insert(child_tgid, how, 0).is_ok() && !shares_memory {
        let event = Task {
            header: Header { tid: child_tid, ..header(Kind::Fork, 0, 0) },
            pid: child_tgid,
            parent_pid: parent_tgid,
            comm: bpf_get_current_comm().unwrap_or_default(),
        };
        emit::send(event, Counter::LostLifecycle, Urgency::WakeUp, Context::Tracepoint);
    }
    Some(())
}

/// A new process is about to run its first instruction.
#[inline(always)]
pub fn first_return() {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let Some(how) = PENDING.get_ptr(tgid) else { return };
    // SAFETY: a map value.
    if unsafe { *how } == pending::FORKED {
        let _ = PENDING.remove(tgid);
        stop_current();
    }
}

/// The current process runs a new program.
#[inline(always)]
pub fn executed(ctx: &BtfTracePointContext) -> Option<()> {
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    give_memory_back(tgid);
    // Its calls are those of a new program from here on.
    slots::give_back(pid_tgid as u32);
    let was_pending = PENDING.get_ptr(tgid).is_some();
    if !was_pending && PROCESS_INDEX.get_ptr(tgid).is_none() {
        return None;
    }
    let _ = PENDING.remove(tgid);
    tell!(ctx, "process {} runs a new program", tgid);
    send_current(Kind::Exec, Urgency::Normal);
    stop_current();
    Some(())
}

/// A child of vfork stops being a thread of its parent, which it was counted as.
#[inline(always)]
fn give_memory_back(tgid: u32) {
    let Some(slot) = slots::find(bpf_get_current_pid_tgid() as u32) else { return };
    // SAFETY: a map value; a thread is in one program at a time.
    let owner = unsafe { (*slot).tgid };
    if owner != tgid {
        let event = Task { pid: owner, ..current_task(Kind::ThreadExit) };
        emit::send(event, Counter::LostLifecycle, Urgency::Normal, Context::Tracepoint);
    }
}

/// The current thread ends.
#[inline(always)]
pub fn exited(ctx: &BtfTracePointContext) -> Option<()> {
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    give_memory_back(tgid);
    slots::give_back(pid_tgid as u32);
    if PROCESS_INDEX.get_ptr(tgid).is_none() {
        let _ = PENDING.remove(tgid);
        return None;
    }
    send_current(Kind::ThreadExit, Urgency::Normal);
    // SAFETY: a helper without preconditions.
    let task = unsafe { aya_ebpf::helpers::generated::bpf_get_current_task() };
    let signal = kernel_word(task, setting!(offsets.task_signal));
    if kernel_word(signal, setting!(offsets.signal_live)) as u32 == 0 {
        let _ = PROCESS_INDEX.remove(tgid);
        tell!(ctx, "process {} has ended", tgid);
        send_current(Kind::ProcessExit, Urgency::WakeUp);
    }
    Some(())
}

/// A thread has a new name.
#[inline(always)]
pub fn renamed(ctx: &BtfTracePointContext) -> Option<()> {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let task: u64 = ctx.arg(0);
    let name: *const core::ffi::c_void = ctx.arg(1);
    PROCESS_INDEX.get_ptr(tgid)?;
    let pid = kernel_word(task, setting!(offsets.task_tgid)) as u32;
    let tid = kernel_word(task, setting!(offsets.task_pid)) as u32;
    let mut comm = [0u8; 16];
    // SAFETY: the helper checks the address and ends the copy at the size.
    let length = unsafe { bpf_probe_read_kernel_str(comm.as_mut_ptr().cast(), 16, name) };
    if length < 0 {
        return None;
    }
    let event =
        Task { header: Header { tid, ..header(Kind::ThreadName, 0, 0) }, pid, parent_pid: 0, comm };
    emit::send(event, Counter::LostLifecycle, Urgency::Normal, Context::Tracepoint);
    Some(())
}

/// Sends an event about the current thread.
#[inline(always)]
pub fn send_current(kind: Kind, urgency: Urgency) {
    emit::send(current_task(kind), Counter::LostLifecycle, urgency, Context::Tracepoint);
}

/// An event about the current thread.
#[inline(always)]
fn current_task(kind: Kind) -> Task {
    Task {
        header: header(kind, 0, 0),
        pid: (bpf_get_current_pid_tgid() >> 32) as u32,
        parent_pid: 0,
        comm: bpf_get_current_comm().unwrap_or_default(),
    }
}

/// The current process is about to end.
#[inline(always)]
pub fn ends(ctx: &ProbeContext) -> Option<()> {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    PROCESS_INDEX.get_ptr(tgid)?;
    tell!(ctx, "process {} is about to end", tgid);
    stop_and_send(Kind::Ending);
    Some(())
}

/// Stops the current process until the daemon continues it, if the daemon lives.
#[inline(always)]
pub fn stop_current() {
    stop_and_send(Kind::Stopped);
}

#[inline(always)]
fn stop_and_send(kind: Kind) {
    let Some(heartbeat) = shared_value(shared::HEARTBEAT_NS) else { return };
    // SAFETY: a helper without preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    if now_ns.wrapping_sub(heartbeat) > HEARTBEAT_LIMIT_NS {
        return;
    }
    // Room first: whoever is stopped and not told of would stay stopped.
    emit::reserved(current_task(kind), Counter::LostLifecycle, || {
        // SAFETY: a helper without preconditions.
        unsafe { bpf_send_signal(SIGSTOP) == 0 }
    });
}
