// A fork after which both sides go on allocating, and a grandchild.
//
// The child inherits a copy of its parent's memory, and may free it: such a free takes nothing
// away from the parent. The blocks that a process has inherited are not allocations of its own.
//
// expect: function=before_fork api=malloc allocations=101 allocated_bytes=4343 frees=0 freed_bytes=0 live_blocks=101 live_bytes=4343
// expect: function=child_allocates api=malloc allocations=53 allocated_bytes=3763 frees=20 freed_bytes=1420 live_blocks=33 live_bytes=2343
// expect: function=parent_allocates api=malloc allocations=47 allocated_bytes=3901 frees=0 freed_bytes=0 live_blocks=47 live_bytes=3901
// expect: function=grandchild_allocates api=malloc allocations=59 allocated_bytes=5723 frees=59 freed_bytes=5723 live_blocks=0 live_bytes=0
// process: index=0 allocations=148 allocated_bytes=8244 frees=0 freed_bytes=0 live_blocks=148 live_bytes=8244
// process: index=1 allocations=53 allocated_bytes=3763 frees=20 freed_bytes=1420 live_blocks=33 live_bytes=2343
// process: index=2 allocations=59 allocated_bytes=5723 frees=59 freed_bytes=5723 live_blocks=0 live_bytes=0
// totals: allocations=260 allocated_bytes=17730 frees=79 freed_bytes=7143 live_blocks=181 live_bytes=10587
// processes: 3
#include "memtrace_test.h"
#include <sys/wait.h>

static void *inherited[101];

NOINLINE static void before_fork(void) {
    for (int i = 0; i < 101; i++) {
        inherited[i] = malloc(43);
    }
}

// The first call of the child: not one may be missed.
NOINLINE static void child_allocates(void) {
    for (int i = 0; i < 53; i++) {
        void *block = malloc(71);
        keep(block);
        if (i < 20) {
            free(block);
        }
    }
}

NOINLINE static void free_inherited(void) {
    for (int i = 0; i < 31; i++) {
        free(inherited[i]);
    }
}

NOINLINE static void parent_allocates(void) {
    for (int i = 0; i < 47; i++) {
        keep(malloc(83));
    }
}

NOINLINE static void grandchild_allocates(void) {
    for (int i = 0; i < 59; i++) {
        void *block = malloc(97);
        keep(block);
        free(block);
    }
}

static void wait_for(pid_t pid) {
    int status = 0;
    require(waitpid(pid, &status, 0) == pid, 10);
    require(WIFEXITED(status) && WEXITSTATUS(status) == 0, 11);
}

int main(int argc, char **argv) {
    rendezvous(argc, argv, "ready");
    before_fork();
    pid_t child = fork();
    require(child >= 0, 12);
    if (child == 0) {
        child_allocates();
        free_inherited();
        pid_t grandchild = fork();
        require(grandchild >= 0, 13);
        if (grandchild == 0) {
            grandchild_allocates();
            _exit(0);
        }
        wait_for(grandchild);
        _exit(0);
    }
    parent_allocates();
    wait_for(child);
    rendezvous(argc, argv, "done");
    return 0;
}
