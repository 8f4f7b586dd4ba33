// mprotect: address space that becomes memory, changes its rights, and is given back.
//
// Address space without access is nobody's. What one call makes accessible of it is one
// allocation of that call, however it lies; what is made inaccessible is given back, and is freed
// with its last page.
//
// expect: function=commit_pieces api=mprotect allocations=5 allocated_bytes=81920 frees=0 freed_bytes=0 live_blocks=5 live_bytes=81920
// expect: function=commit_what_is_left api=mprotect allocations=1 allocated_bytes=49152 frees=0 freed_bytes=0 live_blocks=1 live_bytes=49152
// expect: function=commit_to_read api=mprotect allocations=1 allocated_bytes=12288 frees=0 freed_bytes=0 live_blocks=1 live_bytes=12288
// expect: function=commit_with_key api=mprotect allocations=1 allocated_bytes=28672 frees=0 freed_bytes=0 live_blocks=1 live_bytes=28672
// expect: function=commit_and_give_back api=mprotect allocations=7 allocated_bytes=86016 frees=7 freed_bytes=86016 live_blocks=0 live_bytes=0
// expect: function=commit_then_unmap_half api=mprotect allocations=1 allocated_bytes=40960 frees=0 freed_bytes=20480 live_blocks=1 live_bytes=20480
// expect: function=commit_to_move api=mprotect allocations=1 allocated_bytes=16384 frees=0 freed_bytes=0 live_blocks=1 live_bytes=16384
// expect: function=map_with_guard api=mmap allocations=1 allocated_bytes=40960 frees=0 freed_bytes=8192 live_blocks=1 live_bytes=32768
// expect: function=open_guard api=mprotect allocations=1 allocated_bytes=4096 frees=0 freed_bytes=0 live_blocks=1 live_bytes=4096
// absent: function=reserve
// absent: function=change_rights
// absent: function=fail_to_commit
#include "memtrace_test.h"
#include <errno.h>
#include <sys/mman.h>
#include <sys/syscall.h>

enum { PAGE = 4096, READ_WRITE = PROT_READ | PROT_WRITE };

static char *room;

NOINLINE static void reserve(void) {
    room = mmap(NULL, 64u << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    require(room != MAP_FAILED, 10);
}

static char *page(size_t number) {
    return room + number * PAGE;
}

// As an allocator grows: each call beyond what the last one gave, here with gaps.
NOINLINE static void commit_pieces(void) {
    for (int i = 0; i < 5; i++) {
        require(mprotect(page(i * 6), 4 * PAGE, READ_WRITE) == 0, 11);
        *page(i * 6) = 1;
    }
}

// 32 pages, of which 20 are memory already.
NOINLINE static void commit_what_is_left(void) {
    require(mprotect(page(0), 32 * PAGE, READ_WRITE) == 0, 12);
}

// As a compiler changes between writing code and running it.
NOINLINE static void change_rights(void) {
    for (int i = 0; i < 100; i++) {
        require(mprotect(page(1), 3 * PAGE, PROT_READ | PROT_EXEC) == 0, 13);
        require(mprotect(page(1), 3 * PAGE, READ_WRITE) == 0, 14);
        require(mprotect(page(0), 32 * PAGE, PROT_READ) == 0, 15);
        require(mprotect(page(0), 32 * PAGE, READ_WRITE) == 0, 16);
    }
}

// 10,001 bytes are three pages.
NOINLINE static void commit_to_read(void) {
    require(mprotect(page(100), 10001, PROT_READ) == 0, 17);
}

// No key: what glibc's pkey_mprotect leaves to mprotect.
NOINLINE static void commit_with_key(void) {
    require(syscall(SYS_pkey_mprotect, page(200), 7 * PAGE, READ_WRITE, -1) == 0, 18);
}

NOINLINE static void commit_and_give_back(void) {
    for (int i = 0; i < 7; i++) {
        require(mprotect(page(300), 3 * PAGE, READ_WRITE) == 0, 19);
        require(mprotect(page(299), 2 * PAGE, PROT_NONE) == 0, 20);
        require(mprotect(page(301), 9 * PAGE, PROT_NONE) == 0, 21);
    }
}

NOINLINE static void commit_then_unmap_half(void) {
    require(mprotect(page(400), 10 * PAGE, READ_WRITE) == 0, 22);
    require(munmap(page(405), 20 * PAGE) == 0, 23);
}

// It is still whose it was where it has moved to.
NOINLINE static void commit_to_move(void) {
    require(mprotect(page(500), 4 * PAGE, READ_WRITE) == 0, 24);
    int flags = MREMAP_MAYMOVE | MREMAP_FIXED;
    require(mremap(page(500), 4 * PAGE, 4 * PAGE, flags, page(600)) == page(600), 25);
}

NOINLINE static char *map_with_guard(void) {
    char *start = mmap(NULL, 10 * PAGE, READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    require(start != MAP_FAILED, 26);
    require(mprotect(start, 2 * PAGE, PROT_NONE) == 0, 27);
    return start;
}

NOINLINE static void open_guard(char *start) {
    require(mprotect(start + PAGE, PAGE, READ_WRITE) == 0, 28);
}

// A crooked address, and a right that does not exist.
NOINLINE static void fail_to_commit(void) {
    require(mprotect(page(700) + 1, PAGE, READ_WRITE) == -1 && errno == EINVAL, 29);
    require(mprotect(page(700), PAGE, READ_WRITE | 0x800) == -1 && errno == EINVAL, 30);
}

int main(int argc, char **argv) {
    rendezvous(argc, argv, "ready");
    reserve();
    commit_pieces();
    commit_what_is_left();
    change_rights();
    commit_to_read();
    commit_with_key();
    commit_and_give_back();
    commit_then_unmap_half();
    commit_to_move();
    open_guard(map_with_guard());
    fail_to_commit();
    rendezvous(argc, argv, "done");
    return 0;
}
