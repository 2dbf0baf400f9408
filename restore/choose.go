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
		first := g.snaps.List[0].Body
		return fmt.Errorf("%w: no snapshot %s%s; the oldest, %s, is consistent from %s (LSN %s) on", ErrUnreachable, g.wanted(), g.alone(), first.ID, stamp(first.FinishedAt), first.StopLSN)
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
	notes, bad, err := g.Catalog.WALNotes(ctx, g.cluster, g.reachable(s))
	if err != nil {
		return err
	}
	used, end, on := walk(g.in.Legs, pieces(g.in.Legs, notes), s.Timeline, s.StartLSN)
	if end < s.StopLSN {
		return fmt.Errorf("%w: the WAL that snapshot %s needs for consistency (%s to %s) ends at %s%s%s", ErrUnreachable, s.ID, s.StartLSN, s.StopLSN, end, g.alone(), faults(bad))
	}
	g.beyond = nil
	if e, ok := more(g.in.Legs, g.entries, end, on); ok {
		g.beyond = fmt.Errorf("the archive shows WAL of timeline %d up to %s, but lacks what lies behind %s%s%s", e.Timeline, e.To, end, g.alone(), faults(bad))
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
	if g.in.Legs[on].Timeline != g.in.Timeline {
		g.in.Why = append(g.in.Why, fmt.Sprintf("the WAL ends on timeline %d, before timeline %d begins", g.in.Legs[on].Timeline, g.in.Timeline))
	}
	return nil
}

// alone reminds of --zone in an error.
func (g *gatherer) alone() string {
	if g.target.Zone == "" {
		return ""
	}
	return fmt.Sprintf(" in zone %s, which alone was asked; leave --zone out to use all", g.target.Zone)
}

// reachable are the entries from the snapshot's start on that join without a
// gap, so that only their notes are read.
func (g *gatherer) reachable(s catalog.Snapshot) []catalog.WALEntry {
	var claims []catalog.Noted[catalog.WAL]
	for _, e := range g.entries {
		if e.To > s.StartLSN {
			claims = append(claims, catalog.Noted[catalog.WAL]{Body: catalog.WAL{Epoch: e.Epoch, Timeline: e.Timeline, From: e.From, To: e.To}})
		}
	}
	bare := pieces(g.in.Legs, claims)
	_, end, _ := walk(g.in.Legs, bare, s.Timeline, s.StartLSN)
	var out []catalog.WALEntry
	for _, e := range g.entries {
		if e.To > s.StartLSN.SegmentStart(s.SegSize) && e.From <= end {
			out = append(out, e)
		}
	}
	return out
}

// moment resolves the target on the WAL that s can be rolled through.
func (g *gatherer) moment(ctx context.Context, s catalog.Snapshot, used []stretch, end lsn.LSN) (Moment, error) {
	latest := newestRecord(used, s, g.in.Legs)
	switch g.target.Kind {
	case Latest:
		if g.beyond != nil {
			return Moment{}, fmt.Errorf("%w: the end of the archive: %w; use --lsn %s for what can be reached", ErrUnreachable, g.beyond, latest.LSN)
		}
		return Moment{End: latest, Why: "the archive's last whole record ends at " + latest.LSN.String()}, nil
	case Immediate:
		return Moment{End: End{s.StopLSN, s.FinishedAt}, Why: "the snapshot is consistent at " + s.StopLSN.String()}, nil
	case AtLSN:
		return g.momentOfLSN(s, used, latest)
	case AtTime:
		return g.momentOfTime(ctx, s, used, latest)
	}
	return g.momentOfMark(ctx, s, used, end)
}

// momentOfLSN replays every record that begins before the target.
func (g *gatherer) momentOfLSN(s catalog.Snapshot, used []stretch, latest End) (Moment, error) {
	l := g.target.LSN
	switch {
	case !Arrived(latest.LSN, l, s.SegSize):
		return Moment{}, fmt.Errorf("%w: the WAL behind snapshot %s ends at %s%s; use --lsn %s or --latest%s", ErrUnreachable, s.ID, latest.LSN, g.alone(), latest.LSN, g.gap())
	case settle(latest.LSN, s.SegSize) == settle(l, s.SegSize):
		return Moment{End: latest, Why: "the archive's last whole record ends there"}, nil
	}
	return Moment{Stop: l, Upto: beyond(used, l, latest.LSN), End: End{LSN: l}, Why: "every record that begins before it is replayed"}, nil
}

// gap says of what lies behind a gap, if anything.
func (g *gatherer) gap() string {
	if g.beyond == nil {
		return ""
	}
	return " (" + g.beyond.Error() + ")"
}

// beyond is where a record ends that begins at or after l, or the archive's end.
func beyond(used []stretch, l, latest lsn.LSN) lsn.LSN {
	first := lsn.LSN(0) // where the first record ends that ends behind l
	for _, p := range used {
		switch {
		case p.LastRecordEnd <= l || !p.whole():
		case first == 0:
			first = p.LastRecordEnd
		case p.LastRecordEnd > first:
			return p.LastRecordEnd
		}
	}
	return latest
}

// newestRecord is where the last whole record of used ends. A timeline was left
// where one ended.
func newestRecord(used []stretch, s catalog.Snapshot, legs []leg) End {
	e := End{LSN: s.StopLSN, Time: s.FinishedAt}
	for _, p := range used {
		if !p.whole() {
			if slices.ContainsFunc(legs, func(l leg) bool { return l.To == p.Hi }) {
				e.LSN = max(e.LSN, p.Hi)
			}
			continue
		}
		e.LSN = max(e.LSN, p.LastRecordEnd)
		if p.LastTime.After(e.Time) {
			e.Time = p.LastTime
		}
	}
	return e
}

// momentOfTime finds the first transaction that ended after the target; where
// the archive has none but is known to hold all until then, its end.
func (g *gatherer) momentOfTime(ctx context.Context, s catalog.Snapshot, used []stretch, latest End) (Moment, error) {
	t, last := g.target.Time, s.FinishedAt
	for _, p := range used {
		if p.Index.Name != "" && !p.LastTime.After(t) {
			last = later(last, p.LastTime)
			continue
		}
		marks, err := g.marks(ctx, p, s)
		if err != nil {
			return Moment{}, err
		}
		if m, ok := before(marks, t); ok {
			if m.End.Time.IsZero() {
				m.End.Time = last
			}
			return m, nil
		}
	}
	known := latest.Time
	for _, p := range used {
		if p.whole() {
			known = later(known, p.ServerTime)
		}
	}
	switch {
	case g.beyond != nil:
		return Moment{}, fmt.Errorf("%w: %w; use --lsn %s or an earlier time", ErrUnreachable, g.beyond, latest.LSN)
	case known.Before(t):
		return Moment{}, fmt.Errorf("%w: the archive holds nothing of %s yet, its newest transaction ended at %s%s; use --latest, or --time %s", ErrUnreachable, stamp(t), stamp(latest.Time), g.alone(), stamp(latest.Time))
	}
	return Moment{End: latest, Why: fmt.Sprintf("no transaction ended between %s and the archive's end %s", stamp(t), latest.LSN)}, nil
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// momentOfMark finds a transaction or a restore point.
func (g *gatherer) momentOfMark(ctx context.Context, s catalog.Snapshot, used []stretch, end lsn.LSN) (Moment, error) {
	last := s.FinishedAt
	for _, p := range used {
		marks, err := g.marks(ctx, p, s)
		if err != nil {
			return Moment{}, err
		}
		m, ok := ofXID(marks, g.target.XID)
		if g.target.Kind == AtName {
			m, ok = ofName(marks, g.target.Name)
		}
		if ok {
			return m, nil
		}
		last = later(last, p.LastTime)
	}
	return Moment{}, fmt.Errorf("%w: the WAL from snapshot %s (%s) to %s holds no %s%s; the nearest that can be reached is --time %s or --lsn %s%s",
		ErrUnreachable, s.ID, s.StopLSN, end, g.target, g.alone(), stamp(last), end, g.gap())
}

// marks reads the index of one stretch.
func (g *gatherer) marks(ctx context.Context, p stretch, s catalog.Snapshot) ([]mark, error) {
	if p.Index.Name == "" {
		return nil, fmt.Errorf("%w: WAL %s (%s to %s) could not be read when it was archived, so no moment within it is known; use --lsn or --latest", ErrUnreachable, p.File, p.Lo, p.Hi)
	}
	idx, err := g.index(ctx, p.Index)
	if err != nil {
		return nil, fmt.Errorf("reading the index of WAL %s: %w", p.File, err)
	}
	return marksOf(idx, max(p.Lo, s.StopLSN), p.Hi), nil
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

// marksOf lists what ends behind from and not behind to, in order.
func marksOf(idx walrec.Index, from, to lsn.LSN) []mark {
	var out []mark
	for _, c := range idx.Commits {
		out = append(out, mark{Start: c.Start, End: c.End, XID: c.Xid, Time: c.Time})
	}
	for _, r := range idx.RestorePoints {
		out = append(out, mark{Start: r.Start, End: r.End, Time: r.Time, Name: r.Name})
	}
	out = slices.DeleteFunc(out, func(m mark) bool { return m.End <= from || m.End > to })
	slices.SortFunc(out, func(a, b mark) int { return cmp.Compare(a.Start, b.Start) })
	return out
}

// zones says how far each zone alone would come.
func (g *gatherer) zones() {
	mute := map[string]error{}
	for _, f := range g.snaps.Missing {
		mute[f.Name] = f.Err
	}
	var holds []string
	for _, n := range g.snaps.List {
		if n.Body.ID == g.in.Snapshot.ID {
			holds = n.Zones
		}
	}
	for _, z := range g.Reader.Zones() {
		r := ZoneRange{Name: z, Snapshot: slices.Contains(holds, z)}
		if err := mute[z]; err != nil {
			r.Err = err.Error()
		}
		var own []catalog.Noted[catalog.WAL]
		for _, n := range g.in.Notes {
			if slices.Contains(n.Zones, z) {
				own = append(own, n)
			}
		}
		if len(own) > 0 {
			_, r.WALTo, _ = walk(g.in.Legs, pieces(g.in.Legs, own), g.in.Snapshot.Timeline, g.in.Snapshot.StartLSN)
		}
		g.in.Zones = append(g.in.Zones, r)
	}
	slices.SortFunc(g.in.Zones, func(a, b ZoneRange) int { return cmp.Compare(a.Name, b.Name) })
}
