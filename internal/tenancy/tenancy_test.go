package tenancy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

func keysOf(t testing.TB) seal.DigestKeys {
	t.Helper()
	k, err := seal.NewDigestKeys(1)
	noErr(t, err)
	return k
}

func noErr(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// tricky is a schema with every kind of reference that has to be followed. Each
// row of project A says canary somewhere, those of others never.
const tricky = `
CREATE SCHEMA app;
CREATE TABLE app."Project" (id text PRIMARY KEY, name text NOT NULL, owner int, parent text REFERENCES app."Project" ON DELETE SET NULL);
CREATE TABLE app.member (id int PRIMARY KEY, project text NOT NULL REFERENCES app."Project", note text, UNIQUE (project, id));
ALTER TABLE app."Project" ADD FOREIGN KEY (owner) REFERENCES app.member;                    -- a cycle with the root
CREATE TABLE app.doc (project text REFERENCES app."Project", nr int, author int, note text, PRIMARY KEY (project, nr),
	FOREIGN KEY (project, author) REFERENCES app.member (project, id));                        -- two ways, one composite
CREATE TABLE app.comment (id int PRIMARY KEY, project text, doc int, reply_to int REFERENCES app.comment, note text,
	FOREIGN KEY (project, doc) REFERENCES app.doc);                                            -- refers to itself
CREATE TABLE app.a (id int PRIMARY KEY, b int, comment int REFERENCES app.comment, note text);
CREATE TABLE app.b (id int PRIMARY KEY, a int REFERENCES app.a, note text);
ALTER TABLE app.a ADD FOREIGN KEY (b) REFERENCES app.b DEFERRABLE INITIALLY DEFERRED;          -- a cycle away from the root
CREATE TABLE app.version (id int, comment int REFERENCES app.comment ON DELETE CASCADE, note text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
CREATE TABLE app.version_low PARTITION OF app.version FOR VALUES FROM (0) TO (100);
CREATE TABLE app.version_high PARTITION OF app.version FOR VALUES FROM (100) TO (1000);
CREATE TABLE app.version_tag (version int REFERENCES app.version, note text);                  -- refers to a partitioned table
CREATE TABLE app.only_high (version int REFERENCES app.version_high, note text);               -- refers to one partition
CREATE TABLE app.invoice (id int PRIMARY KEY, doc_project text, doc int, note text,
	FOREIGN KEY (doc_project, doc) REFERENCES app.doc ON DELETE SET NULL);                     -- outlives
CREATE TABLE app.trace (id int PRIMARY KEY, project text, note text);                          -- no foreign key
CREATE MATERIALIZED VIEW app.digest AS SELECT project, string_agg(note, ' ') notes FROM app.comment GROUP BY project;
CREATE FUNCTION app.forbid() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'a trigger fired'; END $$;
CREATE TRIGGER forbid BEFORE DELETE ON app.doc FOR EACH ROW EXECUTE FUNCTION app.forbid();

INSERT INTO app."Project" VALUES ('A''1', 'canary'), ('B', 'other');
INSERT INTO app.member VALUES (1, 'A''1', 'canary'), (2, 'A''1', 'canary'), (3, 'B', 'other');
UPDATE app."Project" SET owner = 1 WHERE id = 'A''1';
UPDATE app."Project" SET owner = 2, parent = 'A''1' WHERE id = 'B';
INSERT INTO app.doc VALUES ('A''1', 1, 1, 'canary'), ('A''1', 2, NULL, 'canary'), ('B', 1, 3, 'other'), ('B', 2, NULL, 'other');
INSERT INTO app.comment VALUES (1, 'A''1', 1, NULL, 'canary'), (2, NULL, NULL, 1, 'canary'), (3, NULL, NULL, 2, 'canary'), (9, 'B', 1, NULL, 'other'), (10, NULL, NULL, 9, 'other');
BEGIN;
INSERT INTO app.a VALUES (1, NULL, 3, 'canary'), (2, 2, NULL, 'canary'), (8, 9, NULL, 'other');
INSERT INTO app.b VALUES (1, 1, 'canary'), (2, 2, 'canary'), (9, 8, 'other');
UPDATE app.a SET b = 1 WHERE id = 2;
COMMIT;
INSERT INTO app.version VALUES (1, 1, 'canary'), (100, 3, 'canary'), (2, 9, 'other'), (101, 10, 'other');
INSERT INTO app.version_tag VALUES (1, 'canary'), (100, 'canary'), (101, 'other');
INSERT INTO app.only_high VALUES (100, 'canary'), (101, 'other');
INSERT INTO app.invoice VALUES (1, 'A''1', 1, 'kept'), (2, 'B', 1, 'other');
INSERT INTO app.trace VALUES (1, 'B', 'other');
REFRESH MATERIALIZED VIEW app.digest;`

var layout = Layout{Kind: Rows, Database: "shop", Root: `app."Project"`, Key: "id"}

// shop makes the database shop anew in pg, which the tests of this package share.
func shop(t *testing.T, pg *pgtest.Cluster) *pgx.Conn {
	t.Helper()
	pg.Exec(`DROP DATABASE IF EXISTS shop WITH (FORCE)`)
	pg.Exec(`CREATE DATABASE shop`)
	conn := pg.Conn("shop")
	_, err := conn.Exec(t.Context(), tricky)
	noErr(t, err)
	return conn
}

func connector(pg *pgtest.Cluster) Connector {
	return func(ctx context.Context, db string) (*pgx.Conn, error) { return pgx.Connect(ctx, pg.DSN(db)) }
}

func grave(k seal.DigestKeys, l Layout, id, text string, counts ...catalog.Count) catalog.Tombstone {
	return catalog.Tombstone{
		ID: id, Cluster: "main", Layout: l.Kind, Database: l.Database, Root: l.Root, Key: l.Key,
		KeyMAC: MAC(k, "main", l, text), DigestEpoch: k.Epoch, Counts: counts,
	}
}

func of(keys ...seal.DigestKeys) func(int) (seal.DigestKeys, error) {
	return func(epoch int) (seal.DigestKeys, error) {
		for _, k := range keys {
			if k.Epoch == epoch {
				return k, nil
			}
		}
		return seal.DigestKeys{}, errors.New("no such epoch")
	}
}

// dump is every row of every table of a database, as pg_dump sees it.
func dump(pg *pgtest.Cluster, db string) string {
	var rows []string
	for line := range strings.Lines(pg.Run("pg_dump", "--data-only", "--inserts", "-d", pg.DSN(db))) {
		if strings.HasPrefix(line, "INSERT") {
			rows = append(rows, line)
		}
	}
	return strings.Join(rows, "")
}

func others(s string) (out []string) {
	for line := range strings.Lines(s) {
		if !strings.Contains(line, "canary") {
			out = append(out, line)
		}
	}
	slices.Sort(out)
	return out
}

var everyRow = []catalog.Count{
	{Table: `app."Project"`, Rows: 1},
	{Table: "app.a", Rows: 2},
	{Table: "app.b", Rows: 2},
	{Table: "app.comment", Rows: 3},
	{Table: "app.doc", Rows: 2},
	{Table: "app.member", Rows: 2},
	{Table: "app.only_high", Rows: 1},
	{Table: "app.version_high", Rows: 1},
	{Table: "app.version_low", Rows: 1},
	{Table: "app.version_tag", Rows: 2},
}

func byTable(counts []catalog.Count) []catalog.Count {
	counts = slices.Clone(counts)
	slices.SortFunc(counts, func(a, b catalog.Count) int { return strings.Compare(a.Table, b.Table) })
	return counts
}

func TestRowsOfAProject(t *testing.T) {
	pg := pgtest.Start(t, pgtest.WithOwn("pg_dump"), pgtest.WithSetting("autovacuum", "off"))
	for name, test := range map[string]func(*testing.T, *pgtest.Cluster){
		"registry lists projects and cannot write":                  testProjects,
		"count follows every foreign key and changes nothing":       testCount,
		"replay leaves no row in any table and no other row is hit": testReplay,
		"replay can be repeated":                                    testReplayTwice,
		"a missing root table fails closed":                         testMissingRoot,
		"a deletion that would leave rows is undone":                testUndone,
		"live: present, residue until vacuumed, absent":             testLive,
		"a reused key is present again":                             testReused,
		"what no foreign key ties is told":                          testNotCovered,
		"long chains of replies are followed":                       testChain,
		"NOT NULL reference of another project's root is refused":   testForeignRoot,
	} {
		t.Run(name, func(t *testing.T) { test(t, pg) })
	}
}

func testProjects(t *testing.T, pg *pgtest.Cluster) {
	conn := shop(t, pg)
	list, err := Projects(t.Context(), conn, `SELECT id::text, name FROM app."Project" ORDER BY 1`)
	noErr(t, err)
	if want := []Project{{"A'1", "canary"}, {"B", "other"}}; !slices.Equal(list, want) {
		t.Errorf("projects %v, want %v", list, want)
	}
	for _, sql := range []string{`SELECT 1`, `SELECT id, NULL::text FROM app."Project"`, `DELETE FROM app.trace RETURNING id::text, note`, `SELECT nonsense`} {
		if _, err := Projects(t.Context(), conn, sql); err == nil {
			t.Errorf("%s: no error", sql)
		}
	}
}

func testCount(t *testing.T, pg *pgtest.Cluster) {
	conn := shop(t, pg)
	before := dump(pg, "shop")
	counts, err := Count(t.Context(), conn, layout, "A'1")
	noErr(t, err)
	if got := byTable(counts); !slices.Equal(got, everyRow) {
		t.Errorf("counts\n%v, want\n%v", got, everyRow)
	}
	if last := counts[len(counts)-1].Table; last != `app."Project"` {
		t.Errorf("the last table is %s, want the root: children first", last)
	}
	if none, err := Count(t.Context(), conn, layout, "nobody"); !errors.Is(err, ErrNoProject) || len(none) != 0 {
		t.Errorf("nobody: %v, %v", none, err)
	}
	if dump(pg, "shop") != before {
		t.Error("counting changed rows")
	}
}

func testReplay(t *testing.T, pg *pgtest.Cluster) {
	conn := shop(t, pg)
	before := dump(pg, "shop")
	k := keysOf(t)
	applied, err := Replay(t.Context(), connector(pg), []catalog.Tombstone{grave(k, layout, "t1", "A'1"), grave(k, layout, "t2", "nobody")}, of(k))
	noErr(t, err)
	if len(applied) != 2 || !applied[0].Found || applied[1].Found || !slices.Equal(byTable(applied[0].Counts), everyRow) {
		t.Errorf("applied %+v", applied)
	}
	after := dump(pg, "shop")
	if strings.Contains(after, "canary") {
		t.Errorf("rows of the project remain:\n%s", after)
	}
	// Rows that stay are as they were, but for the references that were cleared.
	want := others(before)
	for i, l := range want {
		l = strings.Replace(l, `VALUES ('B', 'other', 2, 'A''1')`, `VALUES ('B', 'other', NULL, NULL)`, 1)
		want[i] = strings.Replace(l, `VALUES (1, 'A''1', 1, 'kept')`, `VALUES (1, NULL, NULL, 'kept')`, 1)
	}
	slices.Sort(want)
	if got := others(after); !slices.Equal(got, want) {
		t.Errorf("other rows are\n%v, want\n%v", got, want)
	}
	var notes string
	noErr(t, conn.QueryRow(t.Context(), `SELECT string_agg(notes, ' ') FROM app.digest`).Scan(&notes))
	if strings.Contains(notes, "canary") {
		t.Error("the materialized view still has the project")
	}
	var unswept *string
	noErr(t, conn.QueryRow(t.Context(), `SELECT string_agg(relname, ' ') FROM pg_stat_user_tables
		WHERE vacuum_count = 0 AND relname IN ('Project', 'a', 'doc', 'version_low')`).Scan(&unswept))
	if unswept != nil {
		t.Errorf("not vacuumed: %s", *unswept)
	}
}

func testReplayTwice(t *testing.T, pg *pgtest.Cluster) {
	shop(t, pg)
	k := keysOf(t)
	missing := layout
	missing.Database = "not_yet_created"
	tombs := []catalog.Tombstone{grave(k, layout, "t1", "A'1"), grave(k, missing, "t0", "A'1")}
	for i, found := range []bool{true, false} {
		applied, err := Replay(t.Context(), connector(pg), tombs, of(k))
		noErr(t, err)
		if len(applied) != 2 || applied[0].ID != "t0" || applied[0].Found || applied[1].Found != found {
			t.Errorf("round %d: %+v", i, applied)
		}
	}
}

func testMissingRoot(t *testing.T, pg *pgtest.Cluster) {
	shop(t, pg)
	k := keysOf(t)
	for name, l := range map[string]Layout{
		"no table":   {Rows, "shop", "app.nothing", "id"},
		"no column":  {Rows, "shop", `app."Project"`, "ID"},
		"no schema":  {Rows, "shop", "nothing.project", "id"},
		"not quoted": {Rows, "shop", "app.Project", "id"},
		"injected":   {Rows, "shop", `app."Project"; DROP TABLE app.trace`, "id"},
	} {
		if _, err := Replay(t.Context(), connector(pg), []catalog.Tombstone{grave(k, l, "t1", "A'1")}, of(k)); err == nil {
			t.Errorf("%s: no error", name)
		} else if name != "injected" && !errors.Is(err, ErrNoRoot) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, l := range []Layout{{Kind: "table", Database: "shop"}, {Kind: Schema}, {Kind: Rows, Database: "shop"}} {
		if _, err := Replay(t.Context(), connector(pg), []catalog.Tombstone{grave(k, l, "t1", "A'1")}, of(k)); err == nil {
			t.Errorf("%+v: no error", l)
		}
	}
	other, err := seal.NewDigestKeys(7)
	noErr(t, err)
	if _, err := Replay(t.Context(), connector(pg), []catalog.Tombstone{grave(other, layout, "t1", "A'1")}, of(k)); err == nil {
		t.Error("replay without the keys of the tombstone's epoch succeeded")
	}
}

func testUndone(t *testing.T, pg *pgtest.Cluster) {
	conn := shop(t, pg)
	before := dump(pg, "shop")
	// A trigger that fires whatever session_replication_role says keeps a row.
	_, err := conn.Exec(t.Context(), `CREATE FUNCTION app.keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
		CREATE TRIGGER keep BEFORE DELETE ON app.b FOR EACH ROW EXECUTE FUNCTION app.keep(); ALTER TABLE app.b ENABLE ALWAYS TRIGGER keep`)
	noErr(t, err)
	k := keysOf(t)
	if _, err := Replay(t.Context(), connector(pg), []catalog.Tombstone{grave(k, layout, "t1", "A'1")}, of(k)); !errors.Is(err, ErrRemains) {
		t.Errorf("error %v, want ErrRemains", err)
	}
	if dump(pg, "shop") != before {
		t.Error("a deletion that failed changed rows")
	}
}

func testLive(t *testing.T, pg *pgtest.Cluster) {
	conn := shop(t, pg)
	k := keysOf(t)
	tomb := grave(k, layout, "t1", "A'1", everyRow...)
	look := func(m Memo) Seen {
		t.Helper()
		seen, err := Live(t.Context(), conn, tomb, k, m)
		noErr(t, err)
		return seen
	}
	if seen := look(Memo{}); seen.State != Present || len(seen.Counts) != len(everyRow) || seen.LSN == 0 || seen.Timeline != 1 {
		t.Fatalf("before: %+v", seen)
	}
	noErr(t, pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
		_, err := Delete(t.Context(), tx, layout, "A'1")
		return err
	}))
	first := look(Memo{})
	if first.State != Residue || first.Memo.GoneAt.IsZero() || len(first.Waiting) == 0 {
		t.Fatalf("after the deletion: %+v", first)
	}
	if !slices.Equal(first.Memo.Waiting, first.Waiting) {
		t.Errorf("what is waited for is not remembered: %+v", first)
	}
	// Rows of it had references that the deletion cleared; the server's books tell a little later.
	for told, end := false, time.Now().Add(pgtest.Patience); !told; {
		noErr(t, conn.QueryRow(t.Context(), `SELECT n_tup_upd > 0 FROM pg_stat_user_tables WHERE relid = 'app.invoice'::regclass`).Scan(&told))
		if !told && time.Now().After(end) {
			t.Fatal("the server's books tell nothing of app.invoice")
		}
	}
	if later := look(first.Memo); !slices.Contains(later.Waiting, "app.invoice") {
		t.Errorf("old versions of rows whose references were cleared are not waited for: %+v", later)
	}
	if again := look(first.Memo); again.State != Residue || !again.Memo.GoneAt.Equal(first.Memo.GoneAt) {
		t.Fatalf("without a vacuum: %+v", again)
	}
	_, err := conn.Exec(t.Context(), `VACUUM app.doc`)
	noErr(t, err)
	if some := look(first.Memo); some.State != Residue || slices.Contains(some.Waiting, "app.doc") || !slices.Contains(some.Vacuumed, "app.doc") {
		t.Fatalf("after one vacuum: %+v", some)
	}
	_, err = conn.Exec(t.Context(), `VACUUM; `)
	noErr(t, err)
	if seen := look(first.Memo); seen.State != Absent || len(seen.Waiting) > 0 {
		t.Fatalf("after a vacuum of everything: %+v", seen)
	}
	// An open snapshot keeps deleted rows: a vacuum beside it proves nothing.
	holdOpen(t, pg, conn, tomb, k)
}

func holdOpen(t *testing.T, pg *pgtest.Cluster, conn *pgx.Conn, tomb catalog.Tombstone, k seal.DigestKeys) {
	old := pg.Conn("shop")
	tx, err := old.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	noErr(t, err)
	noErr(t, tx.QueryRow(t.Context(), `SELECT count(*) FROM app.member`).Scan(new(int)))
	_, err = conn.Exec(t.Context(), `DELETE FROM app.version_tag`)
	noErr(t, err)
	first, err := Live(t.Context(), conn, tomb, k, Memo{})
	noErr(t, err)
	_, err = conn.Exec(t.Context(), `VACUUM`)
	noErr(t, err)
	if seen, err := Live(t.Context(), conn, tomb, k, first.Memo); err != nil || seen.State != Residue || !slices.Equal(seen.Waiting, []string{"app.version_tag"}) {
		t.Errorf("with an old snapshot: %+v, %v", seen, err)
	}
	noErr(t, tx.Rollback(t.Context()))
	_, err = conn.Exec(t.Context(), `VACUUM`)
	noErr(t, err)
	if seen, err := Live(t.Context(), conn, tomb, k, first.Memo); err != nil || seen.State != Absent {
		t.Errorf("after it: %+v, %v", seen, err)
	}
}

func testReused(t *testing.T, pg *pgtest.Cluster) {
	conn := shop(t, pg)
	k := keysOf(t)
	tomb := grave(k, layout, "t1", "A'1")
	noErr(t, pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
		_, err := Delete(t.Context(), tx, layout, "A'1")
		return err
	}))
	_, err := conn.Exec(t.Context(), `INSERT INTO app."Project" VALUES ('A''1', 'a new one')`)
	noErr(t, err)
	seen, err := Live(t.Context(), conn, tomb, k, Memo{GoneAt: time.Now()})
	noErr(t, err)
	if seen.State != Present || !slices.Equal(seen.Counts, []catalog.Count{{Table: `app."Project"`, Rows: 1}}) {
		t.Errorf("seen %+v", seen)
	}
}

func testNotCovered(t *testing.T, pg *pgtest.Cluster) {
	conn := shop(t, pg)
	_, err := conn.Exec(t.Context(), `CREATE TABLE app.doc_kid () INHERITS (app.doc)`)
	noErr(t, err)
	list, err := NotCovered(t.Context(), conn, layout)
	noErr(t, err)
	want := []string{"materialized view app.digest", "table app.doc_kid", "table app.trace"}
	if !slices.Equal(list, want) {
		t.Errorf("not covered: %v, want %v", list, want)
	}
	tables, err := Dependents(t.Context(), conn, layout)
	noErr(t, err)
	if len(tables) != len(everyRow) || tables[0].Name != `app."Project"` || tables[0].Depth != 0 {
		t.Errorf("dependents: %v", tables)
	}
}

func testChain(t *testing.T, pg *pgtest.Cluster) {
	conn := shop(t, pg)
	_, err := conn.Exec(t.Context(), `INSERT INTO app.comment SELECT i, NULL, NULL, CASE i WHEN 1000 THEN 1 ELSE i - 1 END, 'canary' FROM generate_series(1000, 1299) i`)
	noErr(t, err)
	counts, err := Count(t.Context(), conn, layout, "A'1")
	noErr(t, err)
	if !slices.Contains(counts, catalog.Count{Table: "app.comment", Rows: 303}) {
		t.Errorf("counts %v", counts)
	}
}

func testForeignRoot(t *testing.T, pg *pgtest.Cluster) {
	conn := shop(t, pg)
	_, err := conn.Exec(t.Context(), `ALTER TABLE app."Project" ALTER owner SET NOT NULL`)
	noErr(t, err)
	before := dump(pg, "shop")
	err = pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
		_, err := Delete(t.Context(), tx, layout, "A'1")
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "clearing references") {
		t.Errorf("error %v", err)
	}
	if dump(pg, "shop") != before {
		t.Error("a refused deletion changed rows")
	}
}

func TestMACTellsPlacesApart(t *testing.T) {
	k := keysOf(t)
	seen := map[string]string{}
	for _, l := range []Layout{layout, {Rows, "shop2", layout.Root, "id"}, {Rows, "shop", "app.other", "id"}, {Rows, "shop", layout.Root, "name"}} {
		for _, cluster := range []string{"main", "other"} {
			for _, text := range []string{"1", "11", ""} {
				m := MAC(k, cluster, l, text)
				what := fmt.Sprint(l, cluster, text)
				if before, dup := seen[m]; dup || len(m) != 32 {
					t.Errorf("%s and %s have MAC %s", before, what, m)
				}
				seen[m] = what
			}
		}
	}
	if MAC(k, "main", Layout{"", "shop", layout.Root, "id"}, "1") != MAC(k, "main", layout, "1") {
		t.Error("the default layout has another MAC than rows")
	}
}
