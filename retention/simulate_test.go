package retention

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
)

// every are the slots of a schedule that is due every so often.
func every(step, span time.Duration) (slots []time.Time) {
	for at := noon.Add(step); !at.After(noon.Add(span)); at = at.Add(step) {
		slots = append(slots, at)
	}
	return slots
}

func simulated(t *testing.T, in Inputs, slots []time.Time, days int) Simulation {
	t.Helper()
	s, err := Simulate(in, slots, noon.AddDate(0, 0, days))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// The simulation of 400 days is what plans of every day would make of them: nothing
// past the ceiling, nothing below the floor, the counts as the policy says.
func TestASimulationEndsAsThePolicySays(t *testing.T) {
	p := Policy{Window: 7 * day, Daily: 7, Weekly: 5, Monthly: 12, KeepAtLeast: 7 * day, KeepAtMost: 400 * day, RemovalGrace: day, RenewAfter: 30 * day, Lead: 10 * time.Minute}
	began := time.Now()
	s := simulated(t, inputs(p), every(6*time.Hour, 400*day), 400)
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("400 days of 4 snapshots took %s", took)
	}
	if len(s.Days) != 401 || len(s.Snapshots) != 1600 || len(s.Refused) != 0 || len(s.Over) != 0 {
		t.Fatalf("%d days, %d snapshots, refused %v, over %v", len(s.Days), len(s.Snapshots), s.Refused, s.Over)
	}
	end := s.Days[400]
	if end.Rules["daily"] != 7 || end.Rules["weekly"] != 5 || end.Rules["monthly"] != 12 || end.Rules["in the window"] != 28 || end.Snapshots < 28+12-1 || end.Waiting == 0 {
		t.Errorf("after 400 days: %+v", end)
	}
	if from := end.At.Sub(end.Window); from < 7*day || from > 7*day+6*time.Hour {
		t.Errorf("the window reaches %s back", from)
	}
	for _, l := range s.Snapshots {
		if !l.Marked.IsZero() && l.Marked.Sub(l.At) < p.Floor() || l.Gone.After(l.At.Add(p.KeepAtMost)) {
			t.Errorf("%+v", l)
		}
	}
}

func TestASimulationGoesOnFromThePresent(t *testing.T) {
	in := inputs(Policy{Daily: 2, KeepAtMost: 60 * day}, ago(20*day), ago(11*day), ago(10*day), ago(9*day), ago(8*day), ago(7*day), ago(0))
	in.MaxShare = 0
	in.Holds = []Hold{onSnapshot("h1", ago(20*day).ID, "case 7")}
	s := simulated(t, in, every(day, 60*day), 60)
	if len(s.Refused) != 1 || !strings.Contains(s.Refused[0].Why[0], "removes 4 of 7") || !s.Refused[0].At.Equal(noon) {
		t.Errorf("refused %+v", s.Refused)
	}
	first := s.Snapshots[0]
	if first.Virtual || !first.Marked.IsZero() || !slices.Equal(first.Reasons, []string{"hold h1: case 7"}) {
		t.Errorf("what is on hold: %+v", first)
	}
	if len(s.Over) != 1 || s.Over[0].ID != first.ID || !slices.Equal(s.Over[0].Needs, []string{"release of a hold"}) {
		t.Errorf("over-retained: %+v", s.Over)
	}
	if last := s.Days[60]; last.Snapshots != 3 || last.Rules["hold"] != 1 || last.Rules["daily"] != 2 {
		t.Errorf("the last day: %+v", last)
	}
	in.Complete, in.Missing = false, []string{"zone b"}
	if _, err := Simulate(in, nil, noon); !errors.Is(err, ErrSimulate) || !strings.Contains(err.Error(), "zone b") {
		t.Errorf("from what is not known: %v", err)
	}
}

// A schedule that ends leaves what the policy never removes.
func TestASimulationWithoutSnapshotsToComeKeepsTheNewest(t *testing.T) {
	in := inputs(Policy{Window: day, KeepAtMost: 10 * day}, ago(2*day), ago(day), ago(0))
	in.Proofs = []catalog.Proof{{Snapshot: ago(day).ID, Outcome: "pass"}}
	s := simulated(t, in, nil, 30)
	if last := s.Days[30]; last.Snapshots != 2 || len(s.Over) != 2 {
		t.Errorf("%+v, over %+v", last, s.Over)
	}
}
