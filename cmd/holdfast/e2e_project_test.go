package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/tenancy/portable"
)

// hostile is a schema with every kind of reference, and with names and types that
// break whoever does not quote. Projects are text, their names hostile as well.
const hostile = `
CREATE SCHEMA "We""ird; --";
SET search_path = "We""ird; --", public;
CREATE TYPE "St'ate" AS ENUM ('dra''ft', 'li"ve', E'ta\tb');
CREATE DOMAIN short AS text CHECK (length(value) < 200);
CREATE TABLE country (code text PRIMARY KEY, name text);
CREATE TABLE plan (id int PRIMARY KEY, country text REFERENCES country);
CREATE TABLE "Pro ject" ("Id" text PRIMARY KEY, name text NOT NULL, plan int REFERENCES plan, owner bigint, parent text REFERENCES "Pro ject" ON DELETE SET NULL);
CREATE TABLE member (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, project text NOT NULL REFERENCES "Pro ject", "e-mail" short, loud text GENERATED ALWAYS AS (upper("e-mail")) STORED, UNIQUE (project, id));
ALTER TABLE "Pro ject" ADD FOREIGN KEY (owner) REFERENCES member DEFERRABLE INITIALLY DEFERRED;
CREATE TABLE doc (project text REFERENCES "Pro ject", nr int, author bigint, "select" "St'ate", at timestamptz, span interval, raw bytea, f float8, j json, tags text[], PRIMARY KEY (project, nr),
	FOREIGN KEY (project, author) REFERENCES member (project, id) DEFERRABLE);
CREATE TABLE note (id serial PRIMARY KEY, project text, doc int, reply_to int REFERENCES note, body text, FOREIGN KEY (project, doc) REFERENCES doc);
CREATE TABLE a (id int PRIMARY KEY, b int, note int REFERENCES note);
CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a);
ALTER TABLE a ADD FOREIGN KEY (b) REFERENCES b DEFERRABLE INITIALLY DEFERRED;
CREATE TABLE part (id int, note int REFERENCES note ON DELETE CASCADE, v text, gone int, PRIMARY KEY (id)) PARTITION BY RANGE (id);
CREATE TABLE part_low PARTITION OF part FOR VALUES FROM (0) TO (5000);
CREATE TABLE "part HIGH" (v text, note int, gone int, id int NOT NULL);
ALTER TABLE part ATTACH PARTITION "part HIGH" FOR VALUES FROM (5000) TO (1000000);
ALTER TABLE part DROP COLUMN gone;
CREATE TABLE tag (part int REFERENCES part, v text); -- no key of its own
CREATE TABLE trace (id int, project text);           -- no foreign key
CREATE MATERIALIZED VIEW digest AS SELECT project, count(*) FROM doc GROUP BY 1;
CREATE FUNCTION forbid() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'a trigger fired'; END $$;
INSERT INTO country VALUES ('it', 'Italia'), ('xx', 'nobody''s');
INSERT INTO plan VALUES (1, 'it'), (2, NULL);
`

// guard makes every table's triggers fail, once it is filled.
const guard = `DO $$ DECLARE t regclass; BEGIN
FOR t IN SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname LIKE 'We%' AND c.relkind IN ('r', 'p') AND NOT c.relispartition LOOP
EXECUTE format('CREATE TRIGGER forbid BEFORE INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW EXECUTE FUNCTION "We""ird; --".forbid()', t); END LOOP; END $$`

// projectKeys are the keys of hostile projects; more are added by number.
var projectKeys = []string{"A'1", `B"; DROP TABLE x; --`, "C\tÄ\\n", "../d", "7"}

// fillHostile gives each of n projects rows by chance.
func fillHostile(t *testing.T, pg *pgtest.Cluster, n int, rnd *rand.Rand) []string {
	t.Helper()
	conn := pg.Conn("postgres")
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	exec(hostile)
	exec(`SET search_path = "We""ird; --"`)
	keys := slices.Clone(projectKeys)
	for i := len(keys); i < n; i++ {
		keys = append(keys, fmt.Sprint("p", i))
	}
	keys = keys[:n]
	id := 0
	next := func() int { id++; return id }
	for i, k := range keys {
		exec(`INSERT INTO "Pro ject" VALUES ($1, $2, $3, NULL, NULL)`, k, "name of "+k, 1+i%2)
		exec(`INSERT INTO member (project, "e-mail") SELECT $1, 'm' || g || '@' || $2 FROM generate_series(1, 2) g`, k, k)
		exec(`UPDATE "Pro ject" SET owner = (SELECT min(id) FROM member WHERE project = $1), parent = CASE WHEN $2 = '' THEN NULL ELSE $2 END WHERE "Id" = $1`, k, map[bool]string{true: keys[max(0, i-1)]}[i%3 == 2])
		docs := 1 + rnd.IntN(4)
		for d := range docs {
			exec(`INSERT INTO doc VALUES ($1, $2, (SELECT max(id) FROM member WHERE project = $1), (ARRAY['dra''ft','li"ve',E'ta\tb'])[$3]::"St'ate", clock_timestamp(), '1 mon 2 days 03:04:05.6', decode($4, 'hex'), $5, $6, $7)`,
				k, d, 1+rnd.IntN(3), hex.EncodeToString([]byte{0, byte(d), '\\', '\n'}), rnd.Float64(), "{\n \"a\\n\":\t1e400}", []string{"x", "", "NULL", `"\`})
			prev := any(nil)
			for range 1 + rnd.IntN(5) {
				var note int
				if err := conn.QueryRow(t.Context(), `INSERT INTO note (project, doc, reply_to, body) VALUES ($1, $2, $3, $4) RETURNING id`, map[bool]any{true: k}[prev == nil], d, prev, "body \\. \t\n\r "+k+" é").Scan(&note); err != nil {
					t.Fatal(err)
				}
				prev = note
				low, high := next(), 5000+next()
				exec(`INSERT INTO part (id, note, v) VALUES ($1, $3, $4), ($2, $3, $4)`, low, high, note, "\\N"+k)
				exec(`INSERT INTO tag SELECT x, 't' FROM unnest(ARRAY[$1::int, $2, $2]) x`, low, high)
				x := next()
				exec(`BEGIN`)
				exec(`INSERT INTO a VALUES ($1, $1, $2)`, x, note)
				exec(`INSERT INTO b VALUES ($1, $1)`, x)
				exec(`COMMIT`)
			}
		}
		exec(`INSERT INTO trace VALUES ($1, $2)`, next(), k)
	}
	exec(guard)
	exec(`REFRESH MATERIALIZED VIEW digest; ANALYZE`)
	return keys
}

const hostileProjects = `    retention: {window: 7d, daily: 7, keep_at_least: 7d, keep_at_most: 30d}
    projects:
      layout: rows
      registry: "SELECT \"Id\", name FROM \"We\"\"ird; --\".\"Pro ject\""
      rows: {database: postgres, root: "\"We\"\"ird; --\".\"Pro ject\"", key: Id}
`

// hostileOf is every row of a project, found without Holdfast, table by table; the
// empty key gives all rows of all projects.
func hostileOf(t *testing.T, conn *pgx.Conn, key string) map[string]string {
	t.Helper()
	const notes = `WITH RECURSIVE n AS (SELECT * FROM note WHERE project = $1 UNION SELECT c.* FROM note c JOIN n ON c.reply_to = n.id) SELECT id FROM n`
	out := map[string]string{}
	for table, where := range map[string]string{
		`"Pro ject"`: `"Id" = $1`, "member": "project = $1", "doc": "project = $1", "note": "id IN (" + notes + ")",
		"part": "note IN (" + notes + ")", "tag": "part IN (SELECT id FROM part WHERE note IN (" + notes + "))",
		"a": "note IN (" + notes + ")", "b": "a IN (SELECT id FROM a WHERE note IN (" + notes + "))",
	} {
		var rows string
		err := conn.QueryRow(t.Context(), fmt.Sprintf(`SELECT coalesce(string_agg(r::text, E'\n' ORDER BY r::text COLLATE "C"), '') FROM %s r WHERE $1 = '' OR %s`, table, where), key).Scan(&rows)
		if err != nil {
			t.Fatalf("%s: %v", table, err)
		}
		out[table] = rows
	}
	return out
}

func hostileConn(t *testing.T, conn *pgx.Conn) *pgx.Conn {
	t.Helper()
	if _, err := conn.Exec(t.Context(), `SET search_path = "We""ird; --"; SET TimeZone = 'UTC'; SET IntervalStyle = postgres`); err != nil {
		t.Fatal(err)
	}
	return conn
}

func same(t *testing.T, what string, got, want map[string]string) {
	t.Helper()
	for table := range want {
		if got[table] != want[table] {
			t.Errorf("%s: %s has\n%.2000s\nwant\n%.2000s", what, table, got[table], want[table])
		}
	}
}

func readJSON[T any](t *testing.T, path string) (doc T) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, &doc)
	}
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// checkFiles compares files of an export with what its manifest says of them.
func checkFiles(t *testing.T, dir string, m portable.Manifest) {
	t.Helper()
	files := []portable.File{}
	if m.DDL != nil {
		files = append(files, m.DDL.File)
	}
	for _, table := range m.Tables {
		if table.Rows > 0 {
			files = append(files, table.File)
		}
		if data, err := os.ReadFile(filepath.Join(dir, table.File.Name)); table.Rows > 0 && (err != nil || int64(bytes.Count(data, []byte("\n"))) != table.Rows) {
			t.Errorf("%s has %d lines, the manifest says %d rows (%v)", table.File.Name, bytes.Count(data, []byte("\n")), table.Rows, err)
		}
	}
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(dir, f.Name))
		if sum := sha256.Sum256(data); err != nil || int64(len(data)) != f.Bytes || hex.EncodeToString(sum[:]) != f.SHA256 {
			t.Errorf("%s: %d bytes (%v), the manifest says %+v", f.Name, len(data), err, f)
		}
	}
}

// A project is exported with hostile names in every place, and loaded by psql alone
// into a database that is made by the export's own DDL.
func TestAnExportedProjectIsLoadedByPsqlAlone(t *testing.T) {
	pg := pgtest.Start(t, pgtest.WithOwn("pg_dump"))
	keys := fillHostile(t, pg, 5, rand.New(rand.NewPCG(1, 2)))
	r := newRig(t, pg, false)
	r.cluster = hostileProjects
	r.configure()
	live := hostileConn(t, pg.Conn("postgres"))
	for i, key := range keys {
		dir := r.path(fmt.Sprint("export", i))
		doc := ask[exportDoc](r, "db", "project", "export", "cms", key, "--out", dir, "--binaries", pg.BinDir())
		m := readJSON[portable.Manifest](t, filepath.Join(dir, "manifest.json"))
		if len(doc.Projects) != 1 || m.Project.ID != key || m.Project.Name != "name of "+key || m.DDL == nil {
			t.Fatalf("exported %+v, manifest %+v", doc, m)
		}
		if !slices.Contains(m.NotCovered, `table "We""ird; --".trace`) {
			t.Errorf("not covered: %q", m.NotCovered)
		}
		checkFiles(t, dir, m)
		db := fmt.Sprint("loaded", i)
		pg.Exec("CREATE DATABASE " + db)
		loadByHand(t, pg, db, dir)
		conn := hostileConn(t, pg.Conn(db))
		same(t, "loaded "+key, hostileOf(t, conn, ""), hostileOf(t, live, key))
		var countries string
		if err := conn.QueryRow(t.Context(), `SELECT string_agg(code, ',') FROM country`).Scan(&countries); i%2 == 0 && (err != nil || countries != "it") {
			t.Errorf("the countries that the project needs are %q: %v", countries, err)
		}
		conn.Close(t.Context())
	}
	r.hold("db", exitRefused, "project", "export", "cms", keys[0], "--out", r.path("export0"))
	r.hold("db", exitFailed, "project", "export", "cms", "nobody", "--out", r.path("nothing"))
	if left, err := filepath.Glob(r.path(".holdfast-export-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if _, err := os.Stat(r.path("nothing")); err == nil {
		t.Error("an export that failed is there")
	}
	r.holdsNoProject(keys)
}

// holdsNoProject looks whether the ledger names a project.
func (r *rig) holdsNoProject(keys []string) {
	r.t.Helper()
	all := r.hold("db", 0, "--output", "json", "ledger", "show", "--last", "1000")
	if !strings.Contains(all, "project.exported") {
		r.t.Errorf("the ledger has no export: %s", all)
	}
	for _, k := range keys[:4] {
		quoted, _ := json.Marshal(k)
		if strings.Contains(all, strings.Trim(string(quoted), `"`)) {
			r.t.Errorf("the ledger names project %q", k)
		}
	}
}

// loadByHand does what the manifest's reader would, where PostgreSQL's user may read.
func loadByHand(t *testing.T, pg *pgtest.Cluster, db, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chmod(path, map[bool]os.FileMode{true: 0o755, false: 0o644}[d.IsDir()])
	})
	if err != nil {
		t.Fatal(err)
	}
	pg.Run("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", pg.DSN(db), "-f", filepath.Join(dir, "schema.sql"))
	pg.Run("psql", "-X", "-q", "-1", "-v", "ON_ERROR_STOP=1", "-d", pg.DSN(db), "-c", `\cd `+dir, "-f", filepath.Join(dir, "load.sql"))
}
