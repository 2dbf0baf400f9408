package tenancy

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Catalogues hold a dropped schema's or database's name, and statistics values of its
// rows, until they are vacuumed.

// certain are the catalogues that every drop of a project touches, whatever the
// server's books say, which a crash empties.
func certain(l Layout) map[string]bool {
	names := []string{"pg_database"}
	if l.Kind == Schema {
		names = []string{"pg_namespace", "pg_class", "pg_attribute", "pg_type", "pg_statistic", "pg_depend"}
	}
	set := map[string]bool{}
	for _, n := range names {
		set["pg_catalog."+n] = true
	}
	return set
}

// catalogues are the server's own tables of a database, or those that all databases share.
func catalogues(ctx context.Context, conn *pgx.Conn, l Layout) ([]Table, error) {
	rows, err := conn.Query(ctx, `SELECT c.oid, format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = 'pg_catalog' AND c.relkind = 'r' AND c.relisshared = $1 ORDER BY 2`, l.Kind == Database)
	if err != nil {
		return nil, fmt.Errorf("listing the server's catalogues: %w", err)
	}
	var t Table
	var list []Table
	_, err = pgx.ForEachRow(rows, []any{&t.OID, &t.Name}, func() error { list = append(list, t); return nil })
	return list, err
}

// horizonSQL says whether no transaction, snapshot or slot is left that began before $1.
const horizonSQL = `
SELECT NOT EXISTS (SELECT FROM (
	SELECT backend_xmin FROM pg_stat_activity WHERE pid <> pg_backend_pid()
	UNION ALL SELECT backend_xid FROM pg_stat_activity WHERE pid <> pg_backend_pid()
	UNION ALL SELECT transaction FROM pg_prepared_xacts
	UNION ALL SELECT xmin FROM pg_replication_slots
	UNION ALL SELECT catalog_xmin FROM pg_replication_slots
) x(id) WHERE age(id) > age($1::text::xid8::xid))`

// past says whether nobody can see any more what was seen gone, so that a vacuum which
// begins now removes it. For rows the server's count of dead ones tells, afterwards.
func (s *Seen) past(ctx context.Context, conn *pgx.Conn, l Layout) (yes bool, err error) {
	if l.rows() {
		return true, nil
	}
	if s.Memo.Seen == "" {
		err = conn.QueryRow(ctx, `SELECT pg_snapshot_xmax(pg_current_snapshot())::text`).Scan(&s.Memo.Seen)
	}
	if err == nil {
		err = conn.QueryRow(ctx, horizonSQL, s.Memo.Seen).Scan(&yes)
	}
	if err != nil {
		return false, fmt.Errorf("looking whether a transaction still sees it: %w", err)
	}
	if !yes {
		s.Waiting = []string{"the end of transactions (or replication slots, or prepared transactions) that began before it was gone; then: " + strings.Join(s.Waiting, ", ")}
	}
	return yes, nil
}
