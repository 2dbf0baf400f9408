package drills

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/tenancy"
	"github.com/holdfast-dr/holdfast/restore"
)

const (
	databasesSQL  = "SELECT datname::text FROM pg_catalog.pg_database"
	rolesSQL      = "SELECT rolname::text FROM pg_catalog.pg_roles"
	extensionsSQL = "SELECT extname || ' ' || extversion FROM pg_catalog.pg_extension"
	relationsSQL  = `SELECT n.nspname || '.' || c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'm', 'S', 'v', 'f') AND c.relpersistence <> 't'
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') AND n.nspname !~ '^pg_(temp|toast_temp)_'`
)

// comparison counts what an inventory names and the copy lacks or has besides.
type comparison struct {
	compared, more int
	lacks          []string
	unknown        []string
}

// inventory compares the copy with what the server held when the snapshot began.
// WAL that was replayed since may have made and dropped things; what is missing
// is told as a gap then, and as a failure where no transaction ended since.
func (r *run) inventory(ctx context.Context) (string, string, error) {
	inv := without(r.room.Header.Inventory, r.room.Result.Tombstones)
	c := &comparison{unknown: inv.NotAssessed}
	if len(inv.Databases) == 0 {
		return gap, "the manifest names no databases", nil
	}
	have, err := r.column(ctx, "postgres", databasesSQL)
	if err != nil {
		return "", "", err
	}
	var names []string
	for _, d := range inv.Databases {
		names = append(names, d.Name)
	}
	c.add("database", names, have)
	if len(inv.Roles) > 0 {
		roles, err := r.column(ctx, "postgres", rolesSQL)
		if err != nil {
			return "", "", err
		}
		c.add("role", inv.Roles, roles)
	}
	for _, d := range inv.Databases {
		if d.AllowConn && slices.Contains(have, d.Name) {
			if err := r.compareDatabase(ctx, d, c); err != nil {
				return "", "", err
			}
		}
	}
	for _, u := range c.unknown[:min(len(c.unknown), 8)] {
		r.skip("part of the inventory", u)
	}
	return r.judge(c)
}

// without is an inventory without the projects that were dropped from the copy: nobody
// misses them, and no record names them.
func without(inv catalog.Inventory, applied []restore.AppliedTombstone) catalog.Inventory {
	gone := map[tenancy.Gone]bool{}
	for _, a := range applied {
		for _, g := range a.Gone {
			gone[g] = true
		}
	}
	inv.Databases = slices.DeleteFunc(slices.Clone(inv.Databases), func(d catalog.Database) bool { return gone[tenancy.Gone{Database: d.Name}] })
	for i := range inv.Databases {
		d := &inv.Databases[i]
		d.Relations = slices.DeleteFunc(slices.Clone(d.Relations), func(rel catalog.Relation) bool {
			return gone[tenancy.Gone{Database: d.Name, Schema: rel.Schema}]
		})
	}
	return inv
}

func (r *run) compareDatabase(ctx context.Context, d catalog.Database, c *comparison) error {
	have, err := r.column(ctx, d.Name, extensionsSQL)
	if err != nil {
		return err
	}
	var want []string
	for _, e := range d.Extensions {
		want = append(want, e.Name+" "+e.Version)
	}
	c.add(d.Name+": extension", want, have)
	if have, err = r.column(ctx, d.Name, relationsSQL); err != nil {
		return err
	}
	want = nil
	for _, rel := range d.Relations {
		want = append(want, rel.Schema+"."+rel.Name)
	}
	c.add(d.Name+": relation", want, have)
	if d.Truncated {
		c.unknown = append(c.unknown, fmt.Sprintf("database %q has more relations than the inventory takes", d.Name))
	}
	return nil
}

// judge weighs the differences against the WAL that was replayed.
func (r *run) judge(c *comparison) (string, string, error) {
	saw := fmt.Sprintf("%d of %d named things are there", c.compared-len(c.lacks), c.compared)
	if c.more > 0 {
		saw += fmt.Sprintf(", and %d more, made since", c.more)
	}
	if len(c.lacks) == 0 {
		return passed, saw, nil
	}
	saw += "; missing: " + strings.Join(c.lacks[:min(len(c.lacks), 10)], ", ")
	// The inventory is of the moment when the snapshot began.
	if reached := r.room.Result.Reached; !reached.Time.IsZero() && reached.Time.After(r.snap.StartedAt) {
		return gap, saw + "; transactions that ended after the snapshot began may have dropped them", nil
	}
	return failed, saw, nil
}

func (c *comparison) add(kind string, want, have []string) {
	held := map[string]bool{}
	for _, h := range have {
		held[h] = true
	}
	for _, w := range want {
		c.compared++
		if !held[w] {
			c.lacks = append(c.lacks, kind+" "+w)
		}
		delete(held, w)
	}
	c.more += len(held)
}

// column reads the one column of a query in one of the copy's databases.
func (r *run) column(ctx context.Context, db, sql string) ([]string, error) {
	conn, err := r.room.Server.Conn(ctx, db)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	rows, err := conn.Query(ctx, sql)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}
