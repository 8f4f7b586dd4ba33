//! Makes a [`Snapshot`] of the pipeline's state.

use std::collections::BTreeMap;

use memtrace_common::event::Api;
use memtrace_common::unwind::End;

use super::Pipeline;
use super::account::{Epoch, add_usage};
use super::findings::Leaks;
use super::marks::Sums;
use super::processes::Shown;
use super::range::Before;
use super::snapshot::{
    Glance, Memory, ProcessUsage, Scope, Snapshot, StackUsage, ThreadUsage, Totals, Usage,
    lost_events,
};

impl Pipeline {
    /// The state now, in a few numbers.
    pub fn glance(&self) -> Glance {
        let processes = self.shown_processes();
        Glance {
            session: self.session.clone(),
            now: self.now,
            events: self.events,
            lost_events: self.lost_events(),
            live_bytes: self.totals(&processes).heap.live_bytes,
            processes,
        }
    }

    /// How many events never reached the pipeline.
    pub fn lost_events(&self) -> u64 {
        lost_events(self.counters.iter())
    }

    pub(super) fn publish(&self) -> Snapshot {
        let (heap, mapped) = (self.heap_peak.epoch(), self.mapped_peak.epoch());
        let epoch_of = |api: Api| if api.acquires_block() { heap } else { mapped };
        let stacks = self.stacks.usage(epoch_of);
        let pid_of = |entry| self.processes.entry(entry).pid;
        let process_stacks = self.process_sites.usage(&self.stacks, pid_of, epoch_of);
        let processes = self.shown_processes();
        Snapshot {
            session: self.session.clone(),
            now: self.now,
            end: self.end,
            events: self.events,
            totals: self.totals(&processes),
            counters: self.all_counters(&stacks),
            stacks,
            process_stacks,
            processes,
            left_out_processes: self.processes.left_out(),
            operations: self.operation_usage(|memory| match memory {
                Memory::Heap => heap,
                Memory::Mapped => mapped,
            }),
            threads: self.shown_threads(heap),
            timeline: match self.before {
                Before::Moment => Vec::new(),
                Before::Nothing | Before::Range { .. } => {
                    self.timeline.points(self.now, self.current_level())
                }
            },
            scope: self.before.scope(),
            marks: self.marks.marks().to_vec(),
            phases: self.marks.phases(self.now, self.sums()),
            spikes: match self.before {
                Before::Moment => Vec::new(),
                Before::Nothing | Before::Range { .. } => self.spikes(),
            },
            leaks: match self.before {
                Before::Moment => Leaks { verdicts: Vec::new(), ..self.find_leaks() },
                Before::Nothing | Before::Range { .. } => self.leaks(),
            },
            probes: self.probes.clone(),
            images: self.images.all().to_vec(),
            jit_names: self.jit_names.named(),
            statistics: self.statistics(),
        }
    }

    fn shown_processes(&self) -> Vec<ProcessUsage> {
        let mut processes = self.processes.usage(self.heap_peak.epoch(), self.mapped_peak.epoch());
        processes.retain(|process| self.is_in_scope(process));
        processes
    }

    /// Whether a process was there in the part that is shown.
    fn is_in_scope(&self, process: &ProcessUsage) -> bool {
        let nothing = process.heap == Usage::default() && process.mapped == Usage::default();
        match (self.before.scope(), process.ended) {
            (Scope::Run, _) | (_, None) => true,
            (Scope::Range(range), Some(ended)) => ended > range.from || !nothing,
            (Scope::Moment, Some(_)) => !nothing,
        }
    }

    /// The heap's sums so far.
    pub(super) fn sums(&self) -> Sums {
        let mut sums = Sums { held_bytes: self.heap_peak.held_bytes(), ..Sums::default() };
        for usage in self.processes.usage(self.heap_peak.epoch(), self.mapped_peak.epoch()) {
            let Usage { allocations, allocated_bytes, frees, freed_bytes, .. } = usage.heap;
            sums.allocated.blocks = sums.allocated.blocks.wrapping_add(allocations);
            sums.allocated.bytes = sums.allocated.bytes.wrapping_add(allocated_bytes);
            sums.freed.blocks = sums.freed.blocks.wrapping_add(frees);
            sums.freed.bytes = sums.freed.bytes.wrapping_add(freed_bytes);
        }
        sums
    }

    /// The threads of the processes that are shown, and those that made what they have inherited.
    fn shown_threads(&self, heap: Epoch) -> Vec<ThreadUsage> {
        let mut threads = self.threads.usage(heap);
        let shown = self.processes.shown();
        if *shown != Shown::All {
            threads.retain(|t| shown.contains(t.pid) || t.heap != Usage::default());
        }
        threads
    }

    fn totals(&self, processes: &[ProcessUsage]) -> Totals {
        let (mut heap, mut mapped) = (Usage::default(), Usage::default());
        for process in processes {
            add_usage(&mut heap, &process.heap);
            add_usage(&mut mapped, &process.mapped);
        }
        Totals {
            heap,
            peak_live_bytes: self.heap_peak.highest_bytes(),
            peak_at: self.heap_peak.at(),
            mapped,
            temporary_allocations: heap.temporary_allocations,
            peak_resident_bytes: self.peak_resident_bytes,
        }
    }

    /// The records' counters, the anomalies, and what is known of stacks without a root.
    fn all_counters(&self, stacks: &[StackUsage]) -> Vec<(String, u64)> {
        let mut counters = self.counters.clone();
        let mut add = |name: String, value: u64| add_counter(&mut counters, name, value);
        for (name, value) in self.anomalies.named() {
            add(name.to_owned(), value);
        }
        add("unknown_stacks".to_owned(), self.stacks.paths.awaited());
        add("process_sites_beyond_limit".to_owned(), self.process_sites.beyond_limit());
        add("stacks_beyond_limit".to_owned(), self.stacks.paths.beyond_limit());
        add("jit_symbols_beyond_limit".to_owned(), self.jit_names.symbols_beyond_limit());
        add("jit_addresses_beyond_limit".to_owned(), self.jit_names.addresses_beyond_limit());
        add("aligned_sites_beyond_limit".to_owned(), self.stacks.aligned_beyond_limit());
        add("stack_ids_forgotten".to_owned(), self.stacks.forgotten_ids());
        for (name, value) in self.detectors.counters().into_iter().chain(self.collected.counters())
        {
            add(name.to_owned(), value);
        }
        let mut allocations = [0u64; End::ALL.len()];
        for StackUsage { stack, api: _, usage } in stacks {
            let sum = &mut allocations[stack.end as usize];
            *sum = sum.wrapping_add(usage.allocations);
        }
        for &end in End::ALL.iter().filter(|&&end| end != End::Root) {
            add(format!("stacks_ended_{}", end.name()), self.stacks.paths.arrived(end));
            let name = format!("allocations_with_stack_ended_{}", end.name());
            add(name, allocations[end as usize]);
        }
        counters.retain(|_, value| *value != 0);
        counters.into_iter().collect()
    }
}

fn add_counter(counters: &mut BTreeMap<String, u64>, name: String, value: u64) {
    let sum = counters.entry(name).or_default();
    *sum = sum.wrapping_add(value);
}
