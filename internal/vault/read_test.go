package vault_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/zone"
)

// harm is what can happen to one zone. Each returns how to undo it.
var harms = map[string]func(t *testing.T, h *house, i int, name string) (undo func()){
	"hung": func(_ *testing.T, h *house, i int, _ string) func() { return h.zones[i].suspend() },
	"failing": func(_ *testing.T, h *house, i int, _ string) func() {
		h.zones[i].fail(errBroken)
		return func() { h.zones[i].fail(nil) }
	},
	"slow": func(_ *testing.T, h *house, i int, _ string) func() {
		h.zones[i].set(func(u *unruly) { u.delay = time.Second })
		return func() { h.zones[i].set(func(u *unruly) { u.delay = 0 }) }
	},
	"unmounted": func(t *testing.T, h *house, i int, _ string) func() {
		move(t, h.roots[i], h.roots[i]+".gone")
		return func() { move(t, h.roots[i]+".gone", h.roots[i]) }
	},
	"emptied": func(t *testing.T, h *house, i int, _ string) func() {
		move(t, h.roots[i], h.roots[i]+".gone")
		if err := os.Mkdir(h.roots[i], 0o700); err != nil {
			t.Fatal(err)
		}
		return func() {
			found, err := filepath.Glob(h.file(i, "*/*/*"))
			if err != nil || len(found) > 0 {
				t.Errorf("written into the emptied directory: %q, %v", found, err)
			}
			if err := os.RemoveAll(h.roots[i]); err != nil {
				t.Error(err)
			}
			move(t, h.roots[i]+".gone", h.roots[i])
		}
	},
	"swapped": func(t *testing.T, h *house, i int, _ string) func() {
		// Another zone of the repository is mounted here: same names, wrong place.
		move(t, h.roots[i], h.roots[i]+".gone")
		if err := os.CopyFS(h.roots[i], os.DirFS(h.roots[(i+1)%len(h.roots)])); err != nil {
			t.Fatal(err)
		}
		return func() {
			if err := os.RemoveAll(h.roots[i]); err != nil {
				t.Fatal(err)
			}
			move(t, h.roots[i]+".gone", h.roots[i])
		}
	},
	"rotten": func(t *testing.T, h *house, i int, name string) func() {
		rot(t, h.file(i, name))
		return func() {}
	},
	"lost": func(t *testing.T, h *house, i int, name string) func() {
		if err := os.Remove(h.file(i, name)); err != nil {
			t.Fatal(err)
		}
		return func() {}
	},
}

func move(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// Promise 2: any one zone may do anything.
func TestReadsAndWritesGoOnWhateverOneZoneDoes(t *testing.T) {
	for what, harm := range harms {
		for victim := range 3 {
			t.Run(what+" "+names[victim], func(t *testing.T) {
				t.Parallel()
				h := build(t, 3, 2)
				const name, next = "clusters/x/one.age", "clusters/x/two.age"
				h.put(name, body(1))
				eventually(t, "all hold it", func() bool { return h.everywhere(name, body(1)) })
				undo := sync.OnceFunc(harm(t, h, victim, name))
				defer undo()
				begun := time.Now()
				got, err := h.Reader().Get(t.Context(), name, int64(len(body(1))), digest(body(1)))
				if err != nil || !bytes.Equal(got, body(1)) {
					t.Fatalf("Get: %v", err)
				}
				h.put(next, body(2))
				l, err := h.Reader().List(t.Context(), "clusters/")
				if err != nil || !l.Complete || len(l.Objects) != 2 {
					t.Errorf("List: %+v, %v", l, err)
				}
				if gone, err := h.Reader().Absent(t.Context(), "clusters/x/three.age"); !gone || err != nil {
					t.Errorf("Absent(three) = %t, %v", gone, err)
				}
				if gone, err := h.Reader().Absent(t.Context(), name); gone || err != nil {
					t.Errorf("Absent(one) = %t, %v", gone, err)
				}
				if took := time.Since(begun); took > 1500*time.Millisecond {
					t.Errorf("took %s", took)
				}
				h.run()
				undo()
				if what == "rotten" || what == "lost" {
					if _, err := h.Writer().Heal(t.Context(), name, int64(len(body(1))), digest(body(1))); err != nil {
						t.Error(err)
					}
				}
				eventually(t, "all is everywhere again", func() bool { return h.everywhere(name, body(1)) && h.everywhere(next, body(2)) })
			})
		}
	}
}

func TestABadCopyIsReportedAndHealedAfterARead(t *testing.T) {
	h := build(t, 3, 2)
	const name = "clusters/x/one.age"
	h.put(name, body(1))
	eventually(t, "all hold it", func() bool { return h.everywhere(name, body(1)) })
	rot(t, h.file(0, name))
	if err := os.Remove(h.file(1, name)); err != nil {
		t.Fatal(err)
	}
	h.conf.Prefixes = []string{"nothing/"} // no listing may find it first
	h.restart()
	h.run()
	if _, err := h.Reader().Get(t.Context(), name, int64(len(body(1))), digest(body(1))); err != nil {
		t.Fatal(err)
	}
	bad := h.reported()
	slices.Sort(bad)
	bad = slices.Compact(bad) // the reader and the back-filler may both see it
	if !slices.Equal(bad, []string{"a " + name, "b " + name}) {
		t.Errorf("reported %q", bad)
	}
	eventually(t, "both are healed", func() bool { return h.everywhere(name, body(1)) })
}

func TestARangeThatIsRefusedIsReadElsewhereAndHealed(t *testing.T) {
	h := build(t, 3, 2)
	const name = "clusters/x/one.age"
	h.put(name, body(1))
	eventually(t, "all hold it", func() bool { return h.everywhere(name, body(1)) })
	rot(t, h.file(0, name))
	h.run()
	want, mid := body(1), int64(len(body(1))/2)
	got, err := h.Reader().RangeAccept(t.Context(), need(name, want), mid-8, 16, func(n int64) []byte { return make([]byte, n) }, func(_ string, part []byte) error {
		if !bytes.Equal(part, want[mid-8:mid+8]) {
			return errors.New("not what the frame's digest says")
		}
		return nil
	})
	if err != nil || !bytes.Equal(got, want[mid-8:mid+8]) {
		t.Fatalf("got %q: %v", got, err)
	}
	eventually(t, "a is healed", func() bool { return h.everywhere(name, want) })
	part, err := h.Reader().RangeFrom(t.Context(), "c", name, int64(len(want)), int64(len(want))-5, 100)
	if err != nil || !bytes.Equal(part, want[len(want)-5:]) {
		t.Errorf("the end is %q: %v", part, err)
	}
}

func TestFetchTakesOnlyWhatIsAccepted(t *testing.T) {
	h := build(t, 3, 2)
	const name = "tombstones/1/tombstone.note"
	h.put(name, body(1))
	eventually(t, "all hold it", func() bool { return h.everywhere(name, body(1)) })
	rot(t, h.file(0, name))
	accept := func(_ string, b []byte) error {
		if !bytes.Equal(b, body(1)) {
			return errors.New("signature does not hold")
		}
		return nil
	}
	got, err := h.Reader().Fetch(t.Context(), name, accept)
	if err != nil || !bytes.Equal(got, body(1)) {
		t.Fatal(err)
	}
	if bad := h.reported(); !slices.Equal(bad, []string{"a " + name}) {
		t.Errorf("reported %q", bad)
	}
	_, err = h.Reader().Fetch(t.Context(), name, func(string, []byte) error { return errors.New("never") })
	if !errors.Is(err, vault.ErrNoGoodCopy) || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error is %v", err)
	}
	_, err = h.Reader().Fetch(t.Context(), "tombstones/2/tombstone.note", accept)
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error is %v", err)
	}
}

// DESIGN section 6: absence is proven by N-W+1 zones, and unreachable is never
// taken for absent.
func TestAbsenceIsNeverOneZonesWord(t *testing.T) {
	for _, c := range []struct{ n, w, down int }{
		{3, 2, 0}, {3, 2, 1}, {3, 2, 2}, {3, 2, 3}, {3, 3, 2}, {3, 3, 3}, {3, 1, 0}, {3, 1, 1}, {5, 3, 2}, {5, 3, 3}, {1, 1, 1}, {2, 2, 1},
	} {
		h := build(t, c.n, c.w)
		for i := range c.down {
			h.zones[i].fail(errBroken)
		}
		proven := c.n-c.down >= c.n-c.w+1
		const name = "clusters/x/wal/00000001/00000001/000000010000000000000001-aa.age"
		gone, err := h.Reader().Absent(t.Context(), name)
		if gone != proven || errors.Is(err, vault.ErrDoubt) == proven {
			t.Errorf("N=%d W=%d, %d down: Absent = %t, %v", c.n, c.w, c.down, gone, err)
		}
		l, err := h.Reader().List(t.Context(), "clusters/")
		if l.Complete != proven || (err == nil) == (c.down == c.n) {
			t.Errorf("N=%d W=%d, %d down: Complete = %t, %v", c.n, c.w, c.down, l.Complete, err)
		}
		_, err = h.Reader().Get(t.Context(), name, 1, digest([]byte("x")))
		if errors.Is(err, fs.ErrNotExist) != proven || errors.Is(err, vault.ErrDoubt) == proven {
			t.Errorf("N=%d W=%d, %d down: Get: %v", c.n, c.w, c.down, err)
		}
	}
}

func TestWhatAnyQuorumHoldsIsNeverAbsent(t *testing.T) {
	h := build(t, 3, 2)
	const name = "clusters/x/one.age"
	h.zones[2].fail(errBroken)
	h.put(name, body(1))
	h.zones[2].fail(nil)
	for down := range 2 {
		h.zones[down].fail(errBroken)
		if gone, err := h.Reader().Absent(t.Context(), name); gone || err != nil {
			t.Errorf("with zone %s down: %t, %v", names[down], gone, err)
		}
		h.zones[down].fail(nil)
	}
	h.zones[0].fail(errBroken)
	h.zones[1].fail(errBroken)
	if gone, err := h.Reader().Absent(t.Context(), name); gone || !errors.Is(err, vault.ErrDoubt) {
		t.Errorf("only the zone that missed it answers: %t, %v", gone, err)
	}
}

func TestOnlyNamedZonesMustAllAnswer(t *testing.T) {
	h := build(t, 3, 2)
	const name = "clusters/x/one.age"
	if gone, err := h.Reader().Only("a", "b").Absent(t.Context(), name); !gone || err != nil {
		t.Errorf("Absent = %t, %v", gone, err)
	}
	h.zones[1].fail(errBroken)
	for _, only := range [][]string{{"a", "b"}, {"a", "nowhere"}, {}} {
		if gone, err := h.Reader().Only(only...).Absent(t.Context(), name); gone || !errors.Is(err, vault.ErrDoubt) {
			t.Errorf("only %q: Absent = %t, %v", only, gone, err)
		}
		if l, _ := h.Reader().Only(only...).List(t.Context(), ""); l.Complete {
			t.Errorf("only %q: listing claims to be complete", only)
		}
	}
	if gone, err := h.Reader().Only("a").Absent(t.Context(), name); !gone || err != nil {
		t.Errorf("Absent = %t, %v", gone, err)
	}
}

func TestReadingEndsWithItsContext(t *testing.T) {
	h := build(t, 3, 2)
	for _, z := range h.zones {
		defer z.suspend()()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := h.Reader().Get(ctx, "clusters/x/one.age", 1, digest([]byte("x"))); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Get: %v", err)
	}
	if gone, err := h.Reader().Absent(ctx, "clusters/x/one.age"); gone || !errors.Is(err, vault.ErrDoubt) {
		t.Errorf("Absent: %t, %v", gone, err)
	}
}

func TestHealRepairsFromAGoodCopyAndSaysWhere(t *testing.T) {
	h := build(t, 3, 2)
	const name = "clusters/x/one.age"
	h.put(name, body(1))
	eventually(t, "all hold it", func() bool { return h.everywhere(name, body(1)) })
	rot(t, h.file(1, name))
	if err := os.Remove(h.file(2, name)); err != nil {
		t.Fatal(err)
	}
	healed, err := h.Writer().Heal(t.Context(), name, int64(len(body(1))), digest(body(1)))
	if err != nil || !slices.Equal(healed, []string{"b", "c"}) || !h.everywhere(name, body(1)) {
		t.Errorf("healed %q: %v", healed, err)
	}
	for i := range 3 {
		rot(t, h.file(i, name))
	}
	_, err = h.Writer().Heal(t.Context(), name, int64(len(body(1))), digest(body(1)))
	if !errors.Is(err, vault.ErrNoGoodCopy) || !errors.Is(err, zone.ErrDigest) {
		t.Errorf("with no good copy: %v", err)
	}
}

func TestAViewWritesAndReadsItsZonesOnly(t *testing.T) {
	h := build(t, 4, 3)
	v := h.View([]string{"b", "c"})
	const name = "clusters/eu/one.age"
	if st, err := v.Writer().Put(t.Context(), name, body(1), vault.PutOptions{}); err != nil || len(st.Zones) != 2 {
		t.Fatalf("stored %+v: %v", st, err)
	}
	for i, want := range []bool{false, true, true, false} {
		if h.holds(i, name, body(1)) != want {
			t.Errorf("zone %s holds it: %t", names[i], !want)
		}
	}
	if st := v.State(); len(st) != 2 || st[0].Name != "b" {
		t.Errorf("state is %+v", st)
	}
	if _, err := h.View(nil).Writer().Put(t.Context(), name, body(1), vault.PutOptions{}); !errors.Is(err, vault.ErrQuorum) {
		t.Errorf("placed nowhere: %v", err)
	}
	if entries, err := filepath.Glob(h.file(0, "clusters/*")); err != nil || len(entries) != 0 {
		t.Errorf("zone a has %q, %v", entries, err)
	}
}
