//! What every counter means to a reader.
//!
//! The kernel, the pipeline and the symbolizer each count what they lose or find unusual, under a
//! name. Here each name gets a weight and half a line of explanation. The kernel's are matched by
//! variant, so that a new one does not compile without a word here; the others are matched by
//! name, and one without a word is shown with its name alone.

use std::collections::BTreeMap;

use memtrace_common::counter::Counter;
use memtrace_common::unwind::End;

use crate::pipeline::snapshot::Snapshot;
use crate::record::GO_PROGRAMS;
use crate::views::frames::Naming;
use crate::views::printable::printable;

/// Counter for a trace file that stops before its end; 1, if it does.
pub const TRACE_TRUNCATED: &str = "trace_truncated";

/// What a counter that is not zero means for the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// Something is missing from them.
    Loss,
    /// Something happened that deserves a look; the numbers are right as far as they go.
    Notice,
    /// How the tool did its work.
    Work,
}

/// Every counter that is not zero, of the session and of the symbolizer, sorted by its name.
pub fn counters(snapshot: &Snapshot, naming: &Naming) -> BTreeMap<String, u64> {
    let session = snapshot
        .counters
        .iter()
        .map(|(name, value)| (printable(name.as_bytes()).into_owned(), *value));
    let symbols = naming.counters.iter().map(|(name, value)| ((*name).to_owned(), *value));
    session.chain(symbols).collect()
}

/// The weight and the meaning of a counter; an empty meaning if this version does not know it.
pub fn explain(name: &str) -> (Weight, &'static str) {
    if let Some(&counter) = Counter::ALL.iter().find(|counter| counter.name() == name) {
        return explain_kernel(counter);
    }
    for &(known, weight, meaning) in DAEMON {
        if known == name {
            return (weight, meaning);
        }
    }
    let ended = |prefix| name.strip_prefix(prefix).and_then(end_named);
    if let Some(end) = ended("stacks_ended_").or(ended("allocations_with_stack_ended_")) {
        return (Weight::Notice, explain_end(end));
    }
    match name.starts_with("lost_") {
        true => (Weight::Loss, "lost before they could be counted"),
        false => (Weight::Notice, ""),
    }
}

/// Why a stack stops short of its thread's root.
pub fn explain_end(end: End) -> &'static str {
    match end {
        End::Root => "complete",
        End::FrameLimit => "more frames than are recorded",
        End::UnknownCode => "code in no known mapping",
        End::NoUnwindInfo => "code without unwind information or frame pointer",
        End::UnsupportedRule => "an unwind rule that is not supported",
        End::UnreadableStack => "stack memory that could not be read",
        End::NotAscending => "frames that do not ascend",
        End::NoScratch => "no memory to walk in was free",
        End::Missing => "the frames were lost or found no room",
    }
}

fn end_named(name: &str) -> Option<End> {
    End::ALL.iter().copied().find(|end| end.name() == name)
}

fn explain_kernel(counter: Counter) -> (Weight, &'static str) {
    match counter {
        Counter::LostAllocs => {
            (Weight::Loss, "allocations not recorded, the ring was full; try a larger --ring-size")
        }
        Counter::LostFrees => {
            (Weight::Loss, "releases not recorded, the ring was full; live bytes are too high")
        }
        Counter::LostMappings => (Weight::Loss, "mapping events not recorded, the ring was full"),
        Counter::LostStacks => {
            (Weight::Loss, "stacks not recorded, the ring was full; sent again when seen again")
        }
        Counter::LostLifecycle => {
            (Weight::Loss, "process and thread events not recorded, the ring was full")
        }
        Counter::NoThreadSlot => (Weight::Loss, "calls not recorded, too many threads were alive"),
        Counter::NoScratch => {
            (Weight::Loss, "allocations without a stack, no memory to walk in was free")
        }
        Counter::RingWaits => {
            (Weight::Work, "times the target waited for room in the ring; nothing was lost by it")
        }
        Counter::RingStalls => {
            (Weight::Notice, "waits for room in the ring that were in vain; see what was lost")
        }
        Counter::AbandonedCalls => {
            (Weight::Notice, "allocator calls left by longjmp or an exception")
        }
        Counter::OrphanReturns => {
            (Weight::Notice, "allocator calls that began before the attach; not counted")
        }
        // Where a probe inside `malloc` stands, a path that returns a constant NULL has none.
        Counter::FailedCalls => (
            Weight::Notice,
            "allocator calls that returned no memory; those of impossible sizes may be missing",
        ),
        Counter::UnreadableStack => {
            (Weight::Notice, "stack words that were not in memory when a stack was walked")
        }
        Counter::StackWalks => (Weight::Work, "stacks walked; all others were seen before"),
        Counter::RawStacks => (Weight::Work, "stacks through code that had just been mapped"),
        Counter::VforkCalls => (
            Weight::Notice,
            "calls of vfork children that were made before the attach; not counted",
        ),
        Counter::VforkChildren => (
            Weight::Work,
            "children of vfork; what they allocate before they run a program may not be seen",
        ),
        Counter::ForksNotTraced => {
            (Weight::Notice, "children that the target forked; trace them with --children")
        }
    }
}

/// Counters of the daemon's own parts.
const DAEMON: &[(&str, Weight, &str)] = &[
    (TRACE_TRUNCATED, Weight::Loss, "the trace file stops early; what came after is not counted"),
    // live
    ("ring_peak_bytes", Weight::Work, "bytes that the ring held at most, of --ring-size"),
    ("attach_failures", Weight::Loss, "children or programs that could not be attached to"),
    ("code_files_unreadable", Weight::Loss, "mapped files not read; calls in them are not seen"),
    (
        "unwind_tables_without_room_for_rows",
        Weight::Notice,
        "files without unwind rows, they have too many; try a larger --unwind-memory",
    ),
    (
        "unwind_tables_without_room_for_text",
        Weight::Notice,
        "files without unwind rows, they have too much code; try a larger --unwind-memory",
    ),
    (
        "code_mappings_without_room",
        Weight::Notice,
        "code mappings without unwind rows: more than 4096 in a process, or 32768 in all",
    ),
    (
        "jit_addresses_beyond_limit",
        Weight::Notice,
        "frames of run-time code without names, there are too many",
    ),
    (
        "jit_symbols_beyond_limit",
        Weight::Notice,
        "names of run-time code left out, there are too many",
    ),
    (
        "perf_map_addresses_unread",
        Weight::Notice,
        "frames of run-time code not looked up, there were too many",
    ),
    (
        "perf_map_lines_unread",
        Weight::Notice,
        "lines of /tmp/perf-PID.map that are no symbols, or for which there was no room",
    ),
    (
        "perf_maps_unreadable",
        Weight::Notice,
        "files /tmp/perf-PID.map too large, of another user, or not readable",
    ),
    (GO_PROGRAMS, Weight::Notice, "programs of Go, whose own heap is not seen"),
    ("probes_refused", Weight::Loss, "probes that the kernel refused; calls there are not seen"),
    // pipeline
    ("orphan_frees", Weight::Notice, "frees of blocks from before the attach; counted apart"),
    ("orphan_restores", Weight::Notice, "failed realloc calls that began before the attach"),
    ("address_reuses", Weight::Loss, "frees that must have been lost: their address came again"),
    ("allocations_at_null", Weight::Notice, "allocations at address 0, left out"),
    ("impossible_allocations", Weight::Notice, "at impossible addresses or sizes, left out"),
    (
        "spikes_beyond_limit",
        Weight::Notice,
        "spikes that are not listed, there were too many; try a higher --spike",
    ),
    (
        "spike_changes_beyond_limit",
        Weight::Notice,
        "changes that found no room: who made a spike may be incomplete",
    ),
    (
        "history_points_beyond_limit",
        Weight::Notice,
        "changes that found no room: leaks of some call paths may be missed",
    ),
    ("allocations_by_wrong_api", Weight::Notice, "records that contradict themselves, left out"),
    ("allocations_beyond_limit", Weight::Loss, "allocations left out, too many blocks are live"),
    ("allocated_bytes_beyond_limit", Weight::Loss, "bytes left out, too many blocks are live"),
    (
        "inherited_blocks_beyond_limit",
        Weight::Loss,
        "blocks of forked children left out, too many blocks are live",
    ),
    ("orphan_unmaps", Weight::Notice, "unmappings of memory from before the attach"),
    ("orphan_unmap_failures", Weight::Notice, "failed unmappings that began before the attach"),
    ("orphan_remaps", Weight::Notice, "mremap calls that began before the attach"),
    ("mappings_beyond_limit", Weight::Loss, "mappings left out, there are too many"),
    ("threads_without_start", Weight::Notice, "threads whose start was not seen"),
    ("events_of_unknown_threads", Weight::Loss, "events left out, their process is not known"),
    ("threads_beyond_limit", Weight::Notice, "threads that share one entry, there are too many"),
    ("missed_thread_exits", Weight::Notice, "threads whose end was not seen"),
    ("processes_beyond_limit", Weight::Loss, "processes merged or left out, there are too many"),
    ("missed_process_exits", Weight::Notice, "processes whose end was not seen"),
    ("orphan_forks", Weight::Loss, "forks of unknown processes; what children inherit is unknown"),
    ("modules_beyond_limit", Weight::Loss, "code mappings left out, there are too many"),
    (
        "operation_code_left_out",
        Weight::Loss,
        "code left out of operations: in no file, or too much; name fewer classes or functions",
    ),
    ("empty_modules", Weight::Notice, "code mappings without any bytes, left out"),
    ("orphan_module_ends", Weight::Notice, "ends of code mappings that were not known"),
    ("probes_beyond_limit", Weight::Notice, "probes that are not listed, there are too many"),
    ("counters_beyond_limit", Weight::Notice, "counters that are not listed, there are too many"),
    ("marks_beyond_limit", Weight::Loss, "marks left out, there are too many"),
    ("texts_cut", Weight::Notice, "names, paths or command lines that were cut"),
    ("unknown_stacks", Weight::Notice, "stacks whose frames have not arrived"),
    (
        "process_sites_beyond_limit",
        Weight::Notice,
        "changes that are in no list of a single process",
    ),
    ("stacks_beyond_limit", Weight::Loss, "stacks without frames, there are too many"),
    (
        "aligned_sites_beyond_limit",
        Weight::Work,
        "allocations whose alignment is left out, there are too many",
    ),
    ("stack_ids_forgotten", Weight::Work, "stack ids that were not used for long"),
    // symbolizer
    ("symbol_alternate_files_missing", Weight::Notice, "debug files that lack their shared part"),
    ("symbol_debug_files_rejected", Weight::Notice, "debug files of another build, not used"),
    ("symbol_debug_files_unreadable", Weight::Notice, "debug files that could not be read"),
    ("symbol_debug_info_failures", Weight::Notice, "places where debug information is broken"),
    ("symbol_debug_info_rebuilds", Weight::Work, "times debug information was loaded anew"),
    ("symbol_memory_resets", Weight::Work, "times symbols were dropped to save memory"),
    ("symbol_objects_evicted", Weight::Work, "files unloaded to save memory"),
    ("symbol_split_files_missing", Weight::Notice, "units without their .dwo file or package"),
    ("symbol_symbols_left_out", Weight::Notice, "symbols left out, a file has too many"),
    ("symbol_unverified_images", Weight::Notice, "files without a build id; names may be wrong"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_counter_is_explained() {
        for counter in Counter::ALL {
            assert_ne!(explain(counter.name()).1, "", "{}", counter.name());
        }
    }

    #[test]
    fn counter_of_cut_stacks_says_why() {
        let (weight, meaning) = explain("allocations_with_stack_ended_frame_limit");

        assert_eq!((weight, meaning), (Weight::Notice, "more frames than are recorded"));
    }

    #[test]
    fn unknown_counter_has_no_meaning() {
        assert_eq!(explain("brand_new"), (Weight::Notice, ""));
        assert_eq!(explain("lost_brand_new").0, Weight::Loss);
    }
}
