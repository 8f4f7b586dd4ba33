// Blocks that are never freed, blocks that are, and one leak three calls deep.
//
// expect: function=leak_blocks api=malloc allocations=1009 allocated_bytes=138233 frees=0 freed_bytes=0 live_blocks=1009 live_bytes=138233
// expect: function=free_at_once api=malloc allocations=503 allocated_bytes=126253 frees=503 freed_bytes=126253 live_blocks=0 live_bytes=0
// expect: function=hold_then_free api=malloc allocations=211 allocated_bytes=83767 frees=211 freed_bytes=83767 live_blocks=0 live_bytes=0
// expect: function=leak_inside api=malloc allocations=11 allocated_bytes=11231 frees=0 freed_bytes=0 live_blocks=11 live_bytes=11231
// expect: within=outer_caller api=malloc allocations=11 allocated_bytes=11231 frees=0 freed_bytes=0 live_blocks=11 live_bytes=11231
// expect: within=main api=malloc allocations=1734 allocated_bytes=359484 frees=714 freed_bytes=210020 live_blocks=1020 live_bytes=149464
// totals: allocations=1734 allocated_bytes=359484 frees=714 freed_bytes=210020 live_blocks=1020 live_bytes=149464 peak_live_bytes=222000 temporary_allocations=505
#include "memtrace_test.h"

NOINLINE static void leak_blocks(void) {
    for (int i = 0; i < 1009; i++) {
        keep(malloc(137));
    }
}

// Each is freed before the next is allocated: 503 temporary allocations.
NOINLINE static void free_at_once(void) {
    for (int i = 0; i < 503; i++) {
        void *block = malloc(251);
        keep(block);
        free(block);
    }
}

// The peak: 138,233 bytes leaked so far and 211 × 397. The last two are freed last, with one and no
// allocation between, and are temporary too.
NOINLINE static void hold_then_free(void) {
    void *blocks[211];
    for (int i = 0; i < 211; i++) {
        blocks[i] = malloc(397);
    }
    for (int i = 0; i < 211; i++) {
        free(blocks[i]);
    }
    free(NULL);
}

NOINLINE static void leak_inside(void) {
    keep(malloc(1021));
}

NOINLINE static void middle_caller(int rounds) {
    for (int i = 0; i < rounds; i++) {
        leak_inside();
        keep(NULL);
    }
}

NOINLINE static void outer_caller(void) {
    middle_caller(11);
    keep(NULL);
}

int main(int argc, char **argv) {
    rendezvous(argc, argv, "ready");
    leak_blocks();
    free_at_once();
    hold_then_free();
    outer_caller();
    rendezvous(argc, argv, "done");
    return 0;
}
