package tenancy

import (
	"errors"
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
	return Merge(p.t.Context(), p.live, layout, p.from, nil)
}

func TestMasksMayNameWhatOneProjectLacks(t *testing.T) {
	p := besides(t, pgtest.Start(t, pgtest.WithOwn("pg_dump")), `CREATE TABLE app.country (code text PRIMARY KEY, name text); INSERT INTO app.country VALUES ('at', 'Austria');
		CREATE TABLE app.region (code text PRIMARY KEY, name text) PARTITION BY LIST (code); CREATE TABLE app.region_eu PARTITION OF app.region DEFAULT;
		INSERT INTO app.region VALUES ('eu', 'Europe'); ALTER TABLE app.country ADD region text REFERENCES app.region;
		UPDATE app.country SET region = 'eu';
		ALTER TABLE app.member ADD country text REFERENCES app.country; UPDATE app.member SET country = 'at' WHERE project = 'B'`)
	for mask, good := range map[string]bool{
		"app.country.name = 'x'": true, "app.region.name = upper(name)": true, "app.member.note = NULL": true,
		"app.country.code = 'x'": false, "app.country.region = NULL": false, "app.country.nothing = NULL": false, "app.country.name = nothing": false,
		"app.trace.note = NULL": false, "app.region_eu.name = NULL": false,
	} {
		name, as, _ := strings.Cut(mask, " = ")
		err := pgx.BeginFunc(t.Context(), p.from.v.tx, func(pgx.Tx) error { return Masks{name: as}.Check(t.Context(), p.from) })
		if good != (err == nil) || err != nil && !errors.Is(err, ErrMask) {
			t.Errorf("%s: %v", mask, err)
		}
	}
}

func TestPuttingBack(t *testing.T) {
	pg := pgtest.Start(t, pgtest.WithOwn("pg_dump"))
	for name, test := range map[string]func(*testing.T, *pgtest.Cluster){
		"a materialized view that cannot be renewed stays as it is": testStaleView,
		"sequences go forward, never back, and only with the rows":  testSequences,
		"a clone has the sequences of what it shares":               testLoadedSequences,
		"what is referred to and just being deleted is waited for":  testVanishingParent,
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

// counted are tables with sequences: one for two tables, one that goes down, one of
// rows that are shared.
const counted = `
	CREATE TABLE app.plan (id serial PRIMARY KEY);
	CREATE SEQUENCE app.pair;
	CREATE SEQUENCE app.down INCREMENT -1;
	CREATE TABLE app.one (id int PRIMARY KEY DEFAULT nextval('app.pair'), low int DEFAULT nextval('app.down'), ahead serial, plan int REFERENCES app.plan, project text REFERENCES app."Project");
	CREATE TABLE app.two (id int PRIMARY KEY DEFAULT nextval('app.pair'), project text REFERENCES app."Project");
	INSERT INTO app.plan SELECT FROM generate_series(1, 7);
	INSERT INTO app.one (plan, project) SELECT 7, 'A''1' FROM generate_series(1, 5);
	INSERT INTO app.two (project) SELECT 'A''1' FROM generate_series(1, 5)`

const stand = `SELECT concat_ws(' ', b.last_value, d.last_value, a.last_value) FROM app.pair b, app.down d, app.one_ahead_seq a`

func testSequences(t *testing.T, pg *pgtest.Cluster) {
	p := besides(t, pg, counted)
	p.exec(`DELETE FROM app.one; DELETE FROM app.two; ALTER SEQUENCE app.pair RESTART; ALTER SEQUENCE app.down RESTART; ALTER SEQUENCE app.one_ahead_seq RESTART 1000;
		INSERT INTO app.member VALUES (77, 'A''1', 'canary'); UPDATE app."Project" SET owner = 77 WHERE id = 'B'`)
	if _, err := p.merge(); !errors.Is(err, ErrMerge) {
		t.Fatalf("error %v, want ErrMerge", err)
	}
	if got := p.ask(stand); got != "1 -1 1000" {
		t.Errorf("after a refusal the sequences stand at %s", got)
	}
	p.exec(`UPDATE app."Project" SET owner = NULL WHERE id = 'B'`)
	done, err := p.merge()
	noErr(t, err)
	if got := p.ask(stand); got != "10 -5 1000" {
		t.Errorf("the sequences stand at %s", got)
	}
	if want := []Moved{{"app.down", -1, -5}, {"app.pair", 1, 10}}; !slices.Equal(done.Sequences, want) {
		t.Errorf("moved %v, want %v", done.Sequences, want)
	}
}

func testLoadedSequences(t *testing.T, pg *pgtest.Cluster) {
	p := besides(t, pg, counted)
	names := []string{}
	for _, q := range p.from.Sequences {
		names = append(names, q.Name)
	}
	if want := []string{"app.down", "app.one_ahead_seq", "app.pair", "app.plan_id_seq"}; !slices.Equal(names, want) {
		t.Errorf("sequences %v, want %v", names, want)
	}
	pg.Exec(`DROP DATABASE IF EXISTS anew WITH (FORCE)`)
	pg.Exec(`CREATE DATABASE anew`)
	to := pg.Conn("anew")
	noErr(t, Define(t.Context(), to, []byte(pg.Run("pg_dump", "--schema-only", "-d", pg.DSN("beside")))))
	_, err := Load(t.Context(), to, p.from, nil, func(string, int64) {})
	noErr(t, err)
	at := func() (all string) {
		noErr(t, to.QueryRow(t.Context(), strings.Replace(stand, "app.pair b", "app.plan_id_seq p, app.pair b", 1)+` WHERE p.last_value = 7`).Scan(&all))
		return all
	}
	if got := at(); got != "10 -5 5" {
		t.Errorf("the sequences stand at %s", got)
	}
	_, err = to.Exec(t.Context(), `SELECT setval('app.pair', 50), setval('app.down', -50)`)
	noErr(t, err)
	for _, sql := range p.from.Advance() { // as load.sql does
		_, err := to.Exec(t.Context(), sql)
		noErr(t, err)
	}
	if got := at(); got != "50 -50 5" {
		t.Errorf("loaded again, the sequences stand at %s", got)
	}
}

func testVanishingParent(t *testing.T, pg *pgtest.Cluster) {
	p := besides(t, pg, `CREATE TABLE app.country (code text PRIMARY KEY); INSERT INTO app.country VALUES ('it'), ('at');
		ALTER TABLE app.member ADD country text REFERENCES app.country;
		UPDATE app.member SET country = 'it' WHERE id = 1; UPDATE app.member SET country = 'at' WHERE id > 1`)
	p.exec(`UPDATE app.member SET country = NULL WHERE id = 1`)
	other, err := pg.Conn("shop").Begin(t.Context())
	noErr(t, err)
	_, err = other.Exec(t.Context(), `DELETE FROM app.country WHERE code = 'it'`)
	noErr(t, err)
	ended := make(chan error, 1)
	go func() {
		_, err := p.merge()
		ended <- err
	}()
	pg.Await(`SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%FOR KEY SHARE%')`)
	noErr(t, other.Commit(t.Context()))
	if err := <-ended; !errors.Is(err, ErrMerge) || !strings.Contains(err.Error(), "1 rows of app.member would refer to rows of app.country") {
		t.Errorf("error %v", err)
	}
	if n := p.ask(`SELECT count(*)::text FROM app.member m WHERE NOT EXISTS (SELECT FROM app.country c WHERE c.code = m.country) AND country IS NOT NULL`); n != "0" {
		t.Errorf("%s members refer to no country", n)
	}
}
