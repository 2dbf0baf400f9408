package restore_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"filippo.io/age"
	"golang.org/x/mod/sumdb/note"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/zone"
	"github.com/holdfast-dr/holdfast/internal/zone/dirzone"
	"github.com/holdfast-dr/holdfast/restore"
	"github.com/holdfast-dr/holdfast/snapshot"
)

// The test binary is restore_command's program as well, and misbehaves as told.
func TestMain(m *testing.M) {
	if len(os.Args) > 6 && os.Args[1] == "wal" && os.Args[2] == "fetch" {
		os.Exit(fetchMain(os.Args[4], os.Args[5], os.Args[6]))
	}
	os.Exit(m.Run())
}

// fetchMain does what a file named misbehave beside the socket says, once for
// each line in it, and else what it should.
func fetchMain(socket, name, dest string) int {
	how := filepath.Join(filepath.Dir(socket), "misbehave")
	if what, err := os.ReadFile(how); err == nil {
		if os.Remove(how) == nil {
			switch string(what) {
			case "panic":
				panic("told to")
			case "flags":
				return 2
			case "kill":
				self, _ := os.FindProcess(os.Getpid())
				_ = self.Kill()
				select {}
			}
		}
	}
	code, err := restore.FetchMain(socket, name, dest)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return code
}

// world is a cluster under protection in three directory zones.
type world struct {
	t        *testing.T
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
	stop     func()
	program  string
}

func must[T any](t *testing.T) func(T, error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func newWorld(t *testing.T, pg *pgtest.Cluster) *world {
	w := &world{t: t, pg: pg}
	w.makeKeys()
	for _, name := range []string{"a", "b", "c"} {
		dir := filepath.Join(t.TempDir(), name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		d := must[*dirzone.Driver](t)(dirzone.New(dir))
		id := zone.Identity{Format: zone.Format, Repository: "test", Zone: name}
		if err := zone.Initialise(t.Context(), d, id); err != nil {
			t.Fatal(err)
		}
		w.dirs = append(w.dirs, dir)
		w.zones = append(w.zones, zone.Open(name, d, id, zone.Options{}))
	}
	w.vault = must[*vault.Vault](t)(vault.Open(vault.Config{Zones: w.zones, Quorum: 2, State: filepath.Join(t.TempDir(), "vault")}))
	t.Cleanup(func() { w.vault.Close() })
	w.program = sharedProgram(t)
	w.archive()
	return w
}

// sharedProgram copies the test binary to where PostgreSQL's user may run it.
func sharedProgram(t *testing.T) string {
	dir := must[string](t)(os.MkdirTemp("/tmp", "hf"))
	t.Cleanup(func() { os.RemoveAll(dir) })
	self := must[string](t)(os.Executable())
	program := filepath.Join(dir, "holdfast")
	if out, err := exec.Command("cp", self, program).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
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
	w.lineage = must[catalog.Lineage](t)(snapshot.Claim(t.Context(), snapshot.LineageConfig{
		Cluster: "cms", Node: "db1", StateID: "s1", Boot: "b1", Signer: w.signer, Trust: w.trust, Quorum: 2, Now: time.Now,
		Server: snapshot.Server{SystemID: facts.SystemID, Major: facts.Major, Timeline: facts.Timeline, LSN: facts.CurrentLSN},
	}, w.vault.Writer()))
	writer := must[*snapshot.WALWriter](t)(snapshot.OpenWriter(snapshot.WriterConfig{
		Lineage: w.lineage, Store: w.vault.Writer(), Trust: w.trust, Signer: w.signer, Keys: w.keys,
		Data: w.to, Index: w.indexTo, Spool: filepath.Join(t.TempDir(), "spool"), Now: time.Now,
	}))
	w.archiver = snapshot.NewArchiver(snapshot.ArchiveConfig{DSN: w.pg.DSN("postgres"), Slot: "holdfast_cms", SegSize: facts.SegSize, MaxLag: 200 * time.Millisecond}, writer)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.archiver.Run(ctx) }()
	w.stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		done <- nil
	}
	t.Cleanup(w.stop)
}

func (w *world) take(source string) catalog.Snapshot {
	w.t.Helper()
	return must[catalog.Snapshot](w.t)(snapshot.Take(w.t.Context(), snapshot.TakeConfig{
		Cluster: "cms", Node: "db1", Epoch: w.lineage.Epoch, Source: source, DSN: w.pg.DSN("postgres"), Fast: true,
		Store: w.vault.Writer(), Signer: w.signer, Trust: w.trust, Data: w.to, Index: w.indexTo, Fingerprints: []string{"0123456789abcdef"}, WAL: w.archiver,
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
	return restore.Options{To: to, Program: w.program, Log: testLog{w.t}}
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

type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Logf("postgres: %s", p)
	return len(p), nil
}
