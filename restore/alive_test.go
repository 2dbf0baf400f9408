package restore_test

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/restore"
	"github.com/holdfast-dr/holdfast/snapshot"
)

// C-53: the postmaster is dead, and a backend of its still has the files open.
func TestAnOrphanedBackendHoldsItsDirectory(t *testing.T) {
	pg := pgtest.Start(t)
	w := newWorld(t, pg)
	w.take(snapshot.SourceFiles)
	w.flush()
	w.stop()
	opt := w.options(pg.DataDir)
	opt.Delta = true
	p := w.plan(restore.Target{Kind: restore.Immediate})
	refused := func() bool {
		_, err := restore.Fetch(t.Context(), w.repo(), p, opt)
		return errors.Is(err, restore.ErrRunning)
	}
	if !refused() {
		t.Fatal("a running server's directory was not refused")
	}
	postmaster := pidIn(t, pg.DataDir)
	orphan := childOf(t, postmaster)
	// A process that is stopped does not hear of its postmaster's death.
	if err := errors.Join(syscall.Kill(orphan, syscall.SIGSTOP), syscall.Kill(postmaster, syscall.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Kill(orphan, syscall.SIGKILL) }()
	await(t, "the postmaster's end", func() bool { return errors.Is(syscall.Kill(postmaster, 0), syscall.ESRCH) })
	if !refused() {
		t.Error("the directory of an orphaned backend was taken")
	}
	if _, err := os.Stat(filepath.Join(pg.DataDir, "global/pg_control")); err != nil {
		t.Error(err)
	}
}

func pidIn(t *testing.T, dir string) int {
	t.Helper()
	first, _, _ := strings.Cut(string(must[[]byte](t)(os.ReadFile(filepath.Join(dir, "postmaster.pid")))), "\n")
	return must[int](t)(strconv.Atoi(first))
}

// childOf is a child of a process.
func childOf(t *testing.T, pid int) int {
	t.Helper()
	name := filepath.Join("/proc", strconv.Itoa(pid), "task", strconv.Itoa(pid), "children")
	fields := strings.Fields(string(must[[]byte](t)(os.ReadFile(name))))
	if len(fields) == 0 {
		t.Fatalf("process %d has no children", pid)
	}
	return must[int](t)(strconv.Atoi(fields[0]))
}

func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(pgtest.Patience); !cond(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waiting for %s", what)
		}
	}
}
