// calloc: the size is the product, and a product that overflows allocates nothing.
//
// expect: function=leak_arrays api=calloc allocations=101 allocated_bytes=73023 frees=0 freed_bytes=0 live_blocks=101 live_bytes=73023
// expect: function=free_arrays api=calloc allocations=83 allocated_bytes=24983 frees=83 freed_bytes=24983 live_blocks=0 live_bytes=0
// expect: function=large_array api=calloc allocations=1 allocated_bytes=5000077 frees=0 freed_bytes=0 live_blocks=1 live_bytes=5000077
// absent: function=overflowing_array
// totals: allocations=185 allocated_bytes=5098083 frees=83 freed_bytes=24983 live_blocks=102 live_bytes=5073100
#include "memtrace_test.h"
#include <stdint.h>

NOINLINE static void leak_arrays(void) {
    for (int i = 0; i < 101; i++) {
        keep(calloc(3, 241));
    }
}

NOINLINE static void free_arrays(void) {
    for (int i = 0; i < 83; i++) {
        void *block = calloc(7, 43);
        keep(block);
        free(block);
    }
}

NOINLINE static void large_array(void) {
    keep(calloc(5000077, 1));
}

NOINLINE static void overflowing_array(void) {
    require(calloc(opaque(SIZE_MAX / 2), opaque(3)) == NULL, 12);
    keep(NULL);
}

int main(int argc, char **argv) {
    rendezvous(argc, argv, "ready");
    leak_arrays();
    free_arrays();
    large_array();
    overflowing_array();
    rendezvous(argc, argv, "done");
    return 0;
}
