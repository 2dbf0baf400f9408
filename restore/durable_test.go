//go:build linux && amd64

package restore_test

import (
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/durable/durabletest"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/restore"
	"github.com/holdfast-dr/holdfast/snapshot"
)

// A power cut finds no pg_control before all that was fetched is on disk, and no
// postgresql.conf before all that recovery, which runs without fsync, has made of it
// is (C-54).
func TestAllIsOnDiskBeforeWhatLetsTheClusterStart(t *testing.T) {
	pg := pgtest.Start(t, pgtest.WithTablespace())
	furnish(pg)
	w := newWorld(t, pg)
	w.take(snapshot.SourceFiles)
	w.flush()
	p, to := w.plan(restore.Target{Kind: restore.Latest}), w.target()
	out, err := durabletest.Trace(w.victim(p, to, "", false), filepath.Dir(to), -1, durabletest.None)
	if err != nil || out.ExitCode != 0 {
		t.Fatalf("exit %d: %v", out.ExitCode, err)
	}
	made := map[string]bool{}
	out.Steps = slices.DeleteFunc(out.Steps, func(s durabletest.Step) bool {
		again := s.Call == "mkdir" && made[s.Path] // of what is there, which makes no entry
		made[s.Path] = made[s.Path] || s.Call == "mkdir"
		return again
	})
	named := func(name string) int {
		i := slices.IndexFunc(out.Steps, func(s durabletest.Step) bool { return s.Call == "rename" && s.To == filepath.Join(to, name) })
		if i < 0 {
			t.Fatalf("%s never got its name", name)
		}
		return i
	}
	below := func(path string) bool {
		return path == to || strings.HasPrefix(path, to+"/") || strings.HasPrefix(path, to+".tablespaces")
	}
	elsewhere := func(path string) bool {
		return !below(path) || strings.HasPrefix(filepath.Base(path), durable.TempPrefix)
	}
	for _, name := range []string{"global/pg_control", "postgresql.conf"} {
		if err := durabletest.CheckOrder(out.Steps[:named(name)], elsewhere); err != nil {
			t.Errorf("before %s: %v", name, err)
		}
	}

	auto := named("global/pg_control")
	for i, s := range out.Steps {
		if s.Call == "rename" && s.To == filepath.Join(to, "postgresql.auto.conf") {
			auto = i // the last time, when the server has stopped
		}
	}
	synced := map[string]bool{}
	for _, s := range out.Steps[auto:named("postgresql.conf")] {
		synced[s.Path] = synced[s.Path] || s.Call == "fsync"
	}
	files := 0
	for _, root := range []string{to, to + ".tablespaces"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() && !d.Type().IsRegular() || path == to+".tablespaces" { // the server writes nothing there
				return err
			}
			files++
			if name := strings.TrimPrefix(path, to); !synced[path] && name != "/postgresql.conf" {
				t.Errorf("%s was not fsynced between the server's end and postgresql.conf", name)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if files < 500 {
		t.Errorf("only %d files and directories are there", files)
	}
}
