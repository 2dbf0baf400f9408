package tenancy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// Digest is of the rows of a table, whatever their order: equal rows give equal
// digests. It finds faults, not forgers: it is made of sums of the rows' SHA-256.
type Digest struct {
	Table  string `json:"table"`
	Rows   int64  `json:"rows"`
	SHA256 string `json:"sha256"`
}

// hashOf is the SHA-256 of a row's text: of the stored columns, in a shape's order.
func hashOf(columns string) string {
	return fmt.Sprintf(`sha256(convert_to(ROW(%s)::text, getdatabaseencoding()))`, columns)
}

// digest adds up the hashes that a query gives in column h.
func digest(ctx context.Context, q Querier, table, hashes string) (Digest, error) {
	var sums []string
	for i := range 4 {
		sums = append(sums, fmt.Sprintf(`coalesce(sum(('x' || substr(x, %d, 16))::bit(64)::bigint::numeric), 0)::text`, 1+16*i))
	}
	d := Digest{Table: table}
	parts := make([]string, 4)
	err := q.QueryRow(ctx, fmt.Sprintf(`SELECT count(*), %s FROM (SELECT encode(h, 'hex') AS x FROM (%s) h(h)) x`, strings.Join(sums, ", "), hashes)).
		Scan(&d.Rows, &parts[0], &parts[1], &parts[2], &parts[3])
	if err != nil {
		return d, fmt.Errorf("digesting the rows of %s: %w", table, err)
	}
	sum := sha256.Sum256([]byte(strings.Join(parts, " ")))
	d.SHA256 = hex.EncodeToString(sum[:])
	return d, nil
}

// hashes is a query for the hash of each row of a part, of columns in a shape's order.
func (p Part) hashes(as *shape) string {
	return fmt.Sprintf(`SELECT %s FROM (%s) r`, hashOf(as.list("r.")), p.rows(as.list("r.")))
}

// others digests, table by table, the rows that are not the slice's in all tables
// in which a project's rows can be.
func (s *Slice) others(ctx context.Context) (list []Digest, err error) {
	if !s.v.Layout.rows() {
		return []Digest{}, nil // the tables are the project's alone
	}
	g := s.v.g
	leaves := map[uint32][]uint32{}
	for oid := range s.own {
		if g.rels[oid].kind == "r" {
			leaves[g.top(oid)] = append(leaves[g.top(oid)], oid)
		}
	}
	for top, below := range leaves {
		of := s.v.shapes[top]
		var all []string
		slices.Sort(below)
		for _, leaf := range below {
			all = append(all, fmt.Sprintf(`SELECT %s FROM ONLY %s r WHERE NOT EXISTS (SELECT FROM pg_temp.holdfast_doom d WHERE d.rel = %d AND d.tid = r.ctid)`,
				hashOf(of.list("r.")), g.rels[leaf].name, leaf))
		}
		d, err := digest(ctx, s.v.tx, of.name, strings.Join(all, " UNION ALL "))
		if err != nil {
			return nil, err
		}
		list = append(list, d)
	}
	slices.SortFunc(list, func(a, b Digest) int { return strings.Compare(a.Table, b.Table) })
	return list, nil
}
