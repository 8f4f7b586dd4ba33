// A pool allocator under names of its own, to be named with `--probe`.
//
// The pool is one block of malloc's and hands out pieces. `wrap_alloc` is a wrapper of malloc with a
// header in front, so that neither the size nor the address is malloc's: only the outer call counts.
// `pool_extra` takes a further block while it serves a call, which is inside that call. What
// `pool_create` takes itself is ignored: its bytes are those that the pool hands out.
//
// expect: function=use_alloc api="custom alloc" allocations=307 allocated_bytes=27937 frees=100 freed_bytes=9100 live_blocks=207 live_bytes=18837
// expect: function=use_array api="custom alloc" allocations=53 allocated_bytes=10653 frees=53 freed_bytes=10653 live_blocks=0 live_bytes=0
// expect: function=use_realloc api="custom realloc" allocations=11 allocated_bytes=3718 frees=10 freed_bytes=3146 live_blocks=1 live_bytes=572
// expect: function=use_out_parameter api="custom alloc" allocations=71 allocated_bytes=5041 frees=0 freed_bytes=0 live_blocks=71 live_bytes=5041
// expect: function=use_wrapper api="custom alloc" allocations=101 allocated_bytes=3737 frees=101 freed_bytes=3737 live_blocks=0 live_bytes=0
// expect: function=use_malloc api=malloc allocations=43 allocated_bytes=1849 frees=43 freed_bytes=1849 live_blocks=0 live_bytes=0
// absent: function=pool_alloc
// absent: function=pool_extra
// absent: function=wrap_alloc
// totals: allocations=586 allocated_bytes=52935 frees=307 freed_bytes=28485 live_blocks=279 live_bytes=24450
#include "memtrace_test.h"

#define POOL_BYTES ((size_t)1 << 20)

struct pool {
    unsigned char *memory;
    size_t used;
    void *extra;
};

NOINLINE void pool_create(struct pool *pool) {
    pool->memory = malloc(POOL_BYTES);
    pool->used = 0;
    pool->extra = NULL;
    keep(pool->memory);
}

NOINLINE void pool_destroy(struct pool *pool) {
    free(pool->extra);
    free(pool->memory);
    keep(pool);
}

NOINLINE static void pool_extra(struct pool *pool) {
    if (pool->extra == NULL) {
        pool->extra = malloc(5000);
    }
    keep(pool->extra);
}

NOINLINE void *pool_alloc(struct pool *pool, size_t size) {
    size_t rounded = (size + 15) / 16 * 16;
    pool_extra(pool);
    if (rounded > POOL_BYTES - pool->used) {
        return NULL;
    }
    void *block = pool->memory + pool->used;
    pool->used += rounded;
    return block;
}

NOINLINE void *pool_array(struct pool *pool, int flags, size_t count, size_t size) {
    keep((void *)(size_t)flags);
    void *block = pool_alloc(pool, count * size);
    keep(block);
    return block;
}

NOINLINE void *pool_realloc(struct pool *pool, size_t size, void *block) {
    void *moved = pool_alloc(pool, size);
    keep(block);
    return moved;
}

NOINLINE int pool_take(void **block, int flags, struct pool *pool, size_t size) {
    keep((void *)(size_t)flags);
    if (size == 0) {
        return 1;
    }
    *block = pool_alloc(pool, size);
    keep(*block);
    return 0;
}

NOINLINE void pool_free(struct pool *pool, void *block) {
    keep(pool);
    keep(block);
}

NOINLINE void *wrap_alloc(size_t size) {
    unsigned char *block = malloc(size + 32);
    keep(block);
    return block + 32;
}

NOINLINE void wrap_free(void *block) {
    free((unsigned char *)block - 32);
    keep(block);
}

NOINLINE static void use_alloc(struct pool *pool) {
    for (int i = 0; i < 307; i++) {
        void *block = pool_alloc(pool, 91);
        keep(block);
        if (i < 100) {
            pool_free(pool, block);
        }
    }
    pool_free(pool, NULL);
    keep(pool_alloc(pool, opaque(POOL_BYTES)));
}

NOINLINE static void use_array(struct pool *pool) {
    for (int i = 0; i < 53; i++) {
        void *block = pool_array(pool, 7, 3, 67);
        keep(block);
        pool_free(pool, block);
    }
}

NOINLINE static void use_realloc(struct pool *pool) {
    void *block = NULL;
    for (size_t i = 1; i <= 11; i++) {
        block = pool_realloc(pool, i == 11 ? 572 : 52 * i + 28 + (i == 10 ? 6 : 0), block);
        keep(block);
    }
    // It fails, and the block lives on.
    keep(pool_realloc(pool, opaque(POOL_BYTES), block));
}

NOINLINE static void use_out_parameter(struct pool *pool) {
    for (int i = 0; i < 71; i++) {
        void *block = NULL;
        require(pool_take(&block, 3, pool, 71) == 0 && block != NULL, 11);
        keep(block);
    }
    void *none = pool;
    require(pool_take(&none, 3, pool, opaque(0)) == 1 && none == pool, 12);
}

NOINLINE static void use_wrapper(void) {
    for (int i = 0; i < 101; i++) {
        void *block = wrap_alloc(37);
        keep(block);
        wrap_free(block);
    }
}

NOINLINE static void use_malloc(void) {
    for (int i = 0; i < 43; i++) {
        void *block = malloc(43);
        keep(block);
        free(block);
    }
}

int main(int argc, char **argv) {
    rendezvous(argc, argv, "ready");
    struct pool pool;
    pool_create(&pool);
    use_alloc(&pool);
    use_array(&pool);
    use_realloc(&pool);
    use_out_parameter(&pool);
    use_wrapper();
    use_malloc();
    rendezvous(argc, argv, "done");
    pool_destroy(&pool);
    return 0;
}
