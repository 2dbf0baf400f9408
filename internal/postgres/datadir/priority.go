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
// with the same claim, where its scheduler knows priorities (BFQ, mq-deadline), until
// it calls back. Not idle: beside a server that never rests a copy must end too. The
// goroutine has a thread to itself meanwhile. That thread must not end with it:
// programs that it once started would get their parent's death signal (prctl(2)).
func GiveWay() (back func(), err error) {
	runtime.LockOSThread()
	before, err := ioPriority()
	if err == nil {
		err = setIOPriority(ioBestEffort<<ioClassShift | ioLast)
	}
	if err != nil {
		runtime.UnlockOSThread()
		return func() {}, fmt.Errorf("lowering the priority of reading: %w", err)
	}
	return func() {
		_ = setIOPriority(before) // as it was, which is always allowed
		runtime.UnlockOSThread()
	}, nil
}

// GivesWay says whether the calling goroutine's thread does.
func GivesWay() bool {
	prio, err := ioPriority()
	return err == nil && prio == ioBestEffort<<ioClassShift|ioLast
}

func ioPriority() (uintptr, error) {
	prio, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, ioWhoProcess, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return prio, nil
}

func setIOPriority(prio uintptr) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOPRIO_SET, ioWhoProcess, 0, prio); errno != 0 {
		return errno
	}
	return nil
}
