package tenancy

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// street is a database whose schemas are projects, beside what they share. house fills
// one: %[1]s is its name as SQL writes it, %[2]s the word in each of its rows.
const street = `
CREATE TABLE country (code text PRIMARY KEY, name text);
INSERT INTO country VALUES ('it', 'Italia'), ('fr', 'France');
CREATE TABLE registry (id text PRIMARY KEY, name text);`

const house = `
CREATE SCHEMA %[1]s;
CREATE TYPE %[1]s.state AS ENUM ('draft', 'live');
CREATE TABLE %[1]s.page (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, country text REFERENCES country, state %[1]s.state, note text);
CREATE TABLE %[1]s."Ver.sion" (page int REFERENCES %[1]s.page, nr int, note text, PRIMARY KEY (page, nr)) PARTITION BY RANGE (nr);
CREATE TABLE %[1]s.low PARTITION OF %[1]s."Ver.sion" FOR VALUES FROM (0) TO (10);
CREATE TABLE %[1]s.high PARTITION OF %[1]s."Ver.sion" FOR VALUES FROM (10) TO (100);
CREATE TABLE %[1]s.empty (note text);
CREATE SEQUENCE %[1]s.ticket;
CREATE VIEW %[1]s.pages AS SELECT * FROM %[1]s.page;
CREATE MATERIALIZED VIEW %[1]s.digest AS SELECT count(*) n FROM %[1]s.page;
CREATE FUNCTION %[1]s.forbid() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'a trigger fired'; END $$;
INSERT INTO %[1]s.page (country, state, note) SELECT 'it', 'draft', '%[2]s' || g FROM generate_series(1, 20) g;
INSERT INTO %[1]s."Ver.sion" SELECT g, g, '%[2]s' FROM generate_series(1, 20) g;
SELECT nextval('%[1]s.ticket') FROM generate_series(1, 7);
CREATE TRIGGER forbid BEFORE INSERT OR UPDATE OR DELETE ON %[1]s.page FOR EACH ROW EXECUTE FUNCTION %[1]s.forbid();
REFRESH MATERIALIZED VIEW %[1]s.digest;
INSERT INTO registry VALUES (%[3]s, 'name');`

const (
	victim    = `Ca"n; --`
	neighbour = "beside"
)

var bySchema, byDatabase = Layout{Kind: Schema, Database: "street"}, Layout{Kind: Database}

const registered = `SELECT id, name FROM registry`

var inHouse = []catalog.Count{{Table: "page", Rows: 20}, {Table: "low", Rows: 9}, {Table: "high", Rows: 11}, {Table: "empty"}}

func build(t *testing.T, pg *pgtest.Cluster) *pgx.Conn {
	t.Helper()
	pg.Exec(`DROP DATABASE IF EXISTS street WITH (FORCE)`)
	pg.Exec(`CREATE DATABASE street`)
	conn := pg.Conn("street")
	run(t, conn, street)
	for name, word := range map[string]string{victim: "canary", neighbour: "other"} {
		run(t, conn, fmt.Sprintf(house, pgx.Identifier{name}.Sanitize(), word, "'"+name+"'"))
	}
	return conn
}

func run(t *testing.T, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// sorts gives counts in an order of their own.
func sorts(list []catalog.Count) []catalog.Count {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b catalog.Count) int { return strings.Compare(a.Table, b.Table) })
	return list
}

func TestProjectsThatAreSchemasOrDatabases(t *testing.T) {
	pg := pgtest.Start(t, pgtest.WithOwn("pg_dump"), pgtest.WithSetting("autovacuum", "off"), pgtest.WithSetting("max_prepared_transactions", "5"))
	for name, test := range map[string]func(*testing.T, *pgtest.Cluster){
		"a schema is counted without its name":                      testSchemaCount,
		"replay drops the schema and what depends on it":            testSchemaReplay,
		"a schema that others depend on is refused in live":         testSchemaTied,
		"live: present, residue until catalogues are clean, absent": testSchemaLive,
		"a slice of a schema has what is shared and no neighbour":   testSchemaSlice,
		"a schema is put back, changed or gone":                     testSchemaMerge,
		"replay drops a database that is in use":                    testDatabaseReplay,
		"a database in use is refused in live":                      testDatabaseLive,
		"what is the server's is no project":                        testReserved,
		"a new name hides no project":                               testRenamed,
	} {
		t.Run(name, func(t *testing.T) { test(t, pg) })
	}
}

func testSchemaCount(t *testing.T, pg *pgtest.Cluster) {
	conn := build(t, pg)
	counts, err := Count(t.Context(), conn, bySchema, victim)
	noErr(t, err)
	if !slices.Equal(sorts(counts), sorts(append(slices.Clone(inHouse)[:3], catalog.Count{Table: "empty"}))) {
		t.Errorf("counts %v", counts)
	}
	if _, err := Count(t.Context(), conn, bySchema, "nobody"); !errors.Is(err, ErrNoProject) {
		t.Errorf("nobody: %v", err)
	}
	var sizes [][]Size
	noErr(t, Sizes(t.Context(), conn, bySchema, []string{victim, "nobody"}, func(list []Size) { sizes = append(sizes, list) }))
	if len(sizes) != 2 || len(sizes[0]) != 2 || sizes[0][0].Rows != 20 || sizes[0][0].Bytes == 0 || len(sizes[1]) != 0 {
		t.Errorf("sizes %+v", sizes)
	}
}

func testSchemaReplay(t *testing.T, pg *pgtest.Cluster) {
	conn := build(t, pg)
	run(t, conn, `CREATE VIEW everything AS SELECT note FROM "Ca""n; --".page UNION ALL SELECT note FROM beside.page;
		CREATE TABLE audit (page int REFERENCES "Ca""n; --".page, note text); INSERT INTO audit VALUES (1, 'kept')`)
	before := marked(dump(pg, "street"), "canary", false)
	k := keysOf(t)
	tombs := []catalog.Tombstone{grave(k, bySchema, "t1", victim), grave(k, bySchema, "t2", "nobody")}
	applied, err := Replay(t.Context(), connector(pg), tombs, of(k))
	noErr(t, err)
	if len(applied) != 2 || !applied[0].Found || applied[1].Found || applied[0].Tied < 2 || !slices.Equal(sorts(applied[0].Counts), sorts(inHouse)) {
		t.Errorf("applied %+v", applied)
	}
	after := dump(pg, "street")
	if strings.Contains(after, "canary") || !slices.Equal(marked(after, "canary", false), before) {
		t.Errorf("after the replay:\n%s", after)
	}
	var still int
	noErr(t, conn.QueryRow(t.Context(), `SELECT count(*) FROM pg_namespace WHERE nspname IN ($1, $2)`, victim, neighbour).Scan(&still))
	if still != 1 {
		t.Errorf("%d schemas of two are there", still)
	}
	if again, err := Replay(t.Context(), connector(pg), tombs, of(k)); err != nil || again[0].Found {
		t.Errorf("again: %+v, %v", again, err)
	}
	for _, name := range []string{"pg_class", "pg_statistic"} {
		var n int
		noErr(t, conn.QueryRow(t.Context(), `SELECT vacuum_count FROM pg_stat_all_tables WHERE relname = $1`, name).Scan(&n))
		if n == 0 {
			t.Errorf("%s was not vacuumed", name)
		}
	}
}

func testSchemaTied(t *testing.T, pg *pgtest.Cluster) {
	conn := build(t, pg)
	if tied, err := Tied(t.Context(), conn, bySchema, victim); err != nil || len(tied) > 0 {
		t.Fatalf("a schema by itself is tied: %v, %v", tied, err)
	}
	for what, sql := range map[string]string{
		"view public.everything": `CREATE VIEW everything AS SELECT note FROM "Ca""n; --".page`,
		"public.audit":           `CREATE TABLE audit (page int REFERENCES "Ca""n; --".page)`,
		"public.kept":            `CREATE TABLE kept (s "Ca""n; --".state)`,
		"public.loud":            `CREATE TABLE loud (n int DEFAULT nextval('"Ca""n; --".ticket'))`,
		"index public.by_kind":   `CREATE FUNCTION "Ca""n; --".kind(text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT $1'; CREATE INDEX by_kind ON country ("Ca""n; --".kind(name))`,
		"extension citext":       `CREATE EXTENSION citext SCHEMA "Ca""n; --"`,
		"event trigger watch":    `CREATE FUNCTION "Ca""n; --".watch() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'; CREATE EVENT TRIGGER watch ON ddl_command_end EXECUTE FUNCTION "Ca""n; --".watch()`,
		"public.guarded":         `CREATE TABLE guarded (n int); CREATE TRIGGER g BEFORE INSERT ON guarded FOR EACH ROW EXECUTE FUNCTION "Ca""n; --".forbid()`,
	} {
		conn := build(t, pg)
		run(t, conn, sql)
		before := dump(pg, "street")
		_, err := Erase(t.Context(), conn, bySchema, victim)
		if !errors.Is(err, ErrTied) || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
		if dump(pg, "street") != before {
			t.Errorf("%s: a refused deletion changed rows", what)
		}
	}
	own := build(t, pg)
	run(t, own, `CREATE DOMAIN "Ca""n; --".mail AS text CHECK (VALUE LIKE '%@%'); CREATE TABLE "Ca""n; --".box (m "Ca""n; --".mail);
		CREATE OPERATOR FAMILY "Ca""n; --".f USING btree; CREATE POLICY p ON "Ca""n; --".page; CREATE STATISTICS "Ca""n; --".s ON id, note FROM "Ca""n; --".page;
		CREATE PUBLICATION pub FOR TABLE "Ca""n; --".page; ALTER DEFAULT PRIVILEGES IN SCHEMA "Ca""n; --" GRANT SELECT ON TABLES TO pg_monitor`)
	if tied, err := Tied(t.Context(), own, bySchema, victim); err != nil || len(tied) > 0 {
		t.Errorf("what is its own ties it: %v, %v", tied, err)
	}
	own.Close(t.Context())
	counts, err := Erase(t.Context(), build(t, pg), bySchema, victim)
	if err != nil || !slices.Equal(sorts(counts), sorts(inHouse)) {
		t.Errorf("erased %v, %v", counts, err)
	}
}

func testSchemaLive(t *testing.T, pg *pgtest.Cluster) {
	conn := build(t, pg)
	run(t, conn, "ANALYZE")
	k := keysOf(t)
	tomb := grave(k, bySchema, "t1", victim, inHouse...)
	look := lookAt(t, conn, tomb, k)
	if seen := look(Memo{}); seen.State != Present || len(seen.Counts) != len(inHouse) || seen.LSN == 0 {
		t.Fatalf("before: %+v", seen)
	}
	if _, err := Live(t.Context(), pg.Conn("postgres"), tomb, k, Memo{}); !errors.Is(err, ErrElsewhere) {
		t.Fatalf("in another database: %v", err)
	}
	old := pg.Conn("street")
	defer old.Close(t.Context())
	tx, err := old.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	noErr(t, err)
	noErr(t, tx.QueryRow(t.Context(), `SELECT count(*) FROM registry`).Scan(new(int)))
	_, err = Erase(t.Context(), conn, bySchema, victim)
	noErr(t, err)
	first := look(Memo{})
	if first.State != Residue || !first.Memo.GoneAt.IsZero() || first.Memo.Seen == "" || !strings.Contains(first.Waiting[0], "the end of transactions") {
		t.Fatalf("while somebody still sees it: %+v", first)
	}
	run(t, conn, "VACUUM")
	if seen := look(first.Memo); seen.State != Residue || !seen.Memo.GoneAt.IsZero() {
		t.Fatalf("a vacuum beside an old snapshot counts: %+v", seen)
	}
	noErr(t, tx.Rollback(t.Context()))
	second := look(first.Memo)
	if second.State != Residue || second.Memo.GoneAt.IsZero() || !slices.Contains(second.Waiting, "pg_catalog.pg_statistic") {
		t.Fatalf("when nobody sees it any more: %+v", second)
	}
	if seen := look(second.Memo); seen.State != Residue {
		t.Fatalf("without a vacuum: %+v", seen)
	}
	late := pg.Conn("street") // as a standby that comes back with an older view
	defer late.Close(t.Context())
	tx, err = late.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	noErr(t, err)
	noErr(t, tx.QueryRow(t.Context(), `SELECT count(*) FROM registry`).Scan(new(int)))
	if seen := look(Memo{Seen: pgtest.Value[string](pg, `SELECT (pg_snapshot_xmax(pg_current_snapshot())::text::bigint + 1)::text`), GoneAt: second.Memo.GoneAt}); !seen.Memo.GoneAt.IsZero() {
		t.Fatalf("with an older view about: %+v", seen)
	}
	noErr(t, tx.Rollback(t.Context()))
	run(t, conn, "VACUUM")
	run(t, conn, "CREATE TABLE busy (n int); DROP TABLE busy") // catalogues have dead rows again at once
	if seen := look(second.Memo); seen.State != Absent || len(seen.Waiting) > 0 || !slices.Contains(seen.Vacuumed, "pg_catalog.pg_statistic") {
		t.Fatalf("after a vacuum: %+v", seen)
	}
}

func lookAt(t *testing.T, conn *pgx.Conn, tomb catalog.Tombstone, k seal.DigestKeys) func(Memo) Seen {
	return func(m Memo) Seen {
		t.Helper()
		seen, err := Live(t.Context(), conn, tomb, k, m)
		noErr(t, err)
		return seen
	}
}

// cut is a project of a view, alone.
func cut(t *testing.T, conn *pgx.Conn, l Layout, key string) (*View, *Slice) {
	t.Helper()
	v, err := OpenView(t.Context(), conn, l)
	noErr(t, err)
	noErr(t, v.Keep(t.Context(), registered, key))
	s, err := v.Project(t.Context(), key)
	noErr(t, err)
	return v, s
}

func testSchemaSlice(t *testing.T, pg *pgtest.Cluster) {
	conn := build(t, pg)
	run(t, conn, `ALTER TABLE "Ca""n; --".page DISABLE TRIGGER ALL; ALTER TABLE "Ca""n; --".page ADD friend int REFERENCES beside.page; UPDATE "Ca""n; --".page SET friend = 1 WHERE id = 3`)
	v, s := cut(t, conn, bySchema, victim)
	defer v.Close(t.Context())
	var parts []string
	for _, p := range s.Parts {
		parts = append(parts, fmt.Sprint(p.Schema, ".", p.Table, " ", p.Rows, " ", p.Shared))
	}
	if want := []string{victim + ".Ver.sion 20 false", victim + ".empty 0 false", victim + ".page 20 false", "public.country 1 true"}; !slices.Equal(parts, want) {
		t.Errorf("parts %v, want %v", parts, want)
	}
	if len(s.References) != 1 || s.References[0].To != "beside.page" || s.References[0].Rows != 1 {
		t.Errorf("references %+v", s.References)
	}
	if len(s.Sequences) != 2 {
		t.Errorf("sequences %+v", s.Sequences)
	}
	schemas, err := v.Schemas(t.Context())
	if err != nil || !slices.Equal(schemas, []string{victim, "public"}) {
		t.Errorf("schemas %q, %v", schemas, err)
	}
	noErr(t, v.Keep(t.Context(), registered, victim, neighbour)) // an export of both
	if both, err := v.Project(t.Context(), victim); err != nil || len(both.Parts) != len(parts) {
		t.Errorf("beside its neighbour it has %d tables, %v", len(both.Parts), err)
	}
	noErr(t, v.Keep(t.Context(), registered, victim))
	s, err = v.Project(t.Context(), victim)
	noErr(t, err)
	for _, p := range s.Parts {
		var out bytes.Buffer
		m := Masks{"page.note": "'hidden'"}
		noErr(t, m.Check(t.Context(), s))
		_, err := s.Write(t.Context(), p, Copy, m, &out)
		noErr(t, err)
		if p.Table == "page" && (strings.Contains(out.String(), "canary") || strings.Count(out.String(), "hidden") != 20) {
			t.Errorf("masked:\n%s", out.String())
		}
		if strings.Contains(out.String(), "other") {
			t.Errorf("%s has rows of another:\n%s", p.Name, out.String())
		}
	}
	for name, m := range map[string]Masks{"shared without its schema": {"country.name": "''"}, "a key": {"page.id": "1"}, "nothing": {"page.x": "1"}} {
		if err := m.Check(t.Context(), s); !errors.Is(err, ErrMask) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func testSchemaMerge(t *testing.T, pg *pgtest.Cluster) {
	for name, harm := range map[string]string{
		"changed": `ALTER TABLE "Ca""n; --".page DISABLE TRIGGER ALL; DELETE FROM "Ca""n; --"."Ver.sion" WHERE page < 15; DELETE FROM "Ca""n; --".page WHERE id < 5; UPDATE "Ca""n; --".page SET note = 'wrong'; ALTER TABLE "Ca""n; --".page ENABLE TRIGGER ALL`,
		"gone":    `DROP SCHEMA "Ca""n; --" CASCADE`,
	} {
		pg.Exec(`DROP DATABASE IF EXISTS aside WITH (FORCE)`)
		build(t, pg).Close(t.Context())
		pg.Exec(`CREATE DATABASE aside TEMPLATE street`)
		live, aside := pg.Conn("street"), pg.Conn("aside")
		want := dump(pg, "aside")
		run(t, live, harm)
		before := marked(dump(pg, "street"), "other", true)
		v, s := cut(t, aside, Layout{Kind: Schema, Database: "aside"}, victim)
		shown, err := Compare(t.Context(), live, bySchema, s)
		noErr(t, err)
		done, err := Merge(t.Context(), live, bySchema, s, func() ([]byte, error) {
			return []byte(pg.Run("pg_dump", append(postgres.OwnDumpArgs("", []string{victim}, nil), "-d", pg.DSN("aside"))...)), nil
		})
		noErr(t, err)
		after := dump(pg, "street")
		if got, want := marked(after, "canary", true), marked(want, "canary", true); !slices.Equal(got, want) {
			t.Errorf("%s: the project is\n%v, want\n%v", name, got, want)
		}
		if got := marked(after, "other", true); !slices.Equal(got, before) {
			t.Errorf("%s: the neighbour is\n%v, want\n%v", name, got, before)
		}
		if !slices.Equal(shown, done.Changes) || done.Made != (name == "gone") || len(done.Views) > 0 {
			t.Errorf("%s: shown %v, done %+v", name, shown, done)
		}
		var at, n int64
		noErr(t, live.QueryRow(t.Context(), `SELECT (SELECT last_value FROM "Ca""n; --".ticket), (SELECT n FROM "Ca""n; --".digest)`).Scan(&at, &n))
		if at != 7 || n != 20 {
			t.Errorf("%s: the sequence stands at %d, the view has %d", name, at, n)
		}
		noErr(t, v.Close(t.Context()))
		aside.Close(t.Context())
		live.Close(t.Context())
	}
}

// flats are databases that are projects.
func flats(t *testing.T, pg *pgtest.Cluster) {
	t.Helper()
	for name, word := range map[string]string{victim: "canary", neighbour: "other"} {
		quoted := pgx.Identifier{name}.Sanitize()
		pg.Exec(`DROP DATABASE IF EXISTS ` + quoted + ` WITH (FORCE)`)
		pg.Exec(`CREATE DATABASE ` + quoted)
		conn := pg.Conn(name)
		run(t, conn, street+fmt.Sprintf(house, "app", word, "'app'"))
		conn.Close(t.Context())
	}
}

func testDatabaseReplay(t *testing.T, pg *pgtest.Cluster) {
	flats(t, pg)
	pg.Exec(`ALTER DATABASE "Ca""n; --" IS_TEMPLATE true`)
	busy := pg.Conn(victim)
	run(t, busy, `BEGIN; INSERT INTO country VALUES ('xx', 'x'); PREPARE TRANSACTION 'half'`)
	run(t, busy, `ALTER DATABASE "Ca""n; --" SET search_path = evil, pg_catalog; CREATE SCHEMA evil; CREATE VIEW evil.pg_prepared_xacts AS SELECT 1 / 0 AS gid, '' AS database`)
	run(t, busy, `CREATE SUBSCRIPTION sub CONNECTION 'host=/nowhere' PUBLICATION p WITH (connect = false)`)
	pg.Exec(`ALTER DATABASE "Ca""n; --" ALLOW_CONNECTIONS false`)
	k := keysOf(t)
	tombs := []catalog.Tombstone{grave(k, byDatabase, "t1", victim), grave(k, byDatabase, "t2", "nobody")}
	applied, err := Replay(t.Context(), connector(pg), tombs, of(k))
	noErr(t, err)
	if len(applied) != 2 || !applied[0].Found || applied[1].Found || !slices.Contains(applied[0].Counts, catalog.Count{Table: "app.page", Rows: 20}) {
		t.Errorf("applied %+v", applied)
	}
	left := pgtest.Value[string](pg, `SELECT string_agg(datname, ' ' ORDER BY datname) FROM pg_database WHERE datname IN ($1, $2)`, victim, neighbour)
	if left != neighbour {
		t.Errorf("databases left: %s", left)
	}
	if !strings.Contains(dump(pg, neighbour), "other20") {
		t.Error("the neighbour lost rows")
	}
}

func testDatabaseLive(t *testing.T, pg *pgtest.Cluster) {
	flats(t, pg)
	conn := pg.Conn("postgres")
	k := keysOf(t)
	counts, err := Count(t.Context(), conn, byDatabase, victim)
	noErr(t, err)
	if !slices.Contains(counts, catalog.Count{Table: "app.page", Rows: 20}) || !slices.Contains(counts, catalog.Count{Table: "public.country", Rows: 2}) {
		t.Errorf("counts %v", counts)
	}
	tomb := grave(k, byDatabase, "t1", victim, counts...)
	look := lookAt(t, conn, tomb, k)
	if seen := look(Memo{}); seen.State != Present {
		t.Fatalf("before: %+v", seen)
	}
	busy := pg.Conn(victim)
	if _, err := Erase(t.Context(), conn, byDatabase, victim); err == nil || strings.Contains(err.Error(), victim) || !strings.Contains(err.Error(), "session") {
		t.Errorf("a database in use: %v", err)
	}
	busy.Close(t.Context())
	_, err = Erase(t.Context(), conn, byDatabase, victim)
	noErr(t, err)
	first := look(Memo{})
	if first.State != Residue || first.Memo.GoneAt.IsZero() || !slices.Contains(first.Waiting, "pg_catalog.pg_database") {
		t.Fatalf("after: %+v", first)
	}
	run(t, conn, "VACUUM")
	if seen := look(first.Memo); seen.State != Absent {
		t.Fatalf("after a vacuum: %+v", seen)
	}
	if _, err := Erase(t.Context(), conn, byDatabase, victim); !errors.Is(err, ErrNoProject) {
		t.Errorf("again: %v", err)
	}
}

// testRenamed: one that was renamed since its tombstone is not gone from live, and one
// that was renamed before it is found in copies from before.
func testRenamed(t *testing.T, pg *pgtest.Cluster) {
	k := keysOf(t)
	build(t, pg).Close(t.Context())
	flats(t, pg)
	system := pgtest.Value[string](pg, `SELECT system_identifier::text FROM pg_control_system()`)
	for _, l := range []Layout{bySchema, byDatabase} {
		in, rename := "street", `ALTER SCHEMA "Ca""n; --" RENAME TO "other name"`
		if l.Kind == Database {
			in, rename = "postgres", `ALTER DATABASE "Ca""n; --" RENAME TO "other name"`
		}
		conn := pg.Conn(in)
		tomb := grave(k, l, "t1", victim)
		var err error
		tomb.OID, err = ObjectID(t.Context(), conn, l, victim)
		noErr(t, err)
		tomb.SystemID, tomb.Timeline = system, 1
		run(t, conn, rename)
		if seen := lookAt(t, conn, tomb, k)(Memo{}); seen.State != Present {
			t.Errorf("%s: %+v", l.Kind, seen)
		}
		later := tomb
		later.Timeline = 2
		if seen := lookAt(t, conn, later, k)(Memo{}); seen.State != Residue {
			t.Errorf("%s: of another timeline: %+v", l.Kind, seen)
		}
		elsewhere := tomb
		elsewhere.SystemID = "1"
		if applied, err := Replay(t.Context(), connector(pg), []catalog.Tombstone{elsewhere}, of(k)); err != nil || applied[0].Found {
			t.Errorf("%s: of another system: %+v, %v", l.Kind, applied, err)
		}
		again := grave(k, l, "t2", "other name") // asked for anew under the new name
		if applied, err := Replay(t.Context(), connector(pg), []catalog.Tombstone{tomb, again}, of(k)); err != nil || !applied[0].Found || len(applied[0].Gone) != 1 || !applied[1].Found {
			t.Errorf("%s: %+v, %v", l.Kind, applied, err)
		}
		if _, err := ObjectID(t.Context(), conn, l, "other name"); !errors.Is(err, ErrNoProject) {
			t.Errorf("%s is there still: %v", l.Kind, err)
		}
		conn.Close(t.Context())
	}
}

func testReserved(t *testing.T, pg *pgtest.Cluster) {
	conn := build(t, pg)
	for _, name := range []string{"pg_catalog", "information_schema", "pg_toast"} {
		if _, err := Erase(t.Context(), conn, bySchema, name); !errors.Is(err, ErrNoProject) {
			t.Errorf("schema %s: %v", name, err)
		}
	}
	for _, name := range []string{"postgres", "template0", "template1"} {
		if _, err := Erase(t.Context(), conn, byDatabase, name); !errors.Is(err, ErrNoProject) {
			t.Errorf("database %s: %v", name, err)
		}
	}
}
