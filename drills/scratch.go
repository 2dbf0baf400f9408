package drills

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/internal/durable"
)

// What a drill makes below its environment's directory: drill-<8 hex digits>/ with
// a file that says whose it is, a lock that its process holds, and the copy.
const (
	scratchPrefix = "drill-"
	markerFile    = "holdfast-drill.json"
	lockFile      = "lock"
)

// leftover is what the marker says.
type leftover struct {
	Drill     string    `json:"drill"`
	Name      string    `json:"name"`
	Slot      string    `json:"slot"`
	StartedAt time.Time `json:"started_at"`
}

// scratch is a drill's own directory.
type scratch struct {
	dir  string
	lock *durable.Lock
	peak atomic.Int64
}

// newScratch makes the directory under a name that [Sweep] passes by until the
// lock is held.
func newScratch(env Environment, l leftover) (*scratch, error) {
	var id [4]byte
	_, _ = rand.Read(id[:])
	name := scratchPrefix + hex.EncodeToString(id[:])
	hidden, dir := filepath.Join(env.Directory, "."+name), filepath.Join(env.Directory, name)
	if err := durable.MkdirAll(env.Directory, 0o755); err != nil {
		return nil, fmt.Errorf("making the environment's directory: %w", err)
	}
	data, err := json.Marshal(l)
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(hidden, 0o711); err != nil {
		return nil, fmt.Errorf("making a directory for the drill: %w", err)
	}
	s := &scratch{dir: dir}
	s.lock, err = durable.Acquire(filepath.Join(hidden, lockFile))
	// PostgreSQL's user passes through it, whatever our umask is.
	err = errors.Join(err, os.Chmod(hidden, 0o711), durable.WriteFile(filepath.Join(hidden, markerFile), data, 0o600))
	if err == nil {
		err = os.Rename(hidden, dir)
	}
	if err != nil {
		if s.lock != nil {
			err = errors.Join(err, s.lock.Release())
		}
		return nil, errors.Join(fmt.Errorf("making a directory for the drill: %w", err), os.RemoveAll(hidden))
	}
	return s, nil
}

func (s *scratch) data() string { return filepath.Join(s.dir, "data") }

// watch ends the context when the drill uses more disk than its limit.
func (s *scratch) watch(ctx context.Context, limit int64) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(2 * time.Second)
		defer tick.Stop()
		for limit > 0 {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			n := used(s.dir)
			s.peak.Store(max(s.peak.Load(), n))
			if n > limit {
				cancel(fmt.Errorf("%w: %d bytes, limits.disk is %d", errDisk, n, limit))
			}
		}
	}()
	return ctx, func() { cancel(nil); <-done }
}

// remove takes the directory away and looks for what is left; before is what
// went wrong on the way.
func (s *scratch) remove(ctx context.Context, before error) Cleanup {
	c := Cleanup{Bytes: used(s.dir)}
	err := errors.Join(before, sweepDir(ctx, s.dir), s.lock.Release())
	if err != nil {
		c.Left = append(c.Left, cut(err.Error(), maxWords))
	}
	c.Left = append(c.Left, remains(s.dir)...)
	c.Verified = len(c.Left) == 0
	return c
}

// sweepDir ends the servers that still run below dir and removes it.
func sweepDir(ctx context.Context, dir string) error {
	if err := endServer(ctx, filepath.Join(dir, "data")); err != nil {
		return err
	}
	// pg_control goes first: what is left half-way cannot start.
	if err := os.Remove(filepath.Join(dir, "data", "global", "pg_control")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.RemoveAll(dir)
}

// endServer ends a postmaster of ours that outlived its drill: the one that the
// data directory's pid file names, if its command line names that directory.
func endServer(ctx context.Context, data string) error {
	pid := postmaster(data)
	if pid == 0 {
		return nil
	}
	if err := syscall.Kill(pid, syscall.SIGQUIT); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("stopping the server over %s: %w", data, err)
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for len(processes(data)) > 0 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: the server over %s (process %d) does not stop", errLeft, data, pid)
		}
	}
	return nil
}

func postmaster(data string) int {
	text, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil || pid <= 1 || !names(pid, data) {
		return 0
	}
	return pid
}

// names says whether a process has the path on its command line or works in it.
func names(pid int, path string) bool {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err == nil && bytes.Contains(line, []byte(path)) {
		return true
	}
	cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	return err == nil && (cwd == path || strings.HasPrefix(cwd, path+"/"))
}

// processes are those that name a path, other than our own.
func processes(path string) (out []int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && pid != os.Getpid() && names(pid, path) {
			out = append(out, pid)
		}
	}
	return out
}

// remains says what is still there of a drill.
func remains(dir string) (left []string) {
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		left = append(left, dir)
	}
	for _, pid := range processes(dir) {
		left = append(left, fmt.Sprintf("process %d", pid))
	}
	return left
}

// used is the disk that a directory takes, in bytes.
func used(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // what vanishes while we count takes no disk
		}
		if info, err := d.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				n += st.Blocks * 512
			}
		}
		return nil
	})
	return n
}

func freeBytes(dir string) (int64, error) {
	if err := durable.MkdirAll(dir, 0o755); err != nil {
		return 0, err
	}
	var st unix.Statfs_t
	err := unix.Statfs(dir, &st)
	return int64(st.Bavail) * st.Bsize, err
}

// Swept is a drill that was cut off, and what became of what it left.
type Swept struct {
	Drill   string  `json:"drill"`
	Name    string  `json:"name"`
	Slot    string  `json:"slot"`
	Cleanup Cleanup `json:"cleanup"`
}

// Sweep removes what killed drills left in an environment: their servers and
// their copies, never those of a drill that runs. Call it when the daemon starts
// and before a drill. The slots stay owed: see [Owed].
func Sweep(ctx context.Context, env Environment) ([]Swept, error) {
	entries, err := os.ReadDir(env.Directory)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking for what drills left in environment %s: %w", env.Name, err)
	}
	var out []Swept
	var faults []error
	for _, e := range entries {
		name := strings.TrimPrefix(e.Name(), ".")
		if !e.IsDir() || !strings.HasPrefix(name, scratchPrefix) || len(name) != len(scratchPrefix)+8 {
			continue
		}
		s, err := sweepOne(ctx, filepath.Join(env.Directory, e.Name()))
		if err != nil {
			faults = append(faults, err)
		}
		if s != nil {
			out = append(out, *s)
		}
	}
	return out, errors.Join(faults...)
}

// sweepOne removes one directory, unless a drill holds it or it is none of ours.
func sweepOne(ctx context.Context, dir string) (*Swept, error) {
	lock, err := durable.Acquire(filepath.Join(dir, lockFile))
	if errors.Is(err, durable.ErrHeld) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("sweeping %s: %w", dir, err)
	}
	var l leftover
	if data, err := os.ReadFile(filepath.Join(dir, markerFile)); err == nil {
		_ = json.Unmarshal(data, &l) // half a marker is still ours: only we make such names
	}
	s := &scratch{dir: dir, lock: lock}
	c := s.remove(ctx, nil)
	c.VerifiedAt = time.Now().UTC()
	out := &Swept{Drill: l.Drill, Name: l.Name, Slot: l.Slot, Cleanup: c}
	if !c.Verified {
		return out, fmt.Errorf("sweeping %s: %w: %s", dir, errLeft, strings.Join(c.Left, "; "))
	}
	return out, nil
}
