package vault_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/zone"
	"github.com/holdfast-dr/holdfast/internal/zone/zonetest"
)

// took is how long do takes on the bubble's clock, which stands still while
// anything works and moves while all wait.
func took(do func()) time.Duration {
	begun := time.Now()
	do()
	return time.Since(begun)
}

// pass lets the bubble's time pass.
func pass(d time.Duration) { <-time.After(d) }

func TestAZoneThatHangsIsWaitedForOnceInAWhile(t *testing.T) {
	const grace = time.Second
	synctest.Test(t, func(t *testing.T) {
		h := build(t, 3, 2, func(c *vault.Config) { c.SlowAfter, c.State = grace, "" })
		list := func() vault.Listing {
			l, err := h.Reader().List(t.Context(), "clusters/")
			if err != nil || !l.Complete {
				t.Fatalf("%+v, %v", l, err)
			}
			return l
		}
		absent := func() {
			if gone, err := h.Reader().Absent(t.Context(), "clusters/x/one.age"); !gone || err != nil {
				t.Fatalf("Absent = %t, %v", gone, err)
			}
		}
		release := h.zones[1].suspend()
		if d := took(func() { list() }); d != grace {
			t.Errorf("at first it is given %s, want %s", d, grace)
		}
		for range 20 {
			if d := took(func() { list(); absent() }); d != 0 {
				t.Errorf("waited for again, for %s", d)
			}
		}
		if l := list(); !errors.Is(l.Zones[1].Err, zone.ErrUnreachable) {
			t.Errorf("what it did not say is taken for an answer: %+v", l.Zones)
		}
		pass(31 * time.Second)
		if d := took(absent); d != grace {
			t.Errorf("half a minute later it is given %s, want %s", d, grace)
		}
		release()
		pass(31 * time.Second)
		if l := list(); l.Zones[1].Err != nil {
			t.Errorf("back, and not heard: %+v", l.Zones)
		}
		h.zones[1].set(func(u *unruly) { u.delay = grace / 4 })
		for range 2 { // slow is not ill
			if l := list(); l.Zones[1].Err != nil {
				t.Errorf("slow, and not heard: %+v", l.Zones)
			}
		}
	})
}

// The first in order hangs: it is not asked first again.
func TestReadsPassOverAZoneThatListingsGaveUpOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := build(t, 3, 2, func(c *vault.Config) { c.SlowAfter, c.State = time.Second, "" })
		const name = "clusters/x/one.age"
		for _, z := range h.zones {
			if err := z.Driver.Create(t.Context(), name, body(1), zone.CreateOptions{SHA256: sha256.Sum256(body(1))}); err != nil {
				t.Fatal(err)
			}
		}
		defer h.zones[0].suspend()()
		if l, err := h.Reader().List(t.Context(), "clusters/"); err != nil || !l.Complete {
			t.Fatalf("%+v, %v", l, err)
		}
		d := took(func() {
			if _, err := h.Reader().Get(t.Context(), name, int64(len(body(1))), digest(body(1))); err != nil {
				t.Error(err)
			}
		})
		if d != 0 {
			t.Errorf("waited %s", d)
		}
	})
}

// R4: what is not waited for is not counted either.
func TestAnUnwellZoneIsWaitedForWhereItsAnswerIsNeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := build(t, 3, 2, func(c *vault.Config) { c.SlowAfter, c.State = 100*time.Millisecond, "" })
		const name = "clusters/x/one.age"
		if err := h.zones[0].Driver.Create(t.Context(), name, body(1), zone.CreateOptions{SHA256: sha256.Sum256(body(1))}); err != nil {
			t.Fatal(err)
		}
		h.zones[0].set(func(u *unruly) { u.delay = 500 * time.Millisecond })
		for range 2 {
			if l, err := h.Reader().List(t.Context(), "clusters/"); err != nil || len(l.Objects) != 0 || l.Zones[0].Err == nil {
				t.Fatalf("%+v, %v", l, err)
			}
		}
		h.zones[1].fail(errBroken) // now two are left, and two are needed
		if gone, err := h.Reader().Absent(t.Context(), name); gone || err != nil {
			t.Errorf("Absent = %t, %v", gone, err)
		}
		if l, err := h.Reader().List(t.Context(), "clusters/"); err != nil || !l.Complete || len(l.Objects) != 1 {
			t.Errorf("%+v, %v", l, err)
		}
		if l, err := h.Reader().Only("a").List(t.Context(), "clusters/"); err != nil || !l.Complete || len(l.Objects) != 1 {
			t.Errorf("only the unwell one: %+v, %v", l, err)
		}
		h.zones[0].fail(errBroken)
		if _, err := h.Reader().Absent(t.Context(), name); !errors.Is(err, vault.ErrDoubt) {
			t.Errorf("two of three are away: %v", err)
		}
	})
}

// A restore makes some thirty listings: a dead zone must not be paid for with each.
func TestADeadS3ZoneDoesNotDelayEveryListing(t *testing.T) {
	servers := zonetest.StartS3(t, 3)
	conf := vault.Config{Quorum: 2, SlowAfter: 4 * time.Second}
	for i, s := range servers {
		d, id := s.Driver(t), zonetest.Identity(names[i])
		if err := zone.Initialise(t.Context(), d, id); err != nil {
			t.Fatal(err)
		}
		conf.Zones = append(conf.Zones, zone.Open(names[i], d, id, zone.Options{Timeout: 30 * time.Second}))
	}
	v, err := vault.Open(conf)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	servers[0].Kill()
	// One wait is allowed, two are not: ten would be 40 s and more.
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
	defer cancel()
	for i := range 10 {
		l, err := v.Reader().List(ctx, "clusters/")
		if err != nil || !l.Complete || l.Zones[0].Err == nil {
			t.Fatalf("listing %d: %+v, %v", i, l, err)
		}
	}
}
