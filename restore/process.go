package restore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a process of this machine, told from any other that had its number
// before or gets it later.
type Process struct {
	PID     int    `json:"pid"`
	Started uint64 `json:"started"` // clock ticks after boot (proc(5), field 22 of stat)
	Boot    string `json:"boot"`    // the kernel's boot_id
}

// ErrGone means that a process has ended.
var ErrGone = errors.New("the process has ended")

// ThisProcess is the one that asks.
func ThisProcess() (Process, error) {
	p := Process{PID: os.Getpid()}
	var err error
	if p.Boot, err = bootID(); err != nil {
		return p, err
	}
	p.Started, err = startOf(p.PID)
	return p, err
}

// Alive says whether it still runs.
func (p Process) Alive() bool {
	boot, err := bootID()
	if err != nil || boot != p.Boot || p.PID <= 0 {
		return false
	}
	started, err := startOf(p.PID)
	return err == nil && started == p.Started
}

// Terminate asks the process to end (SIGTERM) and waits until it has, or ctx ends.
// ErrGone: it had ended before. Its number may be another's by now: the signal goes
// to what was looked at, by a pidfd, and never to that one.
func (p Process) Terminate(ctx context.Context) error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return ErrGone
	}
	if err != nil {
		return fmt.Errorf("ending process %d: %w", p.PID, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if !p.Alive() {
		return ErrGone
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("ending process %d: %w", p.PID, err)
	}
	return awaitEnd(ctx, fd, p.PID)
}

// awaitEnd waits until the process of a pidfd has ended: then it can be read (pidfd_open(2)).
func awaitEnd(ctx context.Context, fd, pid int) error {
	const look = 200 * time.Millisecond // how often ctx is looked at meanwhile
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(look/time.Millisecond))
		switch {
		case n > 0:
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("waiting for the end of process %d: %w", pid, err)
		case ctx.Err() != nil:
			return fmt.Errorf("process %d was asked to end and still does: %w", pid, context.Cause(ctx))
		}
	}
}

func bootID() (string, error) {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(data)), err
}

// startOf is when a process began; one that has ended and is not waited for yet has
// no such time any more.
func startOf(pid int) (uint64, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	// The second field is the program's name, which may hold spaces and brackets.
	_, rest, _ := strings.Cut(string(data[max(0, strings.LastIndexByte(string(data), ')')):]), " ")
	fields := strings.Fields(rest) // from the third on
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return 0, ErrGone
	}
	return strconv.ParseUint(fields[19], 10, 64)
}
