// realloc that grows, shrinks, fails, starts from NULL and ends at zero; and blocks of no size.
//
// A realloc that succeeds frees the old block and allocates the new one, whether it moved or
// not. One that fails changes nothing. `realloc(NULL, n)` is `malloc(n)`, and `realloc(p, 0)` of glibc
// frees `p`.
//
// expect: function=grow_chain api=malloc allocations=1 allocated_bytes=17 frees=1 freed_bytes=17 live_blocks=0 live_bytes=0
// expect: function=grow_chain api=realloc allocations=59 allocated_bytes=31093 frees=59 freed_bytes=31093 live_blocks=0 live_bytes=0
// expect: function=shrink_chain api=malloc allocations=1 allocated_bytes=9973 frees=1 freed_bytes=9973 live_blocks=0 live_bytes=0
// expect: function=shrink_chain api=realloc allocations=9 allocated_bytes=44757 frees=8 freed_bytes=43784 live_blocks=1 live_bytes=973
// expect: function=fail_to_grow api=malloc allocations=13 allocated_bytes=4303 frees=0 freed_bytes=0 live_blocks=13 live_bytes=4303
// expect: function=shrink_to_nothing api=malloc allocations=17 allocated_bytes=3043 frees=17 freed_bytes=3043 live_blocks=0 live_bytes=0
// expect: function=leak_empty_blocks api=malloc allocations=7 allocated_bytes=0 frees=0 freed_bytes=0 live_blocks=7 live_bytes=0
// expect: function=grow_large api=malloc allocations=1 allocated_bytes=300007 frees=1 freed_bytes=300007 live_blocks=0 live_bytes=0
// expect: function=grow_large api=realloc allocations=3 allocated_bytes=6600042 frees=2 freed_bytes=3000021 live_blocks=1 live_bytes=3600021
// totals: allocations=111 allocated_bytes=6993235 frees=89 freed_bytes=3387938 live_blocks=22 live_bytes=3605297
#include "memtrace_test.h"
#include <stdint.h>

// 17, 34, … 1,020: the first one through realloc(NULL, 17).
NOINLINE static void grow_chain(void) {
    void *block = NULL;
    for (size_t i = 1; i <= 60; i++) {
        block = realloc(block, 17 * i);
        keep(block);
    }
    free(block);
}

// 9,973 down to 973 in steps of 1,000.
NOINLINE static void shrink_chain(void) {
    void *block = malloc(9973);
    keep(block);
    for (size_t i = 1; i <= 9; i++) {
        block = realloc(block, 9973 - 1000 * i);
        keep(block);
    }
}

// Every one of the 13 blocks survives the attempt to make it impossibly large.
NOINLINE static void fail_to_grow(void) {
    for (int i = 0; i < 13; i++) {
        void *block = malloc(331);
        keep(block);
        require(realloc(block, opaque(PTRDIFF_MAX - 4096)) == NULL, 12);
        require(realloc(block, opaque(SIZE_MAX)) == NULL, 13);
        keep(block);
    }
}

NOINLINE static void shrink_to_nothing(void) {
    for (int i = 0; i < 17; i++) {
        void *block = malloc(179);
        keep(block);
        require(realloc(block, opaque(0)) == NULL, 14);
    }
}

NOINLINE static void leak_empty_blocks(void) {
    for (int i = 0; i < 7; i++) {
        keep(malloc(opaque(0)));
    }
}

// Large blocks are mappings of their own, which glibc grows with mremap.
NOINLINE static void grow_large(void) {
    void *block = malloc(300007);
    keep(block);
    block = realloc(block, 1200007);
    keep(block);
    block = realloc(block, 1800014);
    keep(block);
    block = realloc(block, 3600021);
    keep(block);
}

int main(int argc, char **argv) {
    rendezvous(argc, argv, "ready");
    grow_chain();
    shrink_chain();
    fail_to_grow();
    shrink_to_nothing();
    leak_empty_blocks();
    grow_large();
    rendezvous(argc, argv, "done");
    return 0;
}
