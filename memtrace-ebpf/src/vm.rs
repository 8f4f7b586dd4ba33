//! The address space: `mmap`, `munmap`, `mremap`, `brk`, `mprotect`, and code that appears.
//!
//! As with the heap, memory is released on entry and acquired on return. The functions behind the
//! system calls are watched themselves (`fentry`, `fexit`), so that no other call costs anything.
//! Kernels that cannot do this have the system-call tracepoints, which fire for every call on the
//! host: there the first thing that happens is a comparison of the call's number.

use aya_ebpf::bindings::pt_regs;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::programs::{BtfTracePointContext, FEntryContext, FExitContext};
use memtrace_common::config::process_flag;
use memtrace_common::counter::Counter;
use memtrace_common::event::{Api, Kind, Mapping, flag};
use memtrace_common::unwind::{PcKind, Regs};

use crate::emit::{self, Context, Urgency, header};
use crate::maps::{CODE_CHANGES, PROCESS_INDEX, PROCESSES, increment};
use crate::{process, unwind};

/// Numbers of x86-64 system calls (arch/x86/entry/syscalls/syscall_64.tbl).
pub mod syscall {
    pub const MMAP: u64 = 9;
    pub const MPROTECT: u64 = 10;
    pub const MUNMAP: u64 = 11;
    pub const BRK: u64 = 12;
    pub const MREMAP: u64 = 25;
    pub const CLONE: u64 = 56;
    pub const FORK: u64 = 57;
    pub const VFORK: u64 = 58;
    pub const PKEY_MPROTECT: u64 = 329;
    pub const CLONE3: u64 = 435;
}

const PROT_EXEC: u64 = 4;
/// `PROT_READ`, `PROT_WRITE` and `PROT_EXEC`: without any of them it is `PROT_NONE`.
const PROT_ACCESS: u64 = 7;
const MAP_SHARED: u64 = 1;
const MAP_ANONYMOUS: u64 = 0x20;
const MREMAP_DONTUNMAP: u64 = 4;

/// The largest value that a system call returns as an error, taken as unsigned: -4095.
const FIRST_ERROR: u64 = -4095i64 as u64;

/// The function behind the system call `number` is entered.
#[inline(always)]
pub fn function_enter(ctx: &FEntryContext, number: u64) {
    let regs: *const pt_regs = ctx.arg(0);
    // SAFETY: the function's argument is the registers of the call.
    let _ = entered(number, unsafe { &*regs }, Context::Preemptible);
}

/// The function behind the system call `number` returns.
#[inline(always)]
pub fn function_exit(ctx: &FExitContext, number: u64) {
    let regs: *const pt_regs = ctx.arg(0);
    // SAFETY: the function's argument is the registers of the call.
    let _ = returned(number, unsafe { &*regs }, ctx.arg(1), Context::Preemptible);
}

/// A system call is entered.
#[inline(always)]
pub fn sys_enter(ctx: &BtfTracePointContext) -> Option<()> {
    let number: u64 = ctx.arg(1);
    if number != syscall::MUNMAP && number != syscall::MREMAP {
        return None;
    }
    let regs: *const pt_regs = ctx.arg(0);
    // SAFETY: the kernel's tracepoint gives the registers of the call.
    entered(number, unsafe { &*regs }, Context::Tracepoint)
}

/// A system call returns.
#[inline(always)]
pub fn sys_exit(ctx: &BtfTracePointContext) -> Option<()> {
    let regs: *const pt_regs = ctx.arg(0);
    // SAFETY: the kernel's tracepoint gives the registers of the call.
    let regs = unsafe { &*regs };
    match regs.orig_rax {
        syscall::MMAP
        | syscall::MPROTECT
        | syscall::PKEY_MPROTECT
        | syscall::MUNMAP
        | syscall::BRK
        | syscall::MREMAP => {}
        syscall::CLONE | syscall::FORK | syscall::VFORK | syscall::CLONE3 => {
            if regs.rax == 0 {
                process::first_return();
            }
            return None;
        }
        _ => return None,
    }
    returned(regs.orig_rax, regs, ctx.arg(1), Context::Tracepoint)
}

#[inline(always)]
fn entered(number: u64, regs: &pt_regs, context: Context) -> Option<()> {
    let _traced = current_process()?;
    let event = if number == syscall::MUNMAP {
        mapping(Kind::Unmap, Api::Munmap, 0, regs.rdi, regs.rsi)
    } else {
        let mut event = mapping(Kind::RemapStart, Api::Mremap, 0, 0, 0);
        event.old_address = regs.rdi;
        event.old_length = if regs.r10 & MREMAP_DONTUNMAP != 0 { 0 } else { regs.rsi };
        event
    };
    emit::send(event, Counter::LostMappings, Urgency::Normal, context);
    Some(())
}

#[inline(always)]
fn returned(number: u64, regs: &pt_regs, result: u64, context: Context) -> Option<()> {
    let process = current_process()?;
    // Walked before anything else is known of the call, and the registers are read again behind it:
    // the verifier of 6.1 follows the walk once for each kind of event that is told apart by then,
    // and came near the million instructions that it allows.
    let stack = if has_stack(number, regs, result) {
        let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
        let at = Regs { pc: regs.rip, sp: regs.rsp, fp: regs.rbp, pc_kind: PcKind::Exact };
        unwind::capture(tgid, process, at, context, unwind::Held::NONE)
    } else {
        0
    };
    let makes_code = regs.rdx & PROT_EXEC != 0;
    let failed = result >= FIRST_ERROR;
    let mut urgency = Urgency::Normal;
    let mut maps_code = false;
    let mut event = match number {
        syscall::MMAP if !failed => {
            maps_code = makes_code;
            mapping(Kind::Map, Api::Mmap, mmap_flags(regs), result, regs.rsi)
        }
        syscall::MPROTECT | syscall::PKEY_MPROTECT if !failed => {
            if makes_code {
                increment(&CODE_CHANGES, process);
                process::send_current(Kind::CodeChanged, Urgency::WakeUp);
            }
            let kind = if regs.rdx & PROT_ACCESS != 0 { Kind::Commit } else { Kind::Decommit };
            mapping(kind, Api::Mprotect, 0, regs.rdi, regs.rsi)
        }
        syscall::MUNMAP if failed => mapping(Kind::UnmapFailed, Api::Munmap, 0, regs.rdi, regs.rsi),
        syscall::MREMAP if failed => mapping(Kind::UnmapFailed, Api::Mremap, 0, regs.rdi, regs.rsi),
        syscall::MREMAP => {
            let mut event = mapping(Kind::Remap, Api::Mremap, 0, result, regs.rdx);
            event.old_address = regs.rdi;
            event.old_length = regs.rsi;
            event
        }
        syscall::BRK => mapping(Kind::Break, Api::Brk, 0, result, 0),
        _ => return None,
    };
    event.stack = stack;
    if maps_code {
        increment(&CODE_CHANGES, process);
        urgency = Urgency::WakeUp;
    }
    emit::send(event, Counter::LostMappings, urgency, context);
    if maps_code && regs.r10 & MAP_ANONYMOUS == 0 {
        let flags = PROCESSES.get(process)?.flags;
        if flags & process_flag::STOP_FOR_CODE != 0 {
            process::stop_current();
        }
    }
    Some(())
}

/// Whether the call made an event that says where it was made.
#[inline(always)]
fn has_stack(number: u64, regs: &pt_regs, result: u64) -> bool {
    match number {
        syscall::MMAP | syscall::MREMAP => result < FIRST_ERROR,
        syscall::MPROTECT | syscall::PKEY_MPROTECT => {
            result < FIRST_ERROR && regs.rdx & PROT_ACCESS != 0
        }
        syscall::BRK => true,
        _ => false,
    }
}

#[inline(always)]
fn mapping(kind: Kind, api: Api, flags: u16, address: u64, length: u64) -> Mapping {
    Mapping {
        header: header(kind, api as u8, flags),
        address,
        length,
        old_address: 0,
        old_length: 0,
        stack: 0,
    }
}

#[inline(always)]
fn mmap_flags(regs: &pt_regs) -> u16 {
    let mut flags = 0;
    if regs.rdx & PROT_EXEC != 0 {
        flags |= flag::EXECUTABLE;
    }
    if regs.rdx == 0 {
        flags |= flag::RESERVED;
    }
    if regs.r10 & MAP_ANONYMOUS == 0 {
        flags |= flag::FILE;
    }
    if regs.r10 & MAP_SHARED != 0 {
        flags |= flag::SHARED;
    }
    flags
}

/// Index of the current process if it is traced.
#[inline(always)]
fn current_process() -> Option<u32> {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // SAFETY: a map value, written before the key is visible.
    PROCESS_INDEX.get_ptr(tgid).map(|index| unsafe { *index })
}
