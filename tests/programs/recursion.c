// 200 frames of one function: the stack is complete, and a recursive function counts once.
//
// `descend` allocates one block at each of its 200 levels, `allocate_at_the_bottom` 31 blocks
// under all of them.
//
// expect: function=descend api=malloc allocations=200 allocated_bytes=3800 frees=0 freed_bytes=0 live_blocks=200 live_bytes=3800 depth_min=1 depth_max=200
// expect: function=allocate_at_the_bottom api=malloc allocations=31 allocated_bytes=2387 frees=0 freed_bytes=0 live_blocks=31 live_bytes=2387
// expect: within=descend api=malloc allocations=231 allocated_bytes=6187 frees=0 freed_bytes=0 live_blocks=231 live_bytes=6187 depth_min=1 depth_max=200
// totals: allocations=231 allocated_bytes=6187 frees=0 freed_bytes=0 live_blocks=231 live_bytes=6187 peak_live_bytes=6187 temporary_allocations=0
#include "memtrace_test.h"

NOINLINE static void allocate_at_the_bottom(void) {
    for (int i = 0; i < 31; i++) {
        keep(malloc(77));
    }
}

// Frames of different sizes at odd and even levels, so that no fixed stride leads upwards.
NOINLINE static void descend(int level) {
    char *room = __builtin_alloca(16 + (size_t)(level & 7) * 24);
    keep(room);
    keep(malloc(19));
    if (level == 200) {
        allocate_at_the_bottom();
    } else {
        descend(level + 1);
    }
    keep(room);
}

int main(int argc, char **argv) {
    rendezvous(argc, argv, "ready");
    descend(1);
    rendezvous(argc, argv, "done");
    return 0;
}
