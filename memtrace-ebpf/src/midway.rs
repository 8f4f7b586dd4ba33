//! Places inside a function that gives memory; see [`memtrace_common::midway`].

use aya_ebpf::bindings::pt_regs;
use memtrace_common::config::process_flag;
use memtrace_common::counter::Counter;
use memtrace_common::event::Kind;
use memtrace_common::midway::{Cookie, Front, IN_REGISTER, NO_REGISTER, STACK_WORDS, action};
use memtrace_common::unwind::{PcKind, Regs};

use crate::alloc::{call_failed, current_slot, is_nested, send_acquired, send_block};
use crate::maps::{FRONTS, INSIDE, NOTED, PROCESSES, Slot, count};
use crate::task::user_word;
use crate::unwind::Held;

/// The current thread is at such a place.
#[inline(always)]
pub fn passed(regs: &pt_regs, cookie: Cookie) -> Option<()> {
    let (action, holds) = (cookie.action(), cookie.holds(regs.eflags));
    let is_answer = action == action::KNOWN || action == action::CORE || action == action::REPLACED;
    if is_answer && !holds {
        return None;
    }
    let slot = current_slot()?;
    // SAFETY: a map value; a thread is in one program at a time.
    let slot = unsafe { &mut *slot };
    if process_flag::probe_set_of(PROCESSES.get(slot.process)?.flags) != cookie.set() {
        return None;
    }
    let mut values = [0; 2];
    registers(regs, cookie.block(), cookie.size(), &mut values);
    let [block, size] = values;
    let size = if action == action::REPLACED || action == action::REPLACED_OR_NOT {
        replaced(slot, regs.rsp, cookie, holds && block != 0)?
    } else {
        if action == action::RETIRE && is_open(slot, regs.rsp, cookie) {
            // Its second place was not seen, and this is another call.
            slot.call = 0;
            count(Counter::AbandonedCalls);
        }
        if slot.call != 0 && is_part(slot, regs, cookie) {
            return None;
        }
        match action {
            action::NOTE => {
                note(slot, regs.rsp, size);
                return None;
            }
            action::RETIRE => {
                retire(slot, regs.rsp, cookie, block, size);
                return None;
            }
            _ => {}
        }
        let size = if cookie.size() == NO_REGISTER { noted(slot, regs.rsp)? } else { size };
        if block == 0 {
            // A front may ask its core again.
            if action != action::CORE {
                count(Counter::FailedCalls);
            }
            return None;
        }
        size
    };
    let Call { api, caller, held } = call(regs, cookie)?;
    // Calls with an alignment are not watched from inside.
    send_acquired(slot, api, 0, block, size, caller, held);
    Some(())
}

/// Whether the call at the place is part of the slot's, which has not returned.
#[inline(always)]
fn is_part(slot: &mut Slot, regs: &pt_regs, cookie: Cookie) -> bool {
    let mut entry_sp = entry_sp(regs.rsp, cookie);
    if cookie.action() == action::CORE {
        // What another than a front has asked for does not count anyway.
        let Some(front) = front(regs, cookie, user_word(entry_sp)) else { return true };
        entry_sp += front.caller_word as u64 * 8;
    }
    is_nested(slot, entry_sp)
}

/// Notes the size that a call asks for.
#[inline(always)]
fn note(slot: &mut Slot, sp: u64, size: u64) {
    slot.tail_calls = NOTED;
    slot.entry_sp = sp;
    slot.size = size;
}

/// The size that the call has noted.
#[inline(always)]
fn noted(slot: &mut Slot, sp: u64) -> Option<u64> {
    if slot.tail_calls != NOTED || slot.entry_sp != sp {
        // The call began before the probes were in place.
        count(Counter::OrphanReturns);
        return None;
    }
    slot.tail_calls = 0;
    Some(slot.size)
}

/// A call takes a block, and what it does from now on is part of it.
#[inline(always)]
fn retire(slot: &mut Slot, sp: u64, cookie: Cookie, block: u64, size: u64) {
    slot.call = INSIDE;
    slot.tail_calls = 0;
    slot.entry_sp = entry_sp(sp, cookie);
    slot.given = user_word(slot.entry_sp);
    slot.size = size;
    slot.ptr = block;
    send_block(slot.tid as u32, Kind::Retire, cookie.api(), block);
}

/// A call that has taken a block has another, if that `is_there`: gives its size.
#[inline(always)]
fn replaced(slot: &mut Slot, sp: u64, cookie: Cookie, is_there: bool) -> Option<u64> {
    if !is_open(slot, sp, cookie) {
        // It is part of another call, or began before the probes were in place.
        if slot.call == 0 {
            count(Counter::OrphanReturns);
        }
        return None;
    }
    slot.call = 0;
    if is_there {
        return Some(slot.size);
    }
    call_failed(slot, cookie.api());
    None
}

/// Whether the call at the place of a cookie is between its two places.
#[inline(always)]
fn is_open(slot: &Slot, sp: u64, cookie: Cookie) -> bool {
    slot.call == INSIDE && slot.entry_sp == entry_sp(sp, cookie)
}

/// Where the return address of the function is.
#[inline(always)]
fn entry_sp(sp: u64, cookie: Cookie) -> u64 {
    sp + cookie.caller_word() as u64 * 8
}

/// The call that the current thread is in.
struct Call {
    /// As what it counts.
    api: u8,
    /// The registers as they will be when the function has returned.
    caller: Regs,
    /// A copy of the stack.
    held: Held,
}

/// Finds out about the call; `None` if a core was called by another than its fronts.
#[inline(always)]
fn call(regs: &pt_regs, cookie: Cookie) -> Option<Call> {
    // Volatile, lest the choice below becomes one between two addresses, which the verifier refuses.
    // SAFETY: the kernel's registers.
    let rbp = unsafe { core::ptr::read_volatile(&raw const regs.rbp) };
    let is_core = cookie.action() == action::CORE;
    // Of a core, its own frame is not needed.
    let first = if is_core { entry_sp(regs.rsp, cookie) } else { regs.rsp };
    let Some(held) = Held::with_copy_from(first) else {
        // The stack as it is here, which has a frame of the allocator, is better than none.
        let caller = Regs { pc: regs.rip, sp: regs.rsp, fp: rbp, pc_kind: PcKind::Exact };
        let api = if is_core { front(regs, cookie, user_word(first))?.api } else { cookie.api() };
        return Some(Call { api, caller, held: Held::NONE });
    };
    let words = held.words()?;
    // SAFETY: the mask keeps the number below what the copy has at least.
    let word = |number: u32| unsafe { *words.add(number as usize & (STACK_WORDS - 1)) };
    let (api, caller_word, rbp_word) = if is_core {
        let Some(front) = front(regs, cookie, word(0)) else {
            held.release();
            return None;
        };
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
    Some(Call { api, caller, held })
}

/// The front that has called the core in which the place of a cookie is, by the core's return address.
#[inline(always)]
fn front(regs: &pt_regs, cookie: Cookie, return_address: u64) -> Option<&'static Front> {
    let from_place = return_address.wrapping_sub(regs.rip);
    FRONTS
        .get(cookie.fronts())?
        .iter()
        .find(|front| from_place.wrapping_sub(front.from_place as i64 as u64) < front.length as u64)
}

/// The registers with these two numbers; 0 for [`NO_REGISTER`].
///
/// They are copied to an array for the reason that `alloc`'s arguments are, and in a function of its
/// own because that array and a walk do not fit the stack together.
#[inline(never)]
fn registers(regs: &pt_regs, first: u32, second: u32, values: &mut [u64; 2]) {
    let registers = [
        regs.r15, regs.r14, regs.r13, regs.r12, regs.rbp, regs.rbx, regs.r11, regs.r10, regs.r9,
        regs.r8, regs.rax, regs.rcx, regs.rdx, regs.rsi, regs.rdi, 0,
    ];
    // SAFETY: the masks keep the indices below 16.
    unsafe {
        *values = [
            *registers.get_unchecked(first as usize & 15),
            *registers.get_unchecked(second as usize & 15),
        ];
    }
}
