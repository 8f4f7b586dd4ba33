// Go: its heap is its own, so there is no malloc to count; what it maps from the kernel is seen.
//
// The answer must be clear (a message that says what can be seen of a Go program), and the
// program must run to its end: a return probe in Go code would break its growing stacks.
package main

import (
	"fmt"
	"os"
	"syscall"
)

//go:noinline
func grow(level int) int {
	var room [256]byte
	room[level%256] = byte(level)
	if level == 0 {
		return int(room[0])
	}
	return grow(level-1) + int(room[level%256])
}

// 150 MB, never touched: more than the 64 MiB that the runtime maps at a time.
//
//go:noinline
func allocate() [][]byte {
	var blocks [][]byte
	for i := 0; i < 15000; i++ {
		blocks = append(blocks, make([]byte, 10007))
	}
	return blocks
}

func rendezvous(word string) {
	for _, argument := range os.Args[1:] {
		if argument != "--wait" {
			continue
		}
		fmt.Println(word)
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
	done := make(chan int)
	for i := 0; i < 8; i++ {
		go func() { done <- grow(10000) }()
	}
	for i := 0; i < 8; i++ {
		<-done
	}
	blocks := allocate()
	rendezvous("done")
	if len(blocks) != 15000 {
		os.Exit(10)
	}
}
