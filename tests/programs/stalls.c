// Allocates without pause, and says after each line that comes in how long it stood still at most.
//
// It says `stall N`, in microseconds since the line before, and ends when stdin ends. Time in which
// it waited for a processor that others had is not counted, if the kernel tells (schedstat).
#include "memtrace_test.h"
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>

// Between two looks at the waiting time.
enum { LOOK_NS = 1000000 };

static _Atomic long long longest_ns;

static long long now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

// How long this thread has waited for a processor since it began.
static long long waited_ns(int schedstat) {
    char text[128];
    ssize_t length = pread(schedstat, text, sizeof text - 1, 0);
    if (length <= 0) {
        return 0;
    }
    text[length] = 0;
    long long waited = 0;
    sscanf(text, "%*d %lld", &waited);
    return waited;
}

NOINLINE static void *spin(void *unused) {
    int schedstat = open("/proc/thread-self/schedstat", O_RDONLY);
    long long last_waited_ns = waited_ns(schedstat);
    long long last_ns = now_ns();
    for (long long look_ns = last_ns;;) {
        void *block = malloc(101);
        keep(block);
        free(block);
        long long next_ns = now_ns();
        long long stall_ns = next_ns - last_ns;
        if (next_ns - look_ns > LOOK_NS) {
            long long all_ns = waited_ns(schedstat);
            stall_ns -= all_ns - last_waited_ns;
            last_waited_ns = all_ns;
            look_ns = next_ns;
            next_ns = now_ns();
        }
        if (stall_ns > atomic_load(&longest_ns)) {
            atomic_store(&longest_ns, stall_ns);
        }
        last_ns = next_ns;
    }
    return unused;
}

int main(void) {
    pthread_t thread;
    require(pthread_create(&thread, NULL, spin, NULL) == 0, 10);
    require(write(STDOUT_FILENO, "ready\n", 6) == 6, 11);
    char byte;
    while (read(STDIN_FILENO, &byte, 1) == 1) {
        char text[64];
        int length = snprintf(text, sizeof text, "stall %lld\n", atomic_exchange(&longest_ns, 0) / 1000);
        require(write(STDOUT_FILENO, text, (size_t)length) == length, 12);
    }
    return 0;
}
