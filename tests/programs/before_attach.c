// What was allocated before memtrace came is not zero, and freeing it is not an error.
//
// Only meant to be attached to: 1,013 blocks of 4,099 bytes are allocated before `ready` and
// freed after it. They count as frees of unknown blocks.
//
// expect: function=after_ready api=malloc allocations=89 allocated_bytes=17711 frees=0 freed_bytes=0 live_blocks=89 live_bytes=17711
// absent: function=before_ready
// totals: allocations=89 allocated_bytes=17711 frees=0 freed_bytes=0 live_blocks=89 live_bytes=17711
#include "memtrace_test.h"

static void *old[1013];

NOINLINE static void before_ready(void) {
    for (int i = 0; i < 1013; i++) {
        old[i] = malloc(4099);
        memset(old[i], 1, 4099);
    }
}

NOINLINE static void free_old(void) {
    for (int i = 0; i < 1013; i++) {
        free(old[i]);
    }
}

NOINLINE static void after_ready(void) {
    for (int i = 0; i < 89; i++) {
        keep(malloc(199));
    }
}

int main(int argc, char **argv) {
    before_ready();
    rendezvous(argc, argv, "ready");
    free_old();
    after_ready();
    rendezvous(argc, argv, "done");
    return 0;
}
