package main

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

// mistakes are what somebody did to a project by hand, with triggers off.
func mistakes(t *testing.T, conn *pgx.Conn, key string) {
	t.Helper()
	const notes = `WITH RECURSIVE n AS (SELECT * FROM note WHERE project = $1 UNION SELECT c.* FROM note c JOIN n ON c.reply_to = n.id) `
	for _, sql := range []string{
		`UPDATE doc SET "select" = 'li"ve', f = f + 1, raw = '\x00' WHERE project = $1`,
		notes + `DELETE FROM tag WHERE part IN (SELECT id FROM part WHERE note IN (SELECT id FROM n))`,
		notes + `, x AS (DELETE FROM b USING a WHERE b.a = a.id AND a.note IN (SELECT id FROM n) RETURNING b.a) DELETE FROM a WHERE id IN (SELECT a FROM x)`,
		`INSERT INTO note (project, doc, body) SELECT project, nr, 'a mistake' FROM doc WHERE project = $1`,
		`UPDATE "Pro ject" SET name = 'a mistake' WHERE "Id" = $1`,
	} {
		tx, err := conn.Begin(t.Context())
		if err == nil {
			if _, err = tx.Exec(t.Context(), `SET LOCAL session_replication_role = replica`); err == nil {
				_, err = tx.Exec(t.Context(), sql, key)
			}
			if err == nil {
				err = tx.Commit(t.Context())
			}
		}
		if err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
}

// One project comes back from a moment of the window: shown first, put into live
// while the others went on, or into a database of its own; and never after it was deleted.
func TestOneProjectIsRestoredAndTheOthersGoOn(t *testing.T) { // promise 7
	pg := pgtest.Start(t, pgtest.WithOwn("pg_dump"))
	keys := fillHostile(t, pg, 5, rand.New(rand.NewPCG(3, 4)))
	r := newRig(t, pg, false)
	r.cluster = hostileProjects
	r.configure()
	r.daemon("db")
	r.hold("db", 0, "snapshot", "take", "cms")
	live := hostileConn(t, pg.Conn("postgres"))
	victim, other, gone := keys[1], keys[0], keys[2]
	want, wantGone := hostileOf(t, live, victim), hostileOf(t, live, gone)
	at := pgtest.Value[time.Time](pg, "SELECT clock_timestamp()").Format(time.RFC3339Nano)
	mistakes(t, live, victim)
	mistakes(t, live, gone)
	mistakes(t, live, other)
	if _, err := live.Exec(t.Context(), `ALTER SEQUENCE note_id_seq RESTART`); err != nil {
		t.Fatal(err)
	}
	others := hostileOf(t, live, other)
	r.archived("a", "b", "c")

	restore := func(key string, more ...string) []string {
		return append([]string{"project", "restore", "cms", key, "--time", at, "--to", r.path("beside"), "--identity", r.path("drill/data.key"), "--binaries", pg.BinDir()}, more...)
	}
	t.Cleanup(func() { r.discard(r.path("beside")) })
	wrong := hostileOf(t, live, victim)
	shown := ask[putBackDoc](r, "db", restore(victim, "--into", "live", "--dry-run")...)
	byTable := map[string]string{}
	for _, c := range shown.Changes {
		byTable[strings.TrimPrefix(c.Table, `"We""ird; --".`)] = fmt.Sprint(c.Added > 0, c.Changed > 0, c.Removed > 0)
	}
	for table, want := range map[string]string{`"Pro ject"`: "false true false", "doc": "false true false", "note": "false false true", "a": "true false false", "b": "true false false", "tag": "true false false", "part": "false false false", "member": "false false false"} {
		if byTable[table] != want {
			t.Errorf("%s is shown as added, changed, removed %s, want %s", table, byTable[table], want)
		}
	}
	same(t, "after a dry run", hostileOf(t, live, victim), wrong)
	r.hold("db", exitRefused, restore(victim, "--into", "live")...) // nothing is typed
	same(t, "after nothing was typed", hostileOf(t, live, victim), wrong)

	done := ask[putBackDoc](r, "db", restore(victim, "--into", "live", "--yes")...)
	if !done.Applied || done.Expected != nil || len(done.Others) != len(done.Changes) || len(done.Restored) == 0 {
		t.Errorf("put back: %+v", done)
	}
	same(t, "put back", hostileOf(t, live, victim), want)
	same(t, "the other project", hostileOf(t, live, other), others)
	var last, most int64
	if err := live.QueryRow(t.Context(), `SELECT (SELECT last_value FROM note_id_seq), (SELECT max(id) FROM note)`).Scan(&last, &most); err != nil || last != most {
		t.Errorf("the sequence stands at %d, the notes at %d: %v", last, most, err)
	}
	anew := strings.Replace(pg.DSN("postgres"), "dbname=postgres", "dbname=anew", 1)
	fresh := ask[newDoc](r, "db", restore(gone, "--into", "new", "--on", anew)...)
	if fresh.Rows == 0 || len(fresh.Views) > 0 {
		t.Errorf("into a new database: %+v", fresh)
	}
	conn := hostileConn(t, pg.Conn("anew"))
	same(t, "in a database of its own", hostileOf(t, conn, ""), wantGone)
	conn.Close(t.Context())

	r.hold("db", 0, "project", "delete", "cms", gone, "--yes")
	code, _, errs := r.try("db", restore(gone, "--into", "live", "--yes")...)
	if code != exitRefused || !strings.Contains(errs, "tombstone") {
		t.Errorf("a deleted project: exit %d: %s", code, errs)
	}
	if ledger := r.hold("db", 0, "--output", "json", "ledger", "show", "--last", "1000"); strings.Contains(ledger, "DROP TABLE x") || strings.Count(ledger, `"project.restored"`) != 2 {
		t.Errorf("the ledger names a project, or has not two restores of projects:\n%s", ledger)
	}
}

// A clone has one project, its masks and the staging database's own life.
func TestAProjectIsClonedWithMasks(t *testing.T) {
	pg := pgtest.Start(t, pgtest.WithOwn("pg_dump"))
	keys := fillHostile(t, pg, 5, rand.New(rand.NewPCG(5, 6)))
	r := newRig(t, pg, false)
	r.cluster = hostileProjects
	r.configure()
	live := hostileConn(t, pg.Conn("postgres"))
	on := func(db string) string { return strings.Replace(pg.DSN("postgres"), "dbname=postgres", "dbname="+db, 1) }
	mask := `"We""ird; --".member."e-mail"='masked-' || id`
	clone := func(db string, more ...string) []string {
		return append([]string{"project", "clone", "cms", keys[3], "--on", on(db), "--binaries", pg.BinDir()}, more...)
	}
	doc := ask[newDoc](r, "db", clone("whole")...)
	conn := hostileConn(t, pg.Conn("whole"))
	same(t, "the clone", hostileOf(t, conn, ""), hostileOf(t, live, keys[3]))
	if _, err := conn.Exec(t.Context(), `SET session_replication_role = origin; DROP TRIGGER forbid ON member; INSERT INTO member (project, "e-mail") SELECT "Id", 'new' FROM "Pro ject"`); err != nil {
		t.Errorf("the clone cannot be used: %v", err)
	}
	conn.Close(t.Context())
	if doc.Rows == 0 || len(doc.Views) > 0 {
		t.Errorf("cloned: %+v", doc)
	}
	r.hold("db", exitRefused, clone("whole")...)
	masked := ask[newDoc](r, "db", clone("masked", "--mask", mask)...)
	conn = hostileConn(t, pg.Conn("masked"))
	var bare int
	if err := conn.QueryRow(t.Context(), `SELECT count(*) FROM member WHERE "e-mail" <> 'masked-' || id OR loud <> upper("e-mail")`).Scan(&bare); err != nil || bare > 0 || len(masked.Masked) != 1 {
		t.Errorf("%d members have addresses (%v), %+v", bare, err, masked)
	}
	conn.Close(t.Context())
	for _, wrong := range []string{`member."e-mail"=1`, `"We""ird; --".member.id=1`, `"We""ird; --".doc.author=1`, `"We""ird; --".member.loud='x'`, `"We""ird; --".doc.f=1) FROM x; DROP TABLE doc; --`} {
		r.hold("db", exitUsage, clone("never", "--mask", wrong)...)
	}
	if n := pgtest.Value[int](pg, "SELECT count(*) FROM pg_database WHERE datname = 'never'"); n > 0 {
		t.Error("a clone that was refused left a database")
	}
}
