// The table stands in rewritten_library.c.
#define UPPER no_allocator
#define LOWER malloc
#define FIRST_BLOCK 0x200000000000
#include "swapped.h"
