package changemap

import (
	"fmt"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// Base is an earlier copy of the cluster: it holds all that was changed before
// Start, and of what was changed up to Stop some or all.
type Base struct {
	Timeline    uint32
	Start, Stop lsn.LSN
}

// Leg is a stretch of the WAL of one timeline; To is exclusive.
type Leg struct {
	Timeline uint32
	From, To lsn.LSN
}

// Path lays out the WAL that leads from base to the moment to on timeline, end to
// end. history is timeline's own, the oldest ancestor first. A base of another
// timeline must be proven an ancestor that was left behind when the base was
// whole: what it saw afterwards never happened here.
func Path(base Base, timeline uint32, to lsn.LSN, history []lsn.Switch) ([]Leg, error) {
	var path []Leg
	at := base.Start
	for _, s := range history {
		switch {
		case s.Timeline < base.Timeline || s.Timeline >= timeline:
			continue
		case len(path) == 0 && s.Timeline != base.Timeline:
			return nil, fmt.Errorf("%w: timeline %d is no ancestor of timeline %d", ErrUnknown, base.Timeline, timeline)
		case len(path) == 0 && s.LSN < base.Stop:
			return nil, fmt.Errorf("%w: timeline %d was left at %s, before the base ended at %s", ErrUnknown, s.Timeline, s.LSN, base.Stop)
		}
		path = append(path, Leg{s.Timeline, at, s.LSN})
		at = s.LSN
	}
	if len(path) == 0 && base.Timeline != timeline {
		return nil, fmt.Errorf("%w: timeline %d is not in the history of timeline %d", ErrUnknown, base.Timeline, timeline)
	}
	path = append(path, Leg{timeline, at, to})
	for _, l := range path {
		if l.From > l.To || to < base.Stop {
			return nil, fmt.Errorf("%w: the base from %s to %s does not lie before %s", ErrUnknown, base.Start, base.Stop, to)
		}
	}
	return path, nil
}
