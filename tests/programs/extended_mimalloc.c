// mimalloc's own functions, one of which makes a block larger where it is, or leaves it alone.
//
// expect: function=use_expand api=malloc|realloc allocations=46 allocated_bytes=46460 frees=23 freed_bytes=23000 live_blocks=23 live_bytes=23460
// expect: function=use_zalloc api=calloc allocations=31 allocated_bytes=9300 frees=31 freed_bytes=9300 live_blocks=0 live_bytes=0
// expect: function=use_aligned api=aligned_alloc allocations=29 allocated_bytes=5800 frees=29 freed_bytes=5800 live_blocks=0 live_bytes=0
// totals: allocations=106 allocated_bytes=61560 frees=83 freed_bytes=38100 live_blocks=23 live_bytes=23460
#include "memtrace_test.h"
#include <mimalloc.h>

NOINLINE static void use_expand(void) {
    for (int i = 0; i < 23; i++) {
        void *block = mi_malloc(1000);
        keep(block);
        // Within the size class of 1024.
        require(mi_expand(block, 1020) == block, 20);
        require(mi_expand(block, 5000) == NULL, 21);
    }
}

NOINLINE static void use_zalloc(void) {
    for (int i = 0; i < 31; i++) {
        void *block = mi_zalloc(300);
        keep(block);
        mi_free(block);
    }
}

NOINLINE static void use_aligned(void) {
    for (int i = 0; i < 29; i++) {
        void *block = mi_malloc_aligned(200, 64);
        keep(block);
        mi_free_size_aligned(block, 200, 64);
    }
}

int main(int argc, char **argv) {
    rendezvous(argc, argv, "ready");
    use_expand();
    use_zalloc();
    use_aligned();
    rendezvous(argc, argv, "done");
    return 0;
}
