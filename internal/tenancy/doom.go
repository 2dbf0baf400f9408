package tenancy

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/catalog"
)

// maxGenerations bounds how far rows may be from the root row, each referring to
// the one before: longer chains (of replies to replies) end in an error.
const maxGenerations = 50_000

// doom is the set of rows that go, in a temporary table of the transaction that
// names each by its table and place. Places stay valid: the transaction reads one
// snapshot, or holds the tables against writers.
type doom struct {
	*graph
	q Querier
}

// newDoom finds the rows of the project with the key.
func newDoom(ctx context.Context, q Querier, g *graph, keyText string) (*doom, error) {
	d := &doom{g, q}
	if err := rowSet(ctx, q, "holdfast_doom"); err != nil {
		return nil, err
	}
	tag, err := q.Exec(ctx, fmt.Sprintf(`INSERT INTO pg_temp.holdfast_doom SELECT r.tableoid, r.ctid, 0 FROM %s r WHERE r.%s::text = $1`, g.from(g.root), g.col), keyText)
	if err != nil || tag.RowsAffected() == 0 {
		return d, err
	}
	for gen := 0; ; gen++ {
		more, err := d.next(ctx, gen)
		if err != nil || !more {
			return d, err
		}
		if gen == maxGenerations {
			return nil, fmt.Errorf("rows refer to rows in a chain of more than %d", maxGenerations)
		}
	}
}

// rowSet makes an empty set of rows, or empties the one that the transaction has:
// a table that is dropped would hold its lock until the transaction ends.
func rowSet(ctx context.Context, q Querier, name string) error {
	_, err := q.Exec(ctx, `CREATE TEMPORARY TABLE IF NOT EXISTS `+name+` (rel oid, tid tid, gen int, PRIMARY KEY (rel, tid)) ON COMMIT DROP`)
	if err != nil {
		return err
	}
	_, err = q.Exec(ctx, `TRUNCATE pg_temp.`+name)
	return err
}

// next adds what refers to the rows of generation gen.
func (d *doom) next(ctx context.Context, gen int) (more bool, err error) {
	fresh, err := d.rels(ctx, gen)
	if err != nil {
		return false, err
	}
	for _, k := range d.keys {
		if !d.deletes(k) || !slices.ContainsFunc(fresh, func(r uint32) bool { return d.within(r, k.parent) }) {
			continue
		}
		tag, err := d.q.Exec(ctx, fmt.Sprintf(`INSERT INTO pg_temp.holdfast_doom
			SELECT c.tableoid, c.ctid, $1::int + 1 FROM pg_temp.holdfast_doom d JOIN %s p ON p.tableoid = d.rel AND p.ctid = d.tid
			JOIN %s c ON %s WHERE d.gen = $1::int ON CONFLICT DO NOTHING`, d.from(k.parent), d.from(k.child), k.on("p", "c")), gen)
		if err != nil {
			return false, fmt.Errorf("following a foreign key of %s: %w", d.name(k.child), err)
		}
		more = more || tag.RowsAffected() > 0
	}
	if more && gen < 8 { // the planner knows nothing of a fresh temporary table
		_, err = d.q.Exec(ctx, `ANALYZE pg_temp.holdfast_doom`)
	}
	return more, err
}

func (d *doom) name(oid uint32) string { return d.graph.rels[oid].name }

// on is the condition that ties a child's row to its parent's.
func (k key) on(parent, child string) string {
	var out []string
	for i := range k.ops {
		out = append(out, fmt.Sprintf("%s.%s %s %s.%s", parent, k.parentCols[i], k.ops[i], child, k.childCols[i]))
	}
	return strings.Join(out, " AND ")
}

// rels are the tables with rows of generation gen; -1: of any.
func (d *doom) rels(ctx context.Context, gen int) ([]uint32, error) {
	rows, err := d.q.Query(ctx, `SELECT DISTINCT rel FROM pg_temp.holdfast_doom WHERE gen = $1 OR $1 < 0`, gen)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[uint32])
}

// counts are the rows by table, the furthest from the root first.
func (d *doom) counts(ctx context.Context) (oids []uint32, counts []catalog.Count, err error) {
	rows, err := d.q.Query(ctx, `SELECT rel, count(*) FROM pg_temp.holdfast_doom GROUP BY rel ORDER BY min(gen) DESC, rel`)
	if err != nil {
		return nil, nil, err
	}
	var oid uint32
	var n int64
	counts = []catalog.Count{}
	_, err = pgx.ForEachRow(rows, []any{&oid, &n}, func() error {
		oids = append(oids, oid)
		counts = append(counts, catalog.Count{Table: d.name(oid), Rows: n})
		return nil
	})
	return oids, counts, err
}

// keep notes the keys that are about to vanish, for verify: one table for each
// foreign key that refers to a row that goes.
func (d *doom) keep(ctx context.Context, hit []int) error {
	for _, i := range hit {
		k := d.keys[i]
		var cols []string
		for n, c := range k.parentCols {
			cols = append(cols, fmt.Sprintf("p.%s AS k%d", c, n))
		}
		_, err := d.q.Exec(ctx, fmt.Sprintf(`CREATE TEMPORARY TABLE holdfast_gone_%d ON COMMIT DROP AS
			SELECT %s FROM pg_temp.holdfast_doom d JOIN %s p ON p.tableoid = d.rel AND p.ctid = d.tid`, i, strings.Join(cols, ", "), d.from(k.parent)))
		if err != nil {
			return err
		}
	}
	return nil
}

// hit lists the foreign keys that refer to a table with rows that go.
func (d *doom) hit(ctx context.Context) ([]int, error) {
	rels, err := d.rels(ctx, -1)
	var out []int
	for i, k := range d.keys {
		if slices.ContainsFunc(rels, func(r uint32) bool { return d.within(r, k.parent) }) {
			out = append(out, i)
		}
	}
	return out, err
}

// clear sets the references of rows that stay, as the schema would.
func (d *doom) clear(ctx context.Context, hit []int) error {
	for _, i := range hit {
		k := d.keys[i]
		if d.deletes(k) {
			continue
		}
		to := "NULL"
		if k.act == "d" {
			to = "DEFAULT"
		}
		var set []string
		for _, c := range k.clear {
			set = append(set, c+" = "+to)
		}
		_, err := d.q.Exec(ctx, fmt.Sprintf(`UPDATE %s c SET %s FROM %s p JOIN pg_temp.holdfast_doom d ON p.tableoid = d.rel AND p.ctid = d.tid
			WHERE %s AND NOT EXISTS (SELECT FROM pg_temp.holdfast_doom x WHERE x.rel = c.tableoid AND x.tid = c.ctid)`,
			d.from(k.child), strings.Join(set, ", "), d.from(k.parent), k.on("p", "c")))
		if err != nil {
			return fmt.Errorf("clearing references of %s, whose rows belong to others or stay by ON DELETE: %w", d.name(k.child), err)
		}
	}
	return nil
}

// verify looks for rows that still refer to what is gone.
func (d *doom) verify(ctx context.Context, hit []int, keyText string) error {
	var left int64
	err := d.q.QueryRow(ctx, fmt.Sprintf(`SELECT count(*) FROM %s r WHERE r.%s::text = $1`, d.from(d.root), d.col), keyText).Scan(&left)
	if err != nil || left > 0 {
		return fmt.Errorf("%d root rows remain: %w", left, orElse(err, ErrRemains))
	}
	for _, i := range hit {
		k := d.keys[i]
		gone := k
		gone.parentCols = nil
		for n := range k.parentCols {
			gone.parentCols = append(gone.parentCols, fmt.Sprintf("k%d", n))
		}
		err := d.q.QueryRow(ctx, fmt.Sprintf(`SELECT count(*) FROM pg_temp.holdfast_gone_%d g JOIN %s c ON %s`, i, d.from(k.child), gone.on("g", "c"))).Scan(&left)
		if err != nil || left > 0 {
			return fmt.Errorf("%d rows of %s still refer to what was deleted: %w", left, d.name(k.child), orElse(err, ErrRemains))
		}
		if _, err := d.q.Exec(ctx, fmt.Sprintf(`DROP TABLE pg_temp.holdfast_gone_%d`, i)); err != nil {
			return err
		}
	}
	_, err = d.q.Exec(ctx, `DROP TABLE pg_temp.holdfast_doom`)
	return err
}

// orElse is err, or otherwise where there is none.
func orElse(err, otherwise error) error {
	if err == nil {
		return otherwise
	}
	return err
}
