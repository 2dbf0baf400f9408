package main

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/zone/zonetest"
	"github.com/holdfast-dr/holdfast/restore"
	"github.com/holdfast-dr/holdfast/retention"
)

// cages have a column for every way in which PostgreSQL keeps a value; the table is
// SCHEMA.record.
const cages = `
CREATE TABLE SCHEMA.record (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, project_id text NOT NULL,
	body text, raw bytea, long text, indexed text, words text[], few text, lo oid);
ALTER TABLE SCHEMA.record ALTER long SET STORAGE EXTERNAL;
CREATE INDEX record_project ON SCHEMA.record (project_id);
CREATE INDEX record_indexed ON SCHEMA.record (indexed);
CREATE INDEX record_lower ON SCHEMA.record (lower(body), id);
CREATE INDEX record_words ON SCHEMA.record USING gin (words);
CREATE STATISTICS SCHEMA.record_pairs (mcv) ON project_id, few FROM SCHEMA.record;`

// fillCage gives a project rows, among those of the others in each index, and leaves
// versions of rows behind that were updated. $1 is the canary.
const fillCage = `
INSERT INTO SCHEMA.record (project_id, body, raw, long, indexed, words, few)
SELECT $1 || 'p' || $1, $1 || 't' || $1 || md5(random()::text), convert_to($1 || 'b' || $1, 'UTF8'),
       CASE WHEN g % 60 = 0 THEN (SELECT string_agg($1 || 'l' || $1 || md5(g::text || h::text), '') FROM generate_series(1, 200) h) END,
       md5(random()::text) || $1 || 'i' || $1, ARRAY[md5(g::text) || $1 || 'w' || $1], $1 || 'f' || $1
  FROM generate_series(1, 600) g`

// canary is a word by which a project's bytes are known: it stands on both sides of
// what each value is, so that one that is cut in two, as by the header of a page of
// WAL, still has it.
type canary string

func newCanary() canary {
	b := make([]byte, 8)
	_, _ = rand.Read(b)
	return canary(hex.EncodeToString(b))
}

func (c canary) is(kind string) string { return string(c) + kind + string(c) }

// kinds are those of the values that data has; "cut" for one that is not whole.
func (c canary) kinds(data []byte, into map[string]int) {
	word := []byte(c)
	for at := bytes.Index(data, word); at >= 0; at = bytes.Index(data, word) {
		data = data[at+len(word):]
		if len(data) > len(word) && bytes.HasPrefix(data[1:], word) {
			into[string(data[0])]++
			data = data[1+len(word):]
		} else {
			into["cut"]++
		}
	}
}

// cage is a layout of projects.
type cage struct {
	projects string
	make     func(a *aviary)           // what is there before any project, and project 8, "another"
	enter    func(a *aviary, c canary) // makes a project whose id and name are its canary's
	home     func(c canary) (db, schema string)
	clean    []string // what the certificate leaves to whoever runs live
	says     []string // how it says so
	keepsLO  bool     // a large object is outside a project
}

var cagesOf = map[string]cage{
	"rows": {
		projects: tenantProjects,
		make: func(a *aviary) {
			a.pg.Exec(`CREATE SCHEMA cms; CREATE TABLE cms.project (id text PRIMARY KEY, name text NOT NULL); INSERT INTO cms.project VALUES ('8', 'another');` +
				in("cms", cages) + `ALTER TABLE cms.record ADD FOREIGN KEY (project_id) REFERENCES cms.project`)
		},
		enter:   func(a *aviary, c canary) { a.pg.Exec(`INSERT INTO cms.project VALUES ($1, $2)`, c.is("p"), c.is("n")) },
		home:    func(canary) (string, string) { return "postgres", "cms" },
		clean:   []string{"REINDEX TABLE cms.project", "REINDEX TABLE cms.record", "ANALYZE"},
		says:    []string{"large objects", "REINDEX", "ANALYZE"},
		keepsLO: true,
	},
	"schema": {
		projects: `    projects:
      layout: schema
      registry: "SELECT nspname::text, coalesce(obj_description(oid, 'pg_namespace'), nspname::text) FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname NOT IN ('public', 'information_schema')"
`,
		make: func(a *aviary) { a.pg.Exec(`CREATE SCHEMA "8"; CREATE TABLE "8".record (id int)`) },
		enter: func(a *aviary, c canary) {
			a.pg.Exec(fmt.Sprintf(`CREATE SCHEMA %q; COMMENT ON SCHEMA %[1]q IS '%s';`, c.is("p"), c.is("n")) + in(`"`+c.is("p")+`"`, cages))
		},
		home:    func(c canary) (string, string) { return "postgres", `"` + c.is("p") + `"` },
		clean:   []string{"REINDEX SYSTEM postgres", "ANALYZE"},
		says:    []string{"large objects", "REINDEX", "ANALYZE"},
		keepsLO: true,
	},
	"database": {
		projects: `    projects:
      layout: database
      registry: "SELECT datname::text, coalesce(shobj_description(oid, 'pg_database'), datname::text) FROM pg_database WHERE datname NOT IN ('postgres', 'template0', 'template1')"
      database: postgres
`,
		make: func(a *aviary) { a.pg.Exec(`CREATE DATABASE "8"`) },
		enter: func(a *aviary, c canary) {
			a.pg.Exec(fmt.Sprintf(`CREATE DATABASE %q`, c.is("p")))
			a.pg.Exec(fmt.Sprintf(`COMMENT ON DATABASE %q IS '%s'`, c.is("p"), c.is("n")))
			a.inDatabase(c.is("p"), in("public", cages))
		},
		home:  func(c canary) (string, string) { return c.is("p"), "public" },
		clean: []string{"REINDEX SYSTEM postgres", "ANALYZE"},
		says:  []string{"REINDEX", "ANALYZE"},
	},
}

// in puts a schema's name into SQL.
func in(schema, sql string) string { return strings.ReplaceAll(sql, "SCHEMA", schema) }

// aviary is three zones, a bucket that keeps versions among them, with what opens
// everything that they hold.
type aviary struct {
	*rig
	cage
	bucket *zonetest.S3Server
	ids    []age.Identity
}

func newAviary(t *testing.T, pg *pgtest.Cluster, c cage) *aviary {
	r := newRig(t, pg, false)
	a := &aviary{rig: r, cage: c, bucket: zonetest.StartS3(t, 1)[0]}
	lines := strings.SplitAfter(r.zones, "\n")
	r.zones = strings.Join(lines[:2], "") + r.s3Zone("c", a.bucket, a.bucket.Endpoint)
	r.cluster = "    retention: {window: 1s, daily: 1, keep_at_least: 1s, keep_at_most: 2m, renew_after: 1s, removal_grace: 1s}\n" +
		c.projects + "      purge: {within: 1h, grace: 1s}\n"
	r.configure()
	for _, file := range []string{"drill/data.key", "keys/index"} {
		text, err := os.ReadFile(r.path(file))
		if err != nil {
			t.Fatal(err)
		}
		ids, err := seal.ParseIdentities(text)
		if err != nil {
			t.Fatal(err)
		}
		a.ids = append(a.ids, ids...)
	}
	return a
}

// fill makes a project and fills it.
func (a *aviary) fill(c canary) {
	a.t.Helper()
	a.enter(a, c)
	db, schema := a.home(c)
	a.inDatabase(db, in(schema, fillCage), string(c))
	a.inDatabase(db, in(schema, `UPDATE SCHEMA.record SET body = $2 WHERE project_id = $1 AND id % 50 = 0`), c.is("p"), c.is("u"))
	a.inDatabase(db, "ANALYZE")
}

// each calls fn with every version of every object of every zone, by the zones' own listings.
func (a *aviary) each(fn func(zone, name, version string, body []byte)) {
	a.t.Helper()
	for _, z := range zoneLetters[:2] {
		a.files(a.path("zones/"+z), func(name string, body []byte) { fn(z, name, "", body) })
	}
	client := a.bucket.Client(a.t)
	pages := s3.NewListObjectVersionsPaginator(client, &s3.ListObjectVersionsInput{Bucket: aws.String(a.bucket.Bucket)})
	for pages.HasMorePages() {
		page, err := pages.NextPage(a.t.Context())
		if err != nil {
			a.t.Fatal(err)
		}
		for _, v := range page.Versions {
			got, err := client.GetObject(a.t.Context(), &s3.GetObjectInput{Bucket: aws.String(a.bucket.Bucket), Key: v.Key, VersionId: v.VersionId})
			if err != nil && strings.Contains(err.Error(), "StatusCode: 404") {
				continue // swept meanwhile
			}
			if err != nil {
				a.t.Fatalf("%s: %v", *v.Key, err)
			}
			body, err := io.ReadAll(got.Body)
			got.Body.Close()
			if err != nil {
				a.t.Fatalf("%s: %v", *v.Key, err)
			}
			fn("c", strings.TrimPrefix(*v.Key, "hf/"), *v.VersionId, body)
		}
	}
}

// files calls fn with every file below a directory.
func (a *aviary) files(dir string, fn func(name string, body []byte)) {
	a.t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		body, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // swept meanwhile
		}
		if err == nil {
			name, _ := filepath.Rel(dir, path)
			fn(name, body)
		}
		return err
	})
	if err != nil {
		a.t.Fatal(err)
	}
}

// open gives what a sealed object holds; what is not sealed as it is.
func (a *aviary) open(name string, body []byte) []byte {
	a.t.Helper()
	if !strings.HasSuffix(name, ".age") {
		return body
	}
	var plain []byte
	var err error
	if strings.Contains(name, "/packs/") || strings.Contains(name, "/wal/") && !strings.HasSuffix(name, ".idx.age") {
		plain, err = seal.OpenFile(body, a.ids, 1<<30)
	} else {
		plain, err = seal.OpenBlob(body, a.ids, 1<<30)
	}
	if err != nil {
		a.t.Fatalf("opening %s: %v", name, err)
	}
	return plain
}

// sighting is a version of an object in which a canary was seen.
type sighting struct{ zone, name, version string }

// seen is where a canary was seen, and how often each kind of value, by zone and sort
// of object.
type seen struct {
	in    []sighting
	kinds map[string]map[string]int
}

// look looks for canaries in the name and the opened bytes of everything in the zones.
func (a *aviary) look(canaries ...canary) (list []seen, objects int) {
	a.t.Helper()
	for range canaries {
		list = append(list, seen{kinds: map[string]map[string]int{}})
	}
	a.each(func(zone, name, version string, body []byte) {
		objects++
		data := append(a.open(name, body), name...)
		for i, c := range canaries {
			found := map[string]int{}
			if c.kinds(data, found); len(found) == 0 {
				continue
			}
			list[i].in = append(list[i].in, sighting{zone, name, version})
			sort := zone + " " + sortOf(name)
			if list[i].kinds[sort] == nil {
				list[i].kinds[sort] = map[string]int{}
			}
			for kind, n := range found {
				list[i].kinds[sort][kind] += n
			}
		}
	})
	return list, objects
}

func sortOf(name string) string {
	for _, sort := range []string{"/packs/", "/maps/", "/wal/"} {
		if strings.Contains(name, sort) {
			return strings.Trim(sort, "/")
		}
	}
	return filepath.Base(name)
}

// everywhere wants all kinds of values of a project in the packs of every zone, so that
// a look which finds none says something, and in its WAL, where that has to hold them.
func (a *aviary) everywhere(what string, s seen, wal string) {
	a.t.Helper()
	for _, z := range zoneLetters {
		for sort, kinds := range map[string]string{" packs": "pntbliwfu", " wal": wal} {
			for _, kind := range strings.Split(kinds, "") {
				if s.kinds[z+sort][kind] == 0 {
					a.t.Errorf("%s: %s has no value of kind %s: %v", what, z+sort, kind, s.kinds[z+sort])
				}
			}
		}
	}
}

// named wants each object in which the deleted project is to be one that `purge show`
// names, with an end. It returns how many versions are named.
func (a *aviary) named(what, tombstone string, s seen) (count int) {
	a.t.Helper()
	named := map[sighting]bool{}
	for _, z := range ask[retention.Purge](a.rig, "db", "purge", "show", tombstone, "--objects").Zones {
		if int64(len(z.Objects)) != z.Copies {
			a.t.Errorf("%s: %d copies in zone %s, and %d are named", what, z.Copies, z.Name, len(z.Objects))
		}
		for _, o := range z.Objects {
			named[sighting{z.Name, o.Name, o.Version}] = !o.EndsAt.IsZero()
		}
	}
	for _, at := range s.in {
		if !named[at] && a.there(at) {
			a.t.Errorf("%s: the project is in %+v, which the plan does not name, or without an end", what, at)
		}
	}
	if text := a.hold("db", 0, "purge", "show", tombstone, "--objects"); len(s.in) > 0 && !strings.Contains(text, s.in[0].name) {
		a.t.Errorf("%s: %s is not in the text:\n%s", what, s.in[0].name, text)
	}
	return len(named)
}

// there says whether what was seen was not swept meanwhile.
func (a *aviary) there(at sighting) bool {
	a.t.Helper()
	var found bool
	a.each(func(zone, name, version string, _ []byte) { found = found || at == sighting{zone, name, version} })
	return found
}

// below looks for a canary in every file below a directory, opened where it is sealed.
func (a *aviary) below(dir string, c canary) map[string]map[string]int {
	a.t.Helper()
	all := map[string]map[string]int{}
	a.files(dir, func(name string, body []byte) {
		found := map[string]int{}
		c.kinds(append(a.open(name, body), name...), found)
		if len(found) > 0 {
			all[name] = found
		}
	})
	return all
}

// cleanLive does for the tables what a purge waits for, and for what is made of them, before
// it, what the certificate leaves to whoever runs live: indexes and statistics keep values.
func (a *aviary) cleanLive(tombstone string, kept canary) {
	a.t.Helper()
	for _, sql := range append([]string{"VACUUM"}, a.clean...) {
		a.pg.Exec(sql)
	}
	// A vacuum takes what nobody can see any more.
	now := pgtest.Value[string](a.pg, "SELECT pg_snapshot_xmax(pg_current_snapshot())::text")
	a.pg.Await("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND age(backend_xmin) > age($1::text::xid8::xid))", now)
	if db, _ := a.home(kept); db != "postgres" { // its statistics are of what databases share, too
		a.inDatabase(db, "ANALYZE")
		a.inDatabase(db, "VACUUM pg_catalog.pg_statistic")
	}
	a.pg.Exec("VACUUM pg_catalog.pg_statistic")
	a.pg.Exec("VACUUM pg_catalog.pg_statistic_ext_data")
	await(a.t, "live without the project's rows", func() bool {
		a.pg.Exec("VACUUM")
		return a.advance(tombstone).State == retention.PurgeAgeing
	})
}

// Canaries of every kind of value are put into a project, found wherever its copies are
// said to be, and in no byte of any zone, of the node or of a restored directory once its
// certificate is there; its neighbour's are found by the same look. Indexes were rebuilt and
// statistics made anew, and a large object stays where it is no project's: what the
// certificate says is not covered.
func TestNoByteOfAPurgedProjectIsLeftInAnyZone(t *testing.T)  { noByteIsLeft(t, "rows") }     // promise 7
func TestNoByteOfAPurgedSchemaIsLeftInAnyZone(t *testing.T)   { noByteIsLeft(t, "schema") }   // promise 7
func TestNoByteOfAPurgedDatabaseIsLeftInAnyZone(t *testing.T) { noByteIsLeft(t, "database") } // promise 7

func noByteIsLeft(t *testing.T, layout string) {
	pg := pgtest.Start(t, pgtest.WithSetting("autovacuum", "off"))
	a := newAviary(t, pg, cagesOf[layout])
	a.make(a)
	daemon := a.daemon("db")
	gone, kept, large := newCanary(), newCanary(), newCanary()
	a.fill(gone)
	a.fill(kept)
	db, schema := a.home(gone)
	a.inDatabase(db, in(schema, `UPDATE SCHEMA.record SET lo = lo_from_bytea(0, convert_to($2, 'UTF8')) WHERE id = (SELECT min(id) FROM SCHEMA.record WHERE project_id = $1)`), gone.is("p"), large.is("o"))
	with := ask[snapshotDoc](a.rig, "db", "snapshot", "take", "cms").ID
	a.archived(zoneLetters...)
	deleted := ask[deletedDoc](a.rig, "db", "project", "delete", "cms", gone.is("p"), "--in-live", "--yes").Tombstone
	before, _ := a.look(gone, kept)
	a.everywhere("before, the project", before[0], "ptbliwu")
	a.everywhere("before, its neighbour", before[1], "ptbliwu")
	a.named("before", deleted, before[0])
	a.without(deleted, with, gone, kept)

	a.cleanLive(deleted, kept)
	ask[snapshotDoc](a.rig, "db", "snapshot", "take", "--full", "cms")
	ageing, objects := a.look(gone)
	if n := a.named("while it ages", deleted, ageing[0]); len(ageing[0].in) == 0 || n >= objects {
		t.Errorf("while it ages the project is in %d of %d objects, and %d are named", len(ageing[0].in), objects, n)
	}
	await(t, "the certificate", func() bool {
		a.hold("db", 0, "retention", "apply", "cms", "--force")
		if a.advance(deleted).Certificate != nil {
			return true
		}
		ask[snapshotDoc](a.rig, "db", "snapshot", "take", "--full", "cms")
		return false
	})
	a.purged(deleted, gone, kept, large)
	daemon.stop()
	if found := a.below(a.path("db"), gone); len(found) > 0 {
		t.Errorf("the node has it in %v", found)
	}
}

// without restores a snapshot that has the project, and asks the copy for it.
func (a *aviary) without(tombstone, snapshot string, gone, kept canary) {
	a.t.Helper()
	got := a.restore("with", "--snapshot", snapshot, "--immediate")
	if i := slices.IndexFunc(got.Tombstones, func(s restore.AppliedTombstone) bool { return s.ID == tombstone }); i < 0 || !got.Tombstones[i].Found {
		a.t.Errorf("the restore says of tombstones %+v", got.Tombstones)
	}
	at := a.rig.open("with")
	rows := func(c canary) (n int) {
		db, schema := a.home(c)
		conn, err := pgx.Connect(a.t.Context(), fmt.Sprintf("host=%s port=%d user=postgres dbname=%s sslmode=disable", at.Socket, at.Port, db))
		if err == nil {
			err = conn.QueryRow(a.t.Context(), in(schema, `SELECT count(*) FROM SCHEMA.record WHERE project_id = $1`), c.is("p")).Scan(&n)
			conn.Close(a.t.Context())
		}
		if err != nil {
			return -1
		}
		return n
	}
	if rows(gone) > 0 || rows(kept) != 600 {
		a.t.Errorf("a restored copy has %d rows of the deleted project, and %d of its neighbour", rows(gone), rows(kept))
	}
	a.discard(a.path("with"))
}

func (a *aviary) purged(tombstone string, gone, kept, large canary) {
	a.t.Helper()
	after, _ := a.look(gone, kept, large)
	if len(after[0].in) > 0 {
		a.t.Errorf("after the certificate the project is in %v: %v", after[0].in, after[0].kinds)
	}
	a.everywhere("after, the neighbour", after[1], "")
	says := ask[catalog.Certificate](a.rig, "db", "purge", "certificate", tombstone).NotCovered
	for _, what := range a.says {
		if (len(after[2].in) > 0) != a.keepsLO || !strings.Contains(strings.Join(says, "; "), what) {
			a.t.Errorf("the large object is in %d objects, and the certificate does not cover %q", len(after[2].in), says)
		}
	}
	a.restore("after")
	if found := a.below(a.path("after"), gone); len(found) > 0 {
		a.t.Errorf("the restored directory has the project in %v", found)
	}
	all := map[string]int{}
	for _, found := range a.below(a.path("after"), kept) {
		for kind, n := range found {
			all[kind] += n
		}
	}
	if len(all) < len("pntbliwfu") {
		a.t.Errorf("the restored directory has of the neighbour only %v", all)
	}
}
