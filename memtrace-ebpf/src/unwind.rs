//! The walk: from the registers of a thread to the id of its stack.
//!
//! A stack that was seen before is recognised, not walked: the words that the walk depended on
//! (return addresses, and saved frame pointers where a frame was found through one) are compared
//! with a fresh copy of the stack. All equal means: the same walk, the same id. On a miss the
//! stack is walked with [`memtrace_common::unwind::step`], sent to the daemon if it is new, and
//! remembered.
//!
//! ```text
//!   sp ──> | … | ret 0 | … … … | ret 1 | … | rbp | ret 2 | …        user stack, grows up here
//!            └─────────── one bulk copy: `span` ─────┘
//! ```

use core::arch::asm;
use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_probe_read_kernel, generated};
use memtrace_common::config::{
    BUCKET_SHIFT, BUCKETS_PER_CHUNK, MAX_FRAMES, MAX_REMEMBERED_SLOTS, Module, REMEMBERED_STACKS,
    REMEMBERED_WAYS, ROWS_PER_CHUNK, SCRATCH_PIECES, SENT_STACKS, STACK_COPY_BYTES,
};
use memtrace_common::counter::Counter;
use memtrace_common::event::{Kind, Stack};
use memtrace_common::unwind::{End, PcKind, Regs, Row, Step, cfa, step};

use crate::emit::{self, Context};
use crate::maps::{
    BUCKETS, MODULES, PROCESSES, REMEMBERED, ROWS, Remembered, SCRATCH, SENT, Scratch, WALKING,
    count, release, setting, store_regs, try_claim,
};

/// How many pieces of scratch a walk tries to claim, starting at its CPU's.
const CLAIM_TRIES: u32 = 16;

/// A module table of 4096 entries is bisected in this many steps.
const MODULE_STEPS: u32 = 13;

/// The rows of one bucket, at most one a byte and two ends, are bisected in this many steps.
const ROW_STEPS: u32 = 9;

/// How many pending return probes of a thread are searched for a hijacked return address.
const RETURN_INSTANCES: u32 = 8;

/// Bytes of a page: a copy never crosses from one into the next, which may be missing.
const PAGE_BYTES: u64 = 4096;

/// `value & MASK`, in a way that the compiler cannot reason away: the verifier must see it.
#[inline(always)]
fn bounded<const MASK: u32>(value: u64) -> u64 {
    let mut value = value;
    // SAFETY: pure arithmetic.
    unsafe { asm!("{0} &= {1}", inout(reg) value, const MASK, options(pure, nomem, nostack)) };
    value
}

/// The element of `array` at `index & MASK`; the mask is less than the length.
#[inline(always)]
fn element<const MASK: u32, T: Copy, const N: usize>(array: &[T; N], index: u64) -> T {
    const { assert!((MASK as usize) < N) };
    // SAFETY: the mask keeps the index in the array.
    unsafe { *array.get_unchecked(bounded::<MASK>(index) as usize) }
}

/// Sets the element of `array` at `index & MASK`; the mask is less than the length.
#[inline(always)]
fn set_element<const MASK: u32, T, const N: usize>(array: &mut [T; N], index: u64, value: T) {
    const { assert!((MASK as usize) < N) };
    // SAFETY: the mask keeps the index in the array.
    unsafe { *array.get_unchecked_mut(bounded::<MASK>(index) as usize) = value };
}

/// The id of the stack that `regs` is the innermost frame of; 0 if it could not be walked at all.
#[inline(always)]
pub fn capture(tgid: u32, process: u32, regs: Regs, context: Context) -> u64 {
    let Some((index, scratch)) = claim() else {
        count(Counter::NoScratch);
        return 0;
    };
    // SAFETY: claimed, so nobody else writes to it.
    let id = capture_with(unsafe { &mut *scratch }, index, tgid, process, regs, context);
    // SAFETY: a map value that this program has claimed.
    unsafe { release(&raw mut (*scratch).claimed) };
    id
}

/// Claims scratch memory.
#[inline(always)]
fn claim() -> Option<(u32, *mut Scratch)> {
    // SAFETY: a helper without preconditions.
    let first = unsafe { bpf_get_smp_processor_id() } * 4;
    for i in 0..CLAIM_TRIES {
        let index = (first + i) & (SCRATCH_PIECES - 1);
        let scratch = SCRATCH.get_ptr_mut(index)?;
        // SAFETY: a map value.
        if unsafe { try_claim(&raw mut (*scratch).claimed) } {
            return Some((index, scratch));
        }
    }
    None
}

#[inline(always)]
fn capture_with(
    s: &mut Scratch,
    index: u32,
    tgid: u32,
    process: u32,
    regs: Regs,
    context: Context,
) -> u64 {
    let Some(table) = PROCESSES.get(process) else { return 0 };
    let owner = (process as u64) << 32 | table.generation as u64;
    let first_place =
        mix(regs.sp ^ mix(regs.pc)) as u32 & (REMEMBERED_STACKS - 1) & !(REMEMBERED_WAYS - 1);
    for way in 0..REMEMBERED_WAYS {
        if let Some(remembered) = REMEMBERED.get_ptr_mut(first_place + way) {
            // SAFETY: a map value; `recall` guards against writers.
            let id = recall(s, unsafe { &*remembered }, owner, regs);
            if id != 0 {
                return id;
            }
        }
    }

    count(Counter::StackWalks);
    s.base = regs.sp;
    s.copied = 0;
    s.fp_slot = 0;
    s.fp_used = 0;
    s.slot_count = 0;
    s.frame_count = 1;
    s.end = WALKING;
    s.module.end = 0;
    s.module.start = 0;
    s.first_module = table.modules;
    s.module_count = table.module_count;
    s.frames[0] = regs.lookup_pc();
    s.hash = mix(owner ^ mix(regs.lookup_pc()));
    store_regs(s, regs);
    let mut scratch_index = index;
    // SAFETY: the callback has the signature that bpf_loop calls, and the context outlives it.
    unsafe {
        generated::bpf_loop(
            MAX_FRAMES as u32,
            walk_step as *mut c_void,
            (&raw mut scratch_index).cast(),
            0,
        );
    }
    if s.end == WALKING {
        s.end = End::FrameLimit as u32;
    }
    let id = mix(s.hash ^ s.end as u64) | 1;
    if send_if_new(s, tgid, id, context) && s.end == End::Root as u32 {
        remember(s, first_place + (id >> 32) as u32 % REMEMBERED_WAYS, owner, regs, id);
    }
    id
}

/// The id of `remembered` if the stack is the one it stands for; 0 if not.
#[inline(always)]
fn recall(s: &mut Scratch, remembered: &Remembered, owner: u64, regs: Regs) -> u64 {
    let version = version_of(remembered);
    let slot_count = remembered.slot_count as usize;
    let id = remembered.id;
    if remembered.sp != regs.sp
        || remembered.pc != regs.pc
        || remembered.process != owner
        || (remembered.fp_used != 0 && remembered.fp != regs.fp)
        || version & 1 != 0
    {
        return 0;
    }
    let span = bounded::<0xffff>(remembered.span as u64);
    // SAFETY: the copy is larger than the largest span.
    let failed = unsafe {
        generated::bpf_probe_read_user(
            s.copy.as_mut_ptr().cast(),
            span as u32,
            regs.sp as *const c_void,
        )
    };
    if failed != 0 {
        return 0;
    }
    let mut difference = 0;
    let mut i = 0;
    while i < MAX_REMEMBERED_SLOTS {
        if i >= slot_count {
            break;
        }
        // Eight without a branch: slots behind the last one repeat it.
        let mut j = 0;
        while j < 8 {
            let offset_by_8 =
                element::<0xff, _, _>(&remembered.slot_offset_by_8, (i + j) as u64) as u64;
            let word = element::<0x1fff, _, _>(&s.copy, offset_by_8);
            difference |= word ^ element::<0xff, _, _>(&remembered.slot_value, (i + j) as u64);
            j += 1;
        }
        i += 8;
    }
    let unchanged = version_of(remembered) == version;
    if difference == 0 && unchanged { id } else { 0 }
}

/// Keeps the compiler from moving memory accesses across; `compiler_fence` has no BPF code.
#[inline(always)]
fn compiler_barrier() {
    // SAFETY: no instruction.
    unsafe { asm!("", options(nostack)) };
}

/// The version, read between what stands before and after it; the CPU keeps loads in order.
#[inline(always)]
fn version_of(remembered: &Remembered) -> u64 {
    compiler_barrier();
    // SAFETY: a map value, aligned; volatile, because writers change it.
    let version = unsafe { core::ptr::read_volatile(&raw const remembered.version) };
    compiler_barrier();
    version
}

/// Writes the walked stack over what was remembered at `place`.
#[inline(always)]
fn remember(s: &Scratch, place: u32, owner: u64, regs: Regs, id: u64) {
    let slot_count = s.slot_count as usize;
    if slot_count == 0 || slot_count > MAX_REMEMBERED_SLOTS {
        return;
    }
    let Some(remembered) = REMEMBERED.get_ptr_mut(place) else { return };
    // SAFETY: a map value; the claim keeps other writers out, the version tells readers.
    let remembered = unsafe { &mut *remembered };
    // SAFETY: a map value.
    if !unsafe { try_claim(&raw mut remembered.claimed) } {
        return;
    }
    let version = version_of(remembered);
    set_version(remembered, version | 1);
    let mut span = 0;
    let mut last_offset = 0;
    let mut last_value = 0;
    let mut i = 0;
    while i < MAX_REMEMBERED_SLOTS {
        if i >= slot_count && i & 7 == 0 {
            break;
        }
        if i < slot_count {
            last_offset = element::<0xff, _, _>(&s.slot_offset_by_8, i as u64);
            last_value = element::<0xff, _, _>(&s.slot_value, i as u64);
            let end = (last_offset as u32 + 1) * 8;
            if end > span {
                span = end;
            }
        }
        set_element::<0xff, _, _>(&mut remembered.slot_offset_by_8, i as u64, last_offset);
        set_element::<0xff, _, _>(&mut remembered.slot_value, i as u64, last_value);
        i += 1;
    }
    remembered.slot_count = slot_count as u64;
    remembered.span = span;
    remembered.pc = regs.pc;
    remembered.sp = regs.sp;
    remembered.fp = regs.fp;
    remembered.fp_used = s.fp_used;
    remembered.process = owner;
    remembered.id = id;
    set_version(remembered, (version | 1) + 1);
    // SAFETY: claimed above.
    unsafe { release(&raw mut remembered.claimed) };
}

/// Writes the version after what stands before; the CPU keeps stores in order.
#[inline(always)]
fn set_version(remembered: &mut Remembered, version: u64) {
    compiler_barrier();
    // SAFETY: a map value, aligned.
    unsafe { core::ptr::write_volatile(&raw mut remembered.version, version) };
    compiler_barrier();
}

/// Sends the frames behind `id` unless the daemon has them; false if they were lost.
#[inline(always)]
fn send_if_new(s: &mut Scratch, tgid: u32, id: u64, context: Context) -> bool {
    let Some(sent) = SENT.get_ptr_mut((id >> 8) as u32 & (SENT_STACKS - 1)) else { return false };
    // A lost race sends a stack twice, which is harmless.
    // SAFETY: a map value, aligned.
    if unsafe { core::ptr::read_volatile(sent) } == id {
        return true;
    }
    let frames = s.frame_count;
    s.stack = Stack { header: emit::header(Kind::Stack, 0, s.end as u16), id, pid: tgid, frames };
    let bytes = bounded::<0x3fff>(size_of::<Stack>() as u64 + frames as u64 * 8);
    if bytes > (size_of::<Stack>() + MAX_FRAMES * 8) as u64 {
        return false;
    }
    // SAFETY: header and frames lie one behind the other in the scratch; the size was checked.
    if !unsafe { emit::send_bytes((&raw mut s.stack).cast(), bytes, Counter::LostStacks, context) }
    {
        return false;
    }
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(sent, id) };
    true
}

/// Finds the caller of the frame in the scratch, and notes it. 1 ends the walk.
unsafe extern "C" fn walk_step(_step: u64, context: *mut c_void) -> u64 {
    // SAFETY: capture_with passes a pointer to the index of its scratch.
    let index = unsafe { *context.cast::<u32>() };
    let Some(scratch) = SCRATCH.get_ptr_mut(index) else { return 1 };
    // SAFETY: claimed by the program that started the walk.
    let s = unsafe { &mut *scratch };
    let mut regs = Regs {
        pc: s.pc,
        sp: s.sp,
        fp: s.fp,
        pc_kind: if s.pc_exact != 0 { PcKind::Exact } else { PcKind::ReturnAddress },
    };
    copy_ahead(s, regs.sp);
    let row = match find_row(s, regs.lookup_pc()) {
        Some(row) => row,
        None => {
            // A return probe that is still to fire has its trampoline where the address belongs.
            let address = hijacked_address(regs.sp.wrapping_sub(8));
            if address == 0 {
                s.end = End::UnknownCode as u32;
                return 1;
            }
            regs.pc = address;
            let pc = regs.lookup_pc();
            let last = s.frame_count.wrapping_sub(1);
            set_element::<0x3ff, _, _>(&mut s.frames, last as u64, pc);
            s.hash = mix(s.hash ^ pc);
            // The stack word is the trampoline's, whoever the caller is: it recognises nothing.
            s.slot_count = MAX_REMEMBERED_SLOTS as u32 + 1;
            match find_row(s, regs.lookup_pc()) {
                Some(row) => row,
                None => {
                    s.end = End::UnknownCode as u32;
                    return 1;
                }
            }
        }
    };
    note_frame_pointer(s, row, regs);
    let caller = step(row, regs, |address| read_stack(s, address));
    match caller {
        Step::End(end) => {
            s.end = end as u32;
            1
        }
        Step::Caller { regs: caller, pc_slot, fp_slot } => {
            if row.cfa_kind == cfa::SIGNAL {
                // The interrupted frame's stack pointer is one more word to depend on, and the
                // handler may run on another stack: such a stack is walked every time.
                s.slot_count = MAX_REMEMBERED_SLOTS as u32 + 1;
            }
            note_slot(s, pc_slot, caller.pc);
            if fp_slot != 0 {
                s.fp_slot = fp_slot;
            }
            let count = s.frame_count;
            if count as usize >= MAX_FRAMES {
                s.end = End::FrameLimit as u32;
                return 1;
            }
            let pc = caller.lookup_pc();
            set_element::<0x3ff, _, _>(&mut s.frames, count as u64, pc);
            s.frame_count = count + 1;
            s.hash = mix(s.hash ^ pc);
            store_regs(s, caller);
            0
        }
    }
}

/// Notes what the frame's CFA depends on besides return addresses.
#[inline(always)]
fn note_frame_pointer(s: &mut Scratch, row: Row, regs: Regs) {
    let kind = row.cfa_kind;
    if kind == cfa::RBP || kind == cfa::NONE || kind == cfa::DEREF_RBP {
        if s.fp_slot == 0 {
            s.fp_used = 1;
        } else {
            note_slot(s, s.fp_slot, regs.fp);
        }
    }
    let offset = row.cfa_offset as i64 as u64;
    let pointer = match kind {
        cfa::DEREF_RBP => regs.fp.wrapping_add(offset),
        cfa::DEREF_RSP => regs.sp.wrapping_add(offset),
        _ => return,
    };
    match read_stack(s, pointer) {
        Some(value) => note_slot(s, pointer, value),
        None => s.slot_count = MAX_REMEMBERED_SLOTS as u32 + 1,
    }
}

/// Notes that the walk depends on the stack word at `address`.
#[inline(always)]
fn note_slot(s: &mut Scratch, address: u64, value: u64) {
    let offset = address.wrapping_sub(s.base);
    let count = s.slot_count;
    if count as usize >= MAX_REMEMBERED_SLOTS
        // Not the last word of the copy either: a span of all 64 KiB would not fit `recall`'s mask.
        || offset >= STACK_COPY_BYTES as u64 - 8
        || offset & 7 != 0
    {
        s.slot_count = MAX_REMEMBERED_SLOTS as u32 + 1;
        return;
    }
    set_element::<0xff, _, _>(&mut s.slot_offset_by_8, count as u64, (offset >> 3) as u16);
    set_element::<0xff, _, _>(&mut s.slot_value, count as u64, value);
    s.slot_count = count + 1;
}

/// Copies the next page of the stack when the walk comes near the end of the copy.
#[inline(always)]
fn copy_ahead(s: &mut Scratch, sp: u64) {
    let copied = s.copied;
    if sp.wrapping_sub(s.base) + 512 < copied || copied >= STACK_COPY_BYTES as u64 {
        return;
    }
    let from = s.base.wrapping_add(copied);
    let size = PAGE_BYTES - (from & (PAGE_BYTES - 1));
    let size = bounded::<0x1fff>(size);
    let at = bounded::<0xfff8>(copied);
    // SAFETY: `at` < 64 KiB and `size` < 8 KiB lie in the copy, which is 72 KiB.
    let failed = unsafe {
        let to = s.copy.as_mut_ptr().cast::<u8>().add(at as usize);
        generated::bpf_probe_read_user(to.cast(), size as u32, from as *const c_void)
    };
    // A page that is not there: words behind it are read one by one, if at all.
    if failed == 0 {
        s.copied = copied + size;
    }
}

/// The stack word at `address`: from the copy, else from the thread's memory.
#[inline(always)]
fn read_stack(s: &Scratch, address: u64) -> Option<u64> {
    let offset = address.wrapping_sub(s.base);
    if offset & 7 == 0 && offset < s.copied && offset < STACK_COPY_BYTES as u64 {
        return Some(element::<0x1fff, _, _>(&s.copy, offset >> 3));
    }
    let mut word = 0u64;
    // SAFETY: the helper checks the user address.
    let failed = unsafe {
        generated::bpf_probe_read_user((&raw mut word).cast(), 8, address as *const c_void)
    };
    if failed != 0 {
        count(Counter::UnreadableStack);
        return None;
    }
    Some(word)
}

/// The unwind row for `pc`; `None` if it is in no module.
#[inline(always)]
fn find_row(s: &mut Scratch, pc: u64) -> Option<Row> {
    if !(s.module.start <= pc && pc < s.module.end) {
        find_module(s, pc)?;
    }
    let Module { base, buckets, bucket_count, .. } = s.module;
    let relative = pc.wrapping_sub(base);
    let bucket = relative >> BUCKET_SHIFT;
    if bucket >= bucket_count as u64 {
        return Some(Row { pc: 0, cfa_offset: 0, cfa_kind: cfa::NONE, rbp_offset_by_8: 0 });
    }
    let bucket = buckets.wrapping_add(bucket as u32);
    let mut low = bucket_entry(bucket)?;
    let mut high = bucket_entry(bucket.wrapping_add(1))?;
    // The last row at or before `relative` is in low..=high.
    for _ in 0..ROW_STEPS {
        if low >= high {
            break;
        }
        let middle = low + (high - low + 1) / 2;
        if row_at(middle)?.pc as u64 <= relative {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    row_at(low)
}

#[inline(always)]
fn bucket_entry(index: u32) -> Option<u32> {
    let chunk = BUCKETS.get_ptr(index / BUCKETS_PER_CHUNK as u32)?;
    // SAFETY: a map value, which programs only read.
    Some(element::<0x3ff, _, _>(unsafe { &*chunk }, index as u64))
}

#[inline(always)]
fn row_at(index: u32) -> Option<Row> {
    let chunk = ROWS.get_ptr(index / ROWS_PER_CHUNK as u32)?;
    // SAFETY: a map value, which programs only read.
    Some(element::<0x1ff, _, _>(unsafe { &*chunk }, index as u64))
}

/// Puts the module that holds `pc` into the scratch.
#[inline(always)]
fn find_module(s: &mut Scratch, pc: u64) -> Option<()> {
    // The last module that starts at or before `pc` is in low..high.
    let mut low = 0;
    let mut high = s.module_count;
    if high == 0 {
        // A process that found no room for its modules must not be walked with another's.
        return None;
    }
    for _ in 0..MODULE_STEPS {
        if low + 1 >= high {
            break;
        }
        let middle = (low + high) / 2;
        if MODULES.get(s.first_module.wrapping_add(middle))?.start <= pc {
            low = middle;
        } else {
            high = middle;
        }
    }
    let module = MODULES.get(s.first_module.wrapping_add(low))?;
    if pc < module.start || pc >= module.end {
        return None;
    }
    s.module = *module;
    Some(())
}

/// The return address that a return probe replaced at `slot`; 0 if none did.
///
/// The kernel keeps them in a list of the thread's (`struct return_instance` in
/// include/linux/uprobes.h).
#[inline(always)]
fn hijacked_address(slot: u64) -> u64 {
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

/// Spreads the bits of `value` (the finalizer of MurmurHash3).
#[inline(always)]
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let value = (value ^ (value >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    value ^ (value >> 33)
}
