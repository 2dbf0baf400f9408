package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/seal"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/zone"
	"github.com/holdfast-dr/holdfast/internal/zone/dirzone"
)

// store is a node's world over three directories with one cluster, for tests that
// need neither a server nor a process.
type store struct {
	*node
	t    *testing.T
	dirs []string
}

func newStore(t *testing.T) *store {
	t.Helper()
	s := &store{t: t}
	fatal := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	skey, vkey, err := seal.NewSigningKey("node")
	fatal(err)
	w := &world{cfg: &configs.Config{}, now: time.Now, repoID: "repo", holder: &holding{}}
	w.signer, w.vkey, err = seal.LoadSigner(skey)
	fatal(err)
	w.trust, err = seal.NewTrust([]seal.TrustedSigner{{VKey: vkey, Clusters: []string{"*"}, May: []string{"snapshot", "wal", "tombstone", "ledger"}}})
	fatal(err)
	for _, name := range zoneLetters {
		dir := t.TempDir()
		d, err := dirzone.New(dir)
		fatal(err)
		id := zone.Identity{Format: zone.Format, Repository: "repo", Zone: name}
		fatal(zone.Initialise(t.Context(), d, id))
		s.dirs, w.zones = append(s.dirs, dir), append(w.zones, zone.Open(name, d, id, zone.Options{}))
	}
	w.vault, err = vault.Open(vault.Config{Zones: w.zones, Quorum: 2, State: t.TempDir(), NoHeal: w.noHeal, RetryAfter: 5 * time.Millisecond})
	fatal(err)
	t.Cleanup(func() { fatal(w.vault.Close()) })
	w.catalog = catalog.NewReader(w.vault.Reader(), w.trust)
	s.node = &node{world: w, clusters: map[string]*protected{"main": {}}}
	w.holder.node = s.node
	return s
}

func (s *store) put(name string, body []byte) catalog.Ref {
	s.t.Helper()
	if _, err := s.vault.Writer().Put(s.t.Context(), name, body, vault.PutOptions{}); err != nil {
		s.t.Fatal(err)
	}
	sum := sha256.Sum256(body)
	return catalog.Ref{Name: name, Size: int64(len(body)), SHA256: hex.EncodeToString(sum[:])}
}

func (s *store) signed(name, kind string, body any) {
	s.t.Helper()
	text, err := seal.SignNote(kind, body, s.signer)
	if err != nil {
		s.t.Fatal(err)
	}
	s.put(name, text)
}

// snapshot commits one that needs refs.
func (s *store) snapshot(id string, refs ...catalog.Ref) {
	s.t.Helper()
	snap := catalog.Snapshot{Cluster: "main", ID: id, Kind: "physical", Manifest: s.put(catalog.ManifestName("main", id), []byte("manifest of "+id))}
	list, err := catalog.EncodeObjects(append(refs, snap.Manifest))
	if err != nil {
		s.t.Fatal(err)
	}
	snap.Objects = s.put(catalog.ObjectsName("main", id), list)
	s.signed(catalog.SnapshotName("main", id), catalog.KindSnapshot, snap)
}

func (s *store) object(name func(cluster, id string, n int, sum [32]byte) string, id, text string) catalog.Ref {
	s.t.Helper()
	return s.put(name("main", id, 0, sha256.Sum256([]byte(text))), []byte(text))
}

func (s *store) has(zone int, r catalog.Ref) bool {
	body, err := os.ReadFile(filepath.Join(s.dirs[zone], r.Name))
	return err == nil && len(body) == int(r.Size)
}

func (s *store) lose(zone int, refs ...catalog.Ref) {
	s.t.Helper()
	for _, r := range refs {
		if err := os.Remove(filepath.Join(s.dirs[zone], r.Name)); err != nil {
			s.t.Fatal(err)
		}
	}
}

// D7: a forgotten snapshot's objects that a newer one needs are copied and repaired
// like its own, and nothing else of the forgotten one is.
func TestBackFillBringsBackOfAForgottenSnapshotWhatIsNeededAndNothingElse(t *testing.T) {
	s := newStore(t)
	needed, leaves := s.object(catalog.PackName, "base", "pages"), s.object(catalog.MapName, "base", "leaves")
	dead := s.object(catalog.PackName, "base", "dead pages")
	s.snapshot("base", needed, leaves, dead)
	s.snapshot("next", needed, leaves)
	s.signed(catalog.ForgottenName("main", "m"), catalog.KindForgotten, catalog.Forgotten{Cluster: "main", ID: "m", Snapshots: []string{"base"}})
	s.await("all zones have all", func() bool {
		return s.vault.Behind()["a"]+s.vault.Behind()["b"]+s.vault.Behind()["c"] == 0 && s.has(2, dead)
	})
	s.refreshMarks(t.Context())
	s.lose(2, needed, leaves, dead)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.vault.Run(ctx) }()
	s.await("what is needed came back", func() bool { return s.has(2, needed) && s.has(2, leaves) })
	s.await("nothing is owed", func() bool { return s.vault.Behind()["c"] == 0 })
	cancel()
	if err := <-done; err != nil || s.has(2, dead) {
		t.Errorf("a pack that nothing needs was brought back (%v)", err)
	}
	s.lose(1, leaves)
	if healed, err := s.vault.Writer().Heal(t.Context(), leaves.Name, leaves.Size, leaves.SHA256); err != nil || !slices.Equal(healed, []string{"b"}) {
		t.Errorf("healed %v, %v", healed, err)
	}
}

func (s *store) await(what string, ok func() bool) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			s.t.Fatalf("not within 30 s: %s", what)
		}
	}
}

func TestScrubLooksAtMapsAndAtPacksOfForgottenSnapshots(t *testing.T) {
	s := newStore(t)
	needed, leaves := s.object(catalog.PackName, "base", "pages"), s.object(catalog.MapName, "next", "leaves")
	s.snapshot("base", needed)
	s.snapshot("next", needed, leaves)
	s.signed(catalog.ForgottenName("main", "m"), catalog.KindForgotten, catalog.Forgotten{Cluster: "main", ID: "m", Snapshots: []string{"base"}})
	s.await("all zones have all", func() bool {
		return s.vault.Behind()["a"]+s.vault.Behind()["b"]+s.vault.Behind()["c"] == 0 && s.has(2, leaves)
	})
	s.lose(0, leaves)
	s.lose(1, needed)
	doc, err := s.scrub(t.Context(), "", &progress{})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{leaves.Name, needed.Name} {
		if z := doc.Zones[i]; z.Missing != 1 || len(z.Faults) != 1 || z.Faults[0].Name != want {
			t.Errorf("zone %s: %+v, want %s to be missing", z.Name, z, want)
		}
	}
	if z := doc.Zones[2]; z.Missing+z.Wrong > 0 || z.Good == 0 {
		t.Errorf("zone %s: %+v", z.Name, z)
	}
}

// A mark of slices keeps back-fill from them, and from nothing else: a history stands at
// the place where its timeline begins, within the first slices of it.
func TestAMarkOfSlicesLeavesSegmentsToBackfill(t *testing.T) {
	m := marks{covered: []catalog.WALSpan{{Epoch: 1, Timeline: 1, From: 0x1000000, To: 0x2001000}}}
	for at, want := range map[[2]uint64]bool{{0x1000000, 0x1200010}: true, {0x2000000, 0x2001000}: true, {0x1000000, 0x2000000}: false, {0x2001000, 0x2003000}: false, {0x1200010, 0x1200010}: false} {
		below := "wal" + strings.SplitN(catalog.WALNoteName("main", 1, 1, at[0], at[1], "0123abcd"), "/wal", 2)[1]
		if got := m.covers(below); got != want {
			t.Errorf("%s: barred %t, want %t", below, got, want)
		}
	}
}

// A history stays as long as its timeline does, whatever of its WAL has gone.
func TestAMarkOfWALLeavesTheHistoryWithinIt(t *testing.T) {
	at := catalog.WALSpan{Epoch: 1, Timeline: 2, From: 0x1200010, To: 0x1200010}
	m := marks{spans: []catalog.WALSpan{{Epoch: 1, Timeline: 2, From: 0x1000000, To: 0x5000000}}}
	below := "wal" + strings.SplitN(catalog.WALNoteName("main", 1, 2, uint64(at.From), uint64(at.To), "0123abcd"), "/wal", 2)[1]
	r := walRecord{gone: m.spans}
	if m.covers(below) || r.letGo(catalog.WALEntry{Epoch: 1, Timeline: 2, From: at.From, To: at.To}) {
		t.Error("the history of a timeline is barred because of the WAL around it")
	}
	if m.spans = append(m.spans, at); !m.covers(below) {
		t.Error("a history that goes is not barred")
	}
}
