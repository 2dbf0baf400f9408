package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/tenancy/portable"
	"github.com/holdfast-dr/holdfast/restore"
	"github.com/holdfast-dr/holdfast/retention"
	"github.com/holdfast-dr/holdfast/snapshot"
)

// awkward is the name of a database that breaks whoever does not quote.
const awkward = "O'r\"d; --\n\\x"

// awkwardTables are what a copy of tables can get wrong.
const awkwardTables = `
CREATE SCHEMA "a ""b'
c";
SET search_path = "a ""b'
c";
CREATE TABLE "t ""1
2" ("c;1" bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, "d'
e" text, up text GENERATED ALWAYS AS (upper("d'
e")) STORED, raw bytea);
CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.raw := 'changed'; RETURN NEW; END $$;
INSERT INTO "t ""1
2" ("d'
e", raw) SELECT E'\\.\t\n\\N ' || g, decode(md5(g::text), 'hex') FROM generate_series(1, 500) g;
CREATE TRIGGER always BEFORE INSERT ON "t ""1
2" FOR EACH ROW EXECUTE FUNCTION shout();
ALTER TABLE "t ""1
2" ENABLE ALWAYS TRIGGER always;
CREATE TABLE empty (id int);
CREATE TABLE bare ();
INSERT INTO bare DEFAULT VALUES; INSERT INTO bare DEFAULT VALUES;
CREATE SEQUENCE "s'q" INCREMENT -3; SELECT nextval('"s''q"'), nextval('"s''q"');
CREATE MATERIALIZED VIEW m AS SELECT count(*) AS n FROM bare;`

// pairs is a database of which only one moment has as many rows in one table as in the
// other, and no hole in either.
const pairs = `
CREATE TABLE a (id int PRIMARY KEY, v text);
CREATE TABLE b (id int REFERENCES a, v text);
CREATE INDEX ON b (id);`

// writePairs writes until stop; rows come one transaction after the other.
func writePairs(t *testing.T, conn *pgx.Conn) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for i := 1; ctx.Err() == nil; i++ {
			// One simple query is one transaction.
			_, err := conn.Exec(t.Context(), fmt.Sprintf(`INSERT INTO a VALUES (%[1]d, md5('%[1]d')); INSERT INTO b SELECT %[1]d, repeat(md5(g::text), 20) FROM generate_series(1, 3) g`, i), pgx.QueryExecModeSimpleProtocol)
			if err != nil {
				t.Errorf("writing: %v", err)
				return
			}
		}
	}()
	return func() { cancel(); <-ended }
}

// digestOf is of all rows that a query gives.
func digestOf(t *testing.T, conn *pgx.Conn, query string, args ...any) (sum string) {
	t.Helper()
	err := conn.QueryRow(t.Context(), `SELECT count(*) || ' ' || coalesce(md5(string_agg(r::text, E'\n' ORDER BY r::text COLLATE "C")), '') FROM (`+query+`) r`, args...).Scan(&sum)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return sum
}

// loaded restores a logical snapshot into a server.
func (r *rig) loaded(id, dsn string, args ...string) logicalDoc {
	r.t.Helper()
	doc := ask[logicalDoc](r, "drill", append([]string{"restore", "run", "cms", "--snapshot", id, "--on", dsn, "--identity", r.path("drill/data.key")}, args...)...)
	if !doc.Complete {
		r.t.Fatalf("loaded: %+v", doc)
	}
	return doc
}

func dial(t *testing.T, pg *pgtest.Cluster, db string) *pgx.Conn {
	t.Helper()
	cfg, err := pgx.ParseConfig(pg.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	cfg.Database = db
	conn, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// A cluster of three databases, hostile names in all places, one of them written to
// meanwhile, is loaded elsewhere as each was in its one moment; physical snapshots go on
// as if there were no logical ones.
func TestALogicalSnapshotIsLoadedAsItWasInItsMoment(t *testing.T) {
	pg := pgtest.Start(t, pgtest.WithOwn("pg_dump"))
	fillHostile(t, pg, 3, rand.New(rand.NewPCG(3, 4)))
	pg.Exec("CREATE DATABASE " + pgx.Identifier{awkward}.Sanitize())
	pg.Exec("CREATE DATABASE pairs")
	odd, writing := dial(t, pg, awkward), dial(t, pg, "pairs")
	for conn, sql := range map[*pgx.Conn]string{odd: awkwardTables, writing: pairs} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	r := newRig(t, pg, false)
	r.configure()
	first := ask[snapshotDoc](r, "db", "snapshot", "take", "cms")
	stop := writePairs(t, writing)
	taken := ask[snapshotDoc](r, "db", "snapshot", "take", "cms", "--logical")
	stop()
	if taken.Kind != catalog.Logical || taken.NewBytes == 0 || taken.RawBytes == 0 || taken.Pages.Checked != 0 {
		t.Fatalf("taken: %+v", taken)
	}
	r.listed(first.ID, taken.ID)
	other := pgtest.Start(t, pgtest.WithOwn("pg_dump"))
	doc := r.loaded(taken.ID, other.DSN("postgres"))
	if len(doc.Databases) != 3 || len(doc.NotCovered) == 0 {
		t.Errorf("loaded: %+v", doc)
	}
	same(t, "postgres", hostileOf(t, hostileConn(t, dial(t, other, "postgres")), ""), hostileOf(t, hostileConn(t, pg.Conn("postgres")), ""))
	sameAwkward(t, dial(t, other, awkward), odd)
	samePairs(t, dial(t, other, "pairs"), writing)
	if code, _, errs := r.try("drill", "restore", "run", "cms", "--snapshot", taken.ID, "--on", other.DSN("postgres"), "--identity", r.path("drill/data.key")); code != exitRefused || !strings.Contains(errs, "is not empty") {
		t.Errorf("a second time: exit %d: %s", code, errs)
	}
	r.physicalGoesOn(first, taken)
	r.unpacked(taken.ID, other)
}

// listed looks at what snapshot list, show and verify say of a logical snapshot.
func (r *rig) listed(physical, logical string) {
	r.t.Helper()
	kinds := map[string]string{}
	for _, s := range ask[snapshotsDoc](r, "drill", "snapshot", "list", "cms").Snapshots {
		kinds[s.ID] = s.Kind
	}
	if len(kinds) != 2 || kinds[physical] != catalog.Physical || kinds[logical] != catalog.Logical {
		r.t.Errorf("listed: %v", kinds)
	}
	if text := r.hold("drill", 0, "snapshot", "show", logical); strings.Contains(text, "pages") || !strings.Contains(text, "as of") {
		r.t.Errorf("shown: %s", text)
	}
	rep := ask[snapshot.VerifyReport](r, "drill", "snapshot", "verify", logical, "--deep", "--identity", r.path("drill/data.key"))
	if !rep.OK() || rep.Deep == nil || rep.Deep.Packs == 0 || rep.Deep.Frames == 0 {
		r.t.Errorf("verified: %+v", rep)
	}
}

// physicalGoesOn sees that restores and increments take physical snapshots.
func (r *rig) physicalGoesOn(first, logical snapshotDoc) {
	r.t.Helper()
	p := ask[restore.Plan](r, "drill", "restore", "plan", "cms", "--identity", r.path("drill/data.key"))
	if p.Snapshot != first.ID {
		r.t.Errorf("a restore is planned from %s, want %s", p.Snapshot, first.ID)
	}
	next := ask[snapshotDoc](r, "db", "snapshot", "take", "cms")
	if next.Kind != catalog.Physical || next.NewBytes > first.NewBytes/2 {
		r.t.Errorf("the next physical snapshot of %d bytes made %d, the first %d: it builds on none", next.RawBytes, next.NewBytes, first.NewBytes)
	}
	if got := ask[statusDoc](r, "drill", "status", "cms"); got.Clusters[0].LastSnapshot.ID != next.ID {
		r.t.Errorf("the status tells of %+v", got.Clusters[0].LastSnapshot)
	}
	plan := ask[retention.Plan](r, "db", "retention", "plan", "cms")
	for _, d := range plan.Snapshots {
		if d.ID == logical.ID && (!d.Keep || d.Kind != catalog.Logical || slices.ContainsFunc(d.Reasons, func(s string) bool { return strings.Contains(s, "window") })) {
			r.t.Errorf("retention says of it %+v", d)
		}
	}
	r.restore("physical", "--immediate")
	r.write("drill/holdfast.yaml", r.repository("drill", "drill")+`clusters:
  - {name: cms}
environments:
  - {name: rooms, directory: `+r.mkdir("drill/rooms")+`, binaries: "`+r.pg.BinDir()+`", identity: {file: `+r.path("drill/data.key")+`}}
drills:
  - {name: weekly, cluster: cms, environment: rooms, select: latest, level: L2}
`)
	drilled := ask[struct {
		Snapshot string `json:"snapshot"`
		Outcome  string `json:"outcome"`
	}](r, "drill", "drill", "run", "weekly")
	if drilled.Snapshot != next.ID {
		r.t.Errorf("a drill took %+v, want %s", drilled, next.ID)
	}
}

// unpacked writes the export's files, which psql alone loads.
func (r *rig) unpacked(id string, pg *pgtest.Cluster) {
	r.t.Helper()
	dir := r.path("unpacked")
	doc := ask[logicalDoc](r, "drill", "restore", "run", "cms", "--snapshot", id, "--to", dir, "--identity", r.path("drill/data.key"))
	index := readJSON[portable.Databases](r.t, filepath.Join(dir, portable.ManifestName))
	if !doc.Complete || len(index.Databases) != 3 || doc.RestoredTo != dir {
		r.t.Fatalf("unpacked: %+v, %+v", doc, index)
	}
	for _, d := range []string{dir, filepath.Join(dir, "databases")} { // PostgreSQL's user reads below
		if err := os.Chmod(d, 0o755); err != nil {
			r.t.Fatal(err)
		}
	}
	for _, e := range index.Databases {
		at := filepath.Join(dir, filepath.Dir(e.File.Name))
		m := readJSON[portable.Manifest](r.t, filepath.Join(at, portable.ManifestName))
		checkFiles(r.t, at, m)
		if e.Name == "pairs" {
			pg.Exec("CREATE DATABASE by_hand")
			loadByHand(r.t, pg, "by_hand", at)
			if got, want := digestOf(r.t, dial(r.t, pg, "by_hand"), "SELECT * FROM b"), digestOf(r.t, dial(r.t, pg, "pairs"), "SELECT * FROM b"); got != want {
				r.t.Errorf("by psql alone: %s, want %s", got, want)
			}
		}
	}
	r.hold("drill", exitRefused, "restore", "run", "cms", "--snapshot", id, "--to", dir, "--identity", r.path("drill/data.key"))
}

func sameAwkward(t *testing.T, got, want *pgx.Conn) {
	t.Helper()
	const path = "SET search_path = \"a \"\"b'\nc\""
	for _, conn := range []*pgx.Conn{got, want} {
		if _, err := conn.Exec(t.Context(), path); err != nil {
			t.Fatal(err)
		}
	}
	for _, query := range []string{
		"SELECT * FROM \"t \"\"1\n2\"", "SELECT count(*) FROM bare", "SELECT * FROM empty", `SELECT last_value, is_called FROM "s'q"`, "SELECT * FROM m",
		"SELECT tgname, tgenabled::text FROM pg_trigger WHERE NOT tgisinternal", "SELECT last_value, is_called FROM \"t \"\"1\n2_c;1_seq\"",
	} {
		if a, b := digestOf(t, got, query), digestOf(t, want, query); a != b {
			t.Errorf("%s: %s, want %s", query, a, b)
		}
	}
}

// samePairs wants the first rows of live, and none without its like.
func samePairs(t *testing.T, got, live *pgx.Conn) {
	t.Helper()
	var last, all, children int
	if err := got.QueryRow(t.Context(), `SELECT coalesce(max(id), 0), count(*), (SELECT count(*) FROM b) FROM a`).Scan(&last, &all, &children); err != nil {
		t.Fatal(err)
	}
	if all != last || children != 3*last || last == 0 {
		t.Errorf("loaded %d rows up to %d, and %d of the other table: not one moment", all, last, children)
	}
	for _, query := range []string{"SELECT * FROM a WHERE id <= $1", "SELECT * FROM b WHERE id <= $1"} {
		if a, b := digestOf(t, got, query, last), digestOf(t, live, query, last); a != b {
			t.Errorf("%s: %s, want %s", query, a, b)
		}
	}
}

func TestALogicalSnapshotWithADamagedPackIsRefused(t *testing.T) {
	pg := pgtest.Start(t, pgtest.WithOwn("pg_dump"))
	pg.Exec("CREATE TABLE t AS SELECT g, md5(g::text) FROM generate_series(1, 20000) g")
	r := newRig(t, pg, false)
	r.configure()
	id := ask[snapshotDoc](r, "db", "snapshot", "take", "cms", "--logical").ID
	damage := func(zone string) {
		packs, err := filepath.Glob(r.path("zones/" + zone + "/clusters/cms/snapshots/" + id + "/packs/*"))
		if err != nil || len(packs) == 0 {
			t.Fatalf("packs: %v, %v", packs, err)
		}
		for _, p := range packs {
			data, err := os.ReadFile(p)
			if err != nil {
				t.Fatal(err)
			}
			data[len(data)/2] ^= 1
			if err := os.Chmod(p, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(p, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	damage("a")
	r.hold("drill", exitNotHeld, "snapshot", "verify", id)
	doc := r.loaded(id, pg.DSN("postgres"), "--database", "postgres=good")
	if len(doc.Databases) != 1 || doc.Databases[0].As != "good" || doc.Databases[0].Rows != 20000 {
		t.Errorf("from the other zones: %+v", doc)
	}
	r.write("repository.yaml", fmt.Sprintf("format: 1\nzones: [{name: b, directory: %s}]\ntrusted_signers: [{key: %q, may: [snapshot, wal, tombstone, ledger]}]\n", r.path("zones/b"), r.keys["db"]))
	alone := ask[logicalDoc](r, "", "--repository", r.path("repository.yaml"), "restore", "run", "cms", "--snapshot", id, "--on", pg.DSN("postgres"), "--database", "postgres=alone", "--identity", r.path("drill/data.key"))
	if !alone.Complete || alone.Databases[0].Rows != 20000 {
		t.Errorf("by one zone and the key alone: %+v", alone)
	}
	damage("b")
	damage("c")
	code, _, errs := r.try("drill", "restore", "run", "cms", "--snapshot", id, "--on", pg.DSN("postgres"), "--database", "postgres=bad", "--identity", r.path("drill/data.key"))
	if code != exitFailed || !strings.Contains(errs, "/packs/") || !strings.Contains(errs, id) {
		t.Errorf("from damaged packs: exit %d: %s", code, errs)
	}
	if n := pgtest.Value[int](pg, "SELECT count(*) FROM pg_database WHERE datname = 'bad'"); n != 0 {
		t.Error("a load that failed left its database behind")
	}
}

// Of two projects, one is deleted after its snapshots were taken: no load brings it back,
// its own snapshot is refused and goes, and the other's is loaded.
func TestALogicalSnapshotBringsNoDeletedProjectBack(t *testing.T) { // promise 7
	pg := pgtest.Start(t, pgtest.WithOwn("pg_dump"))
	pg.Exec(tenants)
	r := newRig(t, pg, false)
	r.cluster = "    retention: {window: 1h, daily: 7, keep_at_least: 1h, keep_at_most: 30d, removal_grace: 1s, logical: {daily: 1}}\n" + tenantProjects + "      purge: {within: 40d, grace: 1s}\n"
	r.configure()
	r.daemon("db")
	whole := ask[snapshotDoc](r, "db", "snapshot", "take", "cms", "--logical")
	seven := ask[snapshotDoc](r, "db", "snapshot", "take", "cms", "--project", "7")
	eight := ask[snapshotDoc](r, "db", "snapshot", "take", "cms", "--project", "8")
	if seven.Kind != catalog.Project || seven.KeyMAC == "" || seven.KeyMAC == eight.KeyMAC {
		t.Fatalf("taken: %+v, %+v", seven, eight)
	}
	if code, _, errs := r.try("db", "snapshot", "take", "cms", "--project", "nobody"); code != exitFailed || !strings.Contains(errs, "no such project") {
		t.Errorf("of nobody: exit %d: %s", code, errs)
	}
	r.loaded(seven.ID, pg.DSN("seven"))
	deleted := ask[deletedDoc](r, "db", "project", "delete", "cms", "7", "--in-live", "--yes")
	r.hold("db", exitRefused, "snapshot", "take", "cms", "--project", "7")

	other := pgtest.Start(t, pgtest.WithOwn("pg_dump"))
	doc := r.loaded(whole.ID, other.DSN("postgres"))
	if len(doc.Tombstones) != 1 || doc.Tombstones[0].ID != deleted.Tombstone || !doc.Tombstones[0].Found {
		t.Errorf("tombstones: %+v", doc.Tombstones)
	}
	if got := pgtest.Value[string](other, "SELECT count(*) || ' ' || count(*) FILTER (WHERE id = 7) || ' ' || (SELECT count(*) FROM cms.record WHERE project_id = 7) FROM cms.project"); got != "9 0 0" {
		t.Errorf("loaded %s", got)
	}
	to := []string{"--to", r.path("files"), "--identity", r.path("drill/data.key")}
	r.hold("drill", exitRefused, append([]string{"restore", "run", "cms", "--snapshot", whole.ID}, to...)...)
	r.hold("drill", exitRefused, append([]string{"restore", "run", "cms", "--snapshot", seven.ID}, to...)...)
	r.hold("drill", exitRefused, "restore", "run", "cms", "--snapshot", seven.ID, "--on", other.DSN("again"), "--identity", r.path("drill/data.key"))
	one := r.loaded(eight.ID, other.DSN("eight"))
	if len(one.Databases) != 1 || one.Databases[0].Rows != 1+100+300 {
		t.Errorf("project 8: %+v", one)
	}
	r.ownGoes(deleted.Tombstone, whole.ID, seven.ID, eight.ID)
}

// ownGoes sees a deleted project's own snapshot go, by both acts, and no other.
func (r *rig) ownGoes(tombstone, whole, own, others string) {
	r.t.Helper()
	await(r.t, "live without the project", func() bool {
		r.pg.Exec("VACUUM")
		return r.advance(tombstone).State == retention.PurgeAgeing
	})
	dir := r.path("zones/a/clusters/cms/snapshots/")
	await(r.t, "the end of the project's own snapshot", func() bool {
		r.hold("db", 0, "retention", "apply", "cms")
		return files(filepath.Join(dir, own)) == 0
	})
	for _, id := range []string{whole, others} {
		if files(filepath.Join(dir, id)) == 0 {
			r.t.Errorf("snapshot %s is gone as well", id)
		}
	}
	one := ask[retention.Purge](r, "db", "purge", "show", tombstone)
	if blocked := one.Zones[0].BlockedBy; !slices.Contains(blocked, "snapshot "+whole) || slices.Contains(blocked, "snapshot "+others) || slices.Contains(blocked, "snapshot "+own) {
		r.t.Errorf("the purge waits for %v", blocked)
	}
	later := ask[snapshotDoc](r, "db", "snapshot", "take", "cms", "--logical").ID
	await(r.t, "the end of the older logical snapshot, by the policy of its class", func() bool {
		r.hold("db", 0, "retention", "apply", "cms")
		return files(filepath.Join(dir, whole)) == 0
	})
	if files(filepath.Join(dir, later)) == 0 || files(filepath.Join(dir, others)) == 0 {
		r.t.Error("newer snapshots are gone as well")
	}
	all := r.hold("db", 0, "--output", "json", "ledger", "show", "--last", "1000")
	if !strings.Contains(all, `"key_mac"`) || strings.Contains(all, "project 7") {
		r.t.Errorf("the ledger: %s", all)
	}
}

func TestALogicalSnapshotOfProjectsThatAreSchemasBringsNoRenamedOneBack(t *testing.T) { // promise 7
	renamedProject(t, "schema")
}

func TestALogicalSnapshotOfProjectsThatAreDatabasesBringsNoRenamedOneBack(t *testing.T) { // promise 7
	renamedProject(t, "database")
}

// renamedProject is deleted under another name than snapshots know it by.
func renamedProject(t *testing.T, layout string) {
	pg := pgtest.Start(t, pgtest.WithOwn("pg_dump"))
	x := newEstate(t, pg, layout)
	x.daemon("db")
	whole := ask[snapshotDoc](x.rig, "db", "snapshot", "take", "cms", "--logical").ID
	own := ask[snapshotDoc](x.rig, "db", "snapshot", "take", "cms", "--project", x.hostile).ID
	neighbour := ask[snapshotDoc](x.rig, "db", "snapshot", "take", "cms", "--project", x.another).ID
	pg.Exec("ALTER " + strings.ToUpper(layout) + " " + pgx.Identifier{x.hostile}.Sanitize() + " RENAME TO moved")
	deleted := ask[deletedDoc](x.rig, "db", "project", "delete", "cms", "moved", "--in-live", "--yes").Tombstone

	other := pgtest.Start(t, pgtest.WithOwn("pg_dump"))
	doc := x.loaded(whole, other.DSN("postgres"))
	if len(doc.Tombstones) != 1 || doc.Tombstones[0].ID != deleted || !doc.Tombstones[0].Found {
		t.Errorf("tombstones: %+v", doc.Tombstones)
	}
	if n := pgtest.Value[int](other, "SELECT (SELECT count(*) FROM pg_database WHERE datname = $1) + (SELECT count(*) FROM pg_namespace WHERE nspname = $1)", x.hostile); n != 0 {
		t.Error("the deleted project is there")
	}
	if dump := other.Run("pg_dump", "--data-only", "-d", other.DSN(x.in(x.another))); strings.Contains(dump, "canary") || strings.Count(dump, "a@other") != 50 {
		t.Errorf("its neighbour has %d rows, and the deleted project's words: %t", strings.Count(dump, "a@other"), strings.Contains(dump, "canary"))
	}
	x.hold("drill", exitRefused, "restore", "run", "cms", "--snapshot", own, "--on", other.DSN("again"), "--identity", x.path("drill/data.key"))
	if one := x.loaded(neighbour, other.DSN("alone")); len(one.Databases) != 1 || one.Databases[0].Rows != 200 {
		t.Errorf("the neighbour alone: %+v", one)
	}
	if all := x.hold("db", 0, "--output", "json", "ledger", "show", "--last", "1000"); strings.Contains(all, `Te\"n`) || strings.Contains(all, x.another) {
		t.Errorf("the ledger names a project: %s", all)
	}
}
