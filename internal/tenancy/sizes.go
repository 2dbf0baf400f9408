package tenancy

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Size is what a project has in one table. Bytes are its rows as they are stored,
// compressed and out of line included, without indexes and free space.
type Size struct {
	Table string `json:"table"`
	Rows  int64  `json:"rows"`
	Bytes int64  `json:"bytes"`
}

// Sizes tells, for each key, what the project has; all in one snapshot, but for projects
// that are databases. tell hears of each, in order; an absent project has nothing.
func Sizes(ctx context.Context, conn *pgx.Conn, l Layout, keys []string, tell func(list []Size)) error {
	if l.Kind != Database {
		return sizesIn(ctx, conn, l, keys, tell)
	}
	for _, key := range keys {
		err := within(ctx, conn, l, key, func(conn *pgx.Conn) error { return sizesIn(ctx, conn, l, []string{key}, tell) })
		if errors.Is(err, ErrNoProject) {
			tell([]Size{})
		} else if err != nil {
			return err
		}
	}
	return nil
}

func sizesIn(ctx context.Context, conn *pgx.Conn, l Layout, keys []string, tell func(list []Size)) error {
	v, err := OpenView(ctx, conn, l)
	if err != nil {
		return err
	}
	for _, key := range keys {
		var list []Size
		if list, err = v.sizes(ctx, key); err != nil {
			err = fmt.Errorf("measuring projects: %w", err)
			break
		}
		tell(list)
	}
	return errors.Join(err, v.Close(ctx))
}

func (v *View) sizes(ctx context.Context, key string) ([]Size, error) {
	s, err := v.project(ctx, key)
	if err != nil {
		return nil, err
	}
	list := []Size{}
	for _, p := range s.Parts {
		if p.Rows == 0 {
			continue
		}
		one := Size{Table: p.Name, Rows: p.Rows}
		err := v.tx.QueryRow(ctx, fmt.Sprintf(`SELECT coalesce(sum(n), 0)::bigint FROM (%s) x(n)`, p.rows("pg_column_size(r.*)::bigint"))).Scan(&one.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.Name, err)
		}
		list = append(list, one)
	}
	return list, nil
}
