// Package pgtest runs real PostgreSQL servers for tests. A test gets a cluster of
// its own in a second, copied from a template; it ends with the test, and with
// the test's process if that is killed. It never pretends to be a database, never
// reuses one between tests, and fails the test loudly when PostgreSQL is missing.
//
// PostgreSQL refuses to run as root: under root the servers run as the user
// postgres, in directories of that user.
package pgtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Patience bounds every wait for a server in a test.
const Patience = 3 * time.Minute

// Cluster is a PostgreSQL cluster that runs for one test.
type Cluster struct {
	Dir        string // all that belongs to it; the server's user owns it
	DataDir    string
	SocketDir  string
	Port       int // of the Unix socket and of 127.0.0.1
	Major      int
	Tablespace string // location of the tablespace "side", with [WithTablespace]

	t    testing.TB
	bin  string
	opt  options
	mu   sync.Mutex
	proc *process
	conn *pgx.Conn
}

type options struct {
	major       int
	own         string   // a program that must come with the server
	settings    []string // lines of postgresql.conf
	noChecksums bool
	tablespace  bool
	fsync       bool
	initdb      []string
}

// Option changes how a cluster is made.
type Option func(*options)

// WithSetting writes a line into postgresql.conf.
func WithSetting(name, value string) Option {
	return func(o *options) {
		o.settings = append(o.settings, fmt.Sprintf("%s = '%s'", name, strings.ReplaceAll(value, "'", "''")))
	}
}

// WithMajor asks for a major version; the default is HOLDFAST_PG_MAJOR's, else the
// first installed of 15, 16, 17, 18 and 14. A version that is not installed fails
// the test.
func WithMajor(n int) Option { return func(o *options) { o.major = n } }

// WithOwn asks for the default major version where it has a client program of its
// own, as pg_dump, which does not take a newer server; else for 15, which Debian has.
func WithOwn(program string) Option { return func(o *options) { o.own = program } }

// WithoutChecksums makes the cluster without page checksums.
func WithoutChecksums() Option { return func(o *options) { o.noChecksums = true } }

// WithTablespace adds the tablespace "side", outside the data directory.
func WithTablespace() Option { return func(o *options) { o.tablespace = true } }

// WithFsync leaves fsync on, which is off by default to be quick.
func WithFsync() Option { return func(o *options) { o.fsync = true } }

// WithInitdb adds arguments to initdb, such as --wal-segsize=1.
func WithInitdb(args ...string) Option {
	return func(o *options) { o.initdb = append(o.initdb, args...) }
}

// Start makes a cluster and starts it.
func Start(t testing.TB, opts ...Option) *Cluster {
	t.Helper()
	c := Create(t, opts...)
	c.Start()
	if c.opt.tablespace {
		c.Tablespace = c.Mkdir("side")
		c.Exec("CREATE TABLESPACE side LOCATION '" + c.Tablespace + "'")
	}
	return c
}

// Create makes a cluster and leaves it stopped.
func Create(t testing.TB, opts ...Option) *Cluster {
	t.Helper()
	var o options
	for _, f := range opts {
		f(&o)
	}
	bin, major, err := find(o.major)
	if err == nil && o.own != "" && !executable(filepath.Join(bin, o.own)) {
		bin, major, err = find(15)
	}
	if err != nil {
		t.Fatal(err)
	}
	c := newCluster(t, bin, major, o)
	if err := initialise(c); err != nil {
		t.Fatalf("making a PostgreSQL %d cluster for the test: %v", major, err)
	}
	c.Configure(o.settings...)
	return c
}

// Adopt runs a server of the same version over a data directory that the test
// made (a restored copy, say), which must lie under a directory from [Cluster.Mkdir].
func (c *Cluster) Adopt(dataDir string, settings ...string) *Cluster {
	c.t.Helper()
	n := newCluster(c.t, c.bin, c.Major, options{fsync: c.opt.fsync})
	n.DataDir = dataDir
	n.Configure(settings...)
	return n
}

func newCluster(t testing.TB, bin string, major int, o options) *Cluster {
	t.Helper()
	dir, err := freshDir(t)
	if err != nil {
		t.Fatal(err)
	}
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	c := &Cluster{
		Dir: dir, DataDir: filepath.Join(dir, "data"), SocketDir: dir, Port: port,
		Major: major, t: t, bin: bin, opt: o,
	}
	t.Cleanup(func() {
		c.closeConn()
		if t.Failed() {
			t.Logf("the end of PostgreSQL's log (%s):\n%s", c.DataDir, c.logTail(6000))
		}
		c.stop(immediate)
	})
	return c
}

// Configure appends lines to postgresql.conf; they count from the next start or reload.
func (c *Cluster) Configure(lines ...string) {
	c.t.Helper()
	f, err := os.OpenFile(filepath.Join(c.DataDir, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		c.t.Fatal(err)
	}
	_, err = f.WriteString(strings.Join(append(lines, ""), "\n"))
	if err := errors.Join(err, f.Close()); err != nil {
		c.t.Fatal(err)
	}
}

// Mkdir makes a directory of the server's user below [Cluster.Dir].
func (c *Cluster) Mkdir(name string) string {
	c.t.Helper()
	path := filepath.Join(c.Dir, name)
	if err := errors.Join(os.MkdirAll(path, 0o700), Own(path)); err != nil {
		c.t.Fatal(err)
	}
	return path
}

// DSN connects as the superuser postgres over the Unix socket.
func (c *Cluster) DSN(db string) string {
	if strings.ContainsAny(db, ` '"\\`) {
		db = "'" + strings.NewReplacer(`\`, `\\`, "'", `\'`).Replace(db) + "'"
	}
	return fmt.Sprintf("host=%s port=%d user=postgres dbname=%s sslmode=disable", c.SocketDir, c.Port, db)
}

// TCP connects as the superuser postgres over 127.0.0.1.
func (c *Cluster) TCP(db string) string {
	return fmt.Sprintf("postgres://postgres@127.0.0.1:%d/%s?sslmode=disable", c.Port, db)
}

// BinDir holds the programs of the cluster's version.
func (c *Cluster) BinDir() string { return c.bin }

// Bin is the path of a program of the cluster's version. The builds of majors
// other than Debian's hold initdb, pg_ctl and postgres only: for the client
// programs (psql, pgbench, pg_waldump, …) Debian's is returned instead.
func (c *Cluster) Bin(name string) string {
	c.t.Helper()
	path, err := program(c.bin, name)
	if err != nil {
		c.t.Fatal(err)
	}
	return path
}

// HasOwn says whether the cluster's own version has a program: one that reads a
// data directory, as pg_checksums does, must be of that version.
func (c *Cluster) HasOwn(name string) bool { return executable(filepath.Join(c.bin, name)) }

// Run runs one of PostgreSQL's programs as the server's user and returns its
// standard output; a failure fails the test.
func (c *Cluster) Run(name string, args ...string) string {
	c.t.Helper()
	out, err := c.TryRun(name, args...)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

// TryRun is [Cluster.Run] for a program that may fail; the error has its words.
func (c *Cluster) TryRun(name string, args ...string) (string, error) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*Patience)
	defer cancel()
	return output(ctx, c.Dir, c.Bin(name), args...)
}
