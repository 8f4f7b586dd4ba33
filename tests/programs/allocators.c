// Every function of C that gives or takes memory, for each allocator that defines them.
//
// Which of two names for one function an allocator's library is probed by is up to it.
//
// expect: function=use_malloc api=malloc allocations=101 allocated_bytes=7373 frees=50 freed_bytes=3650 live_blocks=51 live_bytes=3723
// expect: function=use_calloc api=calloc allocations=31 allocated_bytes=4805 frees=31 freed_bytes=4805 live_blocks=0 live_bytes=0
// expect: function=use_realloc api=malloc allocations=1 allocated_bytes=29 frees=1 freed_bytes=29 live_blocks=0 live_bytes=0
// expect: function=use_realloc api=realloc allocations=19 allocated_bytes=6061 frees=19 freed_bytes=6061 live_blocks=0 live_bytes=0
// expect: function=use_posix_memalign api=posix_memalign allocations=23 allocated_bytes=2300 frees=23 freed_bytes=2300 live_blocks=0 live_bytes=0
// expect: function=use_aligned_alloc api=aligned_alloc|memalign allocations=19 allocated_bytes=4864 frees=0 freed_bytes=0 live_blocks=19 live_bytes=4864
// expect: function=use_memalign api=memalign|aligned_alloc allocations=17 allocated_bytes=2873 frees=17 freed_bytes=2873 live_blocks=0 live_bytes=0
// expect: function=use_valloc api=valloc allocations=7 allocated_bytes=700 frees=7 freed_bytes=700 live_blocks=0 live_bytes=0
// totals: allocations=218 allocated_bytes=29005 frees=148 freed_bytes=20418 live_blocks=70 live_bytes=8587
#include "memtrace_test.h"
#include <malloc.h>

NOINLINE static void use_malloc(void) {
    for (int i = 0; i < 101; i++) {
        void *block = malloc(73);
        keep(block);
        if (i < 50) {
            free(block);
        }
    }
    free(NULL);
    require(malloc(opaque((size_t)1 << 60)) == NULL, 11);
}

NOINLINE static void use_calloc(void) {
    for (int i = 0; i < 31; i++) {
        void *block = calloc(5, 31);
        keep(block);
        free(block);
    }
}

NOINLINE static void use_realloc(void) {
    void *block = NULL;
    for (size_t i = 1; i <= 20; i++) {
        block = realloc(block, 29 * i);
        keep(block);
    }
    free(block);
}

NOINLINE static void use_posix_memalign(void) {
    for (int i = 0; i < 23; i++) {
        void *block = NULL;
        require(posix_memalign(&block, 64, 100) == 0, 12);
        keep(block);
        free(block);
    }
}

NOINLINE static void use_aligned_alloc(void) {
    for (int i = 0; i < 19; i++) {
        keep(aligned_alloc(128, 256));
    }
}

NOINLINE static void use_memalign(void) {
    for (int i = 0; i < 17; i++) {
        void *block = memalign(256, 169);
        keep(block);
        free(block);
    }
}

NOINLINE static void use_valloc(void) {
    for (int i = 0; i < 7; i++) {
        void *block = valloc(100);
        keep(block);
        free(block);
    }
}

int main(int argc, char **argv) {
    rendezvous(argc, argv, "ready");
    use_malloc();
    use_calloc();
    use_realloc();
    use_posix_memalign();
    use_aligned_alloc();
    use_memalign();
    use_valloc();
    rendezvous(argc, argv, "done");
    return 0;
}
