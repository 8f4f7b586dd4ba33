// A handler that allocates and has interrupted the vDSO, whose frames lie in no file.
//
// The timer's ticks that hit anything else allocate nothing.
//
// expect: function=allocate_over_vdso api=malloc allocations=37 allocated_bytes=8473 frees=0 freed_bytes=0 live_blocks=37 live_bytes=8473
// expect: within=read_clock api=malloc allocations=37 allocated_bytes=8473 frees=0 freed_bytes=0 live_blocks=37 live_bytes=8473
// expect: within=main api=malloc allocations=37 allocated_bytes=8473 frees=0 freed_bytes=0 live_blocks=37 live_bytes=8473
// totals: allocations=37 allocated_bytes=8473 frees=0 freed_bytes=0 live_blocks=37 live_bytes=8473
#include "memtrace_test.h"
#include <link.h>
#include <signal.h>
#include <sys/auxv.h>
#include <sys/time.h>
#include <time.h>
#include <ucontext.h>

enum { WANTED = 37 };

static volatile sig_atomic_t hits;
static uintptr_t vdso_start;
static uintptr_t vdso_end;

// Where the code of the vDSO lies: its one segment.
static void find_vdso(void) {
    vdso_start = getauxval(AT_SYSINFO_EHDR);
    require(vdso_start != 0, 10);
    const ElfW(Ehdr) *header = (const ElfW(Ehdr) *)vdso_start;
    const ElfW(Phdr) *segments = (const ElfW(Phdr) *)(vdso_start + header->e_phoff);
    for (int i = 0; i < header->e_phnum; i++) {
        if (segments[i].p_type == PT_LOAD) {
            vdso_end = vdso_start + segments[i].p_memsz;
        }
    }
    require(vdso_end != 0, 11);
}

NOINLINE static void allocate_over_vdso(void) {
    keep(malloc(229));
}

static void on_alarm(int signal, siginfo_t *info, void *context) {
    (void)signal;
    (void)info;
    uintptr_t pc = (uintptr_t)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    if (hits < WANTED && vdso_start <= pc && pc < vdso_end) {
        allocate_over_vdso();
        hits = hits + 1;
    }
}

NOINLINE static long read_clock(void) {
    long sum = 0;
    while (hits < WANTED) {
        struct timespec now;
        require(clock_gettime(CLOCK_MONOTONIC, &now) == 0, 12);
        sum += now.tv_nsec;
    }
    return sum;
}

int main(int argc, char **argv) {
    find_vdso();
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_alarm;
    action.sa_flags = SA_SIGINFO;
    require(sigaction(SIGALRM, &action, NULL) == 0, 13);

    rendezvous(argc, argv, "ready");
    struct itimerval every = {{0, 1000}, {0, 1000}};
    require(setitimer(ITIMER_REAL, &every, NULL) == 0, 14);
    keep((void *)read_clock());
    struct itimerval never = {{0, 0}, {0, 0}};
    require(setitimer(ITIMER_REAL, &never, NULL) == 0, 15);
    rendezvous(argc, argv, "done");
    return 0;
}
