package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Oldest is the oldest server_version_num that this package speaks to.
const Oldest = 130000

// ConnectOptions say what a connection is for.
type ConnectOptions struct {
	// Replication opens a connection that takes replication commands only.
	Replication bool
	// AppName is shown in pg_stat_activity and, for a synchronous standby,
	// named in synchronous_standby_names; "" is "holdfast".
	AppName string
	// Only connects to this one of the DSN's hosts; nil: to the first that fits
	// target_session_attrs.
	Only *Host
	// Any takes Only whatever target_session_attrs asks for.
	Any bool
}

// Conn is one connection to one server. It is not safe for concurrent use, but for
// [Stream.Status].
type Conn struct {
	pgx    *pgx.Conn
	num    int
	repl   bool
	mu     sync.Mutex
	onNote func(*pgconn.Notice)
}

// Connect opens a connection. dsn is libpq's, as URL or as keywords. Its own
// limits on time are lifted, because a backup may last days and PostgreSQL would
// cut it off in the middle (C-2), and TCP keepalives find a dead peer within about
// a minute.
func Connect(ctx context.Context, dsn string, opt ConnectOptions) (*Conn, error) {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("read the PostgreSQL connection string: %w", err)
	}
	if err := choose(cfg, opt); err != nil {
		return nil, err
	}
	c := &Conn{repl: opt.Replication}
	c.configure(cfg, opt)
	conn, err := dial(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to PostgreSQL at %s as %q: %w", named(cfg), cfg.User, err)
	}
	c.pgx = conn
	if err := c.prepare(ctx); err != nil {
		err = errors.Join(err, c.abandon())
		return nil, fmt.Errorf("prepare the connection to PostgreSQL at %s: %w", named(cfg), err)
	}
	return c, nil
}

func (c *Conn) configure(cfg *pgx.ConnConfig, opt ConnectOptions) {
	cfg.RuntimeParams["application_name"] = opt.AppName
	if opt.AppName == "" {
		cfg.RuntimeParams["application_name"] = "holdfast"
	}
	cfg.RuntimeParams["client_encoding"] = "UTF8"
	cfg.RuntimeParams["datestyle"] = "ISO"
	if opt.Replication {
		cfg.RuntimeParams["replication"] = "true"
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = 15 * time.Second
	}
	dialer := &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3,
	}}
	cfg.DialFunc = dialer.DialContext
	cfg.DefaultQueryExecMode = pgx.QueryExecModeExec
	cfg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.onNote != nil {
			c.onNote(n)
		}
	}
}

// limits are the settings that would end a long backup; which of them exist depends
// on the version.
const limits = `SELECT count(set_config(name, '0', false)) FROM pg_catalog.pg_settings
WHERE name IN ('statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout', 'idle_session_timeout', 'transaction_timeout')`

func (c *Conn) prepare(ctx context.Context) error {
	rows, err := c.simple(ctx, "SHOW server_version_num")
	if err != nil {
		return err
	}
	if len(rows) != 1 || len(rows[0]) != 1 {
		return errors.New("the server gave no server_version_num")
	}
	if c.num, err = strconv.Atoi(string(rows[0][0])); err != nil {
		return fmt.Errorf("server_version_num: %w", err)
	}
	if c.num < Oldest {
		return fmt.Errorf("the server is PostgreSQL %d, want 13 or newer", c.num/10000)
	}
	if c.repl {
		return nil
	}
	_, err = c.simple(ctx, "SET search_path = pg_catalog; "+limits)
	return err
}

// simple runs a command in the simple protocol, which replication needs, and
// returns the rows of its last result.
func (c *Conn) simple(ctx context.Context, sql string) ([][][]byte, error) {
	results, err := c.pgx.PgConn().Exec(ctx, sql).ReadAll()
	if err != nil {
		return nil, err
	}
	if len(results) == 0 {
		return nil, nil
	}
	return results[len(results)-1].Rows, nil
}

// Pgx is the connection itself, for queries.
func (c *Conn) Pgx() *pgx.Conn { return c.pgx }

// ServerNum is the server's server_version_num, such as 150018.
func (c *Conn) ServerNum() int { return c.num }

// Major is the server's major version.
func (c *Conn) Major() int { return c.num / 10000 }

// Closed says that the connection can no longer be used.
func (c *Conn) Closed() bool { return c.pgx.IsClosed() }

// Close ends the connection, waiting a few seconds for the server to take leave.
func (c *Conn) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return c.pgx.Close(ctx)
}

// abandon closes the connection without taking leave: in the midst of an answer
// there is nothing to say. One that is broken already is no error.
func (c *Conn) abandon() error {
	if c.pgx.IsClosed() {
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.pgx.PgConn().Conn().Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close the connection: %w", err)
	}
	// The socket is closed; this tells pgx, which then fails to take leave.
	_ = c.pgx.Close(ctx)
	return nil
}

// hear sends the server's notices to fn until the returned function is called.
func (c *Conn) hear(fn func(*pgconn.Notice)) (stop func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.onNote = fn
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.onNote = nil
	}
}

// ErrPooler means that something between us and the server gives each query to
// whichever session is free.
var ErrPooler = errors.New("the connection goes through a pooler: connect to the server itself")

// direct refuses a pooler, whose sessions come and go under us (C-2): the process
// that answers must be the one that the connection began with.
func (c *Conn) direct(ctx context.Context) error {
	var pid uint32
	if err := c.pgx.QueryRow(ctx, "SELECT pg_backend_pid()").Scan(&pid); err != nil {
		return err
	}
	if pid != c.pgx.PgConn().PID() {
		return ErrPooler
	}
	return nil
}

// timedOut says that a read ended because of the deadline set on the socket.
func timedOut(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) || pgconn.Timeout(err)
}

// code is the SQLSTATE of an error, "" for one that the server did not send.
func code(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}
