package main

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

// T-9, P9: three times back to one past point, each copy opened, written to and
// archived into the same repository by a node of its own. Each is a timeline that
// no other has, and all three can be restored afterwards, with nothing of each other.
func TestT09ThreeRestoresToOnePastPointAreThreeBranches(t *testing.T) {
	pg := pgtest.Start(t, pgtest.WithSetting("track_commit_timestamp", "on"))
	r := newRig(t, pg, false)
	r.configure()
	daemon := r.daemon("db")
	oracle := pg.StartOracle(10 * time.Millisecond)
	oracle.AwaitMore(20)
	r.hold("db", 0, "snapshot", "take", "cms")
	past := r.moment(oracle, zoneLetters...)
	oracle.AwaitMore(20)
	acked := oracle.Stop()
	r.archived(zoneLetters...)
	daemon.stop()
	pg.Stop()

	upTo := func(c pgtest.Commit) bool { return !c.Time.After(past) }
	branch := func(i int) uint32 { return uint32(i + 2) }
	for i := range 3 {
		name := fmt.Sprintf("try-%d", i)
		back := r.away(zoneLetters[i])
		doc := r.restore(name, "--time", past.Format(time.RFC3339Nano))
		if doc.Timeline != branch(i) {
			t.Errorf("restored for the time number %d the copy is on timeline %d, want %d", i+1, doc.Timeline, branch(i))
		}
		o := r.open(name)
		conn := r.connect(o, "postgres")
		if err := pgtest.CheckOracle(t.Context(), conn, acked, upTo); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		r.goesOn(fmt.Sprintf("host-%d", i), fmt.Sprintf("host=%s port=%d user=postgres dbname=postgres", o.Socket, o.Port), conn, branch(i))
		r.discard(r.path(name))
		back()
	}
	for i := range 3 {
		name := fmt.Sprintf("again-%d", i)
		args := []string{"--timeline", fmt.Sprint(branch(i))}
		if i == 2 {
			args = nil // the newest is the last
		}
		r.restore(name, args...)
		conn := r.connect(r.open(name), "postgres")
		if err := pgtest.CheckOracle(t.Context(), conn, acked, upTo); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		var of int64
		var n int
		if err := conn.QueryRow(t.Context(), "SELECT min(timeline), count(*) FROM branch").Scan(&of, &n); err != nil || of != int64(branch(i)) || n != 1 {
			t.Errorf("%s holds %d rows, the first of timeline %d, want one of %d: %v", name, n, of, branch(i), err)
		}
		conn.Close(t.Context())
		r.discard(r.path(name))
	}
}

// away takes the directories of zones away, as an unmounted disk's are, until they
// are brought back.
func (r *rig) away(zones ...string) (back func()) {
	r.t.Helper()
	move := func(from, to string) {
		r.t.Helper()
		for _, z := range zones {
			if err := os.Rename(r.path("zones/"+z+from), r.path("zones/"+z+to)); err != nil {
				r.t.Fatal(err)
			}
		}
	}
	move("", ".away")
	return func() { move(".away", "") }
}

// goesOn makes a node for a server that takes a cluster over, writes a row that
// names its timeline, and archives it.
func (r *rig) goesOn(node, connection string, conn *pgx.Conn, timeline uint32) {
	r.t.Helper()
	r.host(node, connection)
	r.hold(node, 0, "lineage", "open", "cms", "--take-over")
	daemon := r.daemon(node)
	defer daemon.stop()
	if _, err := conn.Exec(r.t.Context(), "CREATE TABLE branch AS SELECT $1::bigint AS timeline", int64(timeline)); err != nil {
		r.t.Fatal(err)
	}
	var text string
	if err := conn.QueryRow(r.t.Context(), "SELECT pg_current_wal_flush_lsn()::text").Scan(&text); err != nil {
		r.t.Fatal(err)
	}
	want, err := lsn.Parse(text)
	if err != nil {
		r.t.Fatal(err)
	}
	await(r.t, "the archive of timeline "+fmt.Sprint(timeline), func() bool {
		c := ask[walDoc](r, node, "wal", "status", "cms").Clusters
		return len(c) == 1 && c[0].Archiving != nil && c[0].Archiving.Connected && c[0].Archiving.Durable >= want
	})
	conn.Close(r.t.Context())
}
