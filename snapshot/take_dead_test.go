package snapshot

import (
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
)

// However often pages change, what a snapshot needs of older ones stays within a
// bound of what is alive: packs of which less than sparseBelow is in use are copied
// afresh.
func TestDeadSpaceStaysBoundedOverManySnapshots(t *testing.T) { // decision 14
	const rounds = 12
	pg := startPG(t)
	pg.Exec(`CREATE TABLE busy (id int PRIMARY KEY, n int, pad text) WITH (fillfactor = 50);
		INSERT INTO busy SELECT i, 0, (SELECT string_agg(md5(i::text || k), '') FROM generate_series(1, 28) k) FROM generate_series(1, 8000) i`)
	r := newRig(t)
	cfg := r.config(pg, SourceFiles)
	cfg.RenewAfter = 365 * 24 * time.Hour // age has no part in it
	begun, day := time.Now(), 0
	cfg.Now = func() time.Time { return begun.AddDate(0, 0, day) }
	var last catalog.Snapshot
	for ; day < rounds; day++ {
		// A quarter of the pages, others each time: no pack dies as a whole.
		pg.Exec("UPDATE busy SET n = n + 1 WHERE id % 4 = 0 AND hashint4((ctid::text::point)[0]::int + $1 * 7919) % 4 = 0", day)
		last = r.take(cfg)
		m := r.manifest(last)
		r.check(m)
		var older, live int64
		for _, p := range m.Packs {
			live += p.Live
			if !strings.Contains(p.Ref.Name, last.ID) {
				older += p.Raw
			}
		}
		if bound := int64(float64(live) / sparseBelow); older > bound {
			t.Errorf("snapshot %d needs %d bytes of older packs, where %d are alive: want %d at most", day, older, live, bound)
		}
	}
	cfg.Full = true
	if full := r.take(cfg); last.StoredSize > 2*full.StoredSize {
		t.Errorf("after %d snapshots %d stored bytes are needed, of a fresh copy %d", rounds, last.StoredSize, full.StoredSize)
	}
}
