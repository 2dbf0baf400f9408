package restore_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/postgres/walrec"
	"github.com/holdfast-dr/holdfast/restore"
	"github.com/holdfast-dr/holdfast/snapshot"
)

// C-65: one half of the record is in one file of the WAL, the other in the next.
func TestATablespaceCreatedAcrossTwoWALFilesIsKeptFromProduction(t *testing.T) {
	t.Setenv("TMPDIR", "/tmp")
	pg := pgtest.Start(t, pgtest.WithSetting("autovacuum", "off"), pgtest.WithSetting("max_wal_size", "1GB"), pgtest.WithInitdb("--wal-segsize=1"))
	pg.Exec("CREATE TABLE filler (t text)")
	w := newWorld(t, pg)
	w.take(snapshot.SourceFiles)
	name, dir := w.createAcross(pg)
	pg.Exec(fmt.Sprintf("CREATE TABLE t_split TABLESPACE %s AS SELECT generate_series(1, 1000) g", name))
	pg.Exec("CHECKPOINT")
	w.flush()
	before := likeness(t, dir)
	room := w.prepare(w.plan(restore.Target{Kind: restore.Latest}))
	conn, err := room.Server.Conn(t.Context(), "postgres")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var place string
	var rows int64
	if err := conn.QueryRow(t.Context(), "SELECT pg_tablespace_location(oid), (SELECT count(*) FROM t_split) FROM pg_tablespace WHERE spcname = $1", name).Scan(&place, &rows); err != nil {
		t.Fatal(err)
	}
	if filepath.Dir(place) != room.Result.RestoredTo+".tablespaces" || rows != 1000 {
		t.Errorf("the tablespace is at %s, with %d rows", place, rows)
	}
	if _, err := conn.Exec(t.Context(), "UPDATE t_split SET g = g + 1; CHECKPOINT"); err != nil {
		t.Error(err)
	}
	if now := likeness(t, dir); now != before {
		t.Errorf("production's tablespace was\n%s\nand is\n%s", before, now)
	}
}

// createAcross creates tablespaces until one's record crosses the end of a segment.
func (w *world) createAcross(pg *pgtest.Cluster) (name, dir string) {
	t := w.t
	for i := range 40 {
		name = fmt.Sprint("split", i)
		dir = name
		for _, long := range []string{"", "l", "m", "n"} { // one by one: they are the server's
			dir = filepath.Join(dir, strings.Repeat(long, 200))
			pg.Mkdir(dir)
		}
		dir = filepath.Join(pg.Dir, dir)
		from := must[lsn.LSN](t)(lsn.Parse(pg.LSN()))
		left := w.segSize - from.Offset(w.segSize)
		// Rows and index entries come before the record of the creation, which is some
		// 700 bytes long: one of these places for their beginning is right.
		fill := left - left/walrec.PageSize*24 - 200 - int64(i%8)*250
		if fill > 0 {
			pg.Exec(fmt.Sprintf("SELECT pg_logical_emit_message(false, 'fill', repeat('x', %d))", fill))
		}
		pg.Exec(fmt.Sprintf("CREATE TABLESPACE %s LOCATION '%s'", name, dir))
		if w.splitBy(pg, from) {
			return name, dir
		}
	}
	t.Fatal("no record of a tablespace's creation crosses the end of a segment")
	return "", ""
}

// splitBy says whether the segment of position from ends within such a record.
func (w *world) splitBy(pg *pgtest.Cluster, from lsn.LSN) bool {
	at := from.SegmentStart(w.segSize)
	data := must[[]byte](w.t)(os.ReadFile(filepath.Join(pg.DataDir, "pg_wal", lsn.SegmentName(1, at.Segment(w.segSize), w.segSize))))
	s, err := walrec.ScanTablespaces(walrec.Config{SegSize: w.segSize, Major: pg.Major, Start: at}, data)
	return err == nil && s.Open
}
