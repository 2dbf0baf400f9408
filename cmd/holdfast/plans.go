package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/holdfast-dr/holdfast/drills"
	"github.com/holdfast-dr/holdfast/drills/evidence"
	"github.com/holdfast-dr/holdfast/internal/ledger"
	"github.com/holdfast-dr/holdfast/scheduler"
)

// plansEvery is how old the ledger's newest entry about the drills' plans may be: a
// bundle of evidence reaches back to the one before its period.
const plansEvery = 24 * time.Hour

// keepPlans writes into the ledger which drills this daemon is configured to run:
// when it starts, with the slots that nobody will make up, and every day.
func (n *node) keepPlans(ctx context.Context) error {
	retry := time.NewTimer(0)
	defer retry.Stop()
	started := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-retry.C:
		}
		wait := plansEvery
		err := n.notePlans(ctx, !started)
		if started = started || err == nil; err != nil && ctx.Err() == nil {
			wait = time.Minute
			n.log.Warn("the ledger does not say yet which drills are configured; trying again", zap.Error(err))
		}
		retry.Reset(wait)
	}
}

func (n *node) notePlans(ctx context.Context, starting bool) error {
	body := drills.Plans{Drills: []drills.Plan{}}
	for _, d := range n.cfg.Drills {
		def, _, err := n.definition(d)
		if err != nil {
			return err
		}
		p, err := def.Plan()
		if err != nil {
			return err
		}
		body.Drills = append(body.Drills, p)
	}
	if starting {
		tails, err := n.planTails(ctx)
		if err != nil {
			return err
		}
		if body.Abandoned, err = abandoned(tails, n.ledger.Origin(), body.Drills, n.now()); err != nil {
			n.log.Warn("an earlier entry about the drills' plans cannot be read", zap.Error(err))
		}
	}
	// What does not fit into one entry stands in several, each whole by itself.
	rest := body.Abandoned
	for {
		body.Abandoned, rest = rest[:min(len(rest), mostAbandoned)], rest[min(len(rest), mostAbandoned):]
		if _, err := n.append(ctx, ledger.TypeDrillPlans, nil, body); err != nil || len(rest) == 0 {
			return err
		}
	}
}

// abandoned are the slots of earlier plans that passed until now and that no run
// makes up: the scheduler remembers those of a drill that is still configured,
// unless its memory went with the state of an earlier ledger. tails are the newest
// entries of a node's ledgers, of which own is the one that goes on.
func abandoned(tails [][]ledger.Record, own string, configured []drills.Plan, now time.Time) (out []drills.Abandoned, errs error) {
	known := announced(tails)
	for _, tail := range tails { // what went before a log was told when that began
		if last, _, _ := newestPlans(tail); last.Origin == own {
			tails = [][]ledger.Record{tail}
		}
	}
	for _, tail := range tails {
		last, old, err := newestPlans(tail)
		errs = errors.Join(errs, err)
		for _, d := range old.Drills {
			kept := slices.ContainsFunc(configured, func(p drills.Plan) bool { return p.Name == d.Name })
			why := "the drill is no longer configured"
			if last.Origin != own {
				why = "the state that remembered it is lost"
			} else if kept {
				continue
			}
			if d.Schedule == "" {
				continue
			}
			slots, err := slotsOf(d.Schedule, last.Time.Wall, now)
			errs = errors.Join(errs, err)
			for _, at := range slots {
				if key := drills.SlotKey(d.Name, at); !known[key] {
					known[key] = true
					out = append(out, drills.Abandoned{Drill: d.Name, DueAt: at.UTC(), Why: why})
				}
			}
		}
	}
	return out, errs
}

// announced are the slots that entries tell of.
func announced(tails [][]ledger.Record) map[string]bool {
	known := map[string]bool{}
	for _, e := range slices.Concat(tails...) {
		switch e.Type {
		case ledger.TypeDrillDue:
			if a, err := drills.Announced(e); err == nil {
				known[a.Slot] = true
			}
		case ledger.TypeDrillPlans:
			p, err := drills.PlansOf(e)
			for _, a := range p.Abandoned {
				known[drills.SlotKey(a.Drill, a.DueAt)] = err == nil
			}
		}
	}
	return known
}

// newestPlans is the last entry of a tail about plans; no drills where there is none.
func newestPlans(tail []ledger.Record) (e ledger.Record, p drills.Plans, err error) {
	for _, r := range slices.Backward(tail) {
		if r.Type == ledger.TypeDrillPlans {
			p, err = drills.PlansOf(r)
			return r, p, err
		}
	}
	return e, p, nil
}

// planTails are the newest entries of this node's ledgers, each from its newest
// entry about plans on.
func (n *node) planTails(ctx context.Context) (tails [][]ledger.Record, err error) {
	own, err := drills.SincePlans(ctx, n.ledger)
	if err != nil {
		return nil, err
	}
	if last, _, _ := newestPlans(own); last.Type != "" {
		return [][]ledger.Record{own}, nil // the others' were told when this log began
	}
	origins, err := n.origins(ctx)
	if err != nil {
		return nil, err
	}
	src := ledger.FromReader(n.vault.Reader())
	for _, o := range origins {
		if !ledger.OfNode(o, n.cfg.Node.Name) || o == n.ledger.Origin() {
			continue
		}
		c, err := ledger.Latest(ctx, src, n.trust, n.repoID, o)
		if err != nil {
			n.log.Warn("leaving out a ledger that cannot be read", zap.String("origin", o), zap.Error(err))
			continue
		}
		tail, err := evidence.Entries(ctx, src, c, n.now())
		if err != nil {
			return nil, err
		}
		tails = append(tails, tail)
	}
	return append(tails, own), nil
}

// mostAbandoned fit into an entry of the ledger.
const mostAbandoned = 250

// mostSlots of one schedule are looked at.
const mostSlots = 100_000

// slotsOf is an evidence.Schedule.
func slotsOf(spec string, after, until time.Time) ([]time.Time, error) {
	c, err := scheduler.ParseCron(spec)
	if err != nil {
		return nil, err
	}
	slots := c.Slots(after, until, mostSlots+1)
	if len(slots) > mostSlots {
		return nil, fmt.Errorf("schedule %q has more than %d slots from %s to %s", spec, mostSlots, stampOf(after), stampOf(until))
	}
	return slots, nil
}
