package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

// C-34, C-35, C-37: alone or by a daemon, a push ends with 0 when the quorum has
// the file, and with what PostgreSQL counts as a failure otherwise.
func TestAPushEndsAsPostgreSQLMustBeTold(t *testing.T) {
	pg := pgtest.Start(t)
	r := newRig(t, pg, false)
	r.configure()
	conf, err := os.ReadFile(r.path("db/holdfast.yaml"))
	must(t, err)
	push := strings.Replace(string(conf), "mode: stream, max_lag: 500ms", "mode: push", 1)
	r.write("db/holdfast.yaml", push)
	segment := func() string {
		name := pgtest.Value[string](pg, "SELECT pg_walfile_name(pg_current_wal_lsn())")
		pg.SwitchWAL()
		return filepath.Join(pg.DataDir, "pg_wal", name)
	}
	refused := func(code int, what string, args ...string) {
		t.Helper()
		got, _, errs := r.try("db", append([]string{"wal", "push"}, args...)...)
		if got != code || !strings.Contains(errs, what) {
			t.Errorf("wal push %s: exit %d, want %d with %q:\n%s", args, got, code, what, errs)
		}
	}
	faults := func(how string) {
		path := segment()
		for range 2 {
			r.hold("db", 0, "wal", "push", path)
			copies, err := filepath.Glob(r.path("zones/*/clusters/cms/wal/*/*/" + filepath.Base(path) + "-*.age"))
			if must(t, err); len(copies) < 2 {
				t.Errorf("%s: pushed and in %q", how, copies)
			}
		}
		good, err := os.ReadFile(path)
		must(t, err)
		bad := append([]byte{}, good...)
		bad[len(bad)-1] ^= 1
		must(t, os.WriteFile(path, bad, 0o600))
		refused(1, "other content", path)
		must(t, os.WriteFile(path, good, 0o600))
		refused(1, "not a file that PostgreSQL archives", filepath.Join(pg.DataDir, "postgresql.conf"))
		refused(2, "accepts 1 arg", path, "another")
		refused(2, "0 clusters", "--cluster", "none", path)
		if t.Failed() {
			t.Fatal(how)
		}
	}
	faults("alone")
	daemon := r.daemon("db")
	faults("by the daemon")
	daemon.stop()

	back := r.away("a", "b")
	path := segment()
	if code, _, _ := r.try("db", "wal", "push", path); code < 1 || code > 125 {
		t.Errorf("without a quorum: exit %d", code)
	}
	back()
	r.hold("db", 0, "wal", "push", path)
	r.write("db/holdfast.yaml", strings.Replace(push, "mode: push", "mode: pull", 1))
	refused(2, "pull", path)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
