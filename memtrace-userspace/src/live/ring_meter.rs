//! How full the ring gets.
//!
//! The kernel shows the positions of a ring in its first two pages: the reader's in one, the
//! writers' in the other (`bpf_ringbuf_map_alloc` in kernel/bpf/ringbuf.c).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use memmap2::{Mmap, MmapOptions};

const PAGE_BYTES: usize = 4096;

/// Watches one ring.
#[derive(Debug)]
pub(super) struct RingMeter {
    positions: Mmap,
    peak_bytes: u64,
}

impl RingMeter {
    /// Watches the ring of this map.
    pub(super) fn new(ring: impl AsFd) -> io::Result<Self> {
        // SAFETY: the kernel's pages, which are not cut short; they are only read, as volatile words.
        let positions =
            unsafe { MmapOptions::new().len(2 * PAGE_BYTES).map(ring.as_fd().as_raw_fd()) }?;
        Ok(RingMeter { positions, peak_bytes: 0 })
    }

    /// Looks how full it is.
    pub(super) fn look(&mut self) {
        let used = self.written().wrapping_sub(self.read());
        self.peak_bytes = self.peak_bytes.max(used);
    }

    /// The most bytes that it was seen to hold.
    pub(super) fn peak_bytes(&self) -> u64 {
        self.peak_bytes
    }

    /// How many bytes were ever written to it, or are being written.
    pub(super) fn written(&self) -> u64 {
        self.position(PAGE_BYTES)
    }

    /// How many bytes were ever read from it.
    pub(super) fn read(&self) -> u64 {
        self.position(0)
    }

    fn position(&self, offset: usize) -> u64 {
        // SAFETY: both offsets lie in the mapping.
        let position = unsafe { self.positions.as_ptr().add(offset) };
        // SAFETY: the start of a page is aligned, and the kernel writes whole words.
        unsafe { position.cast::<u64>().read_volatile() }
    }
}
