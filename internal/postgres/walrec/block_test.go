package walrec

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

// churn changes blocks in every way that WAL knows: each kind of index, every
// kind of table, databases made both ways, tablespaces, large records.
func churn(t testing.TB, c *pgtest.Cluster) {
	for _, sql := range []string{
		"CREATE EXTENSION IF NOT EXISTS pg_walinspect",
		"CREATE TABLE h (id int PRIMARY KEY, v text, a int[], p point, r int4range)",
		"INSERT INTO h SELECT n, repeat('v', n % 500), ARRAY[n, n % 7], point(n, n % 50), int4range(n, n + 5) FROM generate_series(1, 8000) n",
		"CREATE INDEX ON h USING hash (id)", "CREATE INDEX ON h USING gin (a)", "CREATE INDEX ON h USING gist (r)",
		"CREATE INDEX ON h USING spgist (p)", "CREATE INDEX ON h USING brin (id)", "CREATE INDEX ON h (v)",
		"CHECKPOINT",
		"UPDATE h SET v = v || 'x' WHERE id % 3 = 0", "DELETE FROM h WHERE id % 5 = 0 OR id > 6000", "VACUUM h",
		"INSERT INTO h SELECT n, 'again', ARRAY[n], point(n, n), int4range(n, n + 1) FROM generate_series(10001, 13000) n",
		"CREATE SEQUENCE s", "SELECT nextval('s') FROM generate_series(1, 200)",
		"CREATE UNLOGGED TABLE u (id int PRIMARY KEY)", "INSERT INTO u SELECT generate_series(1, 1000)",
		"CREATE TABLE big (v text)", "INSERT INTO big SELECT string_agg(md5(n::text), '') FROM generate_series(1, 60000) n",
		"SELECT pg_logical_emit_message(false, 'long', repeat('y', 3000000))",
		"ALTER TABLE h SET TABLESPACE side", "TRUNCATE big", "DROP TABLE u", "CLUSTER h USING h_pkey", "VACUUM FULL big",
		"BEGIN; CREATE TABLE never AS SELECT generate_series(1, 1000); ROLLBACK",
		"BEGIN; CREATE TABLE later AS SELECT generate_series(1, 1000); PREPARE TRANSACTION 'later'", "COMMIT PREPARED 'later'",
		"BEGIN; CREATE TABLE undone AS SELECT generate_series(1, 1000); PREPARE TRANSACTION 'undone'", "ROLLBACK PREPARED 'undone'",
		"CREATE DATABASE one", "ALTER DATABASE one SET TABLESPACE side", "DROP DATABASE one",
		"DELETE FROM h WHERE id > 1000", "VACUUM (TRUNCATE) h",
		"SELECT count(v) FROM h", "CHECKPOINT", "UPDATE h SET v = NULL", "SELECT count(*) FROM h WHERE v IS NULL",
	} {
		if c.Major < 15 && strings.Contains(sql, "walinspect") {
			continue
		}
		c.Exec(sql)
	}
	if c.Major >= 15 {
		c.Exec("CREATE DATABASE logged STRATEGY wal_log")
		c.Exec("CREATE DATABASE copied STRATEGY file_copy")
	}
}

// churned starts a cluster and works on it. The setting wal_compression is tried
// in every form that the build offers.
func churned(t testing.TB, major int) *pgtest.Cluster {
	c := start(t, major, pgtest.WithTablespace())
	methods := []string{"off", "on"}
	if major >= 15 {
		methods = pgtest.Value[[]string](c, "SELECT enumvals FROM pg_settings WHERE name = 'wal_compression'")
	}
	churn(t, c)
	for _, m := range methods {
		c.Exec("SET wal_compression = " + m)
		c.Exec("CHECKPOINT")
		c.Exec("UPDATE h SET v = md5(id::text)")
		c.Exec("CREATE INDEX fpi_" + m + " ON h (v)")
	}
	t.Logf("wal_compression: %v", methods)
	return c
}

type refLine struct {
	lsn lsn.LSN
	ref BlockRef
}

// blockRefs reads all references of WAL, in order.
func blockRefs(t testing.TB, cfg Config, wal []byte) (all []refLine) {
	t.Helper()
	r, err := NewReader(cfg)
	if err != nil {
		t.Fatal(err)
	}
	err = r.Feed(wal, func(r *Record) error {
		return r.Blocks(func(b BlockRef) { all = append(all, refLine{r.Start, b}) })
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func compareRefs(t *testing.T, got, want []refLine) {
	t.Helper()
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			t.Fatalf("reference %d:\n got %+v\nwant %+v", i, got[i], want[i])
		}
	}
	forks := map[Fork]int{}
	for _, g := range got {
		forks[g.ref.Fork]++
	}
	if len(got) != len(want) || len(got) < 20_000 || len(forks) != 4 {
		t.Fatalf("%d references, %v; want %d, of all forks", len(got), forks, len(want))
	}
}

var dumpRef = regexp.MustCompile(`blkref #\d+: rel (\d+)/(\d+)/(\d+)(?: fork (\w+))? blk (\d+)( FPW)?`)

func TestBlockReferencesAreThoseOfPgWaldump(t *testing.T) {
	c := churned(t, 15)
	from, wal := segments(t, c, 1)
	out := c.Run("pg_waldump", "-p", filepath.Join(c.DataDir, "pg_wal"), "-s", from.String(), "-e", (from + lsn.LSN(len(wal))).String())
	var want []refLine
	for _, line := range strings.Split(out, "\n") {
		m := dumpLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		at, err := lsn.Parse(m[4])
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range dumpRef.FindAllStringSubmatch(line, -1) {
			fork, _ := ParseFork(b[4])
			want = append(want, refLine{at, BlockRef{Relation{oid(b[1]), oid(b[2]), oid(b[3])}, fork, oid(b[5]), b[6] != ""}})
		}
	}
	compareRefs(t, blockRefs(t, Config{SegSize: segSize, Major: 15, Start: from}, wal), want)
}

func oid(s string) uint32 {
	n, _ := strconv.ParseUint(s, 10, 32)
	return uint32(n)
}

// From 16 on a server itself says what its records refer to.
func TestBlockReferencesAreThoseOfPgWalinspect(t *testing.T) {
	for _, major := range pgtest.Installed() {
		if major < 16 {
			continue
		}
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			c := churned(t, major)
			from, wal := segments(t, c, 1)
			rows := c.Query(fmt.Sprintf(`SELECT start_lsn::text, reltablespace, reldatabase, relfilenode, relforknumber, relblocknumber, block_fpi_length > 0
				FROM pg_get_wal_block_info('%s', '%s', false) w ORDER BY w.start_lsn, w.block_id`, from+longHeader, from+lsn.LSN(len(wal))))
			want := make([]refLine, 0, len(rows))
			for _, row := range rows {
				at, _ := lsn.Parse(row[0].(string))
				ref := BlockRef{Relation{row[1].(uint32), row[2].(uint32), row[3].(uint32)}, Fork(row[4].(int16)), uint32(row[5].(int64)), row[6].(bool)}
				want = append(want, refLine{at, ref})
			}
			// The server leaves out a record that began before the first place.
			got := blockRefs(t, Config{SegSize: segSize, Major: major, Start: from}, wal)
			got = slices.DeleteFunc(got, func(r refLine) bool { return len(want) > 0 && r.lsn < want[0].lsn })
			compareRefs(t, got, want)
		})
	}
}
