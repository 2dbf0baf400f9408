package main

import (
	"context"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

// soakWriters write rows into the table soak, one a transaction, through whatever
// befalls the server, with pgbench beside them. What was acknowledged, and when, is
// remembered here, outside the database.
type soakWriters struct {
	t      *testing.T
	cancel context.CancelFunc
	all    sync.WaitGroup

	mu    sync.Mutex
	acked [][]ackedRow // by writer
	tried []int64      // the last number that each writer may have written
}

type ackedRow struct {
	seq int64
	at  time.Time // when the client had the answer
}

func startWriters(t *testing.T, pg *pgtest.Cluster, dsn string, n int) *soakWriters {
	ctx, cancel := context.WithCancel(context.Background())
	w := &soakWriters{t: t, cancel: cancel, acked: make([][]ackedRow, n), tried: make([]int64, n)}
	for i := range n {
		w.all.Go(func() {
			for ctx.Err() == nil {
				w.write(ctx, dsn, i)
				pause(ctx, 50*time.Millisecond)
			}
		})
	}
	bench := pg.Bin("pgbench")
	w.all.Go(func() {
		for ctx.Err() == nil { // it ends whenever the server does
			cmd := exec.CommandContext(ctx, bench, "-n", "-c", "2", "-R", "60", "-T", "36000", dsn)
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			_ = cmd.Run()
			pause(ctx, 100*time.Millisecond)
		}
	})
	t.Cleanup(w.stop)
	return w
}

// write is one connection's life. A row whose commit was not acknowledged may be
// there or not: its number is not used again.
func (w *soakWriters) write(ctx context.Context, dsn string, i int) {
	limited, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := pgx.Connect(limited, dsn)
	if err != nil {
		return
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for ctx.Err() == nil {
		w.mu.Lock()
		w.tried[i]++
		seq := w.tried[i]
		w.mu.Unlock()
		if _, err := conn.Exec(ctx, "INSERT INTO soak VALUES ($1, $2)", i, seq); err != nil {
			return
		}
		at := time.Now()
		w.mu.Lock()
		w.acked[i] = append(w.acked[i], ackedRow{seq, at})
		w.mu.Unlock()
		pause(ctx, 10*time.Millisecond)
	}
}

func (w *soakWriters) count() (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, rows := range w.acked {
		n += len(rows)
	}
	return n
}

func (w *soakWriters) stop() {
	w.cancel()
	w.all.Wait()
}

// check wants every row in the copy that was acknowledged before floor, no row that
// nobody wrote, and none behind one of the same writer that is missing.
func (w *soakWriters) check(conn *pgx.Conn, end, floor time.Time) {
	w.t.Helper()
	found := w.found(conn)
	lost, total, oldest := 0, 0, end
	for i, rows := range w.acked {
		missing := int64(0)
		for _, r := range rows {
			total++
			switch {
			case found[i][r.seq] && missing > 0:
				w.t.Errorf("writer %d: row %d is in the copy, row %d before it is not", i, r.seq, missing)
				return
			case found[i][r.seq]:
				continue
			case r.at.Before(floor):
				w.t.Errorf("writer %d: row %d is lost, which was acknowledged %s before the end", i, r.seq, end.Sub(r.at))
			}
			lost++
			if missing = r.seq; r.at.Before(oldest) {
				oldest = r.at
			}
		}
	}
	w.t.Logf("%d of %d acknowledged commits are lost, the oldest of %s before the end", lost, total, end.Sub(oldest))
	if total == 0 {
		w.t.Error("nothing was acknowledged: this proves nothing")
	}
}

// found reads the copy's rows, by writer.
func (w *soakWriters) found(conn *pgx.Conn) []map[int64]bool {
	w.t.Helper()
	found := make([]map[int64]bool, len(w.acked))
	for i := range found {
		found[i] = map[int64]bool{}
	}
	rows, err := conn.Query(w.t.Context(), "SELECT writer, seq FROM soak")
	if err != nil {
		w.t.Fatal(err)
	}
	var i int
	var seq int64
	_, err = pgx.ForEachRow(rows, []any{&i, &seq}, func() error {
		found[i][seq] = true
		if seq > w.tried[i] {
			w.t.Errorf("writer %d: row %d is in the copy, and it wrote no further than %d", i, seq, w.tried[i])
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return found
}
