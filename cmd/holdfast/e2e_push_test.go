package main

import (
	"bytes"
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

// C-40: what a real promotion leaves of the segment in which its timeline ended is
// kept under its own name, and never given out for the segment.
func TestThePartialSegmentOfAPromotionIsKeptAndIsNoSegment(t *testing.T) {
	old := pgtest.Start(t)
	pg := old.Standby(t, "archive_mode = on", "archive_command = 'false'")
	old.Exec("CREATE TABLE n AS SELECT generate_series(1, 1000) i")
	pg.AwaitReplay(old.LSN())
	segment := pgtest.Value[string](old, "SELECT pg_walfile_name(pg_current_wal_lsn())")
	old.Stop()
	pg.Promote()
	wal := filepath.Join(pg.DataDir, "pg_wal")
	await(t, "the partial segment waits to be archived", func() bool {
		_, err := os.Stat(filepath.Join(wal, "archive_status", segment+".partial.ready"))
		return err == nil
	})
	r := newRig(t, pg, false)
	r.configure()
	conf, err := os.ReadFile(r.path("db/holdfast.yaml"))
	must(t, err)
	r.write("db/holdfast.yaml", strings.Replace(string(conf), "mode: stream, max_lag: 500ms", "mode: push", 1))
	pg.SwitchWAL()
	for _, name := range []string{"00000002.history", segment + ".partial", "00000002" + segment[8:]} {
		r.hold("db", 0, "wal", "push", filepath.Join(wal, name))
		dest := r.path("fetched")
		r.hold("drill", 0, "wal", "fetch", "--identity", r.path("drill/data.key"), name, dest)
		want, err := os.ReadFile(filepath.Join(wal, name))
		must(t, err)
		if got, err := os.ReadFile(dest); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v, %d bytes came back of %d, or others", name, err, len(got), len(want))
		}
		must(t, os.Remove(dest))
	}
	r.hold("drill", 1, "wal", "fetch", "--identity", r.path("drill/data.key"), segment, r.path("fetched"))
	if _, err := os.Stat(r.path("fetched")); err == nil {
		t.Error("a part was given out for the whole segment")
	}
}
