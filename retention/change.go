package retention

import (
	"context"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/internal/approval"
	"github.com/holdfast-dr/holdfast/internal/catalog"
)

// entryPolicy is the ledger's type of entries about a policy that is first applied.
const entryPolicy = "retention.policy"

// Terms are a policy as it is written down.
type Terms struct {
	Window       string `json:"window"`
	Hourly       int    `json:"hourly"`
	Daily        int    `json:"daily"`
	Weekly       int    `json:"weekly"`
	Monthly      int    `json:"monthly"`
	Yearly       int    `json:"yearly"`
	TimeZone     string `json:"time_zone"`
	KeepAtLeast  string `json:"keep_at_least"`
	KeepAtMost   string `json:"keep_at_most"` // "0s": no ceiling
	RemovalGrace string `json:"removal_grace"`
	RenewAfter   string `json:"renew_after"`
	// Logical and Project are of classes that count by themselves; none: as above.
	Logical ClassTerms `json:"logical,omitzero"`
	Project ClassTerms `json:"project,omitzero"`
}

// ClassTerms are the counts of a class as they are written down.
type ClassTerms struct {
	Hourly      int    `json:"hourly"`
	Daily       int    `json:"daily"`
	Weekly      int    `json:"weekly"`
	Monthly     int    `json:"monthly"`
	Yearly      int    `json:"yearly"`
	KeepAtLeast string `json:"keep_at_least"` // "": the class has no counts of its own
}

func (c *Counts) terms() ClassTerms {
	if c == nil {
		return ClassTerms{}
	}
	return ClassTerms{c.Hourly, c.Daily, c.Weekly, c.Monthly, c.Yearly, c.KeepAtLeast.String()}
}

// counts reads what terms wrote.
func (t ClassTerms) counts() (*Counts, error) {
	if t.KeepAtLeast == "" {
		return nil, nil
	}
	least, err := time.ParseDuration(t.KeepAtLeast)
	return &Counts{t.Hourly, t.Daily, t.Weekly, t.Monthly, t.Yearly, least}, err
}

// Terms writes a policy down.
func (p Policy) Terms() Terms {
	return Terms{
		p.Window.String(), p.Hourly, p.Daily, p.Weekly, p.Monthly, p.Yearly, p.zone().String(),
		p.Floor().String(), p.KeepAtMost.String(), p.RemovalGrace.String(), p.RenewAfter.String(),
		p.Logical.terms(), p.Project.terms(),
	}
}

// policy reads what Terms wrote; lead is none of it.
func (t Terms) policy(lead time.Duration) (Policy, error) {
	p := Policy{Hourly: t.Hourly, Daily: t.Daily, Weekly: t.Weekly, Monthly: t.Monthly, Yearly: t.Yearly, Lead: lead}
	var err error
	for text, into := range map[*string]*time.Duration{
		&t.Window: &p.Window, &t.KeepAtLeast: &p.KeepAtLeast, &t.KeepAtMost: &p.KeepAtMost, &t.RemovalGrace: &p.RemovalGrace, &t.RenewAfter: &p.RenewAfter,
	} {
		if *into, err = time.ParseDuration(*text); err != nil {
			return p, fmt.Errorf("reading the policy that was applied last: %w", err)
		}
	}
	if p.Logical, err = t.Logical.counts(); err == nil {
		p.Project, err = t.Project.counts()
	}
	if err != nil {
		return p, fmt.Errorf("reading the policy that was applied last: %w", err)
	}
	if p.Zone, err = time.LoadLocation(t.TimeZone); err != nil {
		return p, fmt.Errorf("reading the policy that was applied last: %w", err)
	}
	return p, nil
}

// Change is how a policy differs from the one that was applied last.
type Change struct {
	Hash    string   `json:"hash"` // of its Plan: what is approved
	Cluster string   `json:"cluster"`
	Before  Terms    `json:"before"`
	After   Terms    `json:"after"`
	Shorter []string `json:"shorter"` // terms that keep less than before
	Goes    []string `json:"goes"`    // snapshots that the policy before would keep now
	WAL     int      `json:"wal_files"`
	// Approvals are those that it stands on, where approvers are configured.
	Approvals []approval.Given `json:"approvals,omitempty"`
}

// ChangePlan is what of a change is approved.
type ChangePlan struct {
	Kind    string `json:"kind"` // PlanChange
	Cluster string `json:"cluster"`
	Before  Terms  `json:"before"`
	After   Terms  `json:"after"`
}

// Plan is what of the change is approved.
func (c Change) Plan() ChangePlan { return ChangePlan{PlanChange, c.Cluster, c.Before, c.After} }

// Shorter says which terms keep less than before.
func (c ChangePlan) Shorter() ([]string, error) {
	before, err := c.Before.policy(0)
	if err != nil {
		return nil, err
	}
	after, err := c.After.policy(0)
	return after.shorter(before), err
}

// shorter says which terms of p keep less than those of old.
func (p Policy) shorter(old Policy) []string {
	out := []string{}
	less := func(name string, now, before time.Duration) {
		if now < before {
			out = append(out, fmt.Sprintf("%s %s instead of %s", name, short(now), short(before)))
		}
	}
	less("window", p.Window, old.Window)
	less("keep_at_least", p.Floor(), old.Floor())
	switch {
	case old.KeepAtMost == 0 && p.KeepAtMost > 0:
		out = append(out, "keep_at_most "+short(p.KeepAtMost)+" instead of none")
	case p.KeepAtMost > 0:
		less("keep_at_most", p.KeepAtMost, old.KeepAtMost)
	}
	less("removal_grace", p.RemovalGrace, old.RemovalGrace)
	out = append(out, p.fewer(old, "")...)
	for _, kind := range []string{catalog.Logical, catalog.Project} {
		if p.Logical == nil && old.Logical == nil && kind == catalog.Logical || p.Project == nil && old.Project == nil && kind == catalog.Project {
			continue // said already
		}
		now, before := p.For(kind), old.For(kind)
		less(kind+" keep_at_least", now.Floor(), before.Floor())
		out = append(out, now.fewer(before, kind+" ")...)
	}
	if old.zero() && !p.zero() {
		out = append(out, "a policy instead of none")
	}
	return out
}

// fewer says which counts of p are less than those of old.
func (p Policy) fewer(old Policy, of string) (out []string) {
	before := old.tiers()
	for i, t := range p.tiers() {
		if t.count < before[i].count {
			out = append(out, fmt.Sprintf("%s%s %d instead of %d", of, t.name, t.count, before[i].count))
		}
	}
	return out
}

// change compares the policy with the one that was applied last, and what each would
// keep; nil where they are one, or none was applied yet.
func (k *Keeper) change(in Inputs, last *Terms) (*Change, error) {
	if last == nil || *last == k.Policy.Terms() {
		return nil, nil
	}
	old, err := last.policy(k.Policy.Lead)
	if err != nil {
		return nil, err
	}
	c := &Change{Cluster: k.Cluster, Before: *last, After: k.Policy.Terms(), Shorter: k.Policy.shorter(old), Goes: []string{}}
	if c.Hash, err = approval.Hash(c.Plan()); err != nil {
		return nil, err
	}
	in.Force, in.Change = true, nil
	now, err := MakePlan(in)
	if err != nil {
		return nil, err
	}
	in.Policy = old
	before, err := MakePlan(in)
	if err != nil { // it was one that cannot be meant any more
		return c, nil //nolint:nilerr // the difference in words stays
	}
	for i, d := range now.Snapshots {
		if !d.Keep && before.Snapshots[i].Keep {
			c.Goes = append(c.Goes, d.ID)
		}
	}
	c.WAL = max(0, kept(before.WAL)-kept(now.WAL))
	return c, nil
}

// kept counts the files that stay.
func kept(list []WALDecision) (n int) {
	for _, d := range list {
		if d.Keep {
			n += d.Files
		}
	}
	return n
}

// accept tells the ledger of a policy that is applied for the first time.
func (k *Keeper) accept(ctx context.Context, st *state, p Plan) error {
	terms := k.Policy.Terms()
	if st.Policy != nil && *st.Policy == terms {
		return nil
	}
	body := struct {
		After    Terms   `json:"after"`
		PlanHash string  `json:"plan_hash"`
		Change   *Change `json:"change,omitempty"`
		Approved bool    `json:"approved"` // a person named the change's hash, or approvers signed it
	}{terms, p.Hash, p.Change, p.Change != nil && (p.Change.Hash == k.Approved || len(p.Change.Approvals) > 0)}
	if body.Change != nil && len(body.Change.Goes) > maxGoes {
		c := *body.Change
		c.Goes = append(append([]string{}, c.Goes[:maxGoes]...), fmt.Sprintf("and %d more", len(c.Goes)-maxGoes))
		body.Change = &c
	}
	if _, err := k.Ledger.AppendAnchored(ctx, entryPolicy, map[string]string{"cluster": k.Cluster}, body); err != nil {
		return fmt.Errorf("telling the ledger of the new policy: %w", err)
	}
	st.Policy = &terms
	return k.save(*st)
}

// maxGoes bounds the snapshots that an entry of the ledger names.
const maxGoes = 500
