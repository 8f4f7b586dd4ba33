//! An array map of the kernel, written through memory that is shared with it.
//!
//! A table of two million rows would take four thousand system calls otherwise. The kernel's
//! programs may read at any moment, so an entry is written before anything refers to it.

use std::marker::PhantomData;
use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::maps::MapData;
use memmap2::{MmapOptions, MmapRaw};
use zerocopy::{Immutable, IntoBytes};

/// A map with `BPF_F_MMAPABLE`, as an array of `T` whatever the size of the map's values.
pub(super) struct MappedArray<T> {
    /// Keeps the map alive.
    _map: MapData,
    memory: MmapRaw,
    values: PhantomData<T>,
}

impl<T: IntoBytes + Immutable> MappedArray<T> {
    /// Maps the `bytes` of the map, whole pages.
    pub(super) fn new(map: MapData, bytes: usize) -> std::io::Result<Self> {
        let memory = MmapOptions::new().len(bytes).map_raw(map.fd().as_fd().as_raw_fd())?;
        Ok(MappedArray { _map: map, memory, values: PhantomData })
    }

    /// Writes `values` from index `first` on. What lies behind the map's end is left out.
    pub(super) fn write(&mut self, first: u32, values: &[T]) {
        let start = (first as usize).saturating_mul(size_of::<T>()).min(self.memory.len());
        let bytes = values.as_bytes();
        let length = bytes.len().min(self.memory.len() - start);
        let to = self.memory.as_mut_ptr().wrapping_add(start);
        // SAFETY: inside the mapping, and apart from `values`, which is memory of our own. The
        // kernel's programs may read at the same time; they cope with any bytes.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), length) };
    }
}
