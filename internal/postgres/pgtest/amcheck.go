package pgtest

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Amcheck holds every table and b-tree index of a database against amcheck's
// rules, over SQL: the builds of most majors have the extension and no program
// pg_amcheck. Every heap tuple must be in its indexes.
func Amcheck(ctx context.Context, conn *pgx.Conn) error {
	if _, err := conn.Exec(ctx, "CREATE EXTENSION IF NOT EXISTS amcheck"); err != nil {
		return fmt.Errorf("amcheck: %w", err)
	}
	indexes, err := names(ctx, conn, `SELECT c.oid::regclass::text FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid JOIN pg_am a ON a.oid = c.relam
		WHERE a.amname = 'btree' AND c.relkind = 'i' AND c.relpersistence = 'p' AND i.indisready AND i.indisvalid`)
	if err != nil {
		return err
	}
	var faults []error
	for _, index := range indexes {
		if _, err := conn.Exec(ctx, "SELECT bt_index_check($1::text::regclass, true)", index); err != nil {
			faults = append(faults, fmt.Errorf("amcheck: index %s: %w", index, err))
		}
	}
	tables, err := names(ctx, conn, "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'heap' AND c.relkind IN ('r', 't', 'm') AND c.relpersistence = 'p'")
	if err != nil {
		return err
	}
	if len(tables) == 0 || len(indexes) == 0 {
		return errors.New("amcheck: nothing to check")
	}
	for _, table := range tables {
		found, err := names(ctx, conn, "SELECT format('block %s, offset %s: %s', blkno, offnum, msg) FROM verify_heapam($1::text::regclass)", table)
		if err != nil || len(found) > 0 {
			faults = append(faults, fmt.Errorf("amcheck: table %s: %q, %w", table, found, err))
		}
	}
	return errors.Join(faults...)
}

// CheckTrees holds the b-tree indexes of a database against amcheck's rules between
// parents and children, as a drill holds a copy. It locks them
// against writers, and needs the extension.
func CheckTrees(ctx context.Context, conn *pgx.Conn) error {
	_, err := conn.Exec(ctx, `CREATE EXTENSION IF NOT EXISTS amcheck;
		SELECT bt_index_parent_check(c.oid, true, true) FROM pg_class c JOIN pg_am a ON a.oid = relam WHERE amname = 'btree' AND relpersistence = 'p'`)
	return err
}

func names(ctx context.Context, conn *pgx.Conn, sql string, args ...any) ([]string, error) {
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		return nil, fmt.Errorf("amcheck: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}
