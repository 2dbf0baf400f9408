package retention

import (
	"bytes"
	"crypto/sha256"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
)

// object stores a pack or map of a snapshot.
func (r *rig) object(name func(cluster, id string, n int, sum [32]byte) string, id, text string) catalog.Ref {
	r.t.Helper()
	return r.put(name("main", id, 7, sha256.Sum256([]byte(text))), []byte(text))
}

// whole reads every object that a snapshot's list names from each zone alone.
func (r *rig) whole(id string) {
	r.t.Helper()
	s, err := r.keeper.Catalog.Snapshot(r.t.Context(), "main", id)
	noErr(r.t, err)
	for _, z := range r.vault.Reader().Zones() {
		body, err := r.vault.Reader().Only(z).Get(r.t.Context(), s.Objects.Name, s.Objects.Size, s.Objects.SHA256)
		noErr(r.t, err)
		refs, err := catalog.DecodeObjects(bytes.NewReader(body))
		noErr(r.t, err)
		for _, ref := range refs {
			if _, err := r.vault.Reader().Only(z).Get(r.t.Context(), ref.Name, ref.Size, ref.SHA256); err != nil {
				r.t.Errorf("snapshot %s cannot be restored from %s: %v", id, z, err)
			}
		}
	}
}

// D7: a snapshot may outlive all that it was compared with.
func TestAChainLosesItsBaseAndNothingThatTheNewestNeeds(t *testing.T) {
	r := newRig(t, keepTwo)
	first, second, third := ago(9*day), ago(day), ago(0)
	unneeded := r.object(catalog.PackName, first.ID, "every page of it was replaced")
	leaves := r.object(catalog.MapName, first.ID, "leaves")
	pack := r.take(first, unneeded, leaves)
	r.take(second, pack, leaves, r.object(catalog.MapName, second.ID, "leaves of the second"))
	r.take(third, pack, leaves)
	r.settle()
	if m := r.apply(); !slices.Equal(m.Snapshots, []string{first.ID}) {
		t.Fatalf("marked %v", m.Snapshots)
	}
	r.now = noon.Add(day)
	if swept := r.sweep(); len(swept) != 1 || !swept[0].Done || swept[0].Kept != 3 {
		t.Fatalf("%+v", swept)
	}
	want := []string{catalog.IntentName("main", first.ID), leaves.Name, pack.Name}
	for i := range r.dirs {
		if left := r.names(i, "snapshots/"+first.ID); !slices.Equal(left, want) {
			t.Errorf("zone %d: of the base there is %v, want %v", i, left, want)
		}
	}
	r.whole(second.ID)
	r.whole(third.ID)
	if again := r.sweep(); len(again) > 0 {
		t.Errorf("nothing changed, and all was listed again: %+v", again)
	}
	last, later := ago(-2*day), ago(-day)
	r.take(later) // refers to nothing older
	r.take(last)
	r.now = noon.Add(2 * day)
	r.apply()
	r.now = noon.Add(3 * day)
	for _, s := range r.sweep() {
		if !s.Done || s.Kept > 0 {
			t.Errorf("%+v", s)
		}
	}
	for i := range r.dirs {
		if left := append(r.names(i, first.ID), r.names(i, third.ID)...); len(left) > 0 {
			t.Errorf("zone %d still has %v", i, left)
		}
	}
	entries := []string{"removal.intent main", "removal.result main", "removal.intent main", "removal.result main", "removal.result main"}
	if !slices.Equal(r.book.entries, entries) {
		t.Errorf("ledger %v, want %v", r.book.entries, entries)
	}
	r.whole(last.ID)
}

func TestWhatAHoldKeptGoesWhenItIsReleased(t *testing.T) {
	r := newRig(t, keepTwo)
	r.takeAll(9, 1, 0)
	r.apply()
	held := ago(9 * day).ID
	h := r.hold(catalog.Hold{Kind: catalog.HoldSnapshot, Snapshot: held})
	r.now = noon.Add(day)
	r.sweep()
	r.whole(held)
	if p, err := r.keeper.Plan(t.Context(), false); err != nil || !strings.Contains(table(p.Snapshots), "+ "+held+" hold "+h.ID+": case 7\n") {
		t.Errorf("a marked snapshot on hold is not planned with: %v\n%s", err, table(p.Snapshots))
	}
	_, err := r.keeper.Release(t.Context(), catalog.Released{Hold: h.ID, Reason: "closed", By: "legal"})
	noErr(t, err)
	r.now = r.now.Add(23 * time.Hour)
	r.sweep()
	r.whole(held) // for restores that began while it was on hold
	r.now = r.now.Add(time.Hour)
	r.sweep()
	if left := r.names(0, "snapshots/"+held); len(left) > 0 {
		t.Errorf("the hold is released and %v stays", left)
	}
}

// W1, D7: an attempt that was interrupted is continued under its own id for a day,
// and its jobs may take another: until it is given up nothing of it goes, nor of
// what it is compared with.
func TestAnInterruptedAttemptKeepsItsPacksUntilItIsGivenUp(t *testing.T) {
	r := newRig(t, keepTwo)
	base := ago(3 * day)
	r.take(base)
	r.takeAll(2, 1)
	r.note(catalog.IntentName("main", "attempt"), catalog.KindIntent, catalog.Intent{Cluster: "main", ID: "attempt", StartedAt: noon.Add(-47 * time.Hour), Base: base.ID})
	half := r.object(catalog.PackName, "attempt", "half of it")
	r.settle()
	for range 2 {
		if m := r.apply(); slices.Contains(m.Snapshots, "attempt") || slices.Contains(m.Snapshots, base.ID) {
			t.Fatalf("marked %v", m.Snapshots)
		}
		r.now = r.now.Add(12 * time.Hour)
		r.sweep()
	}
	if left := r.names(1, half.Name); len(left) != 1 {
		t.Fatal("the pack of a running attempt is gone")
	}
	r.whole(base.ID)
	r.take(ago(-day))
	r.now = noon.Add(26 * time.Hour) // 73 h since it began
	if m := r.apply(); !slices.Contains(m.Snapshots, "attempt") || !slices.Contains(m.Snapshots, base.ID) {
		t.Fatalf("marked %v", m.Snapshots)
	}
	r.now = r.now.Add(day)
	r.sweep()
	if left := append(r.names(1, "attempt"), r.names(1, "snapshots/"+base.ID)...); len(left) > 0 {
		t.Errorf("given up, and %v stays", left)
	}
}

// Promise 6: keep_at_most is a ceiling of bytes. A cluster that is snapshotted for
// a year, each snapshot with packs as old as renew_after allows, never needs a pack
// beyond the ceiling: not for a tier that keeps years, and not through the grace.
func TestNoPackIsNeededBeyondTheCeiling(t *testing.T) {
	p := Policy{Window: 7 * day, Daily: 7, Weekly: 8, Monthly: 12, RemovalGrace: day, Lead: day, KeepAtMost: 100 * day, RenewAfter: 25 * day}
	for _, told := range []bool{true, false} {
		kept := map[string]catalog.Snapshot{}
		gone := map[string]time.Time{} // marked: swept at
		oldest := func(s catalog.Snapshot) time.Time { return s.StartedAt.Add(-p.RenewAfter) }
		most := time.Duration(0)
		for d := 365 * day; d >= 0; d -= day {
			s := ago(d)
			s.ID = s.FinishedAt.Format(time.RFC3339)
			if told {
				s.Oldest = oldest(s)
			}
			kept[s.ID] = s
			in := inputs(p)
			in.Now = s.FinishedAt.Add(time.Hour)
			for id, k := range kept {
				if at, marked := gone[id]; marked && !in.Now.Before(at) {
					delete(kept, id)
				} else if most = max(most, in.Now.Sub(oldest(k))); !marked {
					in.Snapshots = append(in.Snapshots, k)
				}
			}
			for _, x := range plan(t, in).Snapshots {
				if !x.Keep {
					gone[x.ID] = in.Now.Add(p.RemovalGrace)
				}
			}
		}
		if most > p.KeepAtMost || most < p.KeepAtMost-3*day {
			t.Errorf("told %v: the oldest byte that was needed was %s old", told, most)
		}
	}
}

func TestExpiryCountsFromTheOldestByte(t *testing.T) {
	p := Policy{KeepAtMost: 100 * day, RenewAfter: 25 * day}
	s := ago(0)
	if at := p.Expires(s); !at.Equal(s.StartedAt.Add(75 * day)) {
		t.Errorf("not told: %s", at)
	}
	s.Oldest = s.StartedAt // a full one
	if at := p.Expires(s); !at.Equal(s.StartedAt.Add(100 * day)) {
		t.Errorf("of its own: %s", at)
	}
	s.Oldest = s.StartedAt.Add(-40 * day) // renew_after was longer when it was taken
	if at := p.Expires(s); !at.Equal(s.StartedAt.Add(60 * day)) {
		t.Errorf("of an old pack: %s", at)
	}
	if at := (Policy{RenewAfter: day}).Expires(s); !at.IsZero() {
		t.Errorf("without a ceiling: %s", at)
	}
	if err := (Policy{KeepAtMost: 30 * day, RenewAfter: 20 * day, Window: 10 * day}).Check(); err == nil {
		t.Error("renew_after leaves no room for the window, and the policy was taken")
	}
}
