//! Rust's Box, Vec, String and threads, through std's System allocator.
//!
//! A Vec<u64> that grows to 1,000 by push starts with 4 elements and doubles: 32 bytes by malloc,
//! then 64, 128, … 8,192 by realloc.
//
// expect: within=rust_program::leak_boxes api=malloc allocations=43 allocated_bytes=13803 frees=0 freed_bytes=0 live_blocks=43 live_bytes=13803
// expect: within=rust_program::drop_boxes api=malloc allocations=47 allocated_bytes=15651 frees=47 freed_bytes=15651 live_blocks=0 live_bytes=0
// expect: within=rust_program::grow_vector api=malloc allocations=1 allocated_bytes=32 frees=1 freed_bytes=32 live_blocks=0 live_bytes=0
// expect: within=rust_program::grow_vector api=realloc allocations=8 allocated_bytes=16320 frees=8 freed_bytes=16320 live_blocks=0 live_bytes=0
// expect: within=rust_program::zeroed_vectors api=calloc allocations=19 allocated_bytes=105545 frees=0 freed_bytes=0 live_blocks=19 live_bytes=105545
// expect: within=rust_program::long_strings api=malloc allocations=53 allocated_bytes=5141 frees=53 freed_bytes=5141 live_blocks=0 live_bytes=0
// expect: within=rust_program::shrink_vector api=malloc allocations=1 allocated_bytes=7001 frees=1 freed_bytes=7001 live_blocks=0 live_bytes=0
// expect: within=rust_program::shrink_vector api=realloc allocations=1 allocated_bytes=701 frees=0 freed_bytes=0 live_blocks=1 live_bytes=701
// expect: within=rust_program::share api=malloc allocations=29 allocated_bytes=6496 frees=29 freed_bytes=6496 live_blocks=0 live_bytes=0
// expect: within=rust_program::in_threads api=malloc allocations=62 allocated_bytes=20894 frees=31 freed_bytes=10447 live_blocks=31 live_bytes=10447
// expect: within=rust_program::aligned_boxes api=posix_memalign|aligned_alloc|memalign allocations=7 allocated_bytes=1792 frees=0 freed_bytes=0 live_blocks=7 live_bytes=1792

use std::hint::black_box;
use std::sync::Arc;

unsafe extern "C" {
    fn read(fd: i32, buffer: *mut u8, length: usize) -> isize;
    fn write(fd: i32, buffer: *const u8, length: usize) -> isize;
}

/// With `--wait` among the arguments: says `word` and waits for a line (or the end of stdin).
///
/// Without std's buffers, which allocate.
fn rendezvous(word: &str) {
    if !std::env::args().any(|argument| argument == "--wait") {
        return;
    }
    // SAFETY: the buffer is valid for its length.
    unsafe { write(1, word.as_ptr(), word.len()) };
    let mut byte = 0u8;
    // SAFETY: one byte is read into one byte.
    while unsafe { read(0, &mut byte, 1) } == 1 && byte != b'\n' {}
}

#[inline(never)]
fn leak_boxes() {
    for i in 0..43u8 {
        Box::leak(black_box(Box::new([i; 321])));
    }
}

#[inline(never)]
fn drop_boxes() {
    for i in 0..47u8 {
        drop(black_box(Box::new([i; 333])));
    }
}

#[inline(never)]
fn grow_vector() {
    let mut numbers: Vec<u64> = Vec::new();
    for i in 0..1000 {
        numbers.push(black_box(i));
    }
    black_box(&numbers);
}

#[inline(never)]
fn zeroed_vectors() {
    for _ in 0..19 {
        std::mem::forget(black_box(vec![0u8; black_box(5555)]));
    }
}

#[inline(never)]
fn long_strings() {
    let text = black_box("0123456789abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmno");
    for _ in 0..53 {
        black_box(String::from(text));
    }
}

#[inline(never)]
fn shrink_vector() {
    let mut bytes: Vec<u8> = Vec::with_capacity(black_box(7001));
    bytes.resize(701, 1);
    bytes.shrink_to_fit();
    std::mem::forget(black_box(bytes));
}

/// 201 bytes and two counts of 8, rounded up to the alignment of the counts: 224.
#[inline(never)]
fn share() {
    for i in 0..29u8 {
        let shared = black_box(Arc::new([i; 201]));
        black_box(Arc::clone(&shared));
    }
}

#[inline(never)]
fn in_threads() {
    Box::leak(black_box(Box::new([1u8; 337])));
    drop(black_box(Box::new([2u8; 337])));
}

#[inline(never)]
fn aligned_boxes() {
    #[repr(align(256))]
    struct Wide(#[expect(dead_code, reason = "only its size matters")] [u8; 256]);
    for i in 0..7u8 {
        Box::leak(black_box(Box::new(Wide([i; 256]))));
    }
}

fn main() {
    rendezvous("ready\n");
    leak_boxes();
    drop_boxes();
    grow_vector();
    zeroed_vectors();
    long_strings();
    shrink_vector();
    share();
    for _ in 0..31 {
        std::thread::spawn(in_threads).join().expect("the thread does not panic");
    }
    aligned_boxes();
    rendezvous("done\n");
}
