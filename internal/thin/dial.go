package thin

import (
	"fmt"
	"os"
	"syscall"
	"time"
)

// connectWithin bounds the wait for a place in a listener's queue.
const connectWithin = 2 * time.Second

// dial connects to a Unix socket without package net, whose initialisation waits
// for half of the standard library's. Reads that take longer than patience fail;
// 0 is no bound.
func dial(socket string, patience time.Duration) (*os.File, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	for opt, d := range map[int]time.Duration{syscall.SO_SNDTIMEO: connectWithin, syscall.SO_RCVTIMEO: patience} {
		tv := syscall.NsecToTimeval(d.Nanoseconds())
		if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, opt, &tv); err != nil {
			_ = syscall.Close(fd)
			return nil, os.NewSyscallError("setsockopt", err)
		}
	}
	if err := connect(fd, socket); err != nil {
		_ = syscall.Close(fd)
		return nil, fmt.Errorf("dialling %s: %w", socket, err)
	}
	return os.NewFile(uintptr(fd), socket), nil
}

func connect(fd int, socket string) error {
	for {
		err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: socket})
		if err != syscall.EINTR { //nolint:errorlint // it is an Errno, never wrapped
			return err
		}
	}
}
