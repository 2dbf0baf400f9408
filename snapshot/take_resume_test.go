package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// watched counts what is sent by kind, and dies when the limit is reached: what
// comes then is lost with the connection.
type watched struct {
	vault.Writer
	cancel context.CancelCauseFunc
	limit  int // packs; 0: none

	mu    sync.Mutex
	names []string
}

var errLost = errors.New("the connection is lost")

func (w *watched) Put(ctx context.Context, name string, body []byte, opt vault.PutOptions) (vault.Stored, error) {
	w.mu.Lock()
	w.names = append(w.names, name)
	over := w.limit > 0 && w.count("/packs/") > w.limit
	w.mu.Unlock()
	if over {
		w.cancel(errLost)
		return vault.Stored{}, errLost
	}
	return w.Writer.Put(ctx, name, body, opt)
}

func (w *watched) count(part string) (n int) {
	for _, name := range w.names {
		if strings.Contains(name, part) {
			n++
		}
	}
	return n
}

// interrupt takes a snapshot and loses it after some packs.
func interrupt(t *testing.T, r *rig, pg *pgtest.Cluster, packs int) (id string) {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	cfg := r.config(pg, SourceFiles)
	store := &watched{Writer: r.vault.Writer(), cancel: cancel, limit: packs}
	cfg.Store = store
	if _, err := Take(ctx, cfg); !errors.Is(err, errLost) {
		t.Fatalf("got %v, want that the connection is lost", err)
	}
	return strings.Split(store.names[0], "/")[3]
}

// noisy puts a file of n MiB that does not compress into the data directory.
func noisy(t *testing.T, pg *pgtest.Cluster, n int) {
	t.Helper()
	noErr(t, os.WriteFile(filepath.Join(pg.DataDir, "noise"), noise(n<<20), 0o600))
	noErr(t, pgtest.Own(filepath.Join(pg.DataDir, "noise")))
}

// C-16 and issue: what the quorum holds is not sent again.
func TestAnInterruptedSnapshotGoesOnUnderItsOwnIDAndSendsNoPackTwice(t *testing.T) {
	pg := startPG(t)
	noisy(t, pg, 110)
	r := newRig(t)
	id := interrupt(t, r, pg, 2)
	cfg := r.config(pg, SourceFiles)
	store := &watched{Writer: r.vault.Writer()}
	cfg.Store = store
	s := r.take(cfg)
	if s.ID != id || store.count("/packs/") > 3 || store.count("intent") > 0 {
		t.Errorf("%s went on as %s and sent %d packs more: want the same id and at most 3 of about 4", id, s.ID, store.count("/packs/"))
	}
	r.holds(s, pg.DataDir)
	if entries, err := os.ReadDir(filepath.Join(r.state, "making")); err == nil {
		t.Errorf("%d entries are left in the making", len(entries))
	}
	if next := r.take(r.config(pg, SourceFiles)); next.ID == id || r.manifest(next).Header.Base != id {
		t.Errorf("the next is %s on %s", next.ID, r.manifest(next).Header.Base)
	}
}

// severing ends the server's side of the connections when some packs were sent.
type severing struct {
	watched
	packs int
	cut   func()
	once  sync.Once
}

func (c *severing) Put(ctx context.Context, name string, body []byte, opt vault.PutOptions) (vault.Stored, error) {
	stored, err := c.watched.Put(ctx, name, body, opt)
	c.mu.Lock()
	enough := c.count("/packs/") >= c.packs
	c.mu.Unlock()
	if enough {
		c.once.Do(c.cut)
	}
	return stored, err
}

// Whatever the source: what the quorum holds when the server is lost is not sent again.
func TestALostConnectionLosesNothingThatIsCommitted(t *testing.T) {
	pg := startPG(t)
	noisy(t, pg, 110)
	eachSource(t, func(t *testing.T, source string) {
		r := newRig(t)
		cfg := r.config(pg, source)
		first := &severing{watched: watched{Writer: r.vault.Writer()}, packs: 2, cut: func() {
			if n := pgtest.Value[int](pg, `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
				WHERE pid <> pg_backend_pid() AND application_name LIKE 'holdfast%'`); n == 0 {
				t.Error("the snapshot has no connection that could be cut")
			}
		}}
		cfg.Store = first
		if _, err := Take(t.Context(), cfg); err == nil || len(r.notes()) > 0 {
			t.Fatalf("got %v with notes in %v, want an error and none", err, r.notes())
		}
		sent, id := first.count("/packs/"), strings.Split(first.names[0], "/")[3]
		cfg = r.config(pg, source)
		second := &watched{Writer: r.vault.Writer()}
		cfg.Store = second
		s := r.take(cfg)
		all, err := filepath.Glob(filepath.Join(r.dirs[0], "clusters/main/snapshots", id, "packs", "*"))
		noErr(t, err)
		if packs := second.count("/packs/"); s.ID != id || sent < 2 || second.count("intent") > 0 || packs > len(all)-2 {
			t.Errorf("%s went on as %s after %d packs and sent %d more of %d: want the same id and 2 fewer", id, s.ID, sent, packs, len(all))
		}
		r.holds(s, pg.DataDir)
	})
}

// killedTake is set, to what it needs, in the process that is to die.
const killedTake = "HOLDFAST_TEST_KILLED_TAKE"

// killed is a Take that ends with kill -9 at its third pack.
type killed struct {
	vault.Writer
	left atomic.Int64
}

func (k *killed) Put(ctx context.Context, name string, body []byte, opt vault.PutOptions) (vault.Stored, error) {
	if strings.Contains(name, "/packs/") && k.left.Add(-1) < 0 {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	return k.Writer.Put(ctx, name, body, opt)
}

// In a process of its own: see the next test, which starts it.
func TestTakeThatIsKilled(t *testing.T) {
	text := os.Getenv(killedTake)
	if text == "" {
		return
	}
	var in struct {
		secrets
		DSN string
	}
	noErr(t, json.Unmarshal([]byte(text), &in))
	r := in.open(t)
	cfg := r.configOf(in.DSN, SourceFiles)
	store := &killed{Writer: r.vault.Writer()}
	store.left.Store(2)
	cfg.Store = store
	t.Error("it was to be killed:", r.take(cfg))
}

// T-1: what the quorum held when the process was killed is neither sent nor, as
// the WAL tells what changed since, read again.
func TestAfterKill9NothingThatIsCommittedIsSentOrReadAgain(t *testing.T) {
	pg := startPG(t)
	noisy(t, pg, 110)
	pg.Exec("CREATE TABLE noise (b bytea)")
	pg.Exec("ALTER TABLE noise ALTER b SET STORAGE EXTERNAL")
	pg.Exec("INSERT INTO noise SELECT pg_read_binary_file('noise', i * 1000000, 1000000) FROM generate_series(0, 109) i")
	noErr(t, os.Remove(filepath.Join(pg.DataDir, "noise")))
	r := newRig(t)
	cfg := r.config(pg, SourceFiles)
	r.archiving(pg, &cfg)
	text, err := json.Marshal(struct {
		secrets
		DSN string
	}{r.secrets, pg.DSN("postgres")})
	noErr(t, err)
	die := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestTakeThatIsKilled$")
	die.Env = append(os.Environ(), killedTake+"="+string(text))
	out, err := die.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || !exit.Sys().(syscall.WaitStatus).Signaled() {
		t.Fatalf("it was to be killed: %v\n%s", err, out)
	}
	pg.Exec("UPDATE noise SET b = '\\x00' WHERE ctid = (SELECT min(ctid) FROM noise)")
	store := &watched{Writer: r.vault.Writer()}
	cfg.Store = store
	var read int64
	cfg.Progress = func(p Progress) { read = p.Read }
	s := r.take(cfg)
	before, err := filepath.Glob(filepath.Join(r.dirs[0], "clusters/main/snapshots", s.ID, "packs", "*"))
	noErr(t, err)
	if packs := store.count("/packs/"); store.count("intent") > 0 || packs > len(before)-2 {
		t.Errorf("%d intents and %d packs were sent, of %d in all", store.count("intent"), packs, len(before))
	}
	if read > s.RawBytes-40<<20 {
		t.Errorf("%d of %d bytes were read, although two packs were committed", read, s.RawBytes)
	}
	r.check(r.manifest(s))
	r.holds(s, pg.DataDir)
}

func TestAnAttemptThatMayNotBeContinuedBeginsAfresh(t *testing.T) {
	pg := startPG(t)
	noisy(t, pg, 40)
	for name, change := range map[string]func(*rig, *TakeConfig, string){
		"another key":     func(_ *rig, c *TakeConfig, _ string) { c.Keys.Epoch++ },
		"another reader":  func(_ *rig, c *TakeConfig, _ string) { c.Fingerprints = []string{"x"} },
		"another lineage": func(_ *rig, c *TakeConfig, _ string) { c.Epoch++ },
		"another node":    func(_ *rig, c *TakeConfig, _ string) { c.State = t.TempDir() },
		"too old": func(_ *rig, c *TakeConfig, _ string) {
			now := c.Now
			c.Now = func() time.Time { return now().Add(maxAttempt + 1) }
		},
		"marked for removal": func(r *rig, _ *TakeConfig, id string) { r.forget(id) },
		"a spool that rotted": func(r *rig, _ *TakeConfig, _ string) {
			noErr(t, os.WriteFile(filepath.Join(r.state, "making", "attempt.json"), []byte("{"), 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			id := interrupt(t, r, pg, 1)
			cfg := r.config(pg, SourceFiles)
			cfg.fill()
			change(r, &cfg, id)
			s := r.take(cfg)
			if s.ID == id {
				t.Error("it went on")
			}
			r.check(r.manifest(s))
		})
	}
}

func TestATornSpoolIsContinuedAsFarAsItIsWhole(t *testing.T) {
	pg := startPG(t)
	noisy(t, pg, 40)
	r := newRig(t)
	id := interrupt(t, r, pg, 1)
	name := filepath.Join(r.state, "making", "leaves")
	info, err := os.Stat(name)
	noErr(t, err)
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	noErr(t, err)
	_, err = f.WriteAt(make([]byte, 100), info.Size()/2)
	noErr(t, errors.Join(err, f.Close()))
	s := r.take(r.config(pg, SourceFiles))
	if s.ID != id {
		t.Errorf("%s went on as %s", id, s.ID)
	}
	r.holds(s, pg.DataDir)
}

func TestTwoSnapshotsOfOneClusterAreNotTakenAtOnceFromOneState(t *testing.T) {
	pg := startPG(t)
	r := newRig(t)
	cfg := r.config(pg, SourceFiles)
	var second error
	cfg.Progress = func(p Progress) {
		if p.Step == "commit" {
			_, second = Take(t.Context(), r.config(pg, SourceFiles))
		}
	}
	r.take(cfg)
	if second == nil || !strings.Contains(second.Error(), "another snapshot") {
		t.Errorf("the second: %v", second)
	}
}

// forget marks a snapshot for removal.
func (r *rig) forget(id string) {
	r.t.Helper()
	body, err := seal.SignNote(catalog.KindForgotten, catalog.Forgotten{Cluster: "main", ID: "mark-" + id, Snapshots: []string{id}}, r.signer)
	noErr(r.t, err)
	_, err = r.vault.Writer().Put(r.t.Context(), catalog.ForgottenName("main", "mark-"+id), body, putOptions)
	noErr(r.t, err)
}

// What is lost in its last writes is committed as it is, with the very bytes that
// zones may hold already; what was taken too long ago is not passed off as new.
func TestASnapshotThatLacksItsEndAloneIsCommittedAndNotTakenAgain(t *testing.T) {
	pg := startPG(t)
	for _, at := range []string{"/manifest.age", "/objects.list", "/snapshot.note"} {
		r := newRig(t)
		cfg := r.config(pg, SourceFiles)
		cfg.Store = &failing{Writer: r.vault.Writer(), at: at}
		if _, err := Take(t.Context(), cfg); !errors.Is(err, errLost) {
			t.Fatalf("%s: got %v", at, err)
		}
		store := &watched{Writer: r.vault.Writer()}
		cfg.Store = store
		s := r.take(cfg)
		r.holds(s, pg.DataDir)
		if begun, _ := filepath.Glob(filepath.Join(r.dirs[0], "clusters/main/snapshots/*")); store.count("/packs/") > 0 || len(begun) != 1 {
			t.Errorf("%s: %d packs were sent again, %d snapshots were begun", at, store.count("/packs/"), len(begun))
		}
	}
	r := newRig(t)
	cfg := r.config(pg, SourceFiles)
	cfg.Store = &failing{Writer: r.vault.Writer(), at: "/snapshot.note"}
	_, err := Take(t.Context(), cfg)
	cfg.Store, cfg.Now = r.vault.Writer(), func() time.Time { return time.Now().Add(freshEnough) }
	s := r.take(cfg)
	if m := r.manifest(s); !errors.Is(err, errLost) || m.Header.Base == "" || len(r.notes()) != 3 {
		t.Errorf("an hour later %s came of it, on %q", s.ID, m.Header.Base)
	}
}

// failing loses the connection at one object, after one zone got it.
type failing struct {
	vault.Writer
	at string
}

func (f *failing) Put(ctx context.Context, name string, body []byte, opt vault.PutOptions) (vault.Stored, error) {
	stored, err := f.Writer.Put(ctx, name, body, opt)
	if strings.HasSuffix(name, f.at) {
		return stored, errLost
	}
	return stored, err
}

func (f *failing) PutNote(ctx context.Context, name string, body []byte, needs []vault.Need, opt vault.PutOptions) (vault.Stored, error) {
	if strings.HasSuffix(name, f.at) {
		return vault.Stored{}, errLost
	}
	return f.Writer.PutNote(ctx, name, body, needs, opt)
}
