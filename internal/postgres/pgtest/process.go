package pgtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// How a server is stopped: PostgreSQL's signals for it.
const (
	fast      = syscall.SIGINT
	immediate = syscall.SIGQUIT
)

type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

// credential is the user that PostgreSQL's programs run as; nil is our own.
func credential() (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("PostgreSQL refuses to run as root, and there is no user postgres to run it as: %w", err)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, errors.Join(err1, err2)
}

// command prepares a program as the server's user, which ends when we do.
func command(ctx context.Context, dir, path string, args ...string) (*exec.Cmd, error) {
	cred, err := credential()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "TZ=UTC", "HOME=" + dir, "PGTZ=UTC"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred, Pdeathsig: immediate, Setpgid: true}
	return cmd, nil
}

func output(ctx context.Context, dir, path string, args ...string) (string, error) {
	cmd, err := command(ctx, dir, path, args...)
	if err != nil {
		return "", err
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s%s", path, strings.Join(args, " "), err, stderr.String(), out)
	}
	return string(out), nil
}

// Start starts the server and waits until it accepts connections.
func (c *Cluster) Start() {
	c.t.Helper()
	if err := c.TryStart(); err != nil {
		c.t.Fatalf("%v\n%s", err, c.logTail(6000))
	}
}

// TryStart is [Cluster.Start] for a server that may refuse.
func (c *Cluster) TryStart() error {
	for attempt := 0; ; attempt++ {
		err := c.launch()
		if err == nil || attempt == 5 || !strings.Contains(c.logTail(2000), "could not bind") {
			return err
		}
		if c.Port, err = freePort(); err != nil {
			return err
		}
	}
}

func (c *Cluster) launch() error {
	args := []string{
		"-D", c.DataDir, "-p", strconv.Itoa(c.Port), "-k", c.SocketDir, "-c", "listen_addresses=127.0.0.1",
		"-c", "max_wal_senders=10", "-c", "wal_level=replica", "-c", "shared_buffers=32MB",
		"-c", "log_line_prefix=%m [%p] ", "-c", "log_timezone=UTC",
	}
	if !c.opt.fsync {
		args = append(args, "-c", "fsync=off")
	}
	cmd, err := command(context.Background(), c.Dir, filepath.Join(c.bin, "postgres"), c.withoutConfigured(args)...)
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(c.Dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting PostgreSQL: %w", err)
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() { _ = cmd.Wait(); close(p.done) }()
	c.mu.Lock()
	c.proc = p
	c.mu.Unlock()
	return c.awaitReady(p)
}

// withoutConfigured drops defaults that the test's own settings name.
func (c *Cluster) withoutConfigured(args []string) []string {
	out := args[:0]
	for i := 0; i < len(args); i += 2 {
		name, _, _ := strings.Cut(args[i+1], "=")
		named := false
		for _, line := range c.opt.settings {
			named = named || args[i] == "-c" && strings.HasPrefix(line, name+" =")
		}
		if !named {
			out = append(out, args[i], args[i+1])
		}
	}
	return out
}

// awaitReady waits until postmaster.pid says that connections are accepted
// (LOCK_FILE_LINE_PM_STATUS in PostgreSQL's pidfile.h).
func (c *Cluster) awaitReady(p *process) error {
	err := until(func() (bool, error) {
		select {
		case <-p.done:
			return false, fmt.Errorf("PostgreSQL ended: %v", p.cmd.ProcessState)
		default:
		}
		pid, err := os.ReadFile(filepath.Join(c.DataDir, "postmaster.pid"))
		lines := strings.Split(string(pid), "\n")
		ready := err == nil && len(lines) > 7 && lines[0] == strconv.Itoa(p.cmd.Process.Pid) &&
			strings.TrimSpace(lines[7]) == "ready"
		return ready, nil
	})
	if err != nil {
		return fmt.Errorf("starting PostgreSQL in %s: %w", c.DataDir, err)
	}
	return nil
}

func (c *Cluster) stop(sig syscall.Signal) {
	c.mu.Lock()
	p := c.proc
	c.proc = nil
	c.mu.Unlock()
	if p == nil {
		return
	}
	_ = p.cmd.Process.Signal(sig)
	if err := until(func() (bool, error) { return ended(p), nil }); err != nil {
		_ = p.cmd.Process.Kill()
		<-p.done
		c.t.Errorf("PostgreSQL did not stop on %v and was killed", sig)
	}
}

func ended(p *process) bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Stop shuts down cleanly (fast mode).
func (c *Cluster) Stop() { c.closeConn(); c.stop(fast) }

// Crash stops at once, as a power cut would with all writes done: the next start recovers.
func (c *Cluster) Crash() { c.closeConn(); c.stop(immediate) }

// Restart is Stop and Start.
func (c *Cluster) Restart() { c.t.Helper(); c.Stop(); c.Start() }

// Kill ends the server and all its processes with SIGKILL.
func (c *Cluster) Kill() {
	c.closeConn()
	c.mu.Lock()
	p := c.proc
	c.proc = nil
	c.mu.Unlock()
	if p == nil {
		return
	}
	pid := p.cmd.Process.Pid
	_ = p.cmd.Process.Signal(syscall.SIGSTOP) // it makes no more children
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	_ = p.cmd.Process.Kill()
	for _, s := range strings.Fields(string(children)) {
		n, err := strconv.Atoi(s)
		if err != nil {
			continue
		}
		_ = syscall.Kill(n, syscall.SIGKILL)
		// While one lives, the shared memory is in use and no server starts there.
		if err := until(func() (bool, error) { return gone(s), nil }); err != nil {
			c.t.Errorf("PostgreSQL's process %s outlived SIGKILL", s)
		}
	}
	<-p.done
}

func gone(pid string) bool {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	return err != nil || strings.Contains(string(stat), ") Z ")
}

// PID is the postmaster's process id, 0 when it is not running.
func (c *Cluster) PID() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.proc == nil {
		return 0
	}
	return c.proc.cmd.Process.Pid
}
