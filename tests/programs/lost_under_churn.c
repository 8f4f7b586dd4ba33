// Loses 100 blocks while four threads replace blocks as fast as they can, and checks their contents.
//
// Every block of a thread is pointed to by its table of 997, by another block, or by a register: none
// of them is lost at any moment. Ends with status 95 if a block has changed under its thread.
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/epoll.h>

#include "memtrace_test.h"

struct block {
    struct block *behind;
    uint64_t number;
    char rest[];
};

static atomic_bool is_over;

NOINLINE static struct block *churn_block(uint64_t number) {
    struct block *block = malloc(sizeof *block + number % 500);
    block->number = number;
    block->behind = NULL;
    return block;
}

static void *churn(void *first) {
    struct block **table = calloc(997, sizeof *table);
    uint64_t number = (uintptr_t)first;
    while (!atomic_load_explicit(&is_over, memory_order_relaxed)) {
        number = number * 6364136223846793005u + 1442695040888963407u;
        struct block **place = &table[(number >> 33) % 997];
        if (*place != NULL) {
            require((*place)->number % 997 == (uint64_t)(place - table), 95);
            struct block *behind = (*place)->behind;
            free(*place);
            free(behind);
        }
        uint64_t mark = (number >> 33) / 997 * 997 + (uint64_t)(place - table);
        *place = churn_block(mark);
        (*place)->behind = churn_block(mark + 1);
    }
    for (int i = 0; i < 997; i++) {
        free(table[i] != NULL ? table[i]->behind : NULL);
        free(table[i]);
    }
    free(table);
    return NULL;
}

NOINLINE static void lose_some(void) {
    for (int i = 0; i < 100; i++) {
        keep(malloc(61));
    }
}

NOINLINE static void wipe(void) {
    char stack[16384];
    memset(stack, 0, sizeof stack);
    keep(stack);
}

int main(int argc, char **argv) {
    rendezvous(argc, argv, "ready");
    lose_some();
    wipe();
    pthread_t threads[4];
    for (uintptr_t i = 0; i < 4; i++) {
        require(pthread_create(&threads[i], NULL, churn, (void *)(i + 1)) == 0, 94);
    }
    rendezvous(argc, argv, "done");
    atomic_store(&is_over, 1);
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
    }
    return 0;
}
