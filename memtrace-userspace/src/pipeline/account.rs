//! Accounts: what a stack, a thread or a process took, gave back and holds.
//!
//! In: one [`Change`] for each account that an event concerns. Out: [`Usage`]. [`Peak`] follows
//! the sum over all running processes and remembers when it was highest.
//!
//! Every account can say what it held at the moment of the peak, although nobody visits the
//! accounts at that moment. Each peak has a number, its epoch; an account writes down what it
//! holds before its first change after a peak:
//!
//! ```text
//!   event        +4 to A    +3 to B    -3 to B         +1 to A
//!   sum             4          7          4               5
//!   epoch           2          3          3               3
//!   A at peak     holds      holds      holds (4)      4, written before the change
//!   B at peak     holds      holds      3, written     3
//! ```
//!
//! so an account that has not changed since the peak holds what it held then. Sums wrap around:
//! only a forged trace gets to 2^64.

use super::snapshot::Usage;
use super::stacks::SiteId;
use super::threads::ThreadId;
use crate::record::{Pid, Time};

/// How an account changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Memory was allocated.
    Acquire,
    /// Own memory was given back.
    Release,
    /// Own memory was given back, but the call failed: undoes `Release`.
    Reclaim,
    /// A copy came by `fork`, or a copy's release failed.
    Inherit,
    /// A copy that came by `fork` is gone.
    Disinherit,
    /// The program ended and held this, its own.
    Abandon,
    /// It was held when the range began, or giving that back failed.
    Hold,
    /// What was held when the range began is gone.
    LetGo,
}

/// A change of the accounts of a site and, for blocks, of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Posting {
    /// The process whose memory it is.
    pub pid: Pid,
    /// Where it was allocated.
    pub site: SiteId,
    /// Who allocated it.
    pub thread: ThreadId,
    /// What happened to it.
    pub change: Change,
    /// How many blocks, or pieces of mappings.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Change {
    /// Whether more is held after it, and not less.
    pub fn adds(self) -> bool {
        matches!(self.direction(), Direction::Up)
    }

    /// Whether it changes what is live in a [`Usage`]: what a program held when it ended stays live
    /// there, and what was held before a range never is.
    pub fn changes_usage(self) -> bool {
        match self {
            Change::Acquire
            | Change::Release
            | Change::Reclaim
            | Change::Inherit
            | Change::Disinherit => true,
            Change::Abandon | Change::Hold | Change::LetGo => false,
        }
    }

    /// Whether more is held after it.
    #[inline(always)]
    fn direction(self) -> Direction {
        match self {
            Change::Acquire | Change::Reclaim | Change::Inherit | Change::Hold => Direction::Up,
            Change::Release | Change::Disinherit | Change::Abandon | Change::LetGo => {
                Direction::Down
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Direction {
    Up,
    Down,
}

impl Direction {
    #[inline(always)]
    fn apply(self, held: &mut u64, bytes: u64) {
        *held = match self {
            Direction::Up => held.wrapping_add(bytes),
            Direction::Down => held.wrapping_sub(bytes),
        };
    }
}

/// By what right a process holds memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// It allocated it.
    Own,
    /// Its parent had it when it forked.
    Inherited,
    /// It held it when the range began.
    Earlier,
}

impl Claim {
    /// The change when the memory is given back.
    #[inline(always)]
    pub(super) fn release(self) -> Change {
        match self {
            Claim::Own => Change::Release,
            Claim::Inherited => Change::Disinherit,
            Claim::Earlier => Change::LetGo,
        }
    }

    /// The change when giving it back has failed.
    pub(super) fn reclaim(self) -> Change {
        match self {
            Claim::Own => Change::Reclaim,
            Claim::Inherited => Change::Inherit,
            Claim::Earlier => Change::Hold,
        }
    }

    /// The change when the program ends.
    pub(super) fn end(self) -> Change {
        match self {
            Claim::Own => Change::Abandon,
            Claim::Inherited => Change::Disinherit,
            Claim::Earlier => Change::LetGo,
        }
    }
}

/// Number of a peak, see the module's picture, and of a tick, which tells the first change since.
///
/// ```text
///   | tick 24 bits | peak 40 bits |
/// ```
///
/// One comparison finds out whether either has changed. The detectors want to know what an account
/// held before its first change in each tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Epoch(u64);

impl Epoch {
    const PEAK_BITS: u32 = 40;
    const PEAK: u64 = (1 << Self::PEAK_BITS) - 1;

    #[inline(always)]
    fn is_same_peak(self, other: Epoch) -> bool {
        (self.0 ^ other.0) & Self::PEAK == 0
    }

    #[inline(always)]
    fn is_same_tick(self, other: Epoch) -> bool {
        (self.0 ^ other.0) >> Self::PEAK_BITS == 0
    }

    fn next_peak(self) -> Epoch {
        Epoch((self.0 & !Self::PEAK) | ((self.0 + 1) & Self::PEAK))
    }

    fn next_tick(self) -> Epoch {
        Epoch(self.0.wrapping_add(1 << Self::PEAK_BITS))
    }
}

/// What an account held before its first change in a tick.
pub(super) type HeldBefore = Option<u64>;

/// What one stack, thread or process took, gave back and holds: one line of the cache.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct Account {
    allocations: u64,
    allocated_bytes: u64,
    frees: u64,
    freed_bytes: u64,
    /// Bytes held by running processes, copies included.
    held_bytes: u64,
    /// Bytes held at the peak, if `written` is its epoch; otherwise nothing changed since.
    peak_bytes: u64,
    written: Epoch,
    /// Apart, because few accounts have them.
    rest: Option<Box<Rest>>,
}

const _: () = assert!(size_of::<Account>() == 64);

/// The copies in an account, and its temporary blocks.
#[derive(Clone, Copy, Debug, Default)]
struct Rest {
    inherited_blocks: u64,
    inherited_bytes: u64,
    temporary_allocations: u64,
}

impl Account {
    /// Changes by `blocks` and `bytes` in `epoch`. Returns what it held if that is its first change
    /// in a tick.
    #[inline(always)]
    pub(super) fn apply(
        &mut self,
        change: Change,
        blocks: u64,
        bytes: u64,
        epoch: Epoch,
    ) -> HeldBefore {
        let mut held_before = None;
        if self.written != epoch {
            if !self.written.is_same_peak(epoch) {
                self.peak_bytes = self.held_bytes;
            }
            if !self.written.is_same_tick(epoch) {
                held_before = Some(self.held_bytes);
            }
            self.written = epoch;
        }
        change.direction().apply(&mut self.held_bytes, bytes);
        match change {
            Change::Acquire => {
                self.allocations = self.allocations.wrapping_add(blocks);
                self.allocated_bytes = self.allocated_bytes.wrapping_add(bytes);
            }
            Change::Release => {
                self.frees = self.frees.wrapping_add(blocks);
                self.freed_bytes = self.freed_bytes.wrapping_add(bytes);
            }
            Change::Reclaim => {
                self.frees = self.frees.wrapping_sub(blocks);
                self.freed_bytes = self.freed_bytes.wrapping_sub(bytes);
            }
            Change::Inherit => {
                let rest = self.rest.get_or_insert_default();
                rest.inherited_blocks = rest.inherited_blocks.wrapping_add(blocks);
                rest.inherited_bytes = rest.inherited_bytes.wrapping_add(bytes);
            }
            Change::Disinherit => {
                let rest = self.rest.get_or_insert_default();
                rest.inherited_blocks = rest.inherited_blocks.wrapping_sub(blocks);
                rest.inherited_bytes = rest.inherited_bytes.wrapping_sub(bytes);
            }
            Change::Abandon | Change::Hold | Change::LetGo => {}
        }
        held_before
    }

    /// Changes by what is posted, for [`Account::usage_without_peak`] alone.
    pub(crate) fn post(&mut self, posting: &Posting) {
        let &Posting { pid: _, site: _, thread: _, change, blocks, bytes } = posting;
        self.apply(change, blocks, bytes, Epoch::default());
    }

    /// A block of it that was released has turned out to be temporary.
    #[inline(always)]
    pub(crate) fn note_temporary(&mut self) {
        self.rest.get_or_insert_default().temporary_allocations += 1;
    }

    /// How many blocks were acquired.
    #[inline(always)]
    pub(super) fn allocations(&self) -> u64 {
        self.allocations
    }

    /// Their bytes.
    #[inline(always)]
    pub(super) fn allocated_bytes(&self) -> u64 {
        self.allocated_bytes
    }

    /// How many blocks were released.
    #[inline(always)]
    pub(super) fn frees(&self) -> u64 {
        self.frees
    }

    /// Bytes that running processes hold.
    #[inline(always)]
    pub(super) fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// How many of its blocks were temporary.
    #[inline(always)]
    pub(super) fn temporary_allocations(&self) -> u64 {
        self.rest.as_ref().map_or(0, |rest| rest.temporary_allocations)
    }

    /// What views see of an account that knows of no peak; it held 0 bytes then.
    pub(crate) fn usage_without_peak(&self) -> Usage {
        self.usage(Epoch::default())
    }

    /// What views see of it, the last peak having been number `epoch`.
    pub(super) fn usage(&self, epoch: Epoch) -> Usage {
        let &Account {
            allocations,
            allocated_bytes,
            frees,
            freed_bytes,
            held_bytes,
            peak_bytes,
            written,
            ref rest,
        } = self;
        let rest = rest.as_deref().copied().unwrap_or_default();
        let Rest { inherited_blocks, inherited_bytes, temporary_allocations } = rest;
        Usage {
            allocations,
            allocated_bytes,
            frees,
            freed_bytes,
            live_blocks: allocations.wrapping_sub(frees).wrapping_add(inherited_blocks),
            live_bytes: allocated_bytes.wrapping_sub(freed_bytes).wrapping_add(inherited_bytes),
            inherited_blocks,
            inherited_bytes,
            peak_bytes: if written.is_same_peak(epoch) { peak_bytes } else { held_bytes },
            temporary_allocations,
        }
    }
}

/// Adds the numbers of `more` to `sum`.
pub(crate) fn add_usage(sum: &mut Usage, more: &Usage) {
    let Usage {
        allocations,
        allocated_bytes,
        frees,
        freed_bytes,
        live_blocks,
        live_bytes,
        inherited_blocks,
        inherited_bytes,
        peak_bytes,
        temporary_allocations,
    } = sum;
    *allocations = allocations.wrapping_add(more.allocations);
    *allocated_bytes = allocated_bytes.wrapping_add(more.allocated_bytes);
    *frees = frees.wrapping_add(more.frees);
    *freed_bytes = freed_bytes.wrapping_add(more.freed_bytes);
    *live_blocks = live_blocks.wrapping_add(more.live_blocks);
    *live_bytes = live_bytes.wrapping_add(more.live_bytes);
    *inherited_blocks = inherited_blocks.wrapping_add(more.inherited_blocks);
    *inherited_bytes = inherited_bytes.wrapping_add(more.inherited_bytes);
    *peak_bytes = peak_bytes.wrapping_add(more.peak_bytes);
    *temporary_allocations = temporary_allocations.wrapping_add(more.temporary_allocations);
}

/// The bytes that all running processes hold, and the most they ever held.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peak {
    held_bytes: u64,
    highest_bytes: u64,
    at: Time,
    epoch: Epoch,
}

impl Default for Peak {
    /// Nothing is held; no account was written in the epoch of that, nor in its tick.
    fn default() -> Peak {
        Peak { held_bytes: 0, highest_bytes: 0, at: Time(0), epoch: Epoch(1).next_tick() }
    }
}

impl Peak {
    /// Changes the sum. It is no peak before [`Peak::settle`].
    #[inline(always)]
    pub(super) fn apply(&mut self, change: Change, bytes: u64) {
        change.direction().apply(&mut self.held_bytes, bytes);
    }

    /// Ends an event at `now`: the sum stands, and is a new peak if it is higher than all before.
    #[inline(always)]
    pub(super) fn settle(&mut self, now: Time) {
        if self.held_bytes > self.highest_bytes {
            self.highest_bytes = self.held_bytes;
            self.at = now;
            self.epoch = self.epoch.next_peak();
        }
    }

    /// Forgets what was before `now`: what is held is the highest so far.
    pub(super) fn restart(&mut self, now: Time) {
        self.highest_bytes = self.held_bytes;
        self.at = now;
        self.epoch.0 += 1;
    }

    /// Bytes held now.
    #[inline(always)]
    pub(super) fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// The most bytes ever held.
    pub(super) fn highest_bytes(&self) -> u64 {
        self.highest_bytes
    }

    /// When they were first held.
    pub(super) fn at(&self) -> Time {
        self.at
    }

    /// Begins a tick: every account tells what it held before its next change.
    pub(super) fn tick(&mut self) {
        self.epoch = self.epoch.next_tick();
    }

    /// Number of the last peak and tick.
    #[inline(always)]
    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_remember_what_they_held_at_the_peak() {
        let (mut peak, mut a, mut b) = (Peak::default(), Account::default(), Account::default());
        let mut step = |account: &mut Account, change, bytes, time| {
            account.apply(change, 1, bytes, peak.epoch());
            peak.apply(change, bytes);
            peak.settle(Time(time));
            peak
        };

        step(&mut a, Change::Acquire, 4, 1);
        step(&mut b, Change::Acquire, 3, 2);
        step(&mut b, Change::Release, 3, 3);
        let peak = step(&mut a, Change::Acquire, 1, 4);

        assert_eq!((peak.highest_bytes(), peak.at(), peak.held_bytes()), (7, Time(2), 5));
        assert_eq!(a.usage(peak.epoch()).peak_bytes, 4);
        assert_eq!(b.usage(peak.epoch()).peak_bytes, 3);
    }

    #[test]
    fn account_tells_what_it_held_once_a_tick() {
        let (mut peak, mut account) = (Peak::default(), Account::default());

        let mut acquire = |peak: &Peak| account.apply(Change::Acquire, 1, 8, peak.epoch());
        assert_eq!(acquire(&peak), Some(0));
        peak.tick();
        assert_eq!(acquire(&peak), Some(8));
        assert_eq!(acquire(&peak), None);
        peak.apply(Change::Acquire, 24);
        peak.settle(Time(1));
        assert_eq!(acquire(&peak), None);
        peak.tick();
        assert_eq!(acquire(&peak), Some(32));
        assert_eq!(account.usage(peak.epoch()).peak_bytes, 24);
    }

    #[test]
    fn peak_that_is_only_equalled_keeps_its_first_time() {
        let mut peak = Peak::default();

        for (change, time) in [(Change::Acquire, 1), (Change::Release, 2), (Change::Acquire, 3)] {
            peak.apply(change, 8);
            peak.settle(Time(time));
        }

        assert_eq!((peak.highest_bytes(), peak.at()), (8, Time(1)));
    }

    #[test]
    fn abandoned_memory_stays_live_and_is_no_longer_held() {
        let mut account = Account::default();

        account.apply(Change::Acquire, 1, 8, Epoch(1));
        account.apply(Change::Abandon, 1, 8, Epoch(2));

        let expected = Usage {
            allocations: 1,
            allocated_bytes: 8,
            live_blocks: 1,
            live_bytes: 8,
            peak_bytes: 0,
            ..Usage::default()
        };
        assert_eq!(account.usage(Epoch(3)), expected);
    }
}
