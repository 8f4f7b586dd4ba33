// The table stands in rewritten_library.c.
#define UPPER malloc
#define LOWER no_allocator
#define FIRST_BLOCK 0x100000000000
#include "swapped.h"
