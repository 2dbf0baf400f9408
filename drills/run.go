package drills

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/ledger"
	"github.com/holdfast-dr/holdfast/restore"
)

// run is one drill on its way.
type run struct {
	deps    Deps
	def     Definition
	slot    Slot
	rec     Record
	choice  Choice
	snap    catalog.Snapshot
	refs    []catalog.Ref // the objects of the snapshot
	restore *restore.Plan
	room    *restore.Room
	scratch *scratch
}

// Run rehearses: it puts the slot into the ledger, chooses, restores, asks, cleans
// up, and puts the outcome into the ledger. The record tells how it ended. An
// error without a record means that it did not start; an error with one that the
// record, its proof or its incident could not be written down.
//
// A slot that has its outcome is not run again: its record is returned, with the
// proof and the incident that a process which died behind it may not have kept.
// One that was cut off runs again with the choice that it had.
func Run(ctx context.Context, deps Deps, def Definition, slot Slot) (Record, error) {
	r, old, err := begin(ctx, deps, def, slot)
	if err != nil {
		return Record{}, fmt.Errorf("drill %s: %w", def.Name, err)
	}
	if old != nil {
		r.rec = *old
		return *old, r.conclude(context.WithoutCancel(ctx))
	}
	limited, stop := context.WithTimeoutCause(ctx, def.Limits.Time, errTime)
	r.drill(limited)
	r.clean(ctx)
	stop()
	if errors.Is(context.Cause(ctx), ErrStopping) {
		return Record{}, fmt.Errorf("drill %s, slot %s: %w", def.Name, r.slot.Key, ErrStopping)
	}
	return r.finish(context.WithoutCancel(ctx))
}

// begin finds what the ledger says of the slot, and puts it there.
func begin(ctx context.Context, deps Deps, def Definition, slot Slot) (*run, *Record, error) {
	r, err := newRun(deps, def, slot)
	if err != nil {
		return nil, nil, err
	}
	told, err := r.told(ctx)
	if err != nil {
		return nil, nil, err
	}
	if told.outcome != nil {
		return r, told.outcome, nil
	}
	if told.due == nil {
		return r, nil, r.announce(ctx)
	}
	r.rec.Selection = &Selection{DueIndex: told.due.Index, Again: true}
	return r, nil, r.adopt(*told.due)
}

func newRun(deps Deps, def Definition, slot Slot) (*run, error) {
	deps, err := deps.complete()
	if err != nil {
		return nil, err
	}
	if err := def.Check(); err != nil {
		return nil, err
	}
	hash, err := def.Hash()
	if err != nil {
		return nil, err
	}
	var random [4]byte
	_, _ = rand.Read(random[:])
	now := deps.Now().UTC()
	id := now.Format("20060102T150405Z") + "-" + hex.EncodeToString(random[:])
	if slot.Key == "" {
		slot.Key = def.Name + "/asked/" + id
	}
	if slot.DueAt.IsZero() {
		slot.DueAt = now
	}
	if slot.Deadline.IsZero() {
		slot.Deadline = slot.DueAt.Add(def.owes())
	}
	slot.DueAt, slot.Deadline = slot.DueAt.UTC(), slot.Deadline.UTC()
	rec := Record{
		Outcome: ledger.Outcome{Slot: slot.Key}, ID: id, Name: def.Name, Cluster: def.Cluster, Trigger: slot.Trigger, DueAt: slot.DueAt,
		PlanHash: hash, Wanted: wanted(def), StartedAt: now, Zone: def.Zone, Phases: []Phase{}, Checks: []Check{},
		Place: Place{Name: def.Environment.Name, Archive: "a reader that can neither write nor delete"},
		RTO:   measure(def.Objectives.RTO, nil, ""), RPO: measure(def.Objectives.RPO, nil, ""),
	}
	return &run{deps: deps, def: def, slot: slot, rec: rec}, nil
}

// wanted is the highest level that can be asked for: without questions there is
// no L8.
func wanted(def Definition) string {
	if def.Level == "L8" && len(def.Checks) == 0 {
		return "L7"
	}
	return def.Level
}

// announce puts the slot, its candidates and the seed into the ledger. When the
// candidates cannot be read that is the drill's own outcome, not a reason to be
// silent.
func (r *run) announce(ctx context.Context) error {
	body := Announcement{
		Due: ledger.Due{Slot: r.slot.Key, DueAt: r.slot.DueAt, Deadline: r.slot.Deadline},
		ID:  r.rec.ID, Drill: r.def.Name, Cluster: r.def.Cluster, PlanHash: r.rec.PlanHash, Trigger: r.slot.Trigger,
	}
	reading, cancel := context.WithTimeoutCause(ctx, r.def.Limits.Time, errTime)
	defer cancel()
	p, err := r.pick(reading)
	if err != nil {
		r.fail(reading, "selection", err)
		p.Candidates = []Candidate{}
	}
	body.Pick = &p
	index, anchored, err := r.record(ctx, ledger.TypeDrillDue, body, nil)
	if err != nil {
		return err
	}
	r.rec.Selection = &Selection{DueIndex: index, Anchored: anchored}
	due, err := r.deps.Log.Entries(ctx, index, index+1)
	if err != nil || len(due) != 1 {
		return fmt.Errorf("reading back entry %d of the ledger: %w", index, err)
	}
	return r.adopt(due[0])
}

// record appends an entry and waits a while for the zones to hold it: a drill
// never waits for a zone (promise 1), the ledger tells what they hold late.
func (r *run) record(ctx context.Context, kind string, body any, not []ledger.NotAssessed) (index int64, anchored bool, err error) {
	waiting, cancel := context.WithTimeout(ctx, r.deps.AnchorWait)
	defer cancel()
	e := ledger.Entry{Type: kind, Actor: r.deps.Actor, PolicyHash: r.rec.PlanHash, NotAssessed: not, Body: body, Subject: map[string]string{"cluster": r.def.Cluster, "drill": r.def.Name}}
	if r.rec.Snapshot != "" {
		e.Subject["snapshot"] = r.rec.Snapshot
	}
	index, err = r.deps.Log.AppendAnchored(waiting, e)
	var late *ledger.WaitingError
	if errors.As(err, &late) {
		return index, false, nil
	}
	return index, err == nil, err
}

// adopt makes the choice that a slot's entry tells.
func (r *run) adopt(due ledger.Record) (err error) {
	b, err := dueOf(due)
	if err != nil {
		return err
	}
	r.slot.DueAt, r.slot.Deadline, r.rec.DueAt = b.DueAt, b.Deadline, b.DueAt
	sel := r.rec.Selection
	sel.Algorithm, sel.Choice, sel.Select = Algorithm, "self-attested", r.def.Select
	if b.Pick != nil {
		sel.Select, sel.Candidates = b.Pick.Select, len(b.Pick.Candidates)+b.Pick.LeftOut
	}
	if r.rec.Failure != nil {
		return nil
	}
	r.choice, err = Recompute(due)
	if err != nil {
		r.fail(context.Background(), "selection", err)
		return nil
	}
	r.rec.Target, r.rec.Snapshot = &r.choice.Target, r.choice.Snapshot
	return nil
}

// fail notes what ended the drill; the first cause stays.
func (r *run) fail(ctx context.Context, stage string, err error) {
	if r.rec.Failure != nil {
		return
	}
	outcome, class := blame(ctx, r.def.Zone != "", err)
	reason := err.Error()
	if cause := context.Cause(ctx); cause != nil {
		reason = cause.Error() + "; " + reason
	}
	r.rec.Failure = &Failure{stage, outcome, class, cut(reason, maxWords)}
}

// phase times a part; an error ends the drill.
func (r *run) phase(ctx context.Context, name string, do func(context.Context) error) bool {
	if r.rec.Failure != nil {
		return false
	}
	began := time.Now()
	err := do(ctx)
	p := Phase{Name: name, Seconds: time.Since(began).Seconds(), Outcome: "done"}
	if err != nil {
		p.Outcome = "failed"
		r.fail(ctx, name, err)
	}
	r.rec.Phases = append(r.rec.Phases, p)
	return err == nil
}

func (r *run) skip(what, why string) {
	r.rec.NotAssessed = append(r.rec.NotAssessed, ledger.NotAssessed{What: what, Why: cut(why, 200)})
}

// wants says whether the drill goes up to a level.
func (r *run) wants(level string) bool { return rung(r.def.Level) >= rung(level) }

// drill does it: everything that can go wrong is in the record afterwards.
func (r *run) drill(ctx context.Context) {
	if r.rec.Failure != nil {
		return
	}
	r.recoveryPoint(ctx)
	began := time.Now()
	if r.wants("L3") && r.phase(ctx, "plan", r.plan) {
		r.prepare(ctx, began)
	}
	r.climb(ctx)
	r.standing()
}
