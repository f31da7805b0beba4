//go:build unix

package paywarden

import "syscall"

// isStale returns whether the host has closed an idle connection, or sent what nobody asked for.
func isStale(raw syscall.RawConn) bool {
	var looked [1]byte
	var err error
	// The socket does not block: without anything to read, the look ends at once.
	failed := raw.Read(func(descriptor uintptr) bool {
		_, _, err = syscall.Recvfrom(int(descriptor), looked[:], syscall.MSG_PEEK)
		return true
	})
	return failed != nil || (err != syscall.EAGAIN && err != syscall.EWOULDBLOCK && err != syscall.EINTR)
}
