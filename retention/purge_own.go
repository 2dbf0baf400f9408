package retention

import (
	"context"
	"slices"

	"github.com/holdfast-dr/holdfast/internal/catalog"
)

// gatherPurged finds the snapshots of deleted projects alone: once live was seen without
// such a project they go whatever the policy says. One that was taken after that is of a
// new project with the old key.
func (k *Keeper) gatherPurged(ctx context.Context, in *Inputs, begun map[string]catalog.Intent) error {
	own := slices.DeleteFunc(slices.Clone(in.Snapshots), func(s catalog.Snapshot) bool { return s.Kind != catalog.Project })
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
		for _, s := range own {
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
