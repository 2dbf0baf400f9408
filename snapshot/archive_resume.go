package snapshot

import (
	"context"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// Gap is a stretch of WAL that the archive lacks and the server no longer has.
type Gap struct {
	Cluster string  `json:"cluster"`
	Epoch   int     `json:"epoch"`
	From    Place   `json:"from"` // the end of what is archived
	To      Place   `json:"to"`   // where archiving goes on
	Why     string  `json:"why"`
	Slot    string  `json:"slot,omitempty"`
	Restart lsn.LSN `json:"restart_lsn,omitzero"`
	Dropped bool    `json:"dropped,omitempty"` // by an operator
	// NoticedAt is this node's clock.
	NoticedAt time.Time `json:"noticed_at"`
}

// Place is a position on a timeline.
type Place struct {
	Timeline uint32  `json:"timeline"`
	LSN      lsn.LSN `json:"lsn"`
}

func (p Place) String() string { return fmt.Sprintf("%s on timeline %d", p.LSN, p.Timeline) }

// DecideResume says where the archive of a server ends: the last archived
// position on the way that the server's own history took, whichever epoch
// archived it. A position behind the place where the history left a timeline
// belongs to another branch and does not count. ok is false when nothing of this
// server's history is archived.
func DecideResume(entries []catalog.WALEntry, server Server) (Place, bool) {
	way := append([]lsn.Switch{}, server.History...)
	way = append(way, lsn.Switch{Timeline: server.Timeline, LSN: ^lsn.LSN(0)})
	for i := len(way) - 1; i >= 0; i-- {
		var end lsn.LSN
		for _, e := range entries {
			if e.Timeline == way[i].Timeline && e.From < e.To && e.From < way[i].LSN {
				end = max(end, min(e.To, way[i].LSN))
			}
		}
		if end > 0 {
			return Place{way[i].Timeline, end}, true
		}
	}
	return Place{}, false
}

// passes says that a position lies on the way of the server's history.
func (s Server) passes(at Place) bool {
	for _, h := range s.History {
		if h.Timeline == at.Timeline {
			return at.LSN <= h.LSN
		}
	}
	return at.Timeline == s.Timeline
}

// timelineAt is the timeline on which the server's history holds the byte at l.
func (s Server) timelineAt(l lsn.LSN) uint32 {
	for _, h := range s.History {
		if l < h.LSN {
			return h.Timeline
		}
	}
	return s.Timeline
}

// resume finds in the repository where the archive ends, and makes sure that
// this state directory knows what it signed.
func (w *WALWriter) resume(ctx context.Context, server Server) (Place, bool, error) {
	l := w.c.Lineage
	entries, err := w.reader.WALEntries(ctx, l.Cluster, "")
	if err != nil {
		return Place{}, false, fmt.Errorf("looking where the archive of cluster %s ends: %w", l.Cluster, err)
	}
	if !entries.Complete {
		return Place{}, false, fmt.Errorf("looking where the archive of cluster %s ends: %w", l.Cluster, catalog.ErrIncomplete)
	}
	var mine []catalog.WALEntry
	for _, e := range entries.List {
		if e.Epoch == l.Epoch {
			mine = append(mine, e)
		}
	}
	newest, _, err := w.reader.WALNotes(ctx, l.Cluster, newestEntries(mine, 4))
	if err != nil {
		return Place{}, false, err
	}
	for _, n := range newest {
		if err := w.checkChain(n.Body); err != nil {
			return Place{}, false, err
		}
	}
	at, ok := DecideResume(entries.List, server)
	return at, ok, nil
}
