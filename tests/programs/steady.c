// Allocates a little every few milliseconds until a line comes in on stdin, or stdin ends.
//
// For tests of attaching and detaching at any moment: it has no table, but ends with status 0
// only if every block still holds what was written into it.
#include "memtrace_test.h"
#include <poll.h>

enum { KEPT = 64, ROOM = 211 };

static unsigned char *kept[KEPT];

NOINLINE static void allocate_steadily(unsigned round) {
    for (unsigned i = 0; i < 10; i++) {
        unsigned place = (round * 10 + i) % KEPT;
        unsigned char *block = malloc(ROOM);
        require(block != NULL, 10);
        memset(block, (int)(place + 1), ROOM);
        free(kept[place]);
        kept[place] = block;
    }
}

NOINLINE static void check_blocks(void) {
    for (unsigned place = 0; place < KEPT; place++) {
        for (unsigned i = 0; kept[place] != NULL && i < ROOM; i++) {
            require(kept[place][i] == place + 1, 11);
        }
    }
}

int main(void) {
    require(write(STDOUT_FILENO, "ready\n", 6) == 6, 12);
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    for (unsigned round = 0; poll(&input, 1, 2) == 0; round++) {
        allocate_steadily(round);
        check_blocks();
    }
    return 0;
}
