// The second unit of main.cc.
#include "units.h"

// Where a unit begins with inlined code, GCC 12 writes its ranges for DWARF 4 so that they end with
// the first, which is empty: no reader finds the inlined functions.
NOINLINE void first_of_unit() {
    keep(nullptr);
}

NOINLINE void fill_other(size_t count) {
    take_some(count); // line: fill_other
    keep(nullptr);
}
