package main

import (
	"slices"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/drills"
	"github.com/holdfast-dr/holdfast/internal/catalog"
)

func TestWhatDrillsProvedOfLate(t *testing.T) {
	now := time.Date(2026, 11, 30, 0, 0, 0, 0, time.UTC)
	ago := func(days int) time.Time { return now.AddDate(0, 0, -days) }
	kept := []catalog.Snapshot{
		{ID: "a", StartedAt: ago(60), NewBytes: 700},
		{ID: "b", StartedAt: ago(40), NewBytes: 200},
		{ID: "c", StartedAt: ago(1), NewBytes: 100},
	}
	proof := func(id, level, outcome, zone string, days int) catalog.Proof {
		return catalog.Proof{Snapshot: id, Level: level, Outcome: outcome, Zone: zone, At: ago(days)}
	}
	tests := []struct {
		name   string
		proofs []catalog.Proof
		want   provenDoc
	}{
		{"none", nil, provenDoc{Oldest: "a", OldestSince: ago(60)}},
		{
			"one, twice, and one of long ago",
			[]catalog.Proof{proof("c", "L7", drills.Pass, "", 1), proof("c", "L7", drills.Pass, "x", 2), proof("a", "L7", drills.Pass, "y", 31)},
			provenDoc{Snapshots: 1, Bytes: 100, Zones: []string{"x"}, Oldest: "a", OldestSince: ago(60)},
		},
		{"a failure proves nothing", []catalog.Proof{proof("a", "L7", drills.Fail, "x", 1)}, provenDoc{Oldest: "a", OldestSince: ago(60)}},
		{"one that is gone", []catalog.Proof{proof("gone", "L7", drills.Pass, "", 1)}, provenDoc{Oldest: "a", OldestSince: ago(60)}},
		{"all", []catalog.Proof{proof("a", "L7", drills.Pass, "", 1), proof("b", "L7", drills.PassWithGaps, "", 1), proof("c", "L7", drills.Pass, "", 1)}, provenDoc{Snapshots: 3, Bytes: 1000}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := provenOf(kept, tt.proofs, now)
			if got.Snapshots != tt.want.Snapshots || got.Bytes != tt.want.Bytes || got.Oldest != tt.want.Oldest || !got.OldestSince.Equal(tt.want.OldestSince) || !slices.Equal(got.Zones, append([]string{}, tt.want.Zones...)) {
				t.Errorf("%+v, want %+v", got, tt.want)
			}
			if share := float64(got.Snapshots) / 3; got.Share != share || got.BytesShare != float64(got.Bytes)/1000 {
				t.Errorf("shares %f and %f", got.Share, got.BytesShare)
			}
		})
	}
	if empty := provenOf(nil, nil, now); empty.Share != 0 || empty.BytesShare != 0 || empty.Oldest != "" {
		t.Errorf("nothing kept: %+v", empty)
	}
}
