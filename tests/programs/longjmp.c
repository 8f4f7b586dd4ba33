// longjmp past functions that have allocated, out of deep and of shallow calls.
//
// expect: function=allocate_then_jump api=malloc allocations=67 allocated_bytes=7571 frees=0 freed_bytes=0 live_blocks=67 live_bytes=7571
// expect: function=go_deeper api=malloc allocations=670 allocated_bytes=11390 frees=0 freed_bytes=0 live_blocks=670 live_bytes=11390
// expect: function=after_the_jump api=malloc allocations=67 allocated_bytes=8777 frees=67 freed_bytes=8777 live_blocks=0 live_bytes=0
// totals: allocations=804 allocated_bytes=27738 frees=67 freed_bytes=8777 live_blocks=737 live_bytes=18961
#include "memtrace_test.h"
#include <setjmp.h>

static jmp_buf home;

NOINLINE static void allocate_then_jump(void) {
    keep(malloc(113));
    longjmp(home, 1);
}

NOINLINE static void go_deeper(int level) {
    keep(malloc(17));
    if (level == 10) {
        allocate_then_jump();
    } else {
        go_deeper(level + 1);
    }
    keep(NULL);
}

NOINLINE static void after_the_jump(void) {
    void *block = malloc(131);
    keep(block);
    free(block);
}

int main(int argc, char **argv) {
    rendezvous(argc, argv, "ready");
    for (volatile int i = 0; i < 67; i = i + 1) {
        if (setjmp(home) == 0) {
            go_deeper(1);
        }
        after_the_jump();
    }
    rendezvous(argc, argv, "done");
    return 0;
}
