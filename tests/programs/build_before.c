// A program of which build_after.c is the next build.
//
// expect: function=stays api=malloc allocations=30 allocated_bytes=3030 frees=0 freed_bytes=0 live_blocks=30 live_bytes=3030
// expect: function=grows api=malloc allocations=10 allocated_bytes=10010 frees=0 freed_bytes=0 live_blocks=10 live_bytes=10010
// expect: function=old_name api=malloc allocations=5 allocated_bytes=2515 frees=0 freed_bytes=0 live_blocks=5 live_bytes=2515
// totals: allocations=45 allocated_bytes=15555 frees=0 freed_bytes=0 live_blocks=45 live_bytes=15555 peak_live_bytes=15555 temporary_allocations=0
#include "memtrace_test.h"

NOINLINE static void stays(void) {
    for (int i = 0; i < 30; i++) {
        keep(malloc(101));
    }
}

NOINLINE static void grows(void) {
    for (int i = 0; i < 10; i++) {
        keep(malloc(1001));
    }
}

NOINLINE static void old_name(void) {
    for (int i = 0; i < 5; i++) {
        keep(malloc(503));
    }
}

int main(int argc, char **argv) {
    rendezvous(argc, argv, "ready");
    stays();
    grows();
    old_name();
    rendezvous(argc, argv, "done");
    return 0;
}
