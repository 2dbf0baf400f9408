package snapshot

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/postgres/datadir"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// brittle fails the calls from the left-th on, before they reach a zone or after.
type brittle struct {
	vault.Writer
	left  atomic.Int64
	after bool
}

var errBrittle = errors.New("the process was killed here")

func (b *brittle) fail(call func() (vault.Stored, error)) (vault.Stored, error) {
	if b.left.Add(-1) >= 0 {
		return call()
	}
	if b.after && b.left.Load() == -1 {
		_, _ = call()
	}
	return vault.Stored{}, errBrittle
}

func (b *brittle) Put(ctx context.Context, name string, body []byte, opt vault.PutOptions) (vault.Stored, error) {
	return b.fail(func() (vault.Stored, error) { return b.Writer.Put(ctx, name, body, opt) })
}

func (b *brittle) PutNote(ctx context.Context, name string, body []byte, needs []vault.Need, opt vault.PutOptions) (vault.Stored, error) {
	if b.left.Add(-1) >= 0 {
		return b.Writer.PutNote(ctx, name, body, needs, opt)
	}
	return vault.Stored{}, errBrittle
}

// Promise 4: a snapshot exists when its last object does. The sources take turns,
// for each Take reads the whole cluster.
func TestFailureAtEachWriteLeavesNoSnapshotAndALaterTakeWorks(t *testing.T) {
	pg := startPG(t, pgtest.WithoutChecksums())
	r := newRig(t)
	n := int64(0)
	for ; ; n++ {
		cfg := r.config(pg, []string{SourceFiles, SourceStream}[n%2])
		cfg.State = t.TempDir() // each begins afresh
		store := &brittle{Writer: r.vault.Writer(), after: n%4 > 1}
		store.left.Store(n)
		cfg.Store = store
		_, err := Take(t.Context(), cfg)
		if err == nil {
			break
		}
		if !errors.Is(err, errBrittle) || len(r.notes()) > 0 || n > 20 {
			t.Fatalf("write %d failed: %v, notes in zones %v", n, err, r.notes())
		}
	}
	snaps, err := catalog.NewReader(r.vault.Reader(), r.trust).Snapshots(t.Context(), "main")
	if noErr(t, err); len(snaps.List) != 1 || int64(len(snaps.Intents)) < n-1 || n < 5 || len(snaps.Faults) > 0 {
		t.Errorf("after %d failures: %d snapshots, %d intents, faults %v", n, len(snaps.List), len(snaps.Intents), snaps.Faults)
	}
}

func TestCancellationInTheMiddleEndsTheBackupOnTheServer(t *testing.T) {
	pg := startPG(t)
	fill(pg, "big", 5000)
	eachSource(t, func(t *testing.T, source string) {
		r := newRig(t)
		ctx, cancel := context.WithCancel(t.Context())
		cfg := r.config(pg, source)
		cfg.Progress = func(p Progress) {
			if p.Step == "copy" && p.Done > 2<<20 {
				cancel()
			}
		}
		if _, err := Take(ctx, cfg); !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v, want the cancellation", err)
		}
		if len(r.notes()) > 0 {
			t.Error("there is a note")
		}
		r.take(r.config(pg, source))
	})
}

// C-2
func TestLosingTheConnectionIsAnError(t *testing.T) {
	pg := startPG(t)
	r := newRig(t)
	cfg := r.config(pg, SourceFiles)
	var once sync.Once
	cfg.Progress = func(p Progress) {
		if p.Step == "copy" {
			once.Do(func() {
				pg.Exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'holdfast snapshot'")
			})
		}
	}
	if _, err := Take(t.Context(), cfg); err == nil || len(r.notes()) > 0 {
		t.Errorf("got %v with notes in %v, want an error and none", err, r.notes())
	}
}

// C-16: what is dropped, cut, or grows after the listing.
func TestFilesThatChangeAfterTheListingAreNoFault(t *testing.T) {
	pg := startPG(t)
	fill(pg, "anchor", 5000) // the largest: copied first
	for _, table := range []string{"goes", "shrinks", "grows"} {
		fill(pg, table, 300)
	}
	gone := pgtest.Value[string](pg, "SELECT pg_relation_filepath('goes')")
	pg.Exec("CHECKPOINT")
	r := newRig(t)
	cfg := r.config(pg, SourceFiles)
	cfg.Workers = 1
	var once sync.Once
	cfg.Progress = func(p Progress) {
		if p.Step == "copy" {
			once.Do(func() {
				pg.Exec("DROP TABLE goes")
				pg.Exec("DELETE FROM shrinks WHERE id > 10")
				pg.Exec("VACUUM shrinks")
				pg.Exec("INSERT INTO grows SELECT i, repeat('g', 900) FROM generate_series(1001, 2000) i")
				pg.Exec("CHECKPOINT")
			})
		}
	}
	s := r.take(cfg)
	for _, f := range r.manifest(s).Files {
		if f.Path == gone && f.Size > 0 {
			t.Errorf("%s was dropped and is in the manifest with %d bytes", gone, f.Size)
		}
	}
	copied := r.revive(s, pg)
	for sql, want := range map[string]int64{
		"SELECT count(*) FROM shrinks": 10, "SELECT count(*) FROM grows": 1300, "SELECT count(*) FROM anchor": 5000,
		"SELECT count(*) FROM pg_class WHERE relname = 'goes'": 0,
	} {
		if n := pgtest.Value[int64](copied, sql); n != want || s.Suspect {
			t.Errorf("%s: %d, want %d; suspect %v", sql, n, want, s.Reasons)
		}
	}
}

// W4, promise 2.
func TestZoneThatIsAwayGetsTheNoteOnlyAfterBackFill(t *testing.T) {
	pg := startPG(t)
	r := newRig(t)
	away := r.dirs[2] + "-away"
	noErr(t, os.Rename(r.dirs[2], away))
	s := r.take(r.config(pg, SourceFiles))
	if got := r.notes(); len(got) != 2 {
		t.Fatalf("the note is in zones %v, want the two that are there", got)
	}
	noErr(t, os.Rename(away, r.dirs[2]))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.vault.Run(ctx) }()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); len(r.notes()) < 3; <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("the zone is still behind: %v", r.vault.Behind())
		}
	}
	cancel()
	<-done
	report, err := Verify(t.Context(), VerifyConfig{Cluster: "main", ID: s.ID, Reader: r.vault.Reader(), Trust: r.trust, Identities: r.data})
	if noErr(t, err); !report.OK() || report.Zones[2].Good != report.Objects {
		t.Errorf("after back-fill: %+v", report)
	}
}

// The server's own reads come first, and nothing else of this process is slowed.
func TestReadersOfTheDataDirectoryGiveWayToTheServer(t *testing.T) {
	pg := startPG(t)
	cfg := newRig(t).config(pg, SourceFiles)
	var gave, did atomic.Int64
	cfg.Progress = func(p Progress) {
		switch {
		case p.Step == "copy" && datadir.GivesWay():
			gave.Add(1)
		case p.Step != "copy" && datadir.GivesWay():
			t.Errorf("step %s gives way", p.Step)
		case p.Step == "copy":
			did.Add(1)
		}
	}
	_, err := Take(t.Context(), cfg)
	if noErr(t, err); gave.Load() == 0 || did.Load() > 1 { // pg_control comes last, and alone
		t.Errorf("%d pieces were read giving way, %d not", gave.Load(), did.Load())
	}
}

// stuckWAL never becomes durable.
type stuckWAL struct{}

func (stuckWAL) WaitDurable(ctx context.Context, _ lsn.LSN) error {
	<-ctx.Done()
	return ctx.Err()
}

// stalled takes no pack.
type stalled struct{ vault.Writer }

func (s stalled) Put(ctx context.Context, name string, body []byte, opt vault.PutOptions) (vault.Stored, error) {
	if strings.Contains(name, "/packs/") {
		<-ctx.Done()
		return vault.Stored{}, ctx.Err()
	}
	return s.Writer.Put(ctx, name, body, opt)
}

// C-8
func TestWALThatIsNotDurableEndsTheSnapshotEarly(t *testing.T) {
	pg := startPG(t)
	fill(pg, "big", 3000)
	r := newRig(t)
	cfg := r.config(pg, SourceFiles)
	cfg.WAL, cfg.ArchiveCheck, cfg.Store = stuckWAL{}, 100*time.Millisecond, stalled{r.vault.Writer()}
	begun := time.Now()
	_, err := Take(t.Context(), cfg)
	if err == nil || !strings.Contains(err.Error(), "early archive check") || time.Since(begun) > 15*time.Second {
		t.Errorf("after %s: %v", time.Since(begun), err)
	}
	if len(r.notes()) > 0 {
		t.Error("there is a note")
	}
}

func TestForgottenBaseEndsTheSnapshotBeforeItsNote(t *testing.T) { // W5
	pg := startPG(t)
	r := newRig(t)
	cfg := r.config(pg, SourceFiles)
	first := r.take(cfg)
	cfg.Progress = func(p Progress) {
		if p.Step != "commit" {
			return
		}
		r.forget(first.ID)
	}
	if _, err := Take(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "marked for removal") || len(r.notes()) != 3 {
		t.Errorf("got %v, notes in %v: want the first snapshot's alone", err, r.notes())
	}
	cfg.Progress = nil
	if m := r.manifest(r.take(cfg)); m.Header.Base != "" {
		t.Errorf("the next one is compared with %s, which is marked", m.Header.Base)
	}
}

// C-7
func TestT17AStandbyIsASourceAndItsPromotionIsAnError(t *testing.T) {
	pg := startPG(t)
	fill(pg, "big", 3000)
	standby := pg.Standby(t, "wal_keep_size = '4GB'")
	eachSource(t, func(t *testing.T, source string) {
		r := newRig(t)
		s := r.take(r.config(standby, source))
		m := r.manifest(s)
		if !m.Header.Facts.FromStandby || m.Header.Facts.MinRecoveryEnd != s.StopLSN || s.Suspect {
			t.Errorf("facts %+v, suspect %v", m.Header.Facts, s.Reasons)
		}
		second := r.take(r.config(standby, source))
		r.holds(second, standby.DataDir)
		if r.manifest(second).Header.Base != s.ID {
			t.Errorf("compared with %q, want %s", r.manifest(second).Header.Base, s.ID)
		}
	})
	for source, want := range map[string]func(error) bool{
		SourceFiles: func(err error) bool { return errors.Is(err, postgres.ErrChanged) },
		SourceStream: func(err error) bool {
			return err != nil && strings.Contains(err.Error(), "promoted during online backup")
		},
	} {
		r := newRig(t)
		promoted := pg.Standby(t, "wal_keep_size = '4GB'")
		cfg := r.config(promoted, source)
		var once sync.Once
		cfg.Progress = func(p Progress) {
			if p.Step == "copy" {
				once.Do(promoted.Promote)
			}
		}
		if _, err := Take(t.Context(), cfg); !want(err) || len(r.notes()) > 0 {
			t.Errorf("%s: got %v, want that the server changed", source, err)
		}
	}
}

// C-1: after a failover the connection may lead to another server than the path.
func TestTheDirectoryOfAnotherServerOfTheSystemIsRefused(t *testing.T) {
	pg := startPG(t)
	standby := pg.Standby(t, "wal_keep_size = '4GB'")
	r := newRig(t)
	cfg := r.config(pg, SourceFiles)
	cfg.DataDirectory = standby.DataDir
	if _, err := Take(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "another server's of the same cluster") || len(r.notes()) > 0 {
		t.Errorf("got %v, notes in %v: want that the directory is another server's", err, r.notes())
	}
}

// C-6
func TestT18AStandbyOfAPrimaryWithoutFullPageWritesIsRefused(t *testing.T) {
	pg := startPG(t, pgtest.WithSetting("full_page_writes", "off"))
	standby := pg.Standby(t)
	fill(pg, "t", 100)
	pg.Exec("CHECKPOINT")
	standby.AwaitReplay(pg.LSN())
	standby.Exec("CHECKPOINT")
	eachSource(t, func(t *testing.T, source string) {
		r := newRig(t)
		_, err := Take(t.Context(), r.config(standby, source))
		if err == nil || !strings.Contains(err.Error(), "full_page_writes") || len(r.notes()) > 0 {
			t.Errorf("from a standby: %v", err)
		}
		if s := r.take(r.config(pg, source)); s.Suspect {
			t.Errorf("from the primary: %v", s.Reasons)
		}
	})
}

// C-15
func TestConfigurationOutsideTheDataDirectoryIsTaken(t *testing.T) {
	pg := pgtest.Create(t, pgtest.WithSetting("wal_keep_size", "1GB"))
	hba := filepath.Join(pg.Mkdir("etc"), "pg_hba.conf")
	data, err := os.ReadFile(filepath.Join(pg.DataDir, "pg_hba.conf"))
	noErr(t, err)
	noErr(t, os.WriteFile(hba, data, 0o644))
	pg.Configure("hba_file = '" + hba + "'")
	pg.Start()
	eachSource(t, func(t *testing.T, source string) {
		r := newRig(t)
		found := false
		for _, f := range r.manifest(r.take(r.config(pg, source))).Files {
			if f.Outside {
				found = f.Path == hba && f.Size == int64(len(data))
			}
		}
		if !found {
			t.Errorf("%s is not in the manifest", hba)
		}
	})
}

func TestDataDirectoryOfAnotherClusterIsRefused(t *testing.T) {
	pg, other := startPG(t), pgtest.Create(t, pgtest.WithInitdb("--wal-segsize=1"))
	r := newRig(t)
	cfg := r.config(pg, SourceFiles)
	cfg.DataDirectory = other.DataDir
	if _, err := Take(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "another cluster's") {
		t.Errorf("got %v", err)
	}
}

func TestConfigurationThatCannotWorkIsRefusedBeforeAnythingIsWritten(t *testing.T) {
	r := newRig(t)
	_, pq, err := seal.NewIdentity()
	noErr(t, err)
	mixed, err := seal.ParseRecipients([]string{pq})
	noErr(t, err)
	for name, spoil := range map[string]func(*TakeConfig){
		"no epoch":         func(c *TakeConfig) { c.Epoch = 0 },
		"no such source":   func(c *TakeConfig) { c.Source = "tape" },
		"no recipients":    func(c *TakeConfig) { c.Data = nil },
		"mixed recipients": func(c *TakeConfig) { c.Index = mixed },
		"bad cluster name": func(c *TakeConfig) { c.Cluster = "../x" },
		"no such level":    func(c *TakeConfig) { c.Level = "11" },
		"no WAL":           func(c *TakeConfig) { c.WAL = nil },
	} {
		cfg := TakeConfig{
			Cluster: "main", Node: "node", Epoch: 1, Source: SourceFiles, DSN: "host=/nowhere", Store: r.vault.Writer(),
			Signer: r.signer, Trust: r.trust, Data: r.dataTo, Index: r.indexTo, Fingerprints: []string{"x"}, WAL: stuckWAL{},
		}
		noErr(t, cfg.check())
		spoil(&cfg)
		if cfg.check() == nil {
			t.Errorf("%s passed", name)
		}
		if _, err := Take(t.Context(), cfg); err == nil {
			t.Errorf("%s: a snapshot was taken", name)
		}
	}
}
