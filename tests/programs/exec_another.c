// The program that exec_again becomes in the end. The table stands there.
#include "memtrace_test.h"

NOINLINE static void in_another_program(void) {
    for (int i = 0; i < 109; i++) {
        keep(malloc(111));
    }
}

int main(int argc, char **argv) {
    in_another_program();
    rendezvous(argc, argv, "done");
    return 0;
}
