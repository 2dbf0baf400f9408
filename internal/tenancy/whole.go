package tenancy

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/holdfast-dr/holdfast/internal/catalog"
)

// Projects that are a whole schema, or a whole database.

// ErrTied means that something outside a project's schema depends on what is in it.
var ErrTied = errors.New("what is not the project's depends on its schema")

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
		return nil, orNoProject(err)
	}
	g, err := readGraph(ctx, tx, l)
	if err != nil {
		return nil, err
	}
	counts = []catalog.Count{}
	for _, oid := range sorted(g.mine(l, keyText)) {
		r := g.rels[oid]
		if r.kind != "r" {
			continue
		}
		one := catalog.Count{Table: l.Unnamed(keyText, r.name)}
		if err := tx.QueryRow(ctx, `SELECT count(*) FROM ONLY `+r.name).Scan(&one.Rows); err != nil {
			return nil, err
		}
		counts = append(counts, one)
	}
	return counts, nil
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

func orNoProject(err error) error {
	if err == nil {
		return ErrNoProject
	}
	return err
}

// within calls do with a connection to the database of a project; conn is one to the
// database that lists projects.
func within(ctx context.Context, conn *pgx.Conn, l Layout, keyText string, do func(*pgx.Conn) error) error {
	if l.Kind != Database {
		return do(conn)
	}
	if yes, err := there(ctx, conn, l, keyText); err != nil || !yes {
		return orNoProject(err)
	}
	cfg := conn.Config().Copy()
	cfg.Database = keyText
	to, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return err
	}
	return errors.Join(do(to), to.Close(context.WithoutCancel(ctx)))
}

// straysSQL names what depends on a schema, directly or not, and is outside it. A
// column stands for its table, a rule for its view. What the catalogue does not keep in a
// schema (casts, extensions, what is published) is left out.
const straysSQL = `
WITH RECURSIVE dep(classid, objid) AS (
	SELECT 'pg_namespace'::regclass::oid, oid FROM pg_namespace WHERE nspname = $1
	UNION
	SELECT CASE WHEN r.oid IS NULL THEN d.classid ELSE 'pg_class'::regclass END, coalesce(r.ev_class, d.objid)
	  FROM pg_depend d JOIN dep ON d.refclassid = dep.classid AND d.refobjid = dep.objid
	  LEFT JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
)
SELECT DISTINCT a.type || ' ' || o.identity
  FROM dep, pg_identify_object_as_address(dep.classid, dep.objid, 0) a, pg_identify_object(dep.classid, dep.objid, 0) o
 WHERE CASE a.type WHEN 'type' THEN o.schema <> quote_ident($1) ELSE a.object_names[1] <> $1 END AND a.object_names[1] !~ '^pg_toast'
   AND a.type NOT IN ('cast', 'default acl', 'extension', 'publication relation', 'publication namespace', 'transform', 'access method', 'index', 'toast table')
   AND NOT EXISTS (SELECT FROM pg_type t WHERE a.type = 'type' AND t.oid = dep.objid AND (t.typtype = 'c' OR t.typcategory = 'A'))
   AND NOT EXISTS (SELECT FROM pg_trigger t WHERE a.type = 'trigger' AND t.oid = dep.objid AND t.tgisinternal)
 ORDER BY 1`

// Tied names what is outside a project's schema and depends on it; nothing does where
// projects are rows or databases.
func Tied(ctx context.Context, q Querier, l Layout, keyText string) ([]string, error) {
	if l.Kind != Schema {
		return nil, nil
	}
	rows, err := q.Query(ctx, straysSQL, keyText)
	if err != nil {
		return nil, fmt.Errorf("looking what depends on a project's schema: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// dropSchema drops a schema in one transaction, with what outside it depends on it
// where force says so; strays names that.
func dropSchema(ctx context.Context, conn *pgx.Conn, name string, force bool) (counts []catalog.Count, strays []string, err error) {
	err = inTx(ctx, conn, pgx.TxOptions{}, func(tx pgx.Tx) error {
		if counts, err = countIn(ctx, tx, Layout{Kind: Schema, Database: "-"}, name); err != nil {
			return err
		}
		if strays, err = Tied(ctx, tx, Layout{Kind: Schema}, name); err != nil {
			return err
		}
		if len(strays) > 0 && !force {
			return fmt.Errorf("%w: %s; drop or change that first", ErrTied, strings.Join(strays, ", "))
		}
		if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '30s'`); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `DROP SCHEMA `+pgx.Identifier{name}.Sanitize()+` CASCADE`)
		return err
	})
	if err != nil {
		return nil, strays, fmt.Errorf("dropping a project's schema: %w", err)
	}
	return counts, strays, nil
}

// dropDatabase drops a database; with force whoever is connected is cut off.
func dropDatabase(ctx context.Context, conn *pgx.Conn, name string, force bool) error {
	quoted := pgx.Identifier{name}.Sanitize()
	how := ""
	if force {
		how = " WITH (FORCE)"
		if _, err := conn.Exec(ctx, `ALTER DATABASE `+quoted+` IS_TEMPLATE false`); err != nil {
			return fmt.Errorf("dropping a project's database: %w", err)
		}
	}
	if _, err := conn.Exec(ctx, `DROP DATABASE `+quoted+how); err != nil {
		var refused *pgconn.PgError
		if errors.As(err, &refused) && refused.Code == "55006" {
			return fmt.Errorf("dropping a project's database: %w; end what uses it, then again: %s", err, refused.Detail)
		}
		return fmt.Errorf("dropping a project's database: %w", err)
	}
	return nil
}

// evict counts the rows of a restored copy's database, and takes what would hold it
// up out of it: prepared transactions, and subscriptions, which keep their slots
// elsewhere.
func evict(ctx context.Context, connect Connector, l Layout, name string) (counts []catalog.Count, err error) {
	conn, err := connect(ctx, name)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if counts, err = countTables(ctx, conn, l, name); err != nil {
		return nil, err
	}
	for _, act := range []struct{ list, sql string }{
		{`SELECT quote_literal(gid) FROM pg_prepared_xacts WHERE database = current_database()`, `ROLLBACK PREPARED %s`},
		{
			`SELECT quote_ident(subname) FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid WHERE d.datname = current_database()`,
			`ALTER SUBSCRIPTION %[1]s DISABLE; ALTER SUBSCRIPTION %[1]s SET (slot_name = NONE); DROP SUBSCRIPTION %[1]s`,
		},
	} {
		rows, err := conn.Query(ctx, act.list)
		if err != nil {
			return nil, err
		}
		names, err := pgx.CollectRows(rows, pgx.RowTo[string])
		for _, n := range names {
			for _, sql := range strings.Split(fmt.Sprintf(act.sql, n), "; ") {
				if err == nil {
					_, err = conn.Exec(ctx, sql)
				}
			}
		}
		if err != nil {
			return nil, fmt.Errorf("making a project's database ready to be dropped: %w", err)
		}
	}
	return counts, nil
}

// hidden is an error without the name of a project.
type hidden struct {
	error
	text string
}

func (h hidden) Error() string { return h.text }
func (h hidden) Unwrap() error { return h.error }

// hide takes the name of a project, which the server quotes, out of an error's text.
func hide(err error, keyText string) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	for _, quoted := range []string{`"` + keyText + `"`, pgx.Identifier{keyText}.Sanitize()} {
		text = strings.ReplaceAll(text, quoted, "the project")
	}
	return hidden{err, text}
}
