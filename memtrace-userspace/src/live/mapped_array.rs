//! A table of the kernel that grows, written through memory that is shared with it.
//!
//! ```text
//!   ROWS   | segment 0 | segment 1 | none yet | …        a segment: an array of 4 MiB
//! ```
//!
//! The kernel makes an array in one go, and where it is not preempted, whoever shares the CPU stands
//! still meanwhile. So a table is an array of arrays, each made when something is written to it. A
//! table of two million rows would take four thousand system calls if it were not shared.
//!
//! The kernel's programs may read at any moment, so an entry is written before anything refers to it.

use std::marker::PhantomData;
use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::maps::{ArrayOfMaps, MapData, MapError};
use aya_obj::generated::BPF_F_MMAPABLE;
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_ARRAY;
use memmap2::{MmapOptions, MmapRaw};
use memtrace_common::config::{CHUNKS_PER_SEGMENT, RowChunk};
use thiserror::Error;
use zerocopy::{Immutable, IntoBytes};

/// Bytes of a value of a segment.
const CHUNK_BYTES: usize = size_of::<RowChunk>();

const SEGMENT_BYTES: usize = CHUNKS_PER_SEGMENT * CHUNK_BYTES;

/// Why a segment could not be made.
#[derive(Debug, Error)]
pub enum SegmentError {
    /// The kernel did not make it, or not as a part of the table.
    #[error(transparent)]
    Refused(#[from] MapError),
    /// The kernel does not share it.
    #[error("cannot map it into memory: {0}")]
    NotShared(#[from] std::io::Error),
}

/// A map of maps, as an array of `T` whatever the size of their values.
pub(super) struct MappedArray<T> {
    map: ArrayOfMaps<MapData, MapData>,
    /// As many as the map may have.
    segments: Vec<Option<MmapRaw>>,
    values: PhantomData<T>,
}

impl<T: IntoBytes + Immutable> MappedArray<T> {
    /// How many entries a segment holds.
    const PER_SEGMENT: usize = SEGMENT_BYTES / size_of::<T>();

    /// No segment is there yet.
    pub(super) fn new(map: ArrayOfMaps<MapData, MapData>) -> Self {
        let segments = (0..map.len()).map(|_| None).collect();
        MappedArray { map, segments, values: PhantomData }
    }

    /// How many segments hold `entries`.
    pub(super) fn segments_of(entries: u64) -> u32 {
        let segments = entries.div_ceil(Self::PER_SEGMENT as u64);
        u32::try_from(segments).unwrap_or(u32::MAX)
    }

    /// Makes the segments of the first `entries`, as far as there may be; the kernel takes 10 ms for each.
    pub(super) fn make_room(&mut self, entries: u64) -> Result<(), SegmentError> {
        let wanted = Self::segments_of(entries).min(self.map.len());
        (0..wanted).try_for_each(|number| self.segment(number).map(|_| ()))
    }

    /// Writes `values` from index `first` on. What lies behind the map's end is left out.
    pub(super) fn write(&mut self, first: u32, values: &[T]) -> Result<(), SegmentError> {
        let (mut at, mut values) = (first as usize, values);
        while !values.is_empty() {
            let (number, start) = (at / Self::PER_SEGMENT, at % Self::PER_SEGMENT);
            let (now, rest) = values.split_at(values.len().min(Self::PER_SEGMENT - start));
            let Some(memory) = self.segment(number as u32)? else { break };
            let to = memory.as_mut_ptr().wrapping_add(start * size_of::<T>());
            let bytes = now.as_bytes();
            // SAFETY: inside the segment, and apart from `values`, which is memory of our own. The
            // kernel's programs may read at the same time; they cope with any bytes.
            unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
            (at, values) = (at + now.len(), rest);
        }
        Ok(())
    }

    /// A segment, made if it is not there; `None` behind the map's end.
    fn segment(&mut self, number: u32) -> Result<Option<&MmapRaw>, SegmentError> {
        let Some(segment) = self.segments.get_mut(number as usize) else { return Ok(None) };
        if segment.is_none() {
            // As the object says that they are.
            let array = aya_obj::Map::new_from_params(
                BPF_MAP_TYPE_ARRAY as u32,
                size_of::<u32>() as u32,
                CHUNK_BYTES as u32,
                CHUNKS_PER_SEGMENT as u32,
                BPF_F_MMAPABLE,
            );
            let array = MapData::create(array, "SEGMENT", None)?;
            let fd = array.fd().as_fd().as_raw_fd();
            let memory = MmapOptions::new().len(SEGMENT_BYTES).map_raw(fd)?;
            self.map.set(number, &array, 0)?;
            *segment = Some(memory);
        }
        Ok(segment.as_ref())
    }
}
