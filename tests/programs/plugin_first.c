// A library that allocates while it is being loaded, and when called. The table stands in
// dlopen_plugins.c.
#include "memtrace_test.h"

NOINLINE __attribute__((constructor)) static void plugin_constructor(void) {
    for (int i = 0; i < 13; i++) {
        keep(malloc(203));
    }
}

NOINLINE void first_plugin_allocates(void) {
    for (int i = 0; i < 127; i++) {
        void *block = malloc(211);
        keep(block);
        if (i < 27) {
            free(block);
        }
    }
}
