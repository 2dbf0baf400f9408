package tenancy

import (
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

// putting is a shop, and a copy of it from which a project is put back.
type putting struct {
	t    *testing.T
	pg   *pgtest.Cluster
	live *pgx.Conn
	from *Slice
}

// besides makes a shop, changed by SQL, and the copy.
func besides(t *testing.T, pg *pgtest.Cluster, sql string) *putting {
	t.Helper()
	pg.Exec(`DROP DATABASE IF EXISTS beside WITH (FORCE)`)
	live := shop(t, pg)
	_, err := live.Exec(t.Context(), `DROP TRIGGER forbid ON app.doc; `+sql)
	noErr(t, err)
	live.Close(t.Context())
	pg.Exec(`CREATE DATABASE beside TEMPLATE shop`)
	p := &putting{t: t, pg: pg, live: pg.Conn("shop")}
	conn := pg.Conn("beside")
	v, err := OpenView(t.Context(), conn, Layout{Kind: Rows, Database: "beside", Root: layout.Root, Key: layout.Key})
	noErr(t, err)
	t.Cleanup(func() { conn.Close(t.Context()) })
	p.from, err = v.Project(t.Context(), "A'1")
	noErr(t, err)
	return p
}

// exec changes live, with triggers off.
func (p *putting) exec(sql string) {
	p.t.Helper()
	_, err := p.live.Exec(p.t.Context(), `SET session_replication_role = replica; `+sql+`; SET session_replication_role = origin`)
	noErr(p.t, err)
}

// ask asks live for one text.
func (p *putting) ask(sql string) (answer string) {
	p.t.Helper()
	noErr(p.t, p.live.QueryRow(p.t.Context(), sql).Scan(&answer))
	return answer
}

func (p *putting) merge() (Merged, error) {
	return Merge(p.t.Context(), p.live, layout, p.from)
}

func TestPuttingBack(t *testing.T) {
	pg := pgtest.Start(t)
	for name, test := range map[string]func(*testing.T, *pgtest.Cluster){
		"a materialized view that cannot be renewed stays as it is": testStaleView,
	} {
		t.Run(name, func(t *testing.T) { test(t, pg) })
	}
}

func testStaleView(t *testing.T, pg *pgtest.Cluster) {
	p := besides(t, pg, `
		CREATE TABLE app.rate (factor int);
		INSERT INTO app.rate VALUES (1);
		CREATE MATERIALIZED VIEW app.fragile AS SELECT c.project, count(*) / min(r.factor) AS n FROM app.comment c, app.rate r GROUP BY 1;
		CREATE MATERIALIZED VIEW app.low AS SELECT count(*) AS n FROM app.version_low;
		CREATE MATERIALIZED VIEW app.untouched AS SELECT count(*) / min(r.factor) AS n FROM app.member m, app.rate r`)
	fragile := `SELECT string_agg(f::text, ' ' ORDER BY f::text) FROM app.fragile f`
	before := p.ask(fragile)
	p.exec(`UPDATE app.rate SET factor = 0; UPDATE app.comment SET note = 'canary changed' WHERE id = 3; DELETE FROM app.version_tag WHERE version = 1; DELETE FROM app.version WHERE id = 1; REFRESH MATERIALIZED VIEW app.digest; REFRESH MATERIALIZED VIEW app.low`)
	done, err := p.merge()
	noErr(t, err)
	if len(done.Views) != 1 || !strings.HasPrefix(done.Views[0], "app.fragile: ") {
		t.Errorf("views that were not renewed: %q", done.Views)
	}
	if got := p.ask(fragile); got != before {
		t.Errorf("the view that could not be renewed has %s, want %s", got, before)
	}
	// app.low reads one partition.
	if got := p.ask(`SELECT n::text FROM app.low`); got != "2" {
		t.Errorf("the view of a partition says %s rows", got)
	}
	if !slices.ContainsFunc(done.Changes, func(c Change) bool { return c.Table == "app.comment" && c.Changed == 1 }) {
		t.Errorf("changes: %v", done.Changes)
	}
}
