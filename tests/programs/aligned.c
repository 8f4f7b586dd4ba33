// Every way to ask for alignment, and reallocarray. Sizes count as asked for, not as rounded.
//
// In glibc aligned_alloc and memalign are one function under two names.
//
// expect: function=use_posix_memalign api=posix_memalign allocations=23 allocated_bytes=6969 frees=11 freed_bytes=3333 live_blocks=12 live_bytes=3636
// expect: function=use_aligned_alloc api=aligned_alloc|memalign allocations=29 allocated_bytes=11136 frees=0 freed_bytes=0 live_blocks=29 live_bytes=11136
// expect: function=use_memalign api=aligned_alloc|memalign allocations=31 allocated_bytes=3131 frees=31 freed_bytes=3131 live_blocks=0 live_bytes=0
// expect: function=use_valloc api=valloc allocations=5 allocated_bytes=3535 frees=0 freed_bytes=0 live_blocks=5 live_bytes=3535
// expect: function=use_pvalloc api=pvalloc allocations=3 allocated_bytes=15003 frees=0 freed_bytes=0 live_blocks=3 live_bytes=15003
// expect: function=use_reallocarray api=reallocarray allocations=37 allocated_bytes=32338 frees=36 freed_bytes=30636 live_blocks=1 live_bytes=1702
// expect: function=overflow_reallocarray api=malloc allocations=19 allocated_bytes=1957 frees=0 freed_bytes=0 live_blocks=19 live_bytes=1957
// absent: function=fail_posix_memalign
// totals: allocations=147 allocated_bytes=74069 frees=78 freed_bytes=37100 live_blocks=69 live_bytes=36969
#include "memtrace_test.h"
#include <errno.h>
#include <malloc.h>
#include <stdint.h>

NOINLINE static void use_posix_memalign(void) {
    for (int i = 0; i < 23; i++) {
        void *block = NULL;
        require(posix_memalign(&block, 256, 303) == 0, 12);
        keep(block);
        if (i < 11) {
            free(block);
        }
    }
}

// An alignment that is no power of two, then a size that cannot be had.
NOINLINE static void fail_posix_memalign(void) {
    void *block = NULL;
    require(posix_memalign(&block, opaque(24), 303) == EINVAL, 13);
    require(posix_memalign(&block, 64, opaque(PTRDIFF_MAX - 4096)) == ENOMEM, 14);
    keep(block);
}

NOINLINE static void use_aligned_alloc(void) {
    for (int i = 0; i < 29; i++) {
        keep(aligned_alloc(128, 384));
    }
}

NOINLINE static void use_memalign(void) {
    for (int i = 0; i < 31; i++) {
        void *block = memalign(1024, 101);
        keep(block);
        free(block);
    }
}

NOINLINE static void use_valloc(void) {
    for (int i = 0; i < 5; i++) {
        keep(valloc(707));
    }
}

NOINLINE static void use_pvalloc(void) {
    for (int i = 0; i < 3; i++) {
        keep(pvalloc(5001));
    }
}

// 1 × 46, 2 × 46, … 37 × 46, the first from NULL.
NOINLINE static void use_reallocarray(void) {
    void *block = NULL;
    for (size_t i = 1; i <= 37; i++) {
        block = reallocarray(block, i, 46);
        keep(block);
    }
}

NOINLINE static void overflow_reallocarray(void) {
    for (int i = 0; i < 19; i++) {
        void *block = malloc(103);
        keep(block);
        require(reallocarray(block, opaque(SIZE_MAX / 4), opaque(5)) == NULL, 15);
        require(reallocarray(block, opaque(PTRDIFF_MAX / 4), opaque(3)) == NULL, 16);
        keep(block);
    }
}

int main(int argc, char **argv) {
    rendezvous(argc, argv, "ready");
    use_posix_memalign();
    fail_posix_memalign();
    use_aligned_alloc();
    use_memalign();
    use_valloc();
    use_pvalloc();
    use_reallocarray();
    overflow_reallocarray();
    rendezvous(argc, argv, "done");
    return 0;
}
