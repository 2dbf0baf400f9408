package restore_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/restore"
	"github.com/holdfast-dr/holdfast/snapshot"
)

// likeness is all that can be seen of a directory: names, owners, modes, times and bytes.
func likeness(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintln(&b, path, st.Mode(), st.Size(), st.ModTime())
		if st.Mode().IsRegular() {
			data, err := os.ReadFile(path)
			fmt.Fprintf(&b, "%x\n", sha256.Sum256(data))
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// C-65: a restore beside production replays the creation of tablespaces by
// absolute paths, and touches none of them.
func TestReplayedTablespacesNeverLeadToProduction(t *testing.T) {
	t.Setenv("TMPDIR", "/tmp")
	pg := pgtest.Start(t, pgtest.WithSetting("autovacuum", "off"), pgtest.WithTablespace())
	pg.Exec("CREATE TABLE before TABLESPACE side AS SELECT generate_series(1, 1000) g")
	w := newWorld(t, pg)
	w.take(snapshot.SourceFiles)
	created := map[string]string{} // directories by tablespace
	create := func(name string) {
		created[name] = pg.Mkdir(name)
		pg.Exec(fmt.Sprintf("CREATE TABLESPACE %s LOCATION '%s'", name, created[name]))
		pg.Exec(fmt.Sprintf("CREATE TABLE t_%s TABLESPACE %s AS SELECT generate_series(1, 1000) g", name, name))
	}
	create("hasty")
	pg.Exec("CREATE DATABASE hastydb TABLESPACE hasty")
	create("gone")
	pg.Exec("DROP TABLE t_gone")
	pg.Exec("DROP TABLESPACE gone")
	pg.Exec("SELECT pg_create_restore_point('before late')")
	create("late")
	pg.Exec("UPDATE t_hasty SET g = g + 1")
	pg.Exec("CHECKPOINT")
	w.flush()
	before := map[string]string{}
	for name, dir := range created {
		before[name] = likeness(t, dir)
	}
	for target, want := range map[restore.Target][]string{
		{Kind: restore.Latest}:                      {"hasty", "late", "side"},
		{Kind: restore.AtName, Name: "before late"}: {"hasty", "side"},
		{Kind: restore.Immediate}:                   {"side"},
	} {
		t.Run(target.String(), func(t *testing.T) {
			c := *w
			c.t = t
			c.replays(target, want)
			for name, dir := range created {
				if now := likeness(t, dir); now != before[name] {
					t.Errorf("production's tablespace %s was\n%s\nand is\n%s", name, before[name], now)
				}
			}
		})
	}
	t.Run("over a copy of a later moment", func(t *testing.T) {
		c := *w
		c.t = t
		c.overLater()
	})
	if n := pgtest.Value[int64](pg, "SELECT sum(g) FROM t_hasty"); n != 501500 {
		t.Errorf("production's table adds up to %d", n)
	}
}

// replays restores to target, where the tablespaces of that moment and no others
// are, beside the data directory and fit for use.
func (w *world) replays(target restore.Target, want []string) {
	t, room := w.t, w.prepare(w.plan(target))
	conn := must[*pgx.Conn](t)(room.Server.Conn(t.Context(), "postgres"))
	defer conn.Close(t.Context())
	to := room.Result.RestoredTo
	var names, places []string
	if err := conn.QueryRow(t.Context(), "SELECT array_agg(spcname::text ORDER BY spcname), array_agg(pg_tablespace_location(oid) ORDER BY oid::text) "+
		"FROM pg_tablespace WHERE spcname !~ '^pg_'").Scan(&names, &places); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(names, want) {
		t.Errorf("tablespaces %q, want %q", names, want)
	}
	if left := must[[]string](t)(filepath.Glob(to + ".tablespaces/*")); !slices.Equal(left, places) {
		t.Errorf("directories %q, want %q", left, places)
	}
	if links := must[[]string](t)(filepath.Glob(to + "/pg_tblspc/*")); len(links) != len(want) {
		t.Errorf("links %q, want %d", links, len(want))
	}
	for _, name := range want {
		if name == "side" {
			continue
		}
		sql := fmt.Sprintf("UPDATE t_%s SET g = g + 1; CREATE TABLE more_%[1]s TABLESPACE %[1]s AS SELECT * FROM t_%[1]s; CHECKPOINT", name)
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Error(err)
		}
	}
	// What the restored cluster creates gets no name that a leftover has.
	if _, err := conn.Exec(t.Context(), "SET allow_in_place_tablespaces = on"); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		if _, err := conn.Exec(t.Context(), fmt.Sprintf("CREATE TABLESPACE again%d LOCATION ''", i)); err != nil {
			t.Error(err)
		}
	}
}

// overLater restores over a copy of a later moment, whose tablespaces hold more
// than those of the earlier one.
func (w *world) overLater() {
	t, to := w.t, w.target()
	later := must[*restore.Room](t)(restore.Prepare(t.Context(), w.repo(), w.plan(restore.Target{Kind: restore.Latest}), w.options(to)))
	conn := must[*pgx.Conn](t)(later.Server.Conn(t.Context(), "postgres"))
	if _, err := conn.Exec(t.Context(), "INSERT INTO t_hasty SELECT generate_series(1, 50000)"); err != nil {
		t.Fatal(err)
	}
	conn.Close(t.Context())
	if err := later.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	opt := w.options(to)
	opt.Delta = true
	room := must[*restore.Room](t)(restore.Prepare(t.Context(), w.repo(), w.plan(restore.Target{Kind: restore.AtName, Name: "before late"}), opt))
	defer room.Discard(context.Background())
	conn = must[*pgx.Conn](t)(room.Server.Conn(t.Context(), "postgres"))
	defer conn.Close(t.Context())
	var rows, sum int64
	if err := conn.QueryRow(t.Context(), "SELECT count(*), sum(g) FROM t_hasty").Scan(&rows, &sum); err != nil || rows != 1000 || sum != 500500 {
		t.Errorf("%d rows that add up to %d, %v", rows, sum, err)
	}
}
