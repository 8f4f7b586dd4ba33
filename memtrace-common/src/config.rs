//! Limits and the layout of the maps that the daemon fills and the kernel reads.
//!
//! ```text
//!   PROCESS_INDEX{tgid} ─> PROCESSES[index] ──modules, count──> MODULES[first ..]  sorted by start
//!                                          │ buckets, rows
//!                                          ▼
//!   BUCKETS: one row index for each 256 bytes of text ──> ROWS: 8-byte unwind rows
//! ```
//!
//! Buckets and rows lie in array maps whose values are whole pages, and which the daemon shares: a
//! table is written without system calls, and looked up without a helper call.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::midway::STACK_WORDS;
use crate::unwind::Row;

/// The most frames that a walk records; deeper stacks end as `FrameLimit`.
pub const MAX_FRAMES: usize = 1024;

/// How many bytes of stack a walk copies; deeper words are read one by one.
pub const STACK_COPY_BYTES: usize = 64 * 1024;

/// How many bytes below the first frame a copy of the stack may begin: a place inside an allocator's
/// function lies so much deeper at most than its caller's frame.
pub const STACK_LEAD_BYTES: usize = STACK_WORDS * 8;

/// How many bytes of stack the daemon gets to finish a walk that the kernel could not.
pub const RAW_STACK_BYTES: usize = 16 * 1024;

/// How many stack words a remembered stack depends on at most; larger stacks are walked anew.
pub const MAX_REMEMBERED_SLOTS: usize = 256;

/// How many unwind rows that were found are kept.
pub const RECENT_ROW_PLACES: u32 = 1 << 15;

/// How many sets of remembered stacks there are, chosen by a stack's key.
pub const REMEMBERED_SETS: u32 = 2048;

/// How many stacks a set holds: as many as fit a page.
pub const REMEMBERED_WAYS: u32 = 7;

/// How many sets of places there are at which remembered stacks part, chosen by a key.
pub const FORK_SETS: u32 = 2048;

/// How many forks a set holds: as many as fit a line of the cache.
pub const FORK_WAYS: u32 = 4;

/// How many of them lie on the way to one stack at most.
pub const MAX_FORKS_OF_A_STACK: u32 = 16;

/// How many ids of stacks that were sent are kept, in direct-mapped places.
pub const SENT_STACKS: u32 = 1 << 19;

/// Pieces of scratch memory for walks; each holds one stack copy.
pub const SCRATCH_PIECES: u32 = 64;

/// The most threads with a slot at one time.
pub const MAX_THREADS: u32 = 65_536;

/// The most processes traced at one time.
pub const MAX_PROCESSES: u32 = 1024;

/// Text bytes that share a bucket, as a power of two.
pub const BUCKET_SHIFT: u32 = 8;

/// Rows in one value of the maps in `ROWS`: 4 KiB.
pub const ROWS_PER_CHUNK: usize = 512;

/// Bucket entries in one value of the maps in `BUCKETS`: 4 KiB.
pub const BUCKETS_PER_CHUNK: usize = 1024;

/// Values in one map of either: 4 MiB.
pub const CHUNKS_PER_SEGMENT: usize = 1024;

/// The most executable mappings of one process.
pub const MAX_MODULES: u32 = 4096;

/// One value of the maps in `ROWS`.
pub type RowChunk = [Row; ROWS_PER_CHUNK];

/// One value of the maps in `BUCKETS`.
pub type BucketChunk = [u32; BUCKETS_PER_CHUNK];

/// An executable mapping, as the kernel's walk sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Module {
    /// First address (AVMA).
    pub start: u64,
    /// One past the last address (AVMA).
    pub end: u64,
    /// Address (AVMA) that rows count from: `row.pc = pc - base`.
    pub base: u64,
    /// Index of its first bucket entry in `BUCKETS`.
    pub buckets: u32,
    /// How many bucket entries it has; 0 if the module has no table.
    pub bucket_count: u32,
}

/// A traced process, as the kernel sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Process {
    /// Changes whenever the process's code changes, so that no stack is mistaken for an older one.
    pub generation: u32,
    /// Index of its first module in `MODULES`.
    pub modules: u32,
    /// How many entries to search; unused ones at the end start at `u64::MAX`.
    pub module_count: u32,
    /// [`process_flag`] bits.
    pub flags: u32,
    /// How often the process had made code executable when the daemon last looked.
    ///
    /// The kernel counts in `CODE_CHANGES`. As long as that is ahead, the tables are behind, and a
    /// walk that meets unknown code is left to the daemon.
    pub code_changes: u64,
}

/// Bits of [`Process::flags`].
pub mod process_flag {
    /// Stop the process when it maps code from a file, until the daemon has read its table.
    pub const STOP_FOR_CODE: u32 = 1;
    /// Stop new children before their first instruction, until the daemon has attached to them.
    pub const FOLLOW_CHILDREN: u32 = 2;

    /// The flags that say which of the process's probes count: those of the set with this number, as
    /// their cookies have it. While probes are placed anew, one call may hit an old and a new one.
    pub const fn probe_set(set: u8) -> u32 {
        (set as u32) << 8
    }

    /// The number in [`probe_set`].
    #[inline(always)]
    pub const fn probe_set_of(flags: u32) -> u32 {
        flags >> 8 & 0xff
    }
}

/// What the daemon tells the kernel programs before they are loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Settings {
    /// How long an event may wait for room in the ring before it is dropped; 0 to never wait.
    pub back_pressure_ns: u64,
    /// Size of the ring. A constant is cheaper than to ask for it at every event.
    pub ring_bytes: u64,
    /// Where the kernel keeps what the programs read from its structures.
    pub offsets: KernelOffsets,
}

/// Offsets in bytes of the members of kernel structures, from the running kernel's BTF.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct KernelOffsets {
    /// `task_struct.pid`.
    pub task_pid: u32,
    /// `task_struct.tgid`.
    pub task_tgid: u32,
    /// `task_struct.mm`.
    pub task_mm: u32,
    /// `task_struct.signal`.
    pub task_signal: u32,
    /// `task_struct.utask`.
    pub task_utask: u32,
    /// `signal_struct.live`.
    pub signal_live: u32,
    /// `uprobe_task.return_instances`.
    pub utask_return_instances: u32,
    /// `return_instance.stack`.
    pub return_instance_stack: u32,
    /// `return_instance.orig_ret_vaddr`.
    pub return_instance_address: u32,
    /// `return_instance.next`.
    pub return_instance_next: u32,
    /// `mm_struct.uprobes_state`.
    pub mm_uprobes_state: u32,
    /// `uprobes_state.xol_area`.
    pub uprobes_xol_area: u32,
    /// `xol_area.vaddr`.
    pub xol_area_address: u32,
    /// Always 0.
    pub unused: u32,
}

const _: () = {
    assert!(size_of::<Module>() == 32);
    assert!(size_of::<Process>() == 24);
    assert!(size_of::<Settings>() == 72);
    assert!(REMEMBERED_SETS.is_power_of_two() && FORK_SETS.is_power_of_two());
    assert!(SENT_STACKS.is_power_of_two() && RECENT_ROW_PLACES.is_power_of_two());
    assert!(size_of::<RowChunk>() == 4096);
    assert!(size_of::<BucketChunk>() == 4096);
};
