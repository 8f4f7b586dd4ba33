//! The events in the ring buffer, as the kernel writes and the daemon decodes them.
//!
//! Every event starts with a [`Header`]; `kind` tells what follows. All fields are little-endian
//! and naturally aligned, padding is written out, and the sizes are asserted: the layout is a
//! contract between the object file and the daemon that is built around it.
//!
//! ```text
//!   Alloc     | Header 16 | ptr 8 | size 8 | stack 8 |
//!   Free      | Header 16 | ptr 8 |
//!   Stack     | Header 16 | id 8 | pid 4 | frames 4 | frames × u64, innermost first |
//!   RawStack  | Stack 32 | frames 1024 × u64 | StackRest 48 | stack 16 KiB |
//!   Mapping   | Header 16 | address 8 | length 8 | old_address 8 | old_length 8 | stack 8 |
//!   Task      | Header 16 | pid 4 | parent_pid 4 | comm 16 |
//! ```
//!
//! The order of events in the ring is the order in which they happened, for one address: memory
//! is released on entry and acquired on return, so that a second thread cannot be seen to get an
//! address before the first one has given it back.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

macro_rules! wire_enum {
    ($(#[$doc:meta])* $name:ident: $repr:ty { $($(#[$vdoc:meta])* $variant:ident = $value:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr($repr)]
        pub enum $name { $($(#[$vdoc])* $variant = $value,)* }

        impl $name {
            /// Every value.
            pub const ALL: &[$name] = &[$($name::$variant,)*];

            /// The value with this number on the wire, or `None` for a number it does not have.
            pub fn from_wire(value: $repr) -> Option<$name> {
                match value { $($value => Some($name::$variant),)* _ => None }
            }
        }
    };
}

wire_enum! {
    /// What an event says.
    Kind: u8 {
        /// An [`Alloc`]: a heap block was acquired.
        Alloc = 1,
        /// A [`Free`]: a heap block was released.
        Free = 2,
        /// A [`Free`]: `realloc` took this block; followed by `Alloc`, `Restore` or nothing.
        Retire = 3,
        /// A [`Free`]: the `realloc` failed, and the thread's retired block lives on.
        Restore = 4,
        /// A [`Stack`]: the frames behind a stack id.
        Stack = 5,
        /// A [`Mapping`]: `mmap` returned. `flags` has [`flag::EXECUTABLE`] and [`flag::FILE`].
        Map = 6,
        /// A [`Mapping`]: `munmap` is about to release a range.
        Unmap = 7,
        /// A [`Mapping`]: the `munmap` or `mremap` failed; the thread's released range lives on.
        UnmapFailed = 8,
        /// A [`Mapping`]: `mremap` is about to release `old_address`, `old_length`.
        RemapStart = 9,
        /// A [`Mapping`]: `mremap` returned the new range.
        Remap = 10,
        /// A [`Mapping`]: `brk` returned; the program break is at `address`.
        Break = 11,
        /// A [`Task`]: first sight of a thread in a traced process.
        ThreadStart = 12,
        /// A [`Task`]: a thread has ended.
        ThreadExit = 13,
        /// A [`Task`]: a thread has a new name.
        ThreadName = 14,
        /// A [`Task`]: `pid` was forked from `parent_pid`.
        Fork = 15,
        /// A [`Task`]: the process runs a new program; all its memory is gone.
        Exec = 16,
        /// A [`Task`]: the process has ended.
        ProcessExit = 17,
        /// A [`Task`]: executable memory changed; the daemon must read the mappings again.
        CodeChanged = 18,
        /// A [`Task`]: the process was sent SIGSTOP and waits for the daemon to attach.
        Stopped = 19,
        /// A [`Stack`] with room for all frames and a [`StackRest`]: the daemon must finish the walk.
        RawStack = 20,
        /// A [`Mapping`]: `mprotect` has made a range accessible, if it was not.
        Commit = 21,
        /// A [`Mapping`]: `mprotect` has made a range inaccessible (`PROT_NONE`).
        Decommit = 22,
        /// A [`Task`]: the process is about to end, and was sent SIGSTOP to be read before.
        Ending = 23,
    }
}

wire_enum! {
    /// The function of the allocator or the system call through which memory came or went.
    Api: u8 {
        /// `malloc`.
        Malloc = 1,
        /// `calloc`.
        Calloc = 2,
        /// `realloc`.
        Realloc = 3,
        /// `reallocarray`.
        Reallocarray = 4,
        /// `posix_memalign`.
        PosixMemalign = 5,
        /// `aligned_alloc`.
        AlignedAlloc = 6,
        /// `memalign`.
        Memalign = 7,
        /// `valloc`.
        Valloc = 8,
        /// `pvalloc`.
        Pvalloc = 9,
        /// C++ `operator new` in all its forms.
        New = 10,
        /// `free`, `cfree` and sized forms of it.
        Free = 11,
        /// C++ `operator delete` in all its forms.
        Delete = 12,
        /// `mmap`.
        Mmap = 13,
        /// `munmap`.
        Munmap = 14,
        /// `mremap`.
        Mremap = 15,
        /// `brk`.
        Brk = 16,
        /// A function that the user has named as one that gives memory.
        CustomAlloc = 17,
        /// A function that the user has named as one that gives memory in exchange for a block.
        CustomRealloc = 18,
        /// A function that the user has named as one that takes memory back.
        CustomFree = 19,
        /// `mprotect` or `pkey_mprotect` that makes address space accessible.
        Mprotect = 20,
    }
}

impl Api {
    /// Whether it hands out blocks of an allocator's heap.
    ///
    /// The others release, or deal in mappings of the kernel.
    pub fn acquires_block(self) -> bool {
        match self {
            Api::Malloc
            | Api::Calloc
            | Api::Realloc
            | Api::Reallocarray
            | Api::PosixMemalign
            | Api::AlignedAlloc
            | Api::Memalign
            | Api::Valloc
            | Api::Pvalloc
            | Api::New
            | Api::CustomAlloc
            | Api::CustomRealloc => true,
            Api::Free
            | Api::Delete
            | Api::Mmap
            | Api::Munmap
            | Api::Mremap
            | Api::Brk
            | Api::CustomFree
            | Api::Mprotect => false,
        }
    }

    /// The name under which reports show it.
    pub fn name(self) -> &'static str {
        match self {
            Api::Malloc => "malloc",
            Api::Calloc => "calloc",
            Api::Realloc => "realloc",
            Api::Reallocarray => "reallocarray",
            Api::PosixMemalign => "posix_memalign",
            Api::AlignedAlloc => "aligned_alloc",
            Api::Memalign => "memalign",
            Api::Valloc => "valloc",
            Api::Pvalloc => "pvalloc",
            Api::New => "operator new",
            Api::Free => "free",
            Api::Delete => "operator delete",
            Api::Mmap => "mmap",
            Api::Munmap => "munmap",
            Api::Mremap => "mremap",
            Api::Brk => "brk",
            Api::CustomAlloc => "custom alloc",
            Api::CustomRealloc => "custom realloc",
            Api::CustomFree => "custom free",
            Api::Mprotect => "mprotect",
        }
    }
}

/// Bits of [`Header::flags`] in mapping events.
pub mod flag {
    /// The mapping can be executed (`PROT_EXEC`).
    pub const EXECUTABLE: u16 = 1;
    /// The mapping shows a file (not `MAP_ANONYMOUS`).
    pub const FILE: u16 = 2;
    /// The mapping is shared (`MAP_SHARED`).
    pub const SHARED: u16 = 4;
    /// The mapping reserves address space only (`PROT_NONE`).
    pub const RESERVED: u16 = 8;
}

/// The start of every event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// A [`Kind`].
    pub kind: u8,
    /// An [`Api`], or 0.
    pub api: u8,
    /// Depends on the kind: [`flag`] bits for mappings, an `unwind::End` for stacks, of an
    /// [`Alloc`] the binary logarithm of the alignment that was asked for (0 if none was).
    pub flags: u16,
    /// The thread that did it, as the initial PID namespace numbers it.
    pub tid: u32,
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    pub time_ns: u64,
}

/// A heap block was acquired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Alloc {
    /// Kind `Alloc`.
    pub header: Header,
    /// Its address (AVMA).
    pub ptr: u64,
    /// The bytes that the program asked for.
    pub size: u64,
    /// Id of the caller's stack; 0 if there is none.
    pub stack: u64,
}

/// A heap block was released, retired or restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Free {
    /// Kind `Free`, `Retire` or `Restore`.
    pub header: Header,
    /// Its address (AVMA).
    pub ptr: u64,
}

/// The frames behind a stack id. `header.flags` holds the [`crate::unwind::End`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Stack {
    /// Kind `Stack`.
    pub header: Header,
    /// A hash of everything the walk depended on; never 0.
    pub id: u64,
    /// The process.
    pub pid: u32,
    /// How many `u64` lookup addresses (AVMA, return address − 1) follow, innermost first.
    pub frames: u32,
}

/// Where the walk of a `RawStack` came to, and what it needs to go on.
///
/// Stands behind [`crate::config::MAX_FRAMES`] × `u64`, of which only `frames` are valid, and in
/// front of [`crate::config::RAW_STACK_BYTES`] of stack, of which only `copied` are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct StackRest {
    /// Program counter of the last frame, in code that the kernel has no table of.
    pub pc: u64,
    /// Its stack pointer.
    pub sp: u64,
    /// Its `rbp`.
    pub fp: u64,
    /// Address (AVMA) of the first byte of stack that follows.
    pub base: u64,
    /// How many bytes are valid; more than fit means all.
    pub copied: u64,
    /// A [`crate::unwind::PcKind`].
    pub pc_kind: u64,
}

/// A change of the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Mapping {
    /// Kind `Map`, `Unmap`, `UnmapFailed`, `RemapStart`, `Remap`, `Break`, `Commit` or `Decommit`.
    pub header: Header,
    /// The range's address (AVMA); the new break.
    pub address: u64,
    /// Its length in bytes, as asked for (not rounded to pages).
    pub length: u64,
    /// `mremap`: where it was.
    pub old_address: u64,
    /// `mremap`: how long it was.
    pub old_length: u64,
    /// Id of the caller's stack; 0 if there is none.
    pub stack: u64,
}

/// Something happened to a thread or a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Task {
    /// One of the task kinds; `tid` is the thread meant.
    pub header: Header,
    /// Its process.
    pub pid: u32,
    /// `Fork`: the process it was forked from.
    pub parent_pid: u32,
    /// Thread name (`comm`), padded with zeros. Bytes of the program's choice.
    pub comm: [u8; 16],
}

const _: () = {
    assert!(size_of::<Header>() == 16);
    assert!(size_of::<Alloc>() == 40);
    assert!(size_of::<Free>() == 24);
    assert!(size_of::<Stack>() == 32);
    assert!(size_of::<StackRest>() == 48);
    assert!(size_of::<Mapping>() == 56);
    assert!(size_of::<Task>() == 40);
};
