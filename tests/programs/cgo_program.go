// Go that calls C: what C allocates is counted, under the name of the C function.
//
// The stacks cross from C into Go, which switches stacks there, so they need not reach a root.
//
// expect: function=leak_from_c api=malloc allocations=113 allocated_bytes=26329 frees=0 freed_bytes=0 live_blocks=113 live_bytes=26329
// expect: function=free_from_c api=malloc allocations=127 allocated_bytes=30607 frees=127 freed_bytes=30607 live_blocks=0 live_bytes=0
package main

/*
#cgo CFLAGS: -O2 -g
#include <stdlib.h>

static inline void keep(void *pointer) { __asm__ volatile("" : : "r"(pointer) : "memory"); }

__attribute__((noipa)) static void leak_from_c(void) {
    for (int i = 0; i < 113; i++) {
        keep(malloc(233));
    }
}

__attribute__((noipa)) static void free_from_c(void) {
    for (int i = 0; i < 127; i++) {
        void *block = malloc(241);
        keep(block);
        free(block);
    }
}
*/
import "C"

import (
	"os"
	"syscall"
)

func rendezvous(word string) {
	for _, argument := range os.Args[1:] {
		if argument != "--wait" {
			continue
		}
		syscall.Write(1, []byte(word+"\n"))
		var one [1]byte
		for {
			count, _ := syscall.Read(0, one[:])
			if count != 1 || one[0] == '\n' {
				return
			}
		}
	}
}

func main() {
	rendezvous("ready")
	C.leak_from_c()
	done := make(chan bool)
	go func() {
		C.free_from_c()
		done <- true
	}()
	<-done
	rendezvous("done")
}
