// A library with an allocator that is rewritten in place, while nobody maps it.
//
// Where its `malloc` was, another function stands then. Probes of before must not be there.
//
// expect: within=use_first api=malloc allocations=101 allocated_bytes=6464 frees=0 freed_bytes=0 live_blocks=101 live_bytes=6464
// expect: within=use_second api=malloc allocations=103 allocated_bytes=6592 frees=0 freed_bytes=0 live_blocks=103 live_bytes=6592
#include "memtrace_test.h"
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>

typedef void *(*function)(size_t);

static char library_path[64];

// Fills the file with the library of that name, which lies beside the program.
static void write_library(int file, const char *name) {
    static char path[4096], bytes[1 << 20];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 64);
    require(length > 0, 10);
    path[length] = 0;
    strcpy(strrchr(path, '/') + 1, name);
    int source = open(path, O_RDONLY);
    require(source >= 0, 11);
    ssize_t size = read(source, bytes, sizeof bytes);
    require(size > 0 && size < (ssize_t)sizeof bytes, 12);
    close(source);
    require(pwrite(file, bytes, (size_t)size, 0) == size, 13);
}

static function find(void *library, const char *name) {
    function found = (function)dlsym(library, name);
    require(found != NULL, 14);
    return found;
}

NOINLINE static void use_first(function allocate, function other) {
    for (int i = 0; i < 101; i++) {
        keep(allocate(64));
    }
    for (int i = 0; i < 11; i++) {
        keep(other(64));
    }
}

NOINLINE static void use_second(function allocate, function other) {
    for (int i = 0; i < 103; i++) {
        keep(allocate(64));
    }
    for (int i = 0; i < 11; i++) {
        keep(other(64));
    }
}

static void with_library(void (*use)(function, function)) {
    void *library = dlopen(library_path, RTLD_NOW | RTLD_LOCAL);
    require(library != NULL, 15);
    use(find(library, "malloc"), find(library, "no_allocator"));
    require(dlclose(library) == 0, 16);
}

int main(int argc, char **argv) {
    rendezvous(argc, argv, "ready");
    int file = memfd_create("swapped", 0);
    require(file >= 0, 17);
    snprintf(library_path, sizeof library_path, "/proc/self/fd/%d", file);
    write_library(file, "libswapped_first.so");
    with_library(use_first);
    write_library(file, "libswapped_second.so");
    // Times are as coarse as the kernel's clock tick; the size differs at once.
    require(lseek(file, 0, SEEK_END) > 0 && write(file, "", 1) == 1, 18);
    with_library(use_second);
    rendezvous(argc, argv, "done");
    return 0;
}
