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

// The forms in which rows are written.
const (
	Copy  = "copy"  // PostgreSQL's COPY, text format: UTF-8, tabs between the columns
	Lines = "jsonl" // a JSON object a line, by row_to_json
)

// ErrMask means that a mask names no column that is copied, or one that must stay.
var ErrMask = errors.New("a mask cannot be applied")

// Masks gives columns, as schema.table.column with the names quoted where SQL needs it,
// an expression over their row that is copied in their stead. Where projects are
// schemas, table.column is of each project's own.
type Masks map[string]string

// name is the one under which a mask is for a column of a part.
func (m Masks) name(p Part, c Column) string {
	if full := p.Name + "." + c.quoted; m[full] != "" || !p.whole {
		return full
	}
	return p.bare() + "." + c.quoted
}

// bare is the table's name without its schema.
func (p Part) bare() string { return bare(p.Schema, p.Name) }

// Check refuses masks that would pass over what they name, or break references:
// each must name a column that is copied, of this project or of another one, and
// neither a key nor a reference.
func (m Masks) Check(ctx context.Context, s *Slice) error {
	for _, name := range sortedKeys(m) {
		p, c := s.column(name)
		switch {
		case c == nil:
			return fmt.Errorf("%w: %s is no column that is copied; name it as schema.table.column", ErrMask, name)
		case slices.Contains(p.Key, c.quoted) || s.v.g.refers(p.shape.oid, c.quoted):
			return fmt.Errorf("%w: %s is part of a key or a reference, which must stay", ErrMask, name)
		}
		// One statement and no more: COPY would carry out others behind it.
		sql := fmt.Sprintf(`SELECT %s FROM (%s) r LIMIT 0`, m.of(p, *c), p.rows(p.everything()))
		if _, err := s.v.tx.Prepare(ctx, "", sql); err != nil {
			return fmt.Errorf("%w: %s = %s: %w", ErrMask, name, m[name], err)
		}
	}
	return nil
}

// column finds a column that can be copied, in a part without rows: of this project
// before another's.
func (s *Slice) column(name string) (Part, *Column) {
	for _, own := range []bool{true, false} {
		for oid := range s.v.copied() {
			if s.own[oid] != own || s.v.g.top(oid) != oid || s.v.shapes[oid] == nil {
				continue
			}
			p := s.v.part(oid, false)
			if s.v.Layout.Kind == Schema {
				p.whole = own || s.v.projects[p.Schema]
			}
			for _, c := range p.shape.stored() {
				if p.Name+"."+c.quoted == name || p.whole && p.bare()+"."+c.quoted == name {
					return p, &c
				}
			}
		}
	}
	return Part{}, nil
}

func (g *graph) refers(top uint32, column string) bool {
	return slices.ContainsFunc(g.keys, func(k key) bool {
		return g.related(k.child, top) && slices.Contains(k.childCols, column) || g.related(k.parent, top) && slices.Contains(k.parentCols, column)
	})
}

// of is a column as it is copied.
func (m Masks) of(p Part, c Column) string {
	if expr, masked := m[m.name(p, c)]; masked {
		return fmt.Sprintf("CAST((%s) AS %s) AS %s", expr, c.Type, c.quoted)
	}
	return "r." + c.quoted
}

// query is what is copied of a part, in the order of its primary key, so that the
// same rows give the same bytes; of a whole database in whatever order costs least.
func (p Part) query(m Masks) string {
	var cols []string
	for _, c := range p.shape.stored() {
		cols = append(cols, m.of(p, c))
	}
	q := fmt.Sprintf(`SELECT %s FROM (%s) r`, strings.Join(cols, ", "), p.rows(p.everything()))
	if len(p.Key) > 0 && !p.unsorted {
		q += " ORDER BY r." + strings.Join(p.Key, ", r.")
	}
	return q
}

// everything is all columns by name, since partitions have them in orders of their
// own; generated ones as well.
func (p Part) everything() string {
	var out []string
	for _, c := range p.Columns {
		out = append(out, "r."+c.quoted)
	}
	return strings.Join(out, ", ")
}

// Write writes the rows of a part in a form, and says how many.
func (s *Slice) Write(ctx context.Context, p Part, form string, m Masks, to io.Writer) (int64, error) {
	return p.write(ctx, s.v.conn, form, m, to)
}

func (p Part) write(ctx context.Context, conn *pgx.Conn, form string, m Masks, to io.Writer) (int64, error) {
	sql := fmt.Sprintf(`COPY (%s) TO STDOUT`, p.query(m))
	if form == Lines {
		// JSON has no control characters in it but between the tokens of a column of
		// type json, so that CSV with such a quote leaves it as it is.
		sql = fmt.Sprintf(`COPY (SELECT translate(row_to_json(x)::text, E'\n\r\t', '   ') FROM (%s) x) TO STDOUT (FORMAT csv, QUOTE E'\x01', DELIMITER E'\x02')`, p.query(m))
	}
	tag, err := conn.PgConn().CopyTo(ctx, to, sql)
	if err == nil && tag.RowsAffected() != p.Rows && p.Rows != Uncounted {
		err = fmt.Errorf("it gave %d rows of %d", tag.RowsAffected(), p.Rows)
	}
	if err != nil {
		return tag.RowsAffected(), fmt.Errorf("copying the rows of %s: %w", p.Name, err)
	}
	return tag.RowsAffected(), nil
}

// ClientEncoding is that of what [Slice.Write] writes.
func (v *View) ClientEncoding() string {
	if v.At.Encoding == "SQL_ASCII" {
		return v.At.Encoding
	}
	return "UTF8"
}

// Advance is a statement for each sequence that moves it to where it stood, and not
// back where it is further by now.
func (s *Slice) Advance() (list []string) {
	for _, q := range s.Sequences {
		list = append(list, q.moveTo(q.LastValue, q.IsCalled))
	}
	return list
}
