package catalog

import (
	"context"
	"fmt"
	"sort"
	"time"
)

// What a hold is on.
const (
	HoldSnapshot = "snapshot" // one snapshot, with the WAL that makes it consistent
	HoldSpan     = "span"     // every moment of a span of time
	HoldProject  = "project"  // a project: its purge waits, and copies from before stay
)

// Hold keeps what a policy or a purge would let go, until it is released. It holds
// no personal data: a project is the keyed digest of its key, as in a tombstone, and
// Reason and By are for case numbers and roles.
type Hold struct {
	ID       string    `json:"id"`
	Cluster  string    `json:"cluster"`
	Kind     string    `json:"kind"`
	Snapshot string    `json:"snapshot,omitempty"`
	From     time.Time `json:"from,omitzero"` // of a span, both ends included
	To       time.Time `json:"to,omitzero"`
	KeyMAC   string    `json:"key_mac,omitempty"` // of a project, as its tombstone has it
	// Spares are snapshots that it needs and that were under a mark, not yet due, when it
	// was placed.
	Spares      []string  `json:"spares,omitempty"`
	DigestEpoch int       `json:"digest_epoch,omitempty"`
	Reason      string    `json:"reason"`
	By          string    `json:"by"`
	Node        string    `json:"node"`
	PlacedAt    time.Time `json:"placed_at"`
	ReviewBy    time.Time `json:"review_by"`
}

// Released ends a hold. Both notes stay.
type Released struct {
	Hold       string    `json:"hold"`
	Cluster    string    `json:"cluster"`
	Reason     string    `json:"reason"`
	By         string    `json:"by"`
	Node       string    `json:"node"`
	ReleasedAt time.Time `json:"released_at"`
}

// Check says whether a hold says what it is on.
func (h Hold) Check() error {
	ok := false
	switch h.Kind {
	case HoldSnapshot:
		ok = CheckID(h.Snapshot) == nil
	case HoldSpan:
		ok = !h.From.IsZero() && !h.To.Before(h.From)
	case HoldProject:
		ok = h.KeyMAC != "" && h.DigestEpoch > 0
	}
	if !ok {
		return fmt.Errorf("hold %s: it is on %q, want a snapshot by its id, a span from one time to a later one, or a project", h.ID, h.Kind)
	}
	return nil
}

// Text is a hold as reasons name it.
func (h Hold) Text() string { return "hold " + h.ID + ": " + h.Reason }

// HoldsOf holds a cluster's holds.
func HoldsOf(cluster string) string { return HoldsDir + cluster + "/" }

// HoldName, ReleasedName: a hold, and that it has ended.
func HoldName(cluster, id string) string     { return HoldsOf(cluster) + id + "/hold.note" }
func ReleasedName(cluster, id string) string { return HoldsOf(cluster) + id + "/released.note" }

// Holds is what the repository holds of one cluster's holds.
type Holds struct {
	Notes[Hold] // released ones as well, the oldest first
	// Released are those that have ended, by the hold's id.
	Released map[string]Released
}

// InForce are the holds that have not ended.
func (h Holds) InForce() []Hold {
	var out []Hold
	for _, x := range h.Bodies() {
		if _, ended := h.Released[x.ID]; !ended {
			out = append(out, x)
		}
	}
	return out
}

// Holds reads a cluster's holds. A release that cannot be believed ends nothing.
func (r *Reader) Holds(ctx context.Context, cluster string) (Holds, error) {
	listing, err := r.list(ctx, HoldsOf(cluster))
	if err != nil {
		return Holds{}, err
	}
	list, err := pick[Hold](ctx, r, listing, KindHold, cluster, suffix("/hold.note"))
	if err != nil {
		return Holds{}, err
	}
	ends, err := pick[Released](ctx, r, listing, KindReleased, cluster, suffix("/released.note"))
	if err != nil {
		return Holds{}, err
	}
	out := Holds{Notes: list, Released: map[string]Released{}}
	out.List = nil
	out.Faults = append(out.Faults, ends.Faults...)
	for _, n := range list.List {
		err := n.Body.Check()
		if n.Name != HoldName(cluster, n.Body.ID) {
			err = fmt.Errorf("it says that it is hold %q", n.Body.ID)
		}
		if err != nil {
			out.Faults = append(out.Faults, Fault{n.Name, err})
			continue
		}
		out.List = append(out.List, n)
	}
	for _, n := range ends.List {
		if n.Name == ReleasedName(cluster, n.Body.Hold) {
			out.Released[n.Body.Hold] = n.Body
		} else {
			out.Faults = append(out.Faults, Fault{n.Name, fmt.Errorf("it says that it releases hold %q", n.Body.Hold)})
		}
	}
	sort.SliceStable(out.List, func(i, j int) bool { return out.List[i].Body.PlacedAt.Before(out.List[j].Body.PlacedAt) })
	return out, nil
}

// Spared are the snapshots that it names: of those a mark says that they may go, and the
// hold that they may not yet.
func (h Hold) Spared() []string {
	if h.Kind == HoldSnapshot {
		return append([]string{h.Snapshot}, h.Spares...)
	}
	return h.Spares
}

// Marked reads which snapshots are under a mark, by id, without those that a hold in
// force spares; marks are all there are.
func (r *Reader) Marked(ctx context.Context, cluster string) (forgotten map[string]Forgotten, marks Notes[Forgotten], err error) {
	if marks, err = r.Forgotten(ctx, cluster); err != nil {
		return nil, marks, err
	}
	forgotten = map[string]Forgotten{}
	for _, m := range marks.List {
		for _, id := range m.Body.Snapshots {
			forgotten[id] = m.Body
		}
	}
	if len(forgotten) == 0 {
		return forgotten, marks, nil
	}
	holds, err := r.Holds(ctx, cluster)
	for _, h := range holds.InForce() {
		for _, id := range h.Spared() {
			delete(forgotten, id)
		}
	}
	return forgotten, marks, err
}
