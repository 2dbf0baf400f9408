package vault_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/zone"
)

func TestPutStoresTheSameBytesInAllZonesAndTwiceIsSuccess(t *testing.T) {
	h := build(t, 3, 2)
	b := body(1)
	for range 2 {
		if st := h.put("clusters/x/one.age", b); st.SHA256 != digest(b) || st.Size != int64(len(b)) || len(st.Zones) < 2 {
			t.Fatalf("stored %+v", st)
		}
	}
	eventually(t, "all three hold it", func() bool { return h.everywhere("clusters/x/one.age", b) })
}

// Promise 1 and 2: an acknowledgement waits for the quorum and for no zone.
func TestAHungZoneNeitherBlocksNorIsForgotten(t *testing.T) {
	for victim := range 3 {
		t.Run(names[victim], func(t *testing.T) {
			h := build(t, 3, 2)
			release := h.zones[victim].suspend()
			defer release()
			begun := time.Now()
			st := h.put("clusters/x/one.age", body(1))
			if took := time.Since(begun); took > time.Second {
				t.Errorf("took %s", took)
			}
			if !slices.Equal(st.Missed, []string{names[victim]}) || len(st.Zones) != 2 {
				t.Errorf("stored %+v", st)
			}
			if n := h.Behind()[names[victim]]; n != 1 {
				t.Errorf("%d objects behind", n)
			}
			h.run()
			release()
			eventually(t, "it has caught up", func() bool {
				return h.Behind()[names[victim]] == 0 && h.everywhere("clusters/x/one.age", body(1))
			})
		})
	}
}

// Promise 1: the debt is on disk before the acknowledgement.
func TestADebtSurvivesTheProcess(t *testing.T) {
	h := build(t, 3, 2)
	h.zones[2].fail(errBroken)
	want := map[string][]byte{}
	for i := range 20 {
		name := fmt.Sprintf("clusters/x/%d.age", i)
		want[name] = body(i)
		h.put(name, want[name])
	}
	// A crash: the journals are read by another vault while nobody closed them.
	if err := os.CopyFS(h.conf.State+".crash", os.DirFS(h.conf.State)); err != nil {
		t.Fatal(err)
	}
	h.Close()
	h.conf.State += ".crash"
	h.conf.Prefixes = []string{"nothing/"} // the journal alone must know
	h.open()
	if n := h.Behind()["c"]; n != 20 {
		t.Fatalf("%d objects behind after the restart, want 20", n)
	}
	h.run()
	h.zones[2].fail(nil)
	eventually(t, "c has caught up", func() bool { return h.Behind()["c"] == 0 })
	for name, b := range want {
		if !h.holds(2, name, b) {
			t.Errorf("%s is not in c", name)
		}
	}
	h.restart()
	if n := h.Behind()["c"]; n != 0 {
		t.Errorf("%d paid debts came back", n)
	}
}

func TestBelowTheQuorumEachZonesFaultIsNamedAndNothingIsOwed(t *testing.T) {
	h := build(t, 3, 2)
	h.zones[0].fail(errBroken)
	if err := os.Rename(h.roots[1], h.roots[1]+".gone"); err != nil {
		t.Fatal(err)
	}
	_, err := h.Writer().Put(t.Context(), "clusters/x/one.age", body(1), vault.PutOptions{})
	if !errors.Is(err, vault.ErrQuorum) || !errors.Is(err, zone.ErrUnreachable) {
		t.Fatalf("error is %v", err)
	}
	for _, s := range []string{"zone a: ", errBroken.Error(), "zone b: "} {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("%q is not in %q", s, err)
		}
	}
	for name, n := range h.Behind() {
		if n != 0 {
			t.Errorf("zone %s owes %d objects of a write that failed", name, n)
		}
	}
	for _, st := range h.State()[:2] {
		if st.State != "down" || st.Err == nil {
			t.Errorf("state is %+v", st)
		}
	}
}

func TestPutEndsWithItsContext(t *testing.T) {
	h := build(t, 3, 2)
	defer h.zones[0].suspend()()
	defer h.zones[1].suspend()()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := h.Writer().Put(ctx, "clusters/x/one.age", body(1), vault.PutOptions{})
	if !errors.Is(err, vault.ErrQuorum) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("error is %v", err)
	}
}

// Promise 4.
func TestOtherBytesAreRefusedUnlessTheyAreToBeRepaired(t *testing.T) {
	h := build(t, 3, 3)
	const name = "clusters/x/wal.age"
	h.put(name, body(1))
	_, err := h.Writer().Put(t.Context(), name, body(2), vault.PutOptions{})
	if !errors.Is(err, vault.ErrConflict) || !errors.Is(err, vault.ErrQuorum) {
		t.Fatalf("error is %v", err)
	}
	if !h.everywhere(name, body(1)) {
		t.Fatal("refused bytes were written")
	}
	if _, err := h.Writer().Put(t.Context(), name, body(2), vault.PutOptions{Conflict: vault.Repair}); err != nil {
		t.Fatal(err)
	}
	if !h.everywhere(name, body(2)) {
		t.Error("it was not repaired")
	}
}

// Promise 11: a zone that hangs for long costs a bounded number of calls and
// bytes, whatever is written meanwhile.
func TestWhatAHungZoneHoldsIsBounded(t *testing.T) {
	h := build(t, 3, 2, func(c *vault.Config) { c.Outstanding = 4 << 10 })
	release := h.zones[2].suspend()
	defer release()
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 12 {
				_, err := h.Writer().Put(t.Context(), fmt.Sprintf("clusters/x/%d-%d.age", w, i), body(i), vault.PutOptions{})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := h.Behind()["c"]; n != 96 {
		t.Errorf("c is %d objects behind, want 96", n)
	}
	h.zones[2].set(func(u *unruly) {
		if u.peak > 64 {
			t.Errorf("%d calls hung at once", u.peak)
		}
	})
	h.run()
	release()
	eventually(t, "c has caught up", func() bool { return h.Behind()["c"] == 0 })
}

func TestANoteIsWrittenOnlyWhereEverythingItNamesIs(t *testing.T) {
	h := build(t, 3, 2)
	h.zones[2].fail(errBroken)
	var needs []vault.Need
	for i := range 40 {
		name := fmt.Sprintf("clusters/x/snapshots/1/packs/%d.age", i)
		h.put(name, body(i))
		needs = append(needs, need(name, body(i)))
	}
	const note = "clusters/x/snapshots/1/snapshot.note"
	st, err := h.Writer().PutNote(t.Context(), note, []byte("note"), needs, vault.PutOptions{})
	if err != nil || len(st.Zones) != 2 {
		t.Fatalf("stored %+v: %v", st, err)
	}
	h.zones[2].fail(nil)
	h.restart()
	h.run()
	ordered := true
	eventually(t, "c has the note", func() bool {
		if !h.holds(2, note, []byte("note")) {
			return false
		}
		for _, n := range needs {
			_, err := os.Stat(h.file(2, n.Name))
			ordered = ordered && err == nil
		}
		return true
	})
	if !ordered {
		t.Error("the note was there before what it names")
	}
	eventually(t, "nothing is owed", func() bool { return h.Behind()["c"] == 0 })
}

func TestANoteWhoseObjectIsNowhereIsRefused(t *testing.T) {
	h := build(t, 3, 2)
	_, err := h.Writer().PutNote(t.Context(), "clusters/x/snapshots/1/snapshot.note", []byte("note"),
		[]vault.Need{need("clusters/x/snapshots/1/packs/0.age", body(0))}, vault.PutOptions{})
	if !errors.Is(err, vault.ErrQuorum) {
		t.Fatalf("error is %v", err)
	}
	for i := range h.zones {
		if _, err := os.Stat(h.file(i, "clusters/x/snapshots/1/snapshot.note")); err == nil {
			t.Errorf("zone %s has the note", names[i])
		}
	}
}

func TestOneProcessAtATimeUsesTheJournals(t *testing.T) {
	h := build(t, 3, 2)
	if v, err := vault.Open(h.conf); err == nil {
		v.Close()
		t.Fatal("a second vault opened the same state")
	}
}

func TestAVaultWithoutStateOnlyReads(t *testing.T) {
	h := build(t, 3, 2)
	h.put("clusters/x/one.age", body(1))
	h.Close()
	h.conf.State = ""
	h.open()
	if _, err := h.Writer().Put(t.Context(), "clusters/x/two.age", body(2), vault.PutOptions{}); !errors.Is(err, vault.ErrReadOnly) {
		t.Errorf("put: %v", err)
	}
	for name, err := range h.Remover().RemoveAll(t.Context(), "clusters/x/one.age") {
		if !errors.Is(err, vault.ErrReadOnly) {
			t.Errorf("remove in %s: %v", name, err)
		}
	}
	if _, err := h.Reader().Get(t.Context(), "clusters/x/one.age", int64(len(body(1))), digest(body(1))); err != nil {
		t.Error(err)
	}
}
