package tenancy

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Column is a column of a table.
type Column struct {
	Name      string `json:"name"` // as the catalogue has it
	Type      string `json:"type"` // as SQL writes it
	Generated bool   `json:"generated,omitempty"`
	quoted    string
}

// Sequence is a sequence that a column draws from.
type Sequence struct {
	Name      string `json:"name"` // quoted where SQL needs it, with its schema
	LastValue int64  `json:"last_value"`
	IsCalled  bool   `json:"is_called"`
	column    string // quoted
	table     uint32
	step      int64
	counts    bool // the column is a number
}

// moveTo is a statement that moves the sequence forward, and gives a row if it did:
// what was moved is not moved back when a transaction ends.
func (q Sequence) moveTo(at int64, called bool) string {
	behind := "<"
	if q.step < 0 {
		behind = ">"
	}
	return fmt.Sprintf(`SELECT pg_catalog.setval('%s', %d, %t) FROM %s WHERE last_value %s %[2]d OR last_value = %[2]d AND NOT is_called AND %[3]t`,
		strings.ReplaceAll(q.Name, "'", "''"), at, called, q.Name, behind)
}

// shape is a table as rows are put into it: a partitioned one stands for all its
// partitions.
type shape struct {
	oid           uint32
	schema, table string // as the catalogue has them
	name          string // quoted
	columns       []Column
	key           []string // quoted columns of the primary key; none where there is none
}

// stored are the columns that hold values of their own.
func (s *shape) stored() (list []Column) {
	for _, c := range s.columns {
		if !c.Generated {
			list = append(list, c)
		}
	}
	return list
}

// list is the stored columns as SQL lists them, each after a prefix.
func (s *shape) list(prefix string) string {
	var out []string
	for _, c := range s.stored() {
		out = append(out, prefix+c.quoted)
	}
	return strings.Join(out, ", ")
}

const columnsSQL = `
SELECT a.attrelid, a.attname, quote_ident(a.attname), format_type(a.atttypid, a.atttypmod), a.attgenerated <> ''
  FROM pg_attribute a WHERE a.attrelid = ANY ($1) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attrelid, a.attnum`

const namesSQL = `
SELECT c.oid, n.nspname, c.relname,
       ARRAY(SELECT quote_ident(a.attname) FROM pg_index i, unnest(i.indkey::int2[]) WITH ORDINALITY u(n, o)
               JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = u.n
              WHERE i.indrelid = c.oid AND i.indisprimary AND u.o <= i.indnkeyatts ORDER BY u.o)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY ($1)`

// readShapes reads the shapes of all tables that are no partitions.
func readShapes(ctx context.Context, q Querier, g *graph) (map[uint32]*shape, error) {
	var oids []uint32
	for oid := range g.rels {
		if g.top(oid) == oid {
			oids = append(oids, oid)
		}
	}
	rows, err := q.Query(ctx, namesSQL, oids)
	if err != nil {
		return nil, err
	}
	shapes := map[uint32]*shape{}
	var s shape
	_, err = pgx.ForEachRow(rows, []any{&s.oid, &s.schema, &s.table, &s.key}, func() error {
		one := s
		one.name, one.key = g.rels[s.oid].name, slices.Clone(s.key)
		shapes[s.oid] = &one
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the tables' shapes: %w", err)
	}
	if rows, err = q.Query(ctx, columnsSQL, oids); err != nil {
		return nil, err
	}
	var c Column
	_, err = pgx.ForEachRow(rows, []any{&s.oid, &c.Name, &c.quoted, &c.Type, &c.Generated}, func() error {
		if of := shapes[s.oid]; of != nil {
			of.columns = append(of.columns, c)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the tables' columns: %w", err)
	}
	return shapes, nil
}

// top is the table that rows of oid are put into: the partitioned one that it is a
// partition of, or itself.
func (g *graph) top(oid uint32) uint32 {
	for _, p := range g.rels[oid].parents {
		if g.rels[p] != nil && g.rels[p].kind == "p" {
			return g.top(p)
		}
	}
	return oid
}

// A sequence is a column's by ownership (serial, identity) or by its default.
const sequencesSQL = `
SELECT DISTINCT s.oid::regclass::text, u.rel, quote_ident(a.attname), q.seqincrement, a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype)
  FROM (SELECT d.objid AS seq, d.refobjid AS rel, d.refobjsubid AS num FROM pg_depend d
         WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i') AND d.refobjsubid > 0
        UNION
        SELECT d.refobjid, ad.adrelid, ad.adnum FROM pg_attrdef ad JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = ad.oid
         WHERE d.refclassid = 'pg_class'::regclass) u
  JOIN pg_class s ON s.oid = u.seq AND s.relkind = 'S' JOIN pg_sequence q ON q.seqrelid = s.oid
  JOIN pg_attribute a ON a.attrelid = u.rel AND a.attnum = u.num
 WHERE u.rel = ANY ($1) ORDER BY 1, 2`

// sequences are those of tables, as they stand now: no snapshot holds a sequence.
func sequences(ctx context.Context, q Querier, tables []uint32) ([]Sequence, error) {
	return sequencesBy(ctx, q, sequencesSQL, tables)
}

// sequencesIn are all sequences of a schema, or of a database.
func sequencesIn(ctx context.Context, q Querier, l Layout, keyText string) ([]Sequence, error) {
	return sequencesBy(ctx, q, `SELECT c.oid::regclass::text, 0::oid, '', s.seqincrement, false
		FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE ($1 OR n.nspname = $2) AND n.nspname !~ '^pg_' AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
		ORDER BY 1`, l.Kind == Database, keyText)
}

func sequencesBy(ctx context.Context, q Querier, sql string, args ...any) ([]Sequence, error) {
	rows, err := q.Query(ctx, sql, args...)
	if err != nil {
		return nil, fmt.Errorf("finding sequences: %w", err)
	}
	var list []Sequence
	var s Sequence
	_, err = pgx.ForEachRow(rows, []any{&s.Name, &s.table, &s.column, &s.step, &s.counts}, func() error {
		list = append(list, s)
		return nil
	})
	for i := range list {
		if err == nil {
			err = q.QueryRow(ctx, `SELECT last_value, is_called FROM `+list[i].Name).Scan(&list[i].LastValue, &list[i].IsCalled)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("reading sequences: %w", err)
	}
	return list, nil
}
