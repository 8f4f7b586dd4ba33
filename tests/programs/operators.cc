// C++'s operators in all their forms, for each library that defines them.
//
// Where they only call malloc or an aligned function of C, that is what is counted.
//
// expect: function=use_new() api="malloc|operator new" allocations=103 allocated_bytes=8343 frees=50 freed_bytes=4050 live_blocks=53 live_bytes=4293
// expect: function=use_array() api="malloc|operator new" allocations=61 allocated_bytes=7747 frees=61 freed_bytes=7747 live_blocks=0 live_bytes=0
// expect: function=use_nothrow() api="malloc|operator new" allocations=29 allocated_bytes=2871 frees=29 freed_bytes=2871 live_blocks=0 live_bytes=0
// expect: function=use_aligned() api="malloc|operator new|aligned_alloc|memalign|posix_memalign" allocations=13 allocated_bytes=3328 frees=13 freed_bytes=3328 live_blocks=0 live_bytes=0
#include "memtrace_test.h"
#include <new>

NOINLINE static void use_new() {
    for (int i = 0; i < 103; i++) {
        void *block = ::operator new(81);
        keep(block);
        if (i < 25) {
            ::operator delete(block);
        } else if (i < 50) {
            ::operator delete(block, (size_t)81);
        }
    }
    ::operator delete(nullptr);
}

NOINLINE static void use_array() {
    for (int i = 0; i < 61; i++) {
        unsigned char *block = new unsigned char[127];
        keep(block);
        delete[] block;
    }
}

NOINLINE static void use_nothrow() {
    for (int i = 0; i < 29; i++) {
        void *block = ::operator new(99, std::nothrow);
        keep(block);
        ::operator delete(block, std::nothrow);
    }
    require(::operator new(opaque((size_t)1 << 60), std::nothrow) == nullptr, 11);
}

struct alignas(128) Wide {
    unsigned char bytes[256];
};

NOINLINE static void use_aligned() {
    for (int i = 0; i < 13; i++) {
        Wide *wide = new Wide;
        keep(wide);
        delete wide;
    }
}

int main(int argc, char **argv) {
    rendezvous(argc, argv, "ready");
    use_new();
    use_array();
    use_nothrow();
    use_aligned();
    rendezvous(argc, argv, "done");
    return 0;
}
