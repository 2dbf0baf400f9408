package ledger

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Due is what the body of an entry of type "drill.due" embeds: a slot, which is
// owed exactly one outcome by its deadline.
type Due struct {
	Slot     string    `json:"slot"` // unique in the repository
	DueAt    time.Time `json:"due_at"`
	Deadline time.Time `json:"deadline"`
}

// Outcome is what the body of an entry of type "drill.outcome" embeds. Slot is ""
// for a drill outside any slot.
type Outcome struct {
	Slot    string `json:"slot"`
	Outcome string `json:"outcome"`
}

// Outcomes are what a drill can end with.
var Outcomes = []string{"pass", "pass_with_gaps", "fail", "inconclusive", "timed_out", "aborted", "skipped", "missed"}

// SlotsReport counts the slots of all logs together.
type SlotsReport struct {
	Due      int            `json:"due"`
	Pending  int            `json:"pending"` // without an outcome, before their deadline
	Unasked  int            `json:"unasked"` // drills outside any slot
	Outcomes map[string]int `json:"outcomes"`
	Missing  []string       `json:"missing"` // past their deadline without an outcome: faults
}

type slots struct {
	dues     map[string]placed[Due]
	outcomes map[string][]placed[Outcome]
	unasked  int
}

type placed[T any] struct {
	body   T
	origin string
	index  int64
}

func newSlots() *slots {
	return &slots{dues: map[string]placed[Due]{}, outcomes: map[string][]placed[Outcome]{}}
}

// due takes a slot; told twice alike it is one.
func (s *slots) due(r Record) error {
	var d Due
	if err := json.Unmarshal(r.Body, &d); err != nil || d.Slot == "" || d.Deadline.IsZero() {
		return fmt.Errorf("body of a drill.due entry: want slot, due_at and deadline: %w", cmpOr(err, errEmpty))
	}
	if before, ok := s.dues[d.Slot]; ok && (!before.body.Deadline.Equal(d.Deadline) || !before.body.DueAt.Equal(d.DueAt)) {
		return fmt.Errorf("slot %s is due again at another time: entry %d of %s said %s", d.Slot, before.index, before.origin, before.body.Deadline)
	}
	s.dues[d.Slot] = placed[Due]{d, r.Origin, r.Index}
	return nil
}

var errEmpty = fmt.Errorf("a field is empty")

func (s *slots) outcome(r Record) error {
	var o Outcome
	if err := json.Unmarshal(r.Body, &o); err != nil {
		return fmt.Errorf("body of a drill.outcome entry: %w", err)
	}
	if !slices.Contains(Outcomes, o.Outcome) {
		return fmt.Errorf("outcome %q of slot %q is none of %v", o.Outcome, o.Slot, Outcomes)
	}
	if o.Slot == "" {
		s.unasked++
		return nil
	}
	s.outcomes[o.Slot] = append(s.outcomes[o.Slot], placed[Outcome]{o, r.Origin, r.Index})
	return nil
}

// judge finds slots without exactly one outcome.
func (s *slots) judge(now time.Time, fault func(Fault)) SlotsReport {
	rep := SlotsReport{Due: len(s.dues), Unasked: s.unasked, Outcomes: map[string]int{}, Missing: []string{}}
	for _, slot := range slices.Sorted(maps.Keys(s.dues)) {
		d := s.dues[slot]
		switch {
		case len(s.outcomes[slot]) > 0:
		case d.body.Deadline.Before(now):
			rep.Missing = append(rep.Missing, slot)
			fault(Fault{Origin: d.origin, Index: d.index, What: fmt.Sprintf("slot %s was due by %s and has no outcome", slot, d.body.Deadline.UTC().Format(time.RFC3339))})
		default:
			rep.Pending++
		}
	}
	for _, slot := range slices.Sorted(maps.Keys(s.outcomes)) {
		for i, o := range s.outcomes[slot] {
			rep.Outcomes[o.body.Outcome]++
			if _, ok := s.dues[slot]; !ok {
				fault(Fault{Origin: o.origin, Index: o.index, What: fmt.Sprintf("outcome of slot %s, which was never due", slot)})
			}
			if i > 0 {
				first := s.outcomes[slot][0]
				fault(Fault{Origin: o.origin, Index: o.index, What: fmt.Sprintf("slot %s has a second outcome, %s: entry %d of %s said %s", slot, o.body.Outcome, first.index, first.origin, first.body.Outcome)})
			}
		}
	}
	return rep
}
