package retention

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/zone"
)

// The classes of what a zone holds of a cluster, besides the kinds of snapshots.
const (
	ClassWAL        = "wal"
	ClassHistory    = "history"    // histories and marks of backups: no rows, and no ceiling
	ClassUnfinished = "unfinished" // of snapshots that no note commits: running, given up, or half removed
)

// Holding is what one zone's own listing of versions shows of one class.
type Holding struct {
	Zone         string    `json:"zone"`
	Class        string    `json:"class"` // physical | logical | project | unfinished | wal | history
	Names        int64     `json:"names"`
	Versions     int64     `json:"versions"` // delete markers included
	Markers      int64     `json:"markers"`
	Bytes        int64     `json:"bytes"`
	Oldest       time.Time `json:"oldest,omitzero"` // by the zone's clock
	OldestObject string    `json:"oldest_object,omitempty"`
	Newest       time.Time `json:"newest,omitzero"`
	NewestObject string    `json:"newest_object,omitempty"`
	TooOld       int64     `json:"too_old"`           // versions beyond keep_at_most that no hold keeps
	OnHold       int64     `json:"on_hold"`           // versions beyond it that one keeps
	Because      []string  `json:"because,omitempty"` // of the holds
	Sample       []string  `json:"sample,omitempty"`  // names, the oldest and the newest among them, the rest evenly

	held []string // of the sample
}

// KeptByHold says whether a hold keeps an object of the sample: its lock goes on with it.
func (h Holding) KeptByHold(name string) bool { return slices.Contains(h.held, name) }

// Inventory is what the zones hold of a cluster.
type Inventory struct {
	At       time.Time
	Holdings []Holding // by zone and class
	Faults   map[string]error
	Held     map[string][]string // holds, by the snapshot that they keep
}

// sampled is how many names of each zone and class are a sample.
const sampled = 16

// Inventory lists every zone, versions included. Lineages are not counted: they hold
// no data and stay.
func (k *Keeper) Inventory(ctx context.Context) (Inventory, error) {
	c, err := k.survey(ctx)
	if err != nil {
		return Inventory{}, err
	}
	out := Inventory{At: c.at.UTC(), Faults: c.faults, Held: c.plan.held}
	found := map[string]map[string][]zone.Object{}
	for z, objects := range c.zones {
		found[z] = map[string][]zone.Object{}
		for _, o := range objects {
			class := k.classOf(o.Name, c.taken)
			found[z][class] = append(found[z][class], o)
		}
	}
	for _, z := range sortedKeys(found) {
		for _, class := range sortedKeys(found[z]) {
			out.Holdings = append(out.Holdings, k.holding(z, class, found[z][class], c))
		}
	}
	return out, nil
}

func (k *Keeper) classOf(name string, taken map[string]catalog.Snapshot) string {
	if id, ok := holdingID(k.Cluster, name); ok {
		return cmp.Or(taken[id].Kind, ClassUnfinished)
	}
	if noRowsRE.MatchString(name) {
		return ClassHistory
	}
	if e, ok := catalog.ParseWALNote(name); ok && e.From == e.To {
		return ClassHistory
	}
	return ClassWAL
}

// holding sums up the versions of one class in one zone.
func (k *Keeper) holding(z, class string, objects []zone.Object, c *copies) Holding {
	h := Holding{Zone: z, Class: class}
	names := map[string]bool{}
	for _, o := range objects {
		names[o.Name] = true
		h.Versions++
		h.Bytes += o.Size
		if o.Marker {
			h.Markers++
			continue
		}
		if h.Oldest.IsZero() || o.Modified.Before(h.Oldest) {
			h.Oldest, h.OldestObject = o.Modified.UTC(), o.Name
		}
		if o.Modified.After(h.Newest) {
			h.Newest, h.NewestObject = o.Modified.UTC(), o.Name
		}
		if class == ClassHistory || k.Policy.KeepAtMost == 0 || k.Now().Sub(o.Modified) <= k.Policy.KeepAtMost {
			continue
		}
		why := c.holdsOn(o.Name)
		if len(why) == 0 {
			h.TooOld++
			continue
		}
		h.OnHold++
		for _, w := range why {
			if !slices.Contains(h.Because, w) {
				h.Because = append(h.Because, w)
			}
		}
	}
	h.Names = int64(len(names))
	h.sample(sortedKeys(names))
	for _, name := range h.Sample {
		if len(c.holdsOn(name)) > 0 {
			h.held = append(h.held, name)
		}
	}
	return h
}

func (h *Holding) sample(names []string) {
	step := max(1, len(names)/sampled)
	for i, name := range names {
		if i%step == 0 || name == h.OldestObject || name == h.NewestObject {
			h.Sample = append(h.Sample, name)
		}
	}
}

// heldNames finds what snapshots on hold need, in whichever directory it lies, with
// the holds. It has p keep what holds name.
func (k *Keeper) heldNames(ctx context.Context, p *planner) (map[string][]string, error) {
	p.keepHolds()
	held := map[string][]string{}
	for _, s := range p.Snapshots {
		if len(p.held[s.ID]) == 0 {
			continue
		}
		refs, err := k.refs(ctx, s)
		if err != nil {
			return nil, err
		}
		refs = append(refs, catalog.Ref{Name: s.Objects.Name}, catalog.Ref{Name: catalog.SnapshotName(k.Cluster, s.ID)}, catalog.Ref{Name: catalog.IntentName(k.Cluster, s.ID)})
		for _, r := range refs {
			held[r.Name] = append(held[r.Name], p.why[s.ID]...)
		}
	}
	return held, nil
}

// refs are what a snapshot needs, by its list.
func (k *Keeper) refs(ctx context.Context, s catalog.Snapshot) ([]catalog.Ref, error) {
	body, err := k.Store.Get(ctx, s.Objects.Name, s.Objects.Size, s.Objects.SHA256)
	if err != nil {
		return nil, fmt.Errorf("reading what snapshot %s needs: %w; nothing is removed before that is known", s.ID, err)
	}
	refs, err := catalog.DecodeObjects(bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("reading what snapshot %s needs: %w", s.ID, err)
	}
	return refs, nil
}
