package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

// C-62: `wal fetch` as restore_command of a standby. Every kind of failure has its
// exit code; what was fetched ahead is bounded; zones that are away end recovery
// by a fault, never by a promotion; and it goes on when they are back.
func TestAStandbyThatFetchesIsNeverPromotedByAFailure(t *testing.T) {
	pg := pgtest.Start(t)
	r := newRig(t, pg, false)
	r.configure()
	daemon := r.daemon("db")
	r.archived(zoneLetters...)
	dir := filepath.Join(pg.Mkdir("copy"), "data")
	pg.Backup(dir)
	pg.Exec("CREATE TABLE n (i int)")
	const segments = 12
	for i := range segments {
		pg.Exec("INSERT INTO n VALUES ($1)", i)
		pg.SwitchWAL()
	}
	r.archived(zoneLetters...)
	end := pg.LSN()
	daemon.stop()
	must(t, pgtest.Own(r.dir))

	fetch := fmt.Sprintf("%s --config %s wal fetch --identity %s", r.program, r.path("drill/holdfast.yaml"), r.path("drill/data.key"))
	must(t, os.WriteFile(filepath.Join(dir, "standby.signal"), nil, 0o600))
	must(t, pgtest.Own(dir))
	standby := pg.Adopt(dir, "primary_conninfo = ''", "wal_retrieve_retry_interval = 100ms",
		fmt.Sprintf(`restore_command = '%s %%f %%p; case $? in 0) exit 0;; 1) exit 1;; *) exit 254;; esac'`, fetch))
	standby.Start()
	standby.AwaitReplay(end)
	if got := pgtest.Value[int64](standby, "SELECT count(*) FROM n"); got != segments {
		t.Errorf("the standby has %d rows, want %d", got, segments)
	}
	spooled, err := filepath.Glob(filepath.Join(dir, "pg_wal/holdfast-spool/0*"))
	if must(t, err); len(spooled) > 8 {
		t.Errorf("%d segments are fetched ahead, the bound is 8", len(spooled))
	}

	back := r.away("a", "b")
	await(t, "recovery's end for want of a proof", func() bool { return strings.Contains(standby.Log(), "exit code 254") })
	standby.Crash()
	if log := standby.Log(); strings.Contains(log, "archive recovery complete") || strings.Contains(log, "selected new timeline") {
		t.Error("the standby was promoted because zones were away")
	}
	back()
	standby.Start()
	if !pgtest.Value[bool](standby, "SELECT pg_is_in_recovery()") {
		t.Error("the standby is no standby any more")
	}
	standby.Stop()
	r.fetchCodes(t)
}

// fetchCodes runs every kind of failure.
func (r *rig) fetchCodes(t *testing.T) {
	objects, err := filepath.Glob(r.path("zones/a/clusters/cms/wal/*/*/0*-*.age"))
	must(t, err)
	name := ""
	for _, o := range objects {
		if base, digest, _ := strings.Cut(filepath.Base(o), "-"); len(base) == 24 && !strings.Contains(digest, ".idx") {
			name = base
		}
	}
	dest := r.path("fetched")
	key := r.path("drill/data.key")
	check := func(want int, what string, args ...string) {
		t.Helper()
		os.Remove(dest)
		code, _, errs := r.try("drill", append([]string{"wal", "fetch"}, args...)...)
		_, err := os.Stat(dest)
		if code != want || (err == nil) != (want == 0) || (want == 254) != (errs != "") {
			t.Errorf("%s: exit %d, want %d; file: %v\n%s", what, code, want, err, errs)
		}
	}
	check(0, "a segment", "--identity", key, name, dest)
	check(1, "a segment that is not there", "--identity", key, "0000000100000000000000FF", dest)
	check(1, "a history that is not there", "--identity", key, "00000002.history", dest)
	check(254, "usage", "--identity", key, name)
	check(254, "an unknown flag", "--whatever", name, dest)
	check(254, "not a name", "--identity", key, "../../etc/passwd", dest)
	check(254, "an unknown cluster", "--cluster", "none", "--identity", r.path("none"), name, dest)
	check(254, "no identity", name, dest)
	check(254, "the index's identity", "--identity", r.path("keys/index"), name, dest)
	check(254, "a place that cannot be written", "--identity", key, name, r.path("none/fetched"))
	back := r.away("a", "b")
	check(254, "absent, without a proof", "--identity", key, "0000000100000000000000FF", dest)
	back()
	for _, z := range zoneLetters {
		damaged, err := filepath.Glob(r.path("zones/" + z + "/clusters/cms/wal/*/*/" + name + "*.age"))
		must(t, err)
		for _, o := range damaged {
			data, err := os.ReadFile(o)
			must(t, err)
			data[len(data)/2] ^= 1
			must(t, os.WriteFile(o, data, 0o600))
		}
	}
	check(254, "damaged in every zone", "--identity", key, name, dest)
	conf := r.path("drill/holdfast.yaml")
	must(t, os.WriteFile(conf, []byte("format: 2\n"), 0o600))
	check(254, "a wrong configuration", "--identity", key, name, dest)
}
