package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/postgres/sandbox"
)

// Promise 9: a copy of one zone and a key are enough. The keys are post-quantum,
// as keys new makes them, the newer snapshot builds on the older one, and the last
// segment is archived in slices.
func TestBreakGlassStartsPostgreSQLFromOneZoneAndAKeyWithoutHoldfast(t *testing.T) {
	pg := pgtest.Start(t, pgtest.WithSetting("track_commit_timestamp", "on"), pgtest.WithTablespace())
	for _, sql := range []string{
		"CREATE TABLE aside TABLESPACE side AS SELECT g, repeat('x', 200) AS t FROM generate_series(1, 5000) g",
		"CREATE UNLOGGED TABLE fleeting AS SELECT 1 AS g", "SET allow_in_place_tablespaces = on", "CREATE TABLESPACE within LOCATION ''",
		"CREATE TABLE inplace TABLESPACE within AS SELECT g FROM generate_series(1, 1000) g",
		"ALTER SYSTEM SET recovery_target_name = 'of long ago'", "ALTER SYSTEM SET primary_conninfo = 'host=production'",
	} {
		pg.Exec(sql)
	}
	r := newRig(t, pg, false)
	r.data = r.hold("", 0, "keys", "new", "data", "--out", r.path("drill/pq.key"))
	r.hold("", 0, "keys", "new", "index", "--out", r.path("keys/pq"))
	for from, to := range map[string]string{"drill/pq.key": "drill/data.key", "keys/pq": "keys/index"} {
		if err := os.Rename(r.path(from), r.path(to)); err != nil {
			t.Fatal(err)
		}
	}
	r.configure()
	daemon := r.daemon("db")
	oracle := pg.StartOracle(10 * time.Millisecond)
	oracle.AwaitMore(20)
	r.hold("db", 0, "snapshot", "take", "cms")
	pg.Exec("UPDATE aside SET t = repeat('y', 100) WHERE g <= 50")
	pg.Exec("SELECT pg_switch_wal()")
	oracle.AwaitMore(20)
	r.hold("db", 0, "snapshot", "take", "cms")
	mid := oracle.AwaitMore(20)
	oracle.AwaitMore(20)
	acked := oracle.Stop()
	r.archived("a", "b", "c")
	daemon.stop()
	if out, err := exec.Command("cp", "-a", r.path("zones/a"), r.path("copy")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	incremental(t, r.path("copy/clusters/cms/snapshots"))
	hide(t, r.path("zones"), r.path("db"), r.path("keys"))

	end := r.breakGlass("end")
	position := regexp.MustCompile(`says (\S+) or more`).FindStringSubmatch(end)
	if position == nil || !strings.Contains(end, "Signatures: verified") || !strings.Contains(end, "FRESHNESS NOT VERIFIED") {
		t.Fatalf("it said:\n%s", end)
	}
	r.copyHolds("end", fmt.Sprintf("SELECT pg_last_wal_replay_lsn() >= '%s'", position[1]), acked, pgtest.Everything)

	r.breakGlass("time", "--time", mid.Time.Format(time.RFC3339Nano))
	r.copyHolds("time", "SELECT pg_get_wal_replay_pause_state() = 'paused'", acked, func(c pgtest.Commit) bool { return !c.Time.After(mid.Time) })
}

// incremental wants the newer of two snapshots to need packs and maps of the older.
func incremental(t *testing.T, dir string) {
	t.Helper()
	ids, err := os.ReadDir(dir)
	if err != nil || len(ids) != 2 {
		t.Fatalf("%d snapshots, %v", len(ids), err)
	}
	list, err := os.ReadFile(filepath.Join(dir, ids[1].Name(), "objects.list"))
	for _, kind := range []string{"/packs/", "/maps/"} {
		if err != nil || !strings.Contains(string(list), ids[0].Name()+kind) {
			t.Errorf("%v: the second snapshot needs none of the first's %s:\n%s", err, kind, list)
		}
	}
}

// hide takes directories out of reach, so that nothing can be read of them.
func hide(t *testing.T, dirs ...string) {
	t.Helper()
	for _, d := range dirs {
		if err := os.Rename(d, d+".gone"); err != nil {
			t.Fatal(err)
		}
	}
}

// breakGlass restores from the copied zone with docs/break-glass.py and returns
// what it said.
func (r *rig) breakGlass(name string, more ...string) string {
	r.t.Helper()
	r.mkdir(name)
	script := "../../docs/break-glass.py"
	if _, err := os.ReadFile(script); err != nil { // so that go test knows what its result depends on
		r.t.Fatal(err)
	}
	args := append([]string{
		script, "--repository", r.path("copy"), "--cluster", "cms", "--identity", r.path("drill/data.key"),
		"--to", r.path(name + "/data"), "--age", newAge(r.t), "--trust", r.keys["db"],
	}, more...)
	cmd := exec.CommandContext(r.t.Context(), "python3", args...)
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.t.Fatalf("break-glass.py: %v\n%s", err, out)
	}
	return string(out)
}

// newAge is age 1.3 or newer, which opens what is sealed to post-quantum keys.
func newAge(t *testing.T) string {
	t.Helper()
	for _, dir := range []string{os.Getenv("HOLDFAST_TOOLS"), "../../.tools"} {
		for _, p := range []string{filepath.Join(dir, "bin/age"), filepath.Join(dir, "age")} {
			if _, err := os.Stat(p); dir != "" && err == nil {
				abs, err := filepath.Abs(p)
				if err != nil {
					t.Fatal(err)
				}
				return abs
			}
		}
	}
	t.Fatal("age 1.3 is missing: run `make tools`")
	return ""
}

// copyHolds starts what the script made as its user would, waits until it has
// replayed all, promotes it, and holds it against the oracle.
func (r *rig) copyHolds(name, replayed string, acked []pgtest.Commit, want func(pgtest.Commit) bool) {
	t := r.t
	t.Helper()
	dir := r.path(name)
	p := sandbox.Programs{Bin: r.pg.BinDir(), User: "postgres"}
	f, err := os.OpenFile(filepath.Join(dir, "data/postgresql.auto.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = fmt.Fprintf(f, "unix_socket_directories = '%s'\nport = %d\n", dir, r.pg.Port)
	if err := errors.Join(err, f.Close(), pgtest.Own(dir)); err != nil {
		t.Fatal(err)
	}
	if err := p.StartDaemon(t.Context(), dir+"/data", dir+"/log"); err != nil {
		log, _ := os.ReadFile(dir + "/log")
		t.Fatalf("pg_ctl start: %v\n%s", err, log)
	}
	t.Cleanup(func() {
		if err := p.StopDaemon(context.Background(), dir+"/data"); err != nil {
			t.Error(err)
		}
	})
	conn, err := pgx.Connect(t.Context(), fmt.Sprintf("host=%s port=%d user=postgres dbname=postgres", dir, r.pg.Port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	await(t, name+" to have replayed all", func() bool {
		var done bool
		return conn.QueryRow(t.Context(), replayed).Scan(&done) == nil && done
	})
	var changed, inplace, fleeting int
	err = conn.QueryRow(t.Context(), "SELECT count(*) FILTER (WHERE t LIKE 'y%'), (SELECT count(*) FROM inplace) FROM aside").Scan(&changed, &inplace)
	if err != nil || changed != 50 || inplace != 1000 {
		t.Errorf("%s: %d rows changed in the tablespace, %d in the one in place, %v", name, changed, inplace, err)
	}
	if _, err := conn.Exec(t.Context(), "SELECT pg_promote()"); err != nil {
		t.Fatal(err)
	}
	if err := pgtest.CheckOracle(t.Context(), conn, acked, want); err != nil {
		t.Errorf("%s: %v", name, err)
	}
	if err := conn.QueryRow(t.Context(), "SELECT count(*) FROM fleeting").Scan(&fleeting); err != nil || fleeting != 0 {
		t.Errorf("%s: %d rows of the unlogged table, %v", name, fleeting, err)
	}
	r.pg.Run("pg_amcheck", "--install-missing", "--heapallindexed", "-h", dir, "-p", fmt.Sprint(r.pg.Port), "-U", "postgres", "-d", "postgres")
}
