package snapshot

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/page"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

// The scenes of docs/checklist.md's last table that a Take alone can play.

// tear makes torn pages of a file that the server leaves alone: the second half of
// a page is another's for a moment, as while a write is under way, at random places
// until the returned function is called.
func tear(t *testing.T, path string) (stop func() (torn int)) {
	t.Helper()
	whole, err := os.ReadFile(path)
	noErr(t, err)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	noErr(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan int)
	go func() {
		defer f.Close()
		r := rand.New(rand.NewPCG(1, 2))
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for torn := 0; ; torn++ {
			select {
			case <-ctx.Done():
				done <- torn
				return
			case <-tick.C:
			}
			half := r.Int64N(int64(len(whole)/page.Size))*page.Size + page.Size/2
			_, err1 := f.WriteAt(make([]byte, page.Size/2), half)
			_, err2 := f.WriteAt(whole[half:half+page.Size/2], half)
			if err1 != nil || err2 != nil {
				t.Errorf("tearing pages: %v, %v", err1, err2)
			}
		}
	}()
	return func() int { cancel(); return <-done }
}

// C-19, promise 4: pgbench writes, pages are torn at random while they are read,
// and the copy is as good as if nothing had happened, the first time and when it is
// compared with the snapshot before.
func TestT10PagesTornAtRandomUnderLoadAreNoDamage(t *testing.T) {
	pg := startPG(t)
	pg.Run("pgbench", "-i", "-q", "-s", "1", "-h", pg.SocketDir, "-p", port(pg), "-U", "postgres", "postgres")
	fill(pg, "steady", 20000)
	pg.Exec("VACUUM steady")
	want := pgtest.Value[string](pg, "SELECT md5(string_agg(pad, '' ORDER BY id)) FROM steady")
	pg.Exec("CHECKPOINT")
	path := filepath.Join(pg.DataDir, pgtest.Value[string](pg, "SELECT pg_relation_filepath('steady')"))
	r := newRig(t)
	var last catalog.Snapshot
	for i := range 3 {
		stopLoad, stopTears := churn(t, pg), tear(t, path)
		last = r.take(r.config(pg, SourceFiles))
		torn := stopTears()
		stopLoad()
		if last.Suspect || torn < 20 {
			t.Fatalf("snapshot %d with %d torn pages: suspect %v", i, torn, last.Reasons)
		}
	}
	copied := r.revive(last, pg)
	if got := pgtest.Value[string](copied, "SELECT md5(string_agg(pad, '' ORDER BY id)) FROM steady"); got != want {
		t.Error("the table that was torn came back with other rows")
	}
	copied.Run("pg_amcheck", "-h", copied.SocketDir, "-p", port(copied), "-U", "postgres", "--install-missing", "-d", "postgres")
}

// C-21: the page is told, the snapshot is suspect and no base, and when the page is
// mended the next one is compared with the last good one.
func TestT11ABadPageIsToldAndItsSnapshotIsNoBase(t *testing.T) {
	pg := startPG(t)
	fill(pg, "victim", 200)
	r := newRig(t)
	cfg := r.config(pg, SourceFiles)
	good := r.take(cfg)
	path := pgtest.Value[string](pg, "SELECT pg_relation_filepath('victim')")
	pg.Exec("CHECKPOINT")
	pg.Stop()
	whole, err := os.ReadFile(filepath.Join(pg.DataDir, path))
	noErr(t, err)
	put := func(data []byte) {
		noErr(t, os.WriteFile(filepath.Join(pg.DataDir, path), data, 0o600))
		pg.Start()
	}
	bad := append([]byte(nil), whole...)
	bad[3*page.Size+5000] ^= 0xff
	put(bad)
	suspect := r.take(cfg)
	if !suspect.Suspect || suspect.Pages.Bad != 1 || !containsAny(suspect.Reasons, path) {
		t.Fatalf("suspect %v, pages %+v, reasons %q; want %s", suspect.Suspect, suspect.Pages, suspect.Reasons, path)
	}
	pg.Stop()
	put(whole)
	if next := r.take(cfg); next.Suspect || r.manifest(next).Header.Base != good.ID {
		t.Errorf("after the page was mended: suspect %v, compared with %q, want %s", next.Reasons, r.manifest(next).Header.Base, good.ID)
	}
}

// prolong makes a table's file n pages long: what is added was never written, as
// after an extension that a crash cut off.
func prolong(t *testing.T, pg *pgtest.Cluster, path string, n int64) {
	t.Helper()
	for seg := int64(0); n > 0; seg++ {
		name := filepath.Join(pg.DataDir, path)
		if seg > 0 {
			name = fmt.Sprintf("%s.%d", name, seg)
		}
		f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o600)
		noErr(t, err)
		noErr(t, f.Truncate(min(n, page.SegmentBlocks)*page.Size))
		noErr(t, f.Close())
		noErr(t, pgtest.Own(name))
		n -= page.SegmentBlocks
	}
}

// C-16: relations are dropped and made, and one grows into a second file and is cut
// back out of it, while they are copied and compared with how they were.
func TestT12RelationsComeGoGrowAndShrinkAcrossAGigabyte(t *testing.T) {
	pg := startPG(t)
	fill(pg, "anchor", 3000)
	fill(pg, "goes", 100)
	fill(pg, "long", 100)
	path := pgtest.Value[string](pg, "SELECT pg_relation_filepath('long')")
	pg.Exec("CHECKPOINT")
	pg.Stop()
	prolong(t, pg, path, page.SegmentBlocks-1)
	pg.Start()
	r := newRig(t)
	r.take(r.config(pg, SourceFiles))
	r.during(pg, []string{
		"DROP TABLE goes", "CREATE TABLE comes AS SELECT generate_series(1, 1000) i",
		"INSERT INTO long SELECT i, repeat('g', 900) FROM generate_series(101, 400) i", "CHECKPOINT",
	}, map[string]int64{
		"SELECT count(*) FROM long": 400, "SELECT count(*) FROM comes": 1000, "SELECT count(*) FROM anchor": 3000,
		"SELECT count(*) FROM pg_class WHERE relname = 'goes'": 0, "SELECT (pg_relation_size('long') > 1024 * 1024 * 1024)::int": 1,
	})
	r.during(pg, []string{"DROP TABLE comes", "DELETE FROM long WHERE id > 50", "VACUUM (TRUNCATE, INDEX_CLEANUP ON) long", "CHECKPOINT"}, map[string]int64{
		"SELECT count(*) FROM long": 50, "SELECT count(*) FROM anchor": 3000, "SELECT pg_relation_size('long') / 8192 / 100": 0,
	})
}

// during takes a snapshot and does sql once the copy has begun; what comes back
// must answer queries with numbers.
func (r *rig) during(pg *pgtest.Cluster, sql []string, want map[string]int64) {
	r.t.Helper()
	cfg := r.config(pg, SourceFiles)
	cfg.Workers = 1
	var once sync.Once
	cfg.Progress = func(p Progress) {
		if p.Step == "copy" {
			once.Do(func() {
				for _, s := range sql {
					pg.Exec(s)
				}
			})
		}
	}
	s := r.take(cfg)
	if s.Suspect {
		r.t.Fatalf("suspect: %v", s.Reasons)
	}
	copied := r.revive(s, pg)
	defer copied.Stop()
	for query, n := range want {
		if got := pgtest.Value[int64](copied, query); got != n {
			r.t.Errorf("%s: %d, want %d", query, got, n)
		}
	}
}

// C-14: a tablespace on another mount than the data directory's comes along, and
// back, with both sources.
func TestT13ATablespaceOnAnotherMountComesBack(t *testing.T) {
	pg := startPG(t)
	side, err := os.MkdirTemp("/dev/shm", "hf-side")
	noErr(t, err)
	t.Cleanup(func() { os.RemoveAll(side) })
	noErr(t, pgtest.Own(side))
	if device(t, side) == device(t, pg.DataDir) {
		t.Fatalf("/dev/shm is no mount of its own here, and %s lies in the same file system: mount a tmpfs there", pg.DataDir)
	}
	pg.Exec("CREATE TABLESPACE side LOCATION '" + side + "'")
	pg.Exec("CREATE TABLE far TABLESPACE side AS SELECT generate_series(1, 10000) i")
	pg.Exec("CREATE UNLOGGED TABLE light TABLESPACE side AS SELECT generate_series(1, 100) i")
	eachSource(t, func(t *testing.T, source string) {
		r := newRig(t)
		s := r.take(r.config(pg, source))
		if spaces := r.manifest(s).Header.Tablespaces; len(spaces) != 1 || spaces[0].Path != side {
			t.Fatalf("tablespaces %+v", spaces)
		}
		copied := r.revive(s, pg)
		defer copied.Stop()
		for table, want := range map[string]int64{"far": 10000, "light": 0} {
			if n := pgtest.Value[int64](copied, "SELECT count(*) FROM "+table); n != want {
				t.Errorf("%s holds %d rows, want %d", table, n, want)
			}
		}
	})
}

func device(t *testing.T, path string) uint64 {
	t.Helper()
	info, err := os.Stat(path)
	noErr(t, err)
	return info.Sys().(*syscall.Stat_t).Dev
}
