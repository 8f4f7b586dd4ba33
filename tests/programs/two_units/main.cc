// Two units with inlined functions of one header, as `-gsplit-dwarf` and dwz take them apart.
//
// expect: function="Holder<Entry>::take(unsigned long)" api=malloc allocations=18 allocated_bytes=3440
// expect: within="fill_main(unsigned long)" api=malloc allocations=11 allocated_bytes=1760
// expect: within="fill_other(unsigned long)" api=malloc allocations=7 allocated_bytes=1680
// expect: within=main api=malloc allocations=18 allocated_bytes=3440
#include "units.h"

NOINLINE static void fill_main(size_t count) {
    take_some(count); // line: fill_main
    keep(nullptr);
}

int main(int argc, char **argv) {
    rendezvous(argc, argv, "ready");
    for (int i = 0; i < 11; i++) {
        fill_main(20); // line: main to fill_main
    }
    for (int i = 0; i < 7; i++) {
        fill_other(30); // line: main to fill_other
    }
    rendezvous(argc, argv, "done");
    return 0;
}
