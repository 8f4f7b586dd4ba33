//! memtrace's kernel programs: entry points only.
//!
//! ```text
//!   uprobes       acquire_enter, acquire_return, release     the allocator's functions
//!   tracepoints   sys_enter, sys_exit                        mappings
//!                 sched_process_{fork,exec,exit}, task_rename  life of processes and threads
//! ```
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod alloc;
mod bounds;
mod emit;
mod lookup;
mod maps;
mod process;
mod remember;
mod slots;
mod task;
mod unwind;
mod vm;

use aya_ebpf::macros::{btf_tracepoint, uprobe, uretprobe};
use aya_ebpf::programs::{BtfTracePointContext, ProbeContext, RetProbeContext};

use crate::maps::never_taken;

/// `malloc` and its kin are entered.
#[uprobe]
pub fn acquire_enter(ctx: ProbeContext) -> u32 {
    never_taken(&ctx);
    let _ = alloc::enter_acquire(&ctx);
    0
}

/// `malloc` and its kin have returned.
#[uretprobe]
pub fn acquire_return(ctx: RetProbeContext) -> u32 {
    never_taken(&ctx);
    let _ = alloc::leave_acquire(&ctx);
    0
}

/// `free` and its kin are entered.
#[uprobe]
pub fn release_enter(ctx: ProbeContext) -> u32 {
    never_taken(&ctx);
    let _ = alloc::enter_release(&ctx);
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
