package restore_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/postgres/sandbox"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/restore"
)

// furnish makes what restores go wrong with: tablespaces of both kinds, an
// unlogged table, configuration that must not live on.
func furnish(pg *pgtest.Cluster) {
	pg.Exec("CREATE TABLE aside TABLESPACE side AS SELECT g FROM generate_series(1, 1000) g")
	pg.Exec("CREATE UNLOGGED TABLE fleeting AS SELECT g FROM generate_series(1, 1000) g")
	pg.Exec("SET allow_in_place_tablespaces = on")
	pg.Exec("CREATE TABLESPACE within LOCATION ''")
	pg.Exec("CREATE TABLE inplace TABLESPACE within AS SELECT g FROM generate_series(1, 1000) g")
	pg.Exec("CREATE ROLE editor LOGIN")
	pg.Exec("ALTER SYSTEM SET recovery_target_name = 'of long ago'")
	pg.Exec("ALTER SYSTEM SET primary_conninfo = 'host=production'")
	pg.Exec("CHECKPOINT")
}

// C-53: what is there is not touched.
func testRefusedTargets(t *testing.T, w *world, _ oracle) {
	p := w.plan(restore.Target{Kind: restore.Immediate})
	to := w.target()
	precious := filepath.Join(to, "precious")
	if err := errors.Join(os.MkdirAll(to+".room", 0o700), os.MkdirAll(to, 0o700), os.WriteFile(precious, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := restore.Prepare(t.Context(), w.repo(), p, w.options(to)); !errors.Is(err, restore.ErrNotEmpty) {
		t.Errorf("%v, want ErrNotEmpty", err)
	}
	if err := restore.Discard(to); err == nil {
		t.Error("a directory that no restore made was discarded")
	}
	for _, path := range []string{precious, to + ".room"} { // another restore may be under way there
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
	huge := p
	huge.DiskNeeded = 1 << 60
	to = w.target()
	if _, err := restore.Prepare(t.Context(), w.repo(), huge, w.options(to)); err == nil || !strings.Contains(err.Error(), "bytes free") {
		t.Errorf("a disk too small: %v", err)
	}
	if left := must[[]string](t)(filepath.Glob(to + "*")); len(left) > 0 {
		t.Errorf("%v was made although the disk is too small", left)
	}
	opt := w.options(to)
	opt.Tablespaces = map[string]string{"side": filepath.Dir(precious)}
	if _, err := restore.Prepare(t.Context(), w.repo(), p, opt); !errors.Is(err, restore.ErrNotEmpty) {
		t.Errorf("a tablespace's directory that holds something: %v", err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Error(err)
	}
}

// C-4: without backup_label recovery would begin at the wrong checkpoint.
func testT14PoisonedControl(t *testing.T, w *world, _ oracle) {
	p := w.plan(restore.Target{Kind: restore.Latest})
	to := w.target()
	if _, err := restore.Fetch(t.Context(), w.repo(), p, w.options(to)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(filepath.Join(to, "backup_label")), os.Remove(filepath.Join(to, "standby.signal")),
		os.Rename(filepath.Join(to, "postgresql.conf.closed"), filepath.Join(to, "postgresql.conf"))); err != nil {
		t.Fatal(err)
	}
	w.cannotStart(to)
	log := must[[]byte](t)(os.ReadFile(filepath.Join(to, "start.log")))
	if !strings.Contains(string(log), "checkpoint record") {
		t.Errorf("it is not the checkpoint that keeps it from starting:\n%s", log)
	}
	if err := restore.Discard(to); err != nil {
		t.Error(err)
	}
}

// C-15, C-56, C-65, C-66, C-68, promise 10.
func testOpening(t *testing.T, w *world, o oracle) {
	p := w.plan(restore.Target{Kind: restore.Latest})
	to := w.target()
	side := filepath.Join(filepath.Dir(to), "elsewhere", "side")
	opt := w.options(to)
	opt.Tablespaces = map[string]string{"side": side}
	room := must[*restore.Room](t)(restore.Prepare(t.Context(), w.repo(), p, opt))
	if s := room.Result.Seconds; s.Fetch <= 0 || s.Replay <= 0 || s.Total < s.Fetch+s.Replay || room.Result.Bytes <= 0 || room.Result.Timeline != 2 {
		t.Errorf("result %+v", room.Result)
	}
	if err := room.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(to + ".room"); !os.IsNotExist(err) {
		t.Errorf("the room is left: %v", err)
	}
	witness := filepath.Join(to, "..", "archived")
	os.Remove(witness)
	opened := must[restore.Opened](t)(restore.Open(t.Context(), to, restore.OpenOptions{Binaries: w.pg.BinDir()}))
	programs := must[sandbox.Programs](t)(sandbox.FindPrograms(p.Major, w.pg.BinDir()))
	defer func() {
		if err := restore.Discard(to); err == nil {
			t.Error("a running cluster was discarded")
		}
		if err := programs.StopDaemon(context.Background(), to); err != nil {
			t.Fatal(err)
		}
		if err := restore.Discard(to); err != nil {
			t.Error(err)
		}
		if left := must[[]os.DirEntry](t)(os.ReadDir(side)); len(left) > 0 {
			t.Errorf("discarding left %v in the tablespace", left)
		}
	}()
	conn, err := pgx.Connect(t.Context(), opened.Connection)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if err := pgtest.CheckOracle(t.Context(), conn, o.acked, pgtest.Everything); err != nil {
		t.Error(err)
	}
	for sql, want := range map[string]string{
		"SELECT count(*) FROM aside":    "1000",
		"SELECT count(*) FROM inplace":  "1000",
		"SELECT count(*) FROM fleeting": "0",
		"SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'side'": side,
		"SHOW archive_mode":          "off",
		"SHOW primary_conninfo":      "",
		"SHOW recovery_target_name":  "",
		"SHOW fsync":                 "on",
		"SHOW data_directory":        to,
		"SHOW hba_file":              filepath.Join(to, "pg_hba.conf"),
		"SELECT pg_is_in_recovery()": "false",
	} {
		var got string
		if err := conn.QueryRow(t.Context(), "SELECT ("+show(sql)+")::text").Scan(&got); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", sql, got, err, want)
		}
	}
	if _, err := conn.Exec(t.Context(), "INSERT INTO fleeting VALUES (1); SELECT pg_switch_wal()"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(witness); err == nil {
		t.Error("the copy archived its WAL")
	}
	w.outside(opened, to)
}

func show(sql string) string {
	if name, ok := strings.CutPrefix(sql, "SHOW "); ok {
		return fmt.Sprintf("SELECT current_setting('%s')", name)
	}
	return sql
}

// outside checks that an opened server is no part of a room: it is in our network
// and in a session of its own, and lives on without us.
func (w *world) outside(o restore.Opened, dir string) {
	w.t.Helper()
	pid, _, _ := strings.Cut(string(must[[]byte](w.t)(os.ReadFile(filepath.Join(dir, "postmaster.pid")))), "\n")
	theirs, ours := must[string](w.t)(os.Readlink("/proc/"+pid+"/ns/net")), must[string](w.t)(os.Readlink("/proc/self/ns/net"))
	if theirs != ours {
		w.t.Error("the opened server is still in the room's network")
	}
	stat := strings.Fields(string(must[[]byte](w.t)(os.ReadFile("/proc/" + pid + "/stat"))))
	if stat[3] == fmt.Sprint(os.Getpid()) {
		w.t.Error("the opened server is our child and would end with us")
	}
	conn, err := pgx.Connect(w.t.Context(), fmt.Sprintf("host=127.0.0.1 port=%d user=postgres dbname=postgres", o.Port))
	if err != nil {
		w.t.Errorf("by TCP: %v", err)
		return
	}
	conn.Close(w.t.Context())
}

// --zone reads from that zone alone; bad copies are told of and passed over.
func testZones(t *testing.T, w *world, o oracle) {
	f := w.fork(t)
	spoil := func(pattern string, do func(path string) error) {
		t.Helper()
		found := must[[]string](t)(filepath.Glob(pattern))
		if len(found) == 0 {
			t.Fatalf("nothing matches %s", pattern)
		}
		for _, path := range found {
			if err := do(path); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Zone a is rotten, zone b has lost its WAL's notes.
	spoil(f.dirs[0]+"/clusters/cms/snapshots/*/packs/*", func(path string) error {
		data, err := os.ReadFile(path)
		data[len(data)/2] ^= 1
		return errors.Join(err, os.Chmod(path, 0o600), os.WriteFile(path, data, 0o600))
	})
	spoil(f.dirs[1]+"/clusters/cms/wal/*/*/*.note", os.Remove)
	room := f.prepare(f.plan(restore.Target{Kind: restore.Latest}))
	f.holds(room, o.acked, pgtest.Everything)
	_, err := f.gather(restore.Target{Kind: restore.Latest, Zone: "b"})
	if !errors.Is(err, restore.ErrUnreachable) || !strings.Contains(err.Error(), "zone b") {
		t.Errorf("zone b without WAL: %v", err)
	}
	if _, err := f.gather(restore.Target{Kind: restore.Latest, Zone: "d"}); err == nil || !strings.Contains(err.Error(), "a, b, c") {
		t.Errorf("a zone that there is not: %v", err)
	}
	p := f.plan(restore.Target{Kind: restore.Latest, Zone: "c"})
	if !strings.Contains(p.Freshness, "not proven") || len(p.Zones) != 1 {
		t.Errorf("freshness by one zone's word: %q; zones %+v", p.Freshness, p.Zones)
	}
	f.holds(f.prepare(p), o.acked, pgtest.Everything)
	a := f.plan(restore.Target{Kind: restore.Latest, Zone: "a"})
	if _, err := restore.Prepare(t.Context(), f.repo(), a, f.options(f.target())); err == nil {
		t.Error("the rotten zone alone gave a restore")
	}
	if f.bad.of("a") == 0 {
		t.Error("nobody was told that zone a is rotten")
	}
	// Zone a is emptied: unreachable, not without snapshots.
	spoil(f.dirs[0]+"/*", os.RemoveAll)
	p = f.plan(restore.Target{Kind: restore.Latest})
	for _, z := range p.Zones {
		if (z.Name == "a") != (z.Err != "") || (z.Name == "a") == z.Snapshot {
			t.Errorf("zones: %+v", p.Zones)
		}
	}
}

// tombstone writes one for the shared cluster.
func (w *world) tombstone(id string) {
	w.t.Helper()
	tomb := catalog.Tombstone{ID: id, Cluster: "cms", Layout: "rows", Database: "postgres", Root: "public.project", Key: "id", SystemID: w.lineage.SystemID}
	note := must[[]byte](w.t)(seal.SignNote(catalog.KindTombstone, tomb, w.signer))
	if _, err := w.vault.Writer().Put(w.t.Context(), catalog.TombstoneName(id), note, vault.PutOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

// Promise 7.
func testTombstones(t *testing.T, w *world, _ oracle) {
	f := w.fork(t)
	before := f.plan(restore.Target{Kind: restore.Immediate})
	f.tombstone("t1") // after the plan was approved, and applied all the same
	to := f.target()
	if _, err := restore.Prepare(t.Context(), f.repo(), before, f.options(to)); err == nil || !strings.Contains(err.Error(), "deleted project") {
		t.Errorf("nothing here can remove the project: %v", err)
	}
	f.cannotStart(to)
	opt := f.options(f.target())
	opt.Replay = func(ctx context.Context, connect func(context.Context, string) (*pgx.Conn, error), tombs []catalog.Tombstone) ([]restore.AppliedTombstone, error) {
		conn, err := connect(ctx, tombs[0].Database)
		if err != nil {
			return nil, err
		}
		defer conn.Close(ctx)
		_, err = conn.Exec(ctx, "DELETE FROM oracle") // promoted: it can be written
		return []restore.AppliedTombstone{{ID: tombs[0].ID, Found: true}}, err
	}
	room := must[*restore.Room](t)(restore.Prepare(t.Context(), f.repo(), before, opt))
	defer room.Discard(context.Background())
	if got := room.Result.Tombstones; len(got) != 1 || got[0].ID != "t1" {
		t.Errorf("applied %+v", got)
	}
	f.hide(0, 1)
	to = f.target()
	if _, err := restore.Prepare(t.Context(), f.repo(), before, f.options(to)); !errors.Is(err, restore.ErrTombstones) {
		t.Errorf("%v, want ErrTombstones", err)
	}
	if _, err := os.Stat(to); !os.IsNotExist(err) {
		t.Errorf("something was fetched first: %v", err)
	}
}

func testQuarantine(t *testing.T, w *world, _ oracle) {
	f := w.fork(t)
	f.hide(0, 1)
	p := f.plan(restore.Target{Kind: restore.Immediate})
	if p.TombstoneOK || p.Freshness == "proven" {
		t.Errorf("one zone of three proves nothing: %+v", p)
	}
	opt := f.options(f.target())
	opt.Quarantine = true
	room := must[*restore.Room](t)(restore.Prepare(t.Context(), f.repo(), p, opt))
	if err := room.Close(t.Context()); err != nil || !room.Result.Quarantined {
		t.Fatalf("%v; %+v", err, room.Result)
	}
	if m := must[restore.Marker](t)(restore.ReadMarker(opt.To)); m.State != "quarantined" {
		t.Errorf("the marker says %s", m.State)
	}
	opened := must[restore.Opened](t)(restore.Open(t.Context(), opt.To, restore.OpenOptions{Binaries: w.pg.BinDir()}))
	programs := must[sandbox.Programs](t)(sandbox.FindPrograms(p.Major, w.pg.BinDir()))
	defer func() {
		if err := errors.Join(programs.StopDaemon(context.Background(), opt.To), restore.Discard(opt.To)); err != nil {
			t.Error(err)
		}
	}()
	conn, err := pgx.Connect(t.Context(), opened.Connection)
	if err != nil {
		t.Fatalf("a superuser: %v", err)
	}
	conn.Close(t.Context())
	if _, err := pgx.Connect(t.Context(), strings.Replace(opened.Connection, "user=postgres", "user=editor", 1)); err == nil {
		t.Error("an ordinary role got into a quarantined cluster")
	}
	if _, err := pgx.Connect(t.Context(), fmt.Sprintf("host=127.0.0.1 port=%d user=postgres dbname=postgres", opened.Port)); err == nil {
		t.Error("a quarantined cluster listens on TCP")
	}
	if m := must[restore.Marker](t)(restore.ReadMarker(opt.To)); m.State != "quarantined" {
		t.Errorf("opened, the marker says %s", m.State)
	}
}

// C-59, P24.
func testT16UnreachableTargets(t *testing.T, w *world, o oracle) {
	latest := w.plan(restore.Target{Kind: restore.Latest})
	end := latest.ExpectedEnd.LSN
	for name, c := range map[string]struct {
		target restore.Target
		want   []string
	}{
		"a time to come":            {restore.Target{Kind: restore.AtTime, Time: time.Now().Add(time.Hour)}, []string{"--latest", "--time"}},
		"a time before consistency": {restore.Target{Kind: restore.AtTime, Time: o.acked[0].Time.Add(-time.Hour)}, []string{"the oldest", "is consistent from"}},
		"an LSN to come":            {restore.Target{Kind: restore.AtLSN, LSN: end + 1<<30}, []string{"--lsn " + end.String()}},
		"an LSN before consistency": {restore.Target{Kind: restore.AtLSN, LSN: 1 << 20}, []string{"is consistent from"}},
		"an unknown transaction":    {restore.Target{Kind: restore.AtXID, XID: 4_000_000_000}, []string{"transaction 4000000000", "the nearest", "--lsn"}},
		"an unknown restore point":  {restore.Target{Kind: restore.AtName, Name: "nope"}, []string{`"nope"`, "the nearest"}},
		"an unknown timeline":       {restore.Target{Kind: restore.Latest, Timeline: 7}, []string{"00000007.history"}},
		"an unknown snapshot":       {restore.Target{Kind: restore.Latest, Snapshot: "nope"}, []string{"nope"}},
	} {
		_, err := w.gather(c.target)
		if !errors.Is(err, restore.ErrUnreachable) {
			t.Errorf("%s: %v, want ErrUnreachable", name, err)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v; want %q in it", name, err, want)
			}
		}
	}
	// No commit follows the last one: the archive's end is the answer, not a
	// recovery that never finds its target.
	last := o.acked[len(o.acked)-1]
	p := w.plan(restore.Target{Kind: restore.AtTime, Time: last.Time})
	if p.ExpectedEnd.LSN < must[lsn.LSN](t)(lsn.Parse(last.LSN)) {
		t.Errorf("the last commit's own time ends at %s, before it (%s)", p.ExpectedEnd.LSN, last.LSN)
	}
	if again := w.plan(restore.Target{Kind: restore.Latest}); again.ExpectedEnd.LSN != end {
		t.Errorf("planned again it ends at %s, not %s", again.ExpectedEnd.LSN, end)
	}
	if _, err := restore.Gather(t.Context(), w.repo(), "nobody", restore.Target{Kind: restore.Latest}, time.Now()); !errors.Is(err, restore.ErrUnreachable) || !strings.Contains(err.Error(), "cms") {
		t.Errorf("an unknown cluster: %v", err)
	}
}
