package restore_test

import (
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/restore"
	"github.com/holdfast-dr/holdfast/snapshot"
)

// C-63: the configuration of the snapshot has less of what a standby must have as
// much of as its primary: the server was given more since, and wrote it into its WAL.
func TestT19LowerLimitsThanTheWALDemandsEndNoRestore(t *testing.T) {
	pg := pgtest.Start(t, pgtest.WithSetting("track_commit_timestamp", "on"), pgtest.WithSetting("max_connections", "20"), pgtest.WithSetting("max_worker_processes", "4"))
	w := newWorld(t, pg)
	first := pg.StartOracle(2 * time.Millisecond)
	first.AwaitMore(10)
	w.take(snapshot.SourceFiles)
	acked := first.Stop()
	w.flush()
	pg.Stop()
	pg.Configure("max_connections = 300", "max_worker_processes = 32", "max_locks_per_transaction = 200", "max_prepared_transactions = 50")
	pg.Start()
	second := pg.StartOracle(2 * time.Millisecond)
	second.AwaitMore(30)
	acked = append(acked, second.Stop()...)
	w.flush()
	room := w.prepare(w.plan(restore.Target{Kind: restore.Latest}))
	w.holds(room, acked, pgtest.Everything)
}
