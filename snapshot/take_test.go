package snapshot

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/datadir"
	"github.com/holdfast-dr/holdfast/internal/postgres/page"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

func eachSource(t *testing.T, fn func(t *testing.T, source string)) {
	for _, source := range []string{SourceFiles, SourceStream} {
		t.Run(source, func(t *testing.T) { fn(t, source) })
	}
}

// blot does to a file what a snapshot does: it zeroes the holes of its pages.
func blot(rel string, data []byte, checksums bool) {
	name, ok := datadir.ParseRelation(rel)
	if !ok || name.Fork != datadir.Main {
		return
	}
	for at := 0; at+page.Size <= len(data); at += page.Size {
		page.Normalise(data[at:at+page.Size], name.Segment*page.SegmentBlocks+uint32(at/page.Size), checksums)
	}
}

// C-3, C-11, C-12: promise 1. Holes of pages are the one thing that is not kept.
func TestFilesComeBackByteIdentical(t *testing.T) {
	pg := startPG(t)
	fill(pg, "big", 3000)
	pg.Exec("CHECKPOINT")
	eachSource(t, func(t *testing.T, source string) {
		r := newRig(t)
		s := r.take(r.config(pg, source))
		m := r.manifest(s)
		dir := t.TempDir()
		r.unpack(m, dir)
		same := 0
		noErr(t, filepath.WalkDir(pg.DataDir, func(path string, d fs.DirEntry, err error) error {
			rel, _ := filepath.Rel(pg.DataDir, path)
			if err != nil || !strings.HasPrefix(rel, "base/") || d.IsDir() || strings.Contains(rel, "pg_internal.init") {
				return err
			}
			want, err := os.ReadFile(path)
			noErr(t, err)
			got, err := os.ReadFile(filepath.Join(dir, rel))
			blot(rel, want, true)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s differs (%v)", rel, err)
			}
			same++
			return nil
		}))
		if same < 500 {
			t.Errorf("only %d files were compared", same)
		}
		for _, left := range []string{"postmaster.pid", "postmaster.opts", "pg_wal/000000010000000000000001"} {
			if _, err := os.Stat(filepath.Join(dir, left)); err == nil {
				t.Errorf("%s was copied", left)
			}
		}
		if s.Suspect || s.Pages.Checked < 1000 || s.Pages.Bad != 0 {
			t.Errorf("suspect %v (%v), pages %+v", s.Suspect, s.Reasons, s.Pages)
		}
		facts := m.Header.Facts
		if facts.SystemID != s.SystemID || facts.ChecksumsStop != 1 || facts.CheckpointLSN < s.StartLSN || facts.WALSegSize != 16<<20 {
			t.Errorf("facts %+v", facts)
		}
		if len(m.Header.Inventory.Databases) != 3 || len(m.Header.Inventory.NotAssessed) != 0 {
			t.Errorf("inventory %+v", m.Header.Inventory)
		}
	})
}

// C-8, C-16, C-19: torn pages, growing, vanishing and truncated files are no damage.
func TestSnapshotUnderLoadStartsAndHoldsWhatWasCommittedBefore(t *testing.T) {
	pg := startPG(t)
	pg.Run("pgbench", "-i", "-q", "-s", "1", "-h", pg.SocketDir, "-p", port(pg), "-U", "postgres", "postgres")
	fill(pg, "steady", 2000)
	eachSource(t, func(t *testing.T, source string) {
		stop := churn(t, pg)
		r := newRig(t)
		before := pgtest.Value[int64](pg, "SELECT count(*) FROM pgbench_history")
		s := r.take(r.config(pg, source))
		stop()
		if s.Suspect {
			t.Fatalf("suspect: %v", s.Reasons)
		}
		copied := r.revive(s, pg)
		if n := pgtest.Value[int64](copied, "SELECT count(*) FROM steady"); n != 2000 {
			t.Errorf("%d rows of 2000", n)
		}
		if after := pgtest.Value[int64](copied, "SELECT count(*) FROM pgbench_history"); after < before {
			t.Errorf("%d rows of history, there were %d before", after, before)
		}
		copied.Run("pg_amcheck", "-h", copied.SocketDir, "-p", port(copied), "-U", "postgres", "--install-missing", "-d", "postgres")
		copied.Stop()
	})
}

// C-13, C-14: unlogged, temporary, in-place tablespace, tablespace elsewhere.
func TestOddRelationsAreTakenAsPostgreSQLWould(t *testing.T) {
	pg := startPG(t, pgtest.WithTablespace(), pgtest.WithSetting("allow_in_place_tablespaces", "on"))
	pg.Exec("CREATE TABLESPACE inside LOCATION ''")
	pg.Exec("CREATE TABLE in_side TABLESPACE side AS SELECT generate_series(1, 100) i")
	pg.Exec("CREATE TABLE in_place TABLESPACE inside AS SELECT generate_series(1, 200) i")
	pg.Exec("CREATE UNLOGGED TABLE light AS SELECT generate_series(1, 5000) i")
	conn := pg.Conn("postgres")
	_, err := conn.Exec(t.Context(), "CREATE TEMP TABLE passing AS SELECT generate_series(1, 5000) i")
	noErr(t, err)
	light := pgtest.Value[string](pg, "SELECT pg_relation_filepath('light')")
	var passing string
	noErr(t, conn.QueryRow(t.Context(), "SELECT pg_relation_filepath('passing')").Scan(&passing))
	pg.Exec("CHECKPOINT")
	eachSource(t, func(t *testing.T, source string) {
		r := newRig(t)
		s := r.take(r.config(pg, source))
		m := r.manifest(s)
		has := map[string]bool{}
		for _, f := range m.Files {
			has[f.Path] = true
		}
		if has[light] || !has[light+"_init"] || has[passing] {
			t.Errorf("unlogged main fork %v, its init fork %v, temporary table %v: want false, true, false", has[light], has[light+"_init"], has[passing])
		}
		if len(m.Header.Tablespaces) != 2 || len(m.Header.TablespaceMap) == 0 {
			t.Errorf("tablespaces %+v, map %q", m.Header.Tablespaces, m.Header.TablespaceMap)
		}
		copied := r.revive(s, pg)
		for table, want := range map[string]int64{"in_side": 100, "in_place": 200, "light": 0} {
			if n := pgtest.Value[int64](copied, "SELECT count(*) FROM "+table); n != want {
				t.Errorf("%s holds %d rows, want %d", table, n, want)
			}
		}
		copied.Stop()
	})
}

// C-19, C-21
func TestBadPageMakesTheSnapshotSuspectAndDoesNotStopIt(t *testing.T) {
	pg := startPG(t)
	fill(pg, "victim", 200)
	fill(pg, "future", 200)
	victim := spoil(t, pg, "victim", 3, 5000, []byte("damage"))
	// A page that claims a position beyond the log's end passes as recent at
	// first, and must not in the end.
	future := spoil(t, pg, "future", 2, 0, []byte{0xff, 0xff, 0, 0})
	pg.Start()
	eachSource(t, func(t *testing.T, source string) {
		r := newRig(t)
		s := r.take(r.config(pg, source))
		if !s.Suspect || s.Pages.Bad < 2 || !containsAny(s.Reasons, victim) || !containsAny(s.Reasons, future) {
			t.Errorf("suspect %v, %+v, reasons %q; want %s and %s", s.Suspect, s.Pages, s.Reasons, victim, future)
		}
		var bad []int64
		for _, f := range r.manifest(s).Files {
			if f.Path == victim {
				bad = f.Bad
			}
		}
		if len(bad) != 1 || bad[0] != 3 {
			t.Errorf("bad blocks of %s in the manifest: %v, want block 3", victim, bad)
		}
	})
}

func TestClusterWithoutChecksumsIsTakenAndSaysThatNothingWasChecked(t *testing.T) {
	pg := startPG(t, pgtest.WithoutChecksums())
	r := newRig(t)
	s := r.take(r.config(pg, SourceFiles))
	if s.Pages.Checked != 0 || s.Pages.Skipped < 1000 || s.Suspect {
		t.Errorf("pages %+v, suspect %v: want all skipped", s.Pages, s.Suspect)
	}
}

// W1 to W4 of docs/format.md.
func TestListNamesEveryObjectAndChainContinues(t *testing.T) {
	pg := startPG(t)
	r := newRig(t)
	wal := catalog.Ref{Name: "clusters/main/wal/00000001/00000001/x.age", Size: 3, SHA256: strings.Repeat("0", 64)}
	stored, err := r.vault.Writer().Put(t.Context(), wal.Name, []byte("wal"), putOptions)
	noErr(t, err)
	wal.SHA256 = stored.SHA256
	cfg := r.config(pg, SourceFiles)
	cfg.WALRefs = refs(wal)
	first := r.take(cfg)
	second := r.take(cfg)
	list, err := r.vault.Reader().Get(t.Context(), first.Objects.Name, first.Objects.Size, first.Objects.SHA256)
	noErr(t, err)
	named, err := catalog.DecodeObjects(bytes.NewReader(list))
	noErr(t, err)
	want := map[string]bool{wal.Name: true, first.Manifest.Name: true}
	m := r.manifest(first)
	for _, p := range m.Packs {
		want[p.Ref.Name] = true
	}
	for _, p := range m.Maps {
		want[p.Ref.Name] = true
	}
	for _, ref := range named {
		if !want[ref.Name] {
			t.Errorf("the list names %s", ref.Name)
		}
		delete(want, ref.Name)
	}
	if len(want) > 0 {
		t.Errorf("the list lacks %v", want)
	}
	if first.Number != 1 || second.Number != 2 || second.Prev == "" || first.ID >= second.ID && first.ID[:16] != second.ID[:16] {
		t.Errorf("chain: %s is %+v, %s is %+v", first.ID, first.Link, second.ID, second.Link)
	}
	if got := r.notes(); len(got) != 3 {
		t.Errorf("the note is in zones %v", got)
	}
}

// A clock that steps back gives ids that sort before those there are.
func TestTheChainOfNotesGoesOnAfterTheClockSteppedBack(t *testing.T) {
	pg := startPG(t)
	r := newRig(t)
	cfg := r.config(pg, SourceFiles)
	cfg.State = ""
	var before catalog.Snapshot
	for n, at := range []time.Duration{0, -time.Hour, -time.Minute} {
		cfg.Now = func() time.Time { return time.Now().Add(at) }
		s := r.take(cfg)
		prev := ""
		if n > 0 {
			name := catalog.SnapshotName("main", before.ID)
			_, hash, err := openSnapshot(t.Context(), r.vault.Reader(), r.trust, name, "main")
			noErr(t, err)
			prev = hash
		}
		if s.Number != int64(n+1) || s.Prev != prev {
			t.Errorf("%s, after %s: %+v, want number %d after %q", s.ID, before.ID, s.Link, n+1, prev)
		}
		before = s
	}
}

func TestStrayNamesThatAreNotUTF8AreLeftOutAndTold(t *testing.T) {
	pg := startPG(t)
	noErr(t, os.MkdirAll(filepath.Join(pg.DataDir, "stray\xff"), 0o700))
	noErr(t, os.WriteFile(filepath.Join(pg.DataDir, "stray\xff", "a"), []byte("x"), 0o600))
	noErr(t, os.WriteFile(filepath.Join(pg.DataDir, "caf\xe9"), []byte("x"), 0o600))
	noErr(t, pgtest.Own(pg.DataDir))
	eachSource(t, func(t *testing.T, source string) {
		r := newRig(t)
		told := r.manifest(r.take(r.config(pg, source))).Header.Inventory.NotAssessed
		if len(told) != 3 || !containsAny(told, `caf\xe9`) {
			t.Errorf("told of %q, want the directory and two files", told)
		}
	})
}
