// More call paths in turn than are remembered, twice over, and then a few of them again and again.
//
// expect: function=leaf api=malloc allocations=132768 allocated_bytes=5310720 frees=132768 freed_bytes=5310720 live_blocks=0 live_bytes=0
// totals: allocations=132768 allocated_bytes=5310720 frees=132768 freed_bytes=5310720 live_blocks=0 live_bytes=0 peak_live_bytes=40 temporary_allocations=132768
#include "memtrace_test.h"

enum { LEVELS = 14, PATHS = 1 << LEVELS, FEW = 20, ROUNDS = 5000 };

NOINLINE static void leaf(void) {
    void *block = malloc(40);
    keep(block);
    free(block);
}

static void descend(unsigned path, unsigned levels);

NOINLINE static void left(unsigned path, unsigned levels) {
    descend(path, levels);
    keep(&path);
}

NOINLINE static void right(unsigned path, unsigned levels) {
    descend(path, levels);
    keep(&levels);
}

// Every bit of `path` is a call.
NOINLINE static void descend(unsigned path, unsigned levels) {
    if (levels == 0) {
        leaf();
    } else if (path & 1) {
        right(path >> 1, levels - 1);
    } else {
        left(path >> 1, levels - 1);
    }
    keep(&path);
}

int main(int argc, char **argv) {
    rendezvous(argc, argv, "ready");
    for (unsigned i = 0; i < 2 * PATHS; i++) {
        descend(i % PATHS, LEVELS);
    }
    for (unsigned i = 0; i < FEW * ROUNDS; i++) {
        descend(i % FEW, LEVELS);
    }
    rendezvous(argc, argv, "done");
    return 0;
}
