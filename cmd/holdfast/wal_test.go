package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// walIn is an entry that zones hold.
func walIn(epoch int, from, to lsn.LSN, zones ...string) catalog.WALEntry {
	return catalog.WALEntry{Epoch: epoch, Timeline: 1, From: from, To: to, Zones: zones}
}

func recordOf(entries ...catalog.WALEntry) walRecord {
	return walRecord{
		entries: catalog.WALEntries{List: entries, Complete: true},
		root: roots([]catalog.Lineage{
			{Epoch: 1, SystemID: "7"}, {Epoch: 2, SystemID: "7"}, {Epoch: 3, SystemID: "8"},
		}),
	}
}

func TestTheNextWriterOfASystemGoesOnWhereTheLastEndedOrItIsAGap(t *testing.T) { // C-38b
	r := recordOf(walIn(1, 0, 10, "a"), walIn(2, 10, 20, "a"), walIn(3, 50, 60, "a"))
	if holes := r.holes(nil); len(holes) != 0 {
		t.Errorf("a taken-over lineage and an upgraded system are holes: %+v", holes)
	}
	r = recordOf(walIn(1, 0, 10, "a"), walIn(2, 12, 20, "a"))
	if holes := r.holes(nil); len(holes) != 1 || holes[0].From != 10 || holes[0].To != 12 {
		t.Errorf("the hole between two writers: %+v", holes)
	}
	r.gone = r.rooted([]catalog.WALSpan{{Epoch: 2, Timeline: 1, From: 8, To: 13}})
	if holes := r.holes(nil); len(holes) != 0 {
		t.Errorf("what retention let go is a hole: %+v", holes)
	}
}

func TestANoteWithoutItsObjectHoldsNothing(t *testing.T) {
	r := recordOf(walIn(1, 0, 10, "a", "b"), walIn(1, 10, 20, "a", "b"))
	r.entries.List[1].Bare = []string{"b"}
	got := r.runs("b", nil)
	if len(got) != 2 || got[0].State != catalog.WALFound || got[1].State != catalog.WALDelayed {
		t.Errorf("zone b: %+v", got)
	}
	r.entries.List[1].Bare = []string{"a", "b"}
	r.entries.List = append(r.entries.List, walIn(1, 20, 30, "a"))
	if holes := r.holes(nil); len(holes) != 1 || holes[0].From != 10 {
		t.Errorf("no zone has the object: %+v", holes)
	}
	r.entries.Complete = false
	if holes := r.holes(nil); len(holes) != 0 {
		t.Errorf("lost without proof, while a zone does not answer: %+v", holes)
	}
}

func TestWhatWouldBeLostIsMeasuredZoneByZone(t *testing.T) {
	now := time.Unix(1000, 0)
	zone := func(name string, newest lsn.LSN, ago time.Duration) walZone {
		return walZone{Name: name, Newest: newest, Window: window{To: now.Add(-ago)}}
	}
	c := walCluster{
		Archiving: &archiveDoc{ServerEnd: 30, Connected: true},
		Zones:     []walZone{zone("a", 30, time.Hour), zone("b", 20, 4*time.Second), {Name: "c", Err: "away"}},
	}
	c.measure(now)
	if a, b := c.Zones[0].RPO, c.Zones[1].RPO; a == nil || *a != 0 || b == nil || *b != 4 || c.Zones[2].RPO != nil {
		t.Errorf("zones %+v", c.Zones)
	}
	if c.RPO == nil || *c.RPO != 0 {
		t.Error("the best zone holds everything, and something would be lost")
	}
	var out strings.Builder
	c.Zones[1].Runs = []runDoc{{catalog.WALFound, 1, 1, 0, 20}, {catalog.WALDelayed, 1, 1, 20, 30}}
	walDoc{[]walCluster{c}}.text(&out)
	for _, want := range []string{"FOUND     timeline 1, 0/0 to 0/14", "DELAYED   timeline 1, 0/14 to 0/1E", "alone would lose 4s", "zone c            does not answer: away"} {
		if !slices.ContainsFunc(strings.Split(out.String(), "\n"), func(l string) bool { return strings.Contains(l, want) }) {
			t.Errorf("no %q in:\n%s", want, out.String())
		}
	}
}
