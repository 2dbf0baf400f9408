package main

import (
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
)

// The recovery time is that of the newest drill that proved something, and an objective
// below it is missed.
func TestStatusHoldsTheLastProofAgainstTheObjective(t *testing.T) {
	at := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	took := func(s float64) *float64 { return &s }
	proofs := []catalog.Proof{
		{Drill: "old", At: at.Add(-time.Hour), Level: "L8", Outcome: "pass", RTO: took(20)},
		{Drill: "new", At: at, Level: "L8", Outcome: "pass", RTO: took(400)},
		{Drill: "failed", At: at.Add(time.Hour), Level: "L8", Outcome: "fail", RTO: took(1)},
	}
	for objective, missed := range map[time.Duration]int{10 * time.Minute: 0, 5 * time.Minute: 1, 0: 0} {
		c := clusterStatus{Name: "cms", LastSnapshot: &snapshotRef{ID: "s", FinishedAt: at}}
		c.LastProof, c.RTO.Measured = newestProof(proofs)
		c.RTO.Objective = seconds(objective)
		doc := statusDoc{OK: true, At: at, Clusters: []clusterStatus{c}}
		doc.judge()
		var out strings.Builder
		doc.text(&out)
		if got := doc.Clusters[0].Missed; len(got) != missed || doc.OK != (missed == 0) {
			t.Errorf("objective %s: missed %q, ok %v", objective, got, doc.OK)
		}
		if !strings.Contains(out.String(), "RTO            6m40s in the last proof") || c.LastProof.Drill != "new" {
			t.Errorf("objective %s:\n%s", objective, out.String())
		}
	}
	if proof, rto := newestProof(nil); proof != nil || rto != nil {
		t.Errorf("from nothing: %v, %v", proof, rto)
	}
}

func TestASpanIsToldInItsLargestUnits(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 1234 * time.Millisecond: "1.2s", time.Minute: "1m", 10 * time.Minute: "10m", 90 * time.Second: "1m30s", time.Hour: "1h",
		70 * time.Minute: "1h10m", time.Hour + time.Second: "1h0m1s", 24 * time.Hour: "24h", 7 * 24 * time.Hour: "7d", 50 * time.Hour: "2d2h",
	} {
		if got := span(d); got != want {
			t.Errorf("%s: %q, want %q", d, got, want)
		}
	}
}
