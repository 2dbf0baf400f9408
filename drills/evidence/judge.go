package evidence

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/drills"
	"github.com/holdfast-dr/holdfast/internal/ledger"
)

// What can be wrong with what the entries say, beside the codes of an excerpt.
const (
	FaultBundle   = "bundle"   // the file is no bundle, or holds what none holds
	FaultClock    = "clock"    // an entry was written by a clock that went back
	FaultSlot     = "slot"     // a slot without exactly one outcome
	FaultSchedule = "schedule" // a slot of a schedule that was never announced
	FaultChoice   = "choice"   // another snapshot or moment than the slot's entry chooses
	FaultOutcome  = "outcome"  // an outcome that does not follow from the rest of its record
	FaultWitness  = "witness"  // a checkpoint that a witness of the reader's did not cosign
	FaultProof    = "proof"    // a detached proof that proves nothing
)

// Schedule lists the slots of a schedule in (after, until], oldest first.
type Schedule func(spec string, after, until time.Time) ([]time.Time, error)

// Period is a stretch of time: From is in it, To is not.
type Period struct {
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
}

func (p Period) holds(t time.Time) bool { return !t.Before(p.From) && t.Before(p.To) }

// The states of a slot beside drills' outcomes.
const (
	Pending   = "pending"   // before its deadline
	Missing   = "missing"   // past its deadline: a finding
	Abandoned = "abandoned" // passed while nothing ran, and told of afterwards
)

// Drill is a slot that was due in the period, and what came of it.
type Drill struct {
	Slot     string         `json:"slot"`
	Name     string         `json:"name"`
	Cluster  string         `json:"cluster"`
	Trigger  string         `json:"trigger,omitempty"`
	DueAt    time.Time      `json:"due_at"`
	Told     time.Time      `json:"announced_at,omitzero"`
	Late     bool           `json:"late,omitempty"` // announced when its deadline was past
	Outcome  string         `json:"outcome"`        // of a drill, or pending, missing, abandoned
	Why      string         `json:"why,omitempty"`
	Record   *drills.Record `json:"record,omitempty"`
	Followed *Follow        `json:"followed_by,omitempty"` // of one that did not pass
}

// Follow is the next run of a drill that passed.
type Follow struct {
	ID         string    `json:"id"`
	Outcome    string    `json:"outcome"`
	FinishedAt time.Time `json:"finished_at"`
}

// Findings are what was found in the entries of a period.
type Findings struct {
	Drills      []Drill              `json:"drills"`
	Faults      []ledger.Fault       `json:"faults"`
	NotAssessed []ledger.NotAssessed `json:"not_assessed"`
	Until       time.Time            `json:"until"` // the newest entry's time: nothing is known of later
}

// Judge reads the entries of all logs, each in its order: which slots were due in
// the period, and what is wrong with what the entries say of them.
func Judge(logs [][]ledger.Record, p Period, schedule Schedule) Findings {
	j := &judge{
		period: p, schedule: schedule, ids: map[string]bool{}, dues: map[string]due{}, outcomes: map[string][]outcome{},
		abandoned: map[string]abandoned{}, plans: map[string][]plans{}, listed: map[string]bool{}, until: map[string]time.Time{},
	}
	for _, log := range logs {
		j.log(log)
	}
	for _, list := range j.plans {
		slices.SortStableFunc(list, func(a, b plans) int { return a.entry.Time.Wall.Compare(b.entry.Time.Wall) })
	}
	j.slots()
	j.scheduled()
	slices.SortStableFunc(j.Drills, func(a, b Drill) int {
		return cmp.Or(a.DueAt.Compare(b.DueAt), cmp.Compare(a.Slot, b.Slot))
	})
	j.follow()
	return j.Findings
}

type judge struct {
	Findings
	period    Period
	schedule  Schedule
	ids       map[string]bool
	dues      map[string]due
	outcomes  map[string][]outcome
	abandoned map[string]abandoned
	plans     map[string][]plans   // by node
	listed    map[string]bool      // slots that a schedule made
	until     map[string]time.Time // the newest entry of each node
}

type due struct {
	drills.Announcement
	entry ledger.Record
}

type outcome struct {
	drills.Record
	entry ledger.Record
}

type abandoned struct {
	drills.Abandoned
	entry ledger.Record
}

type plans struct {
	drills.Plans
	entry ledger.Record
}

func (j *judge) fault(code string, e ledger.Record, format string, args ...any) {
	j.Faults = append(j.Faults, ledger.Fault{Origin: e.Origin, Index: e.Index, Code: code, What: fmt.Sprintf(format, args...)})
}

// clockSlack is how far a clock may be set back between two entries.
const clockSlack = 10 * time.Minute

// mostOwed is how long a slot may wait for its outcome, whatever the entries say.
const mostOwed = 31 * 24 * time.Hour

func (j *judge) log(records []ledger.Record) {
	var before time.Time
	for _, e := range records {
		if j.ids[e.RecordID] {
			j.fault(ledger.FaultEntry, e, "its record id %s was used before", e.RecordID)
		}
		j.ids[e.RecordID] = true
		if wall := e.Time.Wall; wall.Before(before.Add(-clockSlack)) {
			j.fault(FaultClock, e, "it is of %s, and stands behind an entry of %s", stamp(wall), stamp(before))
		}
		before = e.Time.Wall
		j.Until = later(j.Until, before)
		j.until[e.Host.Node] = later(j.until[e.Host.Node], before)
		if err := j.entry(e); err != nil {
			j.fault(FaultSlot, e, "%v", err)
		}
	}
}

func (j *judge) entry(e ledger.Record) error {
	if err := plainKeys(e); err != nil {
		return err
	}
	switch e.Type {
	case ledger.TypeDrillDue:
		return j.due(e)
	case ledger.TypeDrillOutcome:
		rec, err := drills.Told(e)
		if err == nil && !slices.Contains(ledger.Outcomes, rec.Outcome.Outcome) {
			err = fmt.Errorf("outcome %q is none of %v", rec.Outcome.Outcome, ledger.Outcomes)
		}
		if err != nil {
			return err
		}
		rec.Ledger = &drills.Entry{Origin: e.Origin, Index: e.Index, RecordID: e.RecordID}
		j.outcomes[rec.Slot] = append(j.outcomes[rec.Slot], outcome{rec, e})
	case ledger.TypeDrillPlans:
		p, err := drills.PlansOf(e)
		if err != nil {
			return err
		}
		j.plans[e.Host.Node] = append(j.plans[e.Host.Node], plans{p, e})
		for _, a := range p.Abandoned {
			j.abandoned[drills.SlotKey(a.Drill, a.DueAt)] = abandoned{a, e}
		}
	}
	return nil
}

// plainKeys refuses keys that some readers take for others: JSON decoders may fold case.
func plainKeys(e ledger.Record) error {
	if e.Type != ledger.TypeDrillDue && e.Type != ledger.TypeDrillOutcome && e.Type != ledger.TypeDrillPlans {
		return nil
	}
	var body any
	if err := json.Unmarshal(e.Body, &body); err != nil {
		return fmt.Errorf("its body: %w", err)
	}
	return plain(body)
}

func plain(v any) error {
	switch v := v.(type) {
	case []any:
		for _, x := range v {
			if err := plain(x); err != nil {
				return err
			}
		}
	case map[string]any:
		for k, x := range v {
			if strings.ContainsFunc(k, func(c rune) bool { return c > 0x7f || c >= 'A' && c <= 'Z' }) {
				return fmt.Errorf("its body has the key %q, which some readers take for another", k)
			}
			if err := plain(x); err != nil {
				return err
			}
		}
	}
	return nil
}

func (j *judge) due(e ledger.Record) error {
	d, err := drills.Announced(e)
	if err != nil {
		return err
	}
	if d.Slot == "" || d.Deadline.IsZero() {
		return fmt.Errorf("it announces no slot with a deadline")
	}
	if own := drills.SlotKey(d.Drill, d.DueAt); d.Slot != own && !strings.HasPrefix(d.Slot, d.Drill+"/asked/") {
		return fmt.Errorf("it announces the slot %q, and its time makes it %q", d.Slot, own)
	}
	if d.Deadline.Sub(d.DueAt) > mostOwed {
		return fmt.Errorf("slot %s has until %s: longer than any slot", d.Slot, stamp(d.Deadline))
	}
	if before, ok := j.dues[d.Slot]; ok {
		if !before.Deadline.Equal(d.Deadline) || !before.DueAt.Equal(d.DueAt) {
			return fmt.Errorf("slot %s is announced again for another time: entry %d of %s said %s", d.Slot, before.entry.Index, before.entry.Origin, stamp(before.DueAt))
		}
		return nil
	}
	j.dues[d.Slot] = due{d, e}
	return nil
}

// slots judges what was announced, and what came of it.
func (j *judge) slots() {
	for slot, d := range j.dues {
		if !j.period.holds(d.DueAt) {
			continue
		}
		line := Drill{Slot: slot, Name: d.Drill, Cluster: d.Cluster, Trigger: d.Trigger, DueAt: d.DueAt, Outcome: Pending, Told: d.entry.Time.Wall, Late: d.entry.Time.Wall.After(d.Deadline)}
		told := j.outcomes[slot]
		if len(told) == 0 && d.Deadline.Before(j.Until) {
			line.Outcome, line.Why = Missing, "no entry tells its outcome"
			j.fault(FaultSlot, d.entry, "slot %s was due by %s and has no outcome", slot, stamp(d.Deadline))
		}
		if len(told) > 0 {
			rec := told[0].Record
			line.Outcome, line.Why, line.Record = rec.Outcome.Outcome, rec.Reason, &rec
			j.record(d, told[0])
			for _, more := range told[1:] {
				j.fault(FaultSlot, more.entry, "slot %s has a second outcome, %s: entry %d of %s said %s", slot, more.Outcome.Outcome, told[0].entry.Index, told[0].entry.Origin, rec.Outcome.Outcome)
			}
		}
		j.Drills = append(j.Drills, line)
	}
	for slot, told := range j.outcomes {
		if _, ok := j.dues[slot]; !ok && j.period.holds(told[0].DueAt) {
			j.fault(FaultSlot, told[0].entry, "outcome of slot %q, which was never announced", slot)
		}
	}
}

// record judges an outcome by the entry that announced its slot, and by itself.
func (j *judge) record(d due, o outcome) {
	if o.entry.Origin != d.entry.Origin || o.entry.Index <= d.entry.Index || o.Selection != nil && o.Selection.DueIndex != d.entry.Index {
		j.fault(FaultSlot, o.entry, "drill %s does not follow the entry that announced it, %d of %s", o.ID, d.entry.Index, d.entry.Origin)
	}
	if end, wall := o.FinishedAt, o.entry.Time.Wall; end.Before(d.entry.Time.Wall.Add(-clockSlack)) || end.Before(wall.Add(-clockSlack)) || end.After(wall.Add(clockSlack)) || end.Before(o.StartedAt) {
		j.fault(FaultOutcome, o.entry, "drill %s says that it ran from %s to %s; it was announced at %s and told at %s", o.ID, stamp(o.StartedAt), stamp(end), stamp(d.entry.Time.Wall), stamp(wall))
	}
	if !j.configured(d) {
		j.fault(FaultSlot, o.entry, "drill %s of cluster %s, plan %s, is not what the node was configured to run", d.Drill, d.Cluster, d.PlanHash)
	}
	if o.PlanHash != d.PlanHash {
		j.fault(FaultSlot, o.entry, "drill %s ran plan %s, and entry %d announced %s", o.ID, o.PlanHash, d.entry.Index, d.PlanHash)
	}
	if o.Selection != nil && (o.Target != nil || o.Failure == nil) {
		if err := drills.VerifyChoice(d.entry, o.Record); err != nil {
			j.fault(FaultChoice, o.entry, "%v", err)
		}
	}
	if err := drills.Entails(o.Record); err != nil {
		j.fault(FaultOutcome, o.entry, "%v", err)
	}
}

// follow names, for each drill that did not pass, the next run of it that did.
func (j *judge) follow() {
	for i := range j.Drills {
		d := &j.Drills[i]
		if drills.Passed(d.Outcome) || d.Outcome == Pending {
			continue
		}
		for _, told := range j.outcomes {
			r := told[0].Record
			if r.Name == d.Name && drills.Passed(r.Outcome.Outcome) && r.FinishedAt.After(d.DueAt) && (d.Followed == nil || r.FinishedAt.Before(d.Followed.FinishedAt)) {
				d.Followed = &Follow{r.ID, r.Outcome.Outcome, r.FinishedAt}
			}
		}
	}
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// origin reads the body of an entry of type "origin".
func origin(e ledger.Record) (o ledger.Origin, err error) {
	if err = json.Unmarshal(e.Body, &o); err != nil {
		err = fmt.Errorf("body of an origin entry: %w", err)
	}
	return o, err
}
