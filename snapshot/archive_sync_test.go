package snapshot

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

// commit inserts one row; it returns where the transaction had come to before its
// commit record, when the server has acknowledged the commit.
func commit(ctx context.Context, conn *pgx.Conn) (at lsn.LSN, err error) {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return 0, err
	}
	var text string
	if _, err = tx.Exec(ctx, "INSERT INTO acked DEFAULT VALUES"); err == nil {
		err = tx.QueryRow(ctx, "SELECT pg_current_wal_insert_lsn()::text").Scan(&text)
	}
	if err != nil {
		return 0, err
	}
	if at, err = lsn.Parse(text); err != nil {
		return 0, err
	}
	return at, tx.Commit(ctx)
}

// C-52: as a synchronous standby the archiver lets a commit return only when the
// quorum holds it: nothing that was acknowledged is lost with server and daemon.
func TestASynchronousCommitReturnsOnlyWhenTheQuorumHoldsIt(t *testing.T) {
	r := newWALRepo(t)
	pg := walServer(t)
	pg.Exec("CREATE TABLE acked (id bigint GENERATED ALWAYS AS IDENTITY)")
	d := r.archive(pg, "s", func(c *ArchiveConfig, _ *WALWriter) {
		c.AppName, c.MaxLag, c.SlotEvery = "holdfast", time.Hour, 20*time.Millisecond // no commit waits for max_lag
	})
	waitFor(t, d, currentLSN(t, pg))
	pg.Exec("ALTER SYSTEM SET synchronous_standby_names = 'holdfast'")
	pg.Exec("SELECT pg_reload_conf()")
	await(t, "the archiver is the synchronous standby", func() bool {
		return pgtest.Value[int64](pg, "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'holdfast' AND sync_state = 'sync'") == 1
	})
	conn := pg.Conn("postgres")
	var last lsn.LSN
	for range 20 {
		at, err := commit(t.Context(), conn)
		okay(t, err)
		if durable := d.Position().Durable; durable <= at {
			t.Fatalf("a commit behind %s was acknowledged, the quorum holds WAL to %s", at, durable)
		}
		last = at
	}

	tx, err := conn.Begin(t.Context())
	okay(t, err)
	_, err = tx.Exec(t.Context(), "INSERT INTO acked SELECT FROM generate_series(1, 500)")
	okay(t, err)
	await(t, "WAL that nobody waits for comes", func() bool { return d.Position().Received > last+10_000 })
	slices := len(r.objects(0, "clusters/cms/wal"))
	for range 3 { // each look at the slot makes the archiver think again
		before := d.Slots()[0].SeenAt
		await(t, "the archiver looks at the slot", func() bool { return d.Slots()[0].SeenAt.After(before) })
	}
	if more := len(r.objects(0, "clusters/cms/wal")); more != slices {
		t.Errorf("%d objects became %d, and nobody waited", slices, more)
	}
	okay(t, tx.Rollback(t.Context()))

	r.zones[1].set(errZoneDown, nil)
	r.zones[2].set(errZoneDown, nil)
	acked := make(chan error, 1)
	go func() {
		_, err := commit(t.Context(), conn)
		acked <- err
	}()
	await(t, "archiving waits for zones", func() bool { return d.Position().Err != nil })
	select {
	case err := <-acked:
		t.Fatalf("a commit was acknowledged without a quorum: %v", err)
	case <-time.After(time.Second):
	}
	r.zones[1].set(nil, nil)
	r.zones[2].set(nil, nil)
	okay(t, <-acked)

	at, err := commit(t.Context(), conn)
	okay(t, err)
	pg.Kill()
	okay(t, d.stop())
	if from, data := r.archived(d.v, 1); from+lsn.LSN(len(data)) <= max(at, last) {
		t.Errorf("the archive ends at %s, a commit behind %s was acknowledged", from+lsn.LSN(len(data)), at)
	}
}
