// What both units of the program have inlined: a class template and a function.
//
// A comment `line: NAME` marks where the code of NAME is when it allocates: the lines that a report
// must show.
#ifndef UNITS_H
#define UNITS_H

#include <map>
#include <string>
#include <vector>

#include "../memtrace_test.h"

#define INLINE inline __attribute__((always_inline))

struct Entry {
    std::map<std::string, std::vector<int>> values;
    std::string name;
};

template <typename T> struct Holder {
    T *held;

    INLINE void take(size_t count) {
        held = static_cast<T *>(malloc(count * sizeof(long))); // line: Holder::take
        keep(held);
    }
};

INLINE void take_some(size_t count) {
    Holder<Entry> holder;
    holder.take(count); // line: take_some
}

void fill_other(size_t count);

#endif
