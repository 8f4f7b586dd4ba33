//! How large a block really is: what its allocator takes for a request.
//!
//! The records say what the program asked for. The rest follows from the allocator, of which only
//! the files that probes are in are known, so it is *computed*, and compared with what the
//! allocators themselves say (`malloc_usable_size`) in `tests/tests/usable.rs`:
//!
//! ```text
//!   glibc      its chunks, which have not changed since 2.0 on 64-bit machines
//!   jemalloc   its size classes since 4, in the usual configuration
//!   tcmalloc   gperftools' size classes, for pages of 8 KiB
//!   mimalloc   the bins of 2.0; where it puts an aligned block within one is not known
//!   musl       since 1.2.1 exactly what was asked for
//! ```
//!
//! Of other allocators nothing is said.

use memtrace_common::addr::Avma;

use crate::record::Alignment;

/// An allocator whose blocks are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocator {
    /// glibc's `malloc`.
    Glibc,
    /// jemalloc 4 and later, with pages of 4 KiB.
    Jemalloc,
    /// The tcmalloc of gperftools.
    Tcmalloc,
    /// mimalloc 2.
    Mimalloc,
    /// musl 1.2.1 and later.
    Musl,
}

/// Whether any block is live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pipeline) enum LiveBlocks {
    /// There is none.
    None,
    /// There are some.
    Some,
}

/// What is known of the allocator from the files of the probes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::pipeline) enum Known {
    /// No probe has come.
    #[default]
    Nothing,
    /// All blocks are from this one.
    One(Allocator),
    /// There are several, or one that is not computed.
    Unclear,
}

impl Known {
    /// Takes in that a function in this file was probed.
    ///
    /// What was computed for blocks that are live must stay true, so once there are some, another
    /// allocator makes it unclear.
    pub(in crate::pipeline) fn note(&mut self, module: &[u8], symbol: &str, live: LiveBlocks) {
        let name = module.rsplit(|&byte| byte == b'/').next().unwrap_or(module);
        if !allocates(symbol) || is_cxx_runtime(name) {
            return;
        }
        let found = Allocator::of_file(module, name).map_or(Known::Unclear, Known::One);
        let known = match (*self, found) {
            (Known::Nothing, found) => found,
            (known, found) if known == found => found,
            // A program with an allocator of its own does not use that of its C library, which
            // has probes all the same.
            (Known::One(known), found) if known.is_of_c_library() => found,
            (known, Known::One(found)) if found.is_of_c_library() => known,
            (Known::One(_) | Known::Unclear, _) => Known::Unclear,
        };
        *self = if live == LiveBlocks::Some && known != *self { Known::Unclear } else { known };
    }

    /// The usable bytes of a block; `None` if that is not known.
    #[inline(always)]
    pub(in crate::pipeline) fn usable_bytes(
        self,
        address: Avma,
        size_bytes: u64,
        alignment: Alignment,
    ) -> Option<u64> {
        self.allocator()?.usable_bytes(address, size_bytes, alignment)
    }

    /// The one allocator that there is.
    #[inline(always)]
    pub(in crate::pipeline) fn allocator(self) -> Option<Allocator> {
        match self {
            Known::One(allocator) => Some(allocator),
            Known::Nothing | Known::Unclear => None,
        }
    }
}

impl Allocator {
    /// How much of the block that it gives at `address` for a request can be used.
    ///
    /// `None` if it depends on what else there is in its heap.
    #[inline(always)]
    pub fn usable_bytes(self, address: Avma, size_bytes: u64, alignment: Alignment) -> Option<u64> {
        match self {
            Allocator::Glibc => Some(glibc(address, size_bytes)),
            Allocator::Jemalloc => Some(jemalloc_aligned(size_bytes, alignment)),
            Allocator::Tcmalloc => Some(tcmalloc(size_bytes, alignment)),
            Allocator::Mimalloc if alignment == Alignment::NONE => Some(mimalloc(size_bytes)),
            Allocator::Mimalloc => None,
            Allocator::Musl => Some(size_bytes),
        }
    }

    /// How reports call it.
    pub fn name(self) -> &'static str {
        match self {
            Allocator::Glibc => "glibc",
            Allocator::Jemalloc => "jemalloc",
            Allocator::Tcmalloc => "tcmalloc",
            Allocator::Mimalloc => "mimalloc",
            Allocator::Musl => "musl",
        }
    }

    /// Whose functions a file has, by its path and the last part of that.
    fn of_file(path: &[u8], name: &[u8]) -> Option<Allocator> {
        let is_musl = || {
            let names_musl = path.windows(4).any(|part| part == b"musl");
            name.starts_with(b"ld-musl-") || (name.starts_with(b"libc.") && names_musl)
        };
        if name.starts_with(b"libc.so.6") || name.starts_with(b"libc-2.") {
            Some(Allocator::Glibc)
        } else if name.starts_with(b"libjemalloc") {
            Some(Allocator::Jemalloc)
        } else if name.starts_with(b"libtcmalloc") {
            Some(Allocator::Tcmalloc)
        } else if name.starts_with(b"libmimalloc") {
            Some(Allocator::Mimalloc)
        } else {
            is_musl().then_some(Allocator::Musl)
        }
    }

    fn is_of_c_library(self) -> bool {
        match self {
            Allocator::Glibc | Allocator::Musl => true,
            Allocator::Jemalloc | Allocator::Tcmalloc | Allocator::Mimalloc => false,
        }
    }
}

/// Whether a function gives blocks, also under the prefix of an allocator that a program brings
/// along beside that of its C library.
fn allocates(symbol: &str) -> bool {
    let name =
        ["_rjem_", "je_", "tc_", "mi_"].iter().find_map(|prefix| symbol.strip_prefix(prefix));
    matches!(name.unwrap_or(symbol), "malloc" | "calloc" | "realloc")
}

/// Its `operator new` calls `malloc`.
fn is_cxx_runtime(name: &[u8]) -> bool {
    name.starts_with(b"libstdc++") || name.starts_with(b"libc++")
}

const PAGE_BYTES: u64 = 4096;
/// From here on glibc may map a block of its own, and does so unless blocks of the size were freed.
const GLIBC_MMAP_BYTES: u64 = 128 << 10;

/// ```text
///   chunk in the heap   | size 8 | block … | 8 of the next chunk, used while this one is taken |
///   chunk of its own    | previous size 8, size 8 | block … to the end of the page |
/// ```
///
/// A chunk of its own begins with a page, so its block lies 16 bytes behind; of the others one in
/// 256 does.
#[inline(always)]
fn glibc(address: Avma, size_bytes: u64) -> u64 {
    if size_bytes >= GLIBC_MMAP_BYTES && address.0 % PAGE_BYTES == 16 {
        round_up(size_bytes.saturating_add(24), PAGE_BYTES).saturating_sub(16)
    } else {
        (round_up(size_bytes.saturating_add(8), 16).saturating_sub(8)).max(24)
    }
}

/// Classes: 8, then steps of 16 to 128, then four to each power of two.
#[inline(always)]
fn jemalloc(size_bytes: u64) -> u64 {
    match size_bytes {
        0..=8 => 8,
        9..=128 => round_up(size_bytes, 16),
        _ => {
            let highest = u64::BITS - 1 - (size_bytes - 1).leading_zeros();
            round_up(size_bytes, 1 << (highest - 2))
        }
    }
}

/// A block with an alignment is of a class that is a multiple of it; a large one begins with a page.
#[inline(always)]
fn jemalloc_aligned(size_bytes: u64, alignment: Alignment) -> u64 {
    /// The largest class of small blocks, and the smallest of large ones.
    const SMALL: u64 = 14 << 10;
    const LARGE: u64 = 16 << 10;
    if alignment == Alignment::NONE {
        return jemalloc(size_bytes);
    }
    if size_bytes <= SMALL && alignment.bytes() <= PAGE_BYTES {
        let class = jemalloc(round_up(size_bytes, alignment.bytes()));
        if class < LARGE {
            return class;
        }
    }
    jemalloc(size_bytes.max(LARGE))
}

/// Bins of four to each power of two, as jemalloc's; large blocks are rows of slices, and what is
/// larger than a bin comes from the system in steps that grow.
#[inline(always)]
fn mimalloc(size_bytes: u64) -> u64 {
    const LARGEST_BIN: u64 = 128 << 10;
    const SLICE: u64 = 64 << 10;
    const MANY_SLICES: u64 = 512 << 10;
    const MIB: u64 = 1 << 20;
    let step_bytes = match size_bytes {
        0..=LARGEST_BIN => return jemalloc(size_bytes),
        _ if size_bytes <= MANY_SLICES => SLICE,
        _ if size_bytes <= 8 * MIB => MANY_SLICES,
        _ if size_bytes <= 32 * MIB => MIB,
        _ => 4 * MIB,
    };
    round_up(size_bytes, step_bytes)
}

/// gperftools' pages, and the largest block that is not made of whole ones.
const TCMALLOC_PAGE_BYTES: u64 = 8 << 10;
const TCMALLOC_LARGEST: u64 = 256 << 10;
const TCMALLOC_CLASSES: [u64; 85] = tcmalloc_classes();

/// The smallest class that is a multiple of the alignment, or whole pages.
#[inline(always)]
fn tcmalloc(size_bytes: u64, alignment: Alignment) -> u64 {
    let wanted = round_up(size_bytes, alignment.bytes());
    if wanted > TCMALLOC_LARGEST || alignment.bytes() > TCMALLOC_PAGE_BYTES {
        return round_up(size_bytes.max(1), TCMALLOC_PAGE_BYTES);
    }
    let class = TCMALLOC_CLASSES.partition_point(|class| *class < wanted);
    TCMALLOC_CLASSES.get(class).copied().unwrap_or(wanted)
}

/// Classes in steps of an eighth, of which those are one that as many blocks fit a span of.
///
/// ```text
///   step   8, from 16 on 16, from 128 on the power of two below / 8, at most a page
///   span   so many pages that an eighth is left over at most, for a quarter of what moves between
///          two caches at once: 64 KiB, 2 to 32 blocks
/// ```
const fn tcmalloc_classes() -> [u64; 85] {
    let mut classes = [0; 85];
    let (mut count, mut last_span) = (0, 0);
    let mut size = 8;
    while size <= TCMALLOC_LARGEST {
        let moved = match (64 << 10) / size {
            0..2 => 2,
            moved @ 2..32 => moved,
            _ => 32,
        };
        let mut span = 0;
        loop {
            span += TCMALLOC_PAGE_BYTES;
            while span % size > span >> 3 {
                span += TCMALLOC_PAGE_BYTES;
            }
            if span / size >= moved / 4 {
                break;
            }
        }
        let is_same = count > 0 && span == last_span && span / size == span / classes[count - 1];
        if !is_same {
            count += 1;
        }
        classes[count - 1] = size;
        last_span = span;
        let step = match size {
            0..16 => 8,
            16..128 => 16,
            _ => (1 << size.ilog2()) / 8,
        };
        size += if step > TCMALLOC_PAGE_BYTES { TCMALLOC_PAGE_BYTES } else { step };
    }
    classes
}

#[inline(always)]
fn round_up(bytes: u64, to: u64) -> u64 {
    bytes.saturating_add(to - 1) & !(to - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jemalloc_classes_are_those_of_its_manual() {
        // jemalloc(3), the table of size classes for pages of 4 KiB.
        let classes = [
            8, 16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768,
            896, 1024, 1280, 1536, 1792, 2048, 2560, 3072, 3584, 4096, 5120, 6144, 7168, 8192,
            10240, 12288, 14336, 16384, 20480, 24576, 28672, 32768, 40960,
        ];
        for size in 0..=40_960 {
            let expected = classes.into_iter().find(|class| *class >= size);
            assert_eq!(Some(jemalloc(size)), expected, "{size}");
        }
    }

    #[test]
    fn own_allocator_of_a_program_counts_and_not_that_of_its_c_library() {
        let known = |modules: &[&str]| {
            let mut known = Known::default();
            modules
                .iter()
                .for_each(|module| known.note(module.as_bytes(), "malloc", LiveBlocks::None));
            known
        };
        let libc = "/usr/lib/x86_64-linux-gnu/libc.so.6";
        let jemalloc = "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2";

        assert_eq!(known(&[]), Known::Nothing);
        assert_eq!(known(&[libc, libc, "/lib/libstdc++.so.6"]), Known::One(Allocator::Glibc));
        assert_eq!(known(&[libc, jemalloc]), Known::One(Allocator::Jemalloc));
        assert_eq!(known(&[jemalloc, libc]), Known::One(Allocator::Jemalloc));
        let tcmalloc = "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4";
        assert_eq!(known(&[libc, tcmalloc]), Known::One(Allocator::Tcmalloc));
        assert_eq!(known(&["/lib/libmimalloc.so.2.0", libc]), Known::One(Allocator::Mimalloc));
        assert_eq!(known(&["/lib/ld-musl-x86_64.so.1"]), Known::One(Allocator::Musl));
        assert_eq!(known(&["/lib/x86_64-linux-musl/libc.so"]), Known::One(Allocator::Musl));
        assert_eq!(known(&[tcmalloc, libc, jemalloc]), Known::Unclear);
        assert_eq!(known(&[libc, "/usr/bin/app"]), Known::Unclear);
        assert_eq!(known(&["/usr/bin/app", jemalloc, libc]), Known::Unclear);
    }

    #[test]
    fn allocator_under_a_prefix_beside_that_of_the_c_library_makes_it_unclear() {
        let mut known = Known::default();

        known.note(b"/lib/libc.so.6", "malloc", LiveBlocks::None);
        known.note(b"/usr/bin/app", "_rjem_malloc", LiveBlocks::None);

        assert_eq!(known, Known::Unclear);
    }

    #[test]
    fn allocator_that_comes_when_blocks_are_live_makes_it_unclear() {
        let mut known = Known::One(Allocator::Glibc);

        known.note(b"/lib/libc.so.6", "malloc", LiveBlocks::Some);
        assert_eq!(known, Known::One(Allocator::Glibc));
        known.note(b"/lib/libjemalloc.so.2", "malloc", LiveBlocks::Some);

        assert_eq!(known, Known::Unclear);
    }
}
