package retention

import (
	"context"

	"github.com/holdfast-dr/holdfast/internal/catalog"
)

// gatherPurged finds the snapshots of deleted projects alone: once live was seen without
// such a project they go whatever the policy says. One that was taken after that is of a
// new project with the old key.
func (k *Keeper) gatherPurged(ctx context.Context, in *Inputs, begun map[string]catalog.Intent) error {
	own := catalog.OfKind(noted(in.Snapshots), catalog.Project)
	if len(own) == 0 {
		return nil
	}
	tombs, err := k.Catalog.Tombstones(ctx, k.Cluster)
	if err != nil {
		return err
	}
	absences, err := k.Catalog.Absences(ctx)
	if err != nil {
		return err
	}
	in.Purged = map[string]string{}
	c := &copies{plan: newPlanner(*in)}
	for _, t := range tombs.Bodies() {
		absent, seen := absences[t.ID]
		for _, n := range own {
			s := n.Body
			if !seen || !s.Of(t) {
				continue
			}
			if at, known := begun[s.ID]; !known || !c.after(at.SystemID, at.Timeline, at.From, absent) {
				in.Purged[s.ID] = t.ID
			}
		}
	}
	return nil
}

func noted(list []catalog.Snapshot) (out []catalog.Noted[catalog.Snapshot]) {
	for _, s := range list {
		out = append(out, catalog.Noted[catalog.Snapshot]{Body: s})
	}
	return out
}
