package drills_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/jackc/pgx/v5"
	"golang.org/x/mod/sumdb/note"

	"github.com/holdfast-dr/holdfast/drills"
	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/incident"
	"github.com/holdfast-dr/holdfast/internal/ledger"
	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/thin"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/zone"
	"github.com/holdfast-dr/holdfast/internal/zone/dirzone"
	"github.com/holdfast-dr/holdfast/restore"
	"github.com/holdfast-dr/holdfast/snapshot"
)

// The test binary is restore_command's program as well, and the drill that is killed.
func TestMain(m *testing.M) {
	if len(os.Args) > 6 && os.Args[1] == "wal" && os.Args[2] == "fetch" {
		code, err := thin.Fetch(os.Args[4], os.Args[5], os.Args[6])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(code)
	}
	if os.Getenv(victimEnv) != "" {
		os.Exit(victim(os.Getenv(victimEnv)))
	}
	os.Exit(m.Run())
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

// keys are a repository's keys, as text, so that another process can hold them.
type keys struct {
	Data, Index string // age identities
	Sign, VKey  string
	Dirs        []string // of the zones a, b and c
	State       string   // of the vault
}

func newKeys(t *testing.T) keys {
	var k keys
	k.Data = must[*age.X25519Identity](t)(age.GenerateX25519Identity()).String()
	k.Index = must[*age.X25519Identity](t)(age.GenerateX25519Identity()).String()
	var err error
	if k.Sign, k.VKey, err = seal.NewSigningKey("db1"); err != nil {
		t.Fatal(err)
	}
	for _, name := range zoneNames {
		dir := filepath.Join(t.TempDir(), name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		k.Dirs = append(k.Dirs, dir)
	}
	k.State = filepath.Join(t.TempDir(), "vault")
	return k
}

var zoneNames = []string{"a", "b", "c"}

func identityOf(name string) zone.Identity {
	return zone.Identity{Format: zone.Format, Repository: "test", Zone: name}
}

// opened is the repository as one process has it open.
type opened struct {
	vault  *vault.Vault
	trust  seal.Trust
	signer note.Signer
	data   *age.X25519Identity
	index  *age.X25519Identity
}

func (k keys) open(state string) (o opened, err error) {
	var zones []*zone.Zone
	for i, name := range zoneNames {
		d, err := dirzone.New(k.Dirs[i])
		if err != nil {
			return o, err
		}
		zones = append(zones, zone.Open(name, d, identityOf(name), zone.Options{}))
	}
	if o.vault, err = vault.Open(vault.Config{Zones: zones, Quorum: 2, State: state}); err != nil {
		return o, err
	}
	if o.trust, err = seal.NewTrust([]seal.TrustedSigner{{VKey: k.VKey, Clusters: []string{"*"}, May: []string{"snapshot", "wal", "tombstone", "ledger"}}}); err != nil {
		return o, err
	}
	if o.signer, _, err = seal.LoadSigner(k.Sign); err != nil {
		return o, err
	}
	if o.data, err = age.ParseX25519Identity(k.Data); err != nil {
		return o, err
	}
	o.index, err = age.ParseX25519Identity(k.Index)
	return o, err
}

func (o opened) repo() restore.Repo {
	return restore.Repo{
		Reader: o.vault.Reader(), Catalog: catalog.NewReader(o.vault.Reader(), o.trust), Trust: o.trust,
		Data: []age.Identity{o.data}, Index: []age.Identity{o.index},
	}
}

func (o opened) ledger(dir string) (*ledger.Ledger, error) {
	return ledger.Open(ledger.Config{
		Dir: dir, Repository: "test", Origin: "db1", Signer: o.signer, Trust: o.trust, Store: ledger.FromWriter(o.vault.Writer(), nil),
		Software: ledger.Software{Version: "test"},
	})
}

// world is a cluster under protection in three directory zones, with a ledger and
// an environment for drills.
type world struct {
	opened
	t        *testing.T
	keys     keys
	pg       *pgtest.Cluster
	digests  seal.DigestKeys
	lineage  catalog.Lineage
	archiver *snapshot.Archiver
	log      *ledger.Ledger
	logDir   string
	alarms   *incident.Store
	env      drills.Environment
	program  string
}

func newWorld(t *testing.T, opts ...pgtest.Option) *world {
	w := &world{t: t, keys: newKeys(t), pg: pgtest.Start(t, opts...)}
	for i, name := range zoneNames {
		if err := zone.Initialise(t.Context(), must[*dirzone.Driver](t)(dirzone.New(w.keys.Dirs[i])), identityOf(name)); err != nil {
			t.Fatal(err)
		}
	}
	w.opened = must[opened](t)(w.keys.open(w.keys.State))
	t.Cleanup(func() { w.vault.Close() })
	w.digests = must[seal.DigestKeys](t)(seal.NewDigestKeys(1))
	w.logDir = filepath.Join(t.TempDir(), "ledger")
	w.log = must[*ledger.Ledger](t)(w.ledger(w.logDir))
	t.Cleanup(func() { w.log.Close() })
	w.alarms = must[*incident.Store](t)(incident.New(filepath.Join(t.TempDir(), "incidents")))
	w.program = sharedProgram(t)
	w.env = drills.Environment{Name: "scratch", Directory: sharedDir(t), Binaries: filepath.Dir(w.pg.Bin("postgres"))}
	w.archive()
	return w
}

// sharedDir is a directory that PostgreSQL's user may pass through.
func sharedDir(t *testing.T) string {
	dir := must[string](t)(os.MkdirTemp("/tmp", "hfd"))
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// sharedProgram copies the test binary to where PostgreSQL's user may run it.
func sharedProgram(t *testing.T) string {
	program := filepath.Join(sharedDir(t), "holdfast")
	if out, err := exec.Command("cp", must[string](t)(os.Executable()), program).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return program
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
		Lineage: w.lineage, Store: w.vault.Writer(), Trust: w.trust, Signer: w.signer, Keys: w.digests,
		Data: []age.Recipient{w.data.Recipient()}, Index: w.indexTo(), Spool: filepath.Join(t.TempDir(), "spool"), Now: time.Now,
	}))
	w.archiver = snapshot.NewArchiver(snapshot.ArchiveConfig{DSN: w.pg.DSN("postgres"), Slot: "holdfast_cms", SegSize: facts.SegSize, MaxLag: 200 * time.Millisecond}, writer)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.archiver.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func (w *world) indexTo() []age.Recipient {
	return []age.Recipient{w.index.Recipient(), w.data.Recipient()}
}

func (w *world) take() catalog.Snapshot {
	w.t.Helper()
	return must[catalog.Snapshot](w.t)(snapshot.Take(w.t.Context(), snapshot.TakeConfig{
		Cluster: "cms", Node: "db1", Epoch: w.lineage.Epoch, Source: snapshot.SourceFiles, DSN: w.pg.DSN("postgres"), Fast: true,
		Store: w.vault.Writer(), Signer: w.signer, Trust: w.trust, Data: []age.Recipient{w.data.Recipient()}, Index: w.indexTo(),
		Fingerprints: []string{"0123456789abcdef"}, WAL: w.archiver, Keys: w.digests,
	}))
}

// flush waits until all that the server has written is in the quorum. After a
// snapshot its position lies behind a header that no record has followed yet, and
// an idle server would let us wait for one.
func (w *world) flush() {
	w.t.Helper()
	w.pg.Exec("SELECT pg_logical_emit_message(true, 'test', 'x')")
	at := must[lsn.LSN](w.t)(lsn.Parse(w.pg.LSN()))
	if err := w.archiver.WaitDurable(w.t.Context(), at); err != nil {
		w.t.Fatal(err)
	}
}

// deps are a drill's, with everything real.
func (w *world) deps() drills.Deps {
	return drills.Deps{
		Repo: w.repo(), Log: w.log, Proofs: drills.SignedProofs{Signer: w.signer, Store: w.vault.Writer()}, Incidents: w.alarms,
		Program: w.program, Actor: ledger.Actor{Kind: "schedule"}, Replay: noTombstones, Stall: 20 * time.Second,
		Digests: func(context.Context, int) (seal.DigestKeys, error) { return w.digests, nil },
	}
}

func noTombstones(context.Context, func(context.Context, string) (*pgx.Conn, error), []catalog.Tombstone) ([]restore.AppliedTombstone, error) {
	return nil, errors.New("no tombstone was to be applied")
}

func (w *world) definition(selector string) drills.Definition {
	return drills.Definition{
		Name: "weekly", Cluster: "cms", Schedule: "0 4 * * 1", Select: selector, Level: "L8", Environment: w.env,
		Objectives: drills.Objectives{RPO: time.Hour, RTO: 10 * time.Minute}, Limits: drills.Limits{Time: 2 * time.Minute},
		Checks: []drills.Question{{Name: "pages", Database: "postgres", SQL: "SELECT count(*) >= 100 FROM page", Expect: "t"}},
	}
}

var slots struct {
	sync.Mutex
	n int
}

// slot is a due time that no other drill of this process has.
func slot() drills.Slot {
	slots.Lock()
	defer slots.Unlock()
	slots.n++
	due := time.Now().UTC().Truncate(time.Second).Add(time.Duration(slots.n) * time.Millisecond)
	return drills.Slot{Key: fmt.Sprintf("weekly/%s", due.Format(time.RFC3339Nano)), DueAt: due, Trigger: "schedule"}
}

// run drills, and checks what holds of every drill.
func (w *world) run(def drills.Definition) drills.Record {
	w.t.Helper()
	rec := must[drills.Record](w.t)(drills.Run(w.t.Context(), w.deps(), def, slot()))
	w.sound(rec)
	return rec
}

// fill makes a little CMS.
func (w *world) fill() {
	w.pg.Exec("CREATE TABLE page(id int PRIMARY KEY, body text)")
	w.pg.Exec("INSERT INTO page SELECT i, repeat(md5(i::text), 20) FROM generate_series(1, 2000) i")
	w.pg.Exec("CREATE INDEX ON page(body)")
}
