// Children of vfork that allocate in their parent's memory, and a parent that frees it.
//
// Only probes that are attached by memory (perf events) are hit by such a child:
//
// expect: function=in_the_child api=malloc allocations=22 allocated_bytes=88066 frees=22 freed_bytes=88066 live_blocks=0 live_bytes=0
// expect: function=in_the_parent api=malloc allocations=1 allocated_bytes=4013 frees=0 freed_bytes=0 live_blocks=1 live_bytes=4013
// totals: allocations=23 allocated_bytes=92079 frees=22 freed_bytes=88066 live_blocks=1 live_bytes=4013
#include "memtrace_test.h"
#include <sys/wait.h>

enum { CHILDREN = 11 };

static void *volatile kept[CHILDREN];

NOINLINE static void in_the_child(int child) {
    kept[child] = malloc(4003);
    void *block = malloc(4003);
    keep(block);
    free(block);
}

NOINLINE static void in_the_parent(void) {
    keep(malloc(4013));
}

int main(int argc, char **argv) {
    rendezvous(argc, argv, "ready");
    for (int child = 0; child < CHILDREN; child++) {
        pid_t pid = vfork();
        if (pid == 0) {
            in_the_child(child);
            _exit(0);
        }
        require(pid > 0 && waitpid(pid, NULL, 0) == pid, 10);
        free(kept[child]);
    }
    in_the_parent();
    rendezvous(argc, argv, "done");
    return 0;
}
