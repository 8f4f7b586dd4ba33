// Forks a child that measures what a malloc and a free cost it.
//
// Ends with status 0 once a thousand of them take less than 200 ns each, which they do not with
// breakpoints in them; with status 11 if that has not come after 30 s.
#include "memtrace_test.h"
#include <sys/wait.h>
#include <time.h>

enum { PAIRS = 1000, FAST_NS = 200, PATIENCE_S = 30 };

static long long now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

NOINLINE static long long ns_per_pair(void) {
    long long start_ns = now_ns();
    for (int i = 0; i < PAIRS; i++) {
        void *block = malloc(107);
        keep(block);
        free(block);
    }
    return (now_ns() - start_ns) / PAIRS;
}

static int becomes_fast(void) {
    long long end_ns = now_ns() + PATIENCE_S * 1000000000LL;
    while (ns_per_pair() >= FAST_NS) {
        if (now_ns() > end_ns) {
            return 11;
        }
    }
    return 0;
}

int main(int argc, char **argv) {
    rendezvous(argc, argv, "ready");
    pid_t pid = fork();
    if (pid == 0) {
        _exit(becomes_fast());
    }
    int status = 0;
    require(pid > 0 && waitpid(pid, &status, 0) == pid, 10);
    require(WIFEXITED(status), 12);
    rendezvous(argc, argv, "done");
    return WEXITSTATUS(status);
}
