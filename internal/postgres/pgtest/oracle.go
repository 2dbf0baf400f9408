package pgtest

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// Commit is a transaction whose COMMIT the server acknowledged.
type Commit struct {
	ID  int64
	Xid uint32
	// LSN is a position at or after the commit record's end, as text; Time the
	// commit record's own time. Both are zero when the server was gone before
	// it could be asked; Time also without track_commit_timestamp.
	LSN  string
	Time time.Time
}

// Oracle writes rows into the table oracle(id, committed_at), one a transaction,
// and remembers which commits were acknowledged: what a restored copy must hold.
type Oracle struct {
	cancel context.CancelFunc
	done   chan struct{}
	more   chan struct{} // signalled after each commit
	mu     sync.Mutex
	acked  []Commit
	err    error
}

// StartOracle begins to write, a row every interval (0 is as fast as it goes). To
// know commit times start the cluster WithSetting("track_commit_timestamp", "on").
// The writer ends by [Oracle.Stop], with the test, or when the server is gone.
func (c *Cluster) StartOracle(every time.Duration) *Oracle {
	c.t.Helper()
	c.Exec(`CREATE TABLE IF NOT EXISTS oracle (id bigint PRIMARY KEY,
		committed_at timestamptz NOT NULL DEFAULT clock_timestamp())`)
	next := Value[int64](c, "SELECT coalesce(max(id), 0) + 1 FROM oracle")
	tracked := Value[string](c, "SHOW track_commit_timestamp") == "on"
	conn := c.Conn("postgres")
	ctx, cancel := context.WithCancel(context.Background())
	o := &Oracle{cancel: cancel, done: make(chan struct{}), more: make(chan struct{}, 1)}
	go func() {
		defer close(o.done)
		err := o.write(ctx, conn, next, every, tracked)
		o.mu.Lock()
		defer o.mu.Unlock()
		o.err = err
	}()
	c.t.Cleanup(func() { o.Stop() })
	return o
}

func (o *Oracle) write(ctx context.Context, conn *pgx.Conn, id int64, every time.Duration, tracked bool) error {
	tick := time.NewTicker(max(every, time.Nanosecond))
	defer tick.Stop()
	// The second statement of each round must not change the first's fate, so a
	// stop is seen between rounds only.
	round := context.WithoutCancel(ctx)
	for ctx.Err() == nil {
		c := Commit{ID: id}
		var xid int64
		err := conn.QueryRow(round, `INSERT INTO oracle (id) VALUES ($1)
			RETURNING pg_current_xact_id()::text::bigint`, id).Scan(&xid)
		if err != nil {
			return err
		}
		c.Xid = uint32(xid)
		err = conn.QueryRow(round, `SELECT pg_current_wal_insert_lsn()::text,
			CASE WHEN $2 THEN pg_xact_commit_timestamp($1::text::xid) END`,
			fmt.Sprint(c.Xid), tracked).Scan(&c.LSN, nullTime{&c.Time})
		o.record(c)
		if err != nil {
			return err
		}
		id++
		if every > 0 {
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	}
	return nil
}

func (o *Oracle) record(c Commit) {
	o.mu.Lock()
	o.acked = append(o.acked, c)
	o.mu.Unlock()
	select {
	case o.more <- struct{}{}:
	default:
	}
}

// Acked returns the commits acknowledged so far, in order.
func (o *Oracle) Acked() []Commit {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]Commit(nil), o.acked...)
}

// AwaitMore waits until n more commits were acknowledged and returns the last;
// the zero Commit when the writer ended first. For one caller at a time.
func (o *Oracle) AwaitMore(n int) Commit {
	have := len(o.Acked())
	for {
		if acked := o.Acked(); len(acked) >= have+n {
			return acked[have+n-1]
		}
		select {
		case <-o.more:
		case <-o.done:
			return Commit{}
		}
	}
}

// Stop ends the writer and returns all acknowledged commits.
func (o *Oracle) Stop() []Commit {
	o.cancel()
	<-o.done
	return o.Acked()
}

// Done is closed when the writer has ended.
func (o *Oracle) Done() <-chan struct{} { return o.done }

// Err says why the writer ended by itself, once it has.
func (o *Oracle) Err() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

// CheckOracle compares a restored copy with what was acknowledged: each commit
// for which want says true must be there and each other one must not. One row
// that was never acknowledged may follow the last: a COMMIT whose answer was lost.
func CheckOracle(ctx context.Context, conn *pgx.Conn, acked []Commit, want func(Commit) bool) error {
	rows, err := conn.Query(ctx, "SELECT id FROM oracle")
	if err != nil {
		return err
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return err
	}
	found := make(map[int64]bool, len(ids))
	for _, id := range ids {
		found[id] = true
	}
	last := int64(0)
	for _, c := range acked {
		if want(c) != found[c.ID] {
			return fmt.Errorf("commit %d (xid %d, LSN %s, %s): in the copy %t, expected %t; the copy holds %d of %d rows",
				c.ID, c.Xid, c.LSN, c.Time.Format(time.RFC3339Nano), found[c.ID], want(c), len(ids), len(acked))
		}
		delete(found, c.ID)
		last = max(last, c.ID)
	}
	for id := range found {
		if id != last+1 {
			return fmt.Errorf("row %d is in the copy and was never acknowledged (the last that was: %d)", id, last)
		}
	}
	return nil
}

// Everything is CheckOracle's want for a copy of the end of the log.
func Everything(Commit) bool { return true }

type nullTime struct{ t *time.Time }

// Scan implements sql.Scanner: NULL is the zero time.
func (n nullTime) Scan(src any) error {
	*n.t, _ = src.(time.Time)
	return nil
}
