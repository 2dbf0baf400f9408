package tenancy

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Slice is one project in a view: what it holds, table by table. A view has one
// slice at a time: the next call of [View.Project] ends it.
type Slice struct {
	Key        string
	Parts      []Part // in the tables' order of names, shared ones last
	Sequences  []Sequence
	References []Reference
	v          *View
	own        map[uint32]bool
	there      bool // a schema or a database may be without a table
}

// Part is the rows of a slice in one table; a partitioned table is one.
type Part struct {
	Schema  string   // as the catalogue has it
	Table   string   // as the catalogue has it
	Name    string   // both, quoted where SQL needs it
	Columns []Column // all; generated ones are not copied
	Key     []string // the primary key's columns, quoted where SQL needs it
	Rows    int64
	// Shared rows belong to nobody: no project owns their table, and rows of the
	// project, or other shared rows, refer to them.
	Shared bool
	shape  *shape
	leaves []uint32 // the tables that store the rows
	whole  bool     // every row of them is the part's
	// unsorted rows come in any order.
	unsorted bool
	g        *graph
}

// Reference is a foreign key by which rows of a slice refer to rows that are not
// in it: another project's, or none.
type Reference struct {
	From    string   `json:"from"` // table
	Columns []string `json:"columns"`
	To      string   `json:"to"`
	Rows    int64    `json:"rows"`
}

// Project finds the rows of the project with the key; [ErrNoProject] where there is none.
func (v *View) Project(ctx context.Context, keyText string) (*Slice, error) {
	s, err := v.project(ctx, keyText)
	if err == nil && !s.there {
		err = ErrNoProject
	}
	if err == nil {
		err = s.share(ctx)
	}
	if err == nil {
		err = s.refer(ctx)
	}
	if err == nil {
		s.Sequences, err = s.sequences(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("finding the rows of a project by layout %s: %w", cmp.Or(v.Layout.Kind, Rows), err)
	}
	return s, nil
}

func (s *Slice) sequences(ctx context.Context) (list []Sequence, err error) {
	if s.v.Layout.rows() {
		list, err = sequences(ctx, s.v.tx, s.tops())
	} else {
		list, err = sequencesIn(ctx, s.v.tx, s.v.Layout, s.Key)
	}
	return slices.CompactFunc(list, func(a, b Sequence) bool { return a.Name == b.Name }), err
}

// project finds what is the project's own; no part where there is no such project.
func (v *View) project(ctx context.Context, keyText string) (*Slice, error) {
	if !v.Layout.rows() {
		return v.whole(ctx, keyText)
	}
	s := &Slice{Key: keyText, v: v, own: v.tree()}
	d, err := newDoom(ctx, v.tx, v.g, keyText)
	if err != nil {
		return nil, err
	}
	oids, counts, err := d.counts(ctx)
	if err != nil || len(oids) == 0 {
		return s, err
	}
	stored := map[uint32]int64{}
	for i, oid := range oids {
		stored[oid] = counts[i].Rows
	}
	s.there = true
	s.fill(stored)
	return s, nil
}

// whole finds a project that is a schema or a database.
func (v *View) whole(ctx context.Context, keyText string) (s *Slice, err error) {
	s = &Slice{Key: keyText, v: v, own: map[uint32]bool{}}
	if v.Layout.Kind == Database && v.Database != keyText {
		return s, nil
	}
	if s.there, err = there(ctx, v.tx, v.Layout, keyText); err != nil || !s.there {
		return s, err
	}
	s.own = v.g.holding(v.Layout, keyText)
	stored, err := v.g.stored(ctx, v.tx, s.own)
	if err != nil {
		return nil, err
	}
	s.fill(stored)
	for i := range s.Parts {
		s.Parts[i].whole = true
	}
	return s, nil
}

// fill makes the parts, of tables without rows as well.
func (s *Slice) fill(stored map[uint32]int64) {
	v := s.v
	s.Parts = v.parts(stored, false)
	for oid := range s.own { // an empty table has a shape, too
		top := v.g.top(oid)
		if !slices.ContainsFunc(s.Parts, func(p Part) bool { return p.shape.oid == top }) {
			s.Parts = append(s.Parts, v.part(top, false))
		}
	}
	slices.SortFunc(s.Parts, func(a, b Part) int { return strings.Compare(a.Name, b.Name) })
}

// tree are the tables in which rows of projects can be.
func (v *View) tree() map[uint32]bool {
	own := map[uint32]bool{}
	for r := range v.g.reached() {
		for oid := range v.g.rels {
			if v.g.related(r, oid) {
				own[oid] = true
			}
		}
	}
	return own
}

// copied are the tables in which rows of a slice can be: the tree, and what it refers
// to without owning it.
func (v *View) copied() map[uint32]bool {
	if !v.Layout.rows() {
		return v.g.mine(Layout{Kind: Database}, "")
	}
	set := v.tree()
	for more := true; more; {
		more = false
		for _, k := range v.g.keys {
			if !set[k.child] || set[k.parent] {
				continue
			}
			more = true
			for oid := range v.g.rels {
				if v.g.related(oid, k.parent) {
					set[oid] = true
				}
			}
		}
	}
	return set
}

func (v *View) part(top uint32, shared bool) Part {
	of := v.shapes[top]
	return Part{Schema: of.schema, Table: of.table, Name: of.name, Columns: of.columns, Key: of.key, Shared: shared, shape: of, g: v.g}
}

// parts gathers the tables that store rows under those they are put into.
func (v *View) parts(stored map[uint32]int64, shared bool) (list []Part) {
	for oid, n := range stored {
		top := v.g.top(oid)
		i := slices.IndexFunc(list, func(p Part) bool { return p.shape.oid == top })
		if i < 0 {
			i, list = len(list), append(list, v.part(top, shared))
		}
		list[i].Rows += n
		list[i].leaves = append(list[i].leaves, oid)
	}
	for _, p := range list {
		slices.Sort(p.leaves)
	}
	slices.SortFunc(list, func(a, b Part) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// tops are the tables of the parts.
func (s *Slice) tops() (oids []uint32) {
	for _, p := range s.Parts {
		oids = append(oids, p.shape.oid)
	}
	return oids
}

// rows is a query for columns of the part's rows, as r names them; of none where
// there are none.
func (p Part) rows(columns string) string {
	set := "holdfast_doom"
	if p.Shared {
		set = "holdfast_need"
	}
	var all []string
	for _, leaf := range p.leaves {
		from := fmt.Sprintf(`SELECT %s FROM ONLY %s r`, columns, p.g.rels[leaf].name)
		if !p.whole {
			from += fmt.Sprintf(` JOIN pg_temp.%s d ON d.rel = %d AND d.tid = r.ctid`, set, leaf)
		}
		all = append(all, from)
	}
	if len(all) == 0 {
		all = append(all, fmt.Sprintf(`SELECT %s FROM ONLY %s r WHERE false`, columns, p.Name))
	}
	return strings.Join(all, " UNION ALL ")
}

// below are the rows of the slice in a table of a foreign key, or in its partitions.
func (s *Slice) below(oid uint32, columns []string) string {
	var all []string
	for _, p := range s.Parts {
		q := p
		q.leaves = slices.DeleteFunc(slices.Clone(p.leaves), func(leaf uint32) bool { return !s.v.g.within(leaf, oid) })
		if len(q.leaves) > 0 {
			all = append(all, q.rows("r."+strings.Join(columns, ", r.")))
		}
	}
	return strings.Join(all, " UNION ALL ")
}

// share finds the rows that nobody owns and the slice cannot do without.
func (s *Slice) share(ctx context.Context) error {
	if err := rowSet(ctx, s.v.tx, "holdfast_need"); err != nil {
		return err
	}
	owned := s.owned()
	for more := true; more; {
		more = false
		for _, k := range s.v.g.keys {
			from := s.below(k.child, k.childCols)
			if s.own[k.parent] || from == "" || s.v.projects[s.v.g.rels[k.parent].schema] {
				continue
			}
			tag, err := s.v.tx.Exec(ctx, fmt.Sprintf(`INSERT INTO pg_temp.holdfast_need SELECT p.tableoid, p.ctid, 0 FROM %s p
				WHERE p.tableoid <> ALL ($1) AND EXISTS (SELECT FROM (%s) c WHERE %s) ON CONFLICT DO NOTHING`, s.v.g.from(k.parent), from, k.on("p", "c")), owned)
			if err != nil {
				return fmt.Errorf("following a foreign key to %s: %w", s.v.g.rels[k.parent].name, err)
			}
			more = more || tag.RowsAffected() > 0
		}
		if err := s.takeShared(ctx); err != nil {
			return err
		}
	}
	return nil
}

// owned are the tables whose rows are somebody's: this project's, or another one's. A
// table that nobody owns may have them as partitions.
func (s *Slice) owned() []uint32 {
	set := map[uint32]bool{}
	for oid, r := range s.v.g.rels {
		if s.own[oid] || s.v.projects[r.schema] {
			set[oid] = true
		}
	}
	return append([]uint32{}, sorted(set)...)
}

func (s *Slice) takeShared(ctx context.Context) error {
	rows, err := s.v.tx.Query(ctx, `SELECT rel, count(*) FROM pg_temp.holdfast_need GROUP BY rel`)
	if err != nil {
		return err
	}
	stored := map[uint32]int64{}
	var oid uint32
	var n int64
	_, err = pgx.ForEachRow(rows, []any{&oid, &n}, func() error { stored[oid] = n; return nil })
	s.Parts = slices.DeleteFunc(s.Parts, func(p Part) bool { return p.Shared })
	s.Parts = append(s.Parts, s.v.parts(stored, true)...)
	return err
}

// refer counts the references that lead out of the slice.
func (s *Slice) refer(ctx context.Context) error {
	for _, k := range s.v.g.keys {
		from, to := s.below(k.child, k.childCols), s.below(k.parent, k.parentCols)
		if from == "" || !s.v.Layout.rows() && s.own[k.child] && s.own[k.parent] {
			continue
		}
		if to == "" {
			to = fmt.Sprintf(`SELECT %s FROM ONLY %s WHERE false`, strings.Join(k.parentCols, ", "), s.v.g.rels[k.parent].name)
		}
		r := Reference{From: s.v.g.rels[k.child].name, Columns: k.childCols, To: s.v.g.rels[k.parent].name}
		err := s.v.tx.QueryRow(ctx, fmt.Sprintf(`SELECT count(*) FROM (%s) c WHERE %s AND NOT EXISTS (SELECT FROM (%s) p WHERE %s)`,
			from, k.whole("c"), to, k.on("p", "c"))).Scan(&r.Rows)
		if err != nil {
			return fmt.Errorf("following a foreign key of %s: %w", r.From, err)
		}
		if r.Rows > 0 {
			s.References = append(s.References, r)
		}
	}
	return nil
}

// whole is the condition under which a row refers to anything (MATCH SIMPLE).
func (k key) whole(child string) string {
	var out []string
	for _, c := range k.childCols {
		out = append(out, child+"."+c+" IS NOT NULL")
	}
	return strings.Join(out, " AND ")
}
