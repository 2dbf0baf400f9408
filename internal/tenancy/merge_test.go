package tenancy

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

// marked are the lines of a dump that hold a project's mark, or those that do not.
func marked(s, mark string, with bool) (out []string) {
	for line := range strings.Lines(s) {
		if strings.Contains(line, mark) == with {
			out = append(out, line)
		}
	}
	slices.Sort(out)
	return out
}

// grow gives project p rows by chance, each with its mark; ids begin at base.
func grow(t *testing.T, conn *pgx.Conn, rnd *rand.Rand, p, mark string, base int) {
	t.Helper()
	exec := func(sql string, args ...any) {
		t.Helper()
		_, err := conn.Exec(t.Context(), sql, args...)
		noErr(t, err)
	}
	id := base
	next := func() int { id++; return id }
	author := next()
	exec(`INSERT INTO app.member VALUES ($1, $2, $3)`, author, p, mark)
	for range 1 + rnd.IntN(3) {
		doc, before := next(), any(nil)
		exec(`INSERT INTO app.doc VALUES ($1, $2, $3, $4)`, p, doc, author, mark)
		for range rnd.IntN(5) {
			c, a := next(), next()
			exec(`INSERT INTO app.comment VALUES ($1, $2, $3, $4, $5)`, c, p, doc, before, mark)
			exec(`BEGIN`)
			exec(`INSERT INTO app.a VALUES ($1, $1, $2, $3)`, a, c, mark)
			exec(`INSERT INTO app.b VALUES ($1, $1, $2)`, a, mark)
			exec(`COMMIT`)
			exec(`INSERT INTO app.version VALUES ($1, $2, $3)`, a%1000, c, mark)
			exec(`INSERT INTO app.version_tag SELECT $1, $2 FROM generate_series(1, 2)`, a%1000, mark)
			before = c
		}
	}
}

// disturb changes rows by chance; what a constraint forbids does not happen.
func disturb(t *testing.T, conn *pgx.Conn, rnd *rand.Rand) {
	t.Helper()
	tables := []string{`"Project"`, "member", "doc", "comment", "a", "b", "version", "version_tag", "only_high", "invoice", "trace"}
	for range 25 {
		table := "app." + tables[rnd.IntN(len(tables))]
		note := map[bool]string{true: "name", false: "note"}[table == `app."Project"`]
		pick := fmt.Sprintf(`(tableoid, ctid) = (SELECT tableoid, ctid FROM %s ORDER BY md5(ctid::text || '%d') LIMIT 1)`, table, rnd.IntN(1000))
		sql := []string{
			fmt.Sprintf(`UPDATE %s SET %s = %[2]s || ' changed' WHERE %s`, table, note, pick),
			fmt.Sprintf(`DELETE FROM %s WHERE %s`, table, pick),
			fmt.Sprintf(`INSERT INTO app.version_tag SELECT version, note FROM app.version_tag WHERE %s`, strings.ReplaceAll(pick, table+" ", "app.version_tag ")),
			fmt.Sprintf(`INSERT INTO app.comment SELECT id + 5000 + %d, project, doc, reply_to, note FROM app.comment ORDER BY md5(id::text || '%[1]d') LIMIT 1`, rnd.IntN(1000)),
		}[rnd.IntN(4)]
		var refused bool
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			refused = strings.Contains(err.Error(), "SQLSTATE 23")
			if !refused {
				t.Fatalf("%s: %v", sql, err)
			}
		}
	}
}

// conflict lets another project, in some histories, take what the copy needs, or
// depend on what the copy lacks.
func conflict(t *testing.T, conn *pgx.Conn, seed uint64) {
	t.Helper()
	sql := map[uint64]string{
		1: `INSERT INTO app.member VALUES (77, 'A''1', 'canary'); UPDATE app."Project" SET owner = 77 WHERE id = 'B'`,
		3: `DELETE FROM app.comment WHERE id = 3; INSERT INTO app.comment VALUES (3, 'B', NULL, NULL, 'other')`,
	}[seed%4]
	_, err := conn.Exec(t.Context(), `SET session_replication_role = replica; `+sql+`; SET session_replication_role = origin`)
	noErr(t, err)
}

// Whatever happened to live: a project is put back as the copy has it and nobody
// else notices, or nothing happens at all.
func TestAProjectIsPutBackOrNothingHappens(t *testing.T) {
	pg := pgtest.Start(t, pgtest.WithOwn("pg_dump"))
	const key, mark, histories = "A'1", "canary", 16
	put, refused := 0, 0
	for seed := range uint64(histories) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		pg.Exec(`DROP DATABASE IF EXISTS beside WITH (FORCE)`)
		live := shop(t, pg)
		_, err := live.Exec(t.Context(), `DROP TRIGGER forbid ON app.doc`)
		noErr(t, err)
		grow(t, live, rnd, key, mark, 20200)
		grow(t, live, rnd, "B", "other", 30600)
		live.Close(t.Context())
		pg.Exec(`CREATE DATABASE beside TEMPLATE shop`)
		live, beside := pg.Conn("shop"), pg.Conn("beside")
		disturb(t, live, rnd)
		conflict(t, live, seed)
		_, err = live.Exec(t.Context(), `CREATE TRIGGER forbid BEFORE INSERT OR UPDATE OR DELETE ON app.doc FOR EACH ROW EXECUTE FUNCTION app.forbid(); REFRESH MATERIALIZED VIEW app.digest`)
		noErr(t, err)
		before, want := dump(pg, "shop"), dump(pg, "beside")
		v, err := OpenView(t.Context(), beside, Layout{Kind: Rows, Database: "beside", Root: layout.Root, Key: layout.Key})
		noErr(t, err)
		s, err := v.Project(t.Context(), key)
		noErr(t, err)
		shown, err := Compare(t.Context(), live, layout, s)
		noErr(t, err)
		if dump(pg, "shop") != before {
			t.Fatalf("seed %d: comparing changed rows", seed)
		}
		done, err := Merge(t.Context(), live, layout, s, nil)
		after := dump(pg, "shop")
		switch {
		case errors.Is(err, ErrMerge):
			refused++
			t.Logf("seed %d: %v", seed, err)
			if after != before {
				t.Errorf("seed %d: refused (%v), and rows changed", seed, err)
			}
		case err != nil:
			t.Errorf("seed %d: %v", seed, err)
		default:
			put++
			if got, want := marked(after, mark, true), marked(want, mark, true); !slices.Equal(got, want) {
				t.Errorf("seed %d: the project is\n%v, want\n%v", seed, got, want)
			}
			if got, want := marked(after, mark, false), marked(before, mark, false); !slices.Equal(got, want) {
				t.Errorf("seed %d: others are\n%v, want\n%v", seed, got, want)
			}
			if !slices.Equal(shown, done.Changes) || len(done.Others) == 0 {
				t.Errorf("seed %d: shown %v, done %+v", seed, shown, done)
			}
		}
		noErr(t, v.Close(t.Context()))
		beside.Close(t.Context())
		live.Close(t.Context())
	}
	if put < histories/4 || refused < histories/4 { // a half each, but for what autovacuum and chance do to places
		t.Errorf("of %d histories %d ended in a project put back, and %d were refused", histories, put, refused)
	}
}
