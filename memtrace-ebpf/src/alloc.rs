//! The allocator's functions: acquire on return, release on entry.
//!
//! Which argument is what is told by the probe's attach cookie (`memtrace_common::call`).
//!
//! Only the outermost allocator call of a thread counts: `calloc` may call `malloc`, jemalloc's
//! `operator new` does. The thread's slot knows the stack pointer at which that call was entered.
//! A call that is entered further down is inside it, if the call is still on the stack; else the
//! call was left by `longjmp` or an exception, and is forgotten. A call that is entered at the same
//! stack pointer was jumped to (musl's `memalign` ends in `jmp aligned_alloc`).

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::pt_regs;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_get_attach_cookie;
use aya_ebpf::programs::ProbeContext;
use memtrace_common::call::{Cookie, action, alignment, depth};
use memtrace_common::counter::Counter;
use memtrace_common::event::{Alloc, Api, Free, Kind};
use memtrace_common::unwind::{PcKind, Regs};

use crate::emit::{self, Context, Urgency, header_of};
use crate::maps::{INSIDE, PROCESS_INDEX, Slot, count};
use crate::unwind::Held;
use crate::{slots, task, unwind};

/// Pages of x86-64 have 4096 bytes.
const PAGE_LOGARITHM: u16 = 12;

/// An allocation looks each time how full the ring is. Of releases one in so many does, for threads
/// that do nothing else: on many processors they fill the ring before the daemon wakes by itself.
const RELEASES_BETWEEN_LOOKS: u64 = 64;

/// A function whose return is probed as well was entered.
#[inline(always)]
pub fn enter_call(ctx: &ProbeContext) -> Option<()> {
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
    let call = Cookie(attach_cookie(ctx) as u32);
    let arguments = Arguments::of(regs);
    slot.call = call.0;
    slot.tail_calls = 0;
    slot.entry_sp = regs.rsp;
    slot.size = arguments.product(call.size(), call.times());
    slot.ptr = arguments.get(call.block());
    slot.given = arguments.get(call.given());
    if call.alignment() != 0 {
        slot.alignment = arguments.alignment(call.alignment());
    }
    if slot.ptr != 0 {
        let acquires = call.action() == action::ACQUIRE || call.action() == action::RESIZE;
        let kind = if acquires { Kind::Retire } else { Kind::Free };
        send_block(slot.tid as u32, kind, call.api(), slot.ptr);
    }
    Some(())
}

/// A function whose return is probed as well has returned.
#[inline(always)]
pub fn leave_call(regs: &pt_regs) -> Option<()> {
    let tid = bpf_get_current_pid_tgid() as u32;
    let Some(slot) = slots::find(tid) else {
        count(Counter::OrphanReturns);
        return None;
    };
    // SAFETY: a map value; a thread is in one program at a time.
    let slot = unsafe { &mut *slot };
    let entry_sp = regs.rsp.wrapping_sub(8);
    if slot.call == 0 || entry_sp > slot.entry_sp {
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
    let call = Cookie(slot.call);
    slot.call = 0;
    let ptr = if call.action() == action::RESIZE {
        let asked = slot.size;
        slot.size = regs.rax.min(asked.saturating_add(slot.given));
        if regs.rax >= asked { slot.ptr } else { 0 }
    } else if call.action() != action::ACQUIRE {
        return None;
    } else if call.given() != 0 {
        let ptr = task::user_word(slot.given);
        if regs.rax as u32 == 0 { ptr } else { 0 }
    } else {
        regs.rax
    };
    if ptr == 0 {
        call_failed(slot, call.api());
        return None;
    }
    let caller = Regs { pc: regs.rip, sp: regs.rsp, fp: regs.rbp, pc_kind: PcKind::ReturnAddress };
    let alignment = if call.alignment() != 0 { slot.alignment } else { 0 };
    // `realloc(NULL, n)` is `malloc(n)`, which it goes on as where it is watched from inside.
    let is_realloc = call.api() == Api::Realloc as u8;
    let api = if is_realloc && slot.ptr == 0 { Api::Malloc as u8 } else { call.api() };
    send_acquired(slot, api, alignment, ptr, slot.size, caller, Held::NONE);
    Some(())
}

/// The slot's call has given no block.
#[inline(always)]
pub fn call_failed(slot: &Slot, api: u8) {
    // `realloc(p, 0)` frees and returns NULL; any other failure leaves the block alone.
    if slot.ptr != 0 && slot.size != 0 {
        send_block(slot.tid as u32, Kind::Restore, api, slot.ptr);
    }
    count(Counter::FailedCalls);
}

/// Tells of a block that the current thread has got; `caller` is who asked for it. What is `held` is
/// given back.
#[inline(always)]
pub fn send_acquired(
    slot: &Slot,
    api: u8,
    alignment: u16,
    ptr: u64,
    size: u64,
    caller: Regs,
    held: Held,
) {
    let stack = unwind::capture(slot.tgid, slot.process, caller, Context::Preemptible, held);
    let header = header_of(slot.tid as u32, Kind::Alloc, api, alignment);
    let event = Alloc { header, ptr, size, stack };
    emit::send(event, Counter::LostAllocs, Urgency::Normal, Context::Preemptible);
    emit::hold_back();
}

/// A function that takes memory back was entered.
#[inline(always)]
pub fn enter_release(ctx: &ProbeContext) -> Option<()> {
    // SAFETY: the kernel gives a uprobe program the registers.
    let regs = unsafe { &*ctx.regs };
    let cookie = attach_cookie(ctx);
    let call = Cookie(cookie as u32);
    let ptr = Arguments::of(regs).get(call.block());
    if ptr == 0 {
        return None;
    }
    let slot = current_slot()?;
    // SAFETY: a map value; a thread is in one program at a time.
    let slot = unsafe { &mut *slot };
    if is_nested(slot, regs.rsp + depth(cookie)) {
        return None;
    }
    send_block(slot.tid as u32, Kind::Free, call.api(), ptr);
    Some(())
}

/// An exception was thrown, or a thread is about to end: the stack will be unwound.
///
/// The unwinder finds the trampoline where the return address of a pending call was, knows no
/// function there and ends the program. So the addresses are put back, and the call, which will not
/// return, is forgotten.
#[inline(always)]
pub fn unwind_starts(ctx: &ProbeContext) -> Option<()> {
    // SAFETY: the kernel gives a uprobe program the registers.
    let regs = unsafe { &*ctx.regs };
    let slot = slots::find(bpf_get_current_pid_tgid() as u32)?;
    // SAFETY: a map value; a thread is in one program at a time.
    let slot = unsafe { &mut *slot };
    if is_nested(slot, regs.rsp) {
        if slot.call != INSIDE {
            task::restore_return_addresses(regs.rsp, slot.entry_sp, slot.trampoline);
        }
        slot.call = 0;
        count(Counter::AbandonedCalls);
    }
    Some(())
}

/// Tells of a block that the current thread gives back, or keeps after all.
#[inline(always)]
pub fn send_block(tid: u32, kind: Kind, api: u8, ptr: u64) {
    let header = header_of(tid, kind, api, 0);
    emit::send(Free { header, ptr }, Counter::LostFrees, Urgency::Normal, Context::Preemptible);
    // Its nanoseconds are as good as a counter that all threads share.
    if header.time_ns.is_multiple_of(RELEASES_BETWEEN_LOOKS) {
        emit::hold_back();
    }
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
pub fn is_nested(slot: &mut Slot, sp: u64) -> bool {
    if slot.call == 0 {
        return false;
    }
    if sp <= slot.entry_sp {
        // As long as the call is on the stack, there is its return address or, in the place of that,
        // the trampoline.
        let expected = if slot.call == INSIDE {
            slot.given
        } else {
            if slot.trampoline == 0 {
                slot.trampoline = task::trampoline();
            }
            slot.trampoline
        };
        if task::user_word(slot.entry_sp) == expected {
            return true;
        }
    }
    slot.call = 0;
    count(Counter::AbandonedCalls);
    false
}

/// The binary logarithm of a number of bytes, rounded up as allocators round alignments.
#[inline(always)]
fn logarithm(bytes: u64) -> u16 {
    if bytes <= 1 { 0 } else { (u64::BITS - (bytes - 1).leading_zeros()) as u16 }
}

/// What the daemon has attached the probe for.
#[inline(always)]
pub fn attach_cookie<C: EbpfContext>(ctx: &C) -> u64 {
    // SAFETY: a helper without preconditions.
    unsafe { bpf_get_attach_cookie(ctx.as_ptr()) }
}

/// The arguments of a call, by the System V calling convention; the one at 0 is none and 0.
///
/// An array on the stack and not a choice between registers: the compiler would make that into a
/// load through a changed pointer to the context, which the verifier refuses.
struct Arguments([u64; 8]);

impl Arguments {
    #[inline(always)]
    fn of(regs: &pt_regs) -> Arguments {
        Arguments([0, regs.rdi, regs.rsi, regs.rdx, regs.rcx, regs.r8, regs.r9, 0])
    }

    /// The argument that a field of a [`Cookie`] names.
    #[inline(always)]
    fn get(&self, field: u32) -> u64 {
        // SAFETY: the mask keeps the index below 8.
        unsafe { *self.0.get_unchecked((field & 7) as usize) }
    }

    /// The binary logarithm of the alignment that a call asks for.
    #[inline(always)]
    fn alignment(&self, field: u32) -> u16 {
        if field == alignment::PAGE {
            return PAGE_LOGARITHM;
        }
        let argument = self.get(field);
        if field & alignment::LOW_BITS != 0 {
            (argument & 63) as u16
        } else {
            logarithm(argument) & 63
        }
    }

    /// The size that a call asks for. One that overflows must not look like a size of 0: the call
    /// fails.
    #[inline(always)]
    fn product(&self, size: u32, times: u32) -> u64 {
        let size = self.get(size);
        if times == 0 {
            return size;
        }
        let times = self.get(times);
        let product = size.wrapping_mul(times);
        if product == 0 && size != 0 && times != 0 { size | times } else { product }
    }
}
