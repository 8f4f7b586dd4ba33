//! What the pipeline finds wrong, by name.

macro_rules! anomalies {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Contradictions in the records and things left out, counted.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub(super) struct Anomalies { $($(#[$doc])* pub(super) $name: u64,)* }

        impl Anomalies {
            /// Every counter with the name under which reports show it.
            pub(super) fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                let Anomalies { $($name,)* } = self;
                [$((stringify!($name), *$name),)*].into_iter()
            }
        }
    };
}

anomalies! {
    /// Releases of heap blocks that were not known: older than the attach, or their allocation
    /// was lost.
    orphan_frees,
    /// Failed `realloc` whose start was not seen.
    orphan_restores,
    /// Blocks dropped, as freed, because their address was allocated again: the free was lost.
    address_reuses,
    /// Allocations at address 0, left out.
    allocations_at_null,
    /// Allocations at an address or of a size that no process can have, left out.
    impossible_allocations,
    /// Allocations through an API that does not allocate heap blocks, left out.
    allocations_by_wrong_api,
    /// Allocations left out because too many blocks are live.
    allocations_beyond_limit,
    /// Their bytes.
    allocated_bytes_beyond_limit,
    /// Blocks that a child of `fork` holds and that are left out, because too many are live.
    inherited_blocks_beyond_limit,
    /// Releases of mappings where nothing was known: older than the attach, or lost.
    orphan_unmaps,
    /// Failed `munmap` or `mremap` whose start was not seen.
    orphan_unmap_failures,
    /// `mremap` whose start was not seen: all of its range is charged to it.
    orphan_remaps,
    /// Pieces of mappings left out because there are too many.
    mappings_beyond_limit,
    /// Threads whose start was not seen and that were taken for threads of the only process.
    threads_without_start,
    /// Events of threads whose process is not known, left out.
    events_of_unknown_threads,
    /// Threads that share an entry or are left out because there are too many.
    threads_beyond_limit,
    /// Threads whose end was not seen before their id was used again.
    missed_thread_exits,
    /// Processes that share an entry because there are too many.
    processes_beyond_limit,
    /// Records of processes that are left out because too many run.
    records_of_unknown_processes,
    /// Processes whose end was not seen before their id was used again.
    missed_process_exits,
    /// Forks of processes that were not known: what the child inherited is unknown.
    orphan_forks,
    /// Executable mappings left out because there are too many.
    modules_beyond_limit,
    /// Code of operations that is left out: too much of it, too many classes, or in no file.
    operation_code_left_out,
    /// Executable mappings without any bytes, left out.
    empty_modules,
    /// Ends of executable mappings that were not known.
    orphan_module_ends,
    /// Probes that are not listed because there are too many.
    probes_beyond_limit,
    /// Counters that are not listed because there are too many.
    counters_beyond_limit,
    /// Marks of the user that are left out because there are too many.
    marks_beyond_limit,
    /// Names, paths and command lines that were cut because they are too long.
    texts_cut,
}
