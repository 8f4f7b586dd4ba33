// Three children one after the other, all with the same process id, which a kernel that runs out
// of ids hands out again as well. Each leaves memory behind that the next one must not inherit.
//
// expect: function=parent_allocates api=malloc allocations=17 allocated_bytes=527 frees=0 freed_bytes=0 live_blocks=17 live_bytes=527
// expect: function=child_allocates api=malloc allocations=69 allocated_bytes=6969 frees=3 freed_bytes=303 live_blocks=66 live_bytes=6666
// process: index=0 allocations=17 allocated_bytes=527 frees=0 freed_bytes=0 live_blocks=17 live_bytes=527
// process: index=1 allocations=13 allocated_bytes=1313 frees=1 freed_bytes=101 live_blocks=12 live_bytes=1212
// process: index=2 allocations=23 allocated_bytes=2323 frees=1 freed_bytes=101 live_blocks=22 live_bytes=2222
// process: index=3 allocations=33 allocated_bytes=3333 frees=1 freed_bytes=101 live_blocks=32 live_bytes=3232
// totals: allocations=86 allocated_bytes=7496 frees=3 freed_bytes=303 live_blocks=83 live_bytes=7193
// processes: 4
#include "memtrace_test.h"
#include <linux/sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <sys/wait.h>

NOINLINE static void parent_allocates(void) {
    for (int i = 0; i < 17; i++) {
        keep(malloc(31));
    }
}

NOINLINE static void child_allocates(int blocks) {
    void *first = malloc(101);
    keep(first);
    for (int i = 1; i < blocks; i++) {
        keep(malloc(101));
    }
    free(first);
}

// A child with this id, or with any if it is 0; what it allocates tells it from the others.
static pid_t fork_as(pid_t wanted, int blocks) {
    struct clone_args arguments = {.exit_signal = SIGCHLD};
    if (wanted != 0) {
        arguments.set_tid = (uintptr_t)&wanted;
        arguments.set_tid_size = 1;
    }
    pid_t pid = (pid_t)syscall(SYS_clone3, &arguments, sizeof arguments);
    require(pid >= 0, 20);
    if (pid == 0) {
        child_allocates(blocks);
        _exit(0);
    }
    int status = -1;
    require(waitpid(pid, &status, 0) == pid && status == 0, 21);
    return pid;
}

int main(int argc, char **argv) {
    rendezvous(argc, argv, "ready");
    parent_allocates();
    pid_t pid = fork_as(0, 13);
    require(fork_as(pid, 23) == pid, 22);
    require(fork_as(pid, 33) == pid, 23);
    rendezvous(argc, argv, "done");
    return 0;
}
