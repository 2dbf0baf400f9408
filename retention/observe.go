package retention

import (
	"context"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
)

// Observed is what one zone's own listing of versions shows of a cluster.
type Observed struct {
	Zone     string    `json:"zone"`
	Versions int64     `json:"versions"`
	Bytes    int64     `json:"bytes"`
	Oldest   time.Time `json:"oldest,omitzero"` // by the zone's clock
	Object   string    `json:"object,omitempty"`
	TooOld   bool      `json:"too_old"` // beyond keep_at_most: a failure, like too young
	Err      string    `json:"error,omitempty"`
}

// Observed lists every zone and tells its oldest snapshot or WAL object.
// Lineages are not counted: they hold no data and stay.
func (k *Keeper) Observed(ctx context.Context) ([]Observed, error) {
	byZone := map[string]*Observed{}
	at := func(z string) *Observed {
		if byZone[z] == nil {
			byZone[z] = &Observed{Zone: z}
		}
		return byZone[z]
	}
	for _, prefix := range []string{catalog.SnapshotsDir(k.Cluster), catalog.WALRoot(k.Cluster)} {
		zones, faults := k.Remover.Versions(ctx, prefix)
		for z, err := range faults {
			at(z).Err = err.Error()
		}
		for z, objects := range zones {
			o := at(z)
			for _, v := range objects {
				o.Versions++
				o.Bytes += v.Size
				if !v.Marker && (o.Oldest.IsZero() || v.Modified.Before(o.Oldest)) {
					o.Oldest, o.Object = v.Modified.UTC(), v.Name
				}
			}
			o.TooOld = k.Policy.KeepAtMost > 0 && !o.Oldest.IsZero() && k.Now().Sub(o.Oldest) > k.Policy.KeepAtMost
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("observing the zones of %s: %w", k.Cluster, err)
	}
	out := make([]Observed, 0, len(byZone))
	for _, z := range sortedKeys(byZone) {
		out = append(out, *byZone[z])
	}
	return out, nil
}
