//! How much the pipeline may keep, and what happens beyond.

use std::collections::BTreeMap;

use super::DetectorOptions;

/// The cap of every store of the pipeline. What is refused is counted in the snapshot.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Distinct stacks. Beyond: the event is charged to a stack without frames.
    pub stacks: usize,
    /// Call paths with the alignments that they ask for. Beyond: as if a call asked for none.
    pub aligned_sites: usize,
    /// Frames of all stacks together. Beyond: as above.
    pub stack_frames: usize,
    /// Stack ids of the kernel. Beyond: ids not used for half as many new ones are forgotten.
    pub stack_ids: usize,
    /// Live heap blocks of all processes. Beyond: an allocation is left out of all sums; a block
    /// whose `realloc` has failed is taken for freed; a child of `fork` inherits none.
    pub live_blocks: usize,
    /// Pieces of mappings of all processes. Beyond: a new one is left out of all sums,
    /// what lies behind a cut is taken for unmapped, a child of `fork` inherits none.
    pub mappings: usize,
    /// Processes seen. Beyond: they share one entry, whose pid is 0.
    pub processes: usize,
    /// Pairs of a process and a call path of which the usage is kept; 0, unless somebody wants to
    /// know what single processes did. Beyond: they are those of process 0, which no program has.
    pub process_sites: usize,
    /// Processes running at a time. Beyond: a process is left out.
    pub running_processes: usize,
    /// Threads seen. Beyond: the new threads of a process share one entry, whose tid is 0.
    pub threads: usize,
    /// Threads running at a time. Beyond: a thread is taken for one that never started.
    pub running_threads: usize,
    /// Executable mappings of all processes. Beyond: a new one is unknown code.
    pub modules: usize,
    /// Distinct files with code. Beyond: a new one is unknown code.
    pub images: u32,
    /// Classes of operations. Beyond: a new one is left out. At most 255.
    pub operations: usize,
    /// Pieces of their code. Beyond: a new one belongs to no class.
    pub operation_code: usize,
    /// Bytes by which what a class of this name holds must grow to make a medium spike, instead of
    /// what is [usual](super::usual_threshold).
    pub operation_thresholds: BTreeMap<String, u64>,
    /// Symbols of code made at run time. Beyond: a new one is left out.
    pub jit_symbols: usize,
    /// Addresses of such code that stacks go through. Beyond: a new one has no name.
    pub jit_addresses: usize,
    /// Probes. Beyond: they are not listed.
    pub probes: usize,
    /// Names of counters that records bring. Beyond: they are not listed.
    pub counters: usize,
    /// Marks of the user. Beyond: they are left out.
    pub marks: usize,
    /// Points of the timeline; an even number. Beyond: neighbours are merged.
    pub timeline_points: usize,
    /// Changes of accounts within the window of spikes. Beyond: who made a spike is known in part.
    pub spike_changes: usize,
    /// Points of the histories of all sites. Beyond: a site's newest growth is not seen.
    pub history_points: usize,
    /// Call paths of which lifetimes are kept, and of which sizes if they are of several orders of
    /// magnitude. Beyond: those of a new one count in the total only.
    pub histogram_sites: usize,
    /// Call paths of which reallocations are kept. Beyond: as above.
    pub reallocation_sites: usize,
    /// How many allocations of the same thread may lie between the allocation and the release of a
    /// temporary block; at most [`MOST_BETWEEN`](super::statistics::MOST_BETWEEN).
    pub temporary_between: usize,
    /// What the detectors look for.
    pub detectors: DetectorOptions,
    /// Bytes of one name, path or command line. Beyond: it is cut.
    pub text_bytes: usize,
}

impl Default for Limits {
    /// A forged trace can fill some 6 GiB with it; a usual session takes 1% of that.
    fn default() -> Limits {
        Limits {
            stacks: 1 << 20,
            aligned_sites: 1 << 16,
            stack_frames: 1 << 25,
            stack_ids: 1 << 22,
            live_blocks: 1 << 25,
            mappings: 1 << 20,
            processes: 1 << 16,
            process_sites: 0,
            running_processes: 1 << 16,
            threads: 1 << 16,
            running_threads: 1 << 18,
            modules: 1 << 20,
            images: 1 << 16,
            operations: 32,
            operation_code: 1 << 16,
            operation_thresholds: BTreeMap::new(),
            jit_symbols: 1 << 16,
            jit_addresses: 1 << 18,
            probes: 1 << 16,
            counters: 1 << 10,
            marks: 1 << 10,
            timeline_points: 1 << 10,
            spike_changes: 1 << 20,
            history_points: 1 << 20,
            histogram_sites: 1 << 12,
            reallocation_sites: 1 << 14,
            temporary_between: 1,
            detectors: DetectorOptions::default(),
            text_bytes: 1 << 12,
        }
    }
}
