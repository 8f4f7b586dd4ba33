// Programs that leak and programs that do not, one for each argument; see tests/tests/growth.rs.
//
// The truth is in the names: a function whose name begins with `leak_` leaks, every other one does
// not. Each program does 1000 steps in 2.5 seconds and ends with everything that it holds.
#include "memtrace_test.h"

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <time.h>

enum { STEPS = 1000, STEP_NS = 2500000 };

static uint64_t random_state = 88172645463325252u;

// A number below `limit`, the same in every run.
static size_t below(size_t limit) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state % limit;
}

static void *kept[1 << 16];
static size_t kept_count;

static void *keep_it(void *pointer) {
    require(pointer != NULL, 2);
    keep(pointer);
    kept[kept_count++ % (1 << 16)] = pointer;
    return pointer;
}

// Not the last thing that a function does, or its frame would be gone.
static inline void *block_of(size_t size) {
    void *block = malloc(size);
    keep(block);
    return block;
}

// A queue of blocks: the oldest leaves first.
struct queue {
    void *blocks[4096];
    size_t first, count;
};

static void put(struct queue *queue, void *block) {
    require(block != NULL && queue->count < 4096, 3);
    queue->blocks[(queue->first + queue->count++) % 4096] = block;
}

static void drop_oldest(struct queue *queue) {
    free(queue->blocks[queue->first]);
    queue->first = (queue->first + 1) % 4096;
    queue->count--;
}

static void drop_any(struct queue *queue) {
    size_t victim = (queue->first + below(queue->count)) % 4096;
    void *block = queue->blocks[victim];
    queue->blocks[victim] = queue->blocks[queue->first];
    queue->blocks[queue->first] = block;
    drop_oldest(queue);
}

static void drop_all(struct queue *queue) {
    while (queue->count > 0) {
        drop_oldest(queue);
    }
}

static struct queue queue;

// ---- leaks -----------------------------------------------------------------------------------

NOINLINE static void leak_listener(int step) { (void)step; keep_it(malloc(96)); }

NOINLINE static void leak_session(int step) { (void)step; keep_it(malloc(300 + below(900))); }

NOINLINE static void leak_string(int step) { (void)step; keep_it(strdup("a string for each step")); keep_it(strdup("and another one of the same kind")); }

NOINLINE static void leak_buffer(int step) { if (step % 25 == 0) keep_it(malloc(256 << 10)); }

NOINLINE static void leak_pair(int step) { if (step % 4 == 0) { keep_it(malloc(64)); keep_it(malloc(1500)); } }

NOINLINE static void leak_random_sizes(int step) { (void)step; if (below(2)) keep_it(malloc(100 + below(4000))); }

NOINLINE static void leak_larger_blocks(int step) { keep_it(malloc(400 + (size_t)step)); }

NOINLINE static void leak_cache_lines(int step) { if (step % 2 == 0) keep_it(aligned_alloc(64, 640)); }

NOINLINE static void leak_calloc(int step) { if (step % 10 == 0) keep_it(calloc(100, 80)); }

NOINLINE static void leak_aligned(int step) {
    void *block = NULL;
    if (step % 10 == 0) { require(posix_memalign(&block, 4096, 8192) == 0, 4); keep_it(block); }
}

NOINLINE static void leak_mapping(int step) {
    if (step % 25 == 0) {
        keep_it(mmap(NULL, 64 << 10, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    }
}

NOINLINE static void leak_by_realloc(int step) {
    static void *growing;
    if (step % 5 == 0) { growing = realloc(growing, (size_t)(step + 5) * 4096); keep(growing); }
}

NOINLINE static void *leak_one_in_hundred(void) { return block_of(2048); }
static void slow_leak(int step) {
    (void)step;
    for (int i = 0; i < 10; i++) {
        void *block = leak_one_in_hundred();
        keep(block);
        if (below(100) != 0) free(block);
    }
}

NOINLINE static void *leak_in_churn(void) { return block_of(20000); }
static void rare_leak(int step) {
    for (int i = 0; i < 40; i++) {
        void *block = leak_in_churn();
        keep(block);
        // One of 2000, and a wandering number of others in flight.
        if (step % 50 != 0 || i != 0) put(&queue, block);
        while (queue.count > 20 + below(60)) drop_oldest(&queue);
    }
}

NOINLINE static void leak_cache_entry(int step) { (void)step; keep_it(malloc(100 + below(2000))); }

NOINLINE static void *leak_cache_that_evicts_too_little(void) { return block_of(1024); }
static void half_a_cache(int step) {
    put(&queue, leak_cache_that_evicts_too_little());
    put(&queue, leak_cache_that_evicts_too_little());
    if (step % 2 == 0) drop_any(&queue);
}

NOINLINE static void leak_beside_a_cache(int step) { (void)step; keep_it(malloc(256)); }
NOINLINE static void *entry_beside_a_leak(void) { return block_of(2048); }
static void leak_and_cache(int step) {
    leak_beside_a_cache(step);
    put(&queue, entry_beside_a_leak());
    if (queue.count > 150) drop_oldest(&queue);
}

NOINLINE static void leak_after_warm_up(int step) {
    if (step == 0) for (int i = 0; i < 500; i++) keep_it(malloc(512));
    keep_it(malloc(512));
}

NOINLINE static void leak_in_bursts(int step) {
    if (step % 100 == 50) for (int i = 0; i < 100; i++) keep_it(malloc(700));
}

NOINLINE static void *leak_in_one_thread(int mine) {
    void *block = malloc(600);
    keep(block);
    if (mine) return keep_it(block);
    free(block);
    return NULL;
}
static void *worker(void *argument) {
    for (int i = 0; i < STEPS; i++) {
        nanosleep(&(struct timespec){.tv_nsec = STEP_NS}, NULL);
        leak_in_one_thread(argument != NULL);
    }
    return NULL;
}
static void four_threads(int step) {
    if (step != 0) return;
    for (int i = 0; i < 4; i++) {
        pthread_t thread;
        require(pthread_create(&thread, NULL, worker, i == 0 ? &queue : NULL) == 0, 5);
    }
}

NOINLINE static void leak_node(int step) {
    static struct node { struct node *next; char data[120]; } *list;
    (void)step;
    struct node *node = malloc(sizeof *node);
    require(node != NULL, 6);
    node->next = list;
    list = node;
    keep(list);
}

NOINLINE static void *leak_on_error(void) { return block_of(3000); }
static void error_path(int step) {
    void *request = leak_on_error();
    keep(request);
    if (step % 20 != 7) free(request);
}

// ---- healthy ---------------------------------------------------------------------------------

NOINLINE static void request(int step) {
    (void)step;
    for (int i = 0; i < 10; i++) { void *block = malloc(4000 + below(500)); keep(block); free(block); }
}

NOINLINE static void *fifo_entry(void) { return block_of(4096); }
static void fifo(int step) { (void)step; put(&queue, fifo_entry()); if (queue.count > 150) drop_oldest(&queue); }
static void large_fifo(int step) { (void)step; put(&queue, fifo_entry()); if (queue.count > 450) drop_oldest(&queue); }

NOINLINE static void *lru_entry(void) { return block_of(500 + below(4000)); }
static void random_cache(int step) { (void)step; put(&queue, lru_entry()); if (queue.count > 150) drop_any(&queue); }

NOINLINE static void *arena_piece(void) { return block_of(1000); }
static void arena(int step) { put(&queue, arena_piece()); if (step % 40 == 39) drop_all(&queue); }

NOINLINE static void *log_line(void) { return block_of(2000); }
static void rotated_log(int step) { put(&queue, log_line()); if (step % 300 == 299) drop_all(&queue); }
static void log_with_floor(int step) {
    put(&queue, log_line());
    if (step % 250 == 249) while (queue.count > 50) drop_any(&queue);
}

NOINLINE static void warm_up(int step) { if (step < 100) keep_it(malloc(8000)); }
NOINLINE static void long_warm_up(int step) { if (step < 550) keep_it(malloc(4000)); }

NOINLINE static void lazy_table(int step) {
    static char seen[200];
    (void)step;
    size_t key = below(200);
    if (!seen[key]) { seen[key] = 1; keep_it(malloc(8000)); }
}

NOINLINE static void *hash_table(void *old, size_t size) { void *table = realloc(old, size); keep(table); return table; }
static void doubling(int step) {
    static void *table;
    static size_t size = 4096;
    if (table == NULL || ((size_t)step * 512 > size && step < 500)) { size *= 2; table = hash_table(table, size); keep(table); }
}

NOINLINE static void *connection(void) { return block_of(16 << 10); }
static void breathing_pool(int step) {
    size_t wanted = 40 + (size_t)((step / 4) % 50 < 25 ? (step / 4) % 25 : 25 - (step / 4) % 25);
    while (queue.count < wanted) put(&queue, connection());
    while (queue.count > wanted) drop_oldest(&queue);
}

NOINLINE static void *double_buffer(void) { return block_of(3 << 20); }
static void swap_buffers(int step) { (void)step; put(&queue, double_buffer()); if (queue.count > 2) drop_oldest(&queue); }

NOINLINE static void configuration(int step) { if (step == 0) for (int i = 0; i < 1000; i++) keep_it(malloc(500)); }

NOINLINE static void *batch_item(void) { return block_of(4000); }
static void batches(int step) { if (step % 250 < 200) put(&queue, batch_item()); if (step % 250 == 220) drop_all(&queue); }

NOINLINE static void *chunk(void) { void *mapping = mmap(NULL, 256 << 10, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); keep(mapping); return mapping; }
static void mapping_pool(int step) {
    static void *pool[20];
    if (step % 4 != 0) return;
    void **slot = &pool[(step / 4) % 20];
    if (*slot != NULL) munmap(*slot, 256 << 10);
    *slot = chunk();
}

NOINLINE static void *wanderer(void) { return block_of(5000); }
static void wandering_pool(int step) {
    (void)step;
    if (queue.count < 5 || (queue.count < 100 && below(2) == 0)) put(&queue, wanderer()); else drop_any(&queue);
}

NOINLINE static void *session_with_end(void) { return block_of(3000); }
static void sessions(int step) { (void)step; if (below(2)) put(&queue, session_with_end()); if (queue.count > 100 + below(20)) drop_oldest(&queue); }

NOINLINE static void stopped(int step) { if (step < 250) keep_it(malloc(2000)); else { void *block = malloc(2000); keep(block); free(block); } }

NOINLINE static void giant(int step) { if (step % 50 == 0) { void *block = malloc(30 << 20); keep(block); free(block); } }

static const struct program {
    const char *name;
    void (*step)(int step);
} programs[] = {
    {"leak_listener", leak_listener}, {"leak_session", leak_session}, {"leak_string", leak_string},
    {"leak_buffer", leak_buffer}, {"leak_calloc", leak_calloc}, {"leak_aligned", leak_aligned},
    {"leak_mapping", leak_mapping}, {"leak_by_realloc", leak_by_realloc},
    {"leak_one_in_hundred", slow_leak}, {"leak_in_churn", rare_leak},
    {"leak_cache_entry", leak_cache_entry}, {"leak_pair", leak_pair},
    {"leak_random_sizes", leak_random_sizes}, {"leak_larger_blocks", leak_larger_blocks},
    {"leak_cache_lines", leak_cache_lines},
    {"leak_cache_that_evicts_too_little", half_a_cache}, {"leak_beside_a_cache", leak_and_cache},
    {"leak_after_warm_up", leak_after_warm_up}, {"leak_in_bursts", leak_in_bursts},
    {"leak_in_one_thread", four_threads}, {"leak_node", leak_node}, {"leak_on_error", error_path},
    {"request", request}, {"fifo", fifo}, {"large_fifo", large_fifo},
    {"random_cache", random_cache}, {"arena", arena}, {"rotated_log", rotated_log},
    {"log_with_floor", log_with_floor}, {"warm_up", warm_up}, {"long_warm_up", long_warm_up},
    {"lazy_table", lazy_table}, {"doubling", doubling}, {"breathing_pool", breathing_pool},
    {"swap_buffers", swap_buffers}, {"configuration", configuration}, {"batches", batches},
    {"mapping_pool", mapping_pool}, {"wandering_pool", wandering_pool}, {"sessions", sessions},
    {"stopped", stopped}, {"giant", giant},
};

// Without an argument: the names of all programs, which is where the test has them from.
int main(int argc, char **argv) {
    size_t count = sizeof programs / sizeof *programs;
    for (size_t i = 0; i < count && argc < 2; i++) {
        puts(programs[i].name);
    }
    for (size_t i = 0; i < count && argc == 2; i++) {
        if (strcmp(programs[i].name, argv[1]) != 0) continue;
        struct timespec due;
        clock_gettime(CLOCK_MONOTONIC, &due);
        for (int step = 0; step < STEPS; step++) {
            programs[i].step(step);
            due.tv_nsec += STEP_NS;
            if (due.tv_nsec >= 1000000000) { due.tv_sec++; due.tv_nsec -= 1000000000; }
            clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
        }
        return 0;
    }
    return argc == 2;
}
