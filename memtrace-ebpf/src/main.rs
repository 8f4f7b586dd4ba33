//! memtrace's kernel programs: entry points only.
//!
//! ```text
//!   uprobes       call_enter, release_enter                  the allocator's functions
//!                 acquired, call_return                      their returns, and places inside them
//!                 unwind_enter                               exceptions that leave them
//!                 end_enter                                  the end of the program
//!   functions     {mmap,munmap,mremap,brk,…}_{enter,exit}    mappings
//!   of the kernel schedule_tail_exit                         the first steps of a process
//!   tracepoints   sched_process_{fork,exec,exit}, task_rename  life of processes and threads
//!                 sys_enter, sys_exit                        where functions cannot be watched
//! ```
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod alloc;
mod bounds;
mod emit;
mod forks;
mod lookup;
mod maps;
mod midway;
mod process;
mod remember;
mod sets;
mod slots;
mod task;
mod unwind;
mod vm;

use aya_ebpf::macros::{btf_tracepoint, fentry, fexit, uprobe, uretprobe};
use aya_ebpf::programs::{
    BtfTracePointContext, FEntryContext, FExitContext, ProbeContext, RetProbeContext,
};

use memtrace_common::midway::Cookie;

use crate::maps::never_taken;
use crate::vm::syscall;

/// `malloc` and its kin, and what the user has named, are entered.
#[uprobe]
pub fn call_enter(ctx: ProbeContext) -> u32 {
    never_taken(&ctx);
    let _ = alloc::enter_call(&ctx);
    0
}

/// `malloc` and its kin have returned, or are at a place inside where they know the block, or still
/// know its size.
///
/// One program for both, which the kernel has to verify once. Links of many probes may be of returns
/// whatever the program is.
#[uprobe]
pub fn acquired(ctx: ProbeContext) -> u32 {
    never_taken(&ctx);
    let cookie = Cookie(alloc::attach_cookie(&ctx));
    // SAFETY: the kernel gives a uprobe program the registers.
    let regs = unsafe { &*ctx.regs };
    let _ = if cookie.is_inside() { midway::passed(regs, cookie) } else { alloc::leave_call(regs) };
    0
}

/// `malloc` and its kin, and what the user has named, have returned: for links of one probe.
#[uretprobe]
pub fn call_return(ctx: RetProbeContext) -> u32 {
    never_taken(&ctx);
    // SAFETY: the kernel gives a uretprobe program the registers.
    let _ = alloc::leave_call(unsafe { &*ctx.regs });
    0
}

/// `free` and its kin are entered.
#[uprobe]
pub fn release_enter(ctx: ProbeContext) -> u32 {
    never_taken(&ctx);
    let _ = alloc::enter_release(&ctx);
    0
}

/// The stack is about to be unwound. Loaded only where that could concern a probed function.
#[uprobe]
pub fn unwind_enter(ctx: ProbeContext) -> u32 {
    let _ = alloc::unwind_starts(&ctx);
    0
}

/// The process ends when this function is through. Placed only where it is to be read before.
#[uprobe]
pub fn end_enter(ctx: ProbeContext) -> u32 {
    never_taken(&ctx);
    let _ = process::ends(&ctx);
    0
}

/// Does nothing: what the probes alone cost.
#[uprobe]
pub fn empty_enter(_ctx: ProbeContext) -> u32 {
    0
}

/// Does nothing: what the return probes alone cost.
#[uretprobe]
pub fn empty_return(_ctx: RetProbeContext) -> u32 {
    0
}

/// Memory is about to be unmapped.
#[fentry(function = "__x64_sys_munmap")]
pub fn munmap_enter(ctx: FEntryContext) -> i32 {
    vm::function_enter(&ctx, syscall::MUNMAP);
    0
}

/// Memory is about to be moved.
#[fentry(function = "__x64_sys_mremap")]
pub fn mremap_enter(ctx: FEntryContext) -> i32 {
    vm::function_enter(&ctx, syscall::MREMAP);
    0
}

/// Memory was mapped.
#[fexit(function = "__x64_sys_mmap")]
pub fn mmap_exit(ctx: FExitContext) -> i32 {
    vm::function_exit(&ctx, syscall::MMAP);
    0
}

/// Memory was unmapped.
#[fexit(function = "__x64_sys_munmap")]
pub fn munmap_exit(ctx: FExitContext) -> i32 {
    vm::function_exit(&ctx, syscall::MUNMAP);
    0
}

/// Memory was moved.
#[fexit(function = "__x64_sys_mremap")]
pub fn mremap_exit(ctx: FExitContext) -> i32 {
    vm::function_exit(&ctx, syscall::MREMAP);
    0
}

/// Memory has other rights.
#[fexit(function = "__x64_sys_mprotect")]
pub fn mprotect_exit(ctx: FExitContext) -> i32 {
    vm::function_exit(&ctx, syscall::MPROTECT);
    0
}

/// Memory has other rights, and a protection key.
#[fexit(function = "__x64_sys_pkey_mprotect")]
pub fn pkey_mprotect_exit(ctx: FExitContext) -> i32 {
    vm::function_exit(&ctx, syscall::PKEY_MPROTECT);
    0
}

/// The program break was moved.
#[fexit(function = "__x64_sys_brk")]
pub fn brk_exit(ctx: FExitContext) -> i32 {
    vm::function_exit(&ctx, syscall::BRK);
    0
}

/// A new thread or process runs for the first time, in the kernel.
#[fexit(function = "schedule_tail")]
pub fn schedule_tail_exit(_ctx: FExitContext) -> i32 {
    process::first_return();
    0
}

/// A system call is entered.
#[btf_tracepoint(function = "sys_enter")]
pub fn sys_enter(ctx: BtfTracePointContext) -> i32 {
    let _ = vm::sys_enter(&ctx);
    0
}

/// A system call returns.
#[btf_tracepoint(function = "sys_exit")]
pub fn sys_exit(ctx: BtfTracePointContext) -> i32 {
    let _ = vm::sys_exit(&ctx);
    0
}

/// A thread or process was made.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn sched_process_fork(ctx: BtfTracePointContext) -> i32 {
    let _ = process::forked(&ctx);
    0
}

/// A process runs a new program.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn sched_process_exec(ctx: BtfTracePointContext) -> i32 {
    let _ = process::executed(&ctx);
    0
}

/// A thread ends.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn sched_process_exit(ctx: BtfTracePointContext) -> i32 {
    let _ = process::exited(&ctx);
    0
}

/// A thread gets a name.
#[btf_tracepoint(function = "task_rename")]
pub fn task_rename(ctx: BtfTracePointContext) -> i32 {
    let _ = process::renamed(&ctx);
    0
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The programs have no panicking path: one would not pass the verifier.
    loop {}
}
