// C++: a constructor, the growth of a vector, arrays, smart pointers, strings.
//
// `operator new` of libstdc++ calls malloc: the block counts once, as a malloc, and belongs to
// the first function outwards that is not an allocation wrapper.
//
// A vector<char> that grows to 5,000 by push_back asks for 1, 2, 4, … 8,192 bytes: 14 blocks.
//
// expect: function="Session::Session(unsigned long)" api=malloc allocations=61 allocated_bytes=18483 frees=0 freed_bytes=0 live_blocks=61 live_bytes=18483
// expect: within=make_sessions api=malloc allocations=122 allocated_bytes=20435 frees=0 freed_bytes=0 live_blocks=122 live_bytes=20435
// expect: within=grow_vector api=malloc allocations=14 allocated_bytes=16383 frees=14 freed_bytes=16383 live_blocks=0 live_bytes=0
// expect: within=reserve_vector api=malloc allocations=1 allocated_bytes=88008 frees=1 freed_bytes=88008 live_blocks=0 live_bytes=0
// expect: function=new_arrays api=malloc allocations=53 allocated_bytes=17543 frees=27 freed_bytes=8937 live_blocks=26 live_bytes=8606
// expect: function=aligned_new api=malloc|aligned_alloc|memalign allocations=9 allocated_bytes=2304 frees=9 freed_bytes=2304 live_blocks=0 live_bytes=0
// expect: within=share_pointers api=malloc allocations=33 allocated_bytes=10296 frees=33 freed_bytes=10296 live_blocks=0 live_bytes=0
// expect: within=long_strings api=malloc allocations=39 allocated_bytes=8619 frees=39 freed_bytes=8619 live_blocks=0 live_bytes=0
// expect: within=fill_map api=malloc allocations=300 allocated_bytes=14400 frees=300 freed_bytes=14400 live_blocks=0 live_bytes=0
#include "memtrace_test.h"
#include <map>
#include <memory>
#include <string>
#include <vector>

// 32 bytes by itself, 303 more in the constructor.
class Session {
public:
    __attribute__((noipa)) explicit Session(size_t room) : size(room), buffer(new char[room]) {
        keep(buffer);
    }
    size_t size;
    char *buffer;
    size_t padding[2] = {0, 0};
};

struct alignas(256) Wide {
    char bytes[256];
};

struct Payload {
    char bytes[296];
};

extern "C" {
NOINLINE void make_sessions() {
    for (int i = 0; i < 61; i++) {
        keep(new Session(303));
    }
}

NOINLINE void grow_vector() {
    std::vector<char> bytes;
    for (int i = 0; i < 5000; i++) {
        bytes.push_back(static_cast<char>(i));
        keep(bytes.data());
    }
}

NOINLINE void reserve_vector() {
    std::vector<double> values;
    values.reserve(11001);
    values.push_back(1.0);
    keep(values.data());
}

NOINLINE void new_arrays() {
    for (int i = 0; i < 53; i++) {
        char *bytes = new char[331];
        keep(bytes);
        if (i < 27) {
            delete[] bytes;
        }
    }
}

NOINLINE void aligned_new() {
    for (int i = 0; i < 9; i++) {
        Wide *wide = new Wide;
        keep(wide);
        delete wide;
    }
}

// One block each: 16 bytes of counts and the 296 of the payload.
NOINLINE void share_pointers() {
    for (int i = 0; i < 33; i++) {
        auto pointer = std::make_shared<Payload>();
        keep(pointer.get());
    }
}

// 220 characters and the terminator.
NOINLINE void long_strings() {
    for (int i = 0; i < 39; i++) {
        std::string text(220, 'x');
        keep(text.data());
    }
}

// A node is 32 bytes of tree and a pair of 16.
NOINLINE void fill_map() {
    std::map<long, long> map;
    for (long i = 0; i < 300; i++) {
        map[i] = i;
    }
    keep(&map);
}
}

int main(int argc, char **argv) {
    rendezvous(argc, argv, "ready");
    make_sessions();
    grow_vector();
    reserve_vector();
    new_arrays();
    aligned_new();
    share_pointers();
    long_strings();
    fill_map();
    rendezvous(argc, argv, "done");
    return 0;
}
