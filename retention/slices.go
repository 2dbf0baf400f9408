package retention

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// Slices are many, and go soon after the segment that covers them is archived: once a day
// (UTC) all that are covered then are marked, under one entry of the ledger, which also
// tells which earlier such marks are done. Each mark has its own grace.

// maxSlices bounds the stretches of one such mark, one for a segment; the rest waits a day.
const maxSlices = 1 << 15

// daily is what a Keeper remembers of the marks of slices.
type daily struct {
	Day     string         `json:"slices_day,omitempty"` // when an entry was last begun
	Removed map[string]int `json:"slices_removed,omitempty"`
	Ended   []ended        `json:"slices_ended,omitempty"` // and not told yet
}

// ended is a mark of slices of which no zone shows anything any more.
type ended struct {
	Mark    string            `json:"mark"`
	Removed int               `json:"objects_removed"`
	Zones   map[string]string `json:"zones"` // when each was listed
}

func (d *daily) count(m catalog.Forgotten, removed int) {
	if d.Removed == nil {
		d.Removed = map[string]int{}
	}
	d.Removed[m.ID] += removed
}

func (d *daily) end(m catalog.Forgotten, removed int, listed map[string]time.Time) {
	e := ended{Mark: m.ID, Removed: removed, Zones: map[string]string{}}
	for z, at := range listed {
		e.Zones[z] = stamp(at)
	}
	d.Ended = append(d.Ended, e)
	delete(d.Removed, m.ID)
}

// forgetSlices marks the slices that the plan lets go, once a day. The day is used up
// before the ledger is told: a crash between costs the slices a day, not the ledger a
// second entry.
func (k *Keeper) forgetSlices(ctx context.Context, st *state, p Plan) (m catalog.Forgotten, err error) {
	now := k.Now().UTC()
	day := now.Format(time.DateOnly)
	for _, d := range p.WAL {
		if !d.Keep && covered(d) && len(m.WAL) < maxSlices {
			m.WAL = append(m.WAL, d.span())
		}
	}
	if st.Day == day || len(m.WAL)+len(st.Ended) == 0 {
		return catalog.Forgotten{}, nil
	}
	if told, err := k.toldOf(ctx, day); err != nil || told {
		return catalog.Forgotten{}, err
	}
	st.Day = day
	if err := k.save(*st); err != nil {
		return catalog.Forgotten{}, err
	}
	if err := k.tellSlices(ctx, &m, p.Hash, now, st.Ended); err != nil {
		return catalog.Forgotten{}, fmt.Errorf("marking the slices of %s that segments cover: %w", k.Cluster, err)
	}
	st.Ended = nil
	return m, k.save(*st)
}

// tellSlices is the first act for m, or where nothing goes the end of earlier ones alone.
func (k *Keeper) tellSlices(ctx context.Context, m *catalog.Forgotten, hash string, now time.Time, done []ended) error {
	if len(m.WAL) == 0 {
		_, err := k.Ledger.AppendAnchored(ctx, entryResult, map[string]string{"cluster": k.Cluster}, removal{PlanHash: hash, Ended: done})
		return err
	}
	*m = catalog.Forgotten{
		Cluster: k.Cluster, ID: now.Format("20060102T150405Z") + "-" + hash[:12] + "-slices", MarkedAt: now, NotBefore: now.Add(k.Policy.RemovalGrace),
		PlanHash: hash, WAL: m.WAL, Reasons: []string{catalog.Covered},
	}
	body := removal{Mark: m.ID, PlanHash: hash, WAL: len(m.WAL), Ended: done}
	if _, err := k.Ledger.AppendAnchored(ctx, entryIntent, k.subject(*m), body); err != nil {
		return fmt.Errorf("the ledger must hold the intent first: %w", err)
	}
	return k.put(ctx, *m)
}

// toldOf says whether a mark of slices was made on that day already, by a state that is lost.
func (k *Keeper) toldOf(ctx context.Context, day string) (bool, error) {
	marks, err := k.Catalog.Forgotten(ctx, k.Cluster)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(marks.Bodies(), func(m catalog.Forgotten) bool {
		return m.OnlyCovered() && m.MarkedAt.UTC().Format(time.DateOnly) == day
	}), nil
}

// lane is where WAL lies one byte behind the other.
type lane struct {
	epoch    int
	timeline uint32
}

// longer is the file that makes f superfluous: every zone that shows f holds it whole.
func (j *walJudge) longer(f File) (File, bool) {
	list := j.reach[lane{f.Epoch, f.Timeline}]
	i, _ := slices.BinarySearchFunc(list, f.From, func(g File, from lsn.LSN) int {
		if g.From <= from {
			return -1
		}
		return 1
	})
	if i == 0 {
		return File{}, false
	}
	g := list[i-1]
	if f.To > g.To || spanOf(f) == spanOf(g) || !f.HeldBy(g.WALEntry) {
		return File{}, false
	}
	return g, true
}
