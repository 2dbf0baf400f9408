package snapshot

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// loseWAL removes what zones hold of a segment: its objects, and its notes too.
func (r *repo) loseWAL(d *daemon, w catalog.WAL, note bool) {
	r.t.Helper()
	for _, dir := range r.dirs {
		names := []string{w.Object.Name, w.Index.Name}
		if note {
			found, err := filepath.Glob(filepath.Join(dir, filepath.Dir(w.Object.Name), "*.note"))
			okay(r.t, err)
			for _, f := range found {
				rel, err := filepath.Rel(dir, f)
				okay(r.t, err)
				if e, ok := catalog.ParseWALNote(filepath.ToSlash(rel)); ok && e.From >= w.From && e.To <= w.To {
					names = append(names, rel)
				}
			}
		}
		for _, n := range names {
			if err := os.Remove(filepath.Join(dir, n)); err != nil && !os.IsNotExist(err) {
				r.t.Fatal(err)
			}
		}
	}
}

// P6: WAL that every zone lost comes back from a server that still has it.
func TestALostSegmentIsRefilledFromTheServerOrItSaysThatTheServerHasItNoMore(t *testing.T) {
	r := newWALRepo(t)
	pg := walServer(t)
	keepWAL(pg)
	d := r.archive(pg, "s")
	for range 3 {
		writeWAL(pg, 2)
		pg.SwitchWAL()
	}
	to := currentLSN(t, pg)
	waitFor(t, d, to)
	var full []catalog.WAL
	for _, w := range r.notes(d.v) {
		if !w.Slice && w.From < w.To {
			full = append(full, w)
		}
	}
	if len(full) < 3 {
		t.Fatalf("only %d full segments", len(full))
	}
	for i, note := range []bool{true, false} { // without its note, the name is free again
		w := full[i]
		r.loseWAL(d, w, note)
		okay(t, d.w.Refill(t.Context(), pg.DSN("postgres"), walSeg, Hole{1, w.From, w.To}))
		whole(t, r, d, w.From, w.To)
		if note {
			sameAsServer(t, r, d.v, pg, filepath.Join(pg.DataDir, "pg_wal"), 1, full[len(full)-1].To)
		}
	}
	wantErr(t, d.w.Refill(t.Context(), pg.DSN("postgres"), walSeg, Hole{1, 0x10000, 0x20000}), postgres.ErrWALRemoved)
}

// whole wants a stretch in one piece, each note with its object.
func whole(t *testing.T, r *repo, d *daemon, from, to lsn.LSN) {
	t.Helper()
	entries, err := catalog.NewReader(d.v.Reader(), r.trust).WALEntries(t.Context(), "cms", "")
	okay(t, err)
	for _, e := range entries.List {
		if e.From <= from && e.To >= to && len(e.Zones)-len(e.Bare) >= 2 {
			return
		}
	}
	t.Errorf("%s to %s did not come back: %+v", from, to, entries.List)
}
