//! The allocator's functions: acquire on return, release on entry.
//!
//! Only the outermost allocator call of a thread counts: `calloc` may call `malloc`, jemalloc's
//! `operator new` does. The thread's slot knows the stack pointer at which that call was entered.
//! A call that is entered further down is inside it, if the call is still on the stack; else the
//! call was left by `longjmp` or an exception, and is forgotten. A call that is entered at the same
//! stack pointer was jumped to (musl's `memalign` ends in `jmp aligned_alloc`).

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::pt_regs;
use aya_ebpf::helpers::generated::bpf_get_attach_cookie;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_probe_read_user};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use memtrace_common::counter::Counter;
use memtrace_common::event::{Alloc, Api, Free, Kind};
use memtrace_common::unwind::{PcKind, Regs};

use crate::emit::{self, Context, Urgency, header_of};
use crate::maps::{PROCESS_INDEX, Slot, count};
use crate::{slots, task, unwind};

/// A function that gives memory was entered.
#[inline(always)]
pub fn enter_acquire(ctx: &ProbeContext) -> Option<()> {
    // SAFETY: the kernel gives a uprobe program the registers.
    let regs = unsafe { &*ctx.regs };
    let slot = current_slot()?;
    // SAFETY: a map value; a thread is in one program at a time.
    let slot = unsafe { &mut *slot };
    if is_nested(slot, regs.rsp) {
        if regs.rsp == slot.entry_sp {
            slot.tail_calls += 1;
        }
        return None;
    }
    let api = attach_api(ctx);
    let (size, ptr) = arguments(api, regs);
    slot.api = api as u16;
    slot.tail_calls = 0;
    slot.entry_sp = regs.rsp;
    slot.size = size;
    slot.ptr = ptr;
    if is_realloc(api) && ptr != 0 {
        send_block(slot.tid as u32, Kind::Retire, api, ptr);
    }
    Some(())
}

/// A function that gives memory has returned.
#[inline(always)]
pub fn leave_acquire(ctx: &RetProbeContext) -> Option<()> {
    // SAFETY: the kernel gives a uretprobe program the registers.
    let regs = unsafe { &*ctx.regs };
    let tid = bpf_get_current_pid_tgid() as u32;
    let Some(slot) = slots::find(tid) else {
        count(Counter::OrphanReturns);
        return None;
    };
    // SAFETY: a map value; a thread is in one program at a time.
    let slot = unsafe { &mut *slot };
    let entry_sp = regs.rsp.wrapping_sub(8);
    if slot.api == 0 || entry_sp > slot.entry_sp {
        count(Counter::OrphanReturns);
        return None;
    }
    if entry_sp < slot.entry_sp {
        return None;
    }
    if slot.tail_calls > 0 {
        slot.tail_calls -= 1;
        return None;
    }
    let api = slot.api as u32;
    slot.api = 0;
    let ptr = if api == Api::PosixMemalign as u32 {
        // SAFETY: the helper checks the address.
        let ptr = unsafe { bpf_probe_read_user(slot.ptr as *const u64) }.unwrap_or(0);
        if regs.rax as u32 == 0 { ptr } else { 0 }
    } else {
        regs.rax
    };
    if ptr == 0 {
        // `realloc(p, 0)` frees and returns NULL; any other NULL leaves the block alone.
        if is_realloc(api) && slot.ptr != 0 && slot.size != 0 {
            send_block(tid, Kind::Restore, api, slot.ptr);
        }
        count(Counter::FailedCalls);
        return None;
    }
    let caller = Regs { pc: regs.rip, sp: regs.rsp, fp: regs.rbp, pc_kind: PcKind::ReturnAddress };
    let stack = unwind::capture(slot.tgid, slot.process, caller, Context::Probe);
    let event =
        Alloc { header: header_of(tid, Kind::Alloc, api as u8, 0), ptr, size: slot.size, stack };
    emit::send(event, Counter::LostAllocs, Urgency::Normal, Context::Probe);
    Some(())
}

/// A function that takes memory back was entered.
#[inline(always)]
pub fn enter_release(ctx: &ProbeContext) -> Option<()> {
    // SAFETY: the kernel gives a uprobe program the registers.
    let regs = unsafe { &*ctx.regs };
    if regs.rdi == 0 {
        return None;
    }
    let slot = current_slot()?;
    // SAFETY: a map value; a thread is in one program at a time.
    let slot = unsafe { &mut *slot };
    if is_nested(slot, regs.rsp) {
        return None;
    }
    send_block(slot.tid as u32, Kind::Free, attach_api(ctx), regs.rdi);
    Some(())
}

#[inline(always)]
fn send_block(tid: u32, kind: Kind, api: u32, ptr: u64) {
    let event = Free { header: header_of(tid, kind, api as u8, 0), ptr };
    emit::send(event, Counter::LostFrees, Urgency::Normal, Context::Probe);
}

/// The current thread's slot, made if it is the first time; `None` if its process is not traced.
#[inline(always)]
pub fn current_slot() -> Option<*mut Slot> {
    let pid_tgid = bpf_get_current_pid_tgid();
    let tid = pid_tgid as u32;
    if let Some(slot) = slots::find(tid) {
        return Some(slot);
    }
    let tgid = (pid_tgid >> 32) as u32;
    let Some(process) = PROCESS_INDEX.get_ptr(tgid) else {
        // It runs in a traced process's memory, or the probe would not have fired.
        count(Counter::VforkCalls);
        return None;
    };
    // SAFETY: a map value, written before the key is visible.
    slots::make(tid, unsafe { *process }, tgid)
}

/// Whether a call entered at `sp` is inside the slot's outermost call.
#[inline(always)]
fn is_nested(slot: &mut Slot, sp: u64) -> bool {
    if slot.api == 0 {
        return false;
    }
    if sp <= slot.entry_sp {
        // The trampoline stands in the return address's place as long as the call is on the stack.
        if slot.trampoline == 0 {
            slot.trampoline = task::trampoline();
        }
        // SAFETY: the helper checks the address.
        let word = unsafe { bpf_probe_read_user(slot.entry_sp as *const u64) }.unwrap_or(0);
        if word == slot.trampoline {
            return true;
        }
    }
    slot.api = 0;
    count(Counter::AbandonedCalls);
    false
}

/// The `Api` that the daemon attached the probe for.
#[inline(always)]
fn attach_api<C: EbpfContext>(ctx: &C) -> u32 {
    // SAFETY: a helper without preconditions.
    unsafe { bpf_get_attach_cookie(ctx.as_ptr()) as u32 }
}

#[inline(always)]
fn is_realloc(api: u32) -> bool {
    api == Api::Realloc as u32 || api == Api::Reallocarray as u32
}

/// (size, pointer) that a call asks for, by the System V calling convention.
#[inline(always)]
fn arguments(api: u32, regs: &pt_regs) -> (u64, u64) {
    if api == Api::Calloc as u32 {
        (regs.rdi.wrapping_mul(regs.rsi), 0)
    } else if api == Api::Realloc as u32 {
        (regs.rsi, regs.rdi)
    } else if api == Api::Reallocarray as u32 {
        // An overflow makes the call fail, so it must not look like a size of 0.
        let size = regs.rsi.wrapping_mul(regs.rdx);
        let size = if size == 0 { regs.rsi | regs.rdx } else { size };
        (if regs.rsi == 0 || regs.rdx == 0 { 0 } else { size }, regs.rdi)
    } else if api == Api::PosixMemalign as u32 {
        (regs.rdx, regs.rdi)
    } else if api == Api::AlignedAlloc as u32 || api == Api::Memalign as u32 {
        (regs.rsi, 0)
    } else {
        (regs.rdi, 0)
    }
}
