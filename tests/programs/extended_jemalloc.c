// jemalloc's extended functions: the size first, the block first, flags behind.
//
// With WITH_PREFIX as a jemalloc has them that was configured with the prefix `je_`.
//
// expect: function=use_mallocx api=malloc allocations=83 allocated_bytes=9047 frees=83 freed_bytes=9047 live_blocks=0 live_bytes=0
// expect: function=use_rallocx api=malloc|realloc allocations=12 allocated_bytes=3783 frees=11 freed_bytes=3341 live_blocks=1 live_bytes=442
// expect: function=use_flags api=malloc allocations=21 allocated_bytes=4200 frees=0 freed_bytes=0 live_blocks=21 live_bytes=4200
// expect: function=use_xallocx api=malloc|realloc allocations=85 allocated_bytes=1338172 frees=68 freed_bytes=1032172 live_blocks=17 live_bytes=306000
// totals: allocations=201 allocated_bytes=1355202 frees=162 freed_bytes=1044560 live_blocks=39 live_bytes=310642
#include "memtrace_test.h"
#include <jemalloc/jemalloc.h>

#ifdef WITH_PREFIX
#define mallocx je_mallocx
#define rallocx je_rallocx
#define xallocx je_xallocx
#define dallocx je_dallocx
#define sdallocx je_sdallocx
#endif

NOINLINE static void use_mallocx(void) {
    for (int i = 0; i < 83; i++) {
        void *block = mallocx(109, 0);
        keep(block);
        if (i < 40) {
            dallocx(block, 0);
        } else {
            sdallocx(block, 109, 0);
        }
    }
}

NOINLINE static void use_rallocx(void) {
    void *block = mallocx(17, 0);
    for (size_t i = 1; i <= 11; i++) {
        block = rallocx(block, i == 11 ? 442 : 60 * i + (i == 10 ? 24 : 0), 0);
        keep(block);
    }
}

NOINLINE static void use_flags(void) {
    for (int i = 0; i < 21; i++) {
        keep(mallocx(200, MALLOCX_ZERO | MALLOCX_ALIGN(64)));
    }
}

// Grows and shrinks in place what can be, and leaves a small block alone.
NOINLINE static void use_xallocx(void) {
    for (int i = 0; i < 17; i++) {
        void *block = mallocx(20000, 0);
        keep(block);
        // Within the size class of 20480.
        require(xallocx(block, 20400, 0, 0) >= 20400, 20);
        require(xallocx(block, 20000, 300, 0) >= 20000, 21);
        require(xallocx(block, 18000, 0, 0) >= 18000, 22);
        void *small = mallocx(16, 0);
        keep(small);
        require(xallocx(small, 4096, 0, 0) < 4096, 23);
        dallocx(small, 0);
    }
}

int main(int argc, char **argv) {
    rendezvous(argc, argv, "ready");
    use_mallocx();
    use_rallocx();
    use_flags();
    use_xallocx();
    rendezvous(argc, argv, "done");
    return 0;
}
