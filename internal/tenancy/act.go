package tenancy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/catalog"
)

// ErrRemains means that a deletion was undone, because rows would have remained.
var ErrRemains = errors.New("rows of the project remain; nothing was changed")

// Count counts the rows of a project by table, in one snapshot of the database
// and without a lock. The error is ErrNoProject where there is no such project.
func Count(ctx context.Context, conn *pgx.Conn, l Layout, keyText string) (counts []catalog.Count, err error) {
	if !l.rows() {
		return countTables(ctx, conn, l, keyText)
	}
	err = inTx(ctx, conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, func(tx pgx.Tx) error {
		if err := settle(ctx, tx); err != nil {
			return err
		}
		g, err := readGraph(ctx, tx, l)
		if err != nil {
			return err
		}
		d, err := newDoom(ctx, tx, g, keyText)
		if err != nil {
			return err
		}
		if _, counts, err = d.counts(ctx); err == nil && len(counts) == 0 {
			err = ErrNoProject
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("counting the rows of a project under %s: %w", l.Root, err)
	}
	return counts, nil
}

// Erase deletes a project in live, in one transaction: rows as [Delete] does, a schema
// with all that is in it, a database to which nobody is connected. A schema that
// something outside it depends on is left as it is (ErrTied). The error is ErrNoProject
// where there is no such project.
func Erase(ctx context.Context, conn *pgx.Conn, l Layout, keyText string) (counts []catalog.Count, err error) {
	switch {
	case l.Kind == Schema:
		counts, _, err = dropSchema(ctx, conn, keyText, false)
	case l.Kind == Database:
		if counts, err = countTables(ctx, conn, l, keyText); err == nil {
			err = dropDatabase(ctx, conn, keyText, false)
		}
	default:
		err = inTx(ctx, conn, pgx.TxOptions{}, func(tx pgx.Tx) error {
			if counts, err = Delete(ctx, tx, l, keyText); err == nil && len(counts) == 0 {
				err = ErrNoProject
			}
			return err
		})
	}
	if err != nil {
		return nil, hide(err, keyText)
	}
	return counts, nil
}

// Delete deletes a project's rows in tx, children first, and looks again; materialized
// views over the tables are refreshed. The tables are held against writers until
// tx ends, and triggers, foreign keys' own included, do not fire
// (session_replication_role, which needs a superuser or a grant of SET). An error
// means that tx must be rolled back; so does the absence of the root table. A
// project that is not there is no error: the counts are empty.
func Delete(ctx context.Context, tx pgx.Tx, l Layout, keyText string) ([]catalog.Count, error) {
	counts, _, err := deleteProject(ctx, tx, l, keyText)
	if err != nil {
		return nil, fmt.Errorf("deleting a project under %s: %w", l.Root, err)
	}
	return counts, nil
}

func deleteProject(ctx context.Context, tx pgx.Tx, l Layout, keyText string) ([]catalog.Count, []Table, error) {
	if err := settle(ctx, tx); err != nil {
		return nil, nil, err
	}
	g, err := readGraph(ctx, tx, l)
	if err != nil {
		return nil, nil, err
	}
	if err := g.hold(ctx, tx); err != nil {
		return nil, nil, err
	}
	if _, err := tx.Exec(ctx, `SET LOCAL session_replication_role = replica`); err != nil {
		return nil, nil, err
	}
	d, err := newDoom(ctx, tx, g, keyText)
	if err != nil {
		return nil, nil, err
	}
	oids, counts, err := d.counts(ctx)
	if err != nil {
		return nil, nil, err
	}
	if err := d.remove(ctx, oids, counts, keyText); err != nil {
		return nil, nil, err
	}
	var touched []Table
	for _, oid := range oids {
		touched = append(touched, Table{OID: oid, Name: g.rels[oid].name})
	}
	_, err = refresh(ctx, tx, oids, true)
	return counts, touched, err
}

// hold locks every table that can lose a row or a reference, in one order.
func (g *graph) hold(ctx context.Context, tx pgx.Tx) error { return g.lock(ctx, tx, g.reached()) }

// lock locks tables, and those that refer to them, against writers.
func (g *graph) lock(ctx context.Context, tx pgx.Tx, reach map[uint32]int) error {
	if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '30s'`); err != nil {
		return err
	}
	held := map[uint32]bool{}
	for oid := range reach {
		held[oid] = true
		for _, k := range g.keys {
			if g.related(k.parent, oid) {
				held[k.child] = true
			}
		}
	}
	for _, oid := range sorted(held) {
		if _, err := tx.Exec(ctx, fmt.Sprintf(`LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE`, g.from(oid))); err != nil {
			return fmt.Errorf("locking %s against writers: %w", g.rels[oid].name, err)
		}
	}
	return nil
}

func (d *doom) remove(ctx context.Context, oids []uint32, counts []catalog.Count, keyText string) error {
	hit, err := d.hit(ctx)
	if err != nil {
		return err
	}
	if err := d.keep(ctx, hit); err != nil {
		return err
	}
	if err := d.clear(ctx, hit); err != nil {
		return err
	}
	for i, oid := range oids {
		tag, err := d.q.Exec(ctx, fmt.Sprintf(`DELETE FROM ONLY %s r USING pg_temp.holdfast_doom d WHERE d.rel = $1 AND d.tid = r.ctid`, d.name(oid)), oid)
		if err != nil {
			return fmt.Errorf("deleting from %s: %w", d.name(oid), err)
		}
		if tag.RowsAffected() != counts[i].Rows {
			return fmt.Errorf("%s lost %d rows of %d: %w", d.name(oid), tag.RowsAffected(), counts[i].Rows, ErrRemains)
		}
	}
	return d.verify(ctx, hit, keyText)
}

// viewsSQL finds the materialized views over tables, those that others read first.
const viewsSQL = `
WITH RECURSIVE edge(below, above, step) AS (
	SELECT inhrelid, inhparent, 0 FROM pg_inherits
	UNION
	SELECT d.refobjid, r.ev_class, 1 FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid
	 WHERE d.refclassid = 'pg_class'::regclass AND d.classid = 'pg_rewrite'::regclass AND r.ev_class <> d.refobjid
), up(oid, depth) AS (
	SELECT t.oid, 0 FROM unnest($1::oid[]) t(oid)
	UNION
	SELECT above, depth + step FROM up JOIN edge ON below = up.oid WHERE depth < 64
)
SELECT format('%I.%I', n.nspname, c.relname) FROM up JOIN pg_class c ON c.oid = up.oid JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'm' AND c.relispopulated GROUP BY 1 ORDER BY max(up.depth), 1`

// refresh renews the materialized views over tables. One that cannot be renewed is
// emptied, where it would be a copy of what was deleted; else it stays as it is, and
// stale names it with why.
func refresh(ctx context.Context, tx pgx.Tx, tables []uint32, empty bool) (stale []string, err error) {
	rows, err := tx.Query(ctx, viewsSQL, tables)
	if err != nil {
		return nil, err
	}
	views, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, err
	}
	stale = []string{}
	for _, v := range views {
		why := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `REFRESH MATERIALIZED VIEW `+v)
			return err
		})
		switch {
		case why == nil:
			continue
		case ctx.Err() != nil:
			return stale, why
		case empty:
			if _, err := tx.Exec(ctx, `REFRESH MATERIALIZED VIEW `+v+` WITH NO DATA`); err != nil {
				return stale, fmt.Errorf("emptying the materialized view %s, which copies deleted rows: %w", v, err)
			}
		}
		stale = append(stale, v+": "+strings.TrimSpace(why.Error()))
	}
	return stale, nil
}

// Vacuum vacuums tables, quoted as [Table] has them.
func Vacuum(ctx context.Context, conn *pgx.Conn, tables []Table) error {
	for _, t := range tables {
		if t.toast {
			continue
		}
		if _, err := conn.Exec(ctx, `VACUUM (INDEX_CLEANUP ON) `+t.Name); err != nil {
			return fmt.Errorf("vacuuming %s, where rows were deleted: %w", t.Name, err)
		}
	}
	return nil
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func sorted(set map[uint32]bool) []uint32 { return slices.Sorted(maps.Keys(set)) }
