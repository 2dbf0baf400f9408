package restore_test

import (
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/restore"
	"github.com/holdfast-dr/holdfast/snapshot"
)

// Every kind of target gives exactly the commits that it should (C-57 to C-60).
func TestARestoreHoldsExactlyWhatWasCommittedByTheTarget(t *testing.T) {
	pg := pgtest.Start(t, pgtest.WithSetting("track_commit_timestamp", "on"))
	w := newWorld(t, pg)
	oracle := pg.StartOracle(2 * time.Millisecond)
	oracle.AwaitMore(20)
	w.take(snapshot.SourceFiles)
	oracle.AwaitMore(50)
	mid := oracle.AwaitMore(1)
	pg.Exec("SELECT pg_create_restore_point('before the release')")
	oracle.AwaitMore(50)
	acked := oracle.Stop()
	w.flush()
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
