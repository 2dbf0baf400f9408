package tenancy

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// The layouts of projects, as projects.layout names them.
const (
	Rows     = "rows"     // rows under one row of a root table
	Schema   = "schema"   // a schema
	Database = "database" // a database
)

var (
	// ErrNoRoot means that the root table or its key column is not there: nothing
	// can be said about projects, so nothing is.
	ErrNoRoot = errors.New("the root table of the projects is not there")
	// ErrElsewhere means that a connection is to another database than a tombstone's.
	ErrElsewhere = errors.New("the project was in another database")
	// ErrNoProject means that no root row has the key, or no schema or database is named so.
	ErrNoProject = errors.New("no such project")
)

// Layout says where projects are. The key of a project is the text of its root row's
// key column, the name of its schema, or the name of its database.
type Layout struct {
	Kind     string // Rows, Schema or Database; "" is Rows
	Database string // of the rows, or of the schemas; "" where projects are databases
	Root     string // Rows: the root table with its schema, as SQL writes it
	Key      string // Rows: its key column, exactly as the catalogue has it
}

// LayoutOf is the layout that a tombstone was made for.
func LayoutOf(t catalog.Tombstone) Layout {
	return Layout{Kind: t.Layout, Database: t.Database, Root: t.Root, Key: t.Key}
}

// Check says whether l can be worked with.
func (l Layout) Check() error {
	switch {
	case l.rows() && (l.Database == "" || l.Root == "" || l.Key == ""):
		return errors.New("projects.rows: want database, root and key")
	case l.Kind == Schema && l.Database == "":
		return errors.New("projects.database: want the database whose schemas are projects")
	case !l.rows() && l.Kind != Schema && l.Kind != Database:
		return fmt.Errorf("projects.layout %q: want %s, %s or %s", l.Kind, Rows, Schema, Database)
	}
	return nil
}

func (l Layout) rows() bool { return l.Kind == "" || l.Kind == Rows }

// In is the database that holds a project.
func (l Layout) In(keyText string) string {
	if l.Kind == Database {
		return keyText
	}
	return l.Database
}

// Querier is a connection or a transaction.
type Querier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Project is a tenant as the registry query lists it.
type Project struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// maxProjects bounds what a registry query may answer.
const maxProjects = 1_000_000

// Projects runs the registry query, which must give two text columns, in a
// transaction that cannot write.
func Projects(ctx context.Context, conn *pgx.Conn, registrySQL string) (list []Project, err error) {
	err = inTx(ctx, conn, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		list, err = projects(ctx, tx, registrySQL)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listing projects by projects.registry: %w", err)
	}
	return list, nil
}

func projects(ctx context.Context, q Querier, registrySQL string) (list []Project, err error) {
	rows, err := q.Query(ctx, registrySQL)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	if n := len(rows.FieldDescriptions()); n != 2 && rows.Err() == nil && n > 0 {
		return nil, fmt.Errorf("it gives %d columns, want two: id and name, both text", n)
	}
	for rows.Next() {
		var p Project
		if err := rows.Scan(&p.ID, &p.Name); err != nil {
			return nil, fmt.Errorf("want two columns of type text, id and name, never null: %w", err)
		}
		if list = append(list, p); len(list) > maxProjects {
			return nil, fmt.Errorf("it gives more than %d projects", maxProjects)
		}
	}
	return list, rows.Err()
}

// macDomain keeps the MACs of project keys apart from all others.
const macDomain = "holdfast project key v1"

// MAC is what a tombstone holds instead of a project's key: keyText is the key
// column's text form.
func MAC(keys seal.DigestKeys, cluster string, l Layout, keyText string) string {
	kind := l.Kind
	if kind == "" {
		kind = Rows
	}
	var parts [][]byte
	for _, p := range []string{cluster, kind, l.Database, l.Root, l.Key, keyText} {
		parts = append(parts, []byte(p))
	}
	return keys.MAC(macDomain, parts...)
}

// settle makes text forms and names mean the same everywhere, and row security
// an error instead of a smaller answer, until the transaction ends.
func settle(ctx context.Context, q Querier) error {
	for _, set := range []string{
		"search_path = pg_catalog, pg_temp", "row_security = off", "DateStyle = 'ISO, YMD'", "IntervalStyle = postgres",
		"TimeZone = 'UTC'", "extra_float_digits = 1", "bytea_output = hex", "statement_timeout = 0",
		"idle_in_transaction_session_timeout = 0", // others copy meanwhile
	} {
		if _, err := q.Exec(ctx, "SET LOCAL "+set); err != nil {
			return err
		}
	}
	return nil
}

func inTx(ctx context.Context, conn *pgx.Conn, opt pgx.TxOptions, do func(pgx.Tx) error) error {
	tx, err := conn.BeginTx(ctx, opt)
	if err != nil {
		return err
	}
	if err := do(tx); err != nil {
		return errors.Join(err, ignoreClosed(tx.Rollback(context.WithoutCancel(ctx))))
	}
	return tx.Commit(ctx)
}

func ignoreClosed(err error) error {
	if errors.Is(err, pgx.ErrTxClosed) || (err != nil && strings.Contains(err.Error(), "conn closed")) {
		return nil
	}
	return err
}
