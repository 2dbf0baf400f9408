package retention

import (
	"context"
	"fmt"

	"github.com/holdfast-dr/holdfast/internal/approval"
)

// The kinds of plans that are approved.
const (
	PlanChange = "policy-change"  // a policy that keeps less
	PlanEarly  = "purge-early"    // what holds deleted projects, ahead of retention
	PlanRetire = "cluster-retire" // all of a cluster
)

// Pending is a plan that may be carried out once it is approved. Effect is what it comes
// to now, in words.
type Pending struct {
	Kind   string
	Hash   string
	Plan   any
	Effect []string
}

// pending is the change as it waits.
func (c Change) pending() Pending {
	effect := []string{fmt.Sprintf("because of it would go at once: %d snapshots, %d files of WAL", len(c.Goes), c.WAL)}
	for _, id := range c.Goes[:min(len(c.Goes), maxGoes)] {
		effect = append(effect, "snapshot "+id)
	}
	return Pending{PlanChange, c.Hash, c.Plan(), effect}
}

// approved says whether a plan may be carried out, by its hash: by as many signatures of
// approvers as must be, which are verified here and now; or, where no approvers are
// configured, by a person's word. The standing is what there is.
func (k *Keeper) approved(ctx context.Context, hash string) (bool, approval.Standing, error) {
	if k.Board == nil || !k.Board.Rule.Asks() {
		return hash == k.Approved, approval.Standing{Hash: hash, Given: []approval.Given{}}, nil
	}
	s, err := k.Board.Standing(ctx, hash)
	return s.Enough(), s, err
}

// how says what is to be done for a plan that is not approved yet; by is the command that
// takes a person's word.
func how(s approval.Standing, by string) string {
	if s.Needed > 0 {
		return s.Text()
	}
	return by
}
