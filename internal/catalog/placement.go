package catalog

import (
	"context"
	"strings"
	"time"
)

// KindPlacement is the record of where a cluster may be, and where it is put.
const KindPlacement = "placement v1"

// Placement says where a cluster's copies go and what its residency permits. The
// node that takes its snapshots writes one whenever that changes; the newest holds
// for every node that restores from the repository, whatever its configuration says.
type Placement struct {
	Cluster string       `json:"cluster"`
	Node    string       `json:"node"`
	At      time.Time    `json:"at"`
	Where   string       `json:"jurisdiction,omitempty"` // of the node
	Allow   []string     `json:"allow,omitempty"`
	Forbid  []string     `json:"forbid,omitempty"`
	Copies  int          `json:"copies,omitempty"`
	Zones   []PlacedZone `json:"zones"`
}

// PlacedZone is one zone of the repository in a Placement.
type PlacedZone struct {
	Name         string `json:"name"`
	Jurisdiction string `json:"jurisdiction,omitempty"`
	Place        string `json:"place"` // bucket or directory
	Refused      string `json:"refused,omitempty"`
}

// PlacementName names a placement record: origin is the ledger of the node that made it.
func PlacementName(origin, cluster, id string) string {
	return ProofsDir + origin + "/placement-" + cluster + "-" + id + ".note"
}

// Placements reads a cluster's placement records, the oldest first.
func (r *Reader) Placements(ctx context.Context, cluster string) (Notes[Placement], error) {
	n, err := notes[Placement](ctx, r, ProofsDir, KindPlacement, cluster, func(name string) bool {
		return strings.HasSuffix(name, ".note") && strings.Contains(name, "/placement-"+cluster+"-")
	})
	return keep(n, func(p Placement) bool { return p.Cluster == cluster }), err
}
