package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/restore"
)

// In place: the restored cluster stands where the dropped table was, with production's
// own settings; what was there is kept until it is put back or signed off.
func TestARestoreInPlaceIsOneExchangeThatCanBeTakenBack(t *testing.T) {
	pg := pgtest.Start(t, pgtest.WithSetting("archive_mode", "on"), pgtest.WithSetting("archive_command", "true"), pgtest.WithTablespace())
	r := newRig(t, pg, false)
	r.configure()
	daemon := r.daemon("db")
	pg.Exec("ALTER SYSTEM SET work_mem = '7MB'")
	pg.Exec("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")
	r.hold("db", 0, "snapshot", "take", "cms")
	var past time.Time
	pg.QueryRow([]any{&past}, "SELECT clock_timestamp()")
	pg.Exec("DROP TABLE kept")
	r.archived(zoneLetters...)
	daemon.stop()

	dir := pg.DataDir
	in := func(want int, more ...string) string {
		t.Helper()
		args := []string{"restore", "run", "cms", "--in-place", "--to", dir, "--time", past.Format(time.RFC3339Nano), "--identity", r.path("drill/data.key"), "--binaries", pg.BinDir()}
		return r.hold("drill", want, append(args, more...)...)
	}
	in(3)                        // nothing is typed
	in(3, "--confirm", "other")  // another name
	in(3, "--confirm", "cms")    // it runs
	in(2, "--delta", "--start")  // not together
	in(2, "--quarantine", "--x") // nor what there is not
	pg.Stop()
	stranger := pgtest.Create(t, pgtest.WithInitdb("--wal-segsize=1")) // another system
	r.hold("drill", 3, "restore", "run", "cms", "--in-place", "--to", stranger.DataDir, "--confirm", "cms", "--identity", r.path("drill/data.key"))
	if left := beside(t, dir); len(left) != 0 {
		t.Fatalf("what was refused left %q", left)
	}

	rows := func() (n int, mode, mem string) {
		t.Helper()
		pg.QueryRow([]any{&n, &mode, &mem}, "SELECT count(*), current_setting('archive_mode'), current_setting('work_mem') FROM pg_class WHERE relname = 'kept'")
		return n, mode, mem
	}
	said := in(0, "--confirm", "cms")
	if !strings.Contains(said, "signoff "+dir) || len(beside(t, dir)) == 0 {
		t.Errorf("it says:\n%s\nbeside it: %q", said, beside(t, dir))
	}
	r.hold("drill", 1, "restore", "open", dir) // not as a copy
	if shown := r.hold("drill", 0, "restore", "show", dir); !strings.Contains(shown, ".before-") || !strings.Contains(shown, "restore signoff") || strings.Contains(shown, "restore open") {
		t.Errorf("shown:\n%s", shown)
	}
	pg.Start()
	if n, mode, mem := rows(); n != 1 || mode != "on" || mem != "7MB" {
		t.Errorf("in place there are %d tables, archive_mode %s, work_mem %s: want 1, on, 7MB", n, mode, mem)
	}
	r.hold("drill", 3, "restore", "discard", dir) // it runs
	pg.Stop()
	r.hold("drill", 3, "restore", "discard", dir) // it was started
	r.hold("drill", 0, "restore", "discard", dir, "--confirm", "cms")
	pg.Start()
	if n, _, _ := rows(); n != 0 {
		t.Error("what was put back has the table, which had been dropped there")
	}
	pg.Stop()

	in(0, "--confirm", "cms")
	r.hold("drill", 3, "restore", "signoff", dir)
	r.hold("drill", 3, "restore", "signoff", dir, "--confirm", "cms") // its tablespaces would stay
	links, err := filepath.Glob(dir + ".before-*/pg_tblspc/*")
	if err != nil || len(links) == 0 {
		t.Fatalf("%q: %v", links, err)
	}
	for _, l := range links {
		if err := os.Remove(l); err != nil {
			t.Fatal(err)
		}
	}
	r.hold("drill", 0, "restore", "signoff", dir, "--confirm", "cms")
	r.hold("drill", 3, "restore", "signoff", dir, "--confirm", "cms")
	for _, name := range beside(t, dir) {
		if strings.Contains(name, ".before-") {
			t.Errorf("%s is left after the signoff", name)
		}
	}
	pg.Start()
	if n, _, _ := rows(); n != 1 {
		t.Error("after the signoff the table is missing")
	}
	pg.Stop() // it is production's own now: nothing takes it for a restore's
	r.hold("drill", 3, "restore", "discard", dir, "--confirm", "cms")
	r.hold("drill", 1, "restore", "open", dir)
	pg.Start()
	r.daemon("db") // and production goes on, on its new timeline
	r.archived(zoneLetters...)
	r.hold("db", 0, "snapshot", "take", "cms")
}

// beside are the directories that were made for one.
func beside(t *testing.T, dir string) []string {
	t.Helper()
	out, err := filepath.Glob(dir + ".*")
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A restore in place that was killed is gone on with, and takes the place then.
func TestARestoreInPlaceIsGoneOnWith(t *testing.T) {
	pg, r := stoppedWithATable(t)

	back := r.away(zoneLetters[:2]...)
	if code, _, _ := r.try("drill", "restore", "run", "cms", "--in-place", "--to", pg.DataDir, "--confirm", "cms", "--identity", r.path("drill/data.key"), "--binaries", pg.BinDir()); code == 0 {
		t.Fatal("a restore without its zones ended well")
	}
	back()
	packs, err := filepath.Glob(r.path("zones/*/clusters/cms/snapshots/*/packs/*.age"))
	if err != nil || len(packs) == 0 {
		t.Fatal(err)
	}
	hide := func(from, to string) {
		for _, p := range packs {
			if err := os.Rename(p+from, p+to); err != nil {
				t.Fatal(err)
			}
		}
	}
	hide("", ".away")
	if code, _, _ := r.try("drill", "restore", "run", "cms", "--in-place", "--to", pg.DataDir, "--confirm", "cms", "--identity", r.path("drill/data.key"), "--binaries", pg.BinDir()); code == 0 {
		t.Fatal("a restore without its packs ended well")
	}
	hide(".away", "")
	left, err := filepath.Glob(pg.DataDir + ".restored-*")
	if err != nil || len(left) != 1 {
		t.Fatalf("%q are left: %v", left, err)
	}
	if code, out, errs := r.try("drill", "restore", "resume", left[0], "--identity", r.path("drill/data.key"), "--binaries", "/nowhere"); code == 0 {
		t.Fatalf("without PostgreSQL's programs it went on: %s%s", out, errs)
	}
	r.hold("drill", 0, "restore", "resume", left[0], "--identity", r.path("drill/data.key"), "--binaries", pg.BinDir())
	startsWithTheTable(t, pg)
	if m, err := restore.ReadMarker(pg.DataDir); err != nil || m.InPlace == nil || m.InPlace.At.IsZero() {
		t.Errorf("the marker: %+v, %v", m, err)
	}
}

// One that is whole, and was cut off before it took the place, takes it then: nothing
// is fetched again.
func TestAWholeRestoreTakesItsPlaceLater(t *testing.T) {
	pg, r := stoppedWithATable(t)
	to := pg.DataDir + ".restored-by-hand"
	r.hold("drill", 0, "restore", "run", "cms", "--to", to, "--identity", r.path("drill/data.key"), "--binaries", pg.BinDir())
	file := filepath.Join(to, "holdfast-restore.json")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var marker map[string]any
	if err := json.Unmarshal(text, &marker); err != nil {
		t.Fatal(err)
	}
	marker["in_place"] = restore.InPlace{Dir: pg.DataDir, Beside: to, Kept: pg.DataDir + ".before-by-hand"}
	if text, err = json.Marshal(marker); err != nil || os.WriteFile(file, text, 0o600) != nil {
		t.Fatal(err)
	}
	r.hold("drill", 0, "restore", "resume", to)
	r.hold("drill", 3, "restore", "resume", pg.DataDir)
	if _, err := os.Stat(pg.DataDir + ".before-by-hand/PG_VERSION"); err != nil {
		t.Error(err)
	}
	startsWithTheTable(t, pg)
}

// stoppedWithATable is a server that was archived and is stopped.
func stoppedWithATable(t *testing.T) (*pgtest.Cluster, *rig) {
	t.Helper()
	pg := pgtest.Start(t)
	r := newRig(t, pg, false)
	r.configure()
	daemon := r.daemon("db")
	pg.Exec("CREATE TABLE kept AS SELECT 1 AS n")
	r.hold("db", 0, "snapshot", "take", "cms")
	r.archived(zoneLetters...)
	daemon.stop()
	pg.Stop()
	return pg, r
}

func startsWithTheTable(t *testing.T, pg *pgtest.Cluster) {
	t.Helper()
	pg.Start()
	var n int
	if pg.QueryRow([]any{&n}, "SELECT n FROM kept"); n != 1 {
		t.Errorf("the table says %d", n)
	}
}
