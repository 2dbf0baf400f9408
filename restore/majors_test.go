package restore_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/restore"
	"github.com/holdfast-dr/holdfast/snapshot"
)

// Every supported PostgreSQL, by both sources, full and incremental in turns, to a
// moment after both snapshots.
func TestEveryMajorComesBackAsItWasAtAMoment(t *testing.T) {
	t.Setenv("TMPDIR", "/tmp")
	for i, major := range pgtest.Installed() {
		sources := []string{snapshot.SourceFiles, snapshot.SourceStream}
		if i%2 == 1 {
			slices.Reverse(sources)
		}
		t.Run(fmt.Sprintf("PostgreSQL %d, %s and then %s", major, sources[0], sources[1]), func(t *testing.T) {
			comesBack(t, major, sources)
		})
	}
}

func comesBack(t *testing.T, major int, sources []string) {
	pg := pgtest.Start(t, pgtest.WithMajor(major), pgtest.WithTablespace(), pgtest.WithSetting("track_commit_timestamp", "on"))
	populate(pg)
	w := newWorld(t, pg)
	writer := pg.StartOracle(2 * time.Millisecond)
	writer.AwaitMore(10)
	full := w.take(sources[0])
	pg.Exec("UPDATE widgets SET v = v || 'x' WHERE id % 7 = 0")
	pg.Exec("DELETE FROM widgets WHERE id % 11 = 0")
	pg.Exec("VACUUM widgets")
	writer.AwaitMore(10)
	incremental := w.take(sources[1])
	writer.AwaitMore(10)
	mid := writer.AwaitMore(1)
	sum := pgtest.Value[string](pg, contents)
	writer.AwaitMore(10)
	pg.Exec("DROP TABLE widgets")
	acked := writer.Stop()
	w.flush()
	for _, s := range []catalog.Snapshot{full, incremental} {
		room := w.prepare(w.plan(restore.Target{Kind: restore.AtTime, Time: mid.Time, Snapshot: s.ID}))
		if room.Snapshot.ID != s.ID || room.Snapshot.Major != major {
			t.Errorf("restored from snapshot %s of PostgreSQL %d, want %s", room.Snapshot.ID, room.Snapshot.Major, s.ID)
		}
		w.holds(room, acked, func(c pgtest.Commit) bool { return !c.Time.After(mid.Time) })
		sound(t, room, sum)
	}
}

// sound looks at the widgets, and at every page and index entry.
func sound(t *testing.T, room *restore.Room, sum string) {
	conn, err := room.Server.Conn(t.Context(), "postgres")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var got string
	if err := conn.QueryRow(t.Context(), contents).Scan(&got); err != nil || got != sum {
		t.Errorf("widgets are %s, want %s: %v", got, sum, err)
	}
	if err := pgtest.Amcheck(t.Context(), conn); err != nil {
		t.Error(err)
	}
}

const contents = "SELECT count(*) || ' rows, ' || md5(string_agg(id || v, ',' ORDER BY id)) FROM widgets"

// populate makes relations with what their files can hold: TOAST, indexes of
// several kinds, a tablespace, forks, a large object, an unlogged table.
func populate(pg *pgtest.Cluster) {
	for _, sql := range []string{
		"CREATE EXTENSION amcheck",
		"CREATE TABLE widgets (id int PRIMARY KEY, v text, t tsvector, b text) TABLESPACE side",
		"ALTER TABLE widgets ALTER b SET STORAGE EXTERNAL",
		"INSERT INTO widgets SELECT g, 'widget ' || g, to_tsvector('simple', 'widget ' || g), repeat(md5(g::text), 200) FROM generate_series(1, 2000) g",
		"CREATE INDEX ON widgets USING gin (t)",
		"CREATE INDEX ON widgets USING hash (v)",
		"CREATE INDEX ON widgets USING brin (id)",
		"CREATE INDEX ON widgets (v) TABLESPACE side",
		"CREATE UNLOGGED TABLE fleeting AS SELECT 1 AS n",
		"SELECT lo_from_bytea(0, 'a large object')",
		"VACUUM ANALYZE widgets",
	} {
		pg.Exec(sql)
	}
}
