package retention

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/internal/approval"
	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/zone"
)

// Early has purges remove, by an approved plan, what retention would keep beyond their
// deadlines.
type Early struct {
	Grace time.Duration // from the request for deletion on
}

// EarlyPlan is what of an early removal is approved.
type EarlyPlan struct {
	Kind         string            `json:"kind"` // PlanEarly
	Cluster      string            `json:"cluster"`
	Purges       []string          `json:"purges"`    // tombstones
	Snapshots    []string          `json:"snapshots"` // that go
	WAL          []catalog.WALSpan `json:"wal"`       // that goes
	Stays        []Stay            `json:"stays"`     // snapshots that hold the projects and have no path to removal yet
	Window       Window            `json:"window"`    // afterwards
	RemovalGrace string            `json:"removal_grace"`
}

// Stay is a snapshot that stays, and why.
type Stay struct {
	ID      string   `json:"id"`
	Because []string `json:"because"`
}

// EarlyPurge is how an early removal stands.
type EarlyPurge struct {
	Hash     string            `json:"hash,omitempty"` // of Plan: what is approved; "" where nothing can go yet
	Plan     EarlyPlan         `json:"plan"`
	Deadline time.Time         `json:"deadline"` // the first of its purges
	Waits    []OverRetained    `json:"waits"`    // for what, the snapshots that stay
	Approved bool              `json:"approved"`
	Standing approval.Standing `json:"standing"`
}

// due is a purge whose deadline comes before retention would end its copies.
type due struct {
	Purges   []string
	Deadline time.Time
}

// openPurge is a deleted project that live was seen without, and no certificate ends.
type openPurge struct {
	catalog.Tombstone
	absent catalog.Absent
}

// openPurges are those of projects that may go early: their grace is past, and no hold is
// on them.
func (k *Keeper) openPurges(ctx context.Context, in *Inputs) (list []openPurge, err error) {
	tombs, err := k.Catalog.Tombstones(ctx, k.Cluster)
	if err != nil {
		return nil, err
	}
	absences, err := k.Catalog.Absences(ctx)
	if err != nil {
		return nil, err
	}
	certs, err := k.Catalog.Certificates(ctx)
	if err != nil {
		return nil, err
	}
	for _, t := range tombs.Bodies() {
		absent, gone := absences[t.ID]
		done := slices.ContainsFunc(certs.List, func(c catalog.Noted[catalog.Certificate]) bool { return c.Body.Tombstone == t.ID })
		held := slices.ContainsFunc(in.Holds, func(h Hold) bool { return concerns(h.Hold, t) })
		if gone && !done && !held && !in.Now.Before(t.RequestedAt.Add(k.Early.Grace)) {
			list = append(list, openPurge{t, absent})
		}
	}
	return list, nil
}

// gatherEarly finds the snapshots that hold deleted projects whose deadlines come first.
func (k *Keeper) gatherEarly(ctx context.Context, in *Inputs) error {
	if k.Early == nil || !in.RetiredAt.IsZero() {
		return nil
	}
	purges, err := k.openPurges(ctx, in)
	if err != nil || len(purges) == 0 {
		return err
	}
	all, err := k.Catalog.Snapshots(ctx, k.Cluster)
	if err != nil {
		return err
	}
	c := &copies{plan: newPlanner(*in), begun: all.Begun, taken: map[string]catalog.Snapshot{}, size: segSizeOf(all.All)}
	for _, s := range all.All {
		c.taken[s.Body.ID] = s.Body
	}
	needs := map[string][]catalog.Ref{}
	for _, s := range in.Snapshots {
		if needs[s.ID], err = k.refs(ctx, s); err != nil {
			return err
		}
	}
	in.Due = map[string]due{}
	for _, p := range purges {
		c.of = p.Tombstone
		k.addDue(in, p, func(id string) bool {
			return slices.ContainsFunc(needs[id], func(r catalog.Ref) bool { return !c.clean(k.Cluster, zone.Object{Name: r.Name}, p.absent) })
		})
	}
	return nil
}

// addDue adds a purge to the snapshots that hold its project, where one of them may stay
// beyond the deadline.
func (k *Keeper) addDue(in *Inputs, p openPurge, holds func(id string) bool) {
	late := false
	var ids []string
	for _, s := range in.Snapshots {
		if holds(s.ID) {
			ids = append(ids, s.ID)
			ends := k.Policy.Expires(s)
			late = late || ends.IsZero() || ends.After(p.Deadline)
		}
	}
	for _, id := range ids {
		if !late {
			return
		}
		d := in.Due[id]
		if d.Purges = append(d.Purges, p.ID); d.Deadline.IsZero() || p.Deadline.Before(d.Deadline) {
			d.Deadline = p.Deadline.UTC()
		}
		in.Due[id] = d
	}
}

// planEarly makes the plan that would remove what is due, and says how far it is approved;
// nil where nothing is due, or nothing may be decided.
func (k *Keeper) planEarly(ctx context.Context, in Inputs) (*EarlyPurge, error) {
	if len(in.Due) == 0 {
		return nil, nil
	}
	in.Force = true
	before, err := MakePlan(in)
	if err != nil || len(before.Refused) > 0 {
		return nil, err
	}
	in.Early = &EarlyPurge{Approved: true}
	after, err := MakePlan(in)
	if err != nil {
		return nil, err
	}
	e := k.compare(in, before, after)
	if len(e.Plan.Snapshots) == 0 {
		return e, nil
	}
	if e.Hash, err = approval.Hash(e.Plan); err != nil {
		return nil, err
	}
	e.Approved, e.Standing, err = k.approved(ctx, e.Hash)
	return e, err
}

// compare tells two plans apart: without the early removal and with it.
func (k *Keeper) compare(in Inputs, before, after Plan) *EarlyPurge {
	e := &EarlyPurge{Waits: []OverRetained{}, Plan: EarlyPlan{
		Kind: PlanEarly, Cluster: k.Cluster, Purges: []string{}, Snapshots: []string{}, WAL: []catalog.WALSpan{}, Stays: []Stay{}, Window: after.Window, RemovalGrace: k.Policy.RemovalGrace.String(),
	}}
	why := firm(in)
	for i, d := range after.Snapshots {
		one, ok := in.Due[d.ID]
		switch {
		case !ok || !before.Snapshots[i].Keep:
			continue
		case d.Keep:
			e.Plan.Stays = append(e.Plan.Stays, Stay{d.ID, append([]string{}, why[d.ID]...)})
			e.Waits = append(e.Waits, waitsFor(d.ID, why[d.ID], one))
		default:
			e.Plan.Snapshots = append(e.Plan.Snapshots, d.ID)
		}
		e.Plan.Purges = append(e.Plan.Purges, one.Purges...)
		if e.Deadline.IsZero() || one.Deadline.Before(e.Deadline) {
			e.Deadline = one.Deadline
		}
	}
	slices.Sort(e.Plan.Purges)
	e.Plan.Purges = slices.Compact(e.Plan.Purges)
	for _, d := range after.WAL {
		if !d.Keep && !marked(d) && !covered(d) {
			e.Plan.WAL = append(e.Plan.WAL, d.span())
		}
	}
	return e
}

// firm are the reasons that no early removal sets aside: the newest and the newest proven
// snapshot, holds, and what is being built on.
func firm(in Inputs) map[string][]string {
	p := newPlanner(in)
	p.keepNewest()
	p.keepHolds()
	p.keepBuiltOn()
	return p.why
}

// waitsFor says what lets a snapshot go that holds deleted projects.
func waitsFor(id string, firm []string, one due) OverRetained {
	o := OverRetained{ID: id, Since: one.Deadline, Because: append(slices.Clone(firm), "it holds the project of purge "+strings.Join(one.Purges, ", ")), Needs: []string{}}
	for _, r := range firm {
		need := "snapshot"
		switch {
		case r == "newest proven":
			need = "drill"
		case strings.HasPrefix(r, "hold "):
			need = "release of a hold"
		}
		if !slices.Contains(o.Needs, need) {
			o.Needs = append(o.Needs, need)
		}
	}
	if len(firm) == 0 {
		o.Needs = []string{"approval"}
	}
	return o
}

// setAside takes from the policy what an approved early removal lets go.
func (p *planner) setAside() {
	if len(p.Due) == 0 {
		return
	}
	p.firm = firm(p.Inputs)
	for id := range p.Due {
		p.aside[id] = p.Early != nil && p.Early.Approved && len(p.firm[id]) == 0
	}
}

// tellDue reports a snapshot that stays when the removal must begin for a purge to be done
// by its deadline.
func (p *planner) tellDue(d Decision) {
	one, ok := p.Due[d.ID]
	if n := len(p.plan.OverRetained); n > 0 && p.plan.OverRetained[n-1].ID == d.ID {
		return // beyond its ceiling as well
	}
	if ok && d.Keep && !p.Now.Before(one.Deadline.Add(-p.Policy.RemovalGrace-p.Policy.Lead)) {
		p.plan.OverRetained = append(p.plan.OverRetained, waitsFor(d.ID, p.firm[d.ID], one))
	}
}

// pending is the plan as it waits.
func (e EarlyPurge) pending() Pending {
	return Pending{PlanEarly, e.Hash, e.Plan, []string{fmt.Sprintf("the first deadline is %s", stamp(e.Deadline))}}
}
