package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/tenancy/portable"
)

// flat is what a project of its own schema or database holds; every row has WORD.
const flat = `
CREATE TABLE SCHEMA.page (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, title text, email text);
CREATE TABLE SCHEMA.version (page int REFERENCES SCHEMA.page, nr int, body text, PRIMARY KEY (page, nr));
CREATE SEQUENCE SCHEMA.ticket;
CREATE MATERIALIZED VIEW SCHEMA.digest AS SELECT count(*) FROM SCHEMA.page;
CREATE ROLE "ROLENAME" LOGIN; ALTER TABLE SCHEMA.page OWNER TO "ROLENAME"; GRANT USAGE ON SCHEMA SCHEMA TO "ROLENAME"; GRANT SELECT ON SCHEMA.version TO "ROLENAME";
INSERT INTO SCHEMA.page (title, email) SELECT 'WORD' || g, 'a@WORD' FROM generate_series(1, 50) g;
INSERT INTO SCHEMA.version SELECT g, n, repeat('WORD ', 50) FROM generate_series(1, 50) g, generate_series(1, 3) n;
SELECT nextval('SCHEMA.ticket') FROM generate_series(1, 9);
REFRESH MATERIALIZED VIEW SCHEMA.digest`

// estate is a cluster whose projects are schemas or databases: one of a hostile name,
// and its neighbour.
type estate struct {
	*rig
	layout           string
	hostile, another string
}

func newEstate(t *testing.T, pg *pgtest.Cluster, layout string) *estate {
	x := &estate{newRig(t, pg, false), layout, `Te"n; DROP --`, "neighbour"}
	x.cluster = cagesOf[layout].projects + "      purge: {within: 1000d, grace: 1s}\n"
	x.configure()
	for word, key := range map[string]string{"canary": x.hostile, "other": x.another} {
		db, schema := "postgres", pgx.Identifier{key}.Sanitize()
		if layout == "database" {
			pg.Exec("CREATE DATABASE " + schema)
			db, schema = key, "public"
		} else {
			pg.Exec("CREATE SCHEMA " + schema)
		}
		sql := strings.NewReplacer("ON SCHEMA SCHEMA", "ON SCHEMA "+schema, "SCHEMA", schema, "WORD", word, "ROLENAME", "owner of "+word).Replace(flat)
		x.inDatabase(db, sql)
	}
	return x
}

// rows are the rows of a project wherever it is, as pg_dump writes them.
func (x *estate) rows(db, word string) (list []string) {
	x.t.Helper()
	for line := range strings.Lines(x.pg.Run("pg_dump", "--data-only", "--inserts", "-d", x.pg.DSN(db))) {
		if strings.HasPrefix(line, "INSERT") && strings.Contains(line, word) {
			_, values, _ := strings.Cut(line, " VALUES ")
			list = append(list, values)
		}
	}
	slices.Sort(list)
	return list
}

// in is the database that holds a project.
func (x *estate) in(key string) string {
	if x.layout == "database" {
		return key
	}
	return "postgres"
}

func (x *estate) on(db string) string {
	return strings.Replace(x.pg.DSN("postgres"), "dbname=postgres", "dbname="+db, 1)
}

func TestAProjectThatIsASchemaIsListedExportedClonedAndPutBack(t *testing.T) { // promise 7
	wholeProject(t, "schema")
}

func TestAProjectThatIsADatabaseIsListedExportedClonedAndPutBack(t *testing.T) { // promise 7
	wholeProject(t, "database")
}

func wholeProject(t *testing.T, layout string) {
	pg := pgtest.Start(t, pgtest.WithOwn("pg_dump"))
	x := newEstate(t, pg, layout)
	x.daemon("db")
	list := ask[projectsDoc](x.rig, "db", "project", "list", "cms", "--sizes").Projects
	if len(list) != 2 || *list[0].Rows != 200 || *list[1].Rows != 200 || *list[0].Bytes == 0 {
		t.Errorf("listed: %+v", list)
	}
	shown := ask[projectDoc](x.rig, "db", "project", "show", "cms", x.hostile)
	if len(shown.Counts) != 2 || len(shown.Sizes) != 2 || slices.ContainsFunc(shown.Counts, func(c catalog.Count) bool { return strings.Contains(c.Table, "Te") }) {
		t.Errorf("shown: %+v", shown)
	}
	x.exports()
	x.clones()
	pg.Exec("DROP DATABASE loaded") // or they would be projects
	pg.Exec("DROP DATABASE clone")
	x.comesBack()
	x.goesAway()
}

func (x *estate) exports() {
	x.t.Helper()
	if x.layout == "schema" { // a key to a neighbour's table, which does not come along
		x.pg.Exec(in(pgx.Identifier{x.hostile}.Sanitize(), `ALTER TABLE SCHEMA.page ADD friend int REFERENCES neighbour.page`))
	}
	want := x.rows(x.in(x.hostile), "canary")
	one := x.path("one")
	x.hold("db", 0, "project", "export", "cms", x.hostile, "--out", one, "--binaries", x.pg.BinDir())
	all := ask[exportDoc](x.rig, "db", "project", "export", "cms", "--all", "--out", x.path("all"), "--binaries", x.pg.BinDir())
	if len(all.Projects) != 2 || all.Projects[0].Rows != 200 || all.Projects[1].Rows != 200 {
		x.t.Errorf("exported: %+v", all)
	}
	checkFiles(x.t, one, readJSON[portable.Manifest](x.t, filepath.Join(one, "manifest.json")))
	for _, p := range all.Projects {
		dir := filepath.Dir(x.path("all/" + p.File.Name))
		checkFiles(x.t, dir, readJSON[portable.Manifest](x.t, filepath.Join(dir, "manifest.json")))
	}
	if told := strings.Contains(fmt.Sprint(all.NotCovered, readJSON[portable.Manifest](x.t, filepath.Join(one, "manifest.json")).NotCovered), "REFERENCES neighbour.page"); told != (x.layout == "schema") {
		x.t.Errorf("a key that leads out is told: %t", told)
	}
	x.pg.Exec("CREATE DATABASE loaded")
	loadByHand(x.t, x.pg, "loaded", one)
	if got := x.rows("loaded", ""); !slices.Equal(got, want) {
		x.t.Errorf("loaded: %d rows, want %d", len(got), len(want))
	}
}

func (x *estate) clones() {
	x.t.Helper()
	mask := "page.email='nobody'"
	if x.layout == "database" {
		mask = "public." + mask
	}
	doc := ask[newDoc](x.rig, "db", "project", "clone", "cms", x.hostile, "--on", x.on("clone"), "--binaries", x.pg.BinDir(), "--mask", mask)
	got := x.rows("clone", "")
	if doc.Rows != 200 || len(got) != 200 || strings.Contains(fmt.Sprint(got), "a@canary") || strings.Contains(fmt.Sprint(got), "other") {
		x.t.Errorf("cloned %+v, %d rows", doc, len(got))
	}
	x.hold("db", exitFailed, "project", "clone", "cms", "nobody", "--on", x.on("never"))
	x.hold("db", exitUsage, "project", "clone", "cms", x.hostile, "--on", x.on("never"), "--mask", "page.id=1")
}

// comesBack puts the project into live again: once what it had was changed, once it is
// no more there.
func (x *estate) comesBack() {
	x.t.Helper()
	x.hold("db", 0, "snapshot", "take", "cms")
	want, others := x.rows(x.in(x.hostile), "canary"), x.rows(x.in(x.another), "other")
	at := pgtest.Value[time.Time](x.pg, "SELECT clock_timestamp()").Format(time.RFC3339Nano)
	schema, drop := pgx.Identifier{x.hostile}.Sanitize(), "DROP SCHEMA %s CASCADE"
	if x.layout == "database" {
		schema, drop = "public", "DROP DATABASE %s WITH (FORCE)"
	}
	for _, harm := range []func(){
		func() {
			x.inDatabase(x.in(x.hostile), in(schema, `DELETE FROM SCHEMA.version WHERE nr = 2; UPDATE SCHEMA.page SET title = 'wrong' WHERE id < 9; INSERT INTO SCHEMA.page (title) VALUES ('a mistake')`))
		},
		func() { x.pg.Exec(fmt.Sprintf(drop, pgx.Identifier{x.hostile}.Sanitize())) },
	} {
		harm()
		x.archived("a", "b", "c")
		restore := []string{"project", "restore", "cms", x.hostile, "--time", at, "--to", x.path("beside"), "--identity", x.path("drill/data.key"), "--binaries", x.pg.BinDir(), "--into", "live"}
		shown := ask[putBackDoc](x.rig, "db", append(restore, "--dry-run")...)
		done := ask[putBackDoc](x.rig, "db", append(restore, "--yes")...)
		if !done.Applied || done.Expected != nil || len(shown.Changes) != 2 || fmt.Sprint(shown.Changes) != fmt.Sprint(done.Changes) {
			x.t.Errorf("shown %+v, put back %+v", shown.Changes, done)
		}
		if got := x.rows(x.in(x.hostile), "canary"); !slices.Equal(got, want) {
			x.t.Errorf("put back: %d rows, want %d", len(got), len(want))
		}
	}
	if got := x.rows(x.in(x.another), "other"); !slices.Equal(got, others) {
		x.t.Error("the neighbour has other rows")
	}
	var owner string
	var ticket, pages int64
	conn := x.pg.Conn(x.in(x.hostile))
	defer conn.Close(x.t.Context())
	err := conn.QueryRow(x.t.Context(), in(schema, `SELECT pg_get_userbyid(relowner), (SELECT last_value FROM SCHEMA.ticket), (SELECT count FROM SCHEMA.digest) FROM pg_class WHERE oid = 'SCHEMA.page'::regclass`)).Scan(&owner, &ticket, &pages)
	if err != nil || owner != "owner of canary" || ticket != 9 || pages != 50 {
		x.t.Errorf("made anew: owner %q, sequence at %d, %d pages in the view (%v)", owner, ticket, pages, err)
	}
}

// goesAway deletes it in live: refused while something stands in the way.
func (x *estate) goesAway() {
	x.t.Helper()
	del := []string{"project", "delete", "cms", x.hostile, "--in-live", "--yes"}
	if x.layout == "schema" {
		x.pg.Exec(in(pgx.Identifier{x.hostile}.Sanitize(), `CREATE VIEW public.titles AS SELECT title FROM SCHEMA.page`))
	} else {
		busy := x.pg.Conn(x.hostile)
		defer busy.Close(x.t.Context())
	}
	code, _, errs := x.try("db", del...)
	why := map[string]string{"schema": "view public.titles", "database": "using the database"}[x.layout]
	if code == 0 || !strings.Contains(errs, why) || strings.Contains(errs, x.hostile) {
		x.t.Errorf("exit %d: %s", code, errs)
	}
	if x.layout == "schema" {
		x.pg.Exec(`DROP VIEW public.titles`)
	} else {
		x.pg.Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1`, x.hostile)
	}
	if gone := ask[deletedDoc](x.rig, "db", del...); len(gone.InLive) != 2 || gone.State != "residue in live" {
		x.t.Errorf("deleted: %+v", gone)
	}
	if list := ask[projectsDoc](x.rig, "db", "project", "list", "cms").Projects; len(list) != 1 || list[0].ID != x.another {
		x.t.Errorf("listed: %+v", list)
	}
	if ledger := x.hold("db", 0, "--output", "json", "ledger", "show", "--last", "1000"); strings.Contains(ledger, "DROP --") || !strings.Contains(ledger, `"project.restored"`) {
		x.t.Errorf("the ledger names a project, or has no restore of it:\n%s", ledger)
	}
}
