// One thread allocates, another frees. A free belongs to the function that allocated the block.
//
// expect: function=produce_blocks api=malloc allocations=2003 allocated_bytes=178267 frees=1801 freed_bytes=160289 live_blocks=202 live_bytes=17978
// expect: function=main_allocates api=malloc allocations=307 allocated_bytes=33463 frees=307 freed_bytes=33463 live_blocks=0 live_bytes=0
#include "memtrace_test.h"
#include <pthread.h>

static void *produced[2003];
static void *from_main[307];

NOINLINE static void produce_blocks(void) {
    for (int i = 0; i < 2003; i++) {
        produced[i] = malloc(89);
    }
}

NOINLINE static void main_allocates(void) {
    for (int i = 0; i < 307; i++) {
        from_main[i] = malloc(109);
    }
}

NOINLINE static void consume_blocks(void) {
    for (int i = 0; i < 1801; i++) {
        free(produced[i]);
    }
    for (int i = 0; i < 307; i++) {
        free(from_main[i]);
    }
}

static void *producer(void *unused) {
    produce_blocks();
    keep(unused);
    return NULL;
}

static void *consumer(void *unused) {
    consume_blocks();
    keep(unused);
    return NULL;
}

static void run(void *(*body)(void *)) {
    pthread_t thread;
    require(pthread_create(&thread, NULL, body, NULL) == 0, 10);
    require(pthread_join(thread, NULL) == 0, 11);
}

int main(int argc, char **argv) {
    rendezvous(argc, argv, "ready");
    main_allocates();
    run(producer);
    run(consumer);
    rendezvous(argc, argv, "done");
    return 0;
}
