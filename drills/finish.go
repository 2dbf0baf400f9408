package drills

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/incident"
	"github.com/holdfast-dr/holdfast/internal/ledger"
)

// standing lists what no drill of this version looks at.
func (r *run) standing() {
	r.rec.NotAssessed = append(
		r.rec.NotAssessed, []ledger.NotAssessed{
			{What: "L9 to L11: an application's probe, writes and a project's round trip", Why: "not run by this version"},
			{What: "the free space of pages and files, where a deleted project's bytes may remain", Why: "deleted rows are looked for by query"},
			{What: "object locks and legal holds", Why: "not read back: a drill's reader sees objects, not their retention"},
			{What: "indexes other than b-tree, and values compared with live", Why: "pg_amcheck does not check them, and a drill reaches no live server"},
			{What: "the independence of the choice", Why: "self-attested: no witness has cosigned the entry that it follows from"},
			{What: "the clock", Why: "this machine's own"},
		}...)
	asked := map[string]bool{}
	for _, c := range r.rec.Checks {
		asked[c.ID] = true
	}
	for _, l := range levels {
		switch {
		case rung(l) > rung(r.def.Level):
			r.skip(l, "above the drill's level "+r.def.Level)
		case l == "L8" && len(r.def.Checks) == 0:
			r.skip(l, "the drill has no checks")
		case !asked[l]:
			r.skip(l, "the drill ended before it")
		}
	}
	if r.def.Zone == "" {
		r.skip("each zone by itself", "the drill reads from all zones; give it a zone to prove one")
	}
}

// finish puts the outcome into the ledger, keeps the proof, and opens or closes
// the drill's incident.
func (r *run) finish(ctx context.Context) (Record, error) {
	now := r.deps.Now().UTC()
	r.rec.FinishedAt = now
	r.rec.Cost.Wall = now.Sub(r.rec.StartedAt).Seconds()
	r.rec.Level = reached(r.rec.Checks)
	r.rec.Outcome.Outcome, r.rec.Class, r.rec.Reason = Verdict(r.rec)
	r.rec.Reason = cut(r.rec.Reason, maxWords)
	if len(r.rec.NotAssessed) == 0 {
		r.standing()
	}
	body := fit(r.rec)
	body.NotAssessed = nil
	index, _, err := r.record(ctx, ledger.TypeDrillOutcome, body, r.rec.NotAssessed)
	if err != nil {
		return r.rec, fmt.Errorf("drill %s ended with %s, and that could not be recorded: %w", r.rec.ID, r.rec.Outcome.Outcome, err)
	}
	r.rec.Ledger = &Entry{Origin: r.deps.Log.Status().Origin, Index: index}
	if c := r.deps.Log.Status().Anchored; c.Size > index {
		r.rec.Ledger.Checkpoint = checkpoint(c)
	}
	return r.rec, r.conclude(ctx)
}

// conclude does what follows from an outcome that is in the ledger; doing it
// again changes nothing.
func (r *run) conclude(ctx context.Context) error {
	if err := errors.Join(r.prove(ctx), r.tell(r.rec.FinishedAt)); err != nil {
		return fmt.Errorf("drill %s ended with %s and is recorded; not done: %w", r.rec.ID, r.rec.Outcome.Outcome, err)
	}
	return nil
}

func checkpoint(c ledger.Checkpoint) string { return fmt.Sprintf("%d %s", c.Size, c.Root) }

// prove keeps the proof of a restore that held.
func (r *run) prove(ctx context.Context) error {
	good := Passed(r.rec.Outcome.Outcome)
	if r.deps.Proofs == nil || !good || rung(r.rec.Level) < rung("L4") {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	err := r.deps.Proofs.Prove(ctx, catalog.Proof{
		Drill: r.rec.ID, Cluster: r.def.Cluster, Snapshot: r.rec.Snapshot, Zone: r.def.Zone, Level: r.rec.Level,
		Outcome: r.rec.Outcome.Outcome, At: r.rec.FinishedAt, Origin: r.rec.Ledger.Origin, Index: r.rec.Ledger.Index,
		RTO: r.rec.RTO.Measured,
	})
	if err != nil {
		return fmt.Errorf("keeping the proof of snapshot %s: %w", r.rec.Snapshot, err)
	}
	return nil
}

// tell opens an incident for what must not pass unseen, and closes it with a
// drill that passed.
func (r *run) tell(now time.Time) error {
	if r.deps.Incidents == nil {
		return nil
	}
	key := IncidentKey(r.def.Name)
	var err error
	switch r.rec.Outcome.Outcome {
	case Pass, PassWithGaps:
		_, err = r.deps.Incidents.Close(key, "drill "+r.rec.ID+": "+r.rec.Outcome.Outcome, now)
	case Skipped, Aborted:
	default:
		severity := "warning"
		if r.rec.Outcome.Outcome == Fail {
			severity = "critical"
		}
		_, _, err = r.deps.Incidents.Raise(incident.Incident{
			Key: key, Cluster: r.def.Cluster, Severity: severity, Title: fmt.Sprintf("drill %s of %s: %s", r.def.Name, r.def.Cluster, r.rec.Outcome.Outcome),
			Detail: r.rec.Reason, Remedy: "see `holdfast drill show " + r.rec.ID + "`; a passing `holdfast drill run " + r.def.Name + "` closes this",
		}, now)
	}
	return err
}

// IncidentKey is of the incident that a drill's failures open.
func IncidentKey(drill string) string { return "drill-failed/" + drill }

// Missed records that a slot's time passed without a drill, or with one that was
// cut off and not run again. A slot that has its outcome keeps it.
func Missed(ctx context.Context, deps Deps, def Definition, slot Slot, why string) (Record, error) {
	return closeSlot(ctx, deps, def, slot, MissedSlot, ClassHarness, why)
}

// Skip records that a slot's drill was left out, by whose decision and why.
func Skip(ctx context.Context, deps Deps, def Definition, slot Slot, why string) (Record, error) {
	return closeSlot(ctx, deps, def, slot, Skipped, ClassPolicy, why)
}

// closeSlot gives a slot an outcome without a drill.
func closeSlot(ctx context.Context, deps Deps, def Definition, slot Slot, outcome, class, why string) (Record, error) {
	r, err := newRun(deps, def, slot)
	if err != nil {
		return Record{}, fmt.Errorf("drill %s: %w", def.Name, err)
	}
	told, err := r.told(ctx)
	if err != nil {
		return Record{}, fmt.Errorf("drill %s: %w", def.Name, err)
	}
	if told.outcome != nil {
		return *told.outcome, nil
	}
	stage := "schedule"
	if told.due == nil {
		due := Announcement{
			Due: ledger.Due{Slot: r.slot.Key, DueAt: r.slot.DueAt, Deadline: r.slot.Deadline},
			ID:  r.rec.ID, Drill: def.Name, Cluster: def.Cluster, PlanHash: r.rec.PlanHash, Trigger: slot.Trigger,
		}
		if _, _, err := r.record(ctx, ledger.TypeDrillDue, due, nil); err != nil {
			return Record{}, fmt.Errorf("drill %s: %w", def.Name, err)
		}
	} else {
		stage = fmt.Sprintf("the run announced in entry %d was cut off", told.due.Index)
		if outcome == MissedSlot {
			outcome = Aborted
		}
	}
	r.rec.StartedAt = time.Time{}
	r.rec.Cleanup = Cleanup{Verified: true, VerifiedAt: deps.now()}
	r.rec.Failure = &Failure{stage, outcome, class, cut(why, maxWords)}
	r.skip("everything", "nothing was run")
	return r.finish(ctx)
}

func (d Deps) now() time.Time {
	if d.Now == nil {
		return time.Now().UTC()
	}
	return d.Now().UTC()
}
