// A library that allocates when called. The table stands in dlopen_plugins.c.
#include "memtrace_test.h"

NOINLINE void second_plugin_allocates(void) {
    for (int i = 0; i < 131; i++) {
        void *block = malloc(223);
        keep(block);
        if (i < 31) {
            free(block);
        }
    }
}
