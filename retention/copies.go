package retention

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/zone"
)

// copies is what the zones hold of a cluster, by their own listings.
type copies struct {
	at     time.Time
	plan   *planner
	begun  map[string]catalog.Intent // snapshots, committed or not, marked or not
	zones  map[string][]zone.Object
	faults map[string]error
	size   int64
	taken  map[string]catalog.Snapshot // committed ones, by id
	held   map[string][]string         // holds, by the name of what a snapshot on hold needs
	of     catalog.Tombstone           // whose copies are counted
}

// survey reads what stays and lists every zone, versions included.
func (k *Keeper) survey(ctx context.Context) (*copies, error) {
	in, err := k.Gather(ctx)
	if err != nil {
		return nil, err
	}
	all, err := k.Catalog.Snapshots(ctx, k.Cluster)
	if err != nil {
		return nil, err
	}
	c := &copies{plan: newPlanner(in), begun: all.Begun, taken: map[string]catalog.Snapshot{}, size: segSizeOf(all.All), at: k.Now()}
	for _, s := range all.All {
		c.taken[s.Body.ID] = s.Body
	}
	if c.zones, c.faults, err = k.everyCopy(ctx); err != nil {
		return nil, err
	}
	if c.held, err = k.heldNames(ctx, c.plan); err != nil {
		return nil, err
	}
	return c, nil
}

// everyCopy lists what every zone holds of the cluster, versions included; a zone that
// did not answer to the end has a fault, and what it showed.
func (k *Keeper) everyCopy(ctx context.Context) (zones map[string][]zone.Object, faults map[string]error, err error) {
	zones, faults = map[string][]zone.Object{}, map[string]error{}
	for _, prefix := range []string{catalog.SnapshotsDir(k.Cluster), catalog.WALRoot(k.Cluster)} {
		found, wrong := k.Remover.Versions(ctx, prefix)
		for z, objects := range found {
			zones[z] = append(zones[z], objects...)
		}
		for z, err := range wrong {
			zones[z] = append(zones[z], []zone.Object{}...)
			faults[z] = err
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, fmt.Errorf("listing the zones of %s: %w", k.Cluster, err)
	}
	return zones, faults, nil
}

// segSizeOf is the size of a segment by the last of some snapshots.
func segSizeOf(list []catalog.Noted[catalog.Snapshot]) int64 {
	if n := len(list); n > 0 {
		return segSize(list[n-1].Body)
	}
	return segSize(catalog.Snapshot{})
}

func (a *advance) read(ctx context.Context) (err error) {
	if a.found == nil {
		a.found, err = a.survey(ctx)
	}
	return err
}

// holdsOn are the holds that keep an object.
func (c *copies) holdsOn(name string) []string {
	if why := c.held[name]; len(why) > 0 {
		return why
	}
	if len(c.plan.spans) == 0 {
		return nil
	}
	f, ok := parseWALObject(name, c.size)
	if !ok {
		return nil
	}
	system, _ := c.plan.system(f.Epoch)
	return c.plan.spanReasons(system, f.Timeline, f.From, f.To)
}

// count counts, for each zone, the versions of objects that may hold a project
// which live was seen without at absent (seen says whether it was), and names the holds
// on it. The zones are listed after live was looked at: a certificate may rest on it.
func (a *advance) count(ctx context.Context, one *Purge, t catalog.Tombstone, absent catalog.Absent, seen bool) error {
	if err := a.read(ctx); err != nil {
		return err
	}
	for _, h := range a.found.plan.Holds {
		if concerns(h.Hold, t) {
			one.SuspendedBy = append(one.SuspendedBy, h.Text())
			one.Overdue = false
		}
	}
	a.found.of = t
	held := false // then nobody knows when the last copy ends
	for _, name := range sortedKeys(a.found.zones) {
		z, kept := a.countZone(name, one.SuspendedBy, absent, seen)
		held = held || kept
		one.LastCopyEnds = later(one.LastCopyEnds, z.LastEnds)
		one.Zones = append(one.Zones, z)
	}
	if !seen && a.Policy.KeepAtMost > 0 { // snapshots yet to be taken will hold it
		one.LastCopyEnds = later(one.LastCopyEnds, a.ends(a.Now()))
	}
	if held {
		one.LastCopyEnds = time.Time{}
	}
	return nil
}

// countZone counts in one zone; held says that a hold keeps some of it.
func (a *advance) countZone(name string, suspended []string, absent catalog.Absent, seen bool) (z PurgeZone, held bool) {
	c := a.found
	z = PurgeZone{Name: name, BlockedBy: append([]string{}, suspended...)}
	if err := c.faults[name]; err != nil {
		z.silent, z.BlockedBy = true, append(z.BlockedBy, "the zone did not answer: "+err.Error())
	}
	held = len(suspended) > 0
	by := map[string]bool{}
	for _, o := range c.zones[name] {
		if z.versions++; o.Marker || (seen && c.clean(a.Cluster, o, absent)) {
			continue
		}
		if z.Copies++; z.oldest.IsZero() || o.Modified.Before(z.oldest) {
			z.oldest = o.Modified
		}
		z.LastEnds = later(z.LastEnds, a.endOf(o))
		if id, ok := holdingID(a.Cluster, o.Name); ok {
			by["snapshot "+id] = true
		} else {
			by["WAL"] = true
		}
		holds := c.holdsOn(o.Name)
		for _, why := range holds {
			by[why], held = true, true
		}
		if a.name {
			z.Objects = append(z.Objects, a.copyOf(o, len(suspended)+len(holds) > 0))
		}
		if o.LockedUntil.After(a.Now()) {
			by["lock until "+stamp(o.LockedUntil)] = true
		}
	}
	for _, why := range sortedKeys(by) {
		if !slices.Contains(z.BlockedBy, why) {
			z.BlockedBy = append(z.BlockedBy, why)
		}
	}
	if held {
		z.LastEnds = time.Time{}
	}
	return z, held
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// endOf is when an object is gone at the latest, by the policy: snapshots that
// refer to it expire by its age, see [Policy.Expires].
func (a *advance) endOf(o zone.Object) time.Time {
	from := o.Modified
	if id, ok := holdingID(a.Cluster, o.Name); ok {
		if in, known := a.found.begun[id]; known {
			from = in.StartedAt
		}
	}
	if a.Policy.KeepAtMost == 0 {
		return o.LockedUntil
	}
	return later(a.ends(from), o.LockedUntil)
}

// copyOf names a copy; held says that a hold keeps it, so that nobody knows when it ends.
func (a *advance) copyOf(o zone.Object, held bool) PurgeCopy {
	one := PurgeCopy{Name: o.Name, Version: o.Version}
	if !held {
		one.EndsAt = a.endOf(o)
	}
	return one
}

var (
	noRowsRE  = regexp.MustCompile(`/wal/\d{8}/[0-9A-F]{8}/([0-9A-F]{8}\.history|[0-9A-F]{24}\.[0-9A-F]{8}\.backup)-[0-9a-f]{32}\.age$`)
	walNoteRE = regexp.MustCompile(`/wal/\d{8}/[0-9A-F]{8}/[0-9A-F]{16}-[0-9A-F]{16}-[^/]*\.note$`)
)

// clean says that an object cannot hold rows that live was without at absent: it
// was made after, on a history that goes through that moment. A pack is as old as
// the intent in its own directory tells, whichever snapshots refer to it; a
// snapshot that was resumed began with its first attempt. Names that are not
// understood are not clean.
func (c *copies) clean(cluster string, o zone.Object, absent catalog.Absent) bool {
	if id, ok := holdingID(cluster, o.Name); ok {
		if c.taken[id].OfAnother(c.of) {
			return true // another project's rows, and what no project owns
		}
		in, known := c.begun[id]
		return known && c.after(in.SystemID, in.Timeline, in.From, absent)
	}
	if noRowsRE.MatchString(o.Name) || walNoteRE.MatchString(o.Name) {
		return true
	}
	f, ok := parseWALObject(o.Name, c.size)
	if !ok {
		return false
	}
	system, ok := c.plan.system(f.Epoch)
	return ok && c.after(system, f.Timeline, f.From, absent)
}

// after says whether a place is at or behind absent's, on a history that goes
// through it.
func (c *copies) after(system string, timeline uint32, at lsn.LSN, absent catalog.Absent) bool {
	if system != absent.SystemID || at < absent.LSN {
		return false
	}
	legs, known := c.plan.path(Branch{system, timeline})
	return known && slices.ContainsFunc(legs, func(l leg) bool {
		return l.timeline == absent.Timeline && absent.LSN >= l.from && absent.LSN <= l.to
	})
}
