package restore_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"
	"golang.org/x/mod/sumdb/note"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/postgres/sandbox"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/thin"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/zone"
	"github.com/holdfast-dr/holdfast/internal/zone/dirzone"
	"github.com/holdfast-dr/holdfast/restore"
	"github.com/holdfast-dr/holdfast/snapshot"
)

// The test binary is restore_command's program as well, and misbehaves as told.
func TestMain(m *testing.M) {
	if spec := os.Getenv("HOLDFAST_TEST_RESTORE"); spec != "" {
		victim(spec)
	}
	if len(os.Args) > 6 && os.Args[1] == "wal" && os.Args[2] == "fetch" {
		os.Exit(fetchMain(os.Args[4], os.Args[5], os.Args[6]))
	}
	os.Exit(m.Run())
}

// fetchMain does what the next line of a file named misbehave beside the socket
// says, and without one what it should.
func fetchMain(socket, name, dest string) int {
	switch misbehaviour(filepath.Join(filepath.Dir(socket), "misbehave")) {
	case "panic":
		panic("told to")
	case "flags":
		return 2
	case "kill":
		self, _ := os.FindProcess(os.Getpid())
		_ = self.Kill()
		select {}
	}
	code, err := thin.Fetch(socket, name, dest)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return code
}

func misbehaviour(file string) string {
	data, err := os.ReadFile(file)
	if err != nil || os.Remove(file) != nil {
		return ""
	}
	first, rest, _ := strings.Cut(string(data), "\n")
	if rest != "" && os.WriteFile(file, []byte(rest), 0o600) != nil {
		return ""
	}
	return first
}

// world is a cluster under protection in three directory zones.
type world struct {
	t        testing.TB
	pg       *pgtest.Cluster
	dirs     []string
	zones    []*zone.Zone
	vault    *vault.Vault
	trust    seal.Trust
	signer   note.Signer
	data     age.Identity
	index    age.Identity
	to       []age.Recipient
	indexTo  []age.Recipient
	keys     seal.DigestKeys
	lineage  catalog.Lineage
	archiver *snapshot.Archiver
	writer   *snapshot.WALWriter
	segSize  int64
	stop     func()
	program  string
	vkey     string
	bad      *badCopies
	quiet    time.Duration // stall limit of restores
	log      io.Writer
	progress func(restore.Progress)
}

// badCopies hears of copies that were not what they should be.
type badCopies struct {
	mu   sync.Mutex
	seen map[string]int // by zone
}

func (b *badCopies) add(zone, _ string, _ error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.seen[zone]++
}

func (b *badCopies) of(zone string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.seen[zone]
}

func must[T any](t testing.TB) func(T, error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func newWorld(t testing.TB, pg *pgtest.Cluster) *world {
	w := &world{t: t, pg: pg}
	w.makeKeys()
	for _, name := range zoneNames {
		dir := filepath.Join(t.TempDir(), name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		d := must[*dirzone.Driver](t)(dirzone.New(dir))
		if err := zone.Initialise(t.Context(), d, identity(name)); err != nil {
			t.Fatal(err)
		}
		w.dirs = append(w.dirs, dir)
	}
	w.open(filepath.Join(t.TempDir(), "vault"))
	w.program = sharedProgram(t)
	w.archive()
	return w
}

var zoneNames = []string{"a", "b", "c"}

func identity(name string) zone.Identity {
	return zone.Identity{Format: zone.Format, Repository: "test", Zone: name}
}

// open opens the vault over the zones' directories; state "" for reading only.
func (w *world) open(state string) {
	w.zones, w.bad = nil, &badCopies{seen: map[string]int{}}
	for i, name := range zoneNames {
		d := must[*dirzone.Driver](w.t)(dirzone.New(w.dirs[i]))
		w.zones = append(w.zones, zone.Open(name, d, identity(name), zone.Options{}))
	}
	w.vault = must[*vault.Vault](w.t)(vault.Open(vault.Config{Zones: w.zones, Quorum: 2, State: state, OnBad: w.bad.add}))
	v := w.vault
	w.t.Cleanup(func() { v.Close() })
}

// fork is the world with zones of its own, to be harmed.
func (w *world) fork(t testing.TB) *world {
	t.Helper()
	c := *w
	c.t, c.dirs = t, nil
	root := t.TempDir()
	for i, name := range zoneNames {
		dir := filepath.Join(root, name)
		if out, err := exec.Command("cp", "-a", w.dirs[i], dir).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		c.dirs = append(c.dirs, dir)
	}
	c.open(filepath.Join(root, "vault"))
	return &c
}

// hide makes zones unreachable, as an unmounted disk is; show brings them back.
func (w *world) hide(zones ...int) {
	for _, i := range zones {
		if err := os.Rename(w.dirs[i], w.dirs[i]+".gone"); err != nil {
			w.t.Error(err)
		}
	}
}

func (w *world) show(zones ...int) {
	for _, i := range zones {
		if err := os.Rename(w.dirs[i]+".gone", w.dirs[i]); err != nil {
			w.t.Error(err)
		}
	}
}

// sharedProgram copies the test binary to where PostgreSQL's user may run it.
func sharedProgram(t testing.TB) string {
	dir := must[string](t)(os.MkdirTemp("/tmp", "hf"))
	t.Cleanup(func() { os.RemoveAll(dir) })
	self := must[string](t)(os.Executable())
	program := filepath.Join(dir, "holdfast")
	if out, err := exec.Command("cp", self, program+".test").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	// The race detector holds every process back for a second at its end.
	script := fmt.Sprintf("#!/bin/sh\nGORACE=atexit_sleep_ms=0 exec %s.test \"$@\"\n", program)
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return program
}

func (w *world) makeKeys() {
	w.data = must[*age.X25519Identity](w.t)(age.GenerateX25519Identity())
	w.index = must[*age.X25519Identity](w.t)(age.GenerateX25519Identity())
	w.to = []age.Recipient{w.data.(*age.X25519Identity).Recipient()}
	w.indexTo = append([]age.Recipient{w.index.(*age.X25519Identity).Recipient()}, w.to...)
	skey, vkey, err := seal.NewSigningKey("db1")
	if err != nil {
		w.t.Fatal(err)
	}
	w.vkey = vkey
	if w.signer, _, err = seal.LoadSigner(skey); err != nil {
		w.t.Fatal(err)
	}
	w.trust = must[seal.Trust](w.t)(seal.NewTrust([]seal.TrustedSigner{{VKey: vkey, Clusters: []string{"*"}, May: []string{"snapshot", "wal", "tombstone", "ledger"}}}))
	w.keys = must[seal.DigestKeys](w.t)(seal.NewDigestKeys(1))
}

// archive claims the lineage and streams the WAL from here on.
func (w *world) archive() {
	t := w.t
	conn := must[*postgres.Conn](t)(postgres.Connect(t.Context(), w.pg.DSN("postgres"), postgres.ConnectOptions{}))
	facts := must[postgres.Facts](t)(postgres.GetFacts(t.Context(), conn))
	conn.Close()
	server := snapshot.Server{SystemID: facts.SystemID, Major: facts.Major, Timeline: facts.Timeline, LSN: facts.CurrentLSN}
	if facts.Timeline > 1 {
		conn := must[*postgres.Conn](t)(postgres.Connect(t.Context(), w.pg.DSN("postgres"), postgres.ConnectOptions{Replication: true}))
		server.History = must[postgres.History](t)(postgres.TimelineHistory(t.Context(), conn, facts.Timeline)).Parsed
		conn.Close()
	}
	w.lineage = must[catalog.Lineage](t)(snapshot.Claim(t.Context(), snapshot.LineageConfig{
		Cluster: "cms", Node: "db1", StateID: fmt.Sprint("s", facts.Timeline), Boot: "b1", Signer: w.signer, Trust: w.trust, Quorum: 2, Now: time.Now,
		Server: server,
	}, w.vault.Writer()))
	writer := must[*snapshot.WALWriter](t)(snapshot.OpenWriter(snapshot.WriterConfig{
		Lineage: w.lineage, Store: w.vault.Writer(), Trust: w.trust, Signer: w.signer, Keys: w.keys,
		Data: w.to, Index: w.indexTo, Spool: filepath.Join(t.TempDir(), "spool"), Now: time.Now,
	}))
	w.segSize = facts.SegSize
	w.writer = writer
	w.stream()
}

// stream archives what the server writes.
func (w *world) stream() {
	t := w.t
	w.archiver = snapshot.NewArchiver(snapshot.ArchiveConfig{DSN: w.pg.DSN("postgres"), Slot: "holdfast_cms", SegSize: w.segSize, MaxLag: 200 * time.Millisecond}, w.writer)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.archiver.Run(ctx) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(w.stop)
}

func (w *world) take(source string) catalog.Snapshot {
	w.t.Helper()
	return must[catalog.Snapshot](w.t)(snapshot.Take(w.t.Context(), snapshot.TakeConfig{
		Cluster: "cms", Node: "db1", Epoch: w.lineage.Epoch, Source: source, DSN: w.pg.DSN("postgres"), Fast: true,
		Store: w.vault.Writer(), Signer: w.signer, Trust: w.trust, Data: w.to, Index: w.indexTo, Fingerprints: []string{"0123456789abcdef"}, WAL: w.archiver, Keys: w.keys,
	}))
}

// flush waits until all that the server has written is in the quorum.
func (w *world) flush() {
	w.t.Helper()
	at := must[lsn.LSN](w.t)(lsn.Parse(w.pg.LSN()))
	if err := w.archiver.WaitDurable(w.t.Context(), at); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) repo() restore.Repo {
	return restore.Repo{
		Reader: w.vault.Reader(), Catalog: catalog.NewReader(w.vault.Reader(), w.trust), Trust: w.trust,
		Data: []age.Identity{w.data}, Index: []age.Identity{w.index},
	}
}

func (w *world) plan(target restore.Target) restore.Plan {
	w.t.Helper()
	in := must[restore.Inputs](w.t)(restore.Gather(w.t.Context(), w.repo(), "cms", target, time.Now()))
	return must[restore.Plan](w.t)(restore.MakePlan(in))
}

func (w *world) target() string {
	dir := must[string](w.t)(os.MkdirTemp("/tmp", "hfr"))
	w.t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		w.t.Fatal(err)
	}
	return filepath.Join(dir, "data")
}

func (w *world) options(to string) restore.Options {
	o := restore.Options{To: to, Program: w.program, Binaries: w.pg.BinDir(), Log: testLog{w.t}, Stall: w.quiet, Progress: w.progress, Digests: w.digests}
	if w.log != nil {
		o.Log = w.log
	}
	return o
}

func (w *world) digests(_ context.Context, epoch int) (seal.DigestKeys, error) {
	if epoch != w.keys.Epoch {
		return seal.DigestKeys{}, fmt.Errorf("there are no keys of epoch %d", epoch)
	}
	return w.keys, nil
}

// prepare restores and gives the room, which is discarded with the test.
func (w *world) prepare(p restore.Plan) *restore.Room {
	w.t.Helper()
	room := must[*restore.Room](w.t)(restore.Prepare(w.t.Context(), w.repo(), p, w.options(w.target())))
	w.t.Cleanup(func() {
		if err := room.Discard(context.Background()); err != nil {
			w.t.Error(err)
		}
	})
	return room
}

// gather plans, or says why not.
func (w *world) gather(target restore.Target) (restore.Plan, error) {
	in, err := restore.Gather(w.t.Context(), w.repo(), "cms", target, time.Now())
	if err != nil {
		return restore.Plan{}, err
	}
	return restore.MakePlan(in)
}

// watched is a log that a test reads and reacts to.
type watched struct {
	mu   sync.Mutex
	text strings.Builder
	on   map[string]func() // once, when the text appears
}

func (l *watched) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(p)
	for what, do := range l.on {
		if strings.Contains(l.text.String(), what) {
			delete(l.on, what)
			do()
		}
	}
	return len(p), nil
}

func (l *watched) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// cannotStart fails the test if PostgreSQL starts over dir.
func (w *world) cannotStart(dir string) {
	w.t.Helper()
	p := must[sandbox.Programs](w.t)(sandbox.FindPrograms(w.pg.Major, w.pg.BinDir()))
	log := filepath.Join(dir, "start.log")
	ctx, cancel := context.WithTimeout(w.t.Context(), 30*time.Second)
	defer cancel()
	if err := p.StartDaemon(ctx, dir, log); err == nil {
		w.t.Errorf("PostgreSQL started over %s", dir)
		if err := p.StopDaemon(ctx, dir); err != nil {
			w.t.Error(err)
		}
	}
}

type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Logf("postgres: %s", p)
	return len(p), nil
}
