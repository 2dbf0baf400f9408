package restore_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/restore"
	"github.com/holdfast-dr/holdfast/snapshot"
)

// Owners and modes are those of the source, whatever the umask of who restores.
func TestOwnersAndModesComeBack(t *testing.T) {
	pg := pgtest.Start(t, pgtest.WithInitdb("--allow-group-access"))
	w := newWorld(t, pg)
	w.take(snapshot.SourceFiles)
	w.flush()
	defer syscall.Umask(syscall.Umask(0o077))
	to := w.target()
	if _, err := restore.Fetch(t.Context(), w.repo(), w.plan(restore.Target{Kind: restore.Immediate}), w.options(to)); err != nil {
		t.Fatal(err)
	}
	compared := 0
	err := filepath.WalkDir(pg.DataDir, func(path string, _ fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(pg.DataDir, path)
		want, errWant := os.Lstat(path)
		got, errGot := os.Lstat(filepath.Join(to, rel))
		ours := rel == "postgresql.auto.conf" || rel == "global/pg_control" // written anew
		if err != nil || errWant != nil || errGot != nil || ours {
			return nil // made since, or left out
		}
		compared++
		if got.Mode() != want.Mode() || got.Sys().(*syscall.Stat_t).Uid != want.Sys().(*syscall.Stat_t).Uid {
			t.Errorf("%s is %s, was %s", rel, got.Mode(), want.Mode())
		}
		return nil
	})
	if err != nil || compared < 500 {
		t.Errorf("%v; compared %d files and directories", err, compared)
	}
	if err := restore.Discard(to); err != nil {
		t.Error(err)
	}
}
