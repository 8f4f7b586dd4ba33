//! How large a block really is: what its allocator takes for a request.
//!
//! The records say what the program asked for. The rest follows from the allocator, of which only
//! the files that probes are in are known, so it is *computed*: for glibc from the layout of its
//! chunks, which has not changed since 2.0 on 64-bit machines, and for jemalloc from its size
//! classes in the usual configuration. Of other allocators nothing is said.

use memtrace_common::addr::Avma;

/// An allocator whose blocks are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocator {
    /// glibc's `malloc`.
    Glibc,
    /// jemalloc 4 and later, with pages of 4 KiB.
    Jemalloc,
}

/// What is known of the allocator from the files of the probes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Known {
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
    /// What was computed for blocks that are live must stay true, so once there are `events`
    /// another allocator makes it unclear.
    pub(in crate::pipeline) fn note(&mut self, module: &[u8], symbol: &str, events: u64) {
        let name = module.rsplit(|&byte| byte == b'/').next().unwrap_or(module);
        if !is_c_allocation(symbol) || is_cxx_runtime(name) {
            return;
        }
        let found = if name.starts_with(b"libc.so.6") || name.starts_with(b"libc-2.") {
            Known::One(Allocator::Glibc)
        } else if name.starts_with(b"libjemalloc") {
            Known::One(Allocator::Jemalloc)
        } else {
            Known::Unclear
        };
        let known = match *self {
            Known::Nothing => found,
            same if same == found => found,
            // A program with an allocator of its own does not use that of its C library, which
            // has probes all the same.
            Known::One(Allocator::Glibc) => found,
            other if found == Known::One(Allocator::Glibc) => other,
            Known::One(Allocator::Jemalloc) | Known::Unclear => Known::Unclear,
        };
        *self = if events > 0 && known != *self { Known::Unclear } else { known };
    }

    /// The usable bytes of a block; `None` if that is not known.
    #[inline(always)]
    pub(in crate::pipeline) fn usable_bytes(self, address: Avma, size_bytes: u64) -> Option<u64> {
        self.allocator().map(|allocator| allocator.usable_bytes(address, size_bytes))
    }

    /// The one allocator that there is.
    #[inline(always)]
    pub fn allocator(self) -> Option<Allocator> {
        match self {
            Known::One(allocator) => Some(allocator),
            Known::Nothing | Known::Unclear => None,
        }
    }
}

impl Allocator {
    /// How much of the block that it gives at `address` for a request can be used.
    #[inline(always)]
    pub fn usable_bytes(self, address: Avma, size_bytes: u64) -> u64 {
        match self {
            Allocator::Glibc => glibc(address, size_bytes),
            Allocator::Jemalloc => jemalloc(size_bytes),
        }
    }

    /// How reports call it.
    pub fn name(self) -> &'static str {
        match self {
            Allocator::Glibc => "glibc",
            Allocator::Jemalloc => "jemalloc",
        }
    }
}

fn is_c_allocation(symbol: &str) -> bool {
    matches!(symbol, "malloc" | "calloc" | "realloc")
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
            modules.iter().for_each(|module| known.note(module.as_bytes(), "malloc", 0));
            known
        };
        let libc = "/usr/lib/x86_64-linux-gnu/libc.so.6";
        let jemalloc = "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2";

        assert_eq!(known(&[]), Known::Nothing);
        assert_eq!(known(&[libc, libc, "/lib/libstdc++.so.6"]), Known::One(Allocator::Glibc));
        assert_eq!(known(&[libc, jemalloc]), Known::One(Allocator::Jemalloc));
        assert_eq!(known(&[jemalloc, libc]), Known::One(Allocator::Jemalloc));
        assert_eq!(known(&[libc, "/usr/bin/app"]), Known::Unclear);
        assert_eq!(known(&["/usr/bin/app", jemalloc, libc]), Known::Unclear);
    }

    #[test]
    fn allocator_that_comes_after_the_first_event_makes_it_unclear() {
        let mut known = Known::One(Allocator::Glibc);

        known.note(b"/lib/libc.so.6", "malloc", 1);
        assert_eq!(known, Known::One(Allocator::Glibc));
        known.note(b"/lib/libjemalloc.so.2", "malloc", 1);

        assert_eq!(known, Known::Unclear);
    }
}
