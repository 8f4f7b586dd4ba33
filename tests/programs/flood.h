// More events than a ring of 1 MiB holds: 40,000 blocks, each freed at once.
#ifndef FLOOD_H
#define FLOOD_H

#include "memtrace_test.h"

NOINLINE static void flood(void) {
    for (int i = 0; i < 40000; i++) {
        void *block = malloc(73);
        keep(block);
        free(block);
    }
}

#endif
