package restore

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/walrec"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// maxIndex bounds one WAL index, opened.
const maxIndex = 256 << 20

// choose tries the candidates, the newest first, until one reaches the target.
func (g *gatherer) choose(ctx context.Context) error {
	candidates := g.candidates()
	if len(candidates) == 0 {
		return fmt.Errorf("%w: no snapshot %s; the oldest ended at %s", ErrUnreachable, g.wanted(), stamp(g.snaps.List[0].Body.FinishedAt))
	}
	var first error
	for _, s := range candidates {
		err := g.try(ctx, s)
		if err == nil {
			g.zones()
			return nil
		}
		if first == nil {
			first = err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return first
}

func (g *gatherer) wanted() string {
	if g.target.Snapshot != "" {
		return g.target.Snapshot + " lies on the way to the target"
	}
	return fmt.Sprintf("on the way to timeline %d ended before the target", g.in.Timeline)
}

// candidates are the snapshots that recovery could start from, the newest first,
// those with bad pages last (C-21, C-59, C-61).
func (g *gatherer) candidates() []catalog.Snapshot {
	var good, suspect []catalog.Snapshot
	for _, n := range slices.Backward(g.snaps.List) {
		s := n.Body
		switch {
		case s.Kind != "physical",
			g.target.Snapshot != "" && g.target.Snapshot != s.ID,
			!passes(g.in.Legs, s.Timeline, s.StopLSN),
			g.target.Kind == AtTime && s.FinishedAt.After(g.target.Time),
			g.target.Kind == AtLSN && s.StopLSN > g.target.LSN:
		case s.Suspect:
			suspect = append(suspect, s)
		default:
			good = append(good, s)
		}
	}
	return append(good, suspect...)
}

// try sets Snapshot, Moment and Notes, if the WAL behind s reaches the target.
func (g *gatherer) try(ctx context.Context, s catalog.Snapshot) error {
	span := g.reachable(s)
	notes, bad, err := g.Catalog.WALNotes(ctx, g.cluster, span)
	if err != nil {
		return err
	}
	used, end, timeline := walk(g.in.Legs, pieces(notes), s.Timeline, s.StartLSN, endless)
	if end < s.StopLSN {
		return fmt.Errorf("%w: the WAL that snapshot %s needs for consistency (%s to %s) ends at %s%s", ErrUnreachable, s.ID, s.StartLSN, s.StopLSN, end, faults(bad))
	}
	m, err := g.moment(ctx, s, used, end)
	if err != nil {
		return err
	}
	g.in.Snapshot, g.in.Moment, g.in.Notes = s, m, notes
	g.in.Why = []string{fmt.Sprintf("snapshot %s ended at %s, before the target, and is the newest from which the WAL reaches it", s.ID, stamp(s.FinishedAt))}
	if s.Suspect {
		g.in.Why = append(g.in.Why, "no other snapshot reaches the target: this one has bad pages")
	}
	if timeline != g.in.Timeline {
		g.in.Why = append(g.in.Why, fmt.Sprintf("the WAL ends on timeline %d, before timeline %d begins", timeline, g.in.Timeline))
	}
	return nil
}

// reachable are the entries from the snapshot's start on that join without a
// gap, so that only their notes are read.
func (g *gatherer) reachable(s catalog.Snapshot) []catalog.WALEntry {
	bare := map[uint32][]piece{}
	for _, e := range g.entries {
		if e.To > s.StartLSN {
			bare[e.Timeline] = append(bare[e.Timeline], piece{catalog.WAL{Epoch: e.Epoch, Timeline: e.Timeline, From: e.From, To: e.To}})
		}
	}
	_, end, _ := walk(g.in.Legs, bare, s.Timeline, s.StartLSN, endless)
	var out []catalog.WALEntry
	for _, e := range g.entries {
		if e.To > s.StartLSN.SegmentStart(s.SegSize) && e.From <= end {
			out = append(out, e)
		}
	}
	return out
}

// moment resolves the target on the WAL that s can be rolled through.
func (g *gatherer) moment(ctx context.Context, s catalog.Snapshot, used []piece, end lsn.LSN) (Moment, error) {
	latest := newestRecord(used, s)
	switch g.target.Kind {
	case Latest:
		return Moment{End: latest, Why: "the archive's last whole record ends at " + latest.LSN.String()}, nil
	case Immediate:
		return Moment{End: End{s.StopLSN, s.FinishedAt}, Why: "the snapshot is consistent at " + s.StopLSN.String()}, nil
	case AtLSN:
		return momentOfLSN(g.target.LSN, latest, s)
	case AtTime:
		return g.momentOfTime(ctx, s, used, latest)
	}
	marks, err := g.marks(ctx, used, s, time.Time{})
	if err != nil {
		return Moment{}, err
	}
	m, ok := ofXID(marks, g.target.XID)
	if g.target.Kind == AtName {
		m, ok = ofName(marks, g.target.Name)
	}
	if !ok {
		return m, fmt.Errorf("%w: the WAL from snapshot %s (%s) to %s holds no %s", ErrUnreachable, s.ID, s.StopLSN, end, g.target)
	}
	return m, nil
}

// momentOfLSN replays every record that begins before l.
func momentOfLSN(l lsn.LSN, latest End, s catalog.Snapshot) (Moment, error) {
	switch {
	case !Arrived(latest.LSN, l, s.SegSize):
		return Moment{}, fmt.Errorf("%w: the WAL behind snapshot %s ends at %s; use --lsn %s or --latest", ErrUnreachable, s.ID, latest.LSN, latest.LSN)
	case settle(latest.LSN, s.SegSize) == settle(l, s.SegSize):
		return Moment{End: latest, Why: "the archive's last whole record ends there"}, nil
	}
	upto := min(latest.LSN, l.SegmentStart(s.SegSize)+lsn.LSN(2*s.SegSize))
	return Moment{Stop: l, Upto: upto, End: End{LSN: l}, Why: "every record that begins before it is replayed"}, nil
}

func newestRecord(used []piece, s catalog.Snapshot) End {
	e := End{LSN: s.StopLSN, Time: s.FinishedAt}
	for _, p := range used {
		if p.LastRecordEnd > e.LSN {
			e.LSN = p.LastRecordEnd
		}
		if p.LastTime.After(e.Time) {
			e.Time = p.LastTime
		}
	}
	return e
}

// momentOfTime finds the first transaction that ended after the target; where
// the archive has none but is known to hold all until then, its end.
func (g *gatherer) momentOfTime(ctx context.Context, s catalog.Snapshot, used []piece, latest End) (Moment, error) {
	t := g.target.Time
	marks, err := g.marks(ctx, used, s, t)
	if err != nil {
		return Moment{}, err
	}
	if m, ok := before(marks, t); ok {
		if m.End.Time.IsZero() {
			m.End.Time = s.FinishedAt
		}
		return m, nil
	}
	known := latest.Time
	for _, p := range used {
		if p.ServerTime.After(known) {
			known = p.ServerTime
		}
	}
	if known.Before(t) {
		return Moment{}, fmt.Errorf("%w: the archive holds nothing of %s yet, its newest transaction ended at %s; use --latest, or --time %s", ErrUnreachable, stamp(t), stamp(latest.Time), stamp(latest.Time))
	}
	return Moment{End: latest, Why: fmt.Sprintf("no transaction ended between %s and the archive's end %s", stamp(t), latest.LSN)}, nil
}

// marks reads the indexes of used that can matter, in order: for a time the one
// where it is passed, and what lies before it in the same index; otherwise all.
func (g *gatherer) marks(ctx context.Context, used []piece, s catalog.Snapshot, t time.Time) ([]mark, error) {
	var out []mark
	for _, p := range used {
		if p.Index.Name == "" || !t.IsZero() && !p.LastTime.After(t) {
			continue
		}
		idx, err := g.index(ctx, p.Index)
		if err != nil {
			return nil, fmt.Errorf("reading the index of WAL %s: %w", p.File, err)
		}
		out = append(out, marksOf(idx, s.StopLSN)...)
		if !t.IsZero() {
			if _, ok := before(out, t); ok {
				return out, nil
			}
		}
	}
	return out, nil
}

func (g *gatherer) index(ctx context.Context, ref catalog.Ref) (idx walrec.Index, err error) {
	sealed, err := g.Reader.Get(ctx, ref.Name, ref.Size, ref.SHA256)
	if err != nil {
		return idx, err
	}
	plain, err := seal.OpenBlob(sealed, g.identities(), maxIndex)
	if err != nil {
		return idx, err
	}
	return idx, json.Unmarshal(plain, &idx)
}

// marksOf lists what ends behind from, in order of its end.
func marksOf(idx walrec.Index, from lsn.LSN) []mark {
	var out []mark
	for _, c := range idx.Commits {
		out = append(out, mark{Start: c.Start, End: c.End, XID: c.Xid, Time: c.Time})
	}
	for _, r := range idx.RestorePoints {
		out = append(out, mark{Start: r.Start, End: r.End, Time: r.Time, Name: r.Name})
	}
	out = slices.DeleteFunc(out, func(m mark) bool { return m.Start < from })
	slices.SortFunc(out, func(a, b mark) int { return cmp.Compare(a.Start, b.Start) })
	return out
}

// zones says how far each zone alone would come.
func (g *gatherer) zones() {
	names := map[string]bool{}
	var holds []string
	for _, n := range g.snaps.List {
		for _, z := range n.Zones {
			names[z] = true
		}
		if n.Body.ID == g.in.Snapshot.ID {
			holds = n.Zones
		}
	}
	for z := range names {
		var own []catalog.Noted[catalog.WAL]
		for _, n := range g.in.Notes {
			if slices.Contains(n.Zones, z) {
				own = append(own, n)
			}
		}
		_, end, _ := walk(g.in.Legs, pieces(own), g.in.Snapshot.Timeline, g.in.Snapshot.StartLSN, endless)
		g.in.Zones = append(g.in.Zones, ZoneRange{Name: z, Snapshot: slices.Contains(holds, z), WALTo: end})
	}
	slices.SortFunc(g.in.Zones, func(a, b ZoneRange) int { return cmp.Compare(a.Name, b.Name) })
}
