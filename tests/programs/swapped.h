// A library of which two functions change places: one is `malloc`, the other is not.
//
// The blocks are addresses only, and never used: those of one build are not those of the other.
#include "memtrace_test.h"
#include <stdint.h>

static uintptr_t next_block = FIRST_BLOCK;

static inline void *block_of(size_t size) {
    void *block = (void *)next_block;
    next_block += size;
    return block;
}

NOINLINE void *UPPER(size_t size) {
    return block_of(size);
}

NOINLINE void *LOWER(size_t size) {
    return block_of(size);
}
