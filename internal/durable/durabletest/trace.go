//go:build linux && amd64

// Package durabletest breaks programs at each step that they take towards the
// disk.
//
// It runs a helper process under ptrace(2) and looks at those of its system
// calls that change files below one directory: the helper is the real code, and
// nothing in it knows of the test. A step can be made the helper's last (it is
// killed before the kernel acts) or can fail (EIO); and the order of the steps
// is checked against what survives a power cut, which a kill alone cannot show,
// since the kernel outlives it.
//
// It is for tests only, on Linux on amd64. It fails the test where ptrace is not
// allowed.
package durabletest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Step is one system call that changes what is on disk below the directory.
type Step struct {
	Call string // as the manual pages name it: write, fsync, rename, link, …
	Path string // absolute; of a file descriptor what it was opened as
	To   string // the new name, for rename and link
}

// String implements fmt.Stringer.
func (s Step) String() string {
	if s.To != "" {
		return s.Call + " " + s.Path + " → " + s.To
	}
	return s.Call + " " + s.Path
}

// Fault is what happens to the helper at one step.
type Fault int

// None lets the step happen, Kill ends the helper before it, Fail makes it
// return EIO without acting.
const (
	None Fault = iota
	Kill
	Fail
)

// Outcome is what a helper did.
type Outcome struct {
	Steps    []Step
	ExitCode int // -1 when it was killed
}

// Trace runs cmd and applies fault at its n-th step (from 0) below dir. It
// returns the steps that were begun, the faulty one last but for what follows a
// failure.
func Trace(cmd *exec.Cmd, dir string, n int, fault Fault) (Outcome, error) {
	type result struct {
		out Outcome
		err error
	}
	done := make(chan result)
	go func() { // ptrace ties the tracer to its thread; this one ends with the goroutine
		runtime.LockOSThread()
		out, err := trace(cmd, dir, n, fault)
		done <- result{out, err}
	}()
	r := <-done
	return r.out, r.err
}

type tracer struct {
	dir     string
	n       int
	fault   Fault
	leader  int
	out     Outcome
	inside  map[int]bool // threads that are between entry and exit of a call
	failing map[int]bool // threads whose call was replaced, to be given EIO
}

func trace(cmd *exec.Cmd, dir string, n int, fault Fault) (Outcome, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return Outcome{}, err
	}
	cmd.SysProcAttr = &unix.SysProcAttr{Ptrace: true, Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		return Outcome{}, fmt.Errorf("trace %s: %w", cmd.Path, err)
	}
	t := &tracer{dir: dir, n: n, fault: fault, leader: cmd.Process.Pid, inside: map[int]bool{}, failing: map[int]bool{}}
	if err := t.begin(); err != nil {
		_ = cmd.Process.Kill()
		return Outcome{}, fmt.Errorf("trace %s: %w", cmd.Path, err)
	}
	err = t.run()
	_ = cmd.Process.Release()
	return t.out, err
}

func (t *tracer) begin() error {
	var status unix.WaitStatus
	if _, err := unix.Wait4(t.leader, &status, 0, nil); err != nil {
		return err
	}
	options := unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_EXITKILL
	if err := unix.PtraceSetOptions(t.leader, options); err != nil {
		return err
	}
	return unix.PtraceSyscall(t.leader, 0)
}

// run follows all threads of the helper until its leader is gone.
func (t *tracer) run() error {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WALL|unix.WNOTHREAD, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if status.Exited() || status.Signaled() {
			if pid != t.leader {
				continue
			}
			t.out.ExitCode = -1
			if status.Exited() {
				t.out.ExitCode = status.ExitStatus()
			}
			return nil
		}
		if err := t.stopped(pid, status); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
}

func (t *tracer) stopped(pid int, status unix.WaitStatus) error {
	signal := 0
	switch sig := status.StopSignal(); sig {
	case unix.SIGTRAP | 0x80:
		if err := t.syscall(pid); err != nil {
			return err
		}
	case unix.SIGTRAP, unix.SIGSTOP: // a clone, a new thread
	default:
		signal = int(sig)
	}
	return unix.PtraceSyscall(pid, signal)
}

func (t *tracer) syscall(pid int) error {
	var regs unix.PtraceRegs
	if err := unix.PtraceGetRegs(pid, &regs); err != nil {
		return err
	}
	t.inside[pid] = !t.inside[pid]
	if !t.inside[pid] {
		if t.failing[pid] {
			delete(t.failing, pid)
			regs.Rax = ^uint64(unix.EIO) + 1
			return unix.PtraceSetRegs(pid, &regs)
		}
		return nil
	}
	step, ok := t.step(pid, &regs)
	if !ok {
		return nil
	}
	t.out.Steps = append(t.out.Steps, step)
	if len(t.out.Steps)-1 != t.n {
		return nil
	}
	switch t.fault {
	case Kill:
		return unix.Kill(t.leader, unix.SIGKILL)
	case Fail:
		t.failing[pid] = true
		regs.Orig_rax = ^uint64(0) // no such call
		return unix.PtraceSetRegs(pid, &regs)
	}
	return nil
}

// step reads a system call's arguments; false for those that change nothing
// below the directory.
func (t *tracer) step(pid int, r *unix.PtraceRegs) (Step, bool) {
	var s Step
	switch r.Orig_rax {
	case unix.SYS_WRITE, unix.SYS_PWRITE64:
		s = Step{Call: "write", Path: descriptor(pid, r.Rdi)}
	case unix.SYS_FSYNC, unix.SYS_FDATASYNC:
		s = Step{Call: "fsync", Path: descriptor(pid, r.Rdi)}
	case unix.SYS_FTRUNCATE:
		s = Step{Call: "truncate", Path: descriptor(pid, r.Rdi)}
	case unix.SYS_FCHMOD:
		s = Step{Call: "chmod", Path: descriptor(pid, r.Rdi)}
	case unix.SYS_OPENAT:
		if r.Rdx&unix.O_CREAT == 0 {
			return s, false
		}
		s = Step{Call: "creat", Path: text(pid, r.Rsi)}
	case unix.SYS_MKDIRAT:
		s = Step{Call: "mkdir", Path: text(pid, r.Rsi)}
	case unix.SYS_UNLINKAT:
		s = Step{Call: "unlink", Path: text(pid, r.Rsi)}
	case unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2:
		s = Step{Call: "rename", Path: text(pid, r.Rsi), To: text(pid, r.R10)}
	case unix.SYS_LINKAT:
		s = Step{Call: "link", Path: text(pid, r.Rsi), To: text(pid, r.R10)}
	default:
		return s, false
	}
	return s, s.Path == t.dir || strings.HasPrefix(s.Path, t.dir+"/")
}

func descriptor(pid int, fd uint64) string {
	path, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, int32(fd)))
	if err != nil {
		return ""
	}
	return path
}

// text reads a string of the helper's memory.
func text(pid int, at uint64) string {
	var b strings.Builder
	for word := make([]byte, 8); b.Len() < unix.PathMax; at += 8 {
		if n, err := unix.PtracePeekData(pid, uintptr(at), word); err != nil || n != len(word) {
			return ""
		}
		before, _, ended := strings.Cut(string(word), "\x00")
		b.WriteString(before)
		if ended {
			break
		}
	}
	return b.String()
}
