// A signal that comes while a probed function runs: the return address of that function is a return
// probe's, and between it and the handler's mapping lies a signal frame.
//
// `malloc` is the program's own, so that a handler may run in it. What the handler maps is no call
// of the allocator and counts; what it allocates is inside the interrupted call and does not.
//
// expect: function=use_malloc api=malloc allocations=43 allocated_bytes=5977 frees=0 freed_bytes=0 live_blocks=43 live_bytes=5977
// expect: function=map_in_handler api=mmap allocations=43 allocated_bytes=528384 frees=0 freed_bytes=0 live_blocks=43 live_bytes=528384
// expect: within=interrupt_malloc api=mmap allocations=43 allocated_bytes=528384 frees=0 freed_bytes=0 live_blocks=43 live_bytes=528384
// expect: within=use_malloc api=mmap allocations=43 allocated_bytes=528384 frees=0 freed_bytes=0 live_blocks=43 live_bytes=528384
// absent: function=allocate_in_handler
// totals: allocations=43 allocated_bytes=5977 frees=0 freed_bytes=0 live_blocks=43 live_bytes=5977
#include "memtrace_test.h"
#include <signal.h>
#include <sys/mman.h>

static _Alignas(16) unsigned char arena[1 << 20];
static size_t used;
static volatile sig_atomic_t in_handler;

NOINLINE static void interrupt_malloc(void) {
    require(raise(SIGUSR1) == 0, 12);
}

NOINLINE void *malloc(size_t size) {
    size_t rounded = (size + 15) / 16 * 16;
    if (rounded > sizeof arena - used) {
        return NULL;
    }
    unsigned char *block = arena + used;
    used += rounded;
    if (!in_handler) {
        interrupt_malloc();
    }
    keep(block);
    return block;
}

NOINLINE void free(void *block) {
    keep(block);
}

NOINLINE static void map_in_handler(void) {
    void *memory = mmap(NULL, 12288, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    require(memory != MAP_FAILED, 10);
}

NOINLINE static void allocate_in_handler(void) {
    keep(malloc(31));
}

static void on_usr1(int signal) {
    (void)signal;
    in_handler = 1;
    map_in_handler();
    allocate_in_handler();
    in_handler = 0;
}

NOINLINE static void use_malloc(void) {
    for (int i = 0; i < 43; i++) {
        keep(malloc(139));
    }
}

int main(int argc, char **argv) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_usr1;
    require(sigaction(SIGUSR1, &action, NULL) == 0, 11);

    rendezvous(argc, argv, "ready");
    use_malloc();
    rendezvous(argc, argv, "done");
    return 0;
}
