package main

import (
	"context"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
)

// fullIsDue says whether the next snapshot of the cluster copies everything afresh.
func (p *protected) fullIsDue(ctx context.Context) (bool, error) {
	every := p.cfg.Snapshots.FullEvery.Std()
	if every <= 0 {
		return false, nil
	}
	all, err := p.n.world.catalog.Snapshots(ctx, p.cfg.Name)
	if err != nil {
		return false, fmt.Errorf("looking for the last full snapshot of %s: %w", p.cfg.Name, err)
	}
	return fullDue(all, every, p.n.world.now()), nil
}

// fullDue looks for a snapshot that was compared with none and is no older than
// every. Where some may be missing, it is not due: the zones come back.
func fullDue(all catalog.Snapshots, every time.Duration, now time.Time) bool {
	if !all.Complete {
		return false
	}
	for _, s := range all.All {
		begun, known := all.Begun[s.Body.ID]
		if known && !catalog.Exported(s.Body.Kind) && begun.Base == "" && now.Sub(s.Body.StartedAt) < every {
			return false
		}
	}
	return true
}
