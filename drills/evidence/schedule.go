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

// configured says whether a scheduled drill is one that the entries about plans around
// its announcement name: the one before it, or, for one that a daemon ran before it
// had written them, the one behind it. Where there is none nothing is known.
func (j *judge) configured(d due) bool {
	if d.Trigger != "schedule" {
		return true
	}
	var around []plans
	for _, p := range j.plans[d.entry.Host.Node] {
		if p.entry.Time.Wall.After(d.entry.Time.Wall) {
			around = append(around, p)
			break
		}
		around = []plans{p}
	}
	for _, p := range around {
		for _, one := range p.Drills {
			if one.Name == d.Drill && one.Cluster == d.Cluster && one.PlanHash == d.PlanHash {
				return true
			}
		}
	}
	return len(around) == 0
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
	if d.Owes < 0 || d.Owes > mostOwed.Seconds() {
		j.fault(FaultSchedule, p, "drill %s owes its outcomes after %g s: longer than any slot", d.Name, d.Owes)
		return
	}
	owes := time.Duration(d.Owes * float64(time.Second))
	for _, at := range slots {
		key := drills.SlotKey(d.Name, at)
		if _, ok := j.dues[key]; ok || j.listed[key] {
			continue
		}
		j.listed[key] = true
		line := Drill{Slot: key, Name: d.Name, Cluster: d.Cluster, Trigger: "schedule", DueAt: at.UTC(), Outcome: Missing, Why: "no entry announced it"}
		a, ok := j.abandoned[key]
		switch {
		// By the next entry about plans, or one that was too long for one and went on behind it.
		case ok && a.entry.Host.Node == node && !a.entry.Time.Wall.After(end.Add(clockSlack)):
			line.Outcome, line.Why = Abandoned, a.Why
		case !at.Add(owes).Before(j.until[node]):
			line.Outcome, line.Why = Pending, ""
		default:
			j.fault(FaultSchedule, p, "drill %s was due at %s by %q, and no entry announced it", d.Name, stamp(at), d.Schedule)
		}
		j.Drills = append(j.Drills, line)
	}
}
