//! Everything that can go wrong in the kernel half, by name.
//!
//! The kernel keeps one `u64` per counter and CPU; the daemon sums them and writes them into the
//! trace. A counter that is not zero is shown by every view.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// A kind of loss, or of unusual but handled event, counted in the kernel.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum Counter { $($(#[$doc])* $name,)* }

        impl Counter {
            /// Every counter, in the order of its index in the kernel's map.
            pub const ALL: &[Counter] = &[$(Counter::$name,)*];

            /// The name under which reports show it.
            pub fn name(self) -> &'static str {
                match self { $(Counter::$name => $text,)* }
            }
        }
    };
}

counters! {
    /// An allocation that found the ring full and was not recorded.
    LostAllocs = "lost_allocations",
    /// A release that found the ring full and was not recorded.
    LostFrees = "lost_frees",
    /// A mapping event that found the ring full and was not recorded.
    LostMappings = "lost_mappings",
    /// A stack that found the ring full; it is sent again when it is seen again.
    LostStacks = "lost_stacks",
    /// A process or thread event that found the ring full.
    LostLifecycle = "lost_lifecycle_events",
    /// A call that got no thread slot, because too many threads are alive.
    NoThreadSlot = "calls_without_thread_slot",
    /// A call that got no scratch memory to walk its stack.
    NoScratch = "stacks_without_scratch",
    /// A time an event had to wait for room in the ring (back-pressure); nothing was lost by it.
    RingWaits = "ring_waits",
    /// A wait that ended without room: nobody waits again until the daemon has moved on.
    RingStalls = "ring_stalls",
    /// An allocator call left by `longjmp` or an exception before it returned.
    AbandonedCalls = "abandoned_calls",
    /// A return whose entry was not seen, for example because the call began before the attach.
    OrphanReturns = "orphan_returns",
    /// An allocator call that the program made and that returned no memory.
    FailedCalls = "failed_allocator_calls",
    /// Stack words that could not be read because their page was not present.
    UnreadableStack = "unreadable_stack_reads",
    /// A stack that was walked anew; the others were recognised as seen before.
    StackWalks = "stack_walks",
    /// A stack that met code newer than the kernel's tables, and that the daemon finished.
    RawStacks = "stacks_finished_by_daemon",
    /// A call in a child of `vfork` that was made before the attach and borrows its parent's memory.
    VforkCalls = "calls_in_vfork_children",
    /// A child of `vfork`. Probes that are found by a process's threads do not see it, although it
    /// runs in its parent's memory.
    VforkChildren = "vfork_children",
    /// A child that was forked and is not traced. Its memory is a copy, breakpoints included.
    ForksNotTraced = "forked_children_not_traced",
}

/// How many counters there are.
pub const COUNTERS: u32 = Counter::ALL.len() as u32;
