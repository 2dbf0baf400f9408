package tenancy

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Catalogues hold a dropped schema's or database's name, and statistics values of its
// rows, until they are vacuumed.

// certain are the catalogues that every drop of a project touches, whatever the
// server's books say, which a crash empties.
func certain(l Layout) map[string]bool {
	names := []string{"pg_database"}
	if l.Kind == Schema {
		names = []string{
			"pg_namespace", "pg_class", "pg_attribute", "pg_type", "pg_depend", "pg_constraint", "pg_attrdef", "pg_rewrite", "pg_proc", "pg_description",
			"pg_statistic", "pg_statistic_ext", "pg_statistic_ext_data", "pg_index", "pg_trigger",
		}
	}
	set := map[string]bool{}
	for _, n := range names {
		set["pg_catalog."+n], set["pg_catalog."+n+"'s TOAST table"] = true, true
	}
	return set
}

// cataloguesSQL lists the server's own tables with their TOAST tables, which autovacuum
// takes one by one.
const cataloguesSQL = `
SELECT c.oid, format('%I.%I', n.nspname, c.relname), c.reltoastrelid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = 'pg_catalog' AND c.relkind = 'r' AND c.relisshared = $1 ORDER BY 2`

// catalogues are the server's own tables of a database, or those that all databases share,
// each with its TOAST table.
func catalogues(ctx context.Context, conn *pgx.Conn, l Layout) ([]Table, error) {
	rows, err := conn.Query(ctx, cataloguesSQL, l.Kind == Database)
	if err != nil {
		return nil, fmt.Errorf("listing the server's catalogues: %w", err)
	}
	var t Table
	var toast uint32
	var list []Table
	_, err = pgx.ForEachRow(rows, []any{&t.OID, &t.Name, &toast}, func() error {
		if list = append(list, t); toast != 0 {
			list = append(list, Table{OID: toast, Name: t.Name + "'s TOAST table", toast: true})
		}
		return nil
	})
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
// begins now removes it; asked at each look, as a standby may come back with an older
// view. For rows the server's count of dead ones tells, afterwards.
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
	return yes, nil
}

// waitsForHorizon is what is waited for while somebody can see the project.
const waitsForHorizon = "the end of transactions, prepared transactions, replication slots or standbys' queries that began before it was gone; then"
