package evidence

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/drills"
	"github.com/holdfast-dr/holdfast/internal/ledger"
)

// scheduled computes the slots that the schedules in force made, and wants each
// announced: so that a drill which nobody wrote down is missed by the reader.
func (j *judge) scheduled() {
	for _, node := range slices.Sorted(maps.Keys(j.until)) {
		list := j.plans[node]
		slices.SortStableFunc(list, func(a, b plans) int { return a.entry.Time.Wall.Compare(b.entry.Time.Wall) })
		if len(list) == 0 || list[0].entry.Time.Wall.After(j.period.From) {
			until := "its last entry"
			if len(list) > 0 {
				until = stamp(list[0].entry.Time.Wall)
			}
			j.NotAssessed = append(j.NotAssessed, ledger.NotAssessed{
				What: fmt.Sprintf("whether node %s announced every slot before %s", node, until),
				Why:  "no entry of before says which drills it was configured to run",
			})
		}
		for i, p := range list {
			end := j.until[node]
			if i+1 < len(list) {
				end = list[i+1].entry.Time.Wall
			}
			for _, d := range p.Drills {
				j.planned(node, p.entry, d, end)
			}
		}
	}
}

// planned looks at one drill from the entry p on until end.
func (j *judge) planned(node string, p ledger.Record, d drills.Plan, end time.Time) {
	after, until := later(p.Time.Wall, j.period.From.Add(-time.Nanosecond)), end
	if last := j.period.To.Add(-time.Nanosecond); last.Before(until) {
		until = last
	}
	if d.Schedule == "" || !after.Before(until) {
		return
	}
	slots, err := j.schedule(d.Schedule, after, until)
	if err != nil {
		j.fault(FaultSchedule, p, "drill %s: %v", d.Name, err)
		return
	}
	owes := time.Duration(d.Owes * float64(time.Second))
	for _, at := range slots {
		key := drills.SlotKey(d.Name, at)
		if _, ok := j.dues[key]; ok || !at.Add(owes).Before(j.until[node]) {
			continue
		}
		line := Drill{Slot: key, Name: d.Name, Cluster: d.Cluster, Trigger: "schedule", DueAt: at.UTC(), Outcome: Missing, Why: "no entry announced it"}
		if a, ok := j.abandoned[key]; ok {
			line.Outcome, line.Why = Abandoned, a.Why
		} else {
			j.fault(FaultSchedule, p, "drill %s was due at %s by %q, and no entry announced it", d.Name, stamp(at), d.Schedule)
		}
		j.Drills = append(j.Drills, line)
	}
}
