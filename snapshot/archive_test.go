package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

const walSeg = 1 << 20

// walServer is a server with small segments.
func walServer(t testing.TB, opts ...pgtest.Option) *pgtest.Cluster {
	t.Helper()
	return pgtest.Start(t, append([]pgtest.Option{pgtest.WithInitdb("--wal-segsize=1"), pgtest.WithSetting("wal_keep_size", "0")}, opts...)...)
}

func serverOf(t testing.TB, pg *pgtest.Cluster) Server {
	t.Helper()
	conn, err := postgres.Connect(t.Context(), pg.DSN("postgres"), postgres.ConnectOptions{Replication: true})
	okay(t, err)
	defer conn.Close()
	sys, err := postgres.IdentifySystem(t.Context(), conn)
	okay(t, err)
	s := Server{SystemID: sys.SystemID, Major: conn.Major(), Timeline: sys.Timeline, LSN: sys.Flushed}
	if s.Timeline > 1 {
		h, err := postgres.TimelineHistory(t.Context(), conn, s.Timeline)
		okay(t, err)
		s.History = h.Parsed
	}
	return s
}

// daemon is what one process archives with: its vault, its state directory.
type daemon struct {
	*Archiver
	v    *vault.Vault
	stop func() error // as kill -9 would: nothing is finished
}

// archive starts an archiver of a state directory.
func (r *repo) archive(pg *pgtest.Cluster, state string, change ...func(*ArchiveConfig, *WALWriter)) *daemon {
	r.t.Helper()
	v := r.vault()
	l := r.claim(v, state, serverOf(r.t, pg))
	return r.archiveAs(v, l, pg, state, change...)
}

func (r *repo) archiveAs(v *vault.Vault, l catalog.Lineage, pg *pgtest.Cluster, state string, change ...func(*ArchiveConfig, *WALWriter)) *daemon {
	r.t.Helper()
	w := r.writer(v, l, filepath.Join(r.state, state))
	w.c.Log = zaptest.NewLogger(r.t, zaptest.Level(zap.WarnLevel))
	conf := ArchiveConfig{DSN: pg.DSN("postgres"), Slot: "holdfast", SegSize: walSeg, MaxLag: 50 * time.Millisecond, FenceEvery: 50 * time.Millisecond}
	for _, f := range change {
		f(&conf, w)
	}
	a := NewArchiver(conf, w)
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	d := &daemon{Archiver: a, v: v}
	var ended bool
	var result error
	d.stop = func() error {
		if !ended {
			cancel()
			result, ended = <-done, true
		}
		return result
	}
	r.t.Cleanup(func() { d.stop() })
	return d
}

// await waits until cond holds.
func await(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(pgtest.Patience)
	for !cond() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("waited %s in vain until %s", pgtest.Patience, what)
		}
	}
}

func currentLSN(t testing.TB, pg *pgtest.Cluster) lsn.LSN {
	t.Helper()
	l, err := lsn.Parse(pgtest.Value[string](pg, "SELECT pg_current_wal_flush_lsn()::text"))
	okay(t, err)
	return l
}

// writeWAL makes the server write about n MiB.
func writeWAL(pg *pgtest.Cluster, n int) {
	pg.Exec("CREATE TABLE IF NOT EXISTS junk (b text)")
	pg.Exec(fmt.Sprintf("INSERT INTO junk SELECT repeat(md5(i::text), 30) FROM generate_series(1, %d) i", n*950))
}

func waitFor(t testing.TB, d *daemon, to lsn.LSN) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), pgtest.Patience)
	defer cancel()
	okay(t, d.WaitDurable(ctx, to))
}

// sameAsServer compares what is archived with the server's own files, byte by
// byte, from the first archived position up to to. It keeps the server from
// recycling by the slot; segments that are gone fail the test.
func sameAsServer(t testing.TB, r *repo, v *vault.Vault, pg *pgtest.Cluster, wal string, timeline uint32, to lsn.LSN) {
	t.Helper()
	from, data := r.archived(v, timeline)
	if end := from + lsn.LSN(len(data)); end < to {
		t.Fatalf("archived up to %s, want %s", end, to)
	}
	compared := 0
	for at := from; at < to; at += walSeg {
		file, err := os.ReadFile(filepath.Join(wal, lsn.SegmentName(timeline, at.Segment(walSeg), walSeg)))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		okay(t, err)
		n := min(walSeg, int(to-at))
		if got := data[at-from:][:n]; !bytes.Equal(got, file[:n]) {
			t.Errorf("segment at %s: the archive differs from the server's file", at)
		}
		compared += n
	}
	if compared == 0 {
		t.Error("the server has none of the segments any more: nothing was compared")
	}
}

// keepWAL makes the server keep all WAL from now on, for comparison.
func keepWAL(pg *pgtest.Cluster) {
	pg.Exec("SELECT pg_create_physical_replication_slot('keep', true)")
}

// Promise 1, C-48, C-49, A2.
func TestEveryByteOfTheServersWALIsArchivedWithinTheLag(t *testing.T) {
	r := newWALRepo(t)
	pg := walServer(t)
	keepWAL(pg)
	d := r.archive(pg, "s")
	oracle := pg.StartOracle(2 * time.Millisecond)
	writeWAL(pg, 3)
	oracle.AwaitMore(50)
	oracle.Stop()
	to := currentLSN(t, pg)
	await(t, "the slices have caught up by themselves", func() bool { return d.Position().Durable >= to })
	sameAsServer(t, r, d.v, pg, filepath.Join(pg.DataDir, "pg_wal"), 1, to)
	r.checkChainOf(d.v, 1)
	if p := d.Position(); p.Commit.IsZero() || p.ServerTime.IsZero() || !p.Connected || p.Err != nil || p.Timeline != 1 {
		t.Errorf("position: %+v", p)
	}
	okay(t, d.stop())
}

// crashPoints are the places where a part's way can be cut off.
var crashPoints = []string{"spooled", "object", "index", "signed", "noted"}

// P8, A1: whatever was cut off where, the archive continues without a hole, no
// number of the chain is signed twice, and nothing stays in the spool.
func TestAKillAtAnyPointLosesNothing(t *testing.T) {
	r := newMoodyRepo(t)
	pg := walServer(t)
	keepWAL(pg)
	v := r.vault()
	oracle := pg.StartOracle(2 * time.Millisecond)
	for _, point := range crashPoints {
		for _, hit := range []int32{1, 3} {
			dead := make(chan struct{})
			var hits atomic.Int32
			d := r.archive(pg, "s", func(_ *ArchiveConfig, w *WALWriter) {
				w.at = func(at string) {
					if at == point && hits.Add(1) == hit {
						close(dead)
					}
					select {
					case <-dead:
						runtime.Goexit() // nothing after this happens, as after kill -9
					default:
					}
				}
			})
			writeWAL(pg, 1)
			select {
			case <-dead:
			case <-time.After(pgtest.Patience):
				t.Fatalf("%s was not reached %d times", point, hit)
			}
			d.stop()
		}
	}
	oracle.Stop()
	d := r.archive(pg, "s")
	to := currentLSN(t, pg)
	waitFor(t, d, to)
	sameAsServer(t, r, v, pg, filepath.Join(pg.DataDir, "pg_wal"), 1, to)
	r.checkChainOf(v, 1)
	d.stop()
	if left := d.w.spool.left(); len(left) > 0 {
		t.Errorf("%d parts are left in the spool", len(left))
	}
}

func flushedOnServer(t testing.TB, pg *pgtest.Cluster) lsn.LSN {
	t.Helper()
	l, err := lsn.Parse(pgtest.Value[string](pg, "SELECT coalesce((SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 'holdfast'), '0/0')::text"))
	okay(t, err)
	return l
}

// Promises 1 and 2.
func TestAHungZoneHoldsNothingUpAndTheLostQuorumHoldsTheServersWAL(t *testing.T) {
	r := newWALRepo(t)
	pg := walServer(t)
	keepWAL(pg)
	d := r.archive(pg, "s", func(_ *ArchiveConfig, w *WALWriter) { w.spool.quota.most = 3 << 20 })
	waitFor(t, d, currentLSN(t, pg))

	hang := make(chan struct{})
	r.zones[2].set(nil, hang)
	writeWAL(pg, 1)
	waitFor(t, d, currentLSN(t, pg)) // one of three hangs

	r.zones[1].set(errZoneDown, nil)
	before := d.Position().Durable
	writeWAL(pg, 5)
	to := currentLSN(t, pg)
	await(t, "the archiver says what it waits for", func() bool { return d.Position().Err != nil })
	held := flushedOnServer(t, pg)
	if now := d.Position().Durable; now != before || held > before {
		t.Fatalf("durable went from %s to %s, the slot to %s, with one zone of three", before, now, held)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := d.WaitDurable(ctx, to); err == nil {
		t.Fatal("WaitDurable returned without a quorum")
	}
	if s := d.Position().Spool; s.Parts == 0 || s.Bytes > s.Quota {
		t.Errorf("%+v: what waits is in the spool, which is bounded", s)
	}

	close(hang)
	r.zones[2].set(nil, nil)
	r.zones[1].set(nil, nil)
	waitFor(t, d, to)
	sameAsServer(t, r, d.v, pg, filepath.Join(pg.DataDir, "pg_wal"), 1, to)
	await(t, "the slot has moved on", func() bool { return flushedOnServer(t, pg) > before })
	r.checkChainOf(d.v, 1)
}

func TestAnIdleServerSendsNothing(t *testing.T) {
	r := newWALRepo(t)
	pg := walServer(t, pgtest.WithSetting("autovacuum", "off"), pgtest.WithSetting("bgwriter_lru_maxpages", "0"), pgtest.WithSetting("wal_sender_timeout", "2s"))
	d := r.archive(pg, "s")
	waitFor(t, d, currentLSN(t, pg))
	pg.Exec("CHECKPOINT")
	to := currentLSN(t, pg)
	waitFor(t, d, to)
	n := len(r.notes(d.v))
	heard := d.Position().LastHeard
	await(t, "the server has spoken twice more", func() bool { return d.Position().LastHeard.Sub(heard) > 2*time.Second || currentLSN(t, pg) > to })
	if currentLSN(t, pg) == to && len(r.notes(d.v)) != n {
		t.Errorf("%d notes became %d although nothing was written", n, len(r.notes(d.v)))
	}
}

// P9: two nodes, and a copied server, on one repository.
func TestASecondArchiverAndACopiedServerAreRefused(t *testing.T) {
	r := newMoodyRepo(t)
	pg := walServer(t)
	d := r.archive(pg, "first")
	waitFor(t, d, currentLSN(t, pg))
	_, err := Claim(t.Context(), r.lineageConfig("second", serverOf(t, pg)), r.vault().Writer())
	wantErr(t, err, ErrClaimed)

	dir := filepath.Join(pg.Mkdir("copies"), "copy")
	pg.Backup(dir)
	copied := pg.Adopt(dir)
	copied.Start()
	s := serverOf(t, copied)
	if s.SystemID != serverOf(t, pg).SystemID {
		t.Fatal("the copy has another system identifier: it proves nothing")
	}
	// The copy recovered from a backup_label only, so it stays on timeline 1.
	_, err = Claim(t.Context(), r.lineageConfig("copy", s), r.vault().Writer())
	wantErr(t, err, ErrClaimed, "node-first")
}

func TestATakenOverArchiverStops(t *testing.T) {
	r := newWALRepo(t)
	pg := walServer(t)
	v := r.vault()
	l := r.claim(v, "first", serverOf(t, pg))
	w := r.writer(v, l, t.TempDir())
	a := NewArchiver(ArchiveConfig{DSN: pg.DSN("postgres"), Slot: "holdfast", SegSize: walSeg, FenceEvery: 20 * time.Millisecond}, w)
	done := make(chan error, 1)
	go func() { done <- a.Run(t.Context()) }()
	okay(t, a.WaitDurable(t.Context(), currentLSN(t, pg)))
	c := r.lineageConfig("second", serverOf(t, pg))
	c.TakeOver = true
	_, err := Claim(t.Context(), c, r.vault().Writer())
	okay(t, err)
	wantErr(t, <-done, ErrFenced, "node-second")
	wantErr(t, a.WaitDurable(t.Context(), ^lsn.LSN(0)), ErrFenced)
}

func TestAnotherServerBehindTheSameAddressIsRefused(t *testing.T) {
	r := newWALRepo(t)
	pg := walServer(t)
	v := r.vault()
	expected := serverOf(t, pg)
	expected.SystemID = "7000000000000000000"
	d := r.archiveAs(v, r.claim(v, "s", expected), pg, "s")
	wantErr(t, d.WaitDurable(t.Context(), 1<<40), ErrForeignServer)
}

// C-48, P6: a gap is recorded before anything behind it is archived.
func TestAGapIsRecordedNeverPassedOver(t *testing.T) {
	r := newWALRepo(t)
	pg := walServer(t)
	d := r.archive(pg, "s")
	waitFor(t, d, currentLSN(t, pg))
	end := d.Position().Durable
	d.stop()
	await(t, "the slot is free", func() bool {
		return pgtest.Value[bool](pg, "SELECT NOT active FROM pg_replication_slots WHERE slot_name = 'holdfast'")
	})
	pg.Exec("SELECT pg_drop_replication_slot('holdfast')")
	for range 4 {
		writeWAL(pg, 2)
		pg.SwitchWAL()
		pg.Exec("CHECKPOINT")
	}

	d = r.archive(pg, "s")
	wantErr(t, d.WaitDurable(t.Context(), currentLSN(t, pg)), ErrGap)
	d.stop()

	gaps := make(chan Gap, 4)
	d = r.archive(pg, "s", func(c *ArchiveConfig, _ *WALWriter) {
		c.OnGap = func(ctx context.Context, g Gap) error {
			select {
			case gaps <- g:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
	writeWAL(pg, 1)
	to := currentLSN(t, pg)
	waitFor(t, d, to)
	g := <-gaps
	if g.From.LSN != end || g.To.LSN <= end || g.Cluster != "cms" || d.Position().Gaps != 1 {
		t.Errorf("gap %+v, archive ended at %s", g, end)
	}
	reader := catalog.NewReader(d.v.Reader(), r.trust)
	entries, err := reader.WALEntries(t.Context(), "cms", "")
	okay(t, err)
	spans := catalog.Stretches(entries.List)
	if len(spans) != 2 || spans[0].To != g.From.LSN || spans[1].From != g.To.LSN {
		t.Errorf("stretches %+v do not show the gap %s to %s", spans, g.From, g.To)
	}
}
