// Handlers that allocate: raised on purpose, on a stack of their own, and by a timer.
//
// The timer's signal interrupts `spin` at any of its instructions: the walk must go on from an
// exact program counter, not from a return address.
//
// expect: function=allocate_in_handler api=malloc allocations=41 allocated_bytes=8733 frees=0 freed_bytes=0 live_blocks=41 live_bytes=8733
// expect: function=allocate_on_own_stack api=malloc allocations=43 allocated_bytes=9589 frees=43 freed_bytes=9589 live_blocks=0 live_bytes=0
// expect: function=allocate_on_timer api=malloc allocations=47 allocated_bytes=10669 frees=0 freed_bytes=0 live_blocks=47 live_bytes=10669
// expect: within=raise_often api=malloc allocations=84 allocated_bytes=18322 frees=43 freed_bytes=9589 live_blocks=41 live_bytes=8733
// expect: within=spin api=malloc allocations=47 allocated_bytes=10669 frees=0 freed_bytes=0 live_blocks=47 live_bytes=10669
// totals: allocations=131 allocated_bytes=28991 frees=43 freed_bytes=9589 live_blocks=88 live_bytes=19402
#include "memtrace_test.h"
#include <signal.h>
#include <sys/time.h>

static volatile sig_atomic_t ticks;
static char own_stack[64 * 1024] __attribute__((aligned(64)));

NOINLINE static void allocate_in_handler(void) {
    keep(malloc(213));
}

NOINLINE static void allocate_on_own_stack(void) {
    void *block = malloc(223);
    keep(block);
    free(block);
}

NOINLINE static void allocate_on_timer(void) {
    keep(malloc(227));
}

static void on_usr1(int signal) {
    (void)signal;
    allocate_in_handler();
    keep(NULL);
}

static void on_usr2(int signal) {
    (void)signal;
    allocate_on_own_stack();
    keep(NULL);
}

static void on_alarm(int signal) {
    (void)signal;
    if (ticks < 47) {
        allocate_on_timer();
        ticks = ticks + 1;
    }
}

static void handle(int signal, void (*handler)(int), int flags) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = handler;
    action.sa_flags = flags;
    require(sigaction(signal, &action, NULL) == 0, 10);
}

NOINLINE static void raise_often(void) {
    for (int i = 0; i < 41; i++) {
        raise(SIGUSR1);
    }
    for (int i = 0; i < 43; i++) {
        raise(SIGUSR2);
    }
}

// No system call, no call at all: the timer always interrupts this function.
NOINLINE static size_t spin(void) {
    size_t sum = 0;
    while (ticks < 47) {
        sum = sum * 31 + 7;
        sum ^= sum >> 3;
    }
    return sum;
}

int main(int argc, char **argv) {
    stack_t stack = {.ss_sp = own_stack, .ss_size = sizeof own_stack};
    require(sigaltstack(&stack, NULL) == 0, 11);
    handle(SIGUSR1, on_usr1, 0);
    handle(SIGUSR2, on_usr2, SA_ONSTACK);
    handle(SIGALRM, on_alarm, 0);

    rendezvous(argc, argv, "ready");
    raise_often();
    // The first tick comes late enough for `main` to have entered `spin`.
    struct itimerval every = {{0, 2000}, {0, 20000}};
    require(setitimer(ITIMER_REAL, &every, NULL) == 0, 12);
    keep((void *)spin());
    struct itimerval never = {{0, 0}, {0, 0}};
    require(setitimer(ITIMER_REAL, &never, NULL) == 0, 13);
    rendezvous(argc, argv, "done");
    return 0;
}
