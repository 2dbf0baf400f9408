package snapshot

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres"
)

// Bounds of an inventory: it is for comparing, not for restoring.
const (
	maxInventoryDatabases = 1000
	maxInventoryRelations = 20000 // in one database
)

// readInventory lists what the server holds. A database that cannot be connected
// to is named in NotAssessed: a snapshot does not fail for its inventory.
func readInventory(ctx context.Context, dsn string, f postgres.Facts) (catalog.Inventory, error) {
	inv := catalog.Inventory{Roles: f.Roles}
	for _, s := range f.Tablespaces {
		inv.Tablespaces = append(inv.Tablespaces, s.Name)
	}
	for _, what := range f.Hidden {
		inv.NotAssessed = append(inv.NotAssessed, what+": the role may not see it; grant it pg_monitor")
	}
	for i, d := range f.Databases {
		db := catalog.Database{OID: d.OID, Name: d.Name, AllowConn: d.AllowConnections, CollationVersion: d.CollationVersion}
		if i >= maxInventoryDatabases {
			inv.NotAssessed = append(inv.NotAssessed, fmt.Sprintf("databases from the %dth on", i+1))
			break
		}
		if d.AllowConnections {
			if err := inspect(ctx, dsn, &db); err != nil {
				inv.NotAssessed = append(inv.NotAssessed, fmt.Sprintf("database %q: %v", d.Name, err))
			}
		}
		inv.Databases = append(inv.Databases, db)
		if err := ctx.Err(); err != nil {
			return inv, fmt.Errorf("read the inventory: %w", context.Cause(ctx))
		}
	}
	return inv, nil
}

const extensionsSQL = "SELECT extname::text, extversion FROM pg_catalog.pg_extension ORDER BY 1"

const relationsSQL = `SELECT n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'm', 'S', 'v', 'f') AND c.relpersistence <> 't'
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') AND n.nspname !~ '^pg_(temp|toast_temp)_'
ORDER BY 1, 2 LIMIT $1`

// inspect reads one database's extensions and relations.
func inspect(ctx context.Context, dsn string, db *catalog.Database) (err error) {
	dsn, err = inDatabase(dsn, db.Name)
	if err != nil {
		return err
	}
	conn, err := postgres.Connect(ctx, dsn, postgres.ConnectOptions{AppName: "holdfast inventory"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	rows, err := conn.Pgx().Query(ctx, extensionsSQL)
	if err != nil {
		return err
	}
	if db.Extensions, err = pgx.CollectRows(rows, pgx.RowToStructByPos[catalog.Extension]); err != nil {
		return err
	}
	if rows, err = conn.Pgx().Query(ctx, relationsSQL, maxInventoryRelations+1); err != nil {
		return err
	}
	db.Relations, err = pgx.CollectRows(rows, pgx.RowToStructByPos[catalog.Relation])
	if len(db.Relations) > maxInventoryRelations {
		db.Relations, db.Truncated = db.Relations[:maxInventoryRelations], true
	}
	return err
}
