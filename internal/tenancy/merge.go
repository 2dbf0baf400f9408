package tenancy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Change is what putting a project back does to one table: rows of the copy that
// live lacks, rows that differ, rows of live's project that the copy lacks.
type Change struct {
	Table   string `json:"table"`
	Added   int64  `json:"added"`
	Changed int64  `json:"changed"`
	Removed int64  `json:"removed"`
	Kept    int64  `json:"kept"` // equal in both
}

// Merged is what [Merge] did, and what it saw before it committed.
type Merged struct {
	Changes   []Change `json:"changes"`
	Sequences []Moved  `json:"sequences"` // moved forward, so that they give no number twice
	// Restored is the project in live, equal to the copy's; Others are all other
	// rows of the same tables, equal before and after.
	Restored []Digest `json:"restored"`
	Others   []Digest `json:"others"`
	// Views are materialized views over changed tables that could not be renewed, each
	// with why: they are as they were before.
	Views []string `json:"views_not_filled"`
	// Made says that live had no such schema: it was made by the copy's DDL.
	Made bool `json:"made,omitempty"`
}

// Moved is a sequence that was moved.
type Moved struct {
	Name string `json:"name"`
	From int64  `json:"from"`
	To   int64  `json:"to"`
}

var (
	// ErrShape means that live's tables are not as the copy's: rows do not fit.
	ErrShape = errors.New("live's tables differ from the copy's")
	// ErrMerge means that live with the copy's rows would not be whole; it was left as it was.
	ErrMerge = errors.New("the project cannot be put back as it was; live was not changed")
)

// merge is under way in a transaction of live.
type merge struct {
	live *View
	now  *Slice // the project as live has it
	from *Slice
	list []*mergeTable
}

type mergeTable struct {
	Change
	n     int
	shape *shape // live's
	from  *Part
	now   *Part
}

// Compare says what [Merge] would do. Live is read in one snapshot, without locks,
// into temporary tables.
func Compare(ctx context.Context, conn *pgx.Conn, l Layout, from *Slice) (changes []Change, err error) {
	v, err := OpenView(ctx, conn, l)
	if err != nil {
		return nil, err
	}
	m, err := newMerge(ctx, v, from)
	if err == nil {
		changes, err = m.show(ctx)
	}
	if err = errors.Join(err, v.Close(ctx)); err != nil {
		return nil, fmt.Errorf("comparing a project with live: %w", err)
	}
	return changes, nil
}

func (m *merge) show(ctx context.Context) ([]Change, error) {
	if !m.now.there && !m.live.Layout.rows() {
		return m.from.Additions(), nil
	}
	err := m.compare(ctx)
	return m.changes(), err
}

// Additions are the changes where live has nothing of the project.
func (s *Slice) Additions() []Change {
	out := []Change{}
	for _, p := range s.Parts {
		if !p.Shared {
			out = append(out, Change{Table: p.Name, Added: p.Rows})
		}
	}
	return out
}

// Merge makes the project in live what from is, in one transaction that holds the
// tables against writers, with triggers off (session_replication_role). Before it
// commits it proves that the project's rows are the copy's, that all other rows of
// the same tables are as they were, and that no more references lead nowhere than
// before; else nothing is changed. Sequences are moved then, and stay where they are
// if the commit fails. A schema that live has not is made first, by what ddl gives: the
// copy's DDL, as pg_dump writes it.
func Merge(ctx context.Context, conn *pgx.Conn, l Layout, from *Slice, ddl func() ([]byte, error)) (out Merged, err error) {
	// Whatever the server's default: each statement must see what was committed before it.
	err = inTx(ctx, conn, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		made, err := makeSchema(ctx, conn, tx, l, from, ddl)
		if err != nil {
			return err
		}
		v, err := newView(ctx, conn, tx, l)
		if err == nil {
			err = v.hold(ctx, from.Key)
		}
		if err == nil { // as it is now that nobody changes it
			v, err = newView(ctx, conn, tx, l)
		}
		if err != nil {
			return err
		}
		m, err := newMerge(ctx, v, from)
		if err != nil {
			return err
		}
		out, err = m.run(ctx)
		out.Made = made
		return err
	})
	if err == nil && out.Made {
		views, why := fillViews(ctx, conn, from.Key)
		if out.Views = views; why != nil { // it is committed: this is no failure any more
			out.Views = append(out.Views, why.Error())
		}
	}
	if err != nil {
		return Merged{}, fmt.Errorf("putting a project back into live: %w", err)
	}
	return out, nil
}

// SameSystem wants a live server to be the system that a view is of.
func (v *View) SameSystem(ctx context.Context, live *pgx.Conn) error {
	now, err := Where(ctx, live)
	if err != nil {
		return err
	}
	return v.sameSystem(now.SystemID)
}

func (v *View) sameSystem(live string) error {
	if v.At.SystemID != live {
		return fmt.Errorf("%w: the copy is of system %s, live is %s", ErrShape, v.At.SystemID, live)
	}
	return nil
}

// makeSchema makes the project's schema where live has none, in the transaction that
// fills it.
func makeSchema(ctx context.Context, conn *pgx.Conn, tx pgx.Tx, l Layout, from *Slice, ddl func() ([]byte, error)) (made bool, err error) {
	if l.Kind != Schema {
		return false, nil
	}
	if yes, err := there(ctx, tx, l, from.Key); err != nil || yes {
		return false, err
	}
	if err := from.v.SameSystem(ctx, conn); err != nil {
		return false, err
	}
	text, err := ddl()
	if err != nil {
		return false, err
	}
	return true, Define(ctx, conn, text)
}

// hold locks what a merge writes, and what refers to it, against writers.
func (v *View) hold(ctx context.Context, keyText string) error {
	if v.Layout.rows() {
		return v.g.hold(ctx, v.tx)
	}
	reach := map[uint32]int{}
	for oid := range v.g.holding(v.Layout, keyText) {
		reach[oid] = 0
	}
	return v.g.lock(ctx, v.tx, reach)
}

func newMerge(ctx context.Context, live *View, from *Slice) (*merge, error) {
	if err := from.v.sameSystem(live.At.SystemID); err != nil {
		return nil, err
	}
	now, err := live.project(ctx, from.Key)
	if err != nil {
		return nil, err
	}
	m := &merge{live: live, now: now, from: from}
	for i := range from.Parts {
		if p := &from.Parts[i]; !p.Shared {
			m.list = append(m.list, &mergeTable{Change: Change{Table: p.Name}, from: p})
		}
	}
	for i := range now.Parts {
		p := &now.Parts[i]
		at := slices.IndexFunc(m.list, func(t *mergeTable) bool { return t.Table == p.Name })
		if at < 0 {
			at = len(m.list)
			m.list = append(m.list, &mergeTable{Change: Change{Table: p.Name}})
		}
		m.list[at].now = p
	}
	for i, t := range m.list {
		if t.n = i; t.now != nil {
			t.shape = t.now.shape
		}
	}
	if !now.there && !live.Layout.rows() {
		return m, nil // its tables will be made as the copy has them
	}
	return m, m.fits()
}

// fits refuses rows that live has no place for.
func (m *merge) fits() error {
	for _, t := range m.list {
		for _, s := range m.live.shapes {
			if t.shape == nil && s.name == t.Table && m.now.own[s.oid] {
				t.shape = s
			}
		}
		if t.from == nil || t.from.Rows == 0 {
			continue
		}
		if t.shape == nil {
			return fmt.Errorf("%w: %s has %d rows in the copy, and live has no such table for projects", ErrShape, t.Table, t.from.Rows)
		}
		have, want := columnSet(t.shape), columnSet(t.from.shape)
		if !slices.Equal(have, want) {
			return fmt.Errorf("%w: %s has the columns %s in live, and %s in the copy", ErrShape, t.Table, strings.Join(have, ", "), strings.Join(want, ", "))
		}
	}
	m.list = slices.DeleteFunc(m.list, func(t *mergeTable) bool { return t.shape == nil })
	return nil
}

func columnSet(s *shape) (list []string) {
	for _, c := range s.stored() {
		list = append(list, c.quoted+" "+c.Type)
	}
	slices.Sort(list)
	return list
}

// compare brings the copy's rows beside live's and looks what differs.
func (m *merge) compare(ctx context.Context) error {
	for _, t := range m.list {
		if err := m.stage(ctx, t); err != nil {
			return fmt.Errorf("bringing the rows of %s beside live's: %w", t.Table, err)
		}
		if err := m.diff(ctx, t); err != nil {
			return fmt.Errorf("comparing the rows of %s: %w", t.Table, err)
		}
	}
	return nil
}

// stage copies the copy's rows into a temporary table of live.
func (m *merge) stage(ctx context.Context, t *mergeTable) error {
	_, err := m.live.tx.Exec(ctx, fmt.Sprintf(`CREATE TEMPORARY TABLE holdfast_in_%d ON COMMIT DROP AS SELECT %s FROM ONLY %s r WITH NO DATA`, t.n, t.shape.list("r."), t.Table))
	if err != nil || t.from == nil || t.from.Rows == 0 {
		return err
	}
	return m.from.pour(ctx, *t.from, nil, m.live.conn, fmt.Sprintf("pg_temp.holdfast_in_%d", t.n))
}

// pour copies rows of a part into a table of another connection.
func (s *Slice) pour(ctx context.Context, p Part, masks Masks, to *pgx.Conn, table string) error {
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := s.Write(ctx, p, Copy, masks, w)
		w.CloseWithError(err)
		done <- err
	}()
	tag, err := to.PgConn().CopyFrom(ctx, r, fmt.Sprintf(`COPY %s (%s) FROM STDIN`, table, p.shape.list("")))
	r.CloseWithError(io.ErrClosedPipe)
	sent := <-done
	switch {
	case sent != nil && !errors.Is(sent, io.ErrClosedPipe):
		return sent
	case err != nil:
		return err
	case tag.RowsAffected() != p.Rows:
		return fmt.Errorf("%s took %d rows of %d", table, tag.RowsAffected(), p.Rows)
	}
	return nil
}

// diff pairs rows by their primary key; where there is none, equal rows one by one.
func (m *merge) diff(ctx context.Context, t *mergeTable) error {
	hash, nth := hashOf(t.shape.list("r.")), "1::bigint"
	key := fmt.Sprintf(`ROW(r.%s)::text COLLATE "C"`, strings.Join(t.shape.key, ", r."))
	if len(t.shape.key) == 0 {
		key = fmt.Sprintf(`ROW(%s)::text COLLATE "C"`, t.shape.list("r."))
		nth = fmt.Sprintf(`row_number() OVER (PARTITION BY %s)`, key)
	}
	old := fmt.Sprintf(`SELECT NULL::oid AS "holdfast rel", NULL::tid AS "holdfast tid", r.* FROM pg_temp.holdfast_in_%d r WHERE false`, t.n)
	if t.now != nil && len(t.now.leaves) > 0 {
		old = t.now.rows(`r.tableoid AS "holdfast rel", r.ctid AS "holdfast tid", ` + t.shape.list("r."))
	}
	for _, sql := range []string{
		fmt.Sprintf(`CREATE TEMPORARY TABLE holdfast_new_%d ON COMMIT DROP AS SELECT r.ctid AS tid, %s AS k, %s AS n, %s AS h FROM pg_temp.holdfast_in_%[1]d r`, t.n, key, nth, hash),
		fmt.Sprintf(`CREATE TEMPORARY TABLE holdfast_old_%d ON COMMIT DROP AS SELECT r."holdfast rel" AS rel, r."holdfast tid" AS tid, %s AS k, %s AS n, %s AS h FROM (%s) r`, t.n, key, nth, hash, old),
		fmt.Sprintf(`ANALYZE pg_temp.holdfast_new_%d`, t.n), fmt.Sprintf(`ANALYZE pg_temp.holdfast_old_%d`, t.n),
		fmt.Sprintf(`CREATE TEMPORARY TABLE holdfast_diff_%d ON COMMIT DROP AS SELECT o.rel, o.tid AS old, n.tid AS new
			FROM pg_temp.holdfast_old_%[1]d o FULL JOIN pg_temp.holdfast_new_%[1]d n ON o.k COLLATE "C" = n.k COLLATE "C" AND o.n = n.n WHERE o.h IS DISTINCT FROM n.h`, t.n),
		fmt.Sprintf(`ANALYZE pg_temp.holdfast_diff_%d`, t.n),
	} {
		if _, err := m.live.tx.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return m.count(ctx, t)
}

func (m *merge) count(ctx context.Context, t *mergeTable) error {
	var rows int64
	err := m.live.tx.QueryRow(ctx, fmt.Sprintf(`SELECT count(*) FILTER (WHERE old IS NULL), count(*) FILTER (WHERE new IS NULL),
		count(*) FILTER (WHERE old IS NOT NULL AND new IS NOT NULL), (SELECT count(*) FROM pg_temp.holdfast_new_%d) FROM pg_temp.holdfast_diff_%[1]d`, t.n)).
		Scan(&t.Added, &t.Removed, &t.Changed, &rows)
	t.Kept = rows - t.Added - t.Changed
	return err
}

func (m *merge) changes() []Change {
	out := []Change{}
	for _, t := range m.list {
		out = append(out, t.Change)
	}
	return out
}
