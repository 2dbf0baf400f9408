package vault_test

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/zone"
	"github.com/holdfast-dr/holdfast/internal/zone/zonetest"
)

// faultLog is what a Scrub told.
type faultLog struct {
	mu   sync.Mutex
	told []string
}

func (f *faultLog) add(zone, name string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.told = append(f.told, fmt.Sprintf("%s %s hidden=%t", zone, name, errors.Is(err, vault.ErrHidden)))
}

func (f *faultLog) take() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := f.told
	f.told = nil
	slices.Sort(out)
	return out
}

func scrubConfig(f *faultLog) vault.ScrubConfig {
	return vault.ScrubConfig{Every: time.Hour, Locks: map[string]bool{"a": true, "b": true, "c": true}, Now: time.Now, OnFault: f.add}
}

func TestRollingVerificationSeesHidesRotAndShortLocksAndMendsThem(t *testing.T) {
	c := launch(t)
	names := []string{"clusters/x/one.age", "clusters/x/two.age", "tombstones/1/tombstone.note"}
	until := time.Now().Add(time.Hour).Truncate(time.Second)
	var targets []vault.Target
	for i, name := range names {
		if _, err := c.Writer().Put(t.Context(), name, body(i), vault.PutOptions{LockUntil: until.Add(-30 * time.Minute)}); err != nil {
			t.Fatal(err)
		}
		targets = append(targets, vault.Target{Need: need(name, body(i)), LockUntil: until})
	}
	eventually(t, "all hold all", func() bool { return c.Behind()["a"]+c.Behind()["b"]+c.Behind()["c"] == 0 })
	zonetest.Vandalise(t, c.servers[0], names[0])
	rot(t, c.servers[1].Path(names[1]))
	if l, err := c.Reader().Only("a").List(t.Context(), "clusters/"); err != nil || len(l.Objects) != 2 || l.Objects[0].Size != int64(len(body(0))) {
		t.Errorf("a listing of a bucket that locks shows what lies on top: %+v, %v", l.Objects, err)
	}
	log := &faultLog{}
	s, err := c.OpenScrub(scrubConfig(log))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	s.Expect(targets)
	if err := s.Turn(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	want := []string{"a " + names[0] + " hidden=true", "b " + names[1] + " hidden=false"}
	if got := log.take(); !slices.Equal(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
	for _, cover := range s.Coverage() {
		if cover.Objects != 3 || cover.Verified != 3 || cover.Bad+cover.Hidden+cover.Short != 0 {
			t.Errorf("covered %+v", cover)
		}
	}
	for _, z := range c.zones {
		for _, name := range names {
			if o, err := z.Stat(t.Context(), name, ""); err != nil || o.LockedUntil.Before(until) && z.Name() != "a" && name != names[1] {
				t.Errorf("zone %s: %s is locked until %s, want %s (%v)", z.Name(), name, o.LockedUntil, until, err)
			}
		}
		if !c.complete(z.Name(), map[string][]byte{names[0]: body(0), names[1]: body(1), names[2]: body(2)}) {
			t.Errorf("zone %s was not mended", z.Name())
		}
	}
	if err := s.Turn(t.Context(), time.Minute); err != nil || len(log.take()) != 0 {
		t.Errorf("the second turn: %v, %q", err, log.take())
	}
	if errs := c.Remover().RemoveAll(t.Context(), names[0]); !errors.Is(errs["a"], zone.ErrLocked) {
		t.Errorf("removal of what is locked: %v", errs)
	}
	for _, cover := range s.Coverage() { // it is let go, though its locks keep it there
		if cover.Objects != 2 || cover.Verified != 2 {
			t.Errorf("with one object on its way out: %+v", cover)
		}
	}
}

// The state of verification outlives the process; a zone that is away is left, and its
// locks are lengthened when it is back: what has to be is found again in the repository.
func TestLocksThatAZoneMissedAreFoundAgainAndLengthened(t *testing.T) {
	c := launch(t)
	const name = "clusters/x/one.age"
	until := time.Now().Add(time.Hour).Truncate(time.Second)
	if _, err := c.Writer().Put(t.Context(), name, body(1), vault.PutOptions{LockUntil: until.Add(-30 * time.Minute)}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all hold it", func() bool { return c.Behind()["a"]+c.Behind()["b"]+c.Behind()["c"] == 0 })
	target := []vault.Target{{Need: need(name, body(1)), LockUntil: until}}
	log := &faultLog{}
	c.servers[2].Kill()
	s, err := c.OpenScrub(scrubConfig(log))
	if err != nil {
		t.Fatal(err)
	}
	s.Expect(target)
	if err := s.Turn(t.Context(), time.Minute); !errors.Is(err, zone.ErrUnreachable) {
		t.Errorf("a turn without zone c: %v", err)
	}
	if err := s.Close(); err != nil { // the daemon ends before the zone is back
		t.Fatal(err)
	}
	c.servers[2].Start()
	if s, err = c.OpenScrub(scrubConfig(log)); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	s.Expect(target)
	eventually(t, "the lock in zone c", func() bool {
		_ = s.Turn(t.Context(), time.Minute)
		o, err := c.zones[2].Stat(t.Context(), name, "")
		return err == nil && !o.LockedUntil.Before(until)
	})
	for _, cover := range s.Coverage() {
		if cover.Verified != 1 || cover.Short != 0 {
			t.Errorf("covered %+v", cover)
		}
	}
}
