/* Allocates every 0.1 ms and notes how long it stood still at most.
 *
 * For each line on stdin it prints `stall: ` and the longest time in nanoseconds between two rounds
 * since the last line. If it may, it runs with real-time priority: then nobody but the kernel keeps it from
 * running, and what it notes is not the load of the machine.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static _Atomic uint64_t longest_ns;

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void *work(void *unused) {
    (void)unused;
    struct sched_param parameters = {.sched_priority = 1};
    if (pthread_setschedparam(pthread_self(), SCHED_FIFO, &parameters) != 0)
        fprintf(stderr, "attach_target: no real-time priority; stalls include those of the load\n");
    for (uint64_t last = now_ns();;) {
        uint64_t now = now_ns();
        uint64_t longest = atomic_load(&longest_ns);
        while (now - last > longest && !atomic_compare_exchange_weak(&longest_ns, &longest, now - last))
            ;
        last = now;
        void *volatile block = malloc(64);
        free(block);
        struct timespec pause = {.tv_nsec = 100000};
        nanosleep(&pause, NULL);
    }
    return NULL;
}

int main(void) {
    pthread_t worker;
    if (pthread_create(&worker, NULL, work, NULL) != 0)
        return 1;
    char line[64];
    while (fgets(line, sizeof line, stdin) != NULL) {
        printf("stall: %llu\n", (unsigned long long)atomic_exchange(&longest_ns, 0));
        fflush(stdout);
    }
    return 0;
}
