// Exceptions thrown past functions that have allocated, and out of `operator new` itself.
//
// expect: function=allocate_then_throw api=malloc allocations=71 allocated_bytes=8449 frees=0 freed_bytes=0 live_blocks=71 live_bytes=8449
// expect: function=hold_while_thrown_past api=malloc allocations=71 allocated_bytes=9017 frees=71 freed_bytes=9017 live_blocks=0 live_bytes=0
// expect: function=after_the_throw api=malloc allocations=73 allocated_bytes=10001 frees=73 freed_bytes=10001 live_blocks=0 live_bytes=0
// expect: function=after_bad_alloc api=malloc allocations=79 allocated_bytes=11929 frees=0 freed_bytes=0 live_blocks=79 live_bytes=11929
#include "memtrace_test.h"
#include <cstdint>
#include <new>

namespace {
struct Guard {
    void *block;
    ~Guard() { free(block); }
};
} // namespace

extern "C" {
NOINLINE void allocate_then_throw(int value) {
    keep(malloc(119));
    throw value;
}

NOINLINE void hold_while_thrown_past(int value) {
    Guard guard{malloc(127)};
    keep(guard.block);
    allocate_then_throw(value);
    keep(guard.block);
}

NOINLINE void after_the_throw() {
    void *block = malloc(137);
    keep(block);
    free(block);
}

NOINLINE void after_bad_alloc() {
    keep(malloc(151));
}

NOINLINE void run_out_of_memory() {
    keep(::operator new(opaque(PTRDIFF_MAX - 4096)));
}
}

int main(int argc, char **argv) {
    rendezvous(argc, argv, "ready");
    for (int i = 0; i < 71; i++) {
        try {
            hold_while_thrown_past(i);
        } catch (int value) {
            require(value == i, 12);
        }
        after_the_throw();
    }
    after_the_throw();
    after_the_throw();
    for (int i = 0; i < 79; i++) {
        try {
            run_out_of_memory();
            require(0, 13);
        } catch (const std::bad_alloc &) {
            after_bad_alloc();
        }
    }
    rendezvous(argc, argv, "done");
    return 0;
}
