package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/scheduler"
)

// node is the database host's, without a daemon.
func (r *rig) node() *node {
	r.t.Helper()
	cfg, err := configs.Load(r.path("db/holdfast.yaml"))
	must(r.t, err)
	n, err := (&env{}).openNode(r.t.Context(), cfg, zap.NewNop())
	must(r.t, err)
	r.t.Cleanup(func() { must(r.t, n.close()) })
	return n
}

// tend is the rolling verification of a repository that was just made, which reads each
// copy once in every.
func tend(t *testing.T, every time.Duration) (*rig, *tending) {
	t.Helper()
	r := newRig(t, pgtest.Start(t), false)
	r.configure()
	n := r.node()
	f := &findings{seen: map[string]found{}}
	s, err := n.vault.OpenScrub(vault.ScrubConfig{Every: every, Locks: n.lockingZones(), Now: n.now, OnFault: f.add})
	must(t, err)
	n.onClose(s.Close)
	return r, &tending{n: n, s: s, found: f, known: knownRefs{}, refresh: time.Hour}
}

// open are the details of the open incidents by their keys.
func (t *tending) open(test *testing.T) map[string]string {
	test.Helper()
	list, err := t.n.incidents.List()
	must(test, err)
	out := map[string]string{}
	for _, i := range list {
		if i.Open() {
			out[i.Key] = i.Detail
		}
	}
	return out
}

func TestTamperingIsToldAlsoWhereACopyIsMissing(t *testing.T) {
	r, tending := tend(t, time.Nanosecond)
	must(t, tending.turn(t.Context()))
	if open := tending.open(t); len(open) > 0 {
		t.Fatalf("of a new repository: %v", open)
	}
	lost := catalog.DigestKeyName(1)
	for _, z := range zoneLetters {
		must(t, os.Remove(r.path("zones/"+filepath.Join(z, lost))))
	}
	tending.found.add("a", "beneath", vault.ErrHidden)
	must(t, tending.turn(t.Context()))
	open := tending.open(t)
	if len(open) != 1 || !strings.Contains(open["zone-tampered/a"], "1 objects lie beneath") || !strings.Contains(open["zone-tampered/a"], "first beneath") {
		t.Errorf("by what was known before: %v", open)
	}
	tending.found.add("a", "beneath", vault.ErrHidden)
	tending.found.add("a", "lost", fs.ErrNotExist)
	tending.n.tellCopies(t.Context(), vault.Coverage{Zone: "a", Bad: 1, Short: 1, Hidden: 1}, tending.found.take("a"))
	open = tending.open(t)
	for _, key := range []string{"copies-bad/a", "locks-short/a"} {
		if !strings.HasPrefix(open[key], "lost: ") {
			t.Errorf("%s tells of %q", key, open[key])
		}
	}
}

func TestTheTurnAfterASnapshotKnowsOfIt(t *testing.T) {
	_, tending := tend(t, time.Hour)
	must(t, tending.turn(t.Context()))
	for _, c := range tending.n.coverage() {
		if c.Objects == 0 || c.Verified != c.Objects {
			t.Errorf("of a new repository: %+v", c)
		}
	}
	before := tending.n.coverage()["a"].Objects
	_, err := tending.n.doSnapshot(t.Context(), scheduler.Job{}, order{Cluster: "cms"}, func(any) {})
	must(t, err)
	must(t, tending.turn(t.Context()))
	for _, c := range tending.n.coverage() {
		if c.Objects < before+4 || c.Verified != c.Objects {
			t.Errorf("after a snapshot, beside %d objects: %+v", before, c)
		}
	}
	read := tending.at
	must(t, tending.turn(t.Context()))
	if !tending.at.Equal(read) {
		t.Error("all notes are read again where nothing was taken")
	}
}

// A note that was believed once is not forgotten where every copy is damaged later.
func TestANoteThatIsDamagedEverywhereIsStillMissed(t *testing.T) {
	r, tending := tend(t, time.Nanosecond)
	_, err := tending.n.doSnapshot(t.Context(), scheduler.Job{}, order{Cluster: "cms"}, func(any) {})
	must(t, err)
	must(t, tending.turn(t.Context()))
	for _, z := range zoneLetters {
		r.rot(z, "clusters/cms/lineages/*.note")
	}
	tending.at = time.Time{}
	must(t, tending.turn(t.Context()))
	for _, c := range tending.n.coverage() {
		if c.Bad != 1 {
			t.Errorf("with one note damaged in every zone: %+v", c)
		}
	}
}
