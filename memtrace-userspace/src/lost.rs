//! What is lost, by call path: the verdicts of [`reach`](crate::reach) over the pipeline's blocks.
//!
//! In: the blocks that each process held, and what was seen of its memory. Out: [`LostBlocks`], for
//! views. Only blocks whose allocation was observed in the process itself can be lost here; all other
//! memory is a root, the copies too that `fork` made of its parent's blocks.

use std::collections::BTreeMap;
use std::sync::Arc;

use memtrace_common::event::Api;

use crate::pipeline::snapshot::Stack;
use crate::pipeline::{HeldBlock, SiteId};
use crate::reach::{Blocks, Cost, Lost, Span};
use crate::record::{Pid, Time};

/// Blocks and their bytes, as the program asked for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, PartialOrd, Ord)]
pub struct Amount {
    /// Bytes.
    pub bytes: u64,
    /// Blocks.
    pub blocks: u64,
}

impl Amount {
    /// Adds a block.
    pub fn add(&mut self, block: &HeldBlock) {
        self.bytes = self.bytes.saturating_add(block.size_bytes);
        self.blocks += 1;
    }

    /// The sum of both.
    pub fn plus(self, other: Amount) -> Amount {
        Amount { bytes: self.bytes.saturating_add(other.bytes), blocks: self.blocks + other.blocks }
    }
}

/// When the first and the last of some blocks were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Births {
    /// The first.
    pub first: Time,
    /// The last.
    pub last: Time,
}

impl Births {
    /// The span of both.
    pub fn with(self, other: Births) -> Births {
        Births { first: self.first.min(other.first), last: self.last.max(other.last) }
    }
}

/// What is lost of the blocks of one call path and API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Losses {
    /// Nothing points to these.
    pub direct: Amount,
    /// When those were made; `None` if there are none.
    pub born: Option<Births>,
    /// Blocks of any call path that only these directly lost ones lead to.
    pub held: Amount,
    /// Blocks of this call path that only other lost blocks lead to.
    pub indirect: Amount,
}

impl Losses {
    /// The sum of both.
    pub fn plus(self, other: Losses) -> Losses {
        let Losses { direct, born, held, indirect } = other;
        let born = match (self.born, born) {
            (Some(births), Some(others)) => Some(births.with(others)),
            (births, others) => births.or(others),
        };
        Losses {
            direct: self.direct.plus(direct),
            born,
            held: self.held.plus(held),
            indirect: self.indirect.plus(indirect),
        }
    }
}

/// A call path that lost blocks.
#[derive(Clone, Debug)]
pub struct LostStack {
    /// The call path.
    pub stack: Arc<Stack>,
    /// The function of the allocator.
    pub api: Api,
    /// What it lost.
    pub losses: Losses,
}

/// What a process has lost.
#[derive(Clone, Debug)]
pub struct ProcessLosses {
    /// The process.
    pub pid: Pid,
    /// What nothing points to.
    pub direct: Amount,
    /// What only that leads to.
    pub indirect: Amount,
    /// The blocks that were judged, lost or not.
    pub judged: Amount,
    /// Live blocks that were taken for roots instead.
    pub not_judged: NotJudged,
    /// What the look took.
    pub cost: Cost,
}

/// A process of which nothing is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotRead {
    /// The process.
    pub pid: Pid,
    /// Why.
    pub reason: String,
}

/// What the processes of a session have lost.
#[derive(Clone, Debug)]
pub struct LostBlocks {
    /// The process that was named or started.
    pub pid: Pid,
    /// By call path and API, of all processes together, in no order that may show.
    pub stacks: Vec<LostStack>,
    /// What was read, in the order of the looks; [`MOST_PROCESSES`] at most.
    pub processes: Vec<ProcessLosses>,
    /// What was not read; [`MOST_PROCESSES`] at most.
    pub not_read: Vec<NotRead>,
    /// How many more were read.
    pub read_beyond_limit: u64,
    /// How many more were not.
    pub not_read_beyond_limit: u64,
    /// The blocks that were judged, lost or not.
    pub judged: Amount,
    /// Live blocks that were taken for roots instead, because too little was sure about them.
    pub not_judged: NotJudged,
    /// What the looks took: the longest stop, and the sums of everything else.
    pub cost: Cost,
}

/// So many processes are told one by one.
pub const MOST_PROCESSES: usize = 4096;

impl LostBlocks {
    /// Nothing is known yet.
    pub fn new(pid: Pid) -> LostBlocks {
        LostBlocks {
            pid,
            stacks: Vec::new(),
            processes: Vec::new(),
            not_read: Vec::new(),
            read_beyond_limit: 0,
            not_read_beyond_limit: 0,
            judged: Amount::default(),
            not_judged: NotJudged::default(),
            cost: Cost::default(),
        }
    }

    /// Takes in what one process has lost. Its call paths come apart, in [`LostBlocks::stacks`].
    pub fn add(&mut self, process: ProcessLosses) {
        let ProcessLosses { pid: _, direct: _, indirect: _, judged, not_judged, cost } = process;
        self.judged = self.judged.plus(judged);
        self.not_judged = self.not_judged.plus(not_judged);
        self.cost = if self.read() == 0 { cost } else { self.cost.plus(cost) };
        if self.processes.len() < MOST_PROCESSES {
            self.processes.push(process);
        } else {
            self.read_beyond_limit += 1;
        }
    }

    /// Takes in that a process was not read.
    pub fn add_not_read(&mut self, process: NotRead) {
        if self.not_read.len() < MOST_PROCESSES {
            self.not_read.push(process);
        } else {
            self.not_read_beyond_limit += 1;
        }
    }

    /// How many processes were read.
    pub fn read(&self) -> u64 {
        self.processes.len() as u64 + self.read_beyond_limit
    }

    /// How many were not.
    pub fn unread(&self) -> u64 {
        self.not_read.len() as u64 + self.not_read_beyond_limit
    }
}

/// Live blocks that are not judged, by the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct NotJudged {
    /// They overlap others: an event was lost, so one of the two is not live.
    pub contradictory: u64,
    /// They lie where addresses of more than 47 bits are.
    pub out_of_reach: u64,
    /// They were released, allocated or moved in the moment before the look.
    pub changed: u64,
    /// They are copies that `fork` made of the parent's blocks.
    pub inherited: u64,
}

impl NotJudged {
    fn plus(self, other: NotJudged) -> NotJudged {
        let NotJudged { contradictory, out_of_reach, changed, inherited } = other;
        NotJudged {
            contradictory: self.contradictory + contradictory,
            out_of_reach: self.out_of_reach + out_of_reach,
            changed: self.changed + changed,
            inherited: self.inherited + inherited,
        }
    }
}

/// Puts blocks in order and leaves out those that cannot be judged.
pub fn judgeable(mut held: Vec<HeldBlock>) -> (Vec<HeldBlock>, NotJudged) {
    let mut not_judged = NotJudged::default();
    let all = held.len();
    held.retain(|block| !block.is_inherited);
    not_judged.inherited = (all - held.len()) as u64;
    let all = held.len();
    held.retain(|block| Blocks::is_possible(span(block)));
    not_judged.out_of_reach = (all - held.len()) as u64;
    held.sort_unstable_by_key(|block| block.address);
    let possible = held.len();
    let mut end = 0;
    let mut previous_is_contradictory = false;
    let mut contradictory = Vec::new();
    for (index, block) in held.iter().enumerate() {
        let overlaps = block.address.0 < end;
        if overlaps && !previous_is_contradictory {
            contradictory.push(index - 1);
        }
        if overlaps {
            contradictory.push(index);
        }
        previous_is_contradictory = overlaps;
        end = end.max(block.address.0 + block.size_bytes.max(1));
    }
    let mut contradictory = contradictory.into_iter().peekable();
    let mut index = 0;
    held.retain(|_| {
        let is_contradictory = contradictory.next_if_eq(&index).is_some();
        index += 1;
        !is_contradictory
    });
    not_judged.contradictory = (possible - held.len()) as u64;
    (held, not_judged)
}

/// Where a block lies.
pub fn span(block: &HeldBlock) -> Span {
    Span { start: block.address, size_bytes: block.size_bytes }
}

/// Sums up by call path. `held` are the blocks that were judged, in the order of their ids.
pub fn by_site(held: &[HeldBlock], lost: &[Lost]) -> BTreeMap<SiteId, Losses> {
    let mut sites: BTreeMap<SiteId, Losses> = BTreeMap::new();
    for Lost { block, holder } in lost {
        let (of_block, of_holder) = (&held[block.index()], &held[holder.index()]);
        if block == holder {
            let losses = sites.entry(of_block.site).or_default();
            let born = Births { first: of_block.born, last: of_block.born };
            losses.direct.add(of_block);
            losses.born = Some(losses.born.map_or(born, |births| births.with(born)));
        } else {
            sites.entry(of_block.site).or_default().indirect.add(of_block);
            sites.entry(of_holder.site).or_default().held.add(of_block);
        }
    }
    sites
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use memtrace_common::addr::Avma;

    use super::*;

    fn block(address: u64, size_bytes: u64) -> HeldBlock {
        let born = Time(address);
        let site = SiteId::default();
        HeldBlock { address: Avma(address), size_bytes, born, site, is_inherited: false }
    }

    #[test]
    fn blocks_that_overlap_are_not_judged() {
        let held = vec![
            block(0x300, 16),
            block(0x100, 64),
            block(0x110, 16),
            block(0x120, 16),
            block(0x200, 0),
            block(0x140, 16),
        ];

        let (judged, not_judged) = judgeable(held);

        assert_eq!(judged, [block(0x140, 16), block(0x200, 0), block(0x300, 16)]);
        assert_eq!(not_judged, NotJudged { contradictory: 3, ..NotJudged::default() });
    }

    #[test]
    fn blocks_beyond_the_usual_addresses_are_not_judged() {
        let (judged, not_judged) = judgeable(vec![block(1 << 50, 16), block(0x100, u64::MAX)]);

        assert_eq!((judged.len(), not_judged.out_of_reach), (0, 2));
    }

    #[test]
    fn copies_of_a_parents_blocks_are_not_judged() {
        let inherited = HeldBlock { is_inherited: true, ..block(0x110, 16) };

        let (judged, not_judged) = judgeable(vec![block(0x100, 64), inherited]);

        assert_eq!(judged, [block(0x100, 64)]);
        assert_eq!(not_judged, NotJudged { inherited: 1, ..NotJudged::default() });
    }

    #[test]
    fn processes_add_up_and_of_their_stops_the_longest_counts() {
        let process = |pid, bytes, stop| ProcessLosses {
            pid: Pid(pid),
            direct: Amount::default(),
            indirect: Amount::default(),
            judged: Amount { bytes, blocks: 1 },
            not_judged: NotJudged { changed: 1, ..NotJudged::default() },
            cost: Cost {
                stopped: Some(Duration::from_millis(stop)),
                threads: 1,
                ..Cost::default()
            },
        };
        let mut lost = LostBlocks::new(Pid(1));

        lost.add(process(2, 10, 7));
        lost.add(process(1, 20, 5));
        lost.add_not_read(NotRead { pid: Pid(3), reason: "it was killed".to_owned() });

        assert_eq!((lost.read(), lost.unread()), (2, 1));
        assert_eq!(lost.judged, Amount { bytes: 30, blocks: 2 });
        assert_eq!(lost.not_judged.changed, 2);
        let stopped = Some(Duration::from_millis(7));
        assert_eq!((lost.cost.stopped, lost.cost.threads), (stopped, 2));
    }

    #[test]
    fn losses_of_a_call_path_add_up() {
        let held = vec![block(0x100, 16), block(0x200, 24), block(0x300, 8)];
        let blocks = Blocks::new(held.iter().map(span));
        let ids: Vec<_> = blocks.ids().collect();
        let lost = [(1, 1), (0, 1), (2, 2)]
            .map(|(block, holder): (usize, usize)| Lost { block: ids[block], holder: ids[holder] });

        let sites = by_site(&held, &lost);

        let losses = Losses {
            direct: Amount { bytes: 24 + 8, blocks: 2 },
            born: Some(Births { first: Time(0x200), last: Time(0x300) }),
            held: Amount { bytes: 16, blocks: 1 },
            indirect: Amount { bytes: 16, blocks: 1 },
        };
        assert_eq!(sites, BTreeMap::from([(SiteId::default(), losses)]));
    }
}
