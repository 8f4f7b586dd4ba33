//! Places inside a function that gives memory; see [`memtrace_common::midway`].

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::pt_regs;
use aya_ebpf::helpers::generated::{bpf_get_attach_cookie, bpf_probe_read_user};
use aya_ebpf::programs::ProbeContext;
use memtrace_common::counter::Counter;
use memtrace_common::midway::{Cookie, IN_REGISTER, NO_REGISTER, STACK_WORDS, action};
use memtrace_common::unwind::{PcKind, Regs};

use crate::alloc::{current_slot, is_nested, send_acquired};
use crate::maps::{NOTED, count};

/// The current thread is at such a place.
#[inline(always)]
pub fn passed(ctx: &ProbeContext) -> Option<()> {
    // SAFETY: the kernel gives a uprobe program the registers.
    let regs = unsafe { &*ctx.regs };
    // SAFETY: a helper without preconditions.
    let cookie = Cookie(unsafe { bpf_get_attach_cookie(ctx.as_ptr()) });
    if cookie.action() == action::KNOWN && !cookie.holds(regs.eflags) {
        return None;
    }
    let slot = current_slot()?;
    // SAFETY: a map value; a thread is in one program at a time.
    let slot = unsafe { &mut *slot };
    if is_nested(slot, regs.rsp) {
        return None;
    }
    if cookie.action() == action::NOTE {
        slot.tail_calls = NOTED;
        slot.entry_sp = regs.rsp;
        slot.size = register(regs, cookie.size());
        return None;
    }
    let size = if cookie.size() == NO_REGISTER {
        if slot.tail_calls != NOTED || slot.entry_sp != regs.rsp {
            // The call began before the probes were in place.
            count(Counter::OrphanReturns);
            return None;
        }
        slot.tail_calls = 0;
        slot.size
    } else {
        register(regs, cookie.size())
    };
    let ptr = register(regs, cookie.block());
    if ptr == 0 {
        count(Counter::FailedCalls);
        return None;
    }
    // Calls with an alignment are not watched from inside.
    send_acquired(slot, cookie.api(), 0, ptr, size, caller(regs, cookie));
    Some(())
}

/// The registers as they will be when the function has returned.
#[inline(always)]
fn caller(regs: &pt_regs, cookie: Cookie) -> Regs {
    // Volatile, lest the choice below becomes one between two addresses, which the verifier refuses.
    // SAFETY: the kernel's registers.
    let rbp = unsafe { core::ptr::read_volatile(&raw const regs.rbp) };
    // Not set to zero, which would be a function that does so byte by byte.
    let mut words = MaybeUninit::<[u64; STACK_WORDS]>::uninit();
    // SAFETY: the helper checks the address.
    let failed = unsafe {
        bpf_probe_read_user(
            words.as_mut_ptr().cast(),
            size_of_val(&words) as u32,
            regs.rsp as *const c_void,
        )
    };
    if failed != 0 {
        count(Counter::UnreadableStack);
        return Regs { pc: regs.rip, sp: regs.rsp, fp: rbp, pc_kind: PcKind::Exact };
    }
    let word = |number: u32| {
        // SAFETY: the helper has written all of it; the mask keeps the index below the length.
        unsafe { *words.assume_init_ref().get_unchecked(number as usize & (STACK_WORDS - 1)) }
    };
    let caller_word = cookie.caller_word();
    let rbp_word = cookie.rbp_word();
    Regs {
        pc: word(caller_word),
        sp: regs.rsp.wrapping_add((caller_word as u64 + 1) * 8),
        fp: if rbp_word == IN_REGISTER { rbp } else { word(rbp_word) },
        pc_kind: PcKind::ReturnAddress,
    }
}

/// The register with this number; 0 for [`NO_REGISTER`].
///
/// They are copied to an array for the reason that `alloc`'s arguments are, and in a function of its
/// own because that array and a walk do not fit the stack together.
#[inline(never)]
fn register(regs: &pt_regs, number: u32) -> u64 {
    let registers = [
        regs.r15, regs.r14, regs.r13, regs.r12, regs.rbp, regs.rbx, regs.r11, regs.r10, regs.r9,
        regs.r8, regs.rax, regs.rcx, regs.rdx, regs.rsi, regs.rdi, 0,
    ];
    // SAFETY: the mask keeps the index below 16.
    unsafe { *registers.get_unchecked(number as usize & 15) }
}
