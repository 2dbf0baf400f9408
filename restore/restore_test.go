package restore_test

import (
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/restore"
	"github.com/holdfast-dr/holdfast/snapshot"
)

// oracle is what the shared cluster's copies must hold.
type oracle struct {
	acked []pgtest.Commit
	mid   pgtest.Commit
}

// The tests of one protected cluster, with one snapshot, share it.
func TestARestore(t *testing.T) {
	t.Setenv("TMPDIR", "/tmp") // sockets have short paths
	pg := pgtest.Start(t, pgtest.WithSetting("track_commit_timestamp", "on"), pgtest.WithTablespace(),
		pgtest.WithSetting("archive_mode", "on"), pgtest.WithSetting("archive_command", "touch ../archived"))
	furnish(pg)
	w := newWorld(t, pg)
	writer := pg.StartOracle(2 * time.Millisecond)
	writer.AwaitMore(20)
	w.take(snapshot.SourceFiles)
	writer.AwaitMore(50)
	o := oracle{mid: writer.AwaitMore(1)}
	pg.Exec("SELECT pg_create_restore_point('before the release')")
	pg.Exec("SELECT pg_switch_wal()")
	writer.AwaitMore(50)
	o.acked = writer.Stop()
	w.flush()
	for name, test := range map[string]func(*testing.T, *world, oracle){
		"holds exactly what was committed by the target":           testTargets,
		"T-16: answers targets that cannot be reached":             testT16UnreachableTargets,
		"C-62: fetches ahead into a bounded spool":                 testFetchAhead,
		"T-15: never promotes while zones are away":                testT15ZonesStayAway,
		"goes on when the zones come back":                         testZonesComeBack,
		"survives a wal fetch that panics, is mis-flagged, killed": testMisbehavingFetch,
		"refuses a target that holds something, or a small disk":   testRefusedTargets,
		"T-14: does not start without its backup_label":            testT14PoisonedControl,
		"that is killed cannot be started, and can be repeated":    testKilled,
		"goes over a damaged directory and fetches what differs":   testDelta,
		"goes over nothing that is alive or another system's":      testDeltaRefused,
		"that was killed goes on without fetching twice":           testResume,
		"whose files are all there goes on with recovery":          testResumeFetched,
		"is what pg_verifybackup accepts before it is started":     testVerifyBackup,
		"brings tablespaces, and opens for its users":              testOpening,
		"from one zone, from a rotten one, from an empty one":      testZones,
		"does not let deleted projects come back":                  testTombstones,
		"of unknown tombstones is for superusers only":             testQuarantine,
		"gives WAL by name, absent only when proven":               testFetchByName,
		"serves the plan's files and no others":                    testServedFiles,
	} {
		t.Run(name, func(t *testing.T) {
			c := *w
			c.t = t
			test(t, &c, o)
		})
	}
}

// Every kind of target gives exactly the commits that it should (C-57 to C-60).
func testTargets(t *testing.T, w *world, o oracle) {
	acked, mid := o.acked, o.mid
	at := must[lsn.LSN](t)(lsn.Parse(mid.LSN))
	for name, c := range map[string]struct {
		target restore.Target
		want   func(pgtest.Commit) bool
	}{
		"latest": {restore.Target{Kind: restore.Latest}, pgtest.Everything},
		"time":   {restore.Target{Kind: restore.AtTime, Time: mid.Time}, func(c pgtest.Commit) bool { return !c.Time.After(mid.Time) }},
		"xid":    {restore.Target{Kind: restore.AtXID, XID: mid.Xid}, func(c pgtest.Commit) bool { return c.ID <= mid.ID }},
		"lsn":    {restore.Target{Kind: restore.AtLSN, LSN: at}, nil},
		"name":   {restore.Target{Kind: restore.AtName, Name: "before the release"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := *w
			w.t = t
			room := w.prepare(w.plan(c.target))
			if !room.Result.Complete {
				t.Fatalf("result: %+v", room.Result)
			}
			conn, err := room.Server.Conn(t.Context(), "postgres")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(t.Context())
			if c.want != nil {
				if err := pgtest.CheckOracle(t.Context(), conn, acked, c.want); err != nil {
					t.Error(err)
				}
				return
			}
			var n, last int64
			if err := conn.QueryRow(t.Context(), "SELECT count(*), max(id) FROM oracle").Scan(&n, &last); err != nil {
				t.Fatal(err)
			}
			if n != last || last < mid.ID || last > mid.ID+5 {
				t.Errorf("%d rows up to %d, the target is at %d", n, last, mid.ID)
			}
		})
	}
}
