package retention

import (
	"context"
	"slices"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/zone"
)

// Revisit lists every zone for what marks that are done let go: a zone that was away
// may be an older state of itself, which shows it again. Marks of which something is
// there are due once more, and the next Sweep removes it. It returns them.
func (k *Keeper) Revisit(ctx context.Context) (again []string, err error) {
	st, err := k.load()
	if err != nil || len(st.Swept) == 0 {
		return nil, err
	}
	marks, err := k.Catalog.Forgotten(ctx, k.Cluster)
	if err != nil {
		return nil, err
	}
	done := slices.DeleteFunc(marks.Bodies(), func(m catalog.Forgotten) bool {
		_, swept := st.Swept[m.ID]
		return !swept
	})
	snaps, err := k.Catalog.Snapshots(ctx, k.Cluster)
	if err != nil {
		return nil, err
	}
	zones, _, err := k.everyCopy(ctx)
	if err != nil {
		return nil, err
	}
	size := segSizeOf(snaps.All)
	for _, objects := range zones {
		for _, o := range objects {
			if i := k.letGo(done, o, size); i >= 0 {
				again = append(again, done[i].ID)
				delete(st.Swept, done[i].ID)
				done = slices.Delete(done, i, i+1)
			}
		}
	}
	if len(again) == 0 {
		return nil, nil
	}
	slices.Sort(again)
	return again, k.save(st)
}

// letGo is the mark under which an object went, or -1.
func (k *Keeper) letGo(done []catalog.Forgotten, o zone.Object, size int64) int {
	if id, ok := holdingID(k.Cluster, o.Name); ok {
		return slices.IndexFunc(done, func(m catalog.Forgotten) bool { return slices.Contains(m.Snapshots, id) })
	}
	f, ok := parseWALObject(o.Name, size)
	if !ok {
		return -1
	}
	whole := f.Whole()
	return slices.IndexFunc(done, func(m catalog.Forgotten) bool {
		return !(m.OnlyCovered() && whole) && f.Taken(m.WAL)
	})
}
