// The next build of build_before.c: all lines have moved, a function was renamed, one allocates
// twice as much.
//
// expect: function=stays api=malloc allocations=30 allocated_bytes=3030 frees=0 freed_bytes=0 live_blocks=30 live_bytes=3030
// expect: function=grows api=malloc allocations=20 allocated_bytes=20020 frees=0 freed_bytes=0 live_blocks=20 live_bytes=20020
// expect: function=new_name api=malloc allocations=5 allocated_bytes=2515 frees=0 freed_bytes=0 live_blocks=5 live_bytes=2515
// totals: allocations=55 allocated_bytes=25565 frees=0 freed_bytes=0 live_blocks=55 live_bytes=25565 peak_live_bytes=25565 temporary_allocations=0
#include "memtrace_test.h"

NOINLINE static void new_name(void) {
    for (int i = 0; i < 5; i++) {
        keep(malloc(503));
    }
}

NOINLINE static void grows(void) {
    for (int i = 0; i < 20; i++) {
        keep(malloc(1001));
    }
}

NOINLINE static void stays(void) {
    for (int i = 0; i < 30; i++) {
        keep(malloc(101));
    }
}

int main(int argc, char **argv) {
    rendezvous(argc, argv, "ready");
    stays();
    grows();
    new_name();
    rendezvous(argc, argv, "done");
    return 0;
}
