//! What the kernel's own structures say of the current thread's return probes.

use aya_ebpf::helpers::{
    bpf_probe_read_kernel, bpf_probe_read_user, bpf_probe_write_user, generated,
};

use crate::maps::setting;

/// How many pending return probes of a thread are searched for a hijacked return address.
const RETURN_INSTANCES: u32 = 8;

/// The return address that a return probe replaced at `slot`; 0 if none did.
///
/// The kernel keeps them in a list of the thread's (`struct return_instance` in
/// include/linux/uprobes.h).
#[inline(always)]
pub fn hijacked_address(slot: u64) -> u64 {
    // SAFETY: a helper without preconditions.
    let task = unsafe { generated::bpf_get_current_task() };
    let utask = kernel_word(task, setting!(offsets.task_utask));
    let mut instance = kernel_word(utask, setting!(offsets.utask_return_instances));
    for _ in 0..RETURN_INSTANCES {
        if instance == 0 {
            break;
        }
        if kernel_word(instance, setting!(offsets.return_instance_stack)) == slot {
            return kernel_word(instance, setting!(offsets.return_instance_address));
        }
        instance = kernel_word(instance, setting!(offsets.return_instance_next));
    }
    0
}

/// Puts back the return addresses of the current thread's calls from `sp` down to `entry_sp`.
///
/// These are words that the kernel has replaced by the trampoline's address, for its return probes.
#[inline(always)]
pub fn restore_return_addresses(sp: u64, entry_sp: u64, trampoline: u64) {
    // SAFETY: a helper without preconditions.
    let task = unsafe { generated::bpf_get_current_task() };
    let utask = kernel_word(task, setting!(offsets.task_utask));
    let mut instance = kernel_word(utask, setting!(offsets.utask_return_instances));
    for _ in 0..RETURN_INSTANCES {
        if instance == 0 {
            break;
        }
        let stack = kernel_word(instance, setting!(offsets.return_instance_stack));
        let address = kernel_word(instance, setting!(offsets.return_instance_address));
        if stack >= sp && stack <= entry_sp && address != 0 {
            if user_word(stack) == trampoline {
                // Should it fail, the program ends as it would have without the attempt.
                // SAFETY: the helper checks the address.
                let _ = unsafe { bpf_probe_write_user(stack as *mut u64, &address) };
            }
        }
        instance = kernel_word(instance, setting!(offsets.return_instance_next));
    }
}

/// Where the current process's return probes return to; 0 if it has none yet.
///
/// It is the start of the area in which the kernel steps over probed instructions
/// (`uprobe_get_trampoline_vaddr` in kernel/events/uprobes.c).
#[inline(always)]
pub fn trampoline() -> u64 {
    // SAFETY: a helper without preconditions.
    let task = unsafe { generated::bpf_get_current_task() };
    let mm = kernel_word(task, setting!(offsets.task_mm));
    let state = setting!(offsets.mm_uprobes_state) + setting!(offsets.uprobes_xol_area);
    let area = kernel_word(mm, state);
    kernel_word(area, setting!(offsets.xol_area_address))
}

/// The word of kernel memory at `structure + offset`; 0 if it cannot be read.
#[inline(always)]
pub fn kernel_word(structure: u64, offset: u32) -> u64 {
    if structure == 0 {
        return 0;
    }
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(structure.wrapping_add(offset as u64) as *const u64) }
        .unwrap_or(0)
}

/// The word of the current process's memory at `address`; 0 if it cannot be read.
#[inline(always)]
pub fn user_word(address: u64) -> u64 {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_user(address as *const u64) }.unwrap_or(0)
}
