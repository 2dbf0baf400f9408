package catalog

import (
	"slices"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

func TestAZoneTellsWhatItFoundWhatIsLateWhatIsOnItsWayAndWhatIsLost(t *testing.T) { // C-38b
	on := func(timeline uint32, ends ...lsn.LSN) (out []WALSpan) {
		for i := 0; i < len(ends); i += 2 {
			out = append(out, WALSpan{Epoch: 1, Timeline: timeline, From: ends[i], To: ends[i+1]})
		}
		return out
	}
	run := func(state WALState, from, to lsn.LSN) WALRun {
		return WALRun{WALSpan{Epoch: 1, Timeline: 1, From: from, To: to}, state}
	}
	for _, c := range []struct {
		name string
		view WALView
		want []WALRun
	}{
		{"nothing", WALView{}, nil},
		{"all there", WALView{Mine: on(1, 0, 10, 10, 20), Any: on(1, 0, 20)}, []WALRun{run(WALFound, 0, 20)}},
		{"late at both ends", WALView{Mine: on(1, 5, 10), Any: on(1, 0, 20)}, []WALRun{run(WALDelayed, 0, 5), run(WALFound, 5, 10), run(WALDelayed, 10, 20)}},
		{"on its way", WALView{Mine: on(1, 0, 10), Any: on(1, 0, 10), Coming: on(1, 10, 14)}, []WALRun{run(WALFound, 0, 10), run(WALUploading, 10, 14)}},
		{"lost", WALView{Mine: on(1, 0, 10, 12, 20), Any: on(1, 0, 10, 12, 20)}, []WALRun{run(WALFound, 0, 10), run(WALLost, 10, 12), run(WALFound, 12, 20)}},
		{"a hole before what is on its way", WALView{Mine: on(1, 0, 10), Any: on(1, 0, 10), Coming: on(1, 12, 14)}, []WALRun{run(WALFound, 0, 10), run(WALLost, 10, 12), run(WALUploading, 12, 14)}},
		{"not proven", WALView{Mine: on(1, 0, 10, 12, 20), Any: on(1, 0, 10, 12, 20), Doubt: true}, []WALRun{run(WALFound, 0, 10), run(WALDelayed, 10, 12), run(WALFound, 12, 20)}},
		{"let go", WALView{Mine: on(1, 0, 10, 12, 20), Any: on(1, 0, 20), Gone: on(1, 9, 11, 11, 13)}, []WALRun{run(WALFound, 0, 10), run(WALFound, 12, 20)}},
		{"let go in part only", WALView{Mine: on(1, 0, 10, 14, 20), Any: on(1, 0, 10, 14, 20), Gone: on(1, 9, 11)}, []WALRun{run(WALFound, 0, 10), run(WALLost, 10, 14), run(WALFound, 14, 20)}},
		{"let go on another timeline", WALView{Mine: on(1, 0, 10, 14, 20), Any: on(1, 0, 10, 14, 20), Gone: on(2, 0, 20)}, []WALRun{run(WALFound, 0, 10), run(WALLost, 10, 14), run(WALFound, 14, 20)}},
	} {
		if got := c.view.Runs(); !slices.Equal(got, c.want) {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

func TestATimelineOfAnotherLineageIsNoHole(t *testing.T) {
	spans := []WALSpan{{1, 1, 0, 10}, {1, 2, 30, 40}, {2, 1, 50, 60}}
	for _, r := range (WALView{Mine: spans, Any: spans}).Runs() {
		if r.State != WALFound {
			t.Errorf("%+v", r)
		}
	}
}
