package tenancy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/holdfast-dr/holdfast/internal/catalog"
)

// Projects that are a whole schema, or a whole database.

// namesOf lists what can be a project, by layout: never what is the server's own.
var namesOf = map[string]string{
	Schema:   `SELECT n.nspname::text FROM pg_namespace n WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'`,
	Database: `SELECT d.datname::text FROM pg_database d WHERE d.datname NOT IN ('postgres', 'template0', 'template1')`,
}

// there says whether a schema or a database of a name is there, and can be a project.
func there(ctx context.Context, q Querier, l Layout, keyText string) (yes bool, err error) {
	err = q.QueryRow(ctx, `SELECT EXISTS (SELECT FROM (`+namesOf[l.Kind]+`) n(name) WHERE name = $1)`, keyText).Scan(&yes)
	return yes, err
}

// ObjectID is the OID of a project that is a schema or a database; 0 for rows.
func ObjectID(ctx context.Context, q Querier, l Layout, keyText string) (oid uint32, err error) {
	switch l.Kind {
	case Schema:
		err = q.QueryRow(ctx, `SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = $1`, keyText).Scan(&oid)
	case Database:
		err = q.QueryRow(ctx, `SELECT oid FROM pg_catalog.pg_database WHERE datname = $1`, keyText).Scan(&oid)
	}
	if errors.Is(err, pgx.ErrNoRows) {
		err = ErrNoProject
	}
	return oid, err
}

// renamed finds a tombstone's schema or database under another name than it had when
// it was requested: in the same system, what has its OID is it. That is so on one
// timeline alone: a server that was taken back to an earlier moment gives OIDs a second
// time. Who calls it knows the timeline, or takes the OID out of the tombstone.
func renamed(ctx context.Context, q Querier, t catalog.Tombstone) (name string, yes bool, err error) {
	sql := map[string]string{
		Schema:   `SELECT nspname::text FROM pg_catalog.pg_namespace WHERE oid = $1`,
		Database: `SELECT datname::text FROM pg_catalog.pg_database WHERE oid = $1`,
	}[t.Layout]
	if sql == "" || t.OID == 0 {
		return "", false, nil
	}
	err = q.QueryRow(ctx, sql+` AND (SELECT system_identifier::text FROM pg_catalog.pg_control_system()) = $2`, t.OID, t.SystemID).Scan(&name)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", false, nil
	}
	return name, err == nil, err
}

// mine are the tables of a schema, or all that are no server's and no extension's.
func (g *graph) mine(l Layout, keyText string) map[uint32]bool {
	own := map[uint32]bool{}
	for oid, r := range g.rels {
		system := strings.HasPrefix(r.schema, "pg_") || r.schema == "information_schema" || r.schema == ""
		if !system && (l.Kind == Database || r.schema == keyText) {
			own[oid] = true
		}
	}
	return own
}

// holding are those of mine whose rows are here: a foreign table's are another server's.
func (g *graph) holding(l Layout, keyText string) map[uint32]bool {
	own := g.mine(l, keyText)
	maps.DeleteFunc(own, func(oid uint32, _ bool) bool { return g.rels[oid].kind == "f" })
	return own
}

// countTables counts the rows of each table of a project that is a schema or a database.
// Tables are named without the schema that is the project.
func countTables(ctx context.Context, conn *pgx.Conn, l Layout, keyText string) (counts []catalog.Count, err error) {
	err = within(ctx, conn, l, keyText, func(conn *pgx.Conn) error {
		return inTx(ctx, conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
			counts, err = countIn(ctx, tx, l, keyText)
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("counting the rows of a project that is a %s: %w", l.Kind, hide(err, keyText))
	}
	return counts, nil
}

func countIn(ctx context.Context, tx pgx.Tx, l Layout, keyText string) (counts []catalog.Count, err error) {
	if err := settle(ctx, tx); err != nil {
		return nil, err
	}
	if yes, err := there(ctx, tx, l, keyText); err != nil || !yes {
		return nil, orElse(err, ErrNoProject)
	}
	g, err := readGraph(ctx, tx, l)
	if err != nil {
		return nil, err
	}
	stored, err := g.stored(ctx, tx, g.mine(l, keyText))
	counts = []catalog.Count{}
	for _, oid := range slices.Sorted(maps.Keys(stored)) {
		counts = append(counts, catalog.Count{Table: l.Unnamed(keyText, g.rels[oid].name), Rows: stored[oid]})
	}
	return counts, err
}

// stored counts the rows of those of the tables that store any.
func (g *graph) stored(ctx context.Context, q Querier, tables map[uint32]bool) (map[uint32]int64, error) {
	rows := map[uint32]int64{}
	for _, oid := range sorted(tables) {
		if g.rels[oid].kind != "r" {
			continue
		}
		var n int64
		if err := q.QueryRow(ctx, `SELECT count(*) FROM ONLY `+g.rels[oid].name).Scan(&n); err != nil {
			return nil, err
		}
		rows[oid] = n
	}
	return rows, nil
}

// Unnamed is a table's name for what outlives the project: without the schema, where that
// is the project's name.
func (l Layout) Unnamed(keyText, table string) string {
	if l.Kind != Schema {
		return table
	}
	return bare(keyText, table)
}

// bare is a table's name, as SQL writes it, without its schema.
func bare(schema, table string) string {
	for _, written := range []string{pgx.Identifier{schema}.Sanitize(), schema} {
		if rest, ok := strings.CutPrefix(table, written+"."); ok {
			return rest
		}
	}
	return table
}

// within calls do with a connection to the database of a project; conn is one to the
// database that lists projects.
func within(ctx context.Context, conn *pgx.Conn, l Layout, keyText string, do func(*pgx.Conn) error) error {
	if l.Kind != Database {
		return do(conn)
	}
	if yes, err := there(ctx, conn, l, keyText); err != nil || !yes {
		return orElse(err, ErrNoProject)
	}
	cfg := conn.Config().Copy()
	cfg.Database = keyText
	to, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return err
	}
	return errors.Join(do(to), to.Close(context.WithoutCancel(ctx)))
}

// foreignKeyDDL is a foreign key as pg_dump writes it, with the schema that it refers to.
var foreignKeyDDL = regexp.MustCompile(`(?m)^ALTER TABLE (?:ONLY )?.+\n    ADD CONSTRAINT .+ FOREIGN KEY .+ REFERENCES ("(?:[^"]|"")+"|[^".( ]+)\..+;\n`)

// Alone takes foreign keys to schemas of projects that the view is not for out of DDL as
// pg_dump writes it: their tables do not come along. left says which were taken out.
func (v *View) Alone(ddl []byte) (alone []byte, left []string) {
	if len(v.hidden) == 0 {
		return ddl, nil
	}
	alone = foreignKeyDDL.ReplaceAllFunc(ddl, func(statement []byte) []byte {
		schema := string(foreignKeyDDL.FindSubmatch(statement)[1])
		if name, quoted := strings.CutPrefix(schema, `"`); quoted {
			schema = strings.ReplaceAll(strings.TrimSuffix(name, `"`), `""`, `"`)
		}
		if !v.hidden[schema] {
			return statement
		}
		left = append(left, "a foreign key to another project's schema: "+strings.Join(strings.Fields(string(statement)), " "))
		return nil
	})
	return alone, left
}

// hidden is an error without the name of a project.
type hidden struct {
	error
	text string
}

func (h hidden) Error() string { return h.text }
func (h hidden) Unwrap() error { return h.error }

// Unnamed is an error for records that outlive a project: without the project's name
// where its layout puts that into errors. Why it failed is then for who does by hand
// what failed.
func Unnamed(err error, l Layout, keyText string) error {
	if err == nil || l.rows() {
		return err
	}
	h := hide(err, keyText)
	if strings.Contains(h.Error(), keyText) {
		return hidden{err, "it failed, and the words would name the project: `holdfast project export` by hand tells why"}
	}
	return h
}

// Wordless is an error of a whole database for records that outlive its projects: where
// they are schemas or databases, any of its words may be a name.
func Wordless(err error, l Layout) error {
	if err == nil || l.rows() {
		return err
	}
	text := "it failed, and the words could name projects: `holdfast project export --all` by hand tells why"
	var refused *pgconn.PgError
	if errors.As(err, &refused) {
		text += " (SQLSTATE " + refused.Code + ")"
	}
	return hidden{err, text}
}

// hide takes the name of a project out of an error's text. What the server says of it
// is reduced to its code: it does not always quote names.
func hide(err error, keyText string) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	var connecting *pgconn.ConnectError
	if errors.As(err, &connecting) {
		text = strings.ReplaceAll(text, connecting.Error(), "connecting to the project's database failed")
	}
	var refused *pgconn.PgError
	if errors.As(err, &refused) {
		text = strings.ReplaceAll(text, refused.Error(), "the server refused it (SQLSTATE "+refused.Code+")")
		if connecting != nil {
			text += " (SQLSTATE " + refused.Code + ")"
		}
	}
	for _, quoted := range []string{`"` + keyText + `"`, pgx.Identifier{keyText}.Sanitize()} {
		text = strings.ReplaceAll(text, quoted, "the project")
	}
	return hidden{err, text}
}
