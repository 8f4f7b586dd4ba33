// mmap, munmap, mremap and brk: mappings that are cut, covered, moved, grown and shrunk.
//
// Bytes are whole pages. A mapping is freed when its last page is; until then its live bytes are
// what is left of it. A mapping that moves still belongs to the function that made it; what it
// gains is a mapping of the function that called mremap.
//
// expect: function=map_and_leak api=mmap allocations=13 allocated_bytes=159744 frees=0 freed_bytes=0 live_blocks=13 live_bytes=159744
// expect: function=map_and_unmap api=mmap allocations=17 allocated_bytes=348160 frees=17 freed_bytes=348160 live_blocks=0 live_bytes=0
// expect: function=map_odd_length api=mmap allocations=5 allocated_bytes=61440 frees=2 freed_bytes=24576 live_blocks=3 live_bytes=36864
// expect: function=punch_hole api=mmap allocations=1 allocated_bytes=40960 frees=0 freed_bytes=16384 live_blocks=1 live_bytes=24576
// expect: function=map_neighbour api=mmap allocations=2 allocated_bytes=57344 frees=0 freed_bytes=28672 live_blocks=2 live_bytes=28672
// expect: function=map_under api=mmap allocations=1 allocated_bytes=32768 frees=0 freed_bytes=12288 live_blocks=1 live_bytes=20480
// expect: function=map_over api=mmap allocations=1 allocated_bytes=12288 frees=0 freed_bytes=0 live_blocks=1 live_bytes=12288
// expect: function=map_to_be_covered api=mmap allocations=1 allocated_bytes=8192 frees=1 freed_bytes=8192 live_blocks=0 live_bytes=0
// expect: function=cover_exactly api=mmap allocations=1 allocated_bytes=16384 frees=0 freed_bytes=0 live_blocks=1 live_bytes=16384
// expect: function=map_to_move api=mmap allocations=1 allocated_bytes=24576 frees=0 freed_bytes=0 live_blocks=1 live_bytes=24576
// expect: function=move_and_grow api=mremap allocations=1 allocated_bytes=40960 frees=0 freed_bytes=0 live_blocks=1 live_bytes=40960
// expect: function=map_then_shrink api=mmap allocations=1 allocated_bytes=36864 frees=0 freed_bytes=28672 live_blocks=1 live_bytes=8192
// expect: function=moved_and_unmapped api=mmap allocations=3 allocated_bytes=61440 frees=3 freed_bytes=61440 live_blocks=0 live_bytes=0
// expect: function=survive_failures api=mmap allocations=2 allocated_bytes=28672 frees=0 freed_bytes=0 live_blocks=2 live_bytes=28672
// expect: function=map_shared api=mmap allocations=1 allocated_bytes=45056 frees=0 freed_bytes=0 live_blocks=1 live_bytes=45056
// expect: function=map_file api=mmap allocations=1 allocated_bytes=4096 frees=0 freed_bytes=0 live_blocks=1 live_bytes=4096
// expect: function=move_break api=brk allocations=3 allocated_bytes=122880 frees=1 freed_bytes=53248 live_blocks=2 live_bytes=69632
// absent: function=reserve_only
#include "memtrace_test.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>

enum { PAGE = 4096 };

// A place in the reservation, so that neighbours are known and nothing else comes between.
static char *room;

// A macro, so that the caller itself is the function that maps.
#define MAP_PAGES(at, bytes)                                                                       \
    ({                                                                                             \
        int flags_ = MAP_PRIVATE | MAP_ANONYMOUS | ((at) != NULL ? MAP_FIXED : 0);                 \
        char *start_ = mmap((at), (bytes), PROT_READ | PROT_WRITE, flags_, -1, 0);                 \
        require(start_ != MAP_FAILED, 10);                                                         \
        start_[0] = 1;                                                                             \
        start_;                                                                                    \
    })

// Address space only is not memory.
NOINLINE static void reserve_only(void) {
    room = mmap(NULL, 256u << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    require(room != MAP_FAILED, 11);
}

NOINLINE static void map_and_leak(void) {
    for (int i = 0; i < 13; i++) {
        keep(MAP_PAGES(NULL, 3 * PAGE));
    }
}

NOINLINE static void map_and_unmap(void) {
    for (int i = 0; i < 17; i++) {
        char *start = MAP_PAGES(NULL, 5 * PAGE);
        require(munmap(start, 5 * PAGE) == 0, 12);
    }
}

// 10,001 bytes are three pages, for mmap and for munmap.
NOINLINE static void map_odd_length(void) {
    for (int i = 0; i < 5; i++) {
        char *start = MAP_PAGES(NULL, 10001);
        if (i < 2) {
            require(munmap(start, 10001) == 0, 13);
        }
    }
}

// Ten pages without the middle four.
NOINLINE static void punch_hole(void) {
    char *start = MAP_PAGES(NULL, 10 * PAGE);
    require(munmap(start + 3 * PAGE, 4 * PAGE) == 0, 14);
}

NOINLINE static void map_neighbour(size_t page) {
    keep(MAP_PAGES(room + page * PAGE, 7 * PAGE));
}

// One munmap takes the end of the first and the start of the second.
NOINLINE static void unmap_across(void) {
    map_neighbour(100);
    map_neighbour(107);
    require(munmap(room + 103 * PAGE, 7 * PAGE) == 0, 15);
}

NOINLINE static void map_under(void) {
    keep(MAP_PAGES(room + 200 * PAGE, 8 * PAGE));
}

NOINLINE static void map_over(void) {
    keep(MAP_PAGES(room + 202 * PAGE, 3 * PAGE));
}

NOINLINE static void map_to_be_covered(void) {
    keep(MAP_PAGES(room + 301 * PAGE, 2 * PAGE));
}

NOINLINE static void cover_exactly(void) {
    keep(MAP_PAGES(room + 300 * PAGE, 4 * PAGE));
}

NOINLINE static char *map_to_move(void) {
    char *start = MAP_PAGES(NULL, 6 * PAGE);
    keep(start);
    return start;
}

NOINLINE static void move_and_grow(char *start) {
    int flags = MREMAP_MAYMOVE | MREMAP_FIXED;
    char *moved = mremap(start, 6 * PAGE, 16 * PAGE, flags, room + 400 * PAGE);
    require(moved == room + 400 * PAGE && moved[0] == 1, 16);
}

NOINLINE static void map_then_shrink(void) {
    char *start = MAP_PAGES(NULL, 9 * PAGE);
    require(mremap(start, 9 * PAGE, 2 * PAGE, 0) == start, 17);
}

// Unmapped where it has come to lie: the old address must be forgotten, the new one known. All
// places are fixed: the kernel might map the next one into the hole that the last one left.
NOINLINE static void moved_and_unmapped(void) {
    for (int i = 0; i < 3; i++) {
        char *start = MAP_PAGES(room + (500 + i * 20) * PAGE, 5 * PAGE);
        int flags = MREMAP_MAYMOVE | MREMAP_FIXED;
        char *moved = mremap(start, 5 * PAGE, 5 * PAGE, flags, start + 10 * PAGE);
        require(moved == start + 10 * PAGE, 18);
        require(munmap(moved, 5 * PAGE) == 0, 19);
    }
}

// Calls that fail change nothing: no room to grow in place, a crooked address, no such range,
// and far too much.
NOINLINE static void survive_failures(void) {
    char *first = MAP_PAGES(room + 600 * PAGE, 4 * PAGE);
    keep(MAP_PAGES(room + 604 * PAGE, 3 * PAGE));
    require(mremap(first, 4 * PAGE, 8 * PAGE, 0) == MAP_FAILED && errno == ENOMEM, 20);
    require(munmap(first + 1, 4 * PAGE) == -1 && errno == EINVAL, 21);
    require(mmap(NULL, opaque((size_t)1 << 60), PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) ==
                MAP_FAILED,
            22);
    require(mremap(first, 4 * PAGE, opaque((size_t)1 << 60), MREMAP_MAYMOVE) == MAP_FAILED, 23);
}

NOINLINE static void map_shared(void) {
    char *start =
        mmap(NULL, 11 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    require(start != MAP_FAILED, 24);
}

NOINLINE static void map_file(void) {
    int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    require(file >= 0, 25);
    require(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, file, 0) != MAP_FAILED, 26);
    require(close(file) == 0, 27);
}

// Three times ten pages up, then thirteen pages down: all of the last and three of the second.
NOINLINE static void move_break(void) {
    for (int i = 0; i < 3; i++) {
        require(sbrk(10 * PAGE) != (void *)-1, 28);
    }
    require(sbrk(-13 * PAGE) != (void *)-1, 29);
}

int main(int argc, char **argv) {
    rendezvous(argc, argv, "ready");
    reserve_only();
    map_and_leak();
    map_and_unmap();
    map_odd_length();
    punch_hole();
    unmap_across();
    map_under();
    map_over();
    map_to_be_covered();
    cover_exactly();
    move_and_grow(map_to_move());
    map_then_shrink();
    moved_and_unmapped();
    survive_failures();
    map_shared();
    map_file();
    move_break();
    rendezvous(argc, argv, "done");
    return 0;
}
