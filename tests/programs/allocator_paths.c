// Every way through glibc's allocator on which a block is found: in the thread's cache, in a bin of
// small or of large chunks, as the rest of a larger chunk, at the top of the heap, or as a mapping of
// its own. First with one thread, then in a second one, which has an arena.
//
// realloc and posix_memalign find theirs in the same function, and count as themselves. What is no
// block is not given back. realloc starts from NULL, moves a block into a mapping of its own, has that
// moved and cut short, fails, and ends at zero.
//
// expect: function=from_cache api=malloc allocations=242 allocated_bytes=9922 frees=242 freed_bytes=9922 live_blocks=0 live_bytes=0
// expect: function=from_small_bins api=malloc allocations=160 allocated_bytes=9760 frees=80 freed_bytes=4880 live_blocks=80 live_bytes=4880
// expect: function=from_large_bins api=malloc allocations=84 allocated_bytes=346164 frees=42 freed_bytes=171948 live_blocks=42 live_bytes=174216
// expect: function=from_top api=malloc allocations=602 allocated_bytes=1896300 frees=0 freed_bytes=0 live_blocks=602 live_bytes=1896300
// expect: function=from_system api=malloc allocations=6 allocated_bytes=4800078 frees=6 freed_bytes=4800078 live_blocks=0 live_bytes=0
// expect: function=cleared api=calloc allocations=202 allocated_bytes=668822 frees=0 freed_bytes=0 live_blocks=202 live_bytes=668822
// expect: function=moved api=malloc allocations=204 allocated_bytes=322422 frees=204 freed_bytes=322422 live_blocks=0 live_bytes=0
// expect: function=moved api=realloc allocations=102 allocated_bytes=230622 frees=0 freed_bytes=0 live_blocks=102 live_bytes=230622
// expect: function=exchanged api=malloc allocations=22 allocated_bytes=11000 frees=22 freed_bytes=11000 live_blocks=0 live_bytes=0
// expect: function=exchanged api=realloc allocations=66 allocated_bytes=61606600 frees=66 freed_bytes=61606600 live_blocks=0 live_bytes=0
// expect: function=from_another_arena api=malloc allocations=3 allocated_bytes=3000 frees=3 freed_bytes=3000 live_blocks=0 live_bytes=0
// expect: function=from_another_arena api=realloc allocations=3 allocated_bytes=300000003 frees=0 freed_bytes=0 live_blocks=3 live_bytes=300000003
// expect: function=aligned api=posix_memalign allocations=62 allocated_bytes=313162 frees=0 freed_bytes=0 live_blocks=62 live_bytes=313162
// absent: function=too_large
#include "memtrace_test.h"
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>

NOINLINE static void from_cache(void) {
    for (int i = 0; i < 121; i++) {
        void *block = malloc(41);
        keep(block);
        free(block);
        free((void *)opaque(0));
    }
}

// More than a thread's cache takes: what it does not goes to a bin.
NOINLINE static void from_small_bins(void) {
    void *blocks[40];
    for (int i = 0; i < 40; i++) {
        blocks[i] = malloc(61);
        keep(blocks[i]);
    }
    for (int i = 0; i < 40; i++) {
        free(blocks[i]);
    }
    for (int i = 0; i < 40; i++) {
        keep(malloc(61));
    }
}

// Every second is freed, and stands between two in use: `from_top` gets parts of them first.
NOINLINE static void from_large_bins(void) {
    void *blocks[42];
    for (int i = 0; i < 42; i++) {
        blocks[i] = malloc(4094 + i % 2 * 54);
        keep(blocks[i]);
    }
    for (int i = 0; i < 42; i += 2) {
        free(blocks[i]);
    }
}

NOINLINE static void from_top(void) {
    for (int i = 0; i < 301; i++) {
        keep(malloc(3000 + i));
    }
}

NOINLINE static void from_system(void) {
    for (int i = 0; i < 3; i++) {
        void *block = malloc(800013);
        keep(block);
        free(block);
    }
}

NOINLINE static void cleared(void) {
    for (int i = 0; i < 101; i++) {
        keep(calloc(11, 301));
    }
}

// What stands behind a block keeps it from growing where it is.
NOINLINE static void moved(void) {
    for (int i = 0; i < 51; i++) {
        void *block = malloc(1161);
        keep(block);
        void *behind = malloc(2000);
        keep(behind);
        keep(realloc(block, 2261));
        free(behind);
    }
}

NOINLINE static void exchanged(void) {
    for (int i = 0; i < 11; i++) {
        char *block = realloc((void *)opaque(0), 500);
        keep(block);
        block = realloc(block, 900000);
        keep(block);
        block = realloc(block, 1900000);
        keep(block);
        block = realloc(block, 300);
        keep(block);
        require(realloc(block, opaque(PTRDIFF_MAX - 4096)) == NULL, 15);
        require(realloc(block, opaque(SIZE_MAX)) == NULL, 16);
        require(realloc(block, opaque(0)) == NULL, 17);
    }
}

// More than the arena of a second thread can hold, and no mapping: realloc asks malloc, and that
// the arena of the first thread.
NOINLINE static void from_another_arena(void) {
    require(mallopt(M_MMAP_MAX, 0) == 1, 18);
    for (int i = 0; i < 3; i++) {
        void *block = malloc(1000);
        keep(block);
        block = realloc(block, 100000001);
        require(block != NULL, 19);
        keep(block);
    }
}

NOINLINE static void aligned(void) {
    for (int i = 0; i < 31; i++) {
        void *block = NULL;
        require(posix_memalign(&block, 256, 5051) == 0, 11);
        keep(block);
    }
}

NOINLINE static void too_large(void) {
    for (int i = 0; i < 5; i++) {
        require(malloc(opaque(PTRDIFF_MAX - 4096)) == NULL, 12);
        keep(NULL);
    }
}

static void all(void) {
    from_cache();
    from_small_bins();
    from_large_bins();
    from_top();
    from_system();
    cleared();
    moved();
    exchanged();
    aligned();
    too_large();
}

static void *second(void *unused) {
    all();
    from_another_arena();
    return unused;
}

int main(int argc, char **argv) {
    rendezvous(argc, argv, "ready");
    all();
    pthread_t thread;
    require(pthread_create(&thread, NULL, second, NULL) == 0, 13);
    require(pthread_join(thread, NULL) == 0, 14);
    rendezvous(argc, argv, "done");
    return 0;
}
