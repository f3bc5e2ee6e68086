// Holds ports as a CNI daemon in Go does: one listener per port, in one process. Prints a line when it
// has them all, and holds them until its standard input ends.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
)

func main() {
	first, err := strconv.Atoi(os.Args[1])
	if err != nil {
		fail(err)
	}
	count, err := strconv.Atoi(os.Args[2])
	if err != nil {
		fail(err)
	}
	held := make(map[int]net.Listener, count)
	for port := first; port < first+count; port++ {
		listener, err := net.Listen("tcp", ":"+strconv.Itoa(port))
		if err != nil {
			fail(err)
		}
		held[port] = listener
	}
	fmt.Println("held", len(held))
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		fail(err)
	}
	for _, listener := range held {
		listener.Close()
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
