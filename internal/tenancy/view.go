package tenancy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// View is one moment of a database, from which any number of projects are read,
// one after the other. It holds a transaction open until Close; where it only
// reads it makes temporary tables all the same, so a hot standby has none.
type View struct {
	At       Moment
	Layout   Layout
	Database string          // the one that is read
	Owner    string          // of the database
	projects map[string]bool // schemas that are projects
	hidden   map[string]bool // those of them that the view is not for
	conn     *pgx.Conn
	tx       pgx.Tx
	g        *graph
	shapes   map[uint32]*shape
	external string // the exported snapshot's name; "" until asked for
}

// Moment says of which server and when something was read.
type Moment struct {
	Time     time.Time `json:"time"` // the server's clock
	LSN      lsn.LSN   `json:"lsn"`  // everything in it was written before; more may have been
	SystemID string    `json:"system_id"`
	Server   string    `json:"server_version"`
	Encoding string    `json:"encoding"` // the database's
	Collate  string    `json:"collate"`
	Ctype    string    `json:"ctype"`
}

// OpenView begins to read a database in one snapshot (REPEATABLE READ).
func OpenView(ctx context.Context, conn *pgx.Conn, l Layout) (*View, error) {
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err == nil {
		var v *View
		if v, err = newView(ctx, conn, tx, l); err == nil {
			return v, nil
		}
		err = errors.Join(err, ignoreClosed(tx.Rollback(context.WithoutCancel(ctx))))
	}
	return nil, fmt.Errorf("reading projects of database %s in one snapshot: %w", l.Database, err)
}

// ViewOf is OpenView of the database that holds a project, on a connection of its own;
// end closes both. The error is ErrNoProject where the project is a database, and that
// is not there.
func ViewOf(ctx context.Context, connect Connector, l Layout, keyText string) (v *View, end func() error, err error) {
	conn, err := connect(ctx, l.In(keyText))
	if err != nil {
		if l.Kind == Database && IsNoDatabase(err) {
			err = ErrNoProject
		}
		return nil, nil, err
	}
	if v, err = OpenView(ctx, conn, l); err != nil {
		return nil, nil, errors.Join(err, conn.Close(context.WithoutCancel(ctx)))
	}
	return v, func() error { return errors.Join(v.Close(ctx), conn.Close(context.WithoutCancel(ctx))) }, nil
}

// IsNoDatabase says whether a connection failed because there is no such database.
func IsNoDatabase(err error) bool {
	var refused *pgconn.PgError
	return errors.As(err, &refused) && refused.Code == "3D000" // invalid_catalog_name
}

func newView(ctx context.Context, conn *pgx.Conn, tx pgx.Tx, l Layout) (*View, error) {
	v := &View{Layout: l, conn: conn, tx: tx}
	if err := settle(ctx, tx); err != nil {
		return nil, err
	}
	if err := encode(ctx, tx); err != nil {
		return nil, err
	}
	var at *string
	err := tx.QueryRow(ctx, `SELECT now(), CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END::text,
		(SELECT system_identifier::text FROM pg_control_system()), current_setting('server_version'), getdatabaseencoding(), datcollate::text, datctype::text, datname::text, pg_get_userbyid(datdba)::text
		FROM pg_database WHERE datname = current_database()`).Scan(&v.At.Time, &at, &v.At.SystemID, &v.At.Server, &v.At.Encoding, &v.At.Collate, &v.At.Ctype, &v.Database, &v.Owner)
	if err == nil && at != nil {
		v.At.LSN, err = lsn.Parse(*at)
	}
	if err != nil {
		return nil, fmt.Errorf("asking the server for its moment: %w", err)
	}
	v.At.Time = v.At.Time.UTC()
	if v.g, err = readGraph(ctx, tx, l); err != nil {
		return nil, err
	}
	v.shapes, err = readShapes(ctx, tx, v.g)
	return v, err
}

// encode has what COPY gives and takes be UTF-8, but for the bytes of a database without
// an encoding.
func encode(ctx context.Context, tx pgx.Tx) error {
	_, err := tx.Exec(ctx, `SELECT set_config('client_encoding', CASE getdatabaseencoding() WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END, true)`)
	return err
}

// Export gives the view's snapshot a name by which pg_dump reads the same moment
// (pg_export_snapshot), as long as the view is open.
func (v *View) Export(ctx context.Context) (string, error) {
	if v.external != "" {
		return v.external, nil
	}
	if err := v.tx.QueryRow(ctx, `SELECT pg_export_snapshot()`).Scan(&v.external); err != nil {
		return "", fmt.Errorf("exporting the snapshot of database %s: %w", v.Database, err)
	}
	return v.external, nil
}

// Keep tells the view which projects it is for. Where projects are schemas, those of
// all others that the registry lists are kept out of what it gives: their rows, though
// a project's refer to them, and their DDL.
func (v *View) Keep(ctx context.Context, registrySQL string, keys ...string) error {
	if v.Layout.Kind != Schema {
		return nil
	}
	list, err := v.registered(ctx, registrySQL)
	if err != nil {
		return fmt.Errorf("listing projects by projects.registry: %w", err)
	}
	v.projects, v.hidden = map[string]bool{}, map[string]bool{}
	for _, p := range list {
		v.projects[p.ID], v.hidden[p.ID] = true, !slices.Contains(keys, p.ID)
	}
	return nil
}

// registered asks the registry as its own transaction would be: with the session's path
// of schemas, and without the right to write.
func (v *View) registered(ctx context.Context, registrySQL string) (list []Project, err error) {
	for _, sql := range []string{`SAVEPOINT holdfast_registry`, `SET LOCAL search_path TO DEFAULT`, `SET LOCAL transaction_read_only = on`} {
		if _, err := v.tx.Exec(ctx, sql); err != nil {
			return nil, err
		}
	}
	list, err = projects(ctx, v.tx, registrySQL)
	// Released as well: a snapshot cannot be exported from below a savepoint.
	_, end := v.tx.Exec(ctx, `ROLLBACK TO SAVEPOINT holdfast_registry; RELEASE SAVEPOINT holdfast_registry`)
	return list, errors.Join(err, end)
}

// schemasSQL leaves out the system's schemas and those that extensions make.
const schemasSQL = `
SELECT n.nspname FROM pg_namespace n
 WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_namespace'::regclass AND d.objid = n.oid AND d.deptype = 'e')
 ORDER BY 1`

// Schemas are the database's own, by their names as the catalogue has them, without
// those that are other projects.
func (v *View) Schemas(ctx context.Context) ([]string, error) {
	rows, err := v.tx.Query(ctx, schemasSQL)
	if err != nil {
		return nil, err
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	return slices.DeleteFunc(list, func(s string) bool { return v.hidden[s] }), err
}

// Extensions are those of the database, without what is in other projects' schemas.
func (v *View) Extensions(ctx context.Context) (list []string, err error) {
	rows, err := v.tx.Query(ctx, `SELECT e.extname::text, n.nspname::text FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace ORDER BY 1`)
	if err != nil {
		return nil, err
	}
	var name, schema string
	_, err = pgx.ForEachRow(rows, []any{&name, &schema}, func() error {
		if !v.hidden[schema] {
			list = append(list, name)
		}
		return nil
	})
	return list, err
}

// NotCovered is [NotCovered] of the view's moment, with the tables whose rows
// outlive the project that they refer to, and large objects.
func (v *View) NotCovered(ctx context.Context) ([]string, error) {
	list := []string{}
	if v.Layout.rows() {
		var err error
		if list, err = v.g.notCovered(ctx, v.tx); err != nil {
			return nil, fmt.Errorf("finding what no foreign key ties to %s: %w", v.Layout.Root, err)
		}
		own := v.tree()
		for _, k := range v.g.keys {
			if own[k.parent] && !own[k.child] {
				list = append(list, "table "+v.g.rels[k.child].name+", whose rows outlive what they refer to")
			}
		}
	}
	var large int64
	if err := v.tx.QueryRow(ctx, `SELECT count(*) FROM pg_largeobject_metadata`).Scan(&large); err != nil {
		return nil, err
	}
	if large > 0 {
		list = append(list, fmt.Sprintf("large objects (%d in the database): nothing ties them to a project", large))
	}
	return list, nil
}

// Close ends the transaction; nothing that was done in it stays.
func (v *View) Close(ctx context.Context) error {
	return ignoreClosed(v.tx.Rollback(context.WithoutCancel(ctx)))
}
