// 1,000 short threads, eight at a time; each allocates three blocks and frees two.
//
// Thread ids come and go, stacks are reused: no thread's calls may be lost or mixed up.
//
// expect: function=churn_leaks api=malloc allocations=1000 allocated_bytes=101000 frees=0 freed_bytes=0 live_blocks=1000 live_bytes=101000
// expect: function=churn_frees api=malloc allocations=2000 allocated_bytes=386000 frees=2000 freed_bytes=386000 live_blocks=0 live_bytes=0
// expect: within=churn api=malloc allocations=3000 allocated_bytes=487000 frees=2000 freed_bytes=386000 live_blocks=1000 live_bytes=101000
#include "memtrace_test.h"
#include <pthread.h>

enum { THREADS = 1000, AT_ONCE = 8 };

NOINLINE static void churn_leaks(void) {
    keep(malloc(101));
}

NOINLINE static void churn_frees(void) {
    void *first = malloc(185);
    void *second = malloc(201);
    keep(first);
    keep(second);
    free(first);
    free(second);
}

NOINLINE static void *churn(void *unused) {
    churn_leaks();
    churn_frees();
    keep(unused);
    return NULL;
}

int main(int argc, char **argv) {
    rendezvous(argc, argv, "ready");
    for (int i = 0; i < THREADS; i += AT_ONCE) {
        pthread_t threads[AT_ONCE];
        for (int k = 0; k < AT_ONCE; k++) {
            require(pthread_create(&threads[k], NULL, churn, NULL) == 0, 10);
        }
        for (int k = 0; k < AT_ONCE; k++) {
            require(pthread_join(threads[k], NULL) == 0, 11);
        }
    }
    rendezvous(argc, argv, "done");
    return 0;
}
