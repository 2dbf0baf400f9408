package snapshot

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"filippo.io/age"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/changemap"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/postgres/walrec"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// index reads the index beside an object of WAL.
func (r *repo) index(v *vault.Vault, w catalog.WAL) (ix walrec.Index) {
	r.t.Helper()
	if w.Index.Name == "" {
		r.t.Fatalf("%s has no index", w.Object.Name)
	}
	body, err := v.Reader().Get(r.t.Context(), w.Index.Name, w.Index.Size, w.Index.SHA256)
	okay(r.t, err)
	plain, err := seal.OpenBlob(body, []age.Identity{r.id}, 1<<26)
	okay(r.t, err)
	okay(r.t, json.Unmarshal(plain, &ix))
	return ix
}

// Daemons die between slices and segments, in the midst of records and of their
// headers: the indexes vouch for the changes all the same, from the first byte on.
func TestIndexesOfTheArchiveVouchForAllChangesThroughRestarts(t *testing.T) {
	pg := walServer(t)
	r := newWALRepo(t)
	d := r.archive(pg, "one")
	for n := range 4 {
		writeWAL(pg, 1)
		pg.Exec(fmt.Sprintf("SELECT pg_logical_emit_message(false, 'long', repeat('y', %d))", 700_000*(n+1)))
		pg.Exec("CHECKPOINT")
		waitFor(t, d, currentLSN(t, pg))
		pg.Exec("INSERT INTO junk SELECT repeat('z', 500) FROM generate_series(1, 3000)")
		d.stop()
		d = r.archive(pg, "one")
	}
	end := currentLSN(t, pg)
	waitFor(t, d, end)
	notes := slices.DeleteFunc(r.notes(d.v), func(w catalog.WAL) bool { return w.From == w.To })
	first := slices.MinFunc(notes, func(a, b catalog.WAL) int { return cmp.Compare(a.From, b.From) })
	path := []changemap.Leg{{Timeline: 1, From: first.From, To: end}}
	build := func(use func(catalog.WAL) bool) (*changemap.Map, error) {
		b := changemap.New(path, 0)
		for _, w := range notes {
			if use(w) && b.Wants(w.Timeline, w.From, w.To) {
				okay(t, b.Add(w.Timeline, r.index(d.v, w)))
			}
		}
		return b.Map()
	}
	m, err := build(func(catalog.WAL) bool { return true })
	okay(t, err)
	db := pgtest.Value[uint32](pg, "SELECT oid FROM pg_database WHERE datname = 'postgres'")
	node := pgtest.Value[uint32](pg, "SELECT pg_relation_filenode('junk')")
	if list, all := m.Changed(1663, db, node, walrec.MainFork, 0); !all {
		t.Errorf("the table that was made on the way: %d blocks, all %t", len(list), all)
	}
	// Segments alone, without the slices that a retention may have removed.
	pg.SwitchWAL()
	waitFor(t, d, currentLSN(t, pg))
	notes = slices.DeleteFunc(r.notes(d.v), func(w catalog.WAL) bool { return w.From == w.To })
	if _, err := build(func(w catalog.WAL) bool { return !w.Slice }); err != nil {
		t.Error(err)
	}
}

// What a new process reads again before a segment is what the one that read all of
// it knew, whatever record reaches over; and where the server has recycled the
// segment before, it says that it knows nothing.
func TestWhatReachesIntoASegmentIsReadAgain(t *testing.T) {
	r := newWALRepo(t)
	pg := walServer(t)
	pg.Exec("SELECT pg_create_physical_replication_slot('keep', true)")
	first := currentLSN(t, pg).SegmentStart(walSeg)
	writeWAL(pg, 8)
	pg.SwitchWAL() // the rest of a segment is zeros, into which nothing reaches
	writeWAL(pg, 4)
	s := serverOf(t, pg)
	d := r.archive(pg, "s")
	reader, err := walrec.NewReader(walrec.Config{SegSize: walSeg, Major: s.Major, Timeline: 1, Start: first})
	okay(t, err)
	reached := 0
	for at := first; at+walSeg < currentLSN(t, pg); {
		data, err := os.ReadFile(filepath.Join(pg.DataDir, "pg_wal", lsn.SegmentName(1, at.Segment(walSeg), walSeg)))
		okay(t, err)
		okay(t, reader.Feed(data, func(*walrec.Record) error { return nil }))
		at += walSeg
		want := reader.Carry()
		if reader.Pending() {
			reached++
		} else {
			want = walrec.Carry{}
		}
		if got := d.reaching(t.Context(), s, at); !reflect.DeepEqual(got, want) {
			t.Errorf("into the segment at %s reaches %s, read again %s", at, want.Start(), got.Start())
		}
	}
	if reached < 5 {
		t.Errorf("into %d segments only a record reaches: this proves little", reached)
	}
	waitFor(t, d, currentLSN(t, pg))
	pg.Exec("SELECT pg_drop_replication_slot('keep')")
	pg.SwitchWAL()
	pg.Exec("CHECKPOINT")
	await(t, "the server forgets", func() bool { pg.Exec("CHECKPOINT"); return d.reaching(t.Context(), s, first+walSeg).IsZero() })
}
