// A program that allocates, runs itself again by exec, and then another program.
//
// The new program is traced from its first instruction. What the old one held was held when it
// ended.
//
// expect: function=before_exec api=malloc allocations=103 allocated_bytes=10609 frees=3 freed_bytes=309 live_blocks=100 live_bytes=10300
// expect: function=after_exec api=malloc allocations=107 allocated_bytes=11663 frees=107 freed_bytes=11663 live_blocks=0 live_bytes=0
// expect: function=in_another_program api=malloc allocations=109 allocated_bytes=12099 frees=0 freed_bytes=0 live_blocks=109 live_bytes=12099
// process: index=0 allocations=319 allocated_bytes=34371 frees=110 freed_bytes=11972 live_blocks=209 live_bytes=22399
// totals: allocations=319 allocated_bytes=34371 frees=110 freed_bytes=11972 live_blocks=209 live_bytes=22399
// processes: 1
#include "memtrace_test.h"

NOINLINE static void before_exec(void) {
    for (int i = 0; i < 103; i++) {
        void *block = malloc(103);
        keep(block);
        if (i < 3) {
            free(block);
        }
    }
}

NOINLINE static void after_exec(void) {
    for (int i = 0; i < 107; i++) {
        void *block = malloc(109);
        keep(block);
        free(block);
    }
}

// `another` in the directory of this executable.
static void run_another(char **argv) {
    static char path[4096];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 16);
    require(length > 0, 12);
    path[length] = 0;
    strcpy(strrchr(path, '/') + 1, "exec_another");
    execv(path, argv);
    _exit(13);
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "--again") == 0) {
        after_exec();
        run_another(argv);
    }
    rendezvous(argc, argv, "ready");
    before_exec();
    char *again[] = {argv[0], "--again", argc > 1 ? argv[1] : NULL, NULL};
    execv("/proc/self/exe", again);
    return 14;
}
