// An allocator linked into the executable under the usual names, which may be left by longjmp.
//
// `malloc` jumps out to `run_out_of_memory` for one size, as allocators with an out-of-memory
// handler do. The call is over then: the next one is not nested in it and must count.
//
// expect: function=use_own_malloc api=malloc allocations=97 allocated_bytes=13483 frees=50 freed_bytes=6950 live_blocks=47 live_bytes=6533
// expect: function=use_own_calloc api=calloc allocations=59 allocated_bytes=9735 frees=0 freed_bytes=0 live_blocks=59 live_bytes=9735
// expect: function=use_own_realloc api=malloc allocations=1 allocated_bytes=29 frees=1 freed_bytes=29 live_blocks=0 live_bytes=0
// expect: function=use_own_realloc api=realloc allocations=19 allocated_bytes=6061 frees=18 freed_bytes=5481 live_blocks=1 live_bytes=580
// expect: function=after_the_jump api=malloc allocations=61 allocated_bytes=9089 frees=61 freed_bytes=9089 live_blocks=0 live_bytes=0
// absent: function=run_out_of_memory
// totals: allocations=237 allocated_bytes=38397 frees=130 freed_bytes=21549 live_blocks=107 live_bytes=16848
#include "memtrace_test.h"
#include <setjmp.h>
#include <stdint.h>

static jmp_buf home;
static _Alignas(16) unsigned char arena[4 << 20];
static size_t used;

#define IMPOSSIBLE ((size_t)1 << 40)

// A bump allocator: the size stands in the 16 bytes before the block, freed memory is not reused.
NOINLINE static void *carve(size_t size) {
    size_t rounded = (size + 15) / 16 * 16 + 16;
    if (size == IMPOSSIBLE) {
        longjmp(home, 1);
    }
    if (rounded > sizeof arena - used) {
        return NULL;
    }
    unsigned char *block = arena + used;
    used += rounded;
    memcpy(block, &size, sizeof size);
    return block + 16;
}

NOINLINE void *malloc(size_t size) {
    void *block = carve(size);
    keep(block);
    return block;
}

NOINLINE void free(void *block) {
    keep(block);
}

// Calls malloc: only the outer call counts.
NOINLINE void *calloc(size_t count, size_t size) {
    void *block = malloc(count * size);
    // Without this the compiler makes malloc and memset into a call of calloc.
    keep(block);
    if (block != NULL) {
        memset(block, 0, count * size);
    }
    return block;
}

// Calls malloc and free: only the outer call counts.
NOINLINE void *realloc(void *old, size_t size) {
    void *block = malloc(size);
    if (old != NULL && block != NULL) {
        size_t held;
        memcpy(&held, (unsigned char *)old - 16, sizeof held);
        memcpy(block, old, held < size ? held : size);
        free(old);
    }
    keep(block);
    return block;
}

NOINLINE static void use_own_malloc(void) {
    for (int i = 0; i < 97; i++) {
        void *block = malloc(139);
        keep(block);
        if (i < 50) {
            free(block);
        }
    }
}

NOINLINE static void use_own_calloc(void) {
    for (int i = 0; i < 59; i++) {
        keep(calloc(5, 33));
    }
}

NOINLINE static void use_own_realloc(void) {
    void *block = NULL;
    for (size_t i = 1; i <= 20; i++) {
        block = realloc(block, 29 * i);
        keep(block);
    }
}

NOINLINE static void run_out_of_memory(void) {
    keep(malloc(opaque(IMPOSSIBLE)));
}

NOINLINE static void after_the_jump(void) {
    void *block = malloc(149);
    keep(block);
    free(block);
}

int main(int argc, char **argv) {
    rendezvous(argc, argv, "ready");
    use_own_malloc();
    use_own_calloc();
    use_own_realloc();
    for (volatile int i = 0; i < 61; i = i + 1) {
        if (setjmp(home) == 0) {
            run_out_of_memory();
            require(0, 12);
        }
        after_the_jump();
    }
    rendezvous(argc, argv, "done");
    return 0;
}
