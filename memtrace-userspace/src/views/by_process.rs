//! What each process did at each site, for exports that show processes apart.
//!
//! The pipeline sums sites over processes. Whoever wants both watches the postings.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use super::call_paths::CallPaths;
use super::frames::Names;
use super::ranking::{SortKey, SymbolizedUsage, sort_stacks};
use crate::pipeline::snapshot::{Snapshot, Usage};
use crate::pipeline::{Change, Pipeline, Posting, SiteId};
use crate::record::{Pid, Record};

/// The most pairs of a process and a site: 150 MB.
const PAIRS: usize = 1 << 20;

/// The usage of each process at each site.
///
/// Copies that `fork` made are the child's. Pairs beyond the limit are those of process 0, which no
/// program has.
#[derive(Default)]
pub struct ByProcess {
    call_paths: CallPaths,
    usage: FxHashMap<(Pid, SiteId), Usage>,
}

impl ByProcess {
    /// Takes in what a record changed.
    pub fn event(&mut self, record: &Record, postings: &[Posting], pipeline: &Pipeline) {
        self.call_paths.event(record, pipeline);
        for posting in postings {
            self.call_paths.meet(posting.site, pipeline);
            let key = (posting.pid, posting.site);
            let has_room = self.usage.len() < PAIRS || self.usage.contains_key(&key);
            let key = if has_room { key } else { (Pid(0), posting.site) };
            post(self.usage.entry(key).or_default(), posting);
        }
    }

    /// The stacks of each process, those that hold most first.
    pub fn finish(
        self,
        snapshot: &Snapshot,
        names: &mut Names,
    ) -> BTreeMap<Pid, Vec<SymbolizedUsage>> {
        let sites = self.call_paths.finish();
        let mut pairs: Vec<_> = self.usage.into_iter().collect();
        // Equal sessions give equal files.
        pairs.sort_unstable_by_key(|(key, _)| *key);
        let mut processes: BTreeMap<Pid, Vec<SymbolizedUsage>> = BTreeMap::new();
        for ((pid, site), usage) in pairs {
            let (stack, api) = &sites[site.index()];
            let stack = names.symbolize(&snapshot.images, stack);
            let stacks = processes.entry(pid).or_default();
            stacks.push(SymbolizedUsage { stack, api: *api, usage });
        }
        for stacks in processes.values_mut() {
            sort_stacks(stacks, SortKey::Live);
        }
        processes
    }
}

/// As the pipeline's accounts do it; the bytes at the peak are not known.
fn post(usage: &mut Usage, posting: &Posting) {
    let &Posting { pid: _, site: _, thread: _, change, blocks, bytes } = posting;
    let add = |(number, sum): (&mut u64, &mut u64)| {
        *number = number.wrapping_add(blocks);
        *sum = sum.wrapping_add(bytes);
    };
    let take = |(number, sum): (&mut u64, &mut u64)| {
        *number = number.wrapping_sub(blocks);
        *sum = sum.wrapping_sub(bytes);
    };
    match change {
        Change::Acquire => add((&mut usage.allocations, &mut usage.allocated_bytes)),
        Change::Release => add((&mut usage.frees, &mut usage.freed_bytes)),
        Change::Reclaim => take((&mut usage.frees, &mut usage.freed_bytes)),
        Change::Inherit => add((&mut usage.inherited_blocks, &mut usage.inherited_bytes)),
        Change::Disinherit => take((&mut usage.inherited_blocks, &mut usage.inherited_bytes)),
        Change::Abandon | Change::Hold | Change::LetGo => {}
    }
    if change.changes_usage() {
        let live = (&mut usage.live_blocks, &mut usage.live_bytes);
        if change.adds() { add(live) } else { take(live) }
    }
}
