/* The loop that `cargo xtask bench` measures: malloc and free of one block, at a call depth.
 *
 *   pair_loop DEPTH
 *
 * Each line on stdin is a number of pairs; the answer on stdout is the nanoseconds per pair. So one
 * process serves every round of one depth, and memtrace comes and goes between rounds.
 *
 * Built at -O2, once with -fomit-frame-pointer and once with -fno-omit-frame-pointer.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { BLOCK_BYTES = 64 };

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static __attribute__((noinline, noclone)) uint64_t run_pairs(uint64_t pairs)
{
    uint64_t start_ns = now_ns();
    for (uint64_t i = 0; i < pairs; i++) {
        void *block = malloc(BLOCK_BYTES);
        /* The compiler may not know that nothing uses the block, or the pair is optimised away. */
        __asm__ volatile("" : "+r"(block) : : "memory");
        free(block);
    }
    return now_ns() - start_ns;
}

static __attribute__((noinline, noclone)) uint64_t descend(unsigned depth, uint64_t pairs)
{
    uint64_t elapsed_ns = depth == 0 ? run_pairs(pairs) : descend(depth - 1, pairs);
    /* Work after the call, so that it is no tail call and every level keeps its frame. */
    __asm__ volatile("" : "+r"(elapsed_ns) : : "memory");
    return elapsed_ns;
}

int main(int argc, char **argv)
{
    unsigned depth = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 0;
    char line[64];

    setvbuf(stdout, NULL, _IOLBF, 0);
    while (fgets(line, sizeof line, stdin)) {
        uint64_t pairs = strtoull(line, NULL, 10);
        if (pairs == 0) {
            fprintf(stderr, "pair_loop: not a number of pairs: %s", line);
            return 2;
        }
        printf("%.2f\n", (double)descend(depth, pairs) / (double)pairs);
    }
    return 0;
}
