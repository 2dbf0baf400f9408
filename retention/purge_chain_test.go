package retention

import (
	"slices"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// deleted is a purger of a project that live was seen without at a place in the
// log of the rig's own lineage.
func deleted(t *testing.T, at lsn.LSN) (*rig, *Purger) {
	return deletedWithin(t, at, 38*day, Policy{Daily: 1, KeepAtMost: 30 * day, RenewAfter: 7 * day, RemovalGrace: day})
}

func deletedWithin(t *testing.T, at lsn.LSN, within time.Duration, policy Policy) (*rig, *Purger) {
	r := newRig(t, policy)
	asked := noon.Add(-2 * day)
	r.note(catalog.TombstoneName("tomb"), catalog.KindTombstone, catalog.Tombstone{
		ID: "tomb", Cluster: "main", SystemID: "sys", Epoch: 1, Timeline: 1, LSN: at - seg, RequestedAt: asked, Deadline: asked.Add(within),
	})
	r.note(catalog.AbsentName("tomb"), catalog.KindAbsent, catalog.Absent{Tombstone: "tomb", SystemID: "sys", Epoch: 1, Timeline: 1, LSN: at, SeenAt: asked.Add(time.Hour)})
	return r, &Purger{Keeper: r.keeper, Origin: "node-1", Memory: r.keeper.State + ".purges"}
}

// keepOnlyNewest lets the policy run both its acts, a day apart.
func (r *rig) keepOnlyNewest(now time.Time) {
	r.t.Helper()
	r.now = now
	r.apply()
	r.now = now.Add(day)
	r.sweep()
}

func blockers(one Purge) []string {
	var out []string
	for _, z := range one.Zones {
		out = append(out, z.BlockedBy...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// P4, promise 7: a page of the project that is dead to every snapshot lives on in a
// pack as long as one refers to another page of that pack.
func TestACertificateWaitsForOldPacksThatNewSnapshotsNeed(t *testing.T) {
	absent := place(36 * time.Hour)
	r, p := deleted(t, absent)
	before, after, later, last := ago(2*day), ago(day), ago(0), ago(-2*day)
	old := r.take(before)
	leaves := r.object(catalog.MapName, before.ID, "leaves")
	middle := r.take(after, old, leaves)
	r.take(later, old, middle)
	r.keepOnlyNewest(noon.Add(time.Hour))
	for i := range r.dirs {
		if left := r.names(i, "/snapshots/"+before.ID); len(left) != 2 {
			t.Fatalf("zone %d: of the first snapshot %v stays, want its intent and a pack", i, left)
		}
	}
	one := advanceOne(t, p, nil)
	if one.State != PurgeAgeing || one.Certificate != nil || !slices.Equal(blockers(one), []string{"snapshot " + before.ID}) {
		t.Fatalf("while a newer snapshot needs an old pack: %s, blocked by %v", one.State, blockers(one))
	}
	if end := before.StartedAt.Add(30 * day); !one.LastCopyEnds.Equal(end) || end.After(one.Deadline) {
		t.Errorf("the last copy ends at %s, want %s", one.LastCopyEnds, end)
	}

	r.take(last, middle) // what lay in the old pack was copied afresh
	r.keepOnlyNewest(noon.Add(2*day + time.Hour))
	if left := r.names(0, "/snapshots/"+before.ID); len(left) > 0 {
		t.Fatalf("nothing refers to it, and %v stays", left)
	}
	if left := r.names(0, "/snapshots/"+after.ID); len(left) != 2 {
		t.Fatalf("of the second %v stays", left)
	}
	one = advanceOne(t, p, nil)
	if one.State != PurgeDone || one.Certificate == nil {
		t.Errorf("a pack that was made later holds it up, though its snapshot's note is gone: %s, blocked by %v", one.State, blockers(one))
	}
}

// P4: the packs of a snapshot that was interrupted and went on are as old as its
// first attempt, whatever its note says.
func TestACertificateGoesByTheFirstAttemptOfASnapshot(t *testing.T) {
	absent := place(36 * time.Hour)
	r, p := deleted(t, absent)
	s := ago(day)
	r.note(catalog.IntentName("main", s.ID), catalog.KindIntent, catalog.Intent{
		Cluster: "main", ID: s.ID, Epoch: 1, StartedAt: noon.Add(-40 * time.Hour), SystemID: "sys", Timeline: 1, From: absent - 1,
	})
	r.commit(s)
	one := advanceOne(t, p, nil)
	if one.State != PurgeAgeing || !slices.Equal(blockers(one), []string{"snapshot " + s.ID}) {
		t.Fatalf("it began before live was without the project: %s, blocked by %v", one.State, blockers(one))
	}
	r.take(ago(0))
	r.keepOnlyNewest(noon.Add(time.Hour))
	if one = advanceOne(t, p, nil); one.State != PurgeDone {
		t.Errorf("%s, blocked by %v", one.State, blockers(one))
	}
}

// P4: what cannot be told is not clean.
func TestACertificateWaitsForPacksOfUnknownAge(t *testing.T) {
	for name, intent := range map[string]*catalog.Intent{
		"no intent":        nil,
		"no place":         {Cluster: "main", ID: "x", StartedAt: noon, SystemID: "sys", Timeline: 1},
		"another system":   {Cluster: "main", ID: "x", StartedAt: noon, SystemID: "other", Timeline: 1, From: place(0)},
		"unknown timeline": {Cluster: "main", ID: "x", StartedAt: noon, SystemID: "sys", Timeline: 3, From: place(0)},
	} {
		t.Run(name, func(t *testing.T) {
			r, p := deleted(t, place(36*time.Hour))
			r.take(ago(0))
			if one := advanceOne(t, p, nil); one.State != PurgeDone {
				t.Fatalf("without it: %s, blocked by %v", one.State, blockers(one))
			}
			r, p = deleted(t, place(36*time.Hour))
			r.take(ago(0))
			if intent != nil {
				r.note(catalog.IntentName("main", "x"), catalog.KindIntent, *intent)
			}
			r.object(catalog.PackName, "x", "pages")
			r.settle()
			if one := advanceOne(t, p, nil); one.State != PurgeAgeing || !slices.Equal(blockers(one), []string{"snapshot x"}) {
				t.Errorf("%s, blocked by %v", one.State, blockers(one))
			}
		})
	}
}
