package pgtest

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// Conn opens a connection that the test's end closes.
func (c *Cluster) Conn(db string) *pgx.Conn {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, c.DSN(db))
	if err != nil {
		c.t.Fatalf("connecting to the test's cluster: %v\n%s", err, c.logTail(2000))
	}
	c.t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// shared is the helpers' own connection, to the database postgres.
func (c *Cluster) shared() *pgx.Conn {
	c.t.Helper()
	if c.conn == nil || c.conn.IsClosed() {
		c.conn = c.Conn("postgres")
	}
	return c.conn
}

func (c *Cluster) closeConn() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		c.conn.Close(context.Background())
		c.conn = nil
	}
}

// Exec runs SQL in the database postgres; without args several statements may be given.
func (c *Cluster) Exec(sql string, args ...any) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 2*Patience)
	defer cancel()
	if _, err := c.shared().Exec(ctx, sql, args...); err != nil {
		c.t.Fatalf("%s: %v", sql, err)
	}
}

// QueryRow scans the one row of a query in the database postgres into dest.
func (c *Cluster) QueryRow(dest []any, sql string, args ...any) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 2*Patience)
	defer cancel()
	if err := c.shared().QueryRow(ctx, sql, args...).Scan(dest...); err != nil {
		c.t.Fatalf("%s: %v", sql, err)
	}
}

// Query returns the rows of a query in the database postgres.
func (c *Cluster) Query(sql string, args ...any) [][]any {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 2*Patience)
	defer cancel()
	rows, err := c.shared().Query(ctx, sql, args...)
	if err == nil {
		var out [][]any
		out, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) ([]any, error) { return row.Values() })
		if err == nil {
			return out
		}
	}
	c.t.Fatalf("%s: %v", sql, err)
	return nil
}

// Value is the only value of a query's only row, in the database postgres. Types
// that pgx does not scan into T are best cast to text in the query.
func Value[T any](c *Cluster, sql string, args ...any) (v T) {
	c.t.Helper()
	c.QueryRow([]any{&v}, sql, args...)
	return v
}

// Await waits until a query, of one boolean, says true.
func (c *Cluster) Await(sql string, args ...any) {
	c.t.Helper()
	err := until(func() (bool, error) { return Value[bool](c, sql, args...), nil })
	if err != nil {
		c.t.Fatalf("%s: %v", sql, err)
	}
}

// SwitchWAL ends the current segment and returns its file name.
func (c *Cluster) SwitchWAL() string {
	c.t.Helper()
	// Without something in it a segment is not switched.
	c.Exec("SELECT pg_create_restore_point('pgtest switch')")
	name := Value[string](c, "SELECT pg_walfile_name(pg_current_wal_lsn())")
	c.Exec("SELECT pg_switch_wal()")
	return name
}

// LSN is the position up to which the WAL is written (replayed, on a standby), as text.
func (c *Cluster) LSN() string {
	c.t.Helper()
	return Value[string](c, `SELECT (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
		ELSE pg_current_wal_insert_lsn() END)::text`)
}

// ServerNum is the server's server_version_num, as 170012.
func (c *Cluster) ServerNum() int {
	c.t.Helper()
	return Value[int](c, "SELECT current_setting('server_version_num')::int")
}
