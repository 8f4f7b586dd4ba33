// Threads that allocate from arenas of their own: 64 MiB of address space each, which glibc makes
// memory as it needs it. Half of the threads have their arena before `ready`, half get it after.
//
// What the kernel shows in /proc/PID/maps says how much memory that is.
#include "memtrace_test.h"
#include <pthread.h>

enum { OLD = 3, NEW = 3, BLOCKS = 4000 };

static pthread_barrier_t old_ready, begin, grown, leave;

NOINLINE static void allocate_in_arena(int blocks) {
    for (int i = 0; i < blocks; i++) {
        char *block = malloc(1000 + i % 7);
        require(block != NULL, 10);
        block[0] = 1;
        keep(block);
    }
}

static void *grow_old_arena(void *unused) {
    allocate_in_arena(10);
    pthread_barrier_wait(&old_ready);
    pthread_barrier_wait(&begin);
    allocate_in_arena(BLOCKS);
    pthread_barrier_wait(&grown);
    pthread_barrier_wait(&leave);
    return unused;
}

static void *grow_new_arena(void *unused) {
    allocate_in_arena(BLOCKS);
    pthread_barrier_wait(&grown);
    pthread_barrier_wait(&leave);
    return unused;
}

static void start(pthread_t *threads, int count, void *(*run)(void *)) {
    for (int i = 0; i < count; i++) {
        require(pthread_create(&threads[i], NULL, run, NULL) == 0, 11);
    }
}

int main(int argc, char **argv) {
    pthread_t threads[OLD + NEW];
    require(pthread_barrier_init(&old_ready, NULL, OLD + 1) == 0, 12);
    require(pthread_barrier_init(&begin, NULL, OLD + 1) == 0, 13);
    require(pthread_barrier_init(&grown, NULL, OLD + NEW + 1) == 0, 14);
    require(pthread_barrier_init(&leave, NULL, OLD + NEW + 1) == 0, 15);
    start(threads, OLD, grow_old_arena);
    pthread_barrier_wait(&old_ready);
    rendezvous(argc, argv, "ready");
    pthread_barrier_wait(&begin);
    start(threads + OLD, NEW, grow_new_arena);
    pthread_barrier_wait(&grown);
    rendezvous(argc, argv, "done");
    pthread_barrier_wait(&leave);
    for (int i = 0; i < OLD + NEW; i++) {
        require(pthread_join(threads[i], NULL) == 0, 16);
    }
    return 0;
}
