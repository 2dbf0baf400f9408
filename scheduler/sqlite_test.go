package scheduler_test

import (
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/scheduler"
	"github.com/holdfast-dr/holdfast/scheduler/schedulertest"
)

type sqliteStore struct{ path string }

func (s sqliteStore) Open(t *testing.T, now func() time.Time) scheduler.Queue {
	return openSQLite(t, s.path, now)
}

// Crash closes the file, which settles nothing: to the rows it is a death. The
// death of a real process is TestAKilledProcessLosesNothing.
func (s sqliteStore) Crash(t *testing.T, q scheduler.Queue) {
	if err := q.(*scheduler.SQLite).Close(); err != nil {
		t.Fatal(err)
	}
}

func openSQLite(t *testing.T, path string, now func() time.Time) *scheduler.SQLite {
	t.Helper()
	q, err := scheduler.OpenSQLite(t.Context(), path, now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = q.Close() })
	return q
}

func TestSQLiteKeepsThePromisesOfAQueue(t *testing.T) {
	schedulertest.Run(t, func(t *testing.T) schedulertest.Store {
		return sqliteStore{filepath.Join(t.TempDir(), "jobs.db")}
	})
}

func TestAFileHasOneOwner(t *testing.T) {
	path := filepath.Join(t.TempDir(), "jobs.db")
	first := openSQLite(t, path, nil)
	if _, err := scheduler.OpenSQLite(t.Context(), path, nil); !errors.Is(err, durable.ErrHeld) || !strings.Contains(err.Error(), path) {
		t.Fatalf("a second owner: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	openSQLite(t, path, nil)
}

func TestPathsOfAnyKindAreFiles(t *testing.T) {
	for _, name := range []string{"a b.db", "50%.db", "what?.db", "#1.db", "ü&x=y.db"} {
		path := filepath.Join(t.TempDir(), name)
		openSQLite(t, path, nil)
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
}

func TestDamagedAndNewerFilesAreRefusedWithARemedy(t *testing.T) {
	damaged := filepath.Join(t.TempDir(), "jobs.db")
	if err := os.WriteFile(damaged, []byte(strings.Repeat("not a database ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	newer := filepath.Join(t.TempDir(), "jobs.db")
	db, err := sql.Open("sqlite", newer)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), "PRAGMA user_version = 99"); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{damaged, newer, filepath.Join(t.TempDir(), "none", "jobs.db")} {
		for range 2 { // the lock of a refused opening is let go
			_, err := scheduler.OpenSQLite(t.Context(), path, nil)
			if err == nil || !strings.Contains(err.Error(), path) || errors.Is(err, durable.ErrHeld) {
				t.Errorf("%s: %v", path, err)
			}
		}
	}
}
