package catalog

import (
	"context"
	"time"
)

// KindRetired says that a cluster is protected no more, and all that is kept of it goes.
const KindRetired = "retired v1"

// Retired ends a cluster for good: no snapshot and no WAL of it is taken any more.
type Retired struct {
	Cluster   string    `json:"cluster"`
	Node      string    `json:"node"`
	RetiredAt time.Time `json:"retired_at"`
	PlanHash  string    `json:"plan_hash"`
}

// RetiredName names the note that ends a cluster.
func RetiredName(cluster string) string { return RetiredDir + cluster + ".note" }

// Retired reads whether a cluster is retired: its list has one note, or none.
func (r *Reader) Retired(ctx context.Context, cluster string) (Notes[Retired], error) {
	return notes[Retired](ctx, r, RetiredName(cluster), KindRetired, cluster, func(name string) bool {
		return name == RetiredName(cluster)
	})
}
