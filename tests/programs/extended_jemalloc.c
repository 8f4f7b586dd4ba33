// jemalloc's extended functions: the size first, the block first, flags behind.
//
// expect: function=use_mallocx api=malloc allocations=83 allocated_bytes=9047 frees=83 freed_bytes=9047 live_blocks=0 live_bytes=0
// expect: function=use_rallocx api=malloc|realloc allocations=12 allocated_bytes=3783 frees=11 freed_bytes=3341 live_blocks=1 live_bytes=442
// expect: function=use_flags api=malloc allocations=21 allocated_bytes=4200 frees=0 freed_bytes=0 live_blocks=21 live_bytes=4200
// totals: allocations=116 allocated_bytes=17030 frees=94 freed_bytes=12388 live_blocks=22 live_bytes=4642
#include "memtrace_test.h"
#include <jemalloc/jemalloc.h>

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

int main(int argc, char **argv) {
    rendezvous(argc, argv, "ready");
    use_mallocx();
    use_rallocx();
    use_flags();
    rendezvous(argc, argv, "done");
    return 0;
}
