// Sizes beyond 32 bits: 5 GiB and two pages, of which 4.5 GiB are unmapped again.
//
// Nothing of it is touched, so it costs no memory.
//
// expect: function=map_five_gib api=mmap allocations=1 allocated_bytes=5368717312 frees=0 freed_bytes=4831838208 live_blocks=1 live_bytes=536879104
// expect: function=map_six_gib api=mmap allocations=1 allocated_bytes=6442450944 frees=1 freed_bytes=6442450944 live_blocks=0 live_bytes=0
// expect: function=grow_to_nine_gib api=mmap allocations=1 allocated_bytes=4096 frees=0 freed_bytes=0 live_blocks=1 live_bytes=4096
// expect: function=grow_to_nine_gib api=mremap allocations=1 allocated_bytes=9663676416 frees=0 freed_bytes=0 live_blocks=1 live_bytes=9663676416
// absent: function=reserve_seven_gib
#include "memtrace_test.h"
#include <sys/mman.h>

#define GIB ((size_t)1 << 30)
#define LAZY (MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)

NOINLINE static void map_five_gib(void) {
    char *start = mmap(NULL, 5 * GIB + 8192, PROT_READ | PROT_WRITE, LAZY, -1, 0);
    require(start != MAP_FAILED, 10);
    require(munmap(start + 4096, 4 * GIB + GIB / 2) == 0, 11);
}

NOINLINE static void map_six_gib(void) {
    char *start = mmap(NULL, 6 * GIB, PROT_READ | PROT_WRITE, LAZY, -1, 0);
    require(start != MAP_FAILED, 12);
    require(munmap(start, 6 * GIB) == 0, 13);
}

NOINLINE static void grow_to_nine_gib(void) {
    char *start = mmap(NULL, 4096, PROT_READ | PROT_WRITE, LAZY, -1, 0);
    require(start != MAP_FAILED, 14);
    require(mremap(start, 4096, 9 * GIB + 4096, MREMAP_MAYMOVE) != MAP_FAILED, 15);
}

NOINLINE static void reserve_seven_gib(void) {
    require(mmap(NULL, 7 * GIB, PROT_NONE, LAZY, -1, 0) != MAP_FAILED, 16);
}

int main(int argc, char **argv) {
    rendezvous(argc, argv, "ready");
    map_five_gib();
    map_six_gib();
    grow_to_nine_gib();
    reserve_seven_gib();
    rendezvous(argc, argv, "done");
    return 0;
}
