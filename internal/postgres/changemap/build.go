package changemap

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/walrec"
)

// Builder merges pieces, which may come in any order and overlap.
type Builder struct {
	path   []Leg
	m      *Map
	spans  []span
	silent []silence
	failed error
}

// span is where records begin whose changes are known.
type span struct{ from, to lsn.LSN }

// silence is a piece that does not say what changed.
type silence struct {
	span
	why string
}

// maxSilent bounds the reasons that are kept.
const maxSilent = 64

// unknown makes any failure wrap [ErrUnknown].
func unknown(err error) error {
	if err == nil || errors.Is(err, ErrUnknown) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnknown, err)
}

// New begins a map of what changes along the path; bound is in bytes, 0 is [DefaultBound].
func New(path []Leg, bound int64) *Builder {
	return &Builder{path: path, m: newMap(cmp.Or(bound, DefaultBound))}
}

// Wants says whether WAL of a timeline from one place to another lies on the path.
func (b *Builder) Wants(timeline uint32, from, to lsn.LSN) bool {
	_, ok := b.clip(timeline, span{from, to})
	return ok
}

// clip leaves of a span what lies on the path. A timeline's files may begin with
// the WAL of its ancestors, but go on alone where its descendant left it.
func (b *Builder) clip(timeline uint32, s span) (span, bool) {
	i := slices.IndexFunc(b.path, func(l Leg) bool { return l.Timeline == timeline })
	if i < 0 {
		return span{}, false
	}
	s = span{max(s.from, b.path[0].From), min(s.to, b.path[i].To)}
	return s, s.from < s.to
}

// Add merges the index of a piece of WAL that is stored under timeline. A piece
// that does not say what changed leaves a hole, unless others fill it.
func (b *Builder) Add(timeline uint32, ix walrec.Index) error {
	c := ix.Changes
	if c == nil {
		if s, ok := b.clip(timeline, span{ix.From, ix.To}); ok && len(b.silent) < maxSilent {
			b.silent = append(b.silent, silence{s, cmp.Or(ix.Unknown, "its index does not name changed blocks")})
		}
		return b.failed
	}
	s, ok := b.clip(timeline, span{c.From, c.To})
	if !ok || b.failed != nil {
		return b.failed
	}
	if err := c.Each(b.m.add); err != nil {
		b.failed = unknown(err)
		return b.failed
	}
	b.spans = append(b.spans, s)
	return nil
}

// Map gives the map when all of the path is known.
func (b *Builder) Map() (*Map, error) {
	if b.failed != nil {
		return nil, b.failed
	}
	if hole, ok := b.hole(); ok {
		return nil, fmt.Errorf("%w: WAL from %s to %s: %s", ErrUnknown, hole.from, hole.to, b.reason(hole))
	}
	for _, f := range b.m.forks {
		f.tidy()
	}
	return b.m, nil
}

// hole finds the first stretch of the path that no piece covers.
func (b *Builder) hole() (span, bool) {
	slices.SortFunc(b.spans, func(x, y span) int { return cmp.Compare(x.from, y.from) })
	at, end := b.path[0].From, b.path[len(b.path)-1].To
	for _, s := range b.spans {
		if s.from > at {
			return span{at, min(s.from, end)}, true
		}
		at = max(at, s.to)
	}
	return span{at, end}, at < end
}

func (b *Builder) reason(hole span) string {
	for _, s := range b.silent {
		if s.from < hole.to && hole.from < s.to {
			return s.why
		}
	}
	return "no index covers it"
}
