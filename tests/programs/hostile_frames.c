// Allocations below code that no compiler has described: assembly with and without unwind
// information, and code made at run time, which names itself as node and python do.
//
// expect: function=allocate_below_cfi api=malloc allocations=31 allocated_bytes=3131 frees=0 freed_bytes=0 live_blocks=31 live_bytes=3131
// expect: function=allocate_below_frame_pointer api=malloc allocations=37 allocated_bytes=3811 frees=0 freed_bytes=0 live_blocks=37 live_bytes=3811
// expect: function=allocate_below_jit api=malloc allocations=41 allocated_bytes=4387 frees=0 freed_bytes=0 live_blocks=41 live_bytes=4387
// expect: within=call_with_cfi api=malloc allocations=31 allocated_bytes=3131 frees=0 freed_bytes=0 live_blocks=31 live_bytes=3131
// expect: within=call_with_frame_pointer api=malloc allocations=37 allocated_bytes=3811 frees=0 freed_bytes=0 live_blocks=37 live_bytes=3811
// expect: within=jitted api=malloc allocations=41 allocated_bytes=4387 frees=0 freed_bytes=0 live_blocks=41 live_bytes=4387
// expect: within=main api=malloc allocations=109 allocated_bytes=11329 frees=0 freed_bytes=0 live_blocks=109 live_bytes=11329
// totals: allocations=109 allocated_bytes=11329 frees=0 freed_bytes=0 live_blocks=109 live_bytes=11329
#include "memtrace_test.h"
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>

// Both call their argument.
void call_with_cfi(void (*callee)(void));
void call_with_frame_pointer(void (*callee)(void));

__asm__(".text\n"
        ".globl call_with_cfi\n"
        ".type call_with_cfi, @function\n"
        "call_with_cfi:\n"
        ".cfi_startproc\n"
        "    sub $40, %rsp\n"
        ".cfi_adjust_cfa_offset 40\n"
        "    call *%rdi\n"
        "    add $40, %rsp\n"
        ".cfi_adjust_cfa_offset -40\n"
        "    ret\n"
        ".cfi_endproc\n"
        ".size call_with_cfi, . - call_with_cfi\n"
        ".globl call_with_frame_pointer\n"
        ".type call_with_frame_pointer, @function\n"
        "call_with_frame_pointer:\n"
        "    push %rbp\n"
        "    mov %rsp, %rbp\n"
        "    call *%rdi\n"
        "    pop %rbp\n"
        "    ret\n"
        ".size call_with_frame_pointer, . - call_with_frame_pointer\n");

NOINLINE static void allocate_below_cfi(void) {
    keep(malloc(101));
}

NOINLINE static void allocate_below_frame_pointer(void) {
    keep(malloc(103));
}

NOINLINE static void allocate_below_jit(void) {
    keep(malloc(107));
}

// The code of `call_with_frame_pointer`, in memory of its own.
static void (*make_code(void))(void (*)(void)) {
    static const unsigned char code[] = {0x55, 0x48, 0x89, 0xe5, 0xff, 0xd7, 0x5d, 0xc3};
    void *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    require(memory != MAP_FAILED, 10);
    memcpy(memory, code, sizeof code);
    require(mprotect(memory, 4096, PROT_READ | PROT_EXEC) == 0, 11);
    return (void (*)(void (*)(void)))memory;
}

// The file stays, as those of node and python do.
static void name_code(void *code, int size, const char *name) {
    char text[128];
    snprintf(text, sizeof text, "/tmp/perf-%d.map", (int)getpid());
    int file = open(text, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, 0600);
    require(file >= 0, 12);
    int length = snprintf(text, sizeof text, "%lx %x %s\n", (unsigned long)code, size, name);
    require(write(file, text, (size_t)length) == length, 13);
    close(file);
}

int main(int argc, char **argv) {
    void (*code)(void (*)(void)) = make_code();
    name_code((void *)code, 8, "jitted");

    rendezvous(argc, argv, "ready");
    for (int i = 0; i < 31; i++) {
        call_with_cfi(allocate_below_cfi);
    }
    for (int i = 0; i < 37; i++) {
        call_with_frame_pointer(allocate_below_frame_pointer);
    }
    for (int i = 0; i < 41; i++) {
        code(allocate_below_jit);
    }
    rendezvous(argc, argv, "done");
    return 0;
}
