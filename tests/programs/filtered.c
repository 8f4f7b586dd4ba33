// Allocates under a seccomp filter that kills for the system calls of the kernel's own trampolines.
//
// Linux ends return probes with `uretprobe` (335, since 6.11) and may enter probes with `uprobe`
// (336, since 6.18). A filter that lists what a program calls knows neither; kernels that let
// seccomp see them kill the program. The filter is set before `ready`, so an attach meets it.
//
// expect: function=allocate_filtered api=malloc allocations=307 allocated_bytes=34077 frees=101 freed_bytes=11211 live_blocks=206 live_bytes=22866
// totals: allocations=307 allocated_bytes=34077 frees=101 freed_bytes=11211 live_blocks=206 live_bytes=22866
#include "memtrace_test.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>

enum { URETPROBE = 335, UPROBE = 336 };

static void filter_system_calls(void) {
    struct sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, URETPROBE, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, UPROBE, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {.len = sizeof program / sizeof *program, .filter = program};
    require(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, 10);
    require(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter, 0, 0) == 0, 11);
}

NOINLINE static void allocate_filtered(void) {
    for (int i = 0; i < 307; i++) {
        void *block = malloc(111);
        keep(block);
        if (i < 101) {
            free(block);
        }
    }
}

int main(int argc, char **argv) {
    filter_system_calls();
    rendezvous(argc, argv, "ready");
    allocate_filtered();
    rendezvous(argc, argv, "done");
    return 0;
}
