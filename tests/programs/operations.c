// Two operations, of which one makes a spike that is none of the whole heap.
//
//   operation   functions        allocations  allocated_bytes  live_bytes at `done`
//   select      run_select                13       13,000,039                     0
//   upload      handle_upload              5          500,015               500,015
//   (neither)   build_index                3          600,009               600,009
//
// handle_upload calls run_select for one of the 13 rows: it belongs to the innermost, select. All of
// it comes within milliseconds: 13.0 MB of select, 14.1 MB in all.
#include "memtrace_test.h"

#define ROWS 13
#define ROW_BYTES 1000003

static void *rows[ROWS];
static int fetched;

NOINLINE static void fetch_row(void) {
    rows[fetched] = malloc(ROW_BYTES);
    require(rows[fetched] != NULL, 91);
    fetched++;
}

NOINLINE static void run_select(int count) {
    for (int i = 0; i < count; i++) {
        fetch_row();
        keep(NULL);
    }
}

NOINLINE static void handle_upload(void) {
    for (int i = 0; i < 5; i++) {
        keep(malloc(100003));
    }
    run_select(1);
    keep(NULL);
}

NOINLINE static void build_index(void) {
    for (int i = 0; i < 3; i++) {
        keep(malloc(200003));
    }
}

int main(int argc, char **argv) {
    rendezvous(argc, argv, "ready");
    build_index();
    handle_upload();
    run_select(ROWS - 1);
    for (int i = 0; i < ROWS; i++) {
        free(rows[i]);
    }
    rendezvous(argc, argv, "done");
    return 0;
}
