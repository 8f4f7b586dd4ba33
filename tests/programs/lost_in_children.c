// Blocks that a program and its children lose, each its own.
//
// Every function whose name begins with `lose` loses as many blocks as its comment says, once. What a
// child inherits is not its loss, though it forgets where the blocks are. The last child is ended by
// a signal and cannot be looked at. No size fills its chunk of glibc's: the next chunk would begin in
// the block, and the arena points to the one on top.
#include <signal.h>
#include <sys/wait.h>

#include "memtrace_test.h"

static void *volatile kept[40];

NOINLINE static void keep_before_fork(void) {
    for (int i = 0; i < 40; i++) {
        kept[i] = malloc(59);
    }
}

// 5 blocks.
NOINLINE static void lose_in_parent(void) {
    for (int i = 0; i < 5; i++) {
        keep(malloc(61));
    }
}

// 7 blocks.
NOINLINE static void lose_in_child(void) {
    for (int i = 0; i < 7; i++) {
        keep(malloc(57));
    }
}

// 3 blocks.
NOINLINE static void lose_in_grandchild(void) {
    for (int i = 0; i < 3; i++) {
        keep(malloc(62));
    }
}

// 11 blocks.
NOINLINE static void lose_in_program(void) {
    for (int i = 0; i < 11; i++) {
        keep(malloc(73));
    }
}

// 13 blocks, of which nobody will know.
NOINLINE static void lose_before_the_signal(void) {
    for (int i = 0; i < 13; i++) {
        keep(malloc(63));
    }
}

// What was left on the stack and in registers by the calls above.
NOINLINE static void wipe(void) {
    char stack[16384];
    memset(stack, 0, sizeof stack);
    keep(stack);
    memcpy(stack, stack + 8192, opaque(4096));
    keep(stack);
    __asm__ volatile(
        "xorl %%ecx, %%ecx\n"
        "xorl %%edx, %%edx\n"
        "xorl %%esi, %%esi\n"
        "xorl %%edi, %%edi\n"
        "xorl %%r8d, %%r8d\n"
        "xorl %%r9d, %%r9d\n"
        "xorl %%r10d, %%r10d\n"
        "xorl %%r11d, %%r11d\n"
        :
        :
        : "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "cc");
}

static int status_of(pid_t pid) {
    int status = 0;
    require(pid > 0 && waitpid(pid, &status, 0) == pid, 10);
    return status;
}

static pid_t begin(void) {
    pid_t child = fork();
    require(child >= 0, 11);
    return child;
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "program") == 0) {
        lose_in_program();
        wipe();
        return 0;
    }
    keep_before_fork();
    lose_in_parent();
    wipe();
    pid_t child = begin();
    if (child == 0) {
        lose_in_child();
        for (int i = 0; i < 40; i++) {
            kept[i] = NULL;
        }
        wipe();
        child = begin();
        if (child == 0) {
            lose_in_grandchild();
            wipe();
            exit(0);
        }
        require(status_of(child) == 0, 12);
        _exit(0);
    }
    require(status_of(child) == 0, 13);
    child = begin();
    if (child == 0) {
        execl(argv[0], argv[0], "program", (char *)NULL);
        _exit(14);
    }
    require(status_of(child) == 0, 15);
    child = begin();
    if (child == 0) {
        lose_before_the_signal();
        kill(getpid(), SIGKILL);
    }
    require(WIFSIGNALED(status_of(child)), 16);
    return 0;
}
