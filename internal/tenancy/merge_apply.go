package tenancy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// run carries the merge out, and proves what it did, before the commit.
func (m *merge) run(ctx context.Context) (out Merged, err error) {
	if err := m.quiet(ctx); err != nil {
		return out, err
	}
	before, err := m.now.others(ctx)
	if err != nil {
		return out, err
	}
	loose, err := m.loose(ctx)
	if err != nil {
		return out, err
	}
	if err := m.put(ctx); err != nil {
		return out, err
	}
	out.Changes = m.changes()
	now, err := m.live.project(ctx, m.from.Key)
	if err != nil {
		return out, err
	}
	if err := m.pin(ctx, now); err != nil {
		return out, err
	}
	if err := m.prove(ctx, now, &out, before, loose); err != nil {
		return out, err
	}
	if out.Views, err = refresh(ctx, m.live.tx, m.touched(), false); err != nil {
		return out, err
	}
	// Last: no rollback moves a sequence back.
	if out.Sequences, err = m.advance(ctx); err != nil || m.live.Layout.rows() {
		return out, err
	}
	return out, m.sequences(ctx, &out)
}

// put makes the rows of the project the copy's.
func (m *merge) put(ctx context.Context) error {
	if err := m.compare(ctx); err != nil {
		return err
	}
	if _, err := m.live.tx.Exec(ctx, `SET LOCAL session_replication_role = replica`); err != nil {
		return err
	}
	for _, act := range []func(context.Context, *mergeTable) error{m.remove, m.insert, m.unique} {
		for _, t := range m.list {
			if err := act(ctx, t); err != nil {
				return err
			}
		}
	}
	return nil
}

// touched are the tables, and their partitions, in which rows were put or removed.
func (m *merge) touched() (oids []uint32) {
	for _, t := range m.list {
		if t.Added+t.Changed+t.Removed == 0 {
			continue
		}
		for oid := range m.live.g.rels {
			if m.live.g.within(oid, t.shape.oid) {
				oids = append(oids, oid)
			}
		}
	}
	return oids
}

// Triggers and rules that act whatever session_replication_role says.
const loudSQL = `
SELECT format('trigger %I of %s', t.tgname, t.tgrelid::regclass) FROM pg_trigger t WHERE t.tgrelid = ANY ($1) AND NOT t.tgisinternal AND t.tgenabled IN ('A', 'R')
UNION ALL
SELECT format('rule %I of %s', r.rulename, r.ev_class::regclass) FROM pg_rewrite r WHERE r.ev_class = ANY ($1) AND r.ev_type <> '1' AND r.ev_enabled <> 'D'
UNION ALL
SELECT format('deferrable exclusion constraint %I of %s', c.conname, c.conrelid::regclass) FROM pg_constraint c WHERE c.conrelid = ANY ($1) AND c.contype = 'x' AND c.condeferrable
ORDER BY 1`

// quiet refuses tables where rows could not be put as they are and nothing else happen.
func (m *merge) quiet(ctx context.Context) error {
	rows, err := m.live.tx.Query(ctx, loudSQL, sorted(m.now.own))
	if err != nil {
		return err
	}
	loud, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err == nil && len(loud) > 0 {
		err = fmt.Errorf("%w: %s would act, or not be looked at", ErrMerge, strings.Join(loud, ", "))
	}
	return err
}

func (m *merge) remove(ctx context.Context, t *mergeTable) error {
	if t.now == nil {
		return nil
	}
	var gone int64
	for _, leaf := range t.now.leaves {
		tag, err := m.live.tx.Exec(ctx, fmt.Sprintf(`DELETE FROM ONLY %s r USING pg_temp.holdfast_diff_%d d WHERE d.rel = %d AND d.old = r.ctid`, m.live.g.rels[leaf].name, t.n, leaf))
		if err != nil {
			return fmt.Errorf("removing rows of %s: %w", t.Table, err)
		}
		gone += tag.RowsAffected()
	}
	if gone != t.Removed+t.Changed {
		return fmt.Errorf("%w: %s lost %d rows of %d", ErrMerge, t.Table, gone, t.Removed+t.Changed)
	}
	return nil
}

func (m *merge) insert(ctx context.Context, t *mergeTable) error {
	tag, err := m.live.tx.Exec(ctx, fmt.Sprintf(`INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT %s FROM pg_temp.holdfast_in_%d r JOIN pg_temp.holdfast_diff_%[4]d d ON d.new = r.ctid`,
		t.Table, t.shape.list(""), t.shape.list("r."), t.n))
	var refused *pgconn.PgError
	switch {
	case errors.As(err, &refused) && strings.HasPrefix(refused.Code, "23"):
		return fmt.Errorf("%w: live refuses a row of %s by its constraint %s: what it needs may be another project's by now", ErrMerge, t.Table, refused.ConstraintName)
	case err != nil:
		return fmt.Errorf("adding rows to %s: %w", t.Table, err)
	case tag.RowsAffected() != t.Added+t.Changed:
		return fmt.Errorf("%w: %s took %d rows of %d", ErrMerge, t.Table, tag.RowsAffected(), t.Added+t.Changed)
	}
	return nil
}

const deferredSQL = `
SELECT ARRAY(SELECT quote_ident(a.attname) FROM unnest(c.conkey) k JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k)
  FROM pg_constraint c WHERE c.conrelid = $1 AND c.contype IN ('p', 'u') AND c.condeferrable`

// unique looks for what a deferrable constraint forbids: its own check is a trigger,
// and triggers are off.
func (m *merge) unique(ctx context.Context, t *mergeTable) error {
	rows, err := m.live.tx.Query(ctx, deferredSQL, t.shape.oid)
	if err != nil {
		return err
	}
	keys, err := pgx.CollectRows(rows, pgx.RowTo[[]string])
	if err != nil {
		return err
	}
	for _, cols := range keys {
		var twice int64
		list := strings.Join(cols, ", ")
		err := m.live.tx.QueryRow(ctx, fmt.Sprintf(`SELECT count(*) FROM (SELECT FROM %s WHERE %s IS NOT NULL GROUP BY %s HAVING count(*) > 1) x`,
			m.live.g.from(t.shape.oid), strings.Join(cols, " IS NOT NULL AND "), list)).Scan(&twice)
		if err != nil {
			return err
		}
		if twice > 0 {
			return fmt.Errorf("%w: %d values of (%s) would be in %s twice", ErrMerge, twice, list, t.Table)
		}
	}
	return nil
}

// advance moves sequences past the numbers in their columns, and never back.
func (m *merge) advance(ctx context.Context) ([]Moved, error) {
	moved := []Moved{}
	list, err := sequences(ctx, m.live.tx, sorted(m.now.own))
	if err != nil {
		return moved, err
	}
	far, is := map[string]Moved{}, map[string]Sequence{} // a sequence may serve many tables
	for _, q := range list {
		at, err := m.furthest(ctx, q)
		if err != nil {
			return moved, fmt.Errorf("moving sequence %s forward: %w", q.Name, err)
		}
		if was, seen := far[q.Name]; at != nil && (!seen || (*at > was.To) == (q.step > 0)) {
			far[q.Name], is[q.Name] = Moved{q.Name, q.LastValue, *at}, q
		}
	}
	for _, name := range sortedKeys(far) {
		tag, err := m.live.tx.Exec(ctx, is[name].moveTo(far[name].To, true))
		if err != nil {
			return moved, fmt.Errorf("moving sequence %s forward: %w", name, err)
		}
		if tag.RowsAffected() > 0 {
			moved = append(moved, far[name])
		}
	}
	return moved, nil
}

// sequences moves those of a schema or a database, which a column need not draw from, to
// where the copy's stand.
func (m *merge) sequences(ctx context.Context, out *Merged) error {
	have := map[string]Sequence{}
	list, err := sequencesIn(ctx, m.live.tx, m.live.Layout, m.from.Key)
	for _, q := range list {
		have[q.Name] = q
	}
	for _, q := range m.from.Sequences {
		was, ok := have[q.Name]
		if err != nil || !ok {
			continue
		}
		var tag pgconn.CommandTag
		if tag, err = m.live.tx.Exec(ctx, q.moveTo(q.LastValue, q.IsCalled)); err == nil && tag.RowsAffected() > 0 {
			out.Sequences = append(out.Sequences, Moved{q.Name, was.LastValue, q.LastValue})
		}
	}
	if err != nil {
		return fmt.Errorf("moving sequences to where the copy's stand: %w", err)
	}
	return nil
}

// furthest is the furthest number in a sequence's column that the sequence has not
// given yet; nil: none.
func (m *merge) furthest(ctx context.Context, q Sequence) (at *int64, err error) {
	if !q.counts {
		return nil, nil
	}
	side, beyond := "max", ">"
	if q.step < 0 {
		side, beyond = "min", "<"
	}
	err = m.live.tx.QueryRow(ctx, fmt.Sprintf(`SELECT x FROM (SELECT %s(%s)::bigint FROM %s) t(x) WHERE x %s $1 OR x = $1 AND NOT $2`,
		side, q.column, m.live.g.from(q.table), beyond), q.LastValue, q.IsCalled).Scan(&at)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	return at, err
}

// loose counts, for each foreign key that touches a project's tables, the rows that
// refer to nothing.
func (m *merge) loose(ctx context.Context) (map[int]int64, error) {
	out := map[int]int64{}
	for i, k := range m.live.g.keys {
		if !m.now.own[k.child] && !m.now.own[k.parent] {
			continue
		}
		var n int64
		err := m.live.tx.QueryRow(ctx, fmt.Sprintf(`SELECT count(*) FROM %s c WHERE %s AND NOT EXISTS (SELECT FROM %s p WHERE %s)`,
			m.live.g.from(k.child), k.whole("c"), m.live.g.from(k.parent), k.on("p", "c"))).Scan(&n)
		if err != nil {
			return nil, fmt.Errorf("looking where rows of %s refer to: %w", m.live.g.rels[k.child].name, err)
		}
		out[i] = n
	}
	return out, nil
}

// pin locks the rows of others' tables that the project refers to, as the server does
// for each row that it checks: nobody removes them before the commit.
func (m *merge) pin(ctx context.Context, now *Slice) error {
	g := m.live.g
	for _, k := range g.keys {
		from := now.below(k.child, k.childCols)
		if now.own[k.parent] || from == "" {
			continue
		}
		_, err := m.live.tx.Exec(ctx, fmt.Sprintf(`SELECT FROM %s p WHERE EXISTS (SELECT FROM (%s) c WHERE %s) FOR KEY SHARE OF p`, g.from(k.parent), from, k.on("p", "c")))
		if err != nil {
			return fmt.Errorf("locking the rows of %s that the project refers to (needs UPDATE on it): %w", g.rels[k.parent].name, err)
		}
	}
	return nil
}

// prove looks again: the project is the copy's, the others are as they were, and
// no reference was broken.
func (m *merge) prove(ctx context.Context, now *Slice, out *Merged, before []Digest, loose map[int]int64) error {
	after, err := m.loose(ctx)
	if err != nil {
		return err
	}
	for i, n := range after {
		if k := m.live.g.keys[i]; n > loose[i] {
			return fmt.Errorf("%w: %d rows of %s would refer to rows of %s that are not there (%s)", ErrMerge,
				n-loose[i], m.live.g.rels[k.child].name, m.live.g.rels[k.parent].name, strings.Join(k.childCols, ", "))
		}
	}
	if out.Others, err = now.others(ctx); err != nil {
		return err
	}
	if !slices.Equal(before, out.Others) {
		return fmt.Errorf("%w: rows of others would not be as they were before: %s", ErrMerge, differ(before, out.Others))
	}
	out.Restored = []Digest{}
	for _, t := range m.list {
		if err := m.equal(ctx, t, now, out); err != nil {
			return err
		}
	}
	return nil
}

// equal compares a table's rows of the project in live with the copy's own.
func (m *merge) equal(ctx context.Context, t *mergeTable, now *Slice, out *Merged) error {
	want, have := Digest{Table: t.Table}, Digest{Table: t.Table}
	var err error
	if t.from != nil && t.from.Rows > 0 {
		if want, err = digest(ctx, m.from.v.tx, t.Table, t.from.hashes(t.shape)); err != nil {
			return err
		}
	}
	i := slices.IndexFunc(now.Parts, func(p Part) bool { return p.Name == t.Table })
	if i >= 0 && now.Parts[i].Rows > 0 {
		if have, err = digest(ctx, m.live.tx, t.Table, now.Parts[i].hashes(t.shape)); err != nil {
			return err
		}
	}
	if have != want {
		return fmt.Errorf("%w: %s would have %d rows of the project (%s), the copy has %d (%s)", ErrMerge, t.Table, have.Rows, have.SHA256, want.Rows, want.SHA256)
	}
	out.Restored = append(out.Restored, have)
	return nil
}

// differ names the first table of two lists that is not the same.
func differ(a, b []Digest) string {
	for i := range a {
		if i >= len(b) || a[i] != b[i] {
			return fmt.Sprintf("%s had %d", a[i].Table, a[i].Rows)
		}
	}
	return "another table"
}
