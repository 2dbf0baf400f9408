package snapshot

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

// check holds a manifest against itself: what of each pack and map is in use is
// what its leaves say, and nothing is named that no leaf needs.
func (r *rig) check(m catalog.Manifest) {
	r.t.Helper()
	packs, bytesOf := map[uint32]int64{}, map[int]int64{}
	set := r.leaves(m)
	for _, f := range m.Files {
		noErr(r.t, set.Leaves(r.t.Context(), f, func(first int64, l catalog.Leaf) error {
			live(l, first, f.Size, func(pack uint32, n int64) { packs[pack] += n })
			return nil
		}))
		for _, ref := range f.Leaves {
			bytesOf[ref.Map] += ref.Len
		}
	}
	for _, p := range m.Packs {
		if p.Live != packs[uint32(p.N)] || p.Live > p.Raw {
			r.t.Errorf("pack %s: %d of %d bytes in use, the leaves say %d", p.Ref.Name, p.Live, p.Raw, packs[uint32(p.N)])
		}
	}
	for _, p := range m.Maps {
		if p.Live != bytesOf[p.N] || p.Live > p.Raw {
			r.t.Errorf("map %s: %d of %d bytes in use, the files say %d", p.Ref.Name, p.Live, p.Raw, bytesOf[p.N])
		}
	}
}

// holds wants a snapshot's files to be those of pg's data directory as it lies,
// pg being stopped or still since before the snapshot.
func (r *rig) holds(s catalog.Snapshot, dir string) {
	r.t.Helper()
	m := r.manifest(s)
	r.check(m)
	got := r.t.TempDir()
	r.unpack(m, got)
	for _, f := range m.Files {
		if f.Kind != catalog.FileRelation {
			continue
		}
		want, err := os.ReadFile(filepath.Join(dir, f.Path))
		noErr(r.t, err)
		blot(f.Path, want, m.Header.Facts.ChecksumsStart == 1)
		have, err := os.ReadFile(filepath.Join(got, f.Path))
		noErr(r.t, err)
		if !bytes.Equal(have, want) {
			r.t.Errorf("%s differs: %d bytes, %d in the data directory", f.Path, len(have), len(want))
		}
	}
}

// DESIGN 4: every snapshot is complete, and stores what changed alone.
func TestSecondSnapshotStoresWhatChangedAndHoldsEverything(t *testing.T) {
	pg := startPG(t)
	fill(pg, "steady", 20000)
	fill(pg, "goes", 3000)
	fill(pg, "shrinks", 12000)
	eachSource(t, func(t *testing.T, source string) {
		r := newRig(t)
		pg.Exec("CREATE TABLE IF NOT EXISTS goes (id int)")
		pg.Exec("CHECKPOINT")
		first := r.take(r.config(pg, source))
		pg.Exec("UPDATE steady SET pad = 'new' WHERE id % 4000 = 7")
		pg.Exec("DROP TABLE goes")
		pg.Exec("DELETE FROM shrinks WHERE id > 5000")
		pg.Exec("VACUUM shrinks")
		pg.Exec("CREATE TABLE fresh_" + source + " AS SELECT generate_series(1, 20000) i")
		pg.Exec("CHECKPOINT")
		second := r.take(r.config(pg, source))
		r.holds(second, pg.DataDir)
		m := r.manifest(second)
		if m.Header.Base != first.ID || second.NewBytes > first.NewBytes/4 || second.StoredSize < first.NewBytes/2 {
			t.Errorf("base %q, %d new bytes of %d, the first had %d", m.Header.Base, second.NewBytes, second.StoredSize, first.NewBytes)
		}
		third := r.take(r.config(pg, source)) // copies what is left of the first pack afresh
		r.holds(third, pg.DataDir)
		fourth := r.take(r.config(pg, source))
		r.holds(fourth, pg.DataDir)
		if base := r.manifest(fourth).Header.Base; base != third.ID || fourth.NewBytes > 1<<20 {
			t.Errorf("base %q, %d new bytes where next to nothing changed", base, fourth.NewBytes)
		}
		full := r.config(pg, source)
		full.Full = true
		if s := r.take(full); r.manifest(s).Header.Base != "" || len(r.manifest(s).Packs) > 2 {
			t.Error("a full snapshot refers to older ones")
		}
	})
}

// C-17: the time of a file's last change says nothing.
func TestAPageThatChangesUnderAnUnchangedTimeIsStored(t *testing.T) {
	pg := startPG(t, pgtest.WithoutChecksums())
	fill(pg, "sly", 500)
	r := newRig(t)
	r.take(r.config(pg, SourceFiles))
	path := pgtest.Value[string](pg, "SELECT pg_relation_filepath('sly')")
	name := filepath.Join(pg.DataDir, path)
	before, err := os.Stat(name)
	noErr(t, err)
	spoil(t, pg, "sly", 3, 8000, []byte("changed"))
	noErr(t, os.Chtimes(name, before.ModTime(), before.ModTime()))
	pg.Start()
	s := r.take(r.config(pg, SourceFiles))
	r.holds(s, pg.DataDir)
}

// C-20: after checksums were switched nothing older is compared with.
func TestAnOlderSnapshotThatDoesNotFitIsNoBase(t *testing.T) {
	pg := startPG(t, pgtest.WithoutChecksums())
	r := newRig(t)
	first := r.take(r.config(pg, SourceFiles))
	for name, change := range map[string]func(*TakeConfig){
		"another reader":     func(c *TakeConfig) { c.Fingerprints = []string{"fedcba9876543210"} },
		"another key":        func(c *TakeConfig) { c.Keys.Epoch = 2 },
		"another lineage":    func(c *TakeConfig) { c.Epoch = 2 },
		"no index identity":  func(c *TakeConfig) { c.Identities = nil },
		"another's identity": func(c *TakeConfig) { c.Identities = r.data[:0] },
	} {
		cfg := r.config(pg, SourceFiles)
		change(&cfg)
		if m := r.manifest(r.take(cfg)); m.Header.Base == first.ID {
			t.Errorf("%s: compared with %s", name, m.Header.Base)
		}
	}
	if !pg.HasOwn("pg_checksums") {
		t.Logf("PostgreSQL %d is without its pg_checksums here (docs/postgresql.md)", pg.Major)
		return
	}
	pg.Stop()
	pg.Run("pg_checksums", "--enable", "-D", pg.DataDir)
	pg.Start()
	s := r.take(r.config(pg, SourceFiles))
	if m := r.manifest(s); m.Header.Base != "" || s.Pages.Checked == 0 {
		t.Errorf("checksums were switched on: base %q, %d pages checked", m.Header.Base, s.Pages.Checked)
	}
}

// Promise 6: nothing older than renew_after is referred to.
func TestNoSnapshotRefersToAPackOlderThanRenewAfter(t *testing.T) {
	pg := startPG(t)
	fill(pg, "steady", 3000)
	r := newRig(t)
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var ages []time.Duration
	for day := range 12 {
		cfg := r.config(pg, SourceFiles)
		cfg.RenewAfter = 5 * 24 * time.Hour
		cfg.Now = func() time.Time { return now.Add(time.Duration(day) * 24 * time.Hour) }
		pg.Exec("UPDATE steady SET pad = 'day' WHERE id % 500 = $1", day)
		pg.Exec("CHECKPOINT")
		s := r.take(cfg)
		m := r.manifest(s)
		r.check(m)
		if age := cfg.Now().Sub(s.Oldest); age >= cfg.RenewAfter {
			t.Errorf("day %d: the oldest pack is %s old", day, age)
		} else {
			ages = append(ages, age)
		}
		if day == 11 {
			r.holds(s, pg.DataDir)
		}
	}
	if !slices.ContainsFunc(ages, func(d time.Duration) bool { return d > 24*time.Hour }) {
		t.Errorf("nothing was ever referred to: ages %v", ages)
	}
}

// The state directory keeps the maps of the newest snapshot, and nothing else; a
// node that lost it fetches them.
func TestMapsAreCachedAndBounded(t *testing.T) {
	pg := startPG(t)
	fill(pg, "steady", 3000)
	r := newRig(t)
	for range 3 {
		pg.Exec("UPDATE steady SET pad = pad || 'x' WHERE id % 100 = 1")
		pg.Exec("CHECKPOINT")
		m := r.manifest(r.take(r.config(pg, SourceFiles)))
		want, have := map[string]bool{}, map[string]bool{}
		for _, x := range m.Maps {
			want[x.Ref.SHA256+".map"] = true
		}
		found, err := os.ReadDir(filepath.Join(r.state, "maps"))
		noErr(t, err)
		for _, e := range found {
			have[e.Name()] = true
		}
		if !maps.Equal(want, have) {
			t.Errorf("cached %v, the newest snapshot refers to %v", have, want)
		}
	}
	left, err := os.ReadDir(r.state)
	noErr(t, err)
	if len(left) != 1 {
		t.Errorf("%d entries in the state directory, want the maps alone", len(left))
	}
	noErr(t, os.RemoveAll(r.state))
	s := r.take(r.config(pg, SourceFiles))
	if r.manifest(s).Header.Base == "" || s.NewBytes > 1<<20 {
		t.Errorf("without its state: base %q, %d new bytes", r.manifest(s).Header.Base, s.NewBytes)
	}
}

func TestPacksAreRenewedByAgeAndByShare(t *testing.T) {
	now := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	pack := func(days int, live, raw int64) catalog.ManifestPack {
		id := NewID(now.AddDate(0, 0, -days))
		return catalog.ManifestPack{Ref: catalog.Ref{Name: catalog.PackName("main", id, 0, [32]byte{})}, Live: live, Raw: raw}
	}
	const day = 24 * time.Hour
	for name, c := range map[string]struct {
		packs []catalog.ManifestPack
		since time.Duration
		want  []bool
	}{
		"too old":                                {[]catalog.ManifestPack{pack(31, 9, 10), pack(3, 9, 10)}, day, []bool{true, false}},
		"ageing ones by what the time demands":   {[]catalog.ManifestPack{pack(20, 10, 10), pack(21, 10, 10), pack(22, 10, 10), pack(23, 10, 10), pack(24, 10, 10)}, 6 * day, []bool{false, false, false, true, true}},
		"the sparsest, at least one":             {[]catalog.ManifestPack{pack(1, 60, 100), pack(1, 10, 100), pack(1, 90, 100)}, day, []bool{false, true, false}},
		"one of the future is of an unknown age": {[]catalog.ManifestPack{pack(-400, 9, 10), pack(0, 9, 10)}, day, []bool{true, false}},
		"an unknown name is old":                 {[]catalog.ManifestPack{{Ref: catalog.Ref{Name: "x"}, Live: 1, Raw: 1}}, day, []bool{true}},
	} {
		if got := renewPacks(c.packs, now, now.Add(-c.since), 30*day); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
	if got := renewPacks([]catalog.ManifestPack{pack(4000, 9, 10)}, now, now.Add(-day), 0); got[0] {
		t.Error("age counts without a limit")
	}
}
