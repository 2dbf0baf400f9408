package main

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/drills"
	"github.com/holdfast-dr/holdfast/internal/ledger"
)

// A slot that nobody will make up is told of, once: of a drill that is no longer
// configured, and of every drill where the state is lost.
func TestSlotsThatNobodyMakesUpAreTold(t *testing.T) {
	day := func(n, hour int) time.Time { return time.Date(2026, 11, n, hour, 0, 0, 0, time.UTC) }
	entry := func(origin, typ string, at time.Time, body any) ledger.Record {
		text, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		return ledger.Record{Origin: origin, Envelope: ledger.Envelope{Type: typ, Time: ledger.Clock{Wall: at}, Body: text}}
	}
	nightly := drills.Plan{Name: "nightly", Schedule: "0 3 * * *"}
	plans := drills.Plans{Drills: []drills.Plan{nightly, {Name: "asked"}}}
	due := drills.Announcement{Due: ledger.Due{Slot: drills.SlotKey("nightly", day(2, 3)), DueAt: day(2, 3)}}
	tail := []ledger.Record{
		entry("db-1", ledger.TypeDrillPlans, day(1, 0), plans),
		entry("db-1", ledger.TypeHeartbeat, day(1, 1), struct{}{}),
		entry("db-1", ledger.TypeDrillPlans, day(1, 12), plans),
		entry("db-1", ledger.TypeDrillDue, day(2, 3), due),
	}
	later := entry("db-2", ledger.TypeDrillPlans, day(3, 12), drills.Plans{Abandoned: []drills.Abandoned{{Drill: "nightly", DueAt: day(3, 3)}}})
	tests := []struct {
		name       string
		tails      [][]ledger.Record
		own        string
		configured []drills.Plan
		want       []time.Time
	}{
		{"the scheduler remembers it", [][]ledger.Record{tail}, "db-1", []drills.Plan{nightly}, nil},
		{"it is no longer configured", [][]ledger.Record{tail}, "db-1", nil, []time.Time{day(3, 3), day(4, 3)}},
		{"the state is lost", [][]ledger.Record{tail, nil}, "db-2", []drills.Plan{nightly}, []time.Time{day(3, 3), day(4, 3)}},
		{"told already", [][]ledger.Record{tail, {later}}, "db-2", nil, nil},
		{"nothing was planned", [][]ledger.Record{nil}, "db-1", nil, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := abandoned(tt.tails, tt.own, tt.configured, day(4, 9))
			if err != nil || len(got) != len(tt.want) {
				t.Fatalf("%+v, %v: want %v", got, err, tt.want)
			}
			for i, a := range got {
				if !a.DueAt.Equal(tt.want[i]) || a.Drill != "nightly" || a.Why == "" {
					t.Errorf("slot %d: %+v, want %s", i, a, tt.want[i])
				}
			}
		})
	}
}
