package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/zone/zonetest"
	"github.com/holdfast-dr/holdfast/restore"
)

// patience bounds every wait of the tests that run the program.
const patience = 4 * time.Minute

// built is the program as users get it, made once for all tests; the end of the
// test run removes it.
var built struct {
	once sync.Once
	dir  string
	err  error
}

// tidy is a test run that removes the program at its end.
type tidy struct{ *testing.M }

func (t tidy) Run() int {
	defer func() {
		if built.dir != "" {
			os.RemoveAll(built.dir)
		}
	}()
	return t.M.Run()
}

// program builds holdfast where PostgreSQL's user may run it.
func program(t *testing.T) string {
	t.Helper()
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("/tmp", "hfprog"); built.err != nil {
			return
		}
		cmd := exec.Command("go", "build", "-o", built.dir+"/", ".", "../holdfast-wal")
		out, err := cmd.CombinedOutput()
		if err = errors.Join(err, os.Chmod(built.dir, 0o755)); err != nil {
			built.err = fmt.Errorf("building holdfast: %w: %s", err, out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return filepath.Join(built.dir, "holdfast")
}

// rig is a database host and a restore node, over three zones of one repository:
// each node is a configuration in a directory of its own, and the program.
type rig struct {
	t       *testing.T
	dir     string // in /tmp, for sockets and for PostgreSQL's user
	program string
	pg      *pgtest.Cluster
	zones   string               // of the configuration
	s3      []*zonetest.S3Server // zones a, b, c; nil for directories
	data    string               // recipients and verifier keys
	keys    map[string]string
	cluster string // the rest of the cluster's configuration
	start   string // snapshots.checkpoint; "" for the default
	scrub   string // node.scrub; "" for the default
}

var zoneLetters = []string{"a", "b", "c"}

func newRig(t *testing.T, pg *pgtest.Cluster, s3 bool) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "hfe")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &rig{t: t, dir: dir, program: program(t), pg: pg, keys: map[string]string{}}
	r.mkdir("")
	for _, d := range []string{"zones", "keys", "db", "drill"} {
		r.mkdir(d)
	}
	if s3 {
		r.s3Zones()
	} else {
		for _, z := range zoneLetters {
			r.zones += fmt.Sprintf("    - {name: %s, directory: %s}\n", z, r.mkdir("zones/"+z))
		}
	}
	r.data = r.hold("", 0, "keys", "new", "data", "--x25519", "--out", r.path("drill/data.key"))
	r.hold("", 0, "keys", "new", "index", "--x25519", "--out", r.path("keys/index"))
	for _, node := range []string{"db", "drill"} {
		r.keys[node] = r.hold("", 0, "keys", "new", "signing", "--name", node, "--out", r.path("keys/"+node))
	}
	r.cluster = "    retention: {window: 7d, daily: 7, keep_at_least: 7d, keep_at_most: 30d}\n"
	return r
}

func (r *rig) s3Zones() {
	r.s3 = zonetest.StartS3(r.t, len(zoneLetters))
	for i, s := range r.s3 {
		r.zones += r.s3Zone(zoneLetters[i], s, s.Endpoint)
	}
}

// s3Zone is the configuration of a zone in a server's bucket, reached at an endpoint.
func (r *rig) s3Zone(z string, s *zonetest.S3Server, endpoint string) string {
	ca := r.write("zones/"+z+".pem", string(s.CA))
	keys := r.write("zones/"+z+".keys", "access_key_id = "+s.AccessKey+"\nsecret_access_key = "+s.SecretKey+"\n")
	return fmt.Sprintf("    - {name: %s, s3: {endpoint: %q, path_style: true, ca: {file: %s}, bucket: %s, prefix: hf, region: %s, credentials: {file: %s}}}\n",
		z, endpoint, ca, s.Bucket, s.Region, keys)
}

func (r *rig) path(name string) string { return filepath.Join(r.dir, name) }

func (r *rig) mkdir(name string) string {
	r.t.Helper()
	if err := errors.Join(os.MkdirAll(r.path(name), 0o755), os.Chmod(r.path(name), 0o755)); err != nil {
		r.t.Fatal(err)
	}
	return r.path(name)
}

func (r *rig) write(name, text string) string {
	r.t.Helper()
	if err := os.WriteFile(r.path(name), []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
	return r.path(name)
}

// repository is what both nodes' configurations say of it.
func (r *rig) repository(node, key string) string {
	scrub := ""
	if r.scrub != "" {
		scrub = ", scrub: " + r.scrub
	}
	return fmt.Sprintf(`format: 1
node: {name: %s, state: %s, socket: %s%s}
repository:
  zones:
%s  write_quorum: 2
  recipients: [%q]
  index_identity: {file: %s}
  signing_key: {file: %s}
  trusted_signers:
    - {key: %q, may: [snapshot, wal, tombstone, ledger]}
    - {key: %q, may: [ledger]}
`, node, r.path(node+"/state"), r.path(node+"/hf.sock"), scrub, r.zones, r.data, r.path("keys/index"), r.path("keys/"+key), r.keys["db"], r.keys["drill"])
}

// host writes the configuration of a node that reaches a server by a connection
// string, and returns its path.
func (r *rig) host(node, connection string) string {
	r.mkdir(node)
	begin := ""
	if r.start != "" {
		begin = ", checkpoint: " + r.start
	}
	return r.write(node+"/holdfast.yaml", r.repository(node, "db")+fmt.Sprintf(`clusters:
  - name: cms
    connection: %q
    snapshots: {schedule: "0 3 1 1 *", level: fastest%s}
    wal: {mode: stream, max_lag: 500ms}
%s`, connection, begin, r.cluster))
}

// configure writes both nodes' configurations and makes the repository.
func (r *rig) configure() {
	r.t.Helper()
	r.host("db", r.pg.DSN("postgres"))
	r.write("drill/holdfast.yaml", r.repository("drill", "drill")+`clusters:
  - {name: cms}
`)
	r.hold("db", 0, "init")
}

// command is the program as a node's user types it.
func (r *rig) command(ctx context.Context, node string, args ...string) *exec.Cmd {
	if node != "" {
		args = append([]string{"--config", r.path(node + "/holdfast.yaml")}, args...)
	}
	cmd := exec.CommandContext(ctx, r.program, args...)
	cmd.Dir = r.dir
	cmd.Env = append(os.Environ(), "HOLDFAST_CONFIG="+r.path("none.yaml"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// hold runs a command that must end with an exit code, and returns its standard
// output; try gives the code and standard error as well.
func (r *rig) hold(node string, want int, args ...string) string {
	r.t.Helper()
	code, out, errs := r.try(node, args...)
	if code != want {
		r.t.Fatalf("holdfast %s: exit %d, want %d\n%s%s", strings.Join(args, " "), code, want, out, errs)
	}
	return strings.TrimSpace(out)
}

func (r *rig) try(node string, args ...string) (code int, out, errs string) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := r.command(ctx, node, args...)
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		r.t.Fatalf("holdfast %s: %v\n%s%s", strings.Join(args, " "), errors.Join(err, ctx.Err()), o.String(), e.String())
	}
	return cmd.ProcessState.ExitCode(), o.String(), e.String()
}

// ask runs a command and reads the document it prints, whatever its exit code.
func ask[T any](r *rig, node string, args ...string) (doc T) {
	r.t.Helper()
	_, out, errs := r.try(node, append([]string{"--output", "json", "--quiet"}, args...)...)
	if err := json.Unmarshal([]byte(out), &doc); err != nil {
		r.t.Fatalf("holdfast %s: %v\n%s%s", strings.Join(args, " "), err, out, errs)
	}
	return doc
}

// serve is a daemon that runs until stop, or the test's end.
type serve struct {
	r    *rig
	cmd  *exec.Cmd
	log  string
	done chan struct{}
}

// daemon starts a node's daemon and waits until its socket answers.
func (r *rig) daemon(node string) *serve {
	r.t.Helper()
	s := &serve{r: r, cmd: r.command(context.Background(), node, "daemon"), log: r.path(node + "/daemon.log"), done: make(chan struct{})}
	f, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		r.t.Fatal(err)
	}
	s.cmd.Stdout, s.cmd.Stderr = f, f
	if err := s.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	go func() {
		_ = s.cmd.Wait()
		f.Close()
		close(s.done)
	}()
	r.t.Cleanup(func() {
		s.stop()
		if r.t.Failed() {
			data, _ := os.ReadFile(s.log)
			r.t.Logf("the end of %s's log:\n%s", node, data[max(0, len(data)-6000):])
		}
	})
	await(r.t, "the daemon's socket", func() bool {
		select {
		case <-s.done:
			r.t.Fatalf("the daemon of %s ended: %s", node, s.read())
		default:
		}
		code, _, _ := r.try(node, "incident", "list")
		_, err := os.Stat(r.path(node + "/hf.sock"))
		return err == nil && code == 0
	})
	return s
}

func (s *serve) read() string {
	data, err := os.ReadFile(s.log)
	if err != nil {
		s.r.t.Fatal(err)
	}
	return string(data)
}

// stop asks the daemon to end, and ends it when it does not.
func (s *serve) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.done:
	case <-time.After(40 * time.Second):
		s.r.t.Errorf("the daemon did not stop in 40 s")
		_ = s.cmd.Process.Kill()
		<-s.done
	}
}

// await polls until cond holds.
func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	end := time.After(patience)
	for !cond() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("%s: not in %s", what, patience)
		}
	}
}

// archived waits until zones hold the WAL that the server has written by now.
func (r *rig) archived(zones ...string) {
	r.t.Helper()
	at := r.pg.LSN()
	await(r.t, "the archive's "+at, func() bool {
		doc := ask[walDoc](r, "db", "wal", "status", "cms")
		found := 0
		for _, c := range doc.Clusters {
			for _, z := range c.Zones {
				for _, name := range zones {
					if z.Name == name && z.Err == "" && pgtest.Value[bool](r.pg, "SELECT $1::text::pg_lsn >= $2::text::pg_lsn", z.Newest.String(), at) {
						found++
					}
				}
			}
		}
		return found == len(zones)
	})
}

// restore restores on the restore node; the test's end stops and removes it.
func (r *rig) restore(name string, args ...string) restoreDoc {
	r.t.Helper()
	to := r.path(name)
	r.t.Cleanup(func() { r.discard(to) })
	all := append([]string{"restore", "run", "cms", "--to", to, "--identity", r.path("drill/data.key"), "--binaries", r.pg.BinDir()}, args...)
	doc := ask[restoreDoc](r, "drill", all...)
	if !doc.Complete {
		r.t.Fatalf("restored: %+v", doc)
	}
	return doc
}

// open starts what was restored for its users.
func (r *rig) open(name string) restore.Opened {
	r.t.Helper()
	return ask[restore.Opened](r, "drill", "restore", "open", r.path(name), "--binaries", r.pg.BinDir())
}

// discard ends the server that a restore opened and removes what it made.
func (r *rig) discard(to string) {
	r.t.Helper()
	r.stopCopy(to)
	if _, err := os.Stat(to); err == nil {
		r.hold("drill", 0, "restore", "discard", to)
	}
}

// stopCopy ends the server that a restore opened, as a crash does.
func (r *rig) stopCopy(to string) {
	r.t.Helper()
	text, err := os.ReadFile(filepath.Join(to, "postmaster.pid"))
	if err == nil {
		first, _, _ := strings.Cut(string(text), "\n")
		pid, err := strconv.Atoi(first)
		if err != nil || pid <= 1 {
			r.t.Fatalf("%s: the postmaster's pid is %q", to, first)
		}
		_ = syscall.Kill(pid, syscall.SIGQUIT)
		await(r.t, "the restored server's end", func() bool { return syscall.Kill(pid, 0) != nil })
	}
}

// connect connects to a database of what a restore opened.
func (r *rig) connect(o restore.Opened, database string) *pgx.Conn {
	r.t.Helper()
	conn, err := pgx.Connect(r.t.Context(), fmt.Sprintf("host=%s port=%d user=postgres dbname=%s", o.Socket, o.Port, database))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// inDatabase runs SQL in a database.
func (r *rig) inDatabase(db, sql string, args ...any) {
	r.t.Helper()
	conn := r.pg.Conn(db)
	defer conn.Close(r.t.Context())
	if _, err := conn.Exec(r.t.Context(), sql, args...); err != nil {
		r.t.Fatalf("%s: %v", sql, err)
	}
}
