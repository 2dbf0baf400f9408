package vault_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/vault"
)

// TestReconciliationClosesDebtsThatNobodyRemembers loses the whole state
// directory between the acknowledgement and the back-fill.
func TestReconciliationClosesDebtsThatNobodyRemembers(t *testing.T) {
	h := build(t, 3, 2)
	h.zones[1].fail(errBroken)
	want := map[string][]byte{
		"clusters/x/snapshots/1/packs/0.age": body(0), "clusters/x/snapshots/1/snapshot.note": body(1),
		"tombstones/1/tombstone.note": body(2), "ledger/o/checkpoint/9": body(3), "clusters/x/wal/1/1/f.age": body(4),
	}
	for name, b := range want {
		h.put(name, b)
	}
	h.Close()
	h.conf.State = filepath.Join(t.TempDir(), "new")
	h.open()
	h.run()
	eventually(t, "b is known to be down", func() bool { return h.State()[1].State == "down" })
	h.zones[1].fail(nil)
	eventually(t, "b has caught up", func() bool {
		for name, b := range want {
			if !h.holds(1, name, b) {
				return false
			}
		}
		return h.Behind()["b"] == 0
	})
}

func TestReconciliationCopiesNothingThatItMustNot(t *testing.T) {
	barred := func(name string) bool { return strings.HasPrefix(name, "clusters/x/snapshots/forgotten/") }
	h := build(t, 3, 1, func(c *vault.Config) {
		c.NoHeal = barred
		c.Place = func(name string) []string {
			if strings.HasPrefix(name, "clusters/eu/") {
				return []string{"a", "b"}
			}
			return nil
		}
	})
	write := func(i int, name string, b []byte) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(h.file(i, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(h.file(i, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(0, "clusters/x/snapshots/forgotten/packs/0.age", body(0))
	write(0, "clusters/eu/one.age", body(1))
	write(0, "clusters/x/split.note", body(2))
	write(1, "clusters/x/split.note", body(3))
	write(0, "elsewhere/one", body(4))
	write(0, "clusters/x/plain.age", body(5))
	h.run()
	eventually(t, "what may be copied is", func() bool {
		return h.everywhere("clusters/x/plain.age", body(5)) && h.holds(1, "clusters/eu/one.age", body(1))
	})
	eventually(t, "the split is reported", func() bool { return slices.Contains(h.reported(), "c clusters/x/split.note") })
	eventually(t, "nothing is owed", func() bool { return h.Behind()["b"]+h.Behind()["c"] == 0 })
	for i, name := range map[int]string{1: "clusters/x/snapshots/forgotten/packs/0.age", 2: "clusters/eu/one.age"} {
		if _, err := os.Stat(h.file(i, name)); err == nil {
			t.Errorf("%s was copied to zone %s", name, names[i])
		}
	}
	for _, name := range []string{"clusters/x/split.note", "elsewhere/one"} {
		if _, err := os.Stat(h.file(2, name)); err == nil {
			t.Errorf("%s was copied", name)
		}
	}
}

// Z3 of removal across zones: a zone that comes back brings nothing back.
func TestAReturningZoneResurrectsNothing(t *testing.T) {
	h := build(t, 3, 2)
	const dead, alive = "clusters/x/dead.age", "clusters/x/alive.age"
	h.put(dead, body(1))
	h.put(alive, body(2))
	eventually(t, "all hold them", func() bool {
		return h.everywhere(dead, body(1)) && h.everywhere(alive, body(2)) && h.Behind()["c"] == 0
	})
	h.zones[2].fail(errBroken)
	faults := h.Remover().RemoveAll(t.Context(), dead)
	if faults["a"] != nil || faults["b"] != nil || !errors.Is(faults["c"], errBroken) {
		t.Fatalf("faults are %v", faults)
	}
	h.restart() // the debt is durable
	h.zones[2].fail(nil)
	if n := h.Behind()["c"]; n != 1 {
		t.Fatalf("c owes %d", n)
	}
	// Before it is paid, c's copy is nobody's to read, list, copy or heal.
	if _, err := h.Reader().Get(t.Context(), dead, int64(len(body(1))), digest(body(1))); !errors.Is(err, vault.ErrRemoved) {
		t.Errorf("Get: %v", err)
	}
	if l, err := h.Reader().List(t.Context(), "clusters/"); err != nil || len(l.Objects) != 1 {
		t.Errorf("List: %+v, %v", l.Objects, err)
	}
	if _, err := h.Writer().Heal(t.Context(), dead, int64(len(body(1))), digest(body(1))); !errors.Is(err, vault.ErrRemoved) {
		t.Errorf("Heal: %v", err)
	}
	if _, err := h.Writer().Put(t.Context(), dead, body(1), vault.PutOptions{}); !errors.Is(err, vault.ErrRemoved) {
		t.Errorf("Put: %v", err)
	}
	h.run()
	eventually(t, "the removal is paid", func() bool { return h.Behind()["c"] == 0 })
	for i := range 3 {
		if _, err := os.Stat(h.file(i, dead)); err == nil {
			t.Errorf("zone %s has it", names[i])
		}
	}
	if !h.everywhere(alive, body(2)) {
		t.Error("the living suffered")
	}
	if gone, err := h.Reader().Absent(t.Context(), dead); !gone || err != nil {
		t.Errorf("Absent = %t, %v", gone, err)
	}
	// The name is free again, after a restart too.
	h.put(dead, body(9))
}

// A write that hangs in one zone while the name is removed must not land later.
func TestARemovalOutlivesAWriteThatHangs(t *testing.T) {
	h := build(t, 3, 2)
	const name = "clusters/x/one.age"
	release := h.zones[2].suspend()
	defer release()
	h.put(name, body(1))
	faults := h.Remover().RemoveAll(t.Context(), name)
	if faults["a"] != nil || faults["b"] != nil || faults["c"] == nil {
		t.Fatalf("faults are %v", faults)
	}
	h.run()
	release()
	eventually(t, "c owes nothing", func() bool { return h.Behind()["c"] == 0 })
	for i := range 3 {
		if _, err := os.Stat(h.file(i, name)); err == nil {
			t.Errorf("zone %s has it", names[i])
		}
	}
}

func TestADebtForWhatWasForgottenIsDropped(t *testing.T) {
	var forgotten bool
	h := build(t, 3, 2, func(c *vault.Config) {
		c.NoHeal = func(name string) bool { return forgotten && strings.HasPrefix(name, "keys/") }
	})
	h.zones[2].fail(errBroken)
	h.put("keys/p/1.age", body(1))
	h.put("clusters/x/one.age", body(2))
	h.restart()
	forgotten = true
	h.zones[2].fail(nil)
	h.run()
	eventually(t, "c has caught up", func() bool { return h.Behind()["c"] == 0 && h.holds(2, "clusters/x/one.age", body(2)) })
	if h.holds(2, "keys/p/1.age", body(1)) {
		t.Error("a destroyed key was copied")
	}
}

// A copy to back-fill from is checked: rot does not spread.
func TestBackFillCopiesOnlyBytesThatMatch(t *testing.T) {
	h := build(t, 3, 2)
	h.zones[2].fail(errBroken)
	for i := range 6 {
		h.put(fmt.Sprintf("clusters/x/%d.age", i), body(i))
	}
	h.restart()
	for i := range 6 {
		rot(t, h.file(i%2, fmt.Sprintf("clusters/x/%d.age", i)))
	}
	h.zones[2].fail(nil)
	h.run()
	eventually(t, "c is right", func() bool {
		for i := range 6 {
			if !h.holds(2, fmt.Sprintf("clusters/x/%d.age", i), body(i)) {
				return false
			}
		}
		return true
	})
}

// An object that no zone has any more does not keep a returning zone from the
// rest, nor from the notes of its cluster.
func TestWhatIsLostEverywhereHoldsNothingElseBack(t *testing.T) {
	h := build(t, 3, 2)
	h.zones[2].fail(errBroken)
	const lost, other, note = "clusters/x/lost.age", "clusters/x/other.age", "clusters/x/wal/1/1/a-b.note"
	h.put(lost, body(1))
	h.put(other, body(2))
	h.put(note, body(3))
	h.restart()
	rot(t, h.file(0, lost))
	rot(t, h.file(1, lost))
	h.zones[2].fail(nil)
	h.run()
	eventually(t, "c has the rest", func() bool { return h.holds(2, other, body(2)) && h.holds(2, note, body(3)) })
	eventually(t, "c owes only what is lost", func() bool { return h.Behind()["c"] == 1 })
	if h.holds(2, lost, body(1)) {
		t.Error("c has what was lost")
	}
}

// A zone that was away may be an older state of itself, of which no journal knows. It
// has the marks and tombstones that others show before its copies are read.
func TestAZoneBackFromTheDeadLearnsWhatIsForgottenBeforeItServes(t *testing.T) {
	var mu sync.Mutex
	var returned []string
	h := build(t, 3, 2, func(c *vault.Config) {
		c.ReconcileEvery = time.Hour
		c.OnReturn = func(zone string) {
			mu.Lock()
			defer mu.Unlock()
			returned = append(returned, zone)
		}
	})
	const mark, tomb, alive = "forgotten/x/1.note", "tombstones/1/tombstone.note", "clusters/x/alive.age"
	stop := h.run()
	h.put(alive, body(1))
	eventually(t, "all hold it", func() bool { return h.everywhere(alive, body(1)) })
	eventually(t, "every zone was looked at", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(returned) == 3
	})
	h.zones[0].fail(errBroken) // a, which is read first as a rule
	h.put(mark, body(2))
	h.put(tomb, body(3))
	stop()
	if err := errors.Join(h.Close(), os.RemoveAll(h.conf.State)); err != nil { // its debts are lost as well
		t.Fatal(err)
	}
	h.open()
	h.zones[0].fail(nil)
	if _, err := h.Reader().Get(t.Context(), alive, int64(len(body(1))), digest(body(1))); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	returned = nil
	mu.Unlock()
	h.zones[2].fail(errBroken) // it may be the only one that knows of a mark
	h.run()
	eventually(t, "zone a has what the other one knows", func() bool { return h.holds(0, mark, body(2)) && h.holds(0, tomb, body(3)) })
	h.zones[2].set(func(u *unruly) { u.asked = 0 })
	eventually(t, "zone c was asked in vain", func() bool {
		asked := 0
		h.zones[2].set(func(u *unruly) { asked = u.asked })
		return asked > 12
	})
	mu.Lock()
	if slices.Contains(returned, "a") {
		t.Error("zone a was told to be back on the word of one other zone")
	}
	mu.Unlock()
	h.zones[2].fail(nil)
	eventually(t, "zone a is told to be back", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return slices.Contains(returned, "a")
	})
	if !h.holds(0, mark, body(2)) || !h.holds(0, tomb, body(3)) {
		t.Error("zone a was told to be back before it had the mark and the tombstone")
	}
}

// A zone may turn into an older state of itself without having been seen away.
func TestAZoneThatLacksANoteUnseenIsComparedAtOnce(t *testing.T) {
	h := build(t, 3, 2, func(c *vault.Config) { c.ReconcileEvery = time.Hour })
	const mark, pack = "forgotten/x/1.note", "clusters/x/one.age"
	h.put(mark, body(1))
	h.put(pack, body(2))
	h.run()
	eventually(t, "all hold both", func() bool { return h.everywhere(mark, body(1)) && h.everywhere(pack, body(2)) })
	for _, name := range []string{mark, pack} {
		if err := os.Remove(h.file(0, name)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "zone a has both again", func() bool {
		_, err := h.Reader().Fetch(t.Context(), mark, func(string, []byte) error { return nil })
		return err == nil && h.holds(0, mark, body(1)) && h.holds(0, pack, body(2))
	})
}
