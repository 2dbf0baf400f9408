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
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// tend is the rolling verification of a repository that was just made, which reads what
// must be where anew when it is told to.
func tend(t *testing.T) (*rig, *tending) {
	t.Helper()
	r := newRig(t, nil, false)
	cfg, err := configs.Load(r.host("db", "host=/nowhere user=nobody dbname=none"))
	must(t, err)
	r.hold("db", exitNotHeld, "init") // there is no server
	n, err := (&env{}).openNode(t.Context(), cfg, zap.NewNop())
	must(t, err)
	t.Cleanup(func() { must(t, n.close()) })
	f := &findings{seen: map[string]found{}}
	s, err := n.vault.OpenScrub(vault.ScrubConfig{Every: time.Nanosecond, Locks: n.lockingZones(), Now: n.now, OnFault: f.add})
	must(t, err)
	n.onClose(s.Close)
	return r, &tending{n: n, s: s, found: f, refresh: time.Hour}
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
	r, tending := tend(t)
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
