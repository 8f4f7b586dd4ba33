// operator new throws, and the program goes on.
//
// expect: function=after_the_exception() api="operator new" allocations=31 allocated_bytes=1271 frees=31 freed_bytes=1271 live_blocks=0 live_bytes=0
// absent: function=ask_for_too_much()
#include "memtrace_test.h"
#include <new>

NOINLINE static void ask_for_too_much() {
    keep(::operator new(opaque((size_t)1 << 60)));
}

NOINLINE static void after_the_exception() {
    void *block = ::operator new(41);
    keep(block);
    ::operator delete(block);
}

int main(int argc, char **argv) {
    rendezvous(argc, argv, "ready");
    int caught = 0;
    for (int i = 0; i < 31; i++) {
        try {
            ask_for_too_much();
        } catch (const std::bad_alloc &) {
            caught++;
        }
        after_the_exception();
    }
    require(caught == 31, 11);
    rendezvous(argc, argv, "done");
    return 0;
}
