package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/snapshot"
)

func TestTheGraphShowsWhoWroteAndWhichTimelineLeftWhich(t *testing.T) {
	on := func(epoch int, timeline uint32, from, to lsn.LSN) catalog.WALEntry {
		return catalog.WALEntry{Epoch: epoch, Timeline: timeline, From: from, To: to, Zones: []string{"a"}}
	}
	r := walRecord{
		entries: catalog.WALEntries{Complete: true, List: []catalog.WALEntry{
			on(1, 1, 0x10, 0x40), on(1, 1, 0x28, 0x28), on(2, 2, 0x28, 0x28), on(2, 2, 0x20, 0x60), on(2, 2, 0x60, 0x60),
			on(2, 3, 0x58, 0x58), on(2, 3, 0x50, 0x90), on(3, 1, 0x10, 0x20),
		}},
		root: map[int]int{1: 1, 2: 1, 3: 3},
		lineages: []catalog.Lineage{
			{Epoch: 1, Node: "db1", Timeline: 1, StartLSN: 0x10},
			{Epoch: 2, Parent: 1, How: "promoted", Node: "db2", Timeline: 2, StartLSN: 0x2a},
			{Epoch: 3, Parent: 2, How: "upgraded", Node: "db2", Timeline: 1, StartLSN: 0x10},
		},
	}
	var out strings.Builder
	r.graph().text(&out)
	want := `  lineage 1: node db1, first, on timeline 1 from 0/10
  lineage 2: node db2, promoted after 1, on timeline 2 from 0/2A
  lineage 3: node db2, upgraded after 2, on timeline 1 from 0/10
  timeline 1
    0/10 to 0/40 by lineage 1
    timeline 2, which began at 0/28
      0/20 to 0/60 by lineage 2
      timeline 3, which began at 0/58
        0/50 to 0/90 by lineage 2
  timeline 1
    0/10 to 0/20 by lineage 3
`
	if out.String() != want {
		t.Errorf("got:\n%swant:\n%s", out.String(), want)
	}
}

// P9
func TestWhatADeadPrimaryHadBehindTheForkIsNoEnd(t *testing.T) {
	dead := catalog.WALSpan{Epoch: 1, Timeline: 1, From: 0x10, To: 0x90}
	living := catalog.WALSpan{Epoch: 1, Timeline: 2, From: 0x20, To: 0x40}
	all := []catalog.WALSpan{dead, living}
	for _, c := range []struct {
		has  []catalog.WALSpan
		want lsn.LSN
	}{{all, 0x40}, {all[:1], 0x20}, {all[1:], 0x40}, {nil, 0}} {
		if got := end(c.has, all); got != c.want {
			t.Errorf("%+v end at %s, want %s", c.has, got, c.want)
		}
	}
	if got := end(nil, nil); got != 0 {
		t.Errorf("nothing ends at %s", got)
	}
}

// C-51
func TestTheForecastOfASlotTakesTheLesserRoomAndOpensAnIncidentInTime(t *testing.T) {
	free, safe := int64(100<<30), int64(36<<20)
	for _, c := range []struct {
		name     string
		view     snapshot.SlotView
		free     *int64
		severity string
		words    string
	}{
		{"well", snapshot.SlotView{SlotState: postgres.SlotState{WALStatus: "reserved"}}, &free, "", "room for 100.0 GiB"},
		{"limited", snapshot.SlotView{SlotState: postgres.SlotState{WALStatus: "extended", SafeBytes: &safe}, Growth: 20 << 10}, &free, "critical", "full in 30m"},
		{"a disk that fills", snapshot.SlotView{SlotState: postgres.SlotState{WALStatus: "extended"}, Growth: 4 << 20}, &free, "warning", "full in 7h"},
		{"a disk that is far away", snapshot.SlotView{SlotState: postgres.SlotState{WALStatus: "extended"}, Growth: 4 << 20}, nil, "", "kept"},
		{"slowly", snapshot.SlotView{SlotState: postgres.SlotState{WALStatus: "extended"}, Growth: 1 << 10}, &free, "", "room for"},
		{"unreserved", snapshot.SlotView{SlotState: postgres.SlotState{WALStatus: "unreserved"}}, nil, "critical", "unreserved"},
		{"lost", snapshot.SlotView{SlotState: postgres.SlotState{WALStatus: "lost", Invalidated: "wal_removed"}}, nil, "critical", "wal_removed"},
		{"away", snapshot.SlotView{SlotState: postgres.SlotState{WALStatus: "lost"}, Err: errors.New("refused")}, nil, "", "cannot be seen: refused"},
	} {
		d := slotDocOf(c.view, c.free)
		if severity, title := d.trouble(); severity != c.severity || (title == "") != (severity == "") || !strings.Contains(d.words(), c.words) {
			t.Errorf("%s: %q %q, %s", c.name, severity, title, d.words())
		}
	}
}
