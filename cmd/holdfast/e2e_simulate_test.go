package main

import (
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/postgres/pgtest"
)

// From the real present, and from nothing: a year by the schedule and the policy.
func TestTheNext400DaysAreDrawn(t *testing.T) {
	pg := pgtest.Start(t)
	r := newRig(t, pg, false)
	r.cluster = "    retention: {window: 7d, daily: 7, monthly: 12, keep_at_most: 400d}\n"
	r.configure()
	taken := ask[snapshotDoc](r, "db", "snapshot", "take", "cms").ID
	type simulations struct {
		Simulations []simulationDoc `json:"simulations"`
	}
	began := time.Now()
	doc := ask[simulations](r, "db", "retention", "simulate", "cms", "--days", "400")
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("it took %s", took)
	}
	s := doc.Simulations[0]
	if first := s.Snapshots[0]; len(s.Days) != 401 || first.ID != taken || first.Virtual || len(s.Snapshots) < 2 || !s.Snapshots[1].Virtual {
		t.Errorf("%d days, %d snapshots, the first %+v", len(s.Days), len(s.Snapshots), first)
	}
	if s := ask[simulations](r, "db", "retention", "simulate", "--from-nothing", "--days", "30").Simulations; len(s) != 1 || len(s[0].Snapshots) > 1 || len(s[0].Days) != 31 {
		t.Errorf("from nothing: %+v", s)
	}
	text := r.hold("db", 0, "retention", "simulate", "cms")
	if lines := strings.Split(text, "\n"); len(lines) < 23 || !strings.Contains(text, "newest 1") || !strings.Contains(text, "now") {
		t.Errorf("drawn:\n%s", text)
	}
	r.hold("db", 2, "retention", "simulate", "cms", "--days", "0")
}
