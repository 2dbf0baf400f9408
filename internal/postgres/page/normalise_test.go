package page_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/postgres/datadir"
	"github.com/holdfast-dr/holdfast/internal/postgres/page"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

// kinds makes a relation of every kind; churn leaves in their pages what was
// deleted, updated, split and emptied.
const kinds = `
CREATE TABLE t (id int, body text, p point, r int4range, tags int[], words tsvector);
INSERT INTO t SELECT g, 'body ' || md5(g::text), point(g % 991, g % 1009), int4range(g, g + 5), ARRAY[g % 17, g % 1013],
  to_tsvector('simple', md5(g::text) || ' ' || md5((g % 100)::text)) FROM generate_series(1, 9000) g;
INSERT INTO t (id, body) VALUES (5000, 'needle in the heap and its indexes');
CREATE INDEX bt ON t (id); CREATE INDEX btext ON t (body); CREATE INDEX same ON t ((id % 7));
CREATE INDEX ha ON t USING hash (body); CREATE INDEX gi ON t USING gist (p); CREATE INDEX gr ON t USING gist (r);
CREATE INDEX sp ON t USING spgist (p); CREATE INDEX st ON t USING spgist (body); CREATE INDEX ginn ON t USING gin (tags);
CREATE INDEX ginw ON t USING gin (words); CREATE INDEX br ON t USING brin (id);
CREATE TABLE emptied AS SELECT g AS id, 'needle ' || g AS body FROM generate_series(1, 5000) g; CREATE INDEX ON emptied (body);
CREATE SEQUENCE numbers; SELECT setval('numbers', 77);
CREATE TABLE long AS SELECT g AS id, (SELECT string_agg(md5((g * 1000 + i)::text), '') FROM generate_series(1, 200) i) AS body FROM generate_series(1, 100) g;
CHECKPOINT`

const churn = `
DELETE FROM t WHERE id BETWEEN 3000 AND 7000 OR id % 3 = 0;
DELETE FROM emptied WHERE id > 1; DELETE FROM long WHERE id % 2 = 0;
UPDATE t SET body = 'other ' || md5(body) WHERE id % 5 = 0`

// methods names the access method of each relation's files by their node.
func methods(c *pgtest.Cluster) map[uint32]string {
	out := map[uint32]string{}
	for _, row := range c.Query(`SELECT pg_relation_filenode(c.oid)::int8, coalesce(a.amname, c.relkind::text)
		FROM pg_class c LEFT JOIN pg_am a ON a.oid = c.relam WHERE pg_relation_filenode(c.oid) IS NOT NULL`) {
		out[uint32(row[0].(int64))] = fmt.Sprint(row[1])
	}
	return out
}

// eachPage gives every page of every relation file of a stopped cluster to fn and
// writes the files back.
func eachPage(t *testing.T, dir string, fn func(f datadir.File, block uint32, p []byte)) {
	t.Helper()
	layout, err := datadir.Scan(dir, datadir.ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for f := range layout.Files.All() {
		if f.Kind != datadir.Relation {
			continue
		}
		data, err := os.ReadFile(f.Source)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i+page.Size <= len(data); i += page.Size {
			fn(f, f.Name.Segment*page.SegmentBlocks+uint32(i/page.Size), data[i:i+page.Size])
		}
		if err := os.WriteFile(f.Source, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// normaliseOne wants the verdict on a page to stay what it was, and the second
// time to change nothing.
func normaliseOne(t *testing.T, path string, p []byte, block uint32) bool {
	t.Helper()
	before := page.Judge(p, block, 1<<63)
	twin := bytes.Clone(p)
	changed := page.Normalise(p, block, true)
	if before == page.Good && page.NormaliseGood(twin, block) != changed || !bytes.Equal(twin, p) {
		t.Fatalf("%s block %d: NormaliseGood and Normalise disagree", path, block)
	}
	if after := page.Judge(p, block, 1<<63); after != before {
		t.Fatalf("%s block %d: verdict %v became %v", path, block, before, after)
	}
	if page.Normalise(p, block, true) {
		t.Fatalf("%s block %d: changed twice", path, block)
	}
	return changed
}

// What PostgreSQL itself has to say about a cluster whose holes were zeroed: every
// page judged as before, every row and index entry in its place, nothing touched but
// heaps and b-trees, and of what was deleted nothing left in their holes. C-19
func TestANormalisedClusterIsSoundAndItsHolesAreEmpty(t *testing.T) {
	for _, major := range pgtest.Installed() {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			c := pgtest.Start(t, pgtest.WithMajor(major), pgtest.WithSetting("autovacuum", "off"))
			sums := populate(c)
			want := pgtest.Value[string](c, sums)
			am := methods(c)
			c.Stop()
			if n := found(t, c.DataDir, am, "needle"); n < 20 {
				t.Errorf("what was deleted is in the holes of %d pages before: too few to prove much", n)
			}
			changed := map[string]int{}
			eachPage(t, c.DataDir, func(f datadir.File, block uint32, p []byte) {
				if normaliseOne(t, f.Path, p, block) {
					changed[f.Name.Fork+" "+am[f.Name.Node]]++
				}
			})
			if changed["main heap"] < 50 || changed["main btree"] < 20 || len(changed) != 2 && changed["main "] == 0 {
				t.Errorf("changed %v, want many of heaps and b-trees and no others", changed)
			}
			if n := found(t, c.DataDir, am, "needle"); n > 0 {
				t.Errorf("what was deleted is still in the holes of %d pages", n)
			}
			c.Start()
			if got := pgtest.Value[string](c, sums); got != want {
				t.Errorf("the rows are others: %s, want %s", got, want)
			}
			sound(t, c)
		})
	}
}

func populate(c *pgtest.Cluster) (sums string) {
	for _, batch := range []string{kinds, churn} {
		for sql := range strings.SplitSeq(batch, ";") {
			c.Exec(sql)
		}
	}
	if has(c, "bloom") {
		c.Exec("CREATE EXTENSION bloom")
		c.Exec("CREATE INDEX bl ON t USING bloom (id)")
		c.Exec("DELETE FROM t WHERE id % 11 = 0")
	}
	// The second pass makes b-tree pages that the first emptied deleted ones.
	c.Exec("VACUUM t, emptied, long")
	c.Exec("VACUUM t, emptied, long")
	c.Exec("CHECKPOINT")
	// Of the rows that are left, none says so.
	c.Exec("UPDATE emptied SET body = 'kept'")
	c.Exec("VACUUM emptied")
	return `SELECT (SELECT md5(string_agg(t::text, ',' ORDER BY id, body)) FROM t) || (SELECT md5(string_agg(l::text, ',' ORDER BY id)) FROM long l) ||
		(SELECT string_agg(e::text, ',') FROM emptied e) || (SELECT last_value FROM numbers)`
}

func has(c *pgtest.Cluster, extension string) bool {
	return pgtest.Value[bool](c, "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = $1)", extension)
}

// found looks for words in the holes of the pages of heaps and b-trees. In live
// tuples they may stand all the same: a b-tree keeps deleted keys as separators.
func found(t *testing.T, dir string, am map[uint32]string, words string) (pages int) {
	t.Helper()
	eachPage(t, dir, func(f datadir.File, _ uint32, p []byte) {
		lower, upper := half(p, 12), half(p, 14)
		kind := am[f.Name.Node]
		if f.Name.Fork == datadir.Main && (kind == "heap" || kind == "btree") && lower <= upper && bytes.Contains(p[lower:upper], []byte(words)) {
			pages++
		}
	})
	return pages
}

// sound runs amcheck where the build has it, and reads all rows by each index.
func sound(t *testing.T, c *pgtest.Cluster) {
	t.Helper()
	if has(c, "amcheck") {
		if err := pgtest.CheckTrees(t.Context(), c.Conn("postgres")); err != nil {
			t.Errorf("amcheck: %v", err)
		}
		if n := pgtest.Value[int64](c, `SELECT count(*) FROM pg_class c, verify_heapam(c.oid) WHERE relkind IN ('r', 't', 'm')`); n != 0 {
			t.Errorf("amcheck found %d faults in heaps", n)
		}
	}
	if c.HasOwn("pg_dumpall") {
		c.Run("pg_dumpall", "-h", c.SocketDir, "-p", fmt.Sprint(c.Port), "-U", "postgres", "-f", filepath.Join(c.Mkdir("dump"), "all.sql"))
	}
	c.Exec("SET enable_seqscan = off")
	for name, query := range map[string]string{
		"btree": "id > 0", "hash": "body = (SELECT max(body) FROM t)", "gist": "p <@ box '((0,0),(2000,2000))' OR p IS NULL",
		"gin": "tags @> ARRAY[3]", "brin": "id BETWEEN 10 AND 20",
	} {
		byIndex := pgtest.Value[int64](c, "SELECT count(*) FROM t WHERE "+query)
		c.Exec("SET enable_seqscan = on")
		c.Exec("SET enable_indexscan = off")
		c.Exec("SET enable_bitmapscan = off")
		if all := pgtest.Value[int64](c, "SELECT count(*) FROM t WHERE "+query); all != byIndex || all == 0 {
			t.Errorf("%s: %d rows by the index, %d in all", name, byIndex, all)
		}
		c.Exec("RESET ALL")
		c.Exec("SET enable_seqscan = off")
	}
	c.Exec("INSERT INTO t SELECT g, 'later', point(g, g) FROM generate_series(1, 2000) g")
	if n := pgtest.Value[int64](c, "SELECT nextval('numbers')"); n != 78 {
		t.Errorf("the sequence says %d, want 78", n)
	}
}

func half(p []byte, i int) int { return int(binary.LittleEndian.Uint16(p[i:])) }
