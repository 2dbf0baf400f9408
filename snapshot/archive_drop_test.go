package snapshot

import (
	"context"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// C-48, C-51: with the quorum lost, the server keeps WAL until an operator gives it
// up; that is recorded first, and archiving goes on behind it.
func TestWALIsDroppedByAnOrderAloneAndTheGapIsRecordedFirst(t *testing.T) {
	r := newWALRepo(t)
	pg := walServer(t)
	var before lsn.LSN
	gaps := make(chan Gap, 1)
	d := r.archive(pg, "s", func(c *ArchiveConfig, w *WALWriter) {
		w.spool.quota.most = 1 // one part: of what is received no more has room
		c.OnGap = func(ctx context.Context, g Gap) error {
			if at := flushedOnServer(t, pg); at > before {
				t.Errorf("the server was told to forget WAL to %s before the gap was recorded", at)
			}
			gaps <- g
			return nil
		}
	})
	waitFor(t, d, currentLSN(t, pg))
	_, err := d.Drop(t.Context())
	wantErr(t, err, ErrNothingToDrop)

	await(t, "the slot follows", func() bool { return flushedOnServer(t, pg) >= d.Position().Durable })
	before = d.Position().Durable
	r.zones[1].set(errZoneDown, nil)
	r.zones[2].set(errZoneDown, nil)
	for range 6 {
		writeWAL(pg, 2)
		pg.SwitchWAL()
	}
	await(t, "archiving waits for zones", func() bool { return d.Position().Err != nil })
	if at := flushedOnServer(t, pg); at > before {
		t.Fatalf("the slot went to %s by itself, archived is %s", at, before)
	}
	g, err := d.Drop(t.Context())
	okay(t, err)
	if kept := <-gaps; kept != g || !g.Dropped || g.From.LSN != before || g.To.LSN <= g.From.LSN {
		t.Errorf("recorded %+v, told %+v, archived to %s", kept, g, before)
	}
	await(t, "the server may forget", func() bool { return flushedOnServer(t, pg) >= g.To.LSN })

	r.zones[1].set(nil, nil)
	r.zones[2].set(nil, nil)
	writeWAL(pg, 1)
	waitFor(t, d, currentLSN(t, pg))
	entries, err := catalog.NewReader(d.v.Reader(), r.trust).WALEntries(t.Context(), "cms", "")
	okay(t, err)
	spans := catalog.Stretches(entries.List)
	if len(spans) != 2 || spans[0].To > g.To.LSN || spans[1].From != g.To.LSN {
		t.Errorf("stretches %+v do not show the gap %+v", spans, g)
	}
	r.checkChainOf(d.v, 1)
}
