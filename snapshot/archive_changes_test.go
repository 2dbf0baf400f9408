package snapshot

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
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

// Daemons die between slices and segments, in the midst of records: the indexes
// vouch for the changes all the same, from the first byte on. Where the last bytes
// before a restart cut a record's own headers they say that they do not know, and
// nothing is left out: such a run proves that, and is made again.
func TestIndexesOfTheArchiveVouchForAllChangesThroughRestarts(t *testing.T) {
	for range 8 {
		if vouchThroughRestarts(t) {
			return
		}
	}
	t.Error("of eight runs none vouched for its changes")
}

// headers is more than those of any record here, so that a hole of fewer bytes is
// a record that was cut in them.
const headers = 128

func vouchThroughRestarts(t *testing.T) bool {
	t.Helper()
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
	var from, to string
	if errors.Is(err, changemap.ErrUnknown) {
		text := err.Error()
		_, scanErr := fmt.Sscanf(text[strings.Index(text, "WAL from"):], "WAL from %s to %s", &from, &to)
		okay(t, scanErr)
		a, aErr := lsn.Parse(from)
		b, bErr := lsn.Parse(strings.TrimSuffix(to, ":"))
		if aErr != nil || bErr != nil || b-a > headers {
			t.Fatalf("more than a record's headers is not known: %v", err)
		}
		return false
	}
	okay(t, err)
	db := pgtest.Value[uint32](pg, "SELECT oid FROM pg_database WHERE datname = 'postgres'")
	node := pgtest.Value[uint32](pg, "SELECT pg_relation_filenode('junk')")
	if list, all := m.Changed(1663, db, node, walrec.MainFork, 0); !all {
		t.Errorf("the table that was made on the way: %d blocks, all %t", len(list), all)
	}
	// Segments alone, without the slices that a retention may have removed.
	path[0].To = end.SegmentStart(walSeg)
	if _, err := build(func(w catalog.WAL) bool { return !w.Slice }); err != nil {
		t.Error(err)
	}
	return !t.Failed()
}
