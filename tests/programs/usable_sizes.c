// What the allocator that this is linked with says of its own blocks: for the test of computed sizes.
//
// A line for each block: the alignment asked for (0 for none), the size, the address, the usable size.
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static void show(size_t alignment, size_t size) {
    void *block = NULL;
    if (alignment == 0) {
        block = malloc(size);
    } else if (posix_memalign(&block, alignment, size) != 0) {
        block = NULL;
    }
    if (block == NULL) {
        exit(1);
    }
    printf("%zu %zu %ju %zu\n", alignment, size, (uintmax_t)(uintptr_t)block,
           malloc_usable_size(block));
    free(block);
}

// Every small size, and those around powers of two, quarters of them, and pages: to 7 MiB, and to 56
// without an alignment.
static void show_all(size_t alignment) {
    static const long around[] = {-4096, -25, -24, -17, -9, -8, -1, 0, 1, 8, 9, 24, 4072, 4096};
    for (size_t size = 1; size <= 2100; size++) {
        show(alignment, size);
    }
    for (int bit = 11; bit < (alignment == 0 ? 26 : 23); bit++) {
        for (size_t quarter = 4; quarter < 8; quarter++) {
            for (size_t i = 0; i < sizeof around / sizeof *around; i++) {
                long size = (long)(((size_t)1 << bit) / 4 * quarter) + around[i];
                if (size > 0) {
                    show(alignment, (size_t)size);
                }
            }
        }
    }
}

int main(void) {
    show_all(0);
    for (size_t alignment = 8; alignment <= 16384; alignment *= 2) {
        show_all(alignment);
    }
    return 0;
}
