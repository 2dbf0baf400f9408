package retention

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

var sliceRig = Policy{Window: 7 * day, Daily: 7, RemovalGrace: day}

// slice archives bytes of the segment that begins at at.
func (r *rig) slice(at, from, to lsn.LSN) {
	r.t.Helper()
	mac := strings.Repeat(fmt.Sprintf("%08x", uint32(at>>8+from)<<8^uint32(to)), 4)
	name := catalog.SliceName("main", 1, 1, lsn.SegmentName(1, at.Segment(int64(seg)), int64(seg)), uint32(from), uint32(to), mac)
	ref := r.put(name, []byte("slice "+name))
	r.note(catalog.WALNoteName("main", 1, 1, uint64(at+from), uint64(at+to), mac[:8]), catalog.KindWAL, catalog.WAL{
		Cluster: "main", Epoch: 1, Timeline: 1, SystemID: "sys", From: at + from, To: at + to, Slice: true, Object: ref,
	})
}

// busy archives a segment as a daemon does: slices, then all of it.
func (r *rig) busy(at lsn.LSN, slices int) {
	r.t.Helper()
	for i := range lsn.LSN(slices) {
		r.slice(at, i*seg/lsn.LSN(slices), (i+1)*seg/lsn.LSN(slices))
	}
	r.segment(at)
}

// slices counts the slices of a zone by their objects, and their notes.
func (r *rig) slices(i int) (objects, notes int) {
	for _, n := range r.names(i, "/wal/") {
		if e, ok := catalog.ParseWALNote(n); ok && e.To-e.From < seg {
			notes++
		} else if !ok && strings.Contains(filepath.Base(n), ".0") && !strings.HasSuffix(n, ".idx.age") {
			objects++
		}
	}
	return objects, notes
}

// retain is one run of retention.
func (r *rig) retain() {
	r.t.Helper()
	r.settle()
	r.apply()
	r.sweep()
	r.settle()
}

// span is the WAL that a zone's own files give without a hole.
func (r *rig) stretches(i int) []catalog.WALSpan {
	r.t.Helper()
	var list []catalog.WALEntry
	for _, n := range r.names(i, ".note") {
		if e, ok := catalog.ParseWALNote(n); ok {
			list = append(list, e)
		}
	}
	slices.SortFunc(list, func(a, b catalog.WALEntry) int { return strings.Compare(a.Name, b.Name) })
	return catalog.Stretches(list)
}

// D1, D2, D8: however often retention runs, slices cost one entry of the ledger a day.
func TestTheSlicesOfADayGoUnderOneEntryOfTheLedger(t *testing.T) {
	r := newRig(t, sliceRig)
	snap := ago(day)
	r.take(snap)
	r.take(ago(0))
	at := first(ago(0)) + seg
	before := 0
	for run := range 12 { // two days, eight hours apart from each other in fours
		r.now = noon.Add(time.Duration(run) * 4 * time.Hour)
		r.busy(at, 3)
		at += seg
		r.retain()
		r.retain()
		if _, notes := r.slices(0); notes < before {
			before = notes
		}
	}
	days := map[string]int{}
	for i, e := range r.book.entries {
		days[e]++
		if e == "removal.result main" {
			t.Errorf("entry %d is a result of its own", i)
		}
	}
	// noon to midnight, a whole day, and the half of the next
	if days["removal.intent main"] != 3 || len(r.book.entries) != 3 {
		t.Fatalf("ledger %v, want one entry for each of three days", r.book.entries)
	}
	if e := r.book.bodies[2].Ended; len(e) != 1 || e[0].Mark != r.book.bodies[0].Mark || e[0].Removed == 0 || len(e[0].Zones) != 3 {
		t.Errorf("the third day's entry tells %+v, want the end of %s", e, r.book.bodies[0].Mark)
	}
	for n := range 3 { // nothing more comes: what is left goes, and is told of
		r.now = noon.Add(time.Duration(3+n) * day)
		r.take(snapAt(r.now))
		r.retain()
	}
	for i := range r.dirs {
		if objects, notes := r.slices(i); objects+notes > 0 {
			t.Errorf("zone %d has %d slices and %d notes of slices", i, objects, notes)
		}
	}
	told := 0
	for _, b := range r.book.bodies {
		told += len(b.Ended)
	}
	if told != 4 || len(r.book.entries) > 6 {
		t.Errorf("%d marks are told to have ended, by %v", told, r.book.entries)
	}
}

func snapAt(t time.Time) catalog.Snapshot {
	s := ago(0)
	s.ID, s.StartedAt, s.FinishedAt = "later-"+t.Format("0102"), t, t
	return s
}

// A mark of slices says nothing of the segments between them.
func TestAMarkOfSlicesNeverSpeaksOfASegment(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := Inputs{Cluster: "main", Now: noon, Policy: sliceRig, Complete: true, MaxShare: 1}
		in.Snapshots = []catalog.Snapshot{ago(day), ago(0)}
		in.Lineages = []catalog.Lineage{{Cluster: "main", Epoch: 1, SystemID: "sys", Timeline: 1}}
		zones := []string{"a", "b", "c"}
		start := first(ago(day))
		file := func(from, to lsn.LSN, label string) File {
			at := rapid.SliceOfNDistinct(rapid.SampledFrom(zones), 1, 3, rapid.ID).Draw(t, label)
			return File{WALEntry: catalog.WALEntry{Epoch: 1, Timeline: 1, From: from, To: to, Name: fmt.Sprint(label, from, to), Zones: at}}
		}
		for i := range lsn.LSN(rapid.IntRange(1, 6).Draw(t, "segments")) {
			at := start + i*seg
			for from := lsn.LSN(0); from < seg; {
				to := min(seg, from+seg/8*lsn.LSN(rapid.IntRange(1, 8).Draw(t, "slice")))
				if rapid.IntRange(0, 4).Draw(t, "there") > 0 {
					in.WAL = append(in.WAL, file(at+from, at+to, "s"))
				}
				from = to
			}
			if rapid.IntRange(0, 3).Draw(t, "full") > 0 {
				in.WAL = append(in.WAL, file(at, at+seg, "f"))
			}
		}
		checkSlices(t, in, zones)
	})
}

// checkSlices sees that what the plan lets go of slices takes no byte from any zone.
func checkSlices(t *rapid.T, in Inputs, zones []string) {
	p, err := MakePlan(in)
	if err != nil || len(p.Refused) > 0 {
		t.Fatalf("%v %v", err, p.Refused)
	}
	var spans []catalog.WALSpan
	for _, d := range p.WAL {
		if !d.Keep && covered(d) {
			spans = append(spans, d.span())
		}
	}
	for _, z := range zones {
		var all, left []catalog.WALEntry
		for _, f := range sortFiles(in.WAL) {
			if !slices.Contains(f.Zones, z) {
				continue
			}
			all = append(all, f.WALEntry)
			under := slices.ContainsFunc(spans, func(s catalog.WALSpan) bool { return s.Takes(f.WALEntry) })
			if under && strings.HasPrefix(f.Name, "f") {
				t.Fatalf("the mark %v speaks of the segment %s..%s", spans, f.From, f.To)
			}
			if !under {
				left = append(left, f.WALEntry)
			}
		}
		if before, after := catalog.Stretches(all), catalog.Stretches(left); !slices.Equal(before, after) {
			t.Fatalf("zone %s had %v, and has %v", z, before, after)
		}
	}
}

// A zone that lacks the segment keeps its slices until it has it.
func TestAZoneThatLacksTheSegmentKeepsItsSlices(t *testing.T) {
	r := newRig(t, sliceRig)
	r.take(ago(0))
	at := first(ago(0)) + seg
	r.busy(at, 4)
	r.settle()
	for _, n := range r.names(2, lsn.SegmentName(1, at.Segment(int64(seg)), int64(seg))+"-") {
		noErr(t, os.Remove(filepath.Join(r.dirs[2], n)))
	}
	before := r.stretches(2)
	for d := range 3 {
		r.now = noon.Add(time.Duration(d) * day)
		r.apply()
		r.sweep()
	}
	if _, notes := r.slices(2); notes != 4 || !slices.Equal(r.stretches(2), before) || len(r.book.entries) != 0 {
		t.Errorf("%d slices are left where the segment is not; ledger %v", notes, r.book.entries)
	}
}

// D1, D2, D6: killed anywhere, the removal goes on, in the order that is safe, and the
// ledger gets no second entry of the day.
func TestARemovalOfSlicesThatDiesAnywhereGoesOn(t *testing.T) {
	r := newRig(t, sliceRig)
	r.take(ago(0))
	at := first(ago(0)) + seg
	r.busy(at, 3)
	r.busy(at+seg, 2)
	r.settle()
	r.book.after = errors.New("killed behind the entry")
	p, err := r.keeper.Plan(t.Context(), false)
	noErr(t, err)
	if _, err := r.keeper.Apply(t.Context(), p); err == nil {
		t.Fatal("marked although the ledger did not answer")
	}
	r.book.after = nil
	r.retain()
	if marks, err := r.keeper.Catalog.Forgotten(t.Context(), "main"); err != nil || len(marks.List) > 0 || len(r.book.entries) != 1 {
		t.Fatalf("%d marks, ledger %v, %v: want the next day awaited", len(marks.List), r.book.entries, err)
	}
	r.now = noon.Add(day)
	if m := r.apply(); !m.OnlyCovered() {
		t.Fatalf("the next day marks %+v", m)
	}
	noErr(t, os.Remove(r.keeper.State)) // and the state is lost
	r.now = r.now.Add(time.Hour)
	r.busy(at+2*seg, 2)
	r.retain()
	if want := []string{"removal.intent main", "removal.intent main", "retention.policy main"}; !slices.Equal(r.book.entries, want) {
		t.Errorf("ledger %v: a lost state made a second entry of the day", r.book.entries)
	}
	r.now = noon.Add(2*day + time.Hour)
	before := r.stretches(0)
	whole := r.keeper.Remover
	for steps := 0; ; steps++ {
		ctx, cancel := context.WithCancel(t.Context())
		r.keeper.Remover = &dying{Remover: whole, n: 1, cancel: cancel}
		_, err := r.keeper.Sweep(ctx)
		cancel()
		for i := range r.dirs {
			if got := r.stretches(i); !slices.Equal(got, before) {
				t.Fatalf("after %d steps zone %d has %v of %v", steps, i, got, before)
			}
			for _, n := range r.names(i, ".note") {
				if e, ok := catalog.ParseWALNote(n); ok && e.To-e.From < seg && !r.backed(i, n) {
					t.Fatalf("after %d steps the note %s stands without its object", steps, n)
				}
			}
		}
		if err == nil {
			break
		}
		if steps > 60 {
			t.Fatal("the sweep never ends")
		}
	}
	for i := range r.dirs {
		if objects, notes := r.slices(i); objects != 2 || notes != 2 { // of the segment that is not marked yet
			t.Errorf("zone %d has %d slices and %d notes of slices", i, objects, notes)
		}
	}
}

// backed says whether a zone has the object of a note.
func (r *rig) backed(i int, note string) bool {
	base := strings.TrimSuffix(filepath.Base(note), ".note")
	mac := base[strings.LastIndexByte(base, '-')+1:]
	return slices.ContainsFunc(r.names(i, "-"+mac), func(n string) bool { return strings.HasSuffix(n, ".age") })
}
