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
	err := filepath.WalkDir(to, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(to, path)
		got := must[fs.FileInfo](t)(os.Lstat(path))
		want, missing := os.Lstat(filepath.Join(pg.DataDir, rel))
		ours := rel == "postgresql.auto.conf" || rel == "global/pg_control" || rel == "backup_manifest" // written anew
		if missing != nil || ours {
			return nil //nolint:nilerr // what the source does not have is ours
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
