//! What writer and reader expect the next record to be.
//!
//! Both keep a [`Model`] and feed it with the same records, so that the writer can say "as
//! expected" with one bit where the reader knows the value already:
//!
//! ```text
//!   stack of an alloc    the one that followed the thread's last stack the last time
//!   api and size         those of the stack's last alloc
//!   address of an alloc  the block of that size class which the thread freed last
//!   address of a free    that of the n-th last alloc
//! ```
//!
//! The rules mirror how allocators reuse memory (glibc's tcache is a list per thread and size
//! class, last in, first out), but nothing depends on them being right: a wrong guess costs
//! bytes. Both sides must make the same guess, so a change of any rule is a change of the format.
//!
//! Every table has a fixed size or a cap. At the cap the writer starts over with an empty model
//! and marks the block as independent.

use crate::record::{Tid, WireStackId};

use super::format::MAX_BLOCK_RECORDS;

/// How many allocs a free can refer back to.
pub(super) const RECENT: usize = 1 << 17;

/// How many free lists there are; threads and size classes share them by hash.
const FREE_LISTS: usize = 1 << 12;

/// How many blocks a free list remembers.
const FREE_LIST_BLOCKS: usize = 8;

/// Entries of a dictionary after which the next block starts over.
const DICTIONARY_FULL: usize = 1 << 17;

/// No dictionary grows beyond this: what was full before a block, plus one entry a record.
pub(super) const MAX_DICTIONARY: usize = DICTIONARY_FULL + MAX_BLOCK_RECORDS as usize;

/// The most frames a stack shares with the one before it.
pub(super) const MAX_SHARED_FRAMES: usize = 1024;

/// Position in the dictionary of threads.
pub(super) type ThreadIndex = u32;

/// Position in the dictionary of stacks; 0 is "no stack".
pub(super) type StackIndex = u32;

/// What a thread did last.
#[derive(Clone, Debug)]
pub(super) struct Thread {
    pub(super) tid: Tid,
    /// Stack of its last alloc.
    stack: StackIndex,
    /// Where the block of its last alloc ends.
    end: u64,
    /// The block that its `realloc` took.
    retired: Option<Block>,
    /// [`Api`](memtrace_common::event::Api) of its last free, as a wire number.
    pub(super) free_api: u8,
}

/// What a stack was seen to do last.
#[derive(Clone, Debug)]
pub(super) struct Stack {
    pub(super) id: WireStackId,
    /// The stack that followed it in its thread.
    next: StackIndex,
    /// Size of its last alloc.
    pub(super) size: u64,
    /// [`Api`](memtrace_common::event::Api) of its last alloc, as a wire number.
    pub(super) api: u8,
}

/// A heap block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub(super) ptr: u64,
    class: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct FreeList {
    blocks: [u64; FREE_LIST_BLOCKS],
    top: u8,
}

/// The tables. See the module.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) threads: Vec<Thread>,
    pub(super) stacks: Vec<Stack>,
    /// The last [`RECENT`] allocs: the one with number n at n modulo [`RECENT`].
    recent: Vec<Block>,
    /// Number of allocs seen: the next one's number.
    pub(super) allocs: u64,
    free_lists: Box<[FreeList]>,
    /// Address of the last free.
    pub(super) freed: u64,
    /// Address of the last mapping.
    pub(super) mapped: u64,
    /// The frames of the last stack.
    pub(super) frames: Vec<u64>,
}

impl Model {
    pub(super) fn new() -> Model {
        let mut model = Model {
            threads: Vec::new(),
            stacks: Vec::new(),
            recent: Vec::new(),
            allocs: 0,
            free_lists: vec![FreeList::default(); FREE_LISTS].into(),
            freed: 0,
            mapped: 0,
            frames: Vec::new(),
        };
        model.add_stack(WireStackId(0));
        model
    }

    /// Forgets everything.
    pub(super) fn reset(&mut self) {
        let Model { threads, stacks, recent, allocs, free_lists, freed, mapped, frames } = self;
        threads.clear();
        stacks.clear();
        recent.clear();
        *allocs = 0;
        free_lists.fill(FreeList::default());
        *freed = 0;
        *mapped = 0;
        frames.clear();
        self.add_stack(WireStackId(0));
    }

    /// Whether the next block should start over.
    pub(super) fn is_full(&self) -> bool {
        self.threads.len() >= DICTIONARY_FULL || self.stacks.len() >= DICTIONARY_FULL
    }

    pub(super) fn add_thread(&mut self, tid: Tid) {
        self.threads.push(Thread { tid, stack: 0, end: 0, retired: None, free_api: 0 });
    }

    pub(super) fn add_stack(&mut self, id: WireStackId) {
        self.stacks.push(Stack { id, next: 0, size: 0, api: 0 });
    }

    #[inline]
    pub(super) fn thread(&mut self, thread: ThreadIndex) -> &mut Thread {
        &mut self.threads[thread as usize]
    }

    #[inline]
    pub(super) fn stack(&mut self, stack: StackIndex) -> &mut Stack {
        &mut self.stacks[stack as usize]
    }

    /// The stack that the thread's next alloc is expected to have.
    #[inline]
    pub(super) fn expected_stack(&self, thread: ThreadIndex) -> StackIndex {
        self.stacks[self.threads[thread as usize].stack as usize].next
    }

    #[inline]
    pub(super) fn saw_stack(&mut self, thread: ThreadIndex, stack: StackIndex) {
        let last = &mut self.threads[thread as usize].stack;
        self.stacks[*last as usize].next = stack;
        *last = stack;
    }

    /// Where the thread's next alloc of `size` bytes may be. To be followed by [`Self::saw_alloc`].
    #[inline]
    pub(super) fn guess_alloc(&mut self, thread: ThreadIndex, size: u64) -> u64 {
        let Thread { end, retired, .. } = self.threads[thread as usize];
        if let Some(retired) = retired {
            return retired.ptr;
        }
        let list = self.free_list(thread, class(size));
        let top = list.blocks[usize::from(list.top)];
        if top == 0 {
            return end;
        }
        list.blocks[usize::from(list.top)] = 0;
        list.top = list.top.wrapping_sub(1) % FREE_LIST_BLOCKS as u8;
        top
    }

    #[inline]
    pub(super) fn saw_alloc(&mut self, thread: ThreadIndex, ptr: u64, size: u64) {
        let class = class(size);
        let block = Block { ptr, class };
        match self.recent.get_mut(self.allocs as usize % RECENT) {
            Some(oldest) => *oldest = block,
            None => self.recent.push(block),
        }
        self.allocs += 1;
        let last = &mut self.threads[thread as usize];
        last.end = ptr.wrapping_add(chunk(size));
        if let Some(retired) = last.retired.take()
            && retired.ptr != ptr
        {
            self.push_free(thread, retired);
        }
    }

    /// The block of the `distance`-th last alloc, if that is remembered.
    #[inline]
    pub(super) fn recent(&self, distance: u64) -> Option<Block> {
        let known = self.allocs.min(RECENT as u64);
        (1..=known)
            .contains(&distance)
            .then(|| self.recent[(self.allocs - distance) as usize % RECENT])
    }

    #[inline]
    pub(super) fn saw_free(&mut self, thread: ThreadIndex, block: Block) {
        self.freed = block.ptr;
        self.push_free(thread, block);
    }

    #[inline]
    pub(super) fn saw_retire(&mut self, thread: ThreadIndex, block: Block) {
        self.freed = block.ptr;
        self.threads[thread as usize].retired = Some(block);
    }

    /// The address of the block that the thread's `realloc` took, which is no longer expected back.
    pub(super) fn take_retired(&mut self, thread: ThreadIndex) -> u64 {
        self.threads[thread as usize].retired.take().map_or(0, |block| block.ptr)
    }

    #[inline]
    fn push_free(&mut self, thread: ThreadIndex, block: Block) {
        if block.class != UNKNOWN_CLASS {
            let list = self.free_list(thread, block.class);
            list.top = (list.top + 1) % FREE_LIST_BLOCKS as u8;
            list.blocks[usize::from(list.top)] = block.ptr;
        }
    }

    #[inline]
    fn free_list(&mut self, thread: ThreadIndex, class: u32) -> &mut FreeList {
        let hash = thread.wrapping_mul(0x9e37_79b1) ^ class;
        &mut self.free_lists[hash as usize % FREE_LISTS]
    }
}

/// Size class of a block whose size is not known.
const UNKNOWN_CLASS: u32 = 0;

impl Block {
    /// A block of which only the address is known.
    pub(super) fn of_unknown_size(ptr: u64) -> Block {
        Block { ptr, class: UNKNOWN_CLASS }
    }
}

/// Bytes that glibc takes for a block: a multiple of 16, with 8 bytes of its own, 32 at least.
#[inline]
fn chunk(size: u64) -> u64 {
    (size.saturating_add(8 + 15) & !15).max(32)
}

/// A number for sizes that share a free list; never [`UNKNOWN_CLASS`].
///
/// Exact chunks up to 1 KiB, then eight classes for each power of two.
#[inline]
fn class(size: u64) -> u32 {
    let chunk = chunk(size);
    if chunk <= 1024 {
        return (chunk / 16) as u32;
    }
    let power = chunk.ilog2();
    let eighth = (chunk >> (power - 3)) & 7;
    64 + power * 8 + eighth as u32
}
