package retention

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// Hold keeps what it names, and exactly the WAL that this needs, whatever the policy:
// a snapshot; of a span of time the snapshot that restores its beginning, and all WAL
// of it; of a project the newest snapshot before each of Moments.
type Hold struct {
	catalog.Hold
	Moments []time.Time // when the hold was placed, and when its project's purge was asked for
}

// keepHolds keeps the snapshots that holds need, and remembers the WAL that spans do.
func (p *planner) keepHolds() {
	for _, h := range p.Holds {
		switch h.Kind {
		case catalog.HoldSnapshot:
			p.hold(h, h.Snapshot)
		case catalog.HoldSpan:
			p.keepSpan(h)
		case catalog.HoldProject:
			for _, at := range h.Moments {
				p.keepMoment(h, at)
			}
			p.keepOwn(h)
		}
	}
}

func (p *planner) hold(h Hold, id string) {
	p.insist(id, "%s", h.Text())
	if !slices.Contains(p.held[id], h.ID) {
		p.held[id] = append(p.held[id], h.ID)
	}
}

// keepMoment keeps, of each system that was not over by then, the newest good snapshot
// before a moment; where there is none, the first after it.
func (p *planner) keepMoment(h Hold, at time.Time) {
	for _, system := range p.unfinished(at) {
		if s, ok := p.beginAt(system, p.everywhere(system), at); ok {
			p.hold(h, s.ID)
		}
	}
}

// keepOwn keeps the newest snapshot of the project alone.
func (p *planner) keepOwn(h Hold) {
	for _, s := range slices.Backward(p.Snapshots) {
		if s.Kind == catalog.Project && s.KeyMAC == h.KeyMAC && s.DigestEpoch == h.DigestEpoch && !s.Suspect {
			p.hold(h, s.ID)
			return
		}
	}
}

// keepSpan keeps what restores every moment of a span, on every timeline that was
// alive in it.
func (p *planner) keepSpan(h Hold) {
	for _, system := range p.unfinished(h.From) {
		first, ok := p.beginAt(system, p.everywhere(system), h.From)
		if !ok {
			continue
		}
		for _, t := range p.branches(system) {
			if t >= first.Timeline {
				p.keepSpanOn(h, Branch{system, t})
			}
		}
	}
}

func (p *planner) keepSpanOn(h Hold, b Branch) {
	legs, known := p.path(b)
	if !known {
		for _, s := range p.Snapshots {
			if s.SystemID == b.SystemID {
				p.hold(h, s.ID)
			}
		}
		return
	}
	s, ok := p.beginAt(b.SystemID, legs, h.From)
	if !ok || s.FinishedAt.After(h.To) {
		return
	}
	p.hold(h, s.ID)
	p.spans = append(p.spans, span{base{s, b.Timeline, p.until(b.SystemID, legs, h.To)}, h.Text()})
}

// span is a stretch of WAL that a hold needs.
type span struct {
	base
	why string
}

// spanReasons are the holds whose spans need bytes of the WAL.
func (p *planner) spanReasons(system string, t uint32, from, to lsn.LSN) (reasons []string) {
	for _, h := range p.spans {
		if h.snap.SystemID == system && !slices.Contains(reasons, h.why) && h.needs(t, from, to) {
			reasons = append(reasons, h.why)
		}
	}
	return reasons
}

// until cuts a timeline's history where a snapshot shows that a moment is past: all
// that was committed by then lies before. Without one it has no end yet.
func (p *planner) until(system string, legs []leg, at time.Time) []leg {
	for i, l := range legs {
		end := endless
		for _, s := range p.Snapshots {
			if s.SystemID == system && s.Timeline == l.timeline && s.StartLSN >= l.from && s.StartLSN <= l.to && s.StartedAt.After(at.Add(clockMargin)) {
				end = min(end, s.StartLSN)
			}
		}
		for _, e := range p.Passed {
			if e.SystemID == system && e.Timeline == l.timeline && e.LSN >= l.from && e.LSN <= l.to && e.At.After(at) {
				end = min(end, e.LSN)
			}
		}
		if end < endless {
			return append(slices.Clone(legs[:i]), leg{l.timeline, l.from, end})
		}
	}
	return legs
}

// Passed is a place in the log by which all that was committed before At lies.
type Passed struct {
	Branch
	LSN lsn.LSN
	At  time.Time
}

// everywhere are all timelines of a system, as one history.
func (p *planner) everywhere(system string) (all []leg) {
	for _, t := range p.branches(system) {
		all = append(all, leg{t, 0, endless})
	}
	return all
}

// unfinished are the systems that no other had taken over from at a moment.
func (p *planner) unfinished(at time.Time) (systems []string) {
	for _, s := range p.Snapshots {
		if !slices.Contains(systems, s.SystemID) && !p.endedBy(s.SystemID, at) {
			systems = append(systems, s.SystemID)
		}
	}
	return systems
}

// gatherHolds reads the holds: those in force, and the snapshots that a hold let go
// so lately that a restore may still read them.
func (k *Keeper) gatherHolds(ctx context.Context, in *Inputs) error {
	holds, err := k.Catalog.Holds(ctx, k.Cluster)
	if err != nil {
		return fmt.Errorf("reading holds: %w", err)
	}
	incomplete(in, "holds", holds.Notes)
	for _, h := range holds.Bodies() {
		end, ended := holds.Released[h.ID]
		switch {
		case ended && in.Now.Before(end.ReleasedAt.Add(k.Policy.RemovalGrace)):
			in.spared = append(in.spared, h.Spared()...)
		case !ended:
			in.Holds = append(in.Holds, Hold{Hold: h, Moments: []time.Time{h.PlacedAt}})
		}
	}
	if !slices.ContainsFunc(in.Holds, func(h Hold) bool { return h.Kind == catalog.HoldProject }) {
		return nil
	}
	tombs, err := k.Catalog.Tombstones(ctx, k.Cluster)
	if err != nil {
		return err
	}
	incomplete(in, "tombstones", tombs)
	for i := range in.Holds {
		in.Holds[i].asked(tombs.Bodies())
	}
	return nil
}

// asked adds when the purges of a project on hold were asked for.
func (h *Hold) asked(tombs []catalog.Tombstone) {
	for _, t := range tombs {
		if concerns(h.Hold, t) {
			h.Moments = append(h.Moments, t.RequestedAt)
		}
	}
}

// spares are the snapshots that a hold needs of those under a mark that is not due yet.
func (k *Keeper) spares(ctx context.Context, snaps catalog.Snapshots, h catalog.Hold) ([]string, error) {
	in, err := k.gather(ctx)
	if err != nil {
		return nil, err
	}
	one := Hold{Hold: h, Moments: []time.Time{h.PlacedAt}}
	if h.Kind == catalog.HoldProject {
		tombs, err := k.Catalog.Tombstones(ctx, k.Cluster)
		if err != nil {
			return nil, err
		}
		one.asked(tombs.Bodies())
	}
	in.Holds, in.Snapshots = []Hold{one}, nil
	for _, n := range snaps.All {
		if m, marked := snaps.Forgotten[n.Body.ID]; !marked || k.Now().Before(m.NotBefore) {
			in.Snapshots = append(in.Snapshots, n.Body)
		}
	}
	p := newPlanner(in)
	p.keepHolds()
	var out []string
	for _, id := range sortedKeys(p.held) {
		if _, marked := snaps.Forgotten[id]; marked {
			out = append(out, id)
		}
	}
	return out, nil
}

// gatherPassed finds, in each lane of the WAL, the first file that shows that a span's
// end is past: replay stops at the first commit behind a moment, and needs nothing
// after it. Where too many files tell no time, more stays than is needed.
func (k *Keeper) gatherPassed(ctx context.Context, in *Inputs) error {
	lanes := map[lane][]catalog.WALEntry{}
	for _, f := range in.WAL {
		if f.From < f.To {
			at := lane{f.Epoch, f.Timeline}
			lanes[at] = append(lanes[at], f.WALEntry)
		}
	}
	for _, h := range in.Holds {
		if h.Kind != catalog.HoldSpan {
			continue
		}
		for _, list := range lanes {
			if err := k.passed(ctx, in, list, h.To); err != nil {
				return err
			}
		}
	}
	return nil
}

// maxSilent is how many files without a time are looked at behind one another.
const maxSilent = 16

func (k *Keeper) passed(ctx context.Context, in *Inputs, list []catalog.WALEntry, at time.Time) error {
	var found *catalog.WAL
	for from, to := 0, len(list); from < to; {
		mid := (from + to) / 2
		i, w, err := k.telling(ctx, list[mid:min(to, mid+maxSilent)])
		switch {
		case err != nil:
			return fmt.Errorf("looking for the end of a span on hold: %w", err)
		case w == nil && to <= mid+maxSilent:
			to = mid
		case w != nil && told(*w).After(at):
			found, to = w, mid
		default:
			from = mid + i + 1
		}
	}
	if found != nil {
		in.Passed = append(in.Passed, Passed{Branch{found.SystemID, found.Timeline}, found.To, told(*found)})
	}
	return nil
}

// told is the latest time that a file's note tells.
func told(w catalog.WAL) time.Time { return later(w.LastTime, w.ServerTime) }

// telling is the first of some files whose note tells a time, and its place; the last
// place and nil where none does.
func (k *Keeper) telling(ctx context.Context, list []catalog.WALEntry) (int, *catalog.WAL, error) {
	for i := range list {
		notes, _, err := k.Catalog.WALNotes(ctx, k.Cluster, list[i:i+1])
		if err != nil {
			return i, nil, err
		}
		if len(notes) == 1 && !told(notes[0].Body).IsZero() {
			return i, &notes[0].Body, nil
		}
	}
	return len(list) - 1, nil, nil
}

// concerns says whether a hold is on a tombstone's project.
func concerns(h catalog.Hold, t catalog.Tombstone) bool {
	return h.Kind == catalog.HoldProject && h.KeyMAC == t.KeyMAC && h.DigestEpoch == t.DigestEpoch
}

// OnHold is what holds in force keep.
type OnHold struct {
	Snapshots map[string][]string // ids of holds, by snapshot
	WAL       func(catalog.WAL) bool
}

// OnHold tells what holds keep, snapshots and WAL.
func (k *Keeper) OnHold(ctx context.Context) (OnHold, error) {
	p, err := k.keptByHolds(ctx, k.Gather)
	if err != nil || p == nil {
		return OnHold{WAL: func(catalog.WAL) bool { return false }}, err
	}
	return OnHold{p.held, func(w catalog.WAL) bool {
		return len(p.spanReasons(w.SystemID, w.Timeline, w.From, w.To)) > 0 || slices.ContainsFunc(p.Snapshots, func(s catalog.Snapshot) bool {
			return len(p.held[s.ID]) > 0 && s.SystemID == w.SystemID && consistent(s, w.Timeline, w.From, w.To)
		})
	}}, nil
}

// Held tells, by snapshot, which holds keep it.
func (k *Keeper) Held(ctx context.Context) (map[string][]string, error) {
	p, err := k.keptByHolds(ctx, k.gather)
	if err != nil || p == nil {
		return nil, err
	}
	return p.held, nil
}

// keptByHolds has kept what the holds in force need; nil where there are none.
func (k *Keeper) keptByHolds(ctx context.Context, read func(context.Context) (Inputs, error)) (*planner, error) {
	holds, err := k.Catalog.Holds(ctx, k.Cluster)
	if err != nil || len(holds.InForce()) == 0 {
		return nil, err
	}
	in, err := read(ctx)
	if err != nil {
		return nil, err
	}
	p := newPlanner(in)
	p.keepHolds()
	return p, nil
}
