package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/vault"
	"github.com/holdfast-dr/holdfast/internal/zone"
	"github.com/holdfast-dr/holdfast/retention"
)

// locks says whether any zone that a cluster may use locks.
func (w *world) locks() bool {
	return slices.ContainsFunc(w.cfg.Repository.Zones, func(z configs.Zone) bool { return z.ObjectLock != "none" })
}

// lockUntil is when a snapshot's objects that are made now may first be removed:
// its floor; nil where nothing is locked.
func (w *world) lockUntil(c configs.Cluster) func(time.Time) time.Time {
	if !w.locks() {
		return nil
	}
	return func(now time.Time) time.Time { return now.Add(c.Retention.KeepAtLeast.Std()) }
}

// lockWAL is lockUntil of WAL, which the window needs as well.
func (w *world) lockWAL(c configs.Cluster) func(time.Time) time.Time {
	if !w.locks() {
		return nil
	}
	return func(now time.Time) time.Time { return now.Add(floorOf(c)) }
}

func floorOf(c configs.Cluster) time.Duration {
	return max(c.Retention.KeepAtLeast.Std(), c.Retention.Window.Std())
}

// goodFloor is for how long what stays for good (tombstones, marks, digest keys,
// ledgers, a zone's identity) is locked from each look at it on.
func (w *world) goodFloor() (longest time.Duration) {
	for _, c := range w.cfg.Clusters {
		longest = max(longest, floorOf(c))
	}
	return longest
}

// lockKept gives what is stored without a lock of its own the floor of what stays for
// good. Keys of domains are to be destroyed at an hour's notice, and probes at once.
func (w *world) lockKept(name string) time.Time {
	for _, not := range []string{catalog.ClustersPrefix, zone.ProbePrefix} {
		if strings.HasPrefix(name, not) {
			return time.Time{}
		}
	}
	if strings.HasPrefix(name, "keys/") && !strings.HasPrefix(name, catalog.DigestKeysDir) || !w.locks() {
		return time.Time{}
	}
	if floor := w.goodFloor(); floor > 0 {
		return w.now().Add(floor)
	}
	return time.Time{}
}

// lockEnd is until when an object must be locked; below least it is lengthened.
type lockEnd struct{ until, least time.Time }

// moving is an end that goes on with time: it is followed in steps of half.
func moving(now time.Time, d time.Duration) lockEnd { return lockEnd{now.Add(d), now.Add(d / 2)} }

func (e lockEnd) later(o lockEnd) lockEnd {
	if o.until.After(e.until) {
		e.until = o.until
	}
	if o.least.After(e.least) {
		e.least = o.least
	}
	return e
}

// lockEnds are the ends by the names of objects.
type lockEnds map[string]lockEnd

func (l lockEnds) add(name string, e lockEnd) {
	if l != nil && name != "" {
		l[name] = l[name].later(e)
	}
}

// lockPlan says until when what a cluster's snapshots need must be locked: to the
// floor of each that names it; that of the window's base until the next one has gone
// out of the window; that of the newest, which never goes, for a window from now on.
// Never past the ceiling, but for what a hold keeps: that is locked for the longest of
// these from now on, for as long as the hold lasts.
type lockPlan struct {
	ends  lockEnds
	snaps []catalog.Snapshot
	by    map[string]lockEnd // snapshots, by id
	span  time.Duration
	now   time.Time
	held  retention.OnHold
	hold  lockEnd // of what is on hold
}

func (w *world) lockPlan(cluster string, snaps []catalog.Snapshot, held retention.OnHold, ends lockEnds) *lockPlan {
	p := &lockPlan{by: map[string]lockEnd{}, snaps: slices.Clone(snaps), now: w.now(), held: held}
	i := slices.IndexFunc(w.cfg.Clusters, func(c configs.Cluster) bool { return c.Name == cluster })
	if ends == nil || i < 0 {
		return p
	}
	r := w.cfg.Clusters[i].Retention
	p.ends, p.span, p.hold = ends, r.Window.Std(), moving(p.now, floorOf(w.cfg.Clusters[i]))
	slices.SortStableFunc(p.snaps, func(a, b catalog.Snapshot) int { return a.FinishedAt.Compare(b.FinishedAt) })
	for i, s := range p.snaps {
		floor := s.FinishedAt.Add(r.KeepAtLeast.Std())
		end := lockEnd{floor, floor}
		switch next := i + 1; {
		case next == len(p.snaps):
			end = end.later(moving(p.now, p.span))
		case s.FinishedAt.Before(p.now.Add(-p.span)) && p.snaps[next].FinishedAt.After(p.now.Add(-p.span)):
			until := p.snaps[next].FinishedAt.Add(p.span)
			end = end.later(lockEnd{until, until})
		}
		if last := policyOf(r).Expires(s); !last.IsZero() && end.until.After(last) {
			end.until = last
			if end.least.After(last) {
				end.least = last
			}
		}
		if len(held.Snapshots[s.ID]) > 0 {
			end = end.later(p.hold)
		}
		p.by[s.ID] = end
	}
	return p
}

func (p *lockPlan) snapshot(s catalog.Snapshot, names ...string) {
	for _, name := range names {
		p.ends.add(name, p.by[s.ID])
	}
}

// wal locks a segment until the first snapshot behind it has gone out of the window.
// Slices are left, for a segment takes their place, but those that are on hold.
func (p *lockPlan) wal(n catalog.WAL, note string) {
	if p.ends == nil {
		return
	}
	held := p.held.WAL != nil && p.held.WAL(n)
	if n.Slice && !held {
		return
	}
	end := moving(p.now, p.span)
	i := slices.IndexFunc(p.snaps, func(s catalog.Snapshot) bool { return s.FinishedAt.After(n.ArchivedAt) })
	if i >= 0 {
		until := p.snaps[i].FinishedAt.Add(p.span)
		end = lockEnd{until, until}
	}
	if held {
		end = end.later(p.hold)
	}
	for _, name := range []string{note, n.Object.Name, n.Index.Name} {
		p.ends.add(name, end)
	}
}

// targets are all objects that must be in the zones, with their locks; known as in scrubRefs.
func (n *node) targets(ctx context.Context, known knownRefs) ([]vault.Target, error) {
	ends := lockEnds{}
	refs, _, err := n.scrubRefs(ctx, ends, known)
	if err != nil {
		return nil, err
	}
	good := moving(n.now(), n.goodFloor())
	out := make([]vault.Target, 0, len(refs))
	for _, r := range refs {
		t := vault.Target{Need: vault.Need(r)}
		end := ends[r.Name]
		if !strings.HasPrefix(r.Name, catalog.ClustersPrefix) || strings.Contains(r.Name, "/lineages/") {
			end = good
		}
		if end.until.After(n.now()) {
			t.LockUntil, t.LockLeast = end.until, end.least
		}
		out = append(out, t)
	}
	return out, nil
}

// lockIdentities keeps holdfast.json of each zone locked, every version of it.
func (n *node) lockIdentities(ctx context.Context) error {
	var errs []error
	end := moving(n.now(), n.goodFloor())
	for i, z := range n.zones {
		if n.cfg.Repository.Zones[i].ObjectLock == "none" {
			continue
		}
		if err := lockIdentity(ctx, z, end); err != nil {
			errs = append(errs, fmt.Errorf("locking the identity of zone %s: %w", z.Name(), err))
		}
	}
	return errors.Join(errs...)
}

// lockIdentity locks the oldest version: the one that was there first.
func lockIdentity(ctx context.Context, d zone.Driver, end lockEnd) error {
	version, err := zone.OldestIdentity(ctx, d)
	if err != nil {
		return err
	}
	o, err := d.Stat(ctx, zone.IdentityName, version)
	if err != nil || !o.LockedUntil.Before(end.least) {
		return err
	}
	return d.ExtendLock(ctx, zone.IdentityName, version, end.until)
}

// lockNew locks the identity of a zone that was just made.
func (w *world) lockNew(ctx context.Context, z configs.Zone) error {
	if z.ObjectLock == "none" || w.goodFloor() == 0 {
		return nil
	}
	if err := lockIdentity(ctx, w.drivers[z.Name], moving(w.now(), w.goodFloor())); err != nil {
		return failed("give the bucket object lock and versions, and these credentials the right s3:PutObjectRetention; or say object_lock: none for this zone", "locking the identity of zone %s: %w", z.Name, err)
	}
	return nil
}
