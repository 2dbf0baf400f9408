package tenancy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Table is a table that can hold rows of a project.
type Table struct {
	OID   uint32
	Name  string // quoted where SQL needs it
	Depth int    // foreign keys from the root table, the shortest way
	toast bool   // vacuumed with the table that it belongs to
}

// relation is a table of the catalogue.
type relation struct {
	oid     uint32
	schema  string // as the catalogue has it; "" of an extension's table, which is nobody's
	name    string
	kind    string // pg_class.relkind: r, p or f
	parents []uint32
}

// key is a foreign key: rows of child refer to rows of parent.
type key struct {
	child, parent uint32
	act           string   // pg_constraint.confdeltype: a and r refuse, c cascades, n and d clear
	childCols     []string // quoted, paired with parentCols
	parentCols    []string
	ops           []string // parent's value OPERATOR(ops[i]) child's value
	clear         []string // the columns that n and d clear
}

// graph is a database's tables and the foreign keys among them.
type graph struct {
	rels map[uint32]*relation
	keys []key
	root uint32 // 0 where projects are no rows
	col  string // root's key column, quoted
}

const relationsSQL = `
SELECT c.oid, CASE WHEN EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e') THEN '' ELSE n.nspname END,
       format('%I.%I', n.nspname, c.relname), c.relkind::text,
       ARRAY(SELECT i.inhparent FROM pg_inherits i WHERE i.inhrelid = c.oid)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'f') AND c.relpersistence <> 't'`

// The foreign keys of partitions that belong to one of their parent's are left
// out (conparentid): the parent's own reaches the rows of all partitions.
const keysSQL = `
SELECT c.conrelid, c.confrelid, c.confdeltype::text,
       ARRAY(SELECT quote_ident(a.attname) FROM unnest(c.conkey) WITH ORDINALITY u(n, i)
               JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = u.n ORDER BY u.i),
       ARRAY(SELECT quote_ident(a.attname) FROM unnest(c.confkey) WITH ORDINALITY u(n, i)
               JOIN pg_attribute a ON a.attrelid = c.confrelid AND a.attnum = u.n ORDER BY u.i),
       ARRAY(SELECT format('OPERATOR(%%I.%%s)', n.nspname, o.oprname) FROM unnest(c.conpfeqop) WITH ORDINALITY u(op, i)
               JOIN pg_operator o ON o.oid = u.op JOIN pg_namespace n ON n.oid = o.oprnamespace ORDER BY u.i),
       %s
  FROM pg_constraint c WHERE c.contype = 'f' AND c.conparentid = 0`

// Since version 15 ON DELETE SET NULL can name some of the columns.
const clearSQL = `
       ARRAY(SELECT quote_ident(a.attname) FROM unnest(c.confdelsetcols) u(n)
               JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = u.n)`

// readGraph reads the catalogue and finds the root, where projects have one; ErrNoRoot
// where it is not there.
func readGraph(ctx context.Context, q Querier, l Layout) (*graph, error) {
	if err := l.Check(); err != nil {
		return nil, err
	}
	g := &graph{rels: map[uint32]*relation{}}
	rows, err := q.Query(ctx, relationsSQL)
	if err != nil {
		return nil, err
	}
	var r relation
	_, err = pgx.ForEachRow(rows, []any{&r.oid, &r.schema, &r.name, &r.kind, &r.parents}, func() error {
		one := r
		one.parents = slices.Clone(r.parents)
		g.rels[r.oid] = &one
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the catalogue: %w", err)
	}
	if err := g.readKeys(ctx, q); err != nil {
		return nil, fmt.Errorf("reading the foreign keys: %w", err)
	}
	if !l.rows() {
		return g, nil
	}
	return g, g.findRoot(ctx, q, l)
}

func (g *graph) readKeys(ctx context.Context, q Querier) error {
	var version int
	if err := q.QueryRow(ctx, `SELECT current_setting('server_version_num')::int`).Scan(&version); err != nil {
		return err
	}
	set := "'{}'::text[]"
	if version >= 150000 {
		set = clearSQL
	}
	rows, err := q.Query(ctx, fmt.Sprintf(keysSQL, set))
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var k key
		if err := rows.Scan(&k.child, &k.parent, &k.act, &k.childCols, &k.parentCols, &k.ops, &k.clear); err != nil {
			return err
		}
		if len(k.clear) == 0 {
			k.clear = k.childCols
		}
		if g.rels[k.child] != nil && g.rels[k.parent] != nil {
			g.keys = append(g.keys, k)
		}
	}
	return rows.Err()
}

func (g *graph) findRoot(ctx context.Context, q Querier, l Layout) error {
	var oid *uint32
	if err := q.QueryRow(ctx, `SELECT to_regclass($1)::oid`, l.Root).Scan(&oid); err != nil {
		return fmt.Errorf("projects.rows.root %q: %w", l.Root, err)
	}
	if oid == nil || g.rels[*oid] == nil || g.rels[*oid].kind == "f" {
		return fmt.Errorf("%w: database %s has no table %s (write it with its schema)", ErrNoRoot, l.Database, l.Root)
	}
	g.root = *oid
	err := q.QueryRow(ctx, `SELECT quote_ident(attname) FROM pg_attribute
		WHERE attrelid = $1 AND attname = $2 AND attnum > 0 AND NOT attisdropped`, g.root, l.Key).Scan(&g.col)
	if errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("%w: table %s has no column %s", ErrNoRoot, l.Root, l.Key)
	}
	return err
}

// from is the relation as a FROM item: a plain table without those that inherit
// from it, whose foreign keys are their own; a partitioned one with its partitions.
func (g *graph) from(oid uint32) string {
	if r := g.rels[oid]; r.kind == "p" {
		return r.name
	} else {
		return "ONLY " + r.name
	}
}

// within says whether rows of leaf are rows of oid: the same, or a partition.
func (g *graph) within(leaf, oid uint32) bool {
	if leaf == oid {
		return true
	}
	if g.rels[oid].kind != "p" || g.rels[leaf] == nil {
		return false
	}
	return slices.ContainsFunc(g.rels[leaf].parents, func(p uint32) bool { return g.rels[p] != nil && g.within(p, oid) })
}

// related says whether a and b can share rows.
func (g *graph) related(a, b uint32) bool { return g.within(a, b) || g.within(b, a) }

// deletes says whether the rows that refer go as well. Another project's root row
// goes only where the schema cascades.
func (g *graph) deletes(k key) bool {
	switch k.act {
	case "c":
		return true
	case "n", "d":
		return false
	}
	return !g.related(k.child, g.root)
}

// reached gives every table in which rows can be deleted, the root first.
func (g *graph) reached() map[uint32]int {
	depth := map[uint32]int{g.root: 0}
	for queue := []uint32{g.root}; len(queue) > 0; queue = queue[1:] {
		for _, k := range g.keys {
			if _, seen := depth[k.child]; !seen && g.deletes(k) && g.related(k.parent, queue[0]) {
				depth[k.child] = depth[queue[0]] + 1
				queue = append(queue, k.child)
			}
		}
	}
	return depth
}

// leaves are the tables of reached that store rows.
func (g *graph) leaves() []Table { return g.storing(g.reached()) }

// touched are leaves, with the tables in which a deletion clears references: the
// versions of rows from before, and indexes and statistics, have the project's key.
func (g *graph) touched() []Table {
	reach := g.reached()
	all := maps.Clone(reach)
	for oid, d := range reach {
		for _, k := range g.keys {
			if _, seen := all[k.child]; !seen && g.related(k.parent, oid) {
				all[k.child] = d + 1
			}
		}
	}
	return g.storing(all)
}

func (g *graph) storing(oids map[uint32]int) []Table {
	var out []Table
	for oid, d := range oids {
		for leaf, r := range g.rels {
			if r.kind == "r" && g.within(leaf, oid) {
				out = append(out, Table{OID: leaf, Name: r.name, Depth: d})
			}
		}
	}
	slices.SortFunc(out, func(a, b Table) int {
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		return a.Depth - b.Depth
	})
	out = slices.CompactFunc(out, func(a, b Table) bool { return a.OID == b.OID })
	slices.SortStableFunc(out, func(a, b Table) int { return a.Depth - b.Depth })
	return out
}

// Dependents lists the tables that can hold rows of a project, partitions one by
// one, the root first.
func Dependents(ctx context.Context, conn *pgx.Conn, l Layout) ([]Table, error) {
	return tablesUnder(ctx, conn, l, (*graph).leaves)
}

func tablesUnder(ctx context.Context, conn *pgx.Conn, l Layout, which func(*graph) []Table) (list []Table, err error) {
	err = inTx(ctx, conn, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if err := settle(ctx, tx); err != nil {
			return err
		}
		g, err := readGraph(ctx, tx, l)
		if err == nil {
			list = which(g)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("finding what depends on %s: %w", l.Root, err)
	}
	return list, nil
}

const notCoveredSQL = `
SELECT format('%I.%I', n.nspname, c.relname), c.relkind::text
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relpersistence <> 't' AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
   AND NOT (c.oid = ANY ($1))
   AND (c.relkind = 'm'
     OR c.relkind IN ('r', 'f') AND (
           EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attname = ANY ($2))
        OR EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = c.oid AND i.inhparent = ANY ($1))))
 ORDER BY 1`

// NotCovered tells which relations may hold rows or copies of a project although
// no foreign key says so: tables with a column named as those that refer to the
// root, tables that inherit from a dependent, materialized views. Large objects are
// never covered; nothing else is outside a schema or a database.
func NotCovered(ctx context.Context, conn *pgx.Conn, l Layout) (list []string, err error) {
	if !l.rows() {
		return []string{}, nil
	}
	err = inTx(ctx, conn, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if err := settle(ctx, tx); err != nil {
			return err
		}
		g, err := readGraph(ctx, tx, l)
		if err != nil {
			return err
		}
		list, err = g.notCovered(ctx, tx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("finding what no foreign key ties to %s: %w", l.Root, err)
	}
	return list, nil
}

func (g *graph) notCovered(ctx context.Context, q Querier) ([]string, error) {
	var covered []uint32
	for _, t := range g.leaves() {
		covered = append(covered, t.OID)
	}
	_, table, _ := strings.Cut(strings.ReplaceAll(g.rels[g.root].name, `"`, ""), ".")
	names := []string{table + "_id", table + "id", table + "_" + g.col}
	for _, k := range g.keys {
		if g.related(k.parent, g.root) && !g.related(k.child, g.root) {
			for _, c := range k.childCols {
				names = append(names, strings.ReplaceAll(c, `"`, ""))
			}
		}
	}
	rows, err := q.Query(ctx, notCoveredSQL, covered, names)
	if err != nil {
		return nil, err
	}
	var name, kind string
	list := []string{}
	_, err = pgx.ForEachRow(rows, []any{&name, &kind}, func() error {
		what := map[string]string{"r": "table", "f": "foreign table", "m": "materialized view"}[kind]
		list = append(list, what+" "+name)
		return nil
	})
	return list, err
}
