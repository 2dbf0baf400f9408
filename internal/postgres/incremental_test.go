package postgres_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/postgres/page"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

// rebuilt is a folder that takes unchanged blocks from the folder of a prior backup.
type rebuilt struct {
	*folder
	prior string
	came  map[string]postgres.ChangedFile
}

func (b *rebuilt) Blocks(_ context.Context, c postgres.ChangedFile, pages io.Reader) error {
	old, err := os.ReadFile(filepath.Join(b.prior, c.Path))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	data := make([]byte, c.Size)
	copy(data, old[:min(len(old), int(c.Keep)*page.Size)])
	for _, n := range c.Blocks {
		if _, err := io.ReadFull(pages, data[int(n)*page.Size:][:page.Size]); err != nil {
			return err
		}
	}
	c.Blocks = slices.Clone(c.Blocks)
	b.came[c.Path] = c
	path := filepath.Join(b.dir, c.Path)
	return errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, data, c.Mode))
}

// summarizing are the majors that can send incremental backups.
func summarizing() []int {
	return slices.DeleteFunc(pgtest.Installed(), func(m int) bool { return m < 17 })
}

// backup takes a base backup into dir: whole, or since prior.
func backup(t *testing.T, c *pgtest.Cluster, dir string, since *postgres.Prior, from string) (postgres.BaseBackupResult, *rebuilt) {
	t.Helper()
	b := &rebuilt{folder: newFolder(dir), prior: from, came: map[string]postgres.ChangedFile{}}
	conn := replication(t, c)
	defer conn.Close()
	r, err := postgres.BaseBackup(t.Context(), conn, postgres.BaseBackupOptions{Fast: true, Since: since, Manifest: &b.manifest}, b)
	if err != nil {
		t.Fatal(err)
	}
	return r, b
}

// priorOf describes a backup as a repository would: paths and sizes, no sums.
func priorOf(t *testing.T, c *pgtest.Cluster, r postgres.BaseBackupResult, f *folder) *postgres.Prior {
	t.Helper()
	sys, err := postgres.IdentifySystem(t.Context(), replication(t, c))
	if err != nil {
		t.Fatal(err)
	}
	id, err := strconv.ParseUint(sys.SystemID, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return &postgres.Prior{
		SystemID: id, Timeline: r.StartTimeline, Start: r.Start, End: r.End, Files: filesOf(f.size), AnyMinor: postgres.Summarizes(c.ServerNum(), false) != nil,
	}
}

func filesOf(size map[string]int64) iter.Seq2[postgres.ManifestFile, error] {
	return func(yield func(postgres.ManifestFile, error) bool) {
		for path, n := range size {
			if !yield(postgres.ManifestFile{Path: path, Size: n}, nil) {
				return
			}
		}
	}
}

const before = `
CREATE TABLE cold AS SELECT g AS id, repeat('c', 200) AS body FROM generate_series(1, 20000) g;
CREATE TABLE warm AS SELECT g AS id, repeat('w', 200) AS body FROM generate_series(1, 20000) g;
CREATE INDEX ON warm (id);
CREATE TABLE hot AS SELECT g AS id, repeat('h', 200) AS body FROM generate_series(1, 5000) g;
CREATE TABLE shorter AS SELECT g AS id, repeat('s', 200) AS body FROM generate_series(1, 20000) g;
CREATE TABLE emptied AS SELECT g AS id FROM generate_series(1, 20000) g;
CREATE TABLE dropped AS SELECT g AS id FROM generate_series(1, 20000) g;
CREATE TABLE rewritten AS SELECT g AS id FROM generate_series(1, 20000) g;
CREATE TABLE moved AS SELECT g AS id FROM generate_series(1, 20000) g;
CREATE TABLE away TABLESPACE side AS SELECT g AS id, repeat('a', 200) AS body FROM generate_series(1, 20000) g;
CREATE UNLOGGED TABLE unlogged AS SELECT g AS id FROM generate_series(1, 20000) g;
CREATE TABLE grown AS SELECT g AS id FROM generate_series(1, 50000) g`

var after = []string{
	"UPDATE warm SET body = 'new' WHERE id % 400 = 0", "DELETE FROM warm WHERE id BETWEEN 5000 AND 6000", "VACUUM warm",
	"UPDATE hot SET body = repeat('H', 200)", "VACUUM hot",
	"DELETE FROM shorter WHERE id > 5000", "VACUUM shorter", "INSERT INTO shorter SELECT g, 'again' FROM generate_series(1, 300) g",
	"TRUNCATE emptied", "DROP TABLE dropped", "CREATE TABLE created AS SELECT g AS id FROM generate_series(1, 3000) g",
	"VACUUM FULL rewritten", "ALTER TABLE moved SET TABLESPACE side",
	"UPDATE away SET body = 'new' WHERE id % 500 = 0", "INSERT INTO grown SELECT generate_series(1, 9000)",
	"CREATE DATABASE copied STRATEGY file_copy", "CREATE DATABASE logged STRATEGY wal_log",
	"UPDATE cold SET body = 'never' WHERE false",
}

// C-27, C-28, C-29, C-30: what the server sends of a changed cluster, laid over the
// prior backup, is byte for byte what a whole backup of the idle server holds, and a
// server starts from it. A version below the gate of C-33 leaves cleared bits of
// visibility maps out: there these need have the right size only.
func TestAnIncrementalOverItsPriorIsTheWhole(t *testing.T) {
	for _, major := range summarizing() {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			c := pgtest.Start(t, pgtest.WithMajor(major), pgtest.WithTablespace(), pgtest.WithSetting("summarize_wal", "on"),
				pgtest.WithSetting("autovacuum", "off"), pgtest.WithSetting("wal_keep_size", "1GB"))
			c.Exec(before)
			c.Exec("VACUUM")
			paths := pathsOf(c)
			first := filepath.Join(c.Mkdir("first"), "data")
			r1, b1 := backup(t, c, first, nil, "")
			prior := priorOf(t, c, r1, b1.folder)
			for _, sql := range after {
				c.Exec(sql)
			}
			if err := postgres.CheckSummaries(t.Context(), connect(t, c), *prior); err != nil {
				t.Error(err)
			}
			second := filepath.Join(c.Mkdir("second"), "data")
			r2, b2 := backup(t, c, second, prior, first)
			whole := filepath.Join(c.Mkdir("whole"), "data")
			backup(t, c, whole, nil, "")
			sameRelations(t, second, whole, postgres.Summarizes(connect(t, c).ServerNum(), false) == nil)
			b2.kinds(t, paths, pathsOf(c))
			keep(t, c, second, r2)
			answers(t, c, second)
		})
	}
}

func pathsOf(c *pgtest.Cluster) map[string]string {
	out := map[string]string{}
	for _, row := range c.Query("SELECT relname, pg_relation_filepath(oid) FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace") {
		path := row[1].(string)
		out[row[0].(string)] = path
	}
	return out
}

// kinds says how each table must have come (C-29, C-30).
func (b *rebuilt) kinds(t *testing.T, old, now map[string]string) {
	t.Helper()
	for _, name := range []string{"cold", "warm", "shorter", "away", "grown"} {
		if _, ok := b.came[now[name]]; !ok {
			t.Errorf("%s came whole, want its blocks", name)
		}
	}
	if cold := b.came[now["cold"]]; len(cold.Blocks) != 0 || int64(cold.Keep)*page.Size != cold.Size || cold.Size == 0 {
		t.Errorf("cold: %+v, want no blocks and all kept", cold)
	}
	if s := b.came[now["shorter"]]; int(s.Keep) > 20000/30 || len(s.Blocks) == 0 {
		t.Errorf("shorter: %d kept, blocks %v", s.Keep, s.Blocks)
	}
	for _, name := range []string{"hot", "created", "rewritten", "moved"} {
		if _, ok := b.size[now[name]]; !ok {
			t.Errorf("%s did not come whole", name)
		}
	}
	for _, path := range slices.Collect(maps.Keys(b.came)) {
		if strings.HasSuffix(path, "_fsm") {
			t.Errorf("blocks of %s, whose changes are in no summary", path)
		}
	}
	if _, ok := b.size[old["dropped"]]; ok {
		t.Error("the dropped table came")
	}
}

// sameRelations wants the same files with the same bytes but for pg_control, which
// says when the last checkpoint was.
func sameRelations(t *testing.T, got, want string, visible bool) {
	t.Helper()
	a, b := tree(t, got), tree(t, want)
	for path := range maps.Keys(b) {
		data, ok := a[path]
		switch {
		case path == "global/pg_control" || strings.HasPrefix(path, "pg_wal") || !visible && strings.HasSuffix(path, "_vm") && len(data) == len(b[path]):
		case !ok:
			t.Errorf("%s is missing", path)
		case !bytes.Equal(data, b[path]):
			t.Errorf("%s differs: %s", path, blocksThatDiffer(data, b[path]))
		}
	}
	for path := range maps.Keys(a) {
		if _, ok := b[path]; !ok {
			t.Errorf("%s should not be there", path)
		}
	}
}

func blocksThatDiffer(a, b []byte) string {
	out := fmt.Sprintf("%d and %d bytes, blocks", len(a), len(b))
	for n := 0; n+page.Size <= min(len(a), len(b)); n += page.Size {
		if !bytes.Equal(a[n:n+page.Size], b[n:n+page.Size]) {
			out += fmt.Sprint(" ", n/page.Size)
		}
	}
	return out
}

func tree(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		out[rel], err = os.ReadFile(path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// answers starts a server on a backup and asks it for what the first one holds.
func answers(t *testing.T, c *pgtest.Cluster, dir string) {
	t.Helper()
	const sums = `SELECT string_agg(x, '|' ORDER BY x) FROM (
SELECT 'warm' || md5(string_agg(w::text, ',' ORDER BY id)) AS x FROM warm w UNION ALL SELECT 'hot' || md5(string_agg(h::text, ',' ORDER BY id)) FROM hot h
UNION ALL SELECT 'shorter' || md5(string_agg(s::text, ',' ORDER BY id, body)) FROM shorter s UNION ALL SELECT 'emptied' || count(*) FROM emptied
UNION ALL SELECT 'away' || md5(string_agg(a::text, ',' ORDER BY id)) FROM away a UNION ALL SELECT 'moved' || sum(id) FROM moved
UNION ALL SELECT 'grown' || sum(id) || count(*) FROM grown UNION ALL SELECT 'rewritten' || sum(id) FROM rewritten UNION ALL SELECT 'cold' || count(*) FROM cold) q`
	want := pgtest.Value[string](c, sums)
	c.Stop()
	// The tablespace's files lie in pg_tblspc/<oid>, as one in place.
	restored := c.Adopt(dir, "allow_in_place_tablespaces = on")
	restored.Start()
	if got := pgtest.Value[string](restored, sums); got != want {
		t.Errorf("the restored server answers %s, want %s", got, want)
	}
	restored.Stop()
}
