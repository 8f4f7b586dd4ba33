// Shared by the C and C++ test programs.
//
// Nothing in here allocates: the tables count every call of the program, so the handshake uses
// read(2) and write(2) instead of stdio.
//
//   without --wait    the program runs straight through (memtrace started it)
//   with --wait       it prints `ready`, waits for a line, does its work, prints `done`, waits
#ifndef MEMTRACE_TEST_H
#define MEMTRACE_TEST_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// Not inlined, not cloned, not analysed: the function keeps its name and its own frame.
#ifdef __clang__
#define NOINLINE __attribute__((noinline))
#else
#define NOINLINE __attribute__((noipa))
#endif

// Makes the compiler believe that `pointer` is used, so that no allocation is optimised away and
// no call that precedes it becomes a tail call (which would remove the caller's frame).
static inline void keep(const void *pointer) {
    __asm__ volatile("" : : "r"(pointer) : "memory");
}

// A number whose value the compiler cannot know: impossible sizes pass without a warning.
static inline size_t opaque(size_t value) {
    __asm__ volatile("" : "+r"(value));
    return value;
}

// Ends the program with a status that the harness shows.
static inline void require(int condition, int status) {
    if (!condition) {
        _exit(status);
    }
}

// With `--wait` among the arguments: says `word` and waits for a line (or the end of stdin).
static inline void rendezvous(int argc, char **argv, const char *word) {
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--wait") != 0) {
            continue;
        }
        char line[32];
        size_t length = strlen(word);
        memcpy(line, word, length);
        line[length] = '\n';
        if (write(STDOUT_FILENO, line, length + 1) < 0) {
            _exit(90);
        }
        char byte = 0;
        while (read(STDIN_FILENO, &byte, 1) == 1 && byte != '\n') {
        }
        return;
    }
}

#endif
