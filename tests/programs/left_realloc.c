// glibc's realloc is left by longjmp while it copies a block that cannot be read. What is called
// afterwards is no part of it: neither other functions, nor realloc from the same place.
//
// expect: function=after_the_jump api=malloc allocations=183 allocated_bytes=27267 frees=183 freed_bytes=27267 live_blocks=0 live_bytes=0
// expect: function=give_more api=realloc allocations=21 allocated_bytes=1260000 frees=0 freed_bytes=0 live_blocks=21 live_bytes=1260000
#include "memtrace_test.h"
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>

#define PAGE ((uintptr_t)4096)

static sigjmp_buf home;
static char *unreadable;

static void on_segv(int signal) {
    (void)signal;
    require(mprotect(unreadable, PAGE, PROT_READ | PROT_WRITE) == 0, 11);
    siglongjmp(home, 1);
}

NOINLINE static void give_more(void *block) {
    keep(realloc(block, 60000));
}

// What stands behind it keeps the block from growing where it is.
NOINLINE static char *block_that_has_to_move(void) {
    char *block = malloc(40000);
    require(block != NULL, 12);
    keep(malloc(30000));
    return block;
}

NOINLINE static void leave_realloc(void) {
    char *block = block_that_has_to_move();
    unreadable = (char *)(((uintptr_t)block + 2 * PAGE) & ~(PAGE - 1));
    if (sigsetjmp(home, 1) == 0) {
        require(mprotect(unreadable, PAGE, PROT_NONE) == 0, 13);
        give_more(block);
        require(0, 14);
    }
}

NOINLINE static void after_the_jump(void) {
    for (int i = 0; i < 61; i++) {
        void *block = malloc(149);
        keep(block);
        free(block);
    }
}

int main(int argc, char **argv) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_segv;
    require(sigaction(SIGSEGV, &action, NULL) == 0, 10);

    rendezvous(argc, argv, "ready");
    for (int i = 0; i < 3; i++) {
        leave_realloc();
        for (int j = 0; j < 7; j++) {
            give_more(block_that_has_to_move());
        }
        leave_realloc();
        after_the_jump();
    }
    rendezvous(argc, argv, "done");
    return 0;
}
