package page_test

import (
	"os"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/postgres/datadir"
	"github.com/holdfast-dr/holdfast/internal/postgres/page"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

// indexes makes residue in pages of every kind: rows deleted, updated and vacuumed,
// index pages emptied, split and deleted.
const indexes = `
CREATE EXTENSION IF NOT EXISTS amcheck;
CREATE EXTENSION IF NOT EXISTS bloom;
CREATE TABLE t (id int, body text, p point, r int4range, tags int[], words tsvector);
INSERT INTO t SELECT g, 'secret ' || md5(g::text), point(g % 991, g % 1009), int4range(g, g + 5), ARRAY[g % 17, g % 1013],
  to_tsvector('simple', md5(g::text) || ' ' || md5((g % 100)::text)) FROM generate_series(1, 12000) g;
CREATE INDEX bt ON t (id); CREATE INDEX btext ON t (body); CREATE INDEX same ON t ((id % 7));
CREATE INDEX ha ON t USING hash (body); CREATE INDEX gi ON t USING gist (p); CREATE INDEX gr ON t USING gist (r);
CREATE INDEX sp ON t USING spgist (p); CREATE INDEX st ON t USING spgist (body); CREATE INDEX ginn ON t USING gin (tags);
CREATE INDEX ginw ON t USING gin (words); CREATE INDEX br ON t USING brin (id); CREATE INDEX bl ON t USING bloom (id);
CREATE TABLE emptied AS SELECT g AS id FROM generate_series(1, 5000) g; CREATE INDEX ON emptied (id);
DELETE FROM emptied; CREATE SEQUENCE numbers; SELECT setval('numbers', 77);`

const churn = `
DELETE FROM t WHERE id BETWEEN 3000 AND 7000 OR id % 3 = 0;
UPDATE t SET body = 'other ' || md5(body) WHERE id % 5 = 0;`

// normaliseAll rewrites every main fork of a stopped cluster normalised.
func normaliseAll(t *testing.T, dir string) (changed, pages int) {
	layout, err := datadir.Scan(dir, datadir.ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range layout.Files {
		if f.Kind != datadir.Relation || f.Name.Fork != datadir.Main {
			continue
		}
		data, err := os.ReadFile(f.Source)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i+page.Size <= len(data); i += page.Size {
			block := f.Name.Segment*page.SegmentBlocks + uint32(i/page.Size)
			if normaliseOne(t, f.Path, data[i:i+page.Size], block) {
				changed++
			}
			pages++
		}
		if err := os.WriteFile(f.Source, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return changed, pages
}

func normaliseOne(t *testing.T, path string, p []byte, block uint32) bool {
	before := page.Judge(p, block, 1<<63)
	changed := page.Normalise(p, block, true)
	if after := page.Judge(p, block, 1<<63); after != before {
		t.Fatalf("%s block %d: verdict %v became %v", path, block, before, after)
	}
	if page.Normalise(p, block, true) {
		t.Fatalf("%s block %d: changed twice", path, block)
	}
	return changed
}

// C-19: what PostgreSQL itself has to say about a cluster whose holes were zeroed.
func TestANormalisedClusterIsSound(t *testing.T) {
	c := pgtest.Start(t)
	c.Exec(indexes)
	c.Exec("VACUUM t, emptied")
	c.Exec(churn)
	c.Exec("VACUUM t")
	c.Exec("CHECKPOINT")
	sum := "SELECT md5(string_agg(t::text, ',' ORDER BY id)) FROM t"
	want := pgtest.Value[string](c, sum)
	c.Stop()
	changed, pages := normaliseAll(t, c.DataDir)
	if changed < 100 {
		t.Errorf("%d of %d pages had something in their holes: too few to prove much", changed, pages)
	}
	c.Start()
	if got := pgtest.Value[string](c, sum); got != want {
		t.Error("the rows are others")
	}
	c.Exec(`SELECT bt_index_parent_check(c.oid, true, true) FROM pg_class c JOIN pg_am a ON a.oid = relam WHERE amname = 'btree' AND relpersistence = 'p'`)
	if n := pgtest.Value[int64](c, `SELECT count(*) FROM pg_class c, verify_heapam(c.oid) WHERE relkind IN ('r', 't', 'm')`); n != 0 {
		t.Errorf("amcheck found %d faults in heaps", n)
	}
}
