// A program whose first thread ends while another goes on, which runs it again by exec.
//
// Starting the thread allocates too, so there are no totals.
//
// expect: function=by_the_other_thread api=malloc allocations=211 allocated_bytes=106133 frees=10 freed_bytes=5030 live_blocks=201 live_bytes=101103
// expect: function=after_exec api=malloc allocations=223 allocated_bytes=113507 frees=0 freed_bytes=0 live_blocks=223 live_bytes=113507
#include "memtrace_test.h"
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>

static int count;
static char **arguments;

NOINLINE static void by_the_other_thread(void) {
    for (int i = 0; i < 211; i++) {
        void *block = malloc(503);
        keep(block);
        if (i < 10) {
            free(block);
        }
    }
}

NOINLINE static void after_exec(void) {
    for (int i = 0; i < 223; i++) {
        keep(malloc(509));
    }
}

// Waits until the first thread is a zombie, which is what is left of it.
static void wait_for_its_end(void) {
    char path[64], text[256];
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", getpid());
    for (;;) {
        int file = open(path, O_RDONLY);
        require(file >= 0, 10);
        ssize_t length = read(file, text, sizeof text - 1);
        close(file);
        require(length > 0, 11);
        text[length] = 0;
        if (strstr(text, ") Z ") != NULL) {
            return;
        }
        usleep(1000);
    }
}

static void *go_on(void *unused) {
    wait_for_its_end();
    rendezvous(count, arguments, "alone");
    by_the_other_thread();
    char *again[] = {arguments[0], "--again", count > 1 ? arguments[1] : NULL, NULL};
    execv("/proc/thread-self/exe", again);
    _exit(12);
    return unused;
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "--again") == 0) {
        after_exec();
        rendezvous(argc, argv, "done");
        return 0;
    }
    count = argc;
    arguments = argv;
    rendezvous(argc, argv, "ready");
    pthread_t thread;
    require(pthread_create(&thread, NULL, go_on, NULL) == 0, 13);
    pthread_exit(NULL);
}
