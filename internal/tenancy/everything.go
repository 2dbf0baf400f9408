package tenancy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/catalog"
)

// A whole database, whosever rows are in it.

// Uncounted stands for the number of rows of a [Part] that nobody has counted: they are
// as many as are copied.
const Uncounted = -1

// DatabaseOf is a database of a server.
type DatabaseOf struct {
	OID     uint32
	Name    string
	Connect bool // it lets somebody in
}

// Databases lists a server's databases but templates, and those whose drop was
// interrupted.
func Databases(ctx context.Context, q Querier) (list []DatabaseOf, err error) {
	rows, err := q.Query(ctx, `SELECT oid, datname::text, datallowconn FROM pg_catalog.pg_database WHERE NOT datistemplate AND datconnlimit <> -2 ORDER BY datname`)
	if err == nil {
		var d DatabaseOf
		_, err = pgx.ForEachRow(rows, []any{&d.OID, &d.Name, &d.Connect}, func() error { list = append(list, d); return nil })
	}
	if err != nil {
		return nil, fmt.Errorf("listing the databases: %w", err)
	}
	return list, nil
}

// Everything is all of the view's database that is its users' own: the rows of every
// table, which are not counted, and every sequence.
func (v *View) Everything(ctx context.Context) (*Slice, error) {
	l := Layout{Kind: Database}
	s := &Slice{Key: v.Database, v: v, there: true, own: v.g.holding(l, "")}
	stored := map[uint32]int64{}
	for oid := range s.own {
		if v.g.rels[oid].kind == "r" {
			stored[oid] = 0
		}
	}
	s.fill(stored)
	for i := range s.Parts {
		p := &s.Parts[i]
		if p.whole, p.unsorted = true, true; len(p.leaves) > 0 {
			p.Rows = Uncounted
		}
	}
	var err error
	if s.Sequences, err = sequencesIn(ctx, v.tx, l, ""); err != nil {
		return nil, fmt.Errorf("reading database %s: %w", v.Database, err)
	}
	return s, nil
}

// Weight is about how many bytes a part's tables take, by which the largest are begun
// first.
func (p Part) Weight(ctx context.Context, v *View) (n int64, err error) {
	err = v.tx.QueryRow(ctx, `SELECT coalesce(sum(pg_catalog.pg_table_size(oid)), 0)::bigint FROM pg_catalog.pg_class WHERE oid = ANY ($1)`, p.leaves).Scan(&n)
	return n, err
}

// Uncovered is what of the view's database neither its DDL nor the rows of its tables
// bring back.
func (v *View) Uncovered(ctx context.Context) ([]string, error) {
	list := []string{}
	rows, err := v.tx.Query(ctx, `SELECT 'rows that users put into tables of extension ' || quote_ident(extname) FROM pg_extension WHERE extconfig IS NOT NULL
		UNION ALL SELECT format('rows of foreign table %I.%I, which are another server''s', nspname, relname) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE relkind = 'f'
		UNION ALL SELECT 'large objects (' || count(*) || ')' FROM pg_largeobject_metadata HAVING count(*) > 0
		UNION ALL SELECT 'settings of the database and of roles in it' FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase WHERE datname = current_database() GROUP BY 1
		ORDER BY 1`)
	if err == nil {
		var what string
		_, err = pgx.ForEachRow(rows, []any{&what}, func() error { list = append(list, what); return nil })
	}
	if err != nil {
		return nil, fmt.Errorf("finding what database %s has beside tables: %w", v.Database, err)
	}
	return list, nil
}

// ObjectID is the OID of a project that is a schema or a database; 0 for rows.
func (v *View) ObjectID(ctx context.Context, keyText string) (uint32, error) {
	return ObjectID(ctx, v.tx, v.Layout, keyText)
}

// SchemaOIDs are the OIDs of the database's schemas: a schema keeps its own when it is
// renamed.
func (v *View) SchemaOIDs(ctx context.Context) (map[string]uint32, error) {
	rows, err := v.tx.Query(ctx, `SELECT nspname::text, oid FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'`)
	if err != nil {
		return nil, err
	}
	out := map[string]uint32{}
	var name string
	var oid uint32
	_, err = pgx.ForEachRow(rows, []any{&name, &oid}, func() error { out[name] = oid; return nil })
	return out, err
}

// Copier copies whole tables of a view's moment on a connection of its own, beside the
// view's and others.
type Copier struct {
	conn *pgx.Conn
	tx   pgx.Tx
}

// Beside makes a copier; the view must outlive it.
func (v *View) Beside(ctx context.Context, connect Connector) (*Copier, error) {
	id, err := v.Export(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := connect(ctx, v.Database)
	if err != nil {
		return nil, err
	}
	c := &Copier{conn: conn}
	c.tx, err = conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err == nil {
		_, err = c.tx.Exec(ctx, `SET TRANSACTION SNAPSHOT '`+strings.ReplaceAll(id, "'", "''")+`'`)
	}
	if err == nil {
		err = settle(ctx, c.tx)
	}
	if err == nil {
		err = encode(ctx, c.tx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("joining the snapshot of database %s: %w", v.Database, err), c.Close(ctx))
	}
	return c, nil
}

// Write writes the rows of a part that is whole tables, and says how many.
func (c *Copier) Write(ctx context.Context, p Part, to io.Writer) (int64, error) {
	if !p.whole {
		return 0, fmt.Errorf("copying the rows of %s: those of one project are known to the view alone", p.Name)
	}
	return p.write(ctx, c.conn, Copy, nil, to)
}

// Close ends the copier and its connection.
func (c *Copier) Close(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	var err error
	if c.tx != nil {
		err = ignoreClosed(c.tx.Rollback(ctx))
	}
	return errors.Join(err, c.conn.Close(ctx))
}

// Stored is a database, or a project, as files tell of it.
type Stored struct {
	Encoding  string // of the files
	Tables    []StoredTable
	Sequences []Sequence
}

// StoredTable is the rows of a table, by COPY in its text form.
type StoredTable struct {
	Schema, Table string
	Columns       []string
	Rows          int64
	Write         func(ctx context.Context, to io.Writer) error
}

// LoadedRows is what [LoadStored] brought.
type LoadedRows struct {
	Tables []catalog.Count
	Rows   int64
	Views  []string // materialized views that could not be filled, each with why
}

// LoadStored copies rows into a database whose tables are there and empty, in one
// transaction with triggers and the checks of references off, sets the sequences, and
// fills materialized views. tell hears of each table.
func LoadStored(ctx context.Context, conn *pgx.Conn, s Stored, tell func(table string, rows int64)) (out LoadedRows, err error) {
	out = LoadedRows{Tables: []catalog.Count{}, Views: []string{}}
	err = inTx(ctx, conn, pgx.TxOptions{}, func(tx pgx.Tx) error {
		if err := settle(ctx, tx); err != nil {
			return err
		}
		for _, set := range []string{"session_replication_role = replica", "client_encoding = '" + strings.ReplaceAll(s.Encoding, "'", "''") + "'"} {
			if _, err := tx.Exec(ctx, "SET LOCAL "+set); err != nil {
				return err
			}
		}
		return quietly(ctx, tx, func() error {
			for _, t := range s.Tables {
				name := pgx.Identifier{t.Schema, t.Table}.Sanitize()
				tell(name, t.Rows)
				if err := t.load(ctx, conn, name); err != nil {
					return fmt.Errorf("loading %s: %w", name, err)
				}
				out.Tables, out.Rows = append(out.Tables, catalog.Count{Table: name, Rows: t.Rows}), out.Rows+t.Rows
			}
			return setSequences(ctx, tx, s.Sequences)
		})
	})
	if err == nil {
		out.Views, err = fillViews(ctx, conn, "")
	}
	if err != nil {
		return out, fmt.Errorf("loading rows into a new database: %w", err)
	}
	return out, nil
}

func (t StoredTable) load(ctx context.Context, conn *pgx.Conn, name string) error {
	if t.Rows == 0 {
		return nil
	}
	list := ""
	if len(t.Columns) > 0 {
		quoted := make([]string, len(t.Columns))
		for i, c := range t.Columns {
			quoted[i] = pgx.Identifier{c}.Sanitize()
		}
		list = " (" + strings.Join(quoted, ", ") + ")"
	}
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := t.Write(ctx, w)
		w.CloseWithError(err)
		done <- err
	}()
	tag, err := conn.PgConn().CopyFrom(ctx, r, `COPY `+name+list+` FROM STDIN`)
	r.CloseWithError(errors.New("the copy has ended"))
	if werr := <-done; werr != nil && !errors.Is(werr, io.ErrClosedPipe) && err != nil {
		err = werr // why the server was given no more
	}
	if err == nil && tag.RowsAffected() != t.Rows {
		err = fmt.Errorf("it took %d rows of %d", tag.RowsAffected(), t.Rows)
	}
	return err
}

func setSequences(ctx context.Context, tx pgx.Tx, list []Sequence) error {
	for _, q := range list {
		if _, err := tx.Exec(ctx, `SELECT pg_catalog.setval($1::text::regclass, $2, $3)`, q.Name, q.LastValue, q.IsCalled); err != nil {
			return fmt.Errorf("setting sequence %s: %w", q.Name, err)
		}
	}
	return nil
}

// quietly disables the triggers that fire whatever session_replication_role says, while
// do runs: they would change what is loaded.
func quietly(ctx context.Context, tx pgx.Tx, do func() error) error {
	rows, err := tx.Query(ctx, `SELECT format('%I.%I', nspname, relname), quote_ident(tgname), CASE tgenabled WHEN 'A' THEN 'ALWAYS' ELSE 'REPLICA' END
		FROM pg_trigger t JOIN pg_class c ON c.oid = tgrelid JOIN pg_namespace n ON n.oid = relnamespace
		WHERE tgenabled IN ('A', 'R') AND NOT tgisinternal AND nspname !~ '^pg_' ORDER BY 1, 2`)
	if err != nil {
		return err
	}
	type trigger struct{ table, name, when string }
	triggers, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (t trigger, err error) {
		err = r.Scan(&t.table, &t.name, &t.when)
		return t, err
	})
	if err != nil {
		return err
	}
	for _, t := range triggers {
		if _, err := tx.Exec(ctx, fmt.Sprintf(`ALTER TABLE %s DISABLE TRIGGER %s`, t.table, t.name)); err != nil {
			return err
		}
	}
	if err := do(); err != nil {
		return err
	}
	for _, t := range slices.Backward(triggers) {
		if _, err := tx.Exec(ctx, fmt.Sprintf(`ALTER TABLE %s ENABLE %s TRIGGER %s`, t.table, t.when, t.name)); err != nil {
			return err
		}
	}
	return nil
}
