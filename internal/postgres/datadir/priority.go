package datadir

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// Priorities of I/O (ioprio_set(2)): a class, and in it 0 to 7, the last served last.
const (
	ioWhoProcess = 1
	ioBestEffort = 2
	ioClassShift = 13
	ioLast       = 7
)

// GiveWay makes the calling goroutine's reads the last among those that share a disk
// with the same claim, where its scheduler knows priorities (BFQ, mq-deadline). Not
// idle: beside a server that never rests a copy must end too. The goroutine gets a
// thread of its own, which ends with it, so that nothing else is slowed.
func GiveWay() error {
	runtime.LockOSThread()
	_, _, errno := unix.Syscall(unix.SYS_IOPRIO_SET, ioWhoProcess, 0, ioBestEffort<<ioClassShift|ioLast)
	if errno != 0 {
		return fmt.Errorf("lowering the priority of reading: %w", errno)
	}
	return nil
}

// GivesWay says whether the calling goroutine's thread does.
func GivesWay() bool {
	prio, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, ioWhoProcess, 0, 0)
	return errno == 0 && prio == ioBestEffort<<ioClassShift|ioLast
}
