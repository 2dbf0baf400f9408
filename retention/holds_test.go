package retention

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

func onSnapshot(id, snapshot, why string) Hold {
	return Hold{Hold: catalog.Hold{ID: id, Kind: catalog.HoldSnapshot, Snapshot: snapshot, Reason: why}}
}

func onSpan(id string, from, to time.Duration) Hold {
	return Hold{Hold: catalog.Hold{ID: id, Kind: catalog.HoldSpan, From: noon.Add(-from), To: noon.Add(-to), Reason: "case 7"}}
}

// hold places a hold until a year from now.
func (r *rig) hold(h catalog.Hold) catalog.Hold {
	r.t.Helper()
	h.Reason, h.By, h.ReviewBy = "case 7", "legal", r.now.Add(365*day)
	h, err := r.keeper.Place(r.t.Context(), h)
	noErr(r.t, err)
	return h
}

func TestASpanOnHoldKeepsItsBeginningAndAllItsWAL(t *testing.T) {
	in := inputs(Policy{Window: 2 * day}, ago(30*day), ago(20*day), ago(15*day), ago(9*day), ago(3*day), ago(0))
	in.WAL = segments(1, 1, 31*day, 0)
	in.Holds = []Hold{onSpan("h1", 18*day, 12*day)}
	p := plan(t, in)
	if got, want := table(p.Snapshots), `- 0213-1200 no rule keeps it
+ 0223-1200 hold h1: case 7
- 0228-1200 no rule keeps it
- 0306-1200 no rule keeps it
+ 0312-1200 the window begins at it
+ 0315-1200 newest, keep_at_least 2d, in the window of 2d
`; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	end := place(9*day) + seg // by then it is past; the segment holds its snapshot's start
	want := "- 1/1 " + at(31*day) + ".." + at(20*day) + " (264) no snapshot and no window needs it\n" +
		"+ 1/1 " + at(20*day) + ".." + (place(20*day) + seg).String() + " (1) hold h1: case 7, snapshot 0223-1200\n" +
		"+ 1/1 " + (place(20*day) + seg).String() + ".." + end.String() + " (264) hold h1: case 7\n" +
		"- 1/1 " + end.String() + ".." + at(3*day) + " (143) no snapshot and no window needs it\n"
	if got := walTable(p.WAL); !strings.HasPrefix(got, want) {
		t.Errorf("got\n%swant\n%s", got, want)
	}

	in.Passed = []Passed{{Branch{"sys", 1}, place(11 * day), noon.Add(-12*day + time.Minute)}}
	if got, end := walTable(plan(t, in).WAL), place(11*day); !strings.Contains(got, ".."+end.String()+" (215) hold h1: case 7\n- 1/1 "+end.String()) {
		t.Errorf("where the span's end is known:\n%s", got)
	}
	in.Holds = []Hold{onSpan("h1", 18*day, -5*day)} // not over yet
	if got := walTable(plan(t, in).WAL); !strings.HasSuffix(got, "(1) the window, hold h1: case 7, snapshot 0315-1200\n") {
		t.Errorf("a span that is not over:\n%s", got)
	}
}

func TestASpanOnHoldFollowsEveryTimelineAlive(t *testing.T) { // C-60
	fork := 20 * day
	in := inputs(Policy{Window: day}, ago(25*day), ago(22*day), ago(18*day, on(2, 2)), ago(10*day, on(2, 2)), ago(0, on(2, 2)))
	in.Lineages = append(in.Lineages, catalog.Lineage{Epoch: 2, SystemID: "sys", Timeline: 2, ClaimedAt: noon.Add(-fork)})
	in.Histories = map[Branch][]lsn.Switch{{"sys", 2}: {{Timeline: 1, LSN: place(fork) + 5}}}
	in.WAL = append(segments(1, 1, 26*day, 19*day), segments(2, 2, fork, 0)...)
	in.Holds = []Hold{onSpan("h1", 21*day, 19*day)}
	p := plan(t, in)
	for _, test := range []struct {
		timeline uint32
		at       lsn.LSN
		keep     bool
	}{
		{1, place(23 * day), false},
		{1, place(22 * day), true},
		{1, place(fork), true},
		{1, place(19 * day), true},
		{2, place(fork), true},
		{2, place(19 * day), true},
		{2, place(18 * day), true},
		{2, place(17 * day), false},
		{2, place(0), true},
	} {
		kept := slices.ContainsFunc(p.WAL, func(d WALDecision) bool {
			return d.Keep && d.Timeline == test.timeline && d.From <= test.at && test.at < d.To
		})
		if kept != test.keep {
			t.Errorf("timeline %d at %s: kept %v\n%s", test.timeline, test.at, kept, walTable(p.WAL))
		}
	}
}

func TestAProjectOnHoldKeepsTheSnapshotsBeforeTheHoldAndThePurge(t *testing.T) {
	in := inputs(Policy{Daily: 1}, ago(30*day), ago(20*day), ago(15*day), ago(9*day), ago(0))
	in.Holds = []Hold{{Hold: catalog.Hold{ID: "h1", Kind: catalog.HoldProject, Reason: "case 7"}, Moments: []time.Time{noon.Add(-18 * day), noon.Add(-10 * day)}}}
	if got, want := table(plan(t, in).Snapshots), `- 0213-1200 no rule keeps it
+ 0223-1200 hold h1: case 7
+ 0228-1200 hold h1: case 7
- 0306-1200 no rule keeps it
+ 0315-1200 newest, the window begins at it, daily: 2026-03-15
`; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestHoldsAreNotesThatOnlyReleasesEnd(t *testing.T) { // D7
	r := newRig(t, keepTwo)
	r.takeAll(9, 8, 1, 0)
	held := ago(9 * day).ID
	for name, h := range map[string]catalog.Hold{
		"a snapshot that is not there":  {Kind: catalog.HoldSnapshot, Snapshot: "none", Reason: "x", By: "y", ReviewBy: noon.Add(day)},
		"no reason":                     {Kind: catalog.HoldSnapshot, Snapshot: held, By: "y", ReviewBy: noon.Add(day)},
		"a review that is past":         {Kind: catalog.HoldSnapshot, Snapshot: held, Reason: "x", By: "y", ReviewBy: noon},
		"a span that ends before it":    {Kind: catalog.HoldSpan, From: noon, To: noon.Add(-day), Reason: "x", By: "y", ReviewBy: noon.Add(day)},
		"a span of which nothing is":    {Kind: catalog.HoldSpan, From: noon.Add(-20 * day), To: noon.Add(-10 * day), Reason: "x", By: "y", ReviewBy: noon.Add(day)},
		"a reason of more than a line":  {Kind: catalog.HoldSnapshot, Snapshot: held, Reason: "x\ny", By: "y", ReviewBy: noon.Add(day)},
		"nothing that could be on hold": {Kind: "database", Reason: "x", By: "y", ReviewBy: noon.Add(day)},
	} {
		if _, err := r.keeper.Place(t.Context(), h); !errors.Is(err, ErrHold) {
			t.Errorf("%s: %v", name, err)
		}
	}
	h := r.hold(catalog.Hold{Kind: catalog.HoldSnapshot, Snapshot: held})
	if m := r.apply(); slices.Contains(m.Snapshots, held) || len(m.Snapshots) != 1 {
		t.Fatalf("marked %v", m.Snapshots)
	}
	got, err := r.keeper.Held(t.Context())
	if noErr(t, err); !slices.Equal(got[held], []string{h.ID}) || len(got) != 1 {
		t.Errorf("held: %v", got)
	}
	end := catalog.Released{Hold: h.ID, Reason: "closed", By: "legal"}
	_, err = r.keeper.Release(t.Context(), end)
	noErr(t, err)
	if _, err := r.keeper.Release(t.Context(), end); !errors.Is(err, ErrHold) {
		t.Errorf("released twice: %v", err)
	}
	if m := r.apply(); !slices.Contains(m.Snapshots, held) {
		t.Errorf("released, and marked %v", m.Snapshots)
	}
	r.now = r.now.Add(day)
	if _, err := r.keeper.Place(t.Context(), catalog.Hold{Kind: catalog.HoldSnapshot, Snapshot: held, Reason: "x", By: "y", ReviewBy: r.now.Add(day)}); !errors.Is(err, ErrHold) {
		t.Errorf("a hold on what is being removed: %v", err)
	}
	list, err := r.keeper.Catalog.Holds(t.Context(), "main")
	if noErr(t, err); len(list.List) != 1 || list.Released[h.ID].By != "legal" || len(list.InForce()) != 0 {
		t.Errorf("what is left of a released hold: %+v", list)
	}
	want := []string{"hold main", "removal.intent main", "hold.released main", "removal.intent main"}
	if !slices.Equal(r.book.entries, want) {
		t.Errorf("ledger %v, want %v", r.book.entries, want)
	}
}

// A hold of any kind that comes before a marked snapshot's removal makes the mark void
// for removal and for readers, until a grace after its release.
func TestAHoldSparesWhatWasMarkedAndIsThere(t *testing.T) {
	first, second := ago(9*day).ID, ago(8*day).ID
	for name, place := range map[string]func(r *rig) catalog.Hold{
		"a snapshot": func(r *rig) catalog.Hold { return r.hold(catalog.Hold{Kind: catalog.HoldSnapshot, Snapshot: first}) },
		"a span": func(r *rig) catalog.Hold {
			return r.hold(catalog.Hold{Kind: catalog.HoldSpan, From: noon.Add(-9*day + time.Hour), To: noon.Add(-9*day + 2*time.Hour)})
		},
	} {
		r := newRig(t, keepTwo)
		r.takeAll(9, 8, 1, 0)
		if m := r.apply(); !slices.Equal(m.Snapshots, []string{first, second}) {
			t.Fatalf("%s: marked %v", name, m.Snapshots)
		}
		r.settle()
		h := place(r)
		r.settle()
		r.now = noon.Add(day)
		r.sweep()
		for i := range r.dirs {
			if len(r.names(i, first)) == 0 || len(r.names(i, second)) > 0 {
				t.Errorf("%s on hold: zone %d has %v of it, and %v of the other", name, i, r.names(i, first), r.names(i, second))
			}
		}
		snaps, err := r.keeper.Catalog.Snapshots(t.Context(), "main")
		if noErr(t, err); !slices.ContainsFunc(snaps.Bodies(), func(s catalog.Snapshot) bool { return s.ID == first }) {
			t.Errorf("%s on hold: nobody can restore it", name)
		}
		_, err = r.keeper.Release(t.Context(), catalog.Released{Hold: h.ID, Reason: "closed", By: "legal"})
		noErr(t, err)
		if r.sweep(); len(r.names(0, first)) == 0 {
			t.Errorf("%s: it went with its hold, before the grace", name)
		}
		r.now = r.now.Add(day + time.Hour)
		if r.sweep(); len(r.names(0, first)) > 0 {
			t.Errorf("%s: it stays after its hold: %v", name, r.names(0, first))
		}
	}
}

// What is on hold is known by snapshot and, of a span, by the WAL.
func TestWhatIsOnHoldIsToldForAsLongAsItLasts(t *testing.T) {
	r := newRig(t, keepTwo)
	r.takeAll(9, 8, 1, 0)
	wal := func(ago time.Duration) catalog.WAL {
		return catalog.WAL{SystemID: "sys", Timeline: 1, From: place(ago), To: place(ago) + 1}
	}
	during, after := wal(9*day-time.Hour), wal(7*day)
	tell := func() (snapshots int, held, free bool) {
		on, err := r.keeper.OnHold(t.Context())
		noErr(t, err)
		inv, err := r.keeper.Inventory(t.Context())
		noErr(t, err)
		if kept := slices.ContainsFunc(inv.Holdings, func(h Holding) bool { return slices.ContainsFunc(h.Sample, h.KeptByHold) }); kept != (len(on.Snapshots) > 0) {
			t.Errorf("the inventory shows objects on hold: %v, with %d snapshots on hold", kept, len(on.Snapshots))
		}
		return len(on.Snapshots), on.WAL(during), on.WAL(after)
	}
	if n, held, free := tell(); n != 0 || held || free {
		t.Errorf("without a hold: %d snapshots, WAL %v, %v", n, held, free)
	}
	h := r.hold(catalog.Hold{Kind: catalog.HoldSpan, From: noon.Add(-9*day + time.Hour), To: noon.Add(-9*day + 2*time.Hour)})
	if n, held, free := tell(); n != 1 || !held || free {
		t.Errorf("on hold: %d snapshots, WAL of the span %v, behind the next snapshot %v", n, held, free)
	}
	_, err := r.keeper.Release(t.Context(), catalog.Released{Hold: h.ID, Reason: "closed", By: "legal"})
	noErr(t, err)
	if n, held, free := tell(); n != 0 || held || free {
		t.Errorf("released: %d snapshots, WAL %v, %v", n, held, free)
	}
}

func TestAHoldThatCannotBeBelievedStopsEveryRemoval(t *testing.T) {
	r := newRig(t, keepTwo)
	r.takeAll(9, 8, 1, 0)
	r.put(catalog.HoldName("main", "h1"), []byte("holdfast hold v2\n{}\n\n- x"))
	p, err := r.keeper.Plan(t.Context(), false)
	if noErr(t, err); p.Err() == nil || !strings.Contains(p.Err().Error(), "holds") {
		t.Errorf("%v", p.Err())
	}
}

func TestAHoldOnAProjectSuspendsItsPurge(t *testing.T) { // R7 of the anchors
	pg := pgtest.Start(t)
	r, p, conn := purger(t, pg)
	live, ours := r.live(conn)
	with := ago(day, ours(live.LSN-100))
	r.take(with)
	v, err := p.Preview(t.Context(), conn, "1")
	noErr(t, err)
	ask := catalog.Hold{Reason: "case of Acme", By: "legal", ReviewBy: noon.Add(365 * day)}
	if _, err := p.PlaceOnProject(t.Context(), v, ask); !errors.Is(err, ErrHold) {
		t.Errorf("a hold with the project's name in it: %v", err)
	}
	ask.Reason = "case 7"
	h, err := p.PlaceOnProject(t.Context(), v, ask)
	noErr(t, err)
	tomb, err := p.Request(t.Context(), conn, "1", "Acme")
	noErr(t, err)
	if _, err := p.DeleteInLive(t.Context(), conn, "1", "Acme", nil); !errors.Is(err, ErrOnHold) || !strings.Contains(err.Error(), h.ID) {
		t.Fatalf("deleted in live: %v", err)
	}
	_, err = conn.Exec(t.Context(), "DELETE FROM cms.record WHERE project_id = 1; DELETE FROM cms.project WHERE id = 1") // by whoever
	noErr(t, err)
	vacuumUntilAbsent(t, p, conn)
	absent, err := p.Catalog.Absences(t.Context())
	noErr(t, err)
	r.take(ago(-time.Hour, ours(absent[tomb.ID].LSN.SegmentStart(int64(seg))+seg+40)))
	r.keepOnlyNewest(noon.Add(2 * time.Hour))
	r.now = noon.Add(100 * day)
	one := advanceOne(t, p, conn)
	if one.Certificate != nil || one.Overdue || !one.LastCopyEnds.IsZero() || !slices.Equal(one.SuspendedBy, []string{h.Text()}) || !slices.Contains(blockers(one), h.Text()) {
		t.Errorf("on hold: %+v", one)
	}
	if left := r.names(0, "snapshots/"+with.ID+"/"); len(left) != 5 {
		t.Errorf("of the snapshot that has the project %v is left", left)
	}
	_, err = p.Release(t.Context(), catalog.Released{Hold: h.ID, Reason: "closed", By: "legal"})
	noErr(t, err)
	r.take(ago(-99*day, ours(absent[tomb.ID].LSN.SegmentStart(int64(seg))+2*seg+40)))
	r.keepOnlyNewest(r.now.Add(time.Hour))
	if one := advanceOne(t, p, conn); one.Certificate == nil {
		t.Errorf("released: %+v", one)
	}
}

// The notes of WAL say where a span's end is: one file is enough, and what tells no
// time is none.
func TestTheEndOfASpanIsFoundInTheNotesOfItsWAL(t *testing.T) {
	r := newRig(t, Policy{Window: day})
	for _, d := range []time.Duration{3 * day, 26 * time.Hour, 0} {
		r.take(ago(d))
	}
	for h := 1; h < 40; h++ {
		from := place(3*day) + lsn.LSN(h)*seg
		w := catalog.WAL{Cluster: "main", Epoch: 1, Timeline: 1, SystemID: "sys", From: from, To: from + seg, LastTime: noon.Add(-3*day + time.Duration(h)*time.Hour)}
		if h%2 == 0 {
			w.LastTime = time.Time{}
		}
		r.note(catalog.WALNoteName("main", 1, 1, uint64(from), uint64(from+seg), "0123abcd"), catalog.KindWAL, w)
	}
	r.settle()
	r.hold(catalog.Hold{Kind: catalog.HoldSpan, From: noon.Add(-70 * time.Hour), To: noon.Add(-60 * time.Hour)})
	in, err := r.keeper.Gather(t.Context())
	noErr(t, err)
	if end := place(3*day) + 14*seg; len(in.Passed) != 1 || in.Passed[0].LSN != end || in.Passed[0].SystemID != "sys" {
		t.Fatalf("the span is past at %+v, want %s", in.Passed, end)
	}
	p := plan(t, in)
	if got := walTable(p.WAL); !strings.Contains(got, "(13) hold ") || !strings.Contains(got, "(26) no snapshot and no window needs it") {
		t.Errorf("13 files of the span stay, and those behind it go:\n%s", got)
	}
}
