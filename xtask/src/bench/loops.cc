// The loops that `cargo xtask bench` measures.
//
//   loops LOOP DEPTH THREADS
//
// Says `loops: ready` once its threads exist. Then each line on stdin is a number of operations for
// every thread; the answer on stdout is
//
//   loops: CPU_NS WALL_NS
//
// the CPU time of all threads together, and the time from start to end. CPU time is what a reader
// of a shared machine can compare. An operation makes one allocation and one release, and nothing
// else here allocates after `ready`, so that a tracer's count can be compared exactly.
//
// Built at -O2, once with -fomit-frame-pointer and once with -fno-omit-frame-pointer.
#include <dlfcn.h>
#include <pthread.h>
#include <time.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

namespace {

constexpr size_t BLOCK_BYTES = 64;
constexpr unsigned MAX_THREADS = 64;

/// Hides a value from the optimiser, or the pair would be optimised away.
template <typename T> void keep(T &value) { asm volatile("" : "+r"(value) : : "memory"); }

uint64_t now_ns(clockid_t clock)
{
    timespec now;
    clock_gettime(clock, &now);
    return uint64_t(now.tv_sec) * 1'000'000'000u + uint64_t(now.tv_nsec);
}

[[noreturn]] void die(const char *what)
{
    fprintf(stderr, "loops: %s\n", what);
    exit(2);
}

// One call site each.

void malloc_loop(uint64_t ops)
{
    for (uint64_t i = 0; i < ops; i++) {
        void *block = malloc(BLOCK_BYTES);
        keep(block);
        free(block);
    }
}

void calloc_loop(uint64_t ops)
{
    for (uint64_t i = 0; i < ops; i++) {
        void *block = calloc(1, BLOCK_BYTES);
        keep(block);
        free(block);
    }
}

/// Each call is an allocation and a release.
void realloc_loop(uint64_t ops)
{
    void *block = nullptr;
    for (uint64_t i = 0; i < ops; i++) {
        block = realloc(block, i % 2 == 0 ? BLOCK_BYTES : 2 * BLOCK_BYTES);
        keep(block);
    }
    free(block);
}

void posix_memalign_loop(uint64_t ops)
{
    for (uint64_t i = 0; i < ops; i++) {
        void *block;
        if (posix_memalign(&block, BLOCK_BYTES, BLOCK_BYTES) != 0) die("no memory");
        keep(block);
        free(block);
    }
}

void new_loop(uint64_t ops)
{
    for (uint64_t i = 0; i < ops; i++) {
        void *block = operator new(BLOCK_BYTES);
        keep(block);
        operator delete(block);
    }
}

void *(*mallocx)(size_t, int);
void (*sdallocx)(void *, size_t, int);

void mallocx_loop(uint64_t ops)
{
    for (uint64_t i = 0; i < ops; i++) {
        void *block = mallocx(BLOCK_BYTES, 0);
        keep(block);
        sdallocx(block, BLOCK_BYTES, 0);
    }
}

// 1,000 call paths in turn. Seven calls go left or right, with frames of different sizes, and one
// of eight functions allocates: many paths have a stack pointer and a call site of their own, as in
// a real program, and many share both with a few others.

template <unsigned SITE> [[gnu::noinline]] void leaf()
{
    void *block = malloc(BLOCK_BYTES);
    keep(block);
    free(block);
    asm volatile("" : : "i"(SITE) : "memory");
}

constexpr void (*LEAVES[])() = {leaf<0>, leaf<1>, leaf<2>, leaf<3>, leaf<4>, leaf<5>, leaf<6>, leaf<7>};

template <unsigned LEVEL, bool RIGHT> [[gnu::noinline]] void branch(unsigned path)
{
    char locals[RIGHT ? 16 + 16 * LEVEL : 16];
    asm volatile("" : : "r"(locals), "i"(LEVEL * 2 + RIGHT) : "memory");
    if constexpr (LEVEL == 0)
        LEAVES[path % 8]();
    else if (path % 2 == 0)
        branch<LEVEL - 1, false>(path / 2);
    else
        branch<LEVEL - 1, true>(path / 2);
    asm volatile("" : : "r"(locals) : "memory");
}

void paths_loop(uint64_t ops)
{
    for (uint64_t i = 0; i < ops; i++) branch<7, false>(i % 1000);
}

// A recursion like a walk of a tree: its depth and its path change on every call, and one of 65,536
// stacks comes back only after all others.

[[gnu::noinline]] void visit(uint64_t path, unsigned depth)
{
    if (depth == 0) {
        void *block = malloc(BLOCK_BYTES);
        keep(block);
        free(block);
        asm volatile("# leaf" : : : "memory");
    } else if (path % 2 == 0) {
        visit(path / 2, depth - 1);
        asm volatile("# left" : : : "memory");
    } else {
        visit(path / 2, depth - 1);
        asm volatile("# right" : : : "memory");
    }
}

void recursion_loop(uint64_t ops)
{
    static uint64_t call;
    for (uint64_t i = 0; i < ops; i++) {
        uint64_t path = (call++ % 65'536 + 1) * 0x9e37'79b9'7f4a'7c15u;
        path ^= path >> 32;
        visit(path, 10 + unsigned(path >> 20) % 41);
    }
}

using Loop = void (*)(uint64_t);

struct Named {
    const char *name;
    Loop loop;
};

constexpr Named LOOPS[] = {
    {"malloc", malloc_loop},
    {"calloc", calloc_loop},
    {"realloc", realloc_loop},
    {"posix_memalign", posix_memalign_loop},
    {"new", new_loop},
    {"mallocx", mallocx_loop},
    {"paths", paths_loop},
    {"recursion", recursion_loop},
};

Loop find_loop(const char *name)
{
    for (const Named &named : LOOPS)
        if (strcmp(named.name, name) == 0) return named.loop;
    die("no such loop");
}

Loop loop;
unsigned depth;
unsigned threads;
uint64_t ops;

/// The loop, `levels` calls further down.
[[gnu::noinline]] void descend(unsigned levels)
{
    if (levels == 0)
        loop(ops);
    else
        descend(levels - 1);
    // Work after the call, so that it is no tail call and every level keeps its frame.
    asm volatile("" : : : "memory");
}

uint64_t cpu_ns_of_loop()
{
    uint64_t start_ns = now_ns(CLOCK_THREAD_CPUTIME_ID);
    descend(depth);
    return now_ns(CLOCK_THREAD_CPUTIME_ID) - start_ns;
}

pthread_barrier_t start_line, finish_line;
uint64_t cpu_ns[MAX_THREADS];

void *worker(void *index)
{
    for (;;) {
        pthread_barrier_wait(&start_line);
        cpu_ns[uintptr_t(index)] = cpu_ns_of_loop();
        pthread_barrier_wait(&finish_line);
    }
}

void start_workers()
{
    pthread_barrier_init(&start_line, nullptr, threads + 1);
    pthread_barrier_init(&finish_line, nullptr, threads + 1);
    for (uintptr_t index = 0; index < threads; index++) {
        pthread_t thread;
        if (pthread_create(&thread, nullptr, worker, reinterpret_cast<void *>(index)) != 0)
            die("cannot start a thread");
    }
}

uint64_t cpu_ns_of_workers()
{
    pthread_barrier_wait(&start_line);
    pthread_barrier_wait(&finish_line);
    uint64_t sum_ns = 0;
    for (unsigned index = 0; index < threads; index++) sum_ns += cpu_ns[index];
    return sum_ns;
}

} // namespace

int main(int argc, char **argv)
{
    static char input[256], output[256], line[64];

    if (argc != 4) die("usage: loops LOOP DEPTH THREADS");
    loop = find_loop(argv[1]);
    depth = unsigned(strtoul(argv[2], nullptr, 10));
    threads = unsigned(strtoul(argv[3], nullptr, 10));
    if (threads < 1 || threads > MAX_THREADS) die("THREADS must be 1 to 64");
    if (loop == mallocx_loop) {
        mallocx = reinterpret_cast<void *(*)(size_t, int)>(dlsym(RTLD_DEFAULT, "mallocx"));
        sdallocx = reinterpret_cast<void (*)(void *, size_t, int)>(dlsym(RTLD_DEFAULT, "sdallocx"));
        if (!mallocx || !sdallocx) die("mallocx needs jemalloc in LD_PRELOAD");
    }
    // Or stdio would allocate its buffers at the first line.
    setvbuf(stdin, input, _IOFBF, sizeof input);
    setvbuf(stdout, output, _IOLBF, sizeof output);
    if (threads > 1) start_workers();
    puts("loops: ready");
    while (fgets(line, sizeof line, stdin)) {
        ops = strtoull(line, nullptr, 10);
        if (ops == 0) die("not a number of operations");
        uint64_t start_ns = now_ns(CLOCK_MONOTONIC);
        uint64_t sum_ns = threads == 1 ? cpu_ns_of_loop() : cpu_ns_of_workers();
        uint64_t wall_ns = now_ns(CLOCK_MONOTONIC) - start_ns;
        printf("loops: %llu %llu\n", (unsigned long long)sum_ns, (unsigned long long)wall_ns);
    }
    return 0;
}
