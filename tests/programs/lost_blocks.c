// Blocks that nothing points to, and blocks that one hidden place points to.
//
// Each function whose name begins with `lose` loses what its comment says; what the others make can
// be reached. LeakSanitizer says so too (`lost_blocks_lsan`), but for the places that it does not know.
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/mman.h>

#include "memtrace_test.h"

struct node {
    struct node *next;
    char rest[48];
};

#ifdef WITH_LSAN
int __lsan_do_recoverable_leak_check(void);
#endif

static void *volatile in_global;
static void *volatile in_table;
static void **in_old_block;
static void **in_mapping;
static __thread void *volatile in_tls;
static volatile uintptr_t inside, tagged_low, tagged_high, hidden;

// 1 block directly, 9 indirectly.
NOINLINE static void lose_head_of_list(void) {
    struct node *head = NULL;
    for (int i = 0; i < 10; i++) {
        struct node *node = malloc(sizeof *node);
        node->next = head;
        keep(node);
        head = node;
    }
    keep(head);
}

// 1 block stands for the cycle: directly; 2 indirectly.
NOINLINE static void lose_cycle(void) {
    struct node *nodes[3];
    for (int i = 0; i < 3; i++) {
        nodes[i] = malloc(sizeof *nodes[i]);
    }
    for (int i = 0; i < 3; i++) {
        nodes[i]->next = nodes[(i + 1) % 3];
    }
    keep(nodes);
    memset(nodes, 0, sizeof nodes);
    keep(nodes);
}

// 7 blocks directly.
NOINLINE static void lose_plain(void) {
    for (int i = 0; i < 7; i++) {
        keep(malloc(113));
    }
}

// 1 block directly: only its complement is kept.
NOINLINE static void lose_hidden(void) {
    hidden = ~(uintptr_t)malloc(211);
}

// 1 block of 300 KB, with a mapping of its own, directly.
NOINLINE static void lose_large(void) {
    keep(malloc(300000));
}

// 1 block directly: what is left of its owner points to it.
NOINLINE static void lose_with_owner(void) {
    void **owner = malloc(80);
    owner[5] = malloc(47);
    keep(owner);
    free(owner);
}

// 20 blocks directly: what realloc left behind points to them.
NOINLINE static void lose_in_moved_table(void) {
    void **table = malloc(50 * sizeof *table);
    for (int i = 0; i < 20; i++) {
        table[20 + i] = malloc(49);
    }
    table = realloc(table, 100000 * sizeof *table);
    memset(table, 0, 50 * sizeof *table);
    in_table = table;
}

NOINLINE static void keep_in_global(void) {
    in_global = malloc(17);
}

NOINLINE static void keep_in_old_block(void) {
    *in_old_block = malloc(18);
}

NOINLINE static void keep_in_mapping(void) {
    in_mapping[100] = malloc(19);
}

NOINLINE static void keep_in_tls(void) {
    in_tls = malloc(20);
}

NOINLINE static void keep_inside(void) {
    inside = (uintptr_t)malloc(4000) + 3999;
}

NOINLINE static void keep_with_low_tag(void) {
    tagged_low = (uintptr_t)malloc(22) | 7;
}

NOINLINE static void keep_with_high_tag(void) {
    tagged_high = (uintptr_t)malloc(23) | (uintptr_t)0xfff8 << 48;
}

NOINLINE static void keep_behind_another(void) {
    void **first = in_global;
    *first = malloc(24);
}

// Nothing in the process points to it until the event comes.
NOINLINE static void keep_in_epoll(void) {
    int ends[2];
    require(pipe(ends) == 0, 91);
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = malloc(25)};
    require(epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &event) == 0, 92);
    event.data.ptr = NULL;
    keep(&event);
}

// What was left on the stack and in registers by the calls above.
NOINLINE static void wipe(void) {
    char stack[16384];
    memset(stack, 0, sizeof stack);
    keep(stack);
    // As many bytes as realloc copies, through the same vector registers.
    memcpy(stack, stack + 8192, opaque(50 * sizeof(void *)));
    keep(stack);
}

static pthread_barrier_t barrier;

static atomic_int is_set, is_over;

// One block is held by a vector register alone.
static void *thread_with_register(void *unused) {
    void *block = malloc(30);
    __asm__ volatile(
        "movq %0, %%xmm15\n"
        "xorl %%eax, %%eax\n"
        "movl $1, %1\n"
        "1: pause\n"
        "cmpl $0, %2\n"
        "je 1b\n"
        : "+a"(block), "=m"(is_set)
        : "m"(is_over)
        : "xmm15", "memory", "cc");
    return unused;
}

// One block is held by the thread's stack, one by its own variable, one by a register.
static void *thread_with_blocks(void *unused) {
    void *volatile on_stack = malloc(27);
    in_tls = malloc(28);
    register void *in_register __asm__("r12") = malloc(29);
    pthread_barrier_wait(&barrier);
    __asm__ volatile("" : "+r"(in_register));
    pthread_barrier_wait(&barrier);
    __asm__ volatile("" : "+r"(in_register));
    (void)on_stack;
    return unused;
}

int main(int argc, char **argv) {
    in_old_block = malloc(4096);
    in_mapping = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    require(in_mapping != MAP_FAILED, 93);
    pthread_barrier_init(&barrier, NULL, 2);
    rendezvous(argc, argv, "ready");
    lose_head_of_list();
    lose_cycle();
    lose_plain();
    lose_hidden();
    lose_large();
    lose_with_owner();
    lose_in_moved_table();
    keep_in_global();
    keep_in_old_block();
    keep_in_mapping();
    keep_in_tls();
    keep_inside();
    keep_with_low_tag();
    keep_with_high_tag();
    keep_behind_another();
    keep_in_epoll();
    // A new thread inherits vector registers.
    wipe();
    pthread_t thread;
    require(pthread_create(&thread, NULL, thread_with_blocks, NULL) == 0, 94);
    pthread_barrier_wait(&barrier);
    pthread_t spinning;
    require(pthread_create(&spinning, NULL, thread_with_register, NULL) == 0, 96);
    while (!atomic_load(&is_set)) {
    }
    void *volatile on_stack = malloc(26);
    wipe();
#ifdef WITH_LSAN
    __lsan_do_recoverable_leak_check();
#endif
    rendezvous(argc, argv, "done");
    pthread_barrier_wait(&barrier);
    pthread_join(thread, NULL);
    atomic_store(&is_over, 1);
    pthread_join(spinning, NULL);
    (void)on_stack;
    return 0;
}
