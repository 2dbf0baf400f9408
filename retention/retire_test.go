package retention

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// left are the names below clusters/main/ in a zone that are no lineage.
func (r *rig) left(zone int) (out []string) {
	for _, name := range r.names(zone, "") {
		if !strings.Contains(name, "/lineages/") {
			out = append(out, name)
		}
	}
	return out
}

// The end of a cluster takes all of it, the newest and the newest proven snapshot too, by
// the two acts of every removal, with a zone away in between.
func TestARetiredClusterGoesWhole(t *testing.T) {
	r := newRig(t, keepsNine)
	keys := r.board()
	r.note(catalog.LineageName("main", 2), catalog.KindLineage, catalog.Lineage{Cluster: "main", Epoch: 2, SystemID: "other", Timeline: 1, ClaimedAt: noon.Add(-3 * day)})
	r.takeAll(6, 5)
	r.take(ago(day, func(s *catalog.Snapshot) { s.Epoch, s.SystemID = 2, "other" }))
	r.proven(ago(5 * day))
	// What a writer that was killed left without a note.
	r.put(catalog.WALName("main", 1, 1, lsn.SegmentName(1, place(3*day).Segment(int64(seg)), int64(seg)), strings.Repeat("ab", 16)), []byte("no note"))
	r.settle()
	r.keeper.Confirmed = true
	first, err := r.keeper.Retire(t.Context(), "db")
	if !errors.Is(err, ErrUnapproved) || !strings.Contains(err.Error(), "holdfast approve "+first.Hash) || len(first.Snapshots) != 3 || len(first.Plan.Lineages) != 2 || first.WALFiles != 3 {
		t.Fatalf("typed, where approvers are asked: %+v, %v", first, err)
	}
	r.sign(first.Hash, keys...)
	h, err := r.keeper.Place(t.Context(), catalog.Hold{Kind: catalog.HoldSnapshot, Snapshot: ago(6 * day).ID, Reason: "case 7", By: "legal", ReviewBy: noon.Add(day)})
	noErr(t, err)
	if _, err := r.keeper.Retire(t.Context(), "db"); !errors.Is(err, ErrOnHold) || !strings.Contains(err.Error(), h.Text()) {
		t.Errorf("with a hold: %v", err)
	}
	_, err = r.keeper.Release(t.Context(), catalog.Released{Hold: h.ID, Reason: "over", By: "legal", Node: "db"})
	noErr(t, err)
	if m := r.apply(); m.ID != "" {
		t.Fatalf("marked before the end: %+v", m)
	}
	for range 2 {
		done, err := r.keeper.Retire(t.Context(), "db")
		if err != nil || !done.RetiredAt.Equal(noon) || done.Hash != first.Hash {
			t.Fatalf("retired: %+v, %v", done, err)
		}
	}
	if n := strings.Count(strings.Join(r.book.entries, " "), entryRetired); n != 1 {
		t.Errorf("the ledger has it %d times", n)
	}
	r.goesWhole()
}

func (r *rig) goesWhole() {
	r.t.Helper()
	m := r.apply()
	if len(m.Snapshots) != 3 || !m.NotBefore.Equal(noon.Add(day)) {
		r.t.Fatalf("marked %+v", m)
	}
	if again := r.apply(); again.ID != "" {
		r.t.Errorf("marked again: %+v", again)
	}
	r.settle()
	r.sweep()
	if len(r.left(0)) < 10 {
		r.t.Errorf("within the grace zone 0 has %v", r.left(0))
	}
	r.now = noon.Add(40 * day) // nothing newer is to come, and no clock is to be doubted for it
	noErr(r.t, os.Rename(r.dirs[1], r.dirs[1]+".away"))
	if s := r.sweep(); len(s) != 1 || s[0].Done || len(s[0].Owed) != 1 {
		r.t.Errorf("with a zone away: %+v", s)
	}
	noErr(r.t, os.Rename(r.dirs[1]+".away", r.dirs[1]))
	r.run()
	r.settle()
	if s := r.sweep(); len(s) != 1 || !s[0].Done {
		r.t.Errorf("with all zones: %+v", s)
	}
	for i := range r.dirs {
		if left := r.left(i); len(left) > 0 {
			r.t.Errorf("zone %d still has %v", i, left)
		}
		if _, err := os.Stat(r.dirs[i] + "/" + catalog.RetiredName("main")); err != nil || len(r.names(i, "/lineages/")) != 2 {
			r.t.Errorf("zone %d lost what stays: %v", i, err)
		}
	}
	r.segment(place(0)) // of a writer that did not know
	r.settle()
	if late := r.apply(); len(late.WAL) == 0 {
		r.t.Error("WAL that came after the end stays")
	}
}

// Without approvers the name is typed; a hold that comes within the grace still keeps what
// it names, with its WAL, and the rest goes.
func TestAHoldWithinTheGraceKeepsItsPartOfARetiredCluster(t *testing.T) {
	r := newRig(t, Policy{}) // which keeps everything, otherwise
	r.takeAll(6, 5, 1)
	if _, err := r.keeper.Retire(t.Context(), "db"); !errors.Is(err, ErrConfirm) {
		t.Errorf("without the name typed: %v", err)
	}
	r.keeper.Confirmed = true
	r.book.before = errors.New("no quorum")
	if _, err := r.keeper.Retire(t.Context(), "db"); err == nil {
		t.Error("retired without the ledger")
	}
	r.book.before = nil
	if got, err := r.keeper.PlanRetirement(t.Context()); err != nil || !got.RetiredAt.IsZero() {
		t.Errorf("without the ledger: %+v, %v", got, err)
	}
	_, err := r.keeper.Retire(t.Context(), "db")
	noErr(t, err)
	r.keeper.Policy.RemovalGrace = day
	r.apply()
	held := ago(5 * day)
	_, err = r.keeper.Place(t.Context(), catalog.Hold{Kind: catalog.HoldSnapshot, Snapshot: held.ID, Reason: "case 7", By: "legal", ReviewBy: noon.Add(day)})
	noErr(t, err)
	r.now = noon.Add(2 * day)
	r.sweep()
	r.sweep()
	var want []string
	for i := range r.dirs {
		want = []string{fmt.Sprintf("packs/0-%x", sha256.Sum256([]byte("pack of "+held.ID))), "/wal/"}
		left := r.left(i)
		for _, part := range want {
			if !slices.ContainsFunc(left, func(name string) bool { return strings.Contains(name, part) }) {
				t.Errorf("zone %d has no %s on hold: %v", i, part, left)
			}
		}
		for _, id := range []string{ago(6 * day).ID, ago(day).ID} {
			if len(r.names(i, "/"+id+"/")) > 0 {
				t.Errorf("zone %d has snapshot %s", i, id)
			}
		}
		if n := len(r.names(i, "/wal/")); n != 3 {
			t.Errorf("zone %d has %d files of WAL, want one segment, its index and its note", i, n)
		}
	}
}

func TestAnEndThatNoTrustedSignerWroteEndsNothing(t *testing.T) {
	r := newRig(t, keepsNine)
	r.takeAll(1, 0)
	r.put(catalog.RetiredName("main"), []byte("holdfast retired v1\n{}\n\n\u2014 x y\n"))
	p := r.plan()
	if !p.RetiredAt.IsZero() || p.Err() == nil || len(p.Refused) == 0 {
		t.Errorf("%+v", p)
	}
	if _, err := r.keeper.Retire(t.Context(), "db"); !errors.Is(err, ErrRefused) {
		t.Errorf("retired over it: %v", err)
	}
}
