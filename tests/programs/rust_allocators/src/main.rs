// Rust with the allocator of a crate, which is linked into the executable.
//
// Which function the allocator takes is the crate's choice: jemalloc goes by the alignment, mimalloc
// has every block aligned.
//
// expect: function=rust_allocators::boxes api=malloc|aligned_alloc allocations=211 allocated_bytes=50640 frees=100 freed_bytes=24000 live_blocks=111 live_bytes=26640
// expect: function=rust_allocators::zeroed api=calloc|aligned_alloc allocations=31 allocated_bytes=31744 frees=31 freed_bytes=31744 live_blocks=0 live_bytes=0
// expect: function=rust_allocators::aligned api=aligned_alloc|malloc allocations=17 allocated_bytes=8704 frees=17 freed_bytes=8704 live_blocks=0 live_bytes=0
// expect: function=rust_allocators::grown api=malloc|realloc|aligned_alloc allocations=6 allocated_bytes=63000 frees=6 freed_bytes=63000 live_blocks=0 live_bytes=0

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, realloc};
use std::hint::black_box;
use std::io::{Read, Write};

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[inline(never)]
fn boxes() {
    for i in 0..211u8 {
        let block = black_box(Box::new([i; 240]));
        if i < 100 {
            drop(block);
        } else {
            std::mem::forget(block);
        }
    }
}

#[inline(never)]
fn zeroed() {
    let layout = Layout::from_size_align(1024, 8).expect("valid");
    for _ in 0..31 {
        // SAFETY: the size is not 0, and the layout is the block's.
        unsafe { dealloc(black_box(alloc_zeroed(layout)), layout) };
    }
}

#[inline(never)]
fn aligned() {
    let layout = Layout::from_size_align(512, 512).expect("valid");
    for _ in 0..17 {
        // SAFETY: the size is not 0, and the layout is the block's.
        unsafe { dealloc(black_box(alloc(layout)), layout) };
    }
}

/// 1000, 2000, 4000 … 32000 bytes in one block, 63,000 in all.
#[inline(never)]
fn grown() {
    let layout = |size| Layout::from_size_align(size, 8).expect("valid");
    // SAFETY: the size is not 0.
    let mut block = black_box(unsafe { alloc(layout(1000)) });
    let mut size = 1000;
    while size < 32000 {
        // SAFETY: the block's layout, and a size that is not 0.
        block = black_box(unsafe { realloc(block, layout(size), 2 * size) });
        size *= 2;
    }
    // SAFETY: the block's layout.
    unsafe { dealloc(block, layout(size)) };
}

fn rendezvous(word: &str) {
    if !std::env::args_os().any(|argument| argument == "--wait") {
        return;
    }
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{word}").and_then(|()| stdout.flush()).expect("stdout is there");
    let mut byte = [0];
    while std::io::stdin().lock().read(&mut byte).is_ok_and(|n| n == 1) && byte != *b"\n" {}
}

fn main() {
    rendezvous("ready");
    boxes();
    zeroed();
    aligned();
    grown();
    rendezvous("done");
}
