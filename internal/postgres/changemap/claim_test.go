package changemap

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/postgres/datadir"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/postgres/walrec"
)

const segSize = 1 << 20

// room has a cluster whose WAL all stays, in small segments, with page checksums on.
func room(t testing.TB, major int, opts ...pgtest.Option) *pgtest.Cluster {
	c := pgtest.Start(t, append([]pgtest.Option{
		pgtest.WithMajor(major), pgtest.WithInitdb("--wal-segsize=1"), pgtest.WithSetting("wal_keep_size", "1GB"), pgtest.WithTablespace(),
		pgtest.WithSetting("max_prepared_transactions", "5"), pgtest.WithSetting("autovacuum_naptime", "1s"), pgtest.WithSetting("max_wal_size", "40MB"),
		pgtest.WithSetting("wal_compression", []string{"on", "off"}[rand.IntN(2)]),
	}, opts...)...)
	for n := range tables {
		create(c, n)
	}
	return c
}

const tables = 4

func create(c *pgtest.Cluster, n int) {
	c.Exec(strings.ReplaceAll(`CREATE TABLE #t (id int PRIMARY KEY, v text, a int[]);
		INSERT INTO #t SELECT n, repeat(md5(n::text), n % 20), ARRAY[n] FROM generate_series(1, 3000) n;
		CREATE INDEX ON #t (left(v, 30)); CREATE INDEX ON #t USING gin (a); CREATE INDEX ON #t USING hash (id)`, "#t", "t"+strconv.Itoa(n)))
}

// steps are what a day may bring: #t is a table, #n a number below 3000; what a
// double semicolon separates cannot be one transaction.
var steps = []string{
	"UPDATE #t SET v = v || 'x' WHERE id BETWEEN #n AND #n + 300", "DELETE FROM #t WHERE id % 7 = #n % 7", "VACUUM #t", "VACUUM (FREEZE) #t",
	"INSERT INTO #t SELECT 3000 + n, 'new', ARRAY[n] FROM generate_series(#n, #n + 500) n ON CONFLICT DO NOTHING",
	"SELECT count(*) FROM #t WHERE v > 'a'", "SET enable_seqscan = off; SELECT count(a) FROM #t WHERE id > #n; RESET enable_seqscan", "CHECKPOINT",
	"TRUNCATE #t", "BEGIN; TRUNCATE #t; INSERT INTO #t VALUES (1); ROLLBACK", "DELETE FROM #t WHERE id > 500;; VACUUM (TRUNCATE) #t",
	"BEGIN; UPDATE #t SET v = 'undone' WHERE id < #n; ROLLBACK", "REINDEX TABLE #t", "VACUUM FULL #t", "CLUSTER #t USING #t_pkey",
	"ALTER TABLE #t SET TABLESPACE side", "ALTER TABLE #t SET TABLESPACE pg_default", "ALTER TABLE #t ADD COLUMN IF NOT EXISTS c#n int DEFAULT 5",
	"ALTER TABLE #t SET UNLOGGED; INSERT INTO #t (id) VALUES (-#n) ON CONFLICT DO NOTHING; ALTER TABLE #t SET LOGGED",
	"CREATE TEMP TABLE IF NOT EXISTS passing AS SELECT generate_series(1, 2000); UPDATE passing SET generate_series = 1",
	"BEGIN; CREATE TABLE p AS SELECT * FROM #t; PREPARE TRANSACTION 'p';; COMMIT PREPARED 'p';; DROP TABLE p",
	"BEGIN; CREATE TABLE p AS SELECT * FROM #t; PREPARE TRANSACTION 'p';; ROLLBACK PREPARED 'p'", "SELECT pg_switch_wal()",
	"INSERT INTO #t SELECT 10000 + #n, (SELECT string_agg(md5(n::text), '') FROM generate_series(1, 20000) n) ON CONFLICT DO NOTHING",
	"SELECT pg_logical_emit_message(false, 'long', repeat('y', 1500000))", "CREATE STATISTICS IF NOT EXISTS st_#t ON id, v FROM #t; ANALYZE #t",
	"SELECT lo_from_bytea(0, repeat('large', 2000 + #n)::bytea)", "CREATE SEQUENCE IF NOT EXISTS s_#t; SELECT nextval('s_#t') FROM generate_series(1, #n)",
}

// live does random things; databases come and go in both ways that there are.
func live(c *pgtest.Cluster, rng *rand.Rand, n int) {
	for range n {
		step := strings.ReplaceAll(steps[rng.IntN(len(steps))], "#t", "t"+strconv.Itoa(rng.IntN(tables)))
		for _, sql := range strings.Split(strings.ReplaceAll(step, "#n", strconv.Itoa(rng.IntN(3000))), ";;") {
			c.Exec(sql)
		}
	}
	strategies := []string{""}
	if c.Major >= 15 {
		strategies = []string{"STRATEGY wal_log", "STRATEGY file_copy"}
	}
	c.Exec("DROP DATABASE IF EXISTS copied")
	c.Exec("CREATE DATABASE copied " + strategies[rng.IntN(len(strategies))])
	if rng.IntN(2) == 0 {
		c.Exec("ALTER DATABASE copied SET TABLESPACE side")
	}
}

// checkpoint returns where replay would begin, all before it being in the files.
func checkpoint(t testing.TB, c *pgtest.Cluster) lsn.LSN {
	t.Helper()
	c.Exec("CHECKPOINT")
	at, err := lsn.Parse(pgtest.Value[string](c, "SELECT redo_lsn::text FROM pg_control_checkpoint()"))
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// relations reads all files of relations that a snapshot keeps.
func relations(t testing.TB, c *pgtest.Cluster) map[datadir.RelationFile][]byte {
	t.Helper()
	files := map[datadir.RelationFile][]byte{}
	read := func(root, prefix string) {
		err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) || err == nil && d.IsDir() {
				return nil
			}
			rel, _ := filepath.Rel(root, name)
			r, ok := datadir.ParseRelation(filepath.Join(prefix, rel))
			if err != nil || !ok {
				return err
			}
			data, err := os.ReadFile(name)
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			files[r] = data
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	read(c.DataDir, "")
	side := pgtest.Value[uint32](c, "SELECT oid FROM pg_tablespace WHERE spcname = 'side'")
	read(c.Tablespace, fmt.Sprintf("pg_tblspc/%d", side))
	for r := range files {
		r.Fork, r.Segment = datadir.Init, 0
		if _, unlogged := files[r]; unlogged {
			r.Fork = datadir.Main
			delete(files, r)
		}
	}
	return files
}

// archive reads a timeline's WAL in pieces, as the archive does, into b. At times
// the carry from segment to segment is lost, when forget says so.
func archive(t testing.TB, c *pgtest.Cluster, b *Builder, timeline uint32, rng *rand.Rand, forget bool) {
	t.Helper()
	c.SwitchWAL()
	now, err := lsn.Parse(c.LSN())
	if err != nil {
		t.Fatal(err)
	}
	names, _ := filepath.Glob(filepath.Join(c.DataDir, "pg_wal", fmt.Sprintf("%08X????????????????", timeline)))
	slices.Sort(names)
	var carry walrec.Carry
	for _, name := range names {
		_, at, err := lsn.ParseSegmentName(filepath.Base(name), segSize)
		if err != nil || at >= now.SegmentStart(segSize) {
			break
		}
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for len(data) > 0 {
			n := min(len(data), (1+rng.IntN(100))*walrec.PageSize)
			if carry.Next() != at || forget && at.Offset(segSize) == 0 && rng.IntN(3) == 0 {
				carry = walrec.Carry{}
			}
			var ix walrec.Index
			ix, carry, err = walrec.BuildIndex(walrec.Config{SegSize: segSize, Major: c.Major, Timeline: timeline, Start: at}, carry, data[:n])
			if err != nil {
				t.Fatal(err)
			}
			if err := b.Add(timeline, throughJSON(t, ix)); err != nil {
				t.Fatal(err)
			}
			at, data = at+lsn.LSN(n), data[n:]
		}
	}
}

func throughJSON(t testing.TB, ix walrec.Index) (out walrec.Index) {
	text, err := json.Marshal(ix)
	if err == nil {
		err = json.Unmarshal(text, &out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// check shows that each block that differs is in the map, but for those that
// autovacuum wrote after to. Blocks behind the end that a file had, and files that
// were not there, are read without asking it.
func check(t *testing.T, c *pgtest.Cluster, m *Map, to lsn.LSN, before, after map[datadir.RelationFile][]byte) {
	t.Helper()
	var same, differ, named, whole int
	for r, now := range after {
		old, ok := before[r]
		fork, known := walrec.ParseFork(r.Fork)
		if !ok || !known || fork == walrec.FSMFork || fork == walrec.VMFork {
			continue
		}
		list, all := m.Changed(r.Tablespace, r.Database, r.Node, fork, int(r.Segment))
		if all {
			whole++
		}
		end, _ := slices.BinarySearch(list, uint32(len(now)/8192))
		named += end
		for at := 0; at+8192 <= min(len(old), len(now)); at += 8192 {
			if bytes.Equal(old[at:at+8192], now[at:at+8192]) {
				same++
				continue
			}
			differ++
			if _, in := slices.BinarySearch(list, uint32(at/8192)); !in && !all && pageLSN(t, c, r, at/8192, now) < to {
				t.Errorf("block %d of %+v differs and is not in the map", at/8192, r)
			}
		}
	}
	t.Logf("%d blocks are the same, %d differ; the map names %d and %d whole files", same, differ, named, whole)
	if differ < 10 || same < 300 || named > 20*differ+3000 {
		t.Errorf("%d blocks are the same, %d differ, %d are named: this proves little", same, differ, named)
	}
}

// The claim itself: random work between two checkpoints, on every major.
func TestEveryBlockThatDiffersIsInTheMap(t *testing.T) {
	for _, major := range pgtest.Installed() {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			rng := seeded(t)
			c := room(t, major)
			live(c, rng, 10)
			from := checkpoint(t, c)
			before := relations(t, c)
			live(c, rng, 15)
			if rng.IntN(2) == 0 {
				c.Crash()
				c.Start()
			}
			live(c, rng, 10)
			to := checkpoint(t, c)
			after := relations(t, c)
			path := []Leg{{1, from, to}}
			b := New(path, 0)
			archive(t, c, b, 1, rng, false)
			m, err := b.Map()
			if err != nil {
				t.Fatal(err)
			}
			check(t, c, m, to, before, after)
			b = New(path, 0)
			archive(t, c, b, 1, rng, true)
			if m, err := b.Map(); err == nil {
				check(t, c, m, to, before, after)
			} else if !errors.Is(err, ErrUnknown) {
				t.Error(err)
			}
		})
	}
}

// A promotion on the way: the same files go on under a new timeline.
func TestTheMapLeadsAcrossAPromotion(t *testing.T) {
	rng := seeded(t)
	c := room(t, 15)
	from := checkpoint(t, c)
	before := relations(t, c)
	c.SwitchWAL() // or the new timeline's first segment might hold all of it
	live(c, rng, 10)
	c.Stop()
	if err := os.WriteFile(filepath.Join(c.DataDir, "standby.signal"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c.Start()
	c.Promote()
	live(c, rng, 10)
	to := checkpoint(t, c)
	after := relations(t, c)
	text, err := os.ReadFile(filepath.Join(c.DataDir, "pg_wal", lsn.HistoryName(2)))
	if err != nil {
		t.Fatal(err)
	}
	history, err := lsn.ParseHistory(text)
	if err != nil {
		t.Fatal(err)
	}
	path, err := Path(Base{1, from, from}, 2, to, history)
	if err != nil || len(path) != 2 {
		t.Fatalf("%v, %v", path, err)
	}
	b := New(path, 0)
	archive(t, c, b, 2, rng, false)
	if _, err := b.Map(); !errors.Is(err, ErrUnknown) {
		t.Errorf("the new timeline alone: %v", err)
	}
	archive(t, c, b, 1, rng, false)
	m, err := b.Map()
	if err != nil {
		t.Fatal(err)
	}
	check(t, c, m, to, before, after)
}

func seeded(t testing.TB) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}
