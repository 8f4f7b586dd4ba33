// More events than a ring of 1 MiB holds: 40,000 blocks, each freed at once.
//
// For a recorder that does not look for a while. It has no table: what is recorded and what is
// counted as lost must add up to 40,000 allocations and 40,000 frees.
#include "flood.h"

int main(int argc, char **argv) {
    rendezvous(argc, argv, "ready");
    flood();
    rendezvous(argc, argv, "done");
    return 0;
}
