//! Places inside a function that gives memory; see [`memtrace_common::midway`].

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::bindings::pt_regs;
use aya_ebpf::helpers::generated::bpf_probe_read_user;
use aya_ebpf::programs::ProbeContext;
use memtrace_common::counter::Counter;
use memtrace_common::midway::{Cookie, Front, IN_REGISTER, NO_REGISTER, STACK_WORDS, action};
use memtrace_common::unwind::{PcKind, Regs};

use crate::alloc::{attach_cookie, current_slot, is_nested, send_acquired};
use crate::maps::{FRONTS, NOTED, count};

/// The current thread is at such a place.
#[inline(always)]
pub fn passed(ctx: &ProbeContext) -> Option<()> {
    // SAFETY: the kernel gives a uprobe program the registers.
    let regs = unsafe { &*ctx.regs };
    let cookie = Cookie(attach_cookie(ctx));
    if cookie.action() != action::NOTE && !cookie.holds(regs.eflags) {
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
        // A front may ask its core again.
        if cookie.action() != action::CORE {
            count(Counter::FailedCalls);
        }
        return None;
    }
    let (api, caller) = caller(regs, cookie)?;
    // Calls with an alignment are not watched from inside.
    send_acquired(slot, api, 0, ptr, size, caller);
    Some(())
}

/// As what the call counts, and the registers as they will be when the function has returned; `None`
/// if a core was called by another than its fronts.
#[inline(always)]
fn caller(regs: &pt_regs, cookie: Cookie) -> Option<(u8, Regs)> {
    // Volatile, lest the choice below becomes one between two addresses, which the verifier refuses.
    // SAFETY: the kernel's registers.
    let rbp = unsafe { core::ptr::read_volatile(&raw const regs.rbp) };
    let is_core = cookie.action() == action::CORE;
    // Of a core, its own frame is not needed.
    let first = if is_core { regs.rsp + cookie.caller_word() as u64 * 8 } else { regs.rsp };
    // Not set to zero, which would be a function that does so byte by byte.
    let mut words = MaybeUninit::<[u64; STACK_WORDS]>::uninit();
    // SAFETY: the helper checks the address.
    let failed = unsafe {
        bpf_probe_read_user(
            words.as_mut_ptr().cast(),
            size_of_val(&words) as u32,
            first as *const c_void,
        )
    };
    if failed != 0 {
        count(Counter::UnreadableStack);
        if is_core {
            return None;
        }
        let here = Regs { pc: regs.rip, sp: regs.rsp, fp: rbp, pc_kind: PcKind::Exact };
        return Some((cookie.api(), here));
    }
    let word = |number: u32| {
        // SAFETY: the helper has written all of it; the mask keeps the index below the length.
        unsafe { *words.assume_init_ref().get_unchecked(number as usize & (STACK_WORDS - 1)) }
    };
    let (api, caller_word, rbp_word) = if is_core {
        let front = front(cookie.fronts(), word(0).wrapping_sub(regs.rip))?;
        (front.api, front.caller_word as u32, front.rbp_word as u32)
    } else {
        (cookie.api(), cookie.caller_word(), cookie.rbp_word())
    };
    let caller = Regs {
        pc: word(caller_word),
        sp: first.wrapping_add((caller_word as u64 + 1) * 8),
        fp: if rbp_word == IN_REGISTER { rbp } else { word(rbp_word) },
        pc_kind: PcKind::ReturnAddress,
    };
    Some((api, caller))
}

/// The front of a core that an address belongs to, so many bytes behind the place in the core.
#[inline(always)]
fn front(number: u32, from_place: u64) -> Option<&'static Front> {
    FRONTS
        .get(number)?
        .iter()
        .find(|front| from_place.wrapping_sub(front.from_place as i64 as u64) < front.length as u64)
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
