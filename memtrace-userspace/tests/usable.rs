//! The computed sizes of blocks, compared with what the allocator of this test says.

#![cfg(all(target_env = "gnu", target_arch = "x86_64"))]

use memtrace_common::addr::Avma;
use memtrace_userspace::pipeline::statistics::Allocator;
use memtrace_userspace::record::Alignment;

/// Every small size, and those around powers of two and around pages.
fn sizes() -> impl Iterator<Item = u64> {
    let around = (10..26).flat_map(|bit| {
        [-4096i64, -25, -24, -17, -9, -8, -1, 0, 1, 8, 9, 24, 4072, 4096]
            .map(move |distance| (1i64 << bit) + distance)
    });
    (0..=4096).chain(around.filter_map(|size| u64::try_from(size).ok()))
}

#[test]
fn glibc_blocks_are_as_large_as_glibc_says() {
    let mut larger = 0;
    for size in sizes() {
        // SAFETY: any size may be asked for.
        let block = unsafe { libc::malloc(size as usize) };
        // SAFETY: the block is live.
        let real = unsafe { libc::malloc_usable_size(block) } as u64;
        let computed = Allocator::Glibc.usable_bytes(Avma(block as u64), size, Alignment::NONE);
        let computed = computed.expect("glibc's are computed");

        // Where what is left of a free chunk is too small to be one, the block gets it too.
        assert!([0, 16].contains(&real.wrapping_sub(computed)), "{size}: {computed}, not {real}");
        larger += u64::from(real > computed);
        // SAFETY: the block is live, and not used again.
        unsafe { libc::free(block) };
    }
    assert!(larger < 400, "{larger} blocks are larger than computed");
}
