//! The maps, and the settings that the daemon writes before the programs are loaded.
//!
//! Uprobe programs run in task context and can be preempted by another thread that runs the same
//! program on the same CPU. So nothing here is private to a CPU: a thread has its [`Slot`], a
//! walk claims a piece of [`SCRATCH`], and everything shared is changed with atomics.

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::btf_maps::{self, ArrayOfMaps};
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, ProgramArray, RingBuf};
use core::arch::asm;

use memtrace_common::config::{
    BucketChunk, CHUNKS_PER_SEGMENT, FORK_SETS, FORK_WAYS, MAX_FRAMES, MAX_MODULES, MAX_PROCESSES,
    MAX_REMEMBERED_SLOTS, MAX_THREADS, Module, Process, RECENT_ROW_PLACES, REMEMBERED_SETS,
    REMEMBERED_WAYS, RowChunk, SCRATCH_PIECES, SENT_STACKS, STACK_COPY_BYTES, STACK_LEAD_BYTES,
    Settings,
};
use memtrace_common::counter::{COUNTERS, Counter};
use memtrace_common::event::{Stack, StackRest};
use memtrace_common::midway::{FRONT_SETS, Fronts, STACK_WORDS};
use memtrace_common::unwind::Regs;

use crate::bounds::element;

/// Written by the daemon into the object before it is loaded; constant afterwards.
#[unsafe(no_mangle)]
pub static SETTINGS: Settings = Settings {
    back_pressure_ns: 0,
    ring_bytes: 0,
    offsets: memtrace_common::config::KernelOffsets {
        task_pid: 0,
        task_tgid: 0,
        task_mm: 0,
        task_signal: 0,
        task_utask: 0,
        signal_live: 0,
        utask_return_instances: 0,
        return_instance_stack: 0,
        return_instance_address: 0,
        return_instance_next: 0,
        mm_uprobes_state: 0,
        uprobes_xol_area: 0,
        xol_area_address: 0,
        unused: 0,
    },
};

/// Reads one of the settings, such as `setting!(offsets.task_pid)`.
macro_rules! setting {
    ($($field:tt)+) => {
        // SAFETY: reads a static; volatile, because the loader changes it behind the compiler.
        unsafe { core::ptr::read_volatile(&raw const $crate::maps::SETTINGS.$($field)+) }
    };
}
pub(crate) use setting;

/// Events to the daemon. The daemon sets the size.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);

/// tgid to index in [`PROCESSES`]; what is not in here is not traced.
#[map]
pub static PROCESS_INDEX: HashMap<u32, u32> = HashMap::with_max_entries(MAX_PROCESSES, 0);

/// The traced processes.
#[map]
pub static PROCESSES: Array<Process> = Array::with_max_entries(MAX_PROCESSES, 0);

/// The fronts of allocators' cores, by the number in an attach cookie.
#[map]
pub static FRONTS: Array<Fronts> = Array::with_max_entries(FRONT_SETS, 0);

/// How often each traced process has made code executable; see `Process::code_changes`.
#[map]
pub static CODE_CHANGES: Array<u64> = Array::with_max_entries(MAX_PROCESSES, 0);

/// tgid of children that are to be traced from their first instruction, and how they came.
#[map]
pub static PENDING: HashMap<u32, u32> = HashMap::with_max_entries(MAX_PROCESSES, 0);

/// Executable mappings of all processes. The daemon sets the size.
#[map]
pub static MODULES: Array<Module> = Array::with_max_entries(MAX_MODULES, 0);

/// A part of a table. The daemon makes them when it needs them, and writes them through shared memory.
type Segment<T> = btf_maps::Array<T, CHUNKS_PER_SEGMENT, { BPF_F_MMAPABLE as usize }>;

/// For each 256 bytes of text, the last row that starts at or before it. The daemon sets how many
/// segments there may be.
#[btf_map]
pub static BUCKETS: ArrayOfMaps<Segment<BucketChunk>, 1> = ArrayOfMaps::new();

/// Unwind rows. The daemon sets how many segments there may be.
#[btf_map]
pub static ROWS: ArrayOfMaps<Segment<RowChunk>, 1> = ArrayOfMaps::new();

/// Rows that were found, by program counter and process, direct-mapped.
#[map]
pub static RECENT_ROWS: Array<RecentRow> = Array::with_max_entries(RECENT_ROW_PLACES, 0);

/// What each thread is doing; see [`crate::slots`].
#[map]
pub static SLOTS: Array<Slot> = Array::with_max_entries(MAX_THREADS, 0);

/// Memory for walks, claimed by whoever walks.
#[map]
pub static SCRATCH: Array<Scratch> = Array::with_max_entries(SCRATCH_PIECES, 0);

/// Stacks that were walked, so that they need not be walked again. Values that can be mapped begin
/// at a page.
#[map]
pub static REMEMBERED: Array<RememberedSet> =
    Array::with_max_entries(REMEMBERED_SETS, BPF_F_MMAPABLE);

/// Where they part. Values that can be mapped begin at a page, so that a set is a line of the cache.
#[map]
pub static FORKS: Array<ForkSet> = Array::with_max_entries(FORK_SETS, BPF_F_MMAPABLE);

/// What is left of the words of each of them.
#[map]
pub static DIGESTS: Array<Digests> = Array::with_max_entries(REMEMBERED_SETS * REMEMBERED_WAYS, 0);

/// Ids of stacks that the daemon has, direct-mapped.
#[map]
pub static SENT: Array<u64> = Array::with_max_entries(SENT_STACKS, 0);

/// See [`Counter`].
#[map]
static COUNTER_VALUES: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTERS, 0);

/// Values shared by all programs; indices are the [`shared`] constants.
#[map]
static SHARED: Array<u64> = Array::with_max_entries(shared::COUNT, 0);

/// Empty. A program that mentions it gets no private stack from the kernel; see [`never_taken`].
#[map]
static NO_PROGRAMS: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Indices in [`SHARED`].
pub mod shared {
    /// `CLOCK_MONOTONIC` when the daemon last showed that it lives; 0 once it detaches.
    pub const HEARTBEAT_NS: u32 = 0;
    /// The ring's consumer position at which the last event gave up waiting.
    pub const STALLED_AT: u32 = 1;
    /// The consumer position at which threads were last held back.
    pub const HELD_AT: u32 = 2;
    /// `CLOCK_MONOTONIC` when the first of them was, at that position.
    pub const HELD_SINCE_NS: u32 = 3;
    /// `CLOCK_MONOTONIC` when the daemon was last woken because the ring was filling up.
    pub const WOKEN_NS: u32 = 4;
    /// How many there are.
    pub const COUNT: u32 = 5;
}

/// What a thread is doing. One line of the cache.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct Slot {
    /// The thread; 0 if the slot is free.
    pub tid: u64,
    /// Index in [`PROCESSES`] of the process whose memory it uses.
    pub process: u32,
    /// That process's tgid: not the thread's own after `vfork`.
    pub tgid: u32,
    /// A [`memtrace_common::call::Cookie`]: the outermost allocator call that has not returned; 0 if
    /// there is none; [`INSIDE`] if it is watched at places inside it.
    pub call: u32,
    /// How many probed functions that call has jumped to: all return at once. [`NOTED`] if there is
    /// no call, but a size that was noted on the way through a function.
    pub tail_calls: u16,
    /// Binary logarithm of the alignment that the call asks for, if its cookie has one.
    pub alignment: u16,
    /// Stack pointer (AVMA) at the entry of that call, where its return address is; or where the
    /// size was noted.
    pub entry_sp: u64,
    /// Bytes that the call asks for, or the size that was noted.
    pub size: u64,
    /// `realloc` and its kin: the block that is taken back.
    pub ptr: u64,
    /// `posix_memalign` and its kin: where the address goes. If `call` is [`INSIDE`], its return address.
    pub given: u64,
    /// Address of the return-probe trampoline, once it is known; else 0.
    pub trampoline: u64,
}

/// `Slot::call` while the thread is between two places of one function: no cookie has all bits set.
pub const INSIDE: u32 = u32::MAX;

/// `Slot::tail_calls` while the slot holds a noted size.
pub const NOTED: u16 = u16::MAX;

impl Slot {
    /// The slot of a thread that is in no allocator call.
    pub const fn idle(tid: u32, process: u32, tgid: u32) -> Self {
        Slot {
            tid: tid as u64,
            process,
            tgid,
            call: 0,
            tail_calls: 0,
            alignment: 0,
            entry_sp: 0,
            size: 0,
            ptr: 0,
            given: 0,
            trampoline: 0,
        }
    }
}

/// Memory for one walk.
#[repr(C)]
pub struct Scratch {
    /// 1 while claimed.
    pub claimed: u64,
    /// The frame that the walk has reached; `pc_exact` is a `PcKind`.
    pub pc: u64,
    pub sp: u64,
    pub fp: u64,
    /// Where `fp` was read from; 0 while it is the register's value at the start.
    pub fp_slot: u64,
    /// Stack pointer at the start.
    pub base: u64,
    /// How many words lower `copy` begins, [`STACK_WORDS`] at most.
    pub lead: u64,
    /// How many bytes are copied at once, before it is known how far the stack is needed: as many as the
    /// last one needed.
    pub expected: u64,
    /// `rbp` at the start.
    pub start_fp: u64,
    /// A hash of the process and its `generation`, which each frame's row is looked up with.
    pub owner_hash: u64,
    /// A hash of those, `base` and the program counter at the start.
    pub family: u64,
    /// How many bytes of `copy` are valid, from `base` on.
    pub copied: u64,
    /// How little it pays to remember stacks; see [`crate::remember`].
    pub futility: u64,
    /// The module that the last frame was in.
    pub module: Module,
    pub first_module: u32,
    pub module_count: u32,
    /// An `End`, or [`WALKING`].
    pub end: u32,
    pub frame_count: u32,
    pub pc_exact: u32,
    /// How many bytes from `base` cover the words that the walk depended on.
    pub span: u32,
    pub hash: u64,
    /// The stack words that the walk depended on, so far; more than fit means: not to be remembered.
    pub slot_count: u32,
    /// 1 if the walk depended on `rbp`'s value at the start.
    pub fp_used: u32,
    pub slot_offset_by_8: [u16; MAX_REMEMBERED_SLOTS],
    pub slot_value: [u64; MAX_REMEMBERED_SLOTS],
    /// Number of this walk.
    pub walk: u16,
    /// Of each word of the copy, the last walk that depended on it. A number that comes again is
    /// harmless: it may choose a worse key.
    pub last_walk: [u16; STACK_COPY_BYTES / 8],
    /// The event, ready to be sent: header and frames.
    pub stack: Stack,
    pub frames: [u64; MAX_FRAMES],
    /// Behind the frames, and in front of the copy, as a `RawStack` has it.
    pub rest: StackRest,
    /// The stack from `lead` words below `base` upwards. One copy may end a page behind the limit.
    pub copy: [u64; STACK_COPY_BYTES / 8 + 1024 + STACK_WORDS],
}

impl Scratch {
    /// The word of the copy that lies so many words above `base`; it must be among the valid ones.
    #[inline(always)]
    pub fn word(&self, number: u64) -> u64 {
        element::<0x1fff, _, _>(&self.copy, number.wrapping_add(self.lead))
    }
}

/// Words further above `base` than this are none of [`Scratch::word`]'s.
pub const COPY_LIMIT: u64 = (STACK_COPY_BYTES - STACK_LEAD_BYTES) as u64;

/// `Scratch::end` while the walk goes on.
pub const WALKING: u32 = u32::MAX;

/// A row that was found.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RecentRow {
    /// A hash of program counter and process, xor `row`: halves of two rows do not fit together.
    pub check: u64,
    pub row: u64,
}

/// Stacks that fall to one set: one page, since pages are what a look-up waits for.
#[repr(C, align(4096))]
pub struct RememberedSet {
    /// The key of each way, and one that is none. One line of the cache.
    pub tags: [u64; 8],
    pub ways: [Remembered; REMEMBERED_WAYS as usize],
}

const _: () = assert!(size_of::<RememberedSet>() == 4096);

/// Forks that fall to one set. All sets lie close together: there are several on the way to a stack.
#[repr(C, align(64))]
pub struct ForkSet {
    /// The keys at which stacks part.
    pub tags: [u64; FORK_WAYS as usize],
    /// Of a family's, how many bytes from `sp` cover all slots of all members.
    pub span: [u32; FORK_WAYS as usize],
    /// Offset from `sp`, in words, of the first word that they differ in; 0 while there is one stack.
    pub telling: [u32; FORK_WAYS as usize],
}

/// A stack that was walked to its root.
#[repr(C, align(64))]
pub struct Remembered {
    /// Odd while it is written; different after it was.
    pub version: u64,
    /// A hash of process, `sp` and `pc`.
    pub family: u64,
    /// `rbp` at the start; only compared if `fp_used`.
    pub fp: u64,
    pub id: u64,
    /// A hash of the words of the stack that it depends on.
    pub words: u64,
    /// How many bytes from `sp` cover them.
    pub span: u32,
    /// How many they are.
    pub slot_count: u16,
    pub fp_used: u16,
    /// 1 while somebody writes it.
    pub claimed: u64,
    pub slot_offset_by_8: [u16; MAX_REMEMBERED_SLOTS],
}

/// Of each word that a remembered stack depends on, enough to find where another stack differs.
pub type Digests = [u16; MAX_REMEMBERED_SLOTS];

/// Adds 1 to a counter.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTER_VALUES.get_ptr_mut(counter as u32) {
        // SAFETY: a map value. Atomic, because a thread may be preempted in the middle.
        unsafe { add_one(value) };
    }
}

/// Adds 1 to the value at `index` of a map that others change too.
#[inline(always)]
pub fn increment(map: &Array<u64>, index: u32) {
    if let Some(value) = map.get_ptr_mut(index) {
        // SAFETY: a map value.
        unsafe { add_one(value) };
    }
}

/// Adds 1, atomically.
///
/// # Safety
/// `value` must point into a map value.
#[inline(always)]
unsafe fn add_one(value: *mut u64) {
    // SAFETY: by the caller's promise; map values are aligned.
    unsafe {
        asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) value, in(reg) 1u64, options(nostack));
    }
}

/// Reads the shared value at `index`, one of the [`shared`] constants.
#[inline(always)]
pub fn shared_value(index: u32) -> Option<u64> {
    // SAFETY: a map value, aligned; volatile, because others change it.
    SHARED.get_ptr(index).map(|value| unsafe { core::ptr::read_volatile(value) })
}

/// Writes the shared value at `index`, one of the [`shared`] constants.
#[inline(always)]
pub fn set_shared_value(index: u32, new: u64) {
    if let Some(value) = SHARED.get_ptr_mut(index) {
        // SAFETY: a map value, aligned; the last writer wins.
        unsafe { core::ptr::write_volatile(value, new) }
    }
}

/// Tries to set a claim flag; true if it was free. A full memory barrier.
///
/// # Safety
/// `flag` must point into a map value.
#[inline(always)]
pub unsafe fn try_claim(flag: *mut u64) -> bool {
    let mut value = 1u64;
    // SAFETY: by the caller's promise; map values are aligned.
    unsafe {
        asm!("{0} = xchg_64({1} + 0, {0})", inout(reg) value, in(reg) flag, options(nostack))
    };
    value == 0
}

/// Gives a claim back, after all that was done under it: the CPU keeps stores in order.
///
/// # Safety
/// `flag` must point into a map value that the caller has claimed.
#[inline(always)]
pub unsafe fn release(flag: *mut u64) {
    // SAFETY: by the caller's promise; map values are aligned.
    unsafe {
        asm!("*(u64 *)({0} + 0) = {1}", in(reg) flag, in(reg) 0u64, options(nostack));
    }
}

/// Keeps the kernel from giving a program a private stack, and does nothing else.
///
/// From 6.13 on, a tracing program that uses 64 bytes of stack or more runs on a stack of its own
/// for each CPU, as if it could not be preempted; uprobe programs can be, and two of them on one
/// such stack have brought hosts down. A program that contains a tail call is exempt
/// (`check_max_stack_depth` in kernel/bpf/verifier.c). Tracepoint programs need none of this: they
/// run with preemption off.
#[inline(always)]
pub fn never_taken<C: aya_ebpf::EbpfContext>(ctx: &C) {
    if setting!(back_pressure_ns) == u64::MAX {
        // SAFETY: the map is empty, so even a call would fall through.
        let _ = unsafe { NO_PROGRAMS.tail_call(ctx, 0) };
    }
}

/// Keeps `regs` in the scratch's own fields.
#[inline(always)]
pub fn store_regs(scratch: &mut Scratch, regs: Regs) {
    scratch.pc = regs.pc;
    scratch.sp = regs.sp;
    scratch.fp = regs.fp;
    scratch.pc_exact = regs.pc_kind as u32;
}
