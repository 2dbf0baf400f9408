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

// ErrTied means that something outside a project's schema depends on what is in it.
var ErrTied = errors.New("what is not the project's depends on its schema")

// straysSQL names what depends on a schema, directly or not, and is outside it: what
// DROP … CASCADE would take as well. A rule stands for its view. What has no schema
// (extensions, event triggers, servers) is outside; row types, arrays, casts, internal
// triggers and what is published go with what they belong to.
const straysSQL = `
WITH RECURSIVE dep(classid, objid) AS (
	SELECT 'pg_namespace'::regclass::oid, oid FROM pg_namespace WHERE nspname = $1
	UNION
	SELECT CASE WHEN r.oid IS NULL THEN d.classid ELSE 'pg_class'::regclass END, coalesce(r.ev_class, d.objid)
	  FROM pg_depend d JOIN dep ON d.refclassid = dep.classid AND d.refobjid = dep.objid
	  LEFT JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
), placed AS (
	SELECT dep.*, coalesce(
		(SELECT relnamespace FROM pg_class c WHERE classid = 'pg_class'::regclass AND c.oid = objid),
		(SELECT typnamespace FROM pg_type t WHERE classid = 'pg_type'::regclass AND t.oid = objid),
		(SELECT pronamespace FROM pg_proc p WHERE classid = 'pg_proc'::regclass AND p.oid = objid),
		(SELECT connamespace FROM pg_constraint c WHERE classid = 'pg_constraint'::regclass AND c.oid = objid),
		(SELECT relnamespace FROM pg_attrdef a JOIN pg_class c ON c.oid = adrelid WHERE classid = 'pg_attrdef'::regclass AND a.oid = objid),
		(SELECT relnamespace FROM pg_trigger t JOIN pg_class c ON c.oid = tgrelid WHERE classid = 'pg_trigger'::regclass AND t.oid = objid),
		(SELECT relnamespace FROM pg_policy p JOIN pg_class c ON c.oid = polrelid WHERE classid = 'pg_policy'::regclass AND p.oid = objid),
		(SELECT oprnamespace FROM pg_operator o WHERE classid = 'pg_operator'::regclass AND o.oid = objid),
		(SELECT opcnamespace FROM pg_opclass o WHERE classid = 'pg_opclass'::regclass AND o.oid = objid),
		(SELECT opfnamespace FROM pg_opfamily o WHERE classid = 'pg_opfamily'::regclass AND o.oid = objid),
		(SELECT opfnamespace FROM pg_amop m JOIN pg_opfamily o ON o.oid = amopfamily WHERE classid = 'pg_amop'::regclass AND m.oid = objid),
		(SELECT opfnamespace FROM pg_amproc m JOIN pg_opfamily o ON o.oid = amprocfamily WHERE classid = 'pg_amproc'::regclass AND m.oid = objid),
		(SELECT collnamespace FROM pg_collation c WHERE classid = 'pg_collation'::regclass AND c.oid = objid),
		(SELECT connamespace FROM pg_conversion c WHERE classid = 'pg_conversion'::regclass AND c.oid = objid),
		(SELECT stxnamespace FROM pg_statistic_ext x WHERE classid = 'pg_statistic_ext'::regclass AND x.oid = objid),
		(SELECT cfgnamespace FROM pg_ts_config x WHERE classid = 'pg_ts_config'::regclass AND x.oid = objid),
		(SELECT dictnamespace FROM pg_ts_dict x WHERE classid = 'pg_ts_dict'::regclass AND x.oid = objid),
		(SELECT prsnamespace FROM pg_ts_parser x WHERE classid = 'pg_ts_parser'::regclass AND x.oid = objid),
		(SELECT tmplnamespace FROM pg_ts_template x WHERE classid = 'pg_ts_template'::regclass AND x.oid = objid),
		0::oid) AS space
	  FROM dep WHERE classid <> 'pg_namespace'::regclass
)
SELECT DISTINCT o.type || ' ' || o.identity FROM placed, pg_identify_object(classid, objid, 0) o
 WHERE space NOT IN (SELECT oid FROM pg_namespace WHERE nspname IN ($1, 'pg_toast'))
   AND o.type NOT IN ('cast', 'default acl', 'publication relation', 'publication namespace')
   AND NOT EXISTS (SELECT FROM pg_type t WHERE classid = 'pg_type'::regclass AND t.oid = objid AND (t.typtype = 'c' OR t.typcategory = 'A'))
   AND NOT EXISTS (SELECT FROM pg_trigger t WHERE classid = 'pg_trigger'::regclass AND t.oid = objid AND t.tgisinternal)
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
// where force says so; strays names that. Its tables are locked before anybody looks,
// so that nothing comes to depend on them in between.
func dropSchema(ctx context.Context, conn *pgx.Conn, name string, force bool) (counts []catalog.Count, strays []string, err error) {
	err = inTx(ctx, conn, pgx.TxOptions{}, func(tx pgx.Tx) error {
		if err := lockSchema(ctx, tx, name, force); err != nil {
			return err
		}
		if counts, err = countIn(ctx, tx, Layout{Kind: Schema, Database: "-"}, name); err != nil {
			return err
		}
		if strays, err = Tied(ctx, tx, Layout{Kind: Schema}, name); err != nil {
			return err
		}
		if err := TiedError(strays); err != nil && !force {
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

// TiedError is ErrTied with what depends on a schema; nil where nothing does.
func TiedError(strays []string) error {
	if len(strays) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s; drop or change that first", ErrTied, strings.Join(strays, ", "))
}

// lockSchema locks the tables and views of a schema against everybody. With force no
// trigger on events may forbid the drop.
func lockSchema(ctx context.Context, tx pgx.Tx, name string, force bool) error {
	sets := []string{`SET LOCAL lock_timeout = '30s'`}
	if force {
		sets = append(sets, `SET LOCAL session_replication_role = replica`)
	}
	for _, set := range sets {
		if _, err := tx.Exec(ctx, set); err != nil {
			return err
		}
	}
	rows, err := tx.Query(ctx, `SELECT format('%I.%I', n.nspname, c.relname) FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = $1 AND c.relkind IN ('r', 'p', 'v') ORDER BY c.oid`, name)
	if err != nil {
		return err
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	if yes, err := there(ctx, tx, Layout{Kind: Schema}, name); err != nil || !yes {
		return orElse(err, ErrNoProject)
	}
	for _, t := range tables {
		if _, err := tx.Exec(ctx, `LOCK TABLE `+t+` IN ACCESS EXCLUSIVE MODE`); err != nil {
			return err
		}
	}
	return nil
}

// dropDatabase drops a database; with force whoever is connected is cut off.
func dropDatabase(ctx context.Context, conn *pgx.Conn, name string, force bool) error {
	sql := `DROP DATABASE ` + pgx.Identifier{name}.Sanitize()
	if force {
		sql += " WITH (FORCE)"
	}
	_, err := conn.Exec(ctx, sql)
	var refused *pgconn.PgError
	if errors.As(err, &refused) && refused.Code == "55006" {
		return fmt.Errorf("dropping a project's database: %w; end what uses it, then again: %s", err, refused.Detail)
	}
	if err != nil {
		return fmt.Errorf("dropping a project's database: %w", err)
	}
	return nil
}

// evict makes a restored copy's database ready to be dropped, and counts its rows.
// conn is to another database. One whose own drop was interrupted lets nobody in, and
// needs nothing.
func evict(ctx context.Context, conn *pgx.Conn, connect Connector, l Layout, name string) (counts []catalog.Count, err error) {
	var invalid bool
	if err := conn.QueryRow(ctx, `SELECT datconnlimit = -2 FROM pg_catalog.pg_database WHERE datname = $1`, name).Scan(&invalid); err != nil || invalid {
		return nil, err
	}
	for _, set := range []string{`IS_TEMPLATE false`, `ALLOW_CONNECTIONS true`, `CONNECTION LIMIT -1`} {
		if _, err := conn.Exec(ctx, `ALTER DATABASE `+pgx.Identifier{name}.Sanitize()+` `+set); err != nil {
			return nil, fmt.Errorf("making a project's database ready to be dropped: %w", err)
		}
	}
	in, err := connect(ctx, name)
	if err != nil {
		return nil, err
	}
	defer in.Close(context.WithoutCancel(ctx))
	// What the database sets for itself must not choose which catalogue is asked.
	if _, err = in.Exec(ctx, `SET search_path = pg_catalog, pg_temp`); err == nil {
		if counts, err = countTables(ctx, in, l, name); err == nil {
			err = release(ctx, in)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("making a project's database ready to be dropped: %w", err)
	}
	return counts, nil
}

// release ends what holds a database besides sessions: prepared transactions, and
// subscriptions, which keep their slots elsewhere.
func release(ctx context.Context, in *pgx.Conn) error {
	for _, held := range []struct {
		list string
		acts []string
	}{
		{`SELECT quote_literal(gid) FROM pg_prepared_xacts WHERE database = current_database()`, []string{`ROLLBACK PREPARED %s`}},
		{
			`SELECT quote_ident(subname) FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid WHERE d.datname = current_database()`,
			[]string{`ALTER SUBSCRIPTION %s DISABLE`, `ALTER SUBSCRIPTION %s SET (slot_name = NONE)`, `DROP SUBSCRIPTION %s`},
		},
	} {
		rows, err := in.Query(ctx, held.list)
		if err != nil {
			return err
		}
		names, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return err
		}
		for _, name := range names {
			for _, act := range held.acts {
				if _, err := in.Exec(ctx, fmt.Sprintf(act, name)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
