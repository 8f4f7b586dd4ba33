//! What the twin's blocks, pages and moments add up to.

use super::*;

impl Oracle {
    /// Writes down the moment, and all that is held if it is a peak.
    pub(super) fn settle(&mut self, allocated: Option<u64>) {
        let held = self.blocks.iter().enumerate().filter(|(_, b)| b.state == State::Held);
        let held: HashMap<_, _> = held.map(|(i, block)| (i, block.size)).collect();
        let live = held.values().sum();
        if live > self.peak.0 {
            self.peak = (live, self.now);
            self.at_peak = held;
        }
        let held = self.mappings.iter().enumerate().filter(|(_, m)| m.counted && !m.abandoned);
        let held: HashMap<_, _> = held.map(|(i, m)| (i, m.pages.len() as u64 * 4096)).collect();
        let mapped = held.values().sum();
        if mapped > self.mapped_peak {
            self.mapped_peak = mapped;
            self.mapped_at_peak = held;
        }
        let running = self.processes.iter().filter(|process| process.ended.is_none());
        let resident = running.filter_map(|process| process.resident).sum();
        self.moments.push(Moment { time: self.now, live, mapped, resident, allocated });
    }

    fn path(&self, key: &Key) -> Path {
        match key {
            Key::Path(path) => path.clone(),
            Key::Awaited(n) => self.arrived[*n].clone().unwrap_or((End::Missing, vec![])),
        }
    }

    /// Usage of the heap by whatever `of` makes of a path, API, process and thread.
    pub(in super::super) fn heap<K: Ord>(
        &self,
        of: impl Fn(Path, Api, usize, usize) -> K,
    ) -> BTreeMap<K, Usage> {
        let mut sums: BTreeMap<K, Usage> = BTreeMap::new();
        for (i, block) in self.blocks.iter().enumerate() {
            let group = of(self.path(&block.key), block.api, block.process, block.thread);
            let sum = sums.entry(group).or_default();
            let (released, held) = (block.state == State::Released, block.state == State::Held);
            if block.inherited {
                sum.live_blocks += u64::from(held);
                sum.live_bytes += u64::from(held) * block.size;
                sum.inherited_blocks += u64::from(held);
                sum.inherited_bytes += u64::from(held) * block.size;
            } else {
                sum.allocations += 1;
                sum.allocated_bytes += block.size;
                sum.frees += u64::from(released);
                sum.freed_bytes += u64::from(released) * block.size;
                sum.live_blocks += u64::from(!released);
                sum.live_bytes += u64::from(!released) * block.size;
            }
            sum.temporary_allocations += u64::from(block.temporary);
            sum.peak_bytes += self.at_peak.get(&i).copied().unwrap_or(0);
        }
        sums
    }

    /// Usage of mappings by whatever `of` makes of a path, API and process.
    pub(in super::super) fn mapped<K: Ord>(
        &self,
        of: impl Fn(Path, Api, usize) -> K,
    ) -> BTreeMap<K, Usage> {
        let mut sums: BTreeMap<K, Usage> = BTreeMap::new();
        for (i, mapping) in self.mappings.iter().enumerate().filter(|(_, m)| m.counted) {
            let sum =
                sums.entry(of(self.path(&mapping.key), mapping.api, mapping.process)).or_default();
            let (size, left) = (mapping.size * 4096, mapping.pages.len() as u64 * 4096);
            let blocks = u64::from(left > 0);
            if mapping.inherited {
                let held = u64::from(!mapping.abandoned);
                sum.live_blocks += held * blocks;
                sum.live_bytes += held * left;
                sum.inherited_blocks += held * blocks;
                sum.inherited_bytes += held * left;
            } else {
                sum.allocations += 1;
                sum.allocated_bytes += size;
                sum.frees += 1 - blocks;
                sum.freed_bytes += size - left;
                sum.live_blocks += blocks;
                sum.live_bytes += left;
            }
            sum.peak_bytes += self.mapped_at_peak.get(&i).copied().unwrap_or(0);
        }
        sums
    }

    /// All counters that are not zero.
    pub(in super::super) fn counters(&self) -> Vec<(String, u64)> {
        let mut counters = self.counters.clone();
        let awaited = self.arrived.iter().filter(|path| path.is_none()).count();
        counters.insert("unknown_stacks".to_owned(), awaited as u64);
        for (end, _) in self.paths.keys() {
            *counters.entry(format!("stacks_ended_{}", end.name())).or_default() += 1;
        }
        let heap = self.heap(|path, _, _, _| path.0);
        for (end, usage) in heap.into_iter().chain(self.mapped(|path, _, _| path.0)) {
            let name = format!("allocations_with_stack_ended_{}", end.name());
            *counters.entry(name).or_default() += usage.allocations;
        }
        counters.retain(|name, value| *value > 0 && !name.ends_with("_ended_root"));
        counters.into_iter().collect()
    }

    /// End, live, peak, mapped, allocated bytes, allocations and resident bytes of each step.
    pub(in super::super) fn timeline(&self, points: u64) -> Vec<[u64; 7]> {
        let mut step = 1_000_000;
        while self.now / step >= points {
            step *= 2;
        }
        let mut rows = vec![];
        let (mut live, mut mapped, mut resident) = (0, 0, 0);
        for n in 0..=self.now / step {
            let (start, end) = (n * step, (n + 1) * step);
            let (mut peak, mut allocated, mut allocations) = (live, 0, 0);
            for moment in self.moments.iter().filter(|m| m.time >= start && m.time < end) {
                (live, mapped, resident) = (moment.live, moment.mapped, moment.resident);
                peak = peak.max(live);
                allocated += moment.allocated.unwrap_or(0);
                allocations += u64::from(moment.allocated.is_some());
            }
            rows.push([end.min(self.now), live, peak, mapped, allocated, allocations, resident]);
        }
        rows
    }
}
