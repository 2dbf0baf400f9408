package tenancy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5"
)

// ErrNotFresh means that a database which was to be new holds tables.
var ErrNotFresh = errors.New("the database is not empty")

// Fresh refuses a database that holds any relation or function of its own.
func Fresh(ctx context.Context, conn *pgx.Conn) error {
	var n int64
	err := conn.QueryRow(ctx, `SELECT (SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
		AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'))
		+ (SELECT count(*) FROM pg_namespace n WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'public'))`).Scan(&n)
	if err == nil && n > 0 {
		err = fmt.Errorf("%w: it has %d relations and schemas", ErrNotFresh, n)
	}
	return err
}

// restrict is what pg_dump says to psql alone, against what a server might slip into
// a script: here it is the server that reads it.
var restrict = regexp.MustCompile(`(?m)^\\(un)?restrict [A-Za-z0-9]+$`)

// Define makes the tables by DDL as pg_dump writes it, all or none.
func Define(ctx context.Context, conn *pgx.Conn, ddl []byte) error {
	ddl = restrict.ReplaceAll(ddl, nil)
	if bytes.Contains(ddl, []byte{0}) {
		return errors.New("defining the tables: the DDL has a zero byte")
	}
	if err := conn.PgConn().Exec(ctx, string(ddl)).Close(); err != nil {
		return fmt.Errorf("defining the tables: %w", err)
	}
	return nil
}

// Loaded is what [Load] brought.
type Loaded struct {
	Tables []Digest `json:"tables"` // by their rows as they were read, without masks
	Rows   int64    `json:"rows"`
	// Views are materialized views that could not be filled, each with why.
	Views []string `json:"views_not_filled"`
}

// Load copies a slice into a database whose tables are there and empty, in one
// transaction with triggers and the checks of references off, moves the sequences to
// where they stood, and fills materialized views. tell hears of each table.
func Load(ctx context.Context, to *pgx.Conn, s *Slice, masks Masks, tell func(table string, rows int64)) (out Loaded, err error) {
	out = Loaded{Tables: []Digest{}, Views: []string{}}
	err = inTx(ctx, to, pgx.TxOptions{}, func(tx pgx.Tx) error {
		if err := settle(ctx, tx); err != nil {
			return err
		}
		for _, set := range []string{"session_replication_role = replica", "client_encoding = '" + s.v.ClientEncoding() + "'"} {
			if _, err := tx.Exec(ctx, "SET LOCAL "+set); err != nil {
				return err
			}
		}
		for _, p := range s.Parts {
			tell(p.Name, p.Rows)
			if p.Rows == 0 {
				continue
			}
			if err := s.pour(ctx, p, masks, to, p.Name); err != nil {
				return fmt.Errorf("loading %s: %w", p.Name, err)
			}
			out.Tables, out.Rows = append(out.Tables, Digest{Table: p.Name, Rows: p.Rows}), out.Rows+p.Rows
		}
		if len(masks) == 0 {
			if err := s.compare(ctx, tx, out.Tables); err != nil {
				return err
			}
		}
		for _, sql := range s.Advance() {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		out.Views, err = fillViews(ctx, to, "")
	}
	if err != nil {
		return out, fmt.Errorf("loading a project into a new database: %w", err)
	}
	return out, nil
}

// compare holds the loaded rows against those that were read.
func (s *Slice) compare(ctx context.Context, tx pgx.Tx, tables []Digest) error {
	at := 0
	for _, p := range s.Parts {
		if p.Rows == 0 {
			continue
		}
		want, err := digest(ctx, s.v.tx, p.Name, p.hashes(p.shape))
		if err != nil {
			return err
		}
		have, err := digest(ctx, tx, p.Name, fmt.Sprintf(`SELECT %s FROM %s r`, hashOf(p.shape.list("r.")), p.g.from(p.shape.oid)))
		if err != nil {
			return err
		}
		if have != want {
			return fmt.Errorf("%s has %d rows (%s), and %d were read (%s)", p.Name, have.Rows, have.SHA256, want.Rows, want.SHA256)
		}
		tables[at], at = have, at+1
	}
	return nil
}

// fillViews fills the materialized views of a schema, or of all, those that others read first.
func fillViews(ctx context.Context, conn *pgx.Conn, schema string) ([]string, error) {
	failed := []string{}
	for {
		rows, err := conn.Query(ctx, `SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'm' AND NOT c.relispopulated AND $1::text IN ('', n.nspname::text) ORDER BY c.oid`, schema)
		if err != nil {
			return failed, err
		}
		names, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return failed, err
		}
		why, filled := []string{}, 0
		for _, name := range names {
			if _, err := conn.Exec(ctx, `REFRESH MATERIALIZED VIEW `+name); err != nil {
				why = append(why, name+": "+strings.TrimSpace(err.Error()))
			} else {
				filled++
			}
		}
		if failed = why; len(why) == 0 || filled == 0 {
			return failed, nil
		}
	}
}
